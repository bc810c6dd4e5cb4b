//! The client for programs without an async runtime: a request is a call that returns its answer.
//!
//! A [`Client`] may be used by many threads at once; all their requests are in flight on one
//! connection. If the daemon was restarted, the client connects again, and makes those requests again
//! that were not begun. It never makes one again that may have been carried out: that is
//! [`Error::Lost`].

mod call;
mod connection;
pub mod device;
mod exchange;
mod socket;

pub use call::{Call, Cancel, Listener};

use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use zeroize::Zeroizing;

use crate::answer::Answer;
use crate::error::Error;
use crate::frame::CHUNK;
use crate::options::Options;
use crate::peer::Peer;
use crate::pieces::{Ahead, Pieces};
use crate::request::{Commit, Decrypt, Decrypted, Request, announced, signature};
use crate::retry::{Failed, Pause};
use crate::wire::{EngineId, Hello, Purpose, Signature};

use connection::Connection;
use exchange::{Data, exchange, read_chunk};

/// A daemon, as its callers see it.
pub struct Client {
    options: Options,
    /// The id of the home of the first connection: a later one has to be the same.
    home_id: String,
    connection: Mutex<Arc<Connection>>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// No daemon, not the expected user's, another home, or another version of the protocol.
    pub fn connect(options: Options) -> Result<Client, Error> {
        let connection = Connection::open(&options, None)?;
        Ok(Client {
            home_id: connection.hello.home_id.clone(),
            connection: Mutex::new(Arc::new(connection)),
            options,
        })
    }

    /// The random id of the home that the daemon serves.
    pub fn home_id(&self) -> &str {
        &self.home_id
    }

    /// How the daemon introduced itself on the present connection.
    pub fn hello(&self) -> Hello {
        self.current().hello.clone()
    }

    /// As whom it runs.
    pub fn peer(&self) -> Peer {
        self.current().peer
    }

    /// Makes a request.
    ///
    /// # Errors
    /// What the daemon answers ([`Error::Refused`]), and what happens on the way to it.
    pub fn ask<R: Request>(&self, request: &R, call: &Call<'_>) -> Result<R::Reply, Error> {
        let data = request.data();
        let follows = data.len() > CHUNK;
        let answer = self.insist(call, |connection, until| {
            let data = match follows {
                true => Data::Bytes(Pieces::new(data)),
                false => Data::Inline,
            };
            let content = request.content(follows);
            exchange(connection, content, data, call, until)
        })?;
        request.reply(answer)
    }

    /// Signs data with the engine of an identity.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn commit(
        &self,
        engine: &EngineId,
        data: &[u8],
        purpose: &Purpose,
        call: &Call<'_>,
    ) -> Result<Signature, Error> {
        let purpose = purpose.clone();
        let request = Commit {
            engine,
            data,
            purpose,
        };
        self.ask(&request, call)
    }

    /// Signs what a reader gives, of any length.
    ///
    /// # Errors
    /// As [`ask`](Self::ask); `Input`, if it cannot be read. If the daemon goes away while the data
    /// is sent, the request is not made again: what was read is gone.
    pub fn commit_stream(
        &self,
        engine: &EngineId,
        data: &mut dyn Read,
        purpose: &Purpose,
        call: &Call<'_>,
    ) -> Result<Signature, Error> {
        let beginning = read_chunk(data).map_err(Error::Input)?;
        if beginning.len() < CHUNK {
            return self.commit(engine, &beginning, purpose, call);
        }
        let answer = self.insist(call, |connection, until| {
            let content = announced(engine, purpose);
            let data = Data::Stream(Ahead::new(&beginning), data);
            exchange(connection, content, data, call, until)
        })?;
        signature(answer)
    }

    /// Opens the header of an age file. The answer is its file key, with which the caller decrypts
    /// what follows the header.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn open_header(
        &self,
        engine: &EngineId,
        header: &[u8],
        call: &Call<'_>,
    ) -> Result<Decrypted, Error> {
        let request = Decrypt {
            engine,
            data: header,
            header_only: true,
        };
        self.ask(&request, call)
    }

    /// Decrypts an age file.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn decrypt(
        &self,
        engine: &EngineId,
        data: &[u8],
        call: &Call<'_>,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let request = Decrypt {
            engine,
            data,
            header_only: false,
        };
        self.ask(&request, call).map(|opened| opened.data)
    }

    /// Makes a request on the present connection, or on a new one as long as the daemon has not
    /// begun.
    fn insist(
        &self,
        call: &Call<'_>,
        mut attempt: impl FnMut(&Arc<Connection>, Option<Instant>) -> Result<Answer, Failed>,
    ) -> Result<Answer, Error> {
        let until = call
            .deadline
            .and_then(|limit| Instant::now().checked_add(limit));
        let mut pause = Pause::new(self.options.patience);
        loop {
            let error = match self.live(until) {
                Ok(connection) => match attempt(&connection, until) {
                    Ok(answer) => return Ok(answer),
                    Err(Failed::Finally(error)) => return Err(error),
                    Err(Failed::NotBegun(error)) => {
                        connection.retire();
                        error
                    }
                },
                Err(error) => error,
            };
            if call.cancel.is_some_and(Cancel::is_cancelled) {
                return Err(error);
            }
            thread::sleep(pause.next(error, until)?);
        }
    }

    /// The connection, or a new one if it has ended.
    fn live(&self, until: Option<Instant>) -> Result<Arc<Connection>, Error> {
        let mut current = self.current();
        if !current.is_open() {
            let mut options = self.options.clone();
            options.home_id = Some(self.home_id.clone());
            *current = Arc::new(Connection::open(&options, until)?);
        }
        Ok(current.clone())
    }

    fn current(&self) -> MutexGuard<'_, Arc<Connection>> {
        let current = self.connection.lock();
        current.unwrap_or_else(PoisonError::into_inner)
    }
}
