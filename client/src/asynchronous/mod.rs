//! The client for programs that run tokio (feature `tokio`).
//!
//! It does what the [blocking](crate::blocking) one does. A request whose future is dropped is
//! cancelled. Replies that nobody takes hold up the others of the same [`Client`] after 64 frames,
//! so poll what you have begun.

mod connection;
pub mod device;
mod exchange;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use zeroize::Zeroizing;

use crate::answer::Answer;
use crate::error::Error;
use crate::frame::CHUNK;
use crate::options::Options;
use crate::pieces::{Ahead, Pieces};
use crate::request::{Commit, Request, announced, signature};
use crate::retry::{Failed, Pause};
use crate::wire::{EngineId, Event, PinRequest, Purpose, Signature};

use connection::Connection;
use exchange::{Data, exchange, read_chunk};

/// A PIN, or none, when somebody has decided.
pub type PinFuture<'a> = Pin<Box<dyn Future<Output = Option<Zeroizing<Vec<u8>>>> + Send + 'a>>;

/// Hears of a request that waits for somebody, and gives PINs.
pub trait Listener: Send + Sync {
    /// The request waits for somebody: a touch, an approval …
    fn event(&self, event: &Event) {
        let _ = event;
    }

    /// The request needs a PIN; `None` if there is none.
    fn pin<'a>(&'a self, request: &'a PinRequest) -> PinFuture<'a> {
        let _ = request;
        Box::pin(async { None })
    }
}

/// Hears nothing and has no PIN.
impl Listener for () {}

/// How a request is made. To give it up, drop its future.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// How long it may take; `None` is without limit.
    pub deadline: Option<Duration>,
    /// Who is told of events, and asked for PINs.
    pub listener: &'a dyn Listener,
    /// The most bytes that a long answer may have.
    pub longest_reply: usize,
}

impl Default for Call<'_> {
    /// No deadline, nobody who listens, and answers of at most 64 MiB.
    fn default() -> Self {
        Call {
            deadline: None,
            listener: &(),
            longest_reply: 64 << 20,
        }
    }
}

impl<'a> Call<'a> {
    /// As usual, with a deadline.
    pub fn within(deadline: Duration) -> Call<'a> {
        Call {
            deadline: Some(deadline),
            ..Call::default()
        }
    }
}

/// A daemon, as its callers see it. Several tasks may use it at once.
pub struct Client {
    options: Options,
    home_id: String,
    connection: Mutex<Arc<Connection>>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// No daemon, not the expected user's, another home, or another version of the protocol.
    pub async fn connect(options: Options) -> Result<Client, Error> {
        let connection = Connection::open(&options).await?;
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

    /// Makes a request.
    ///
    /// # Errors
    /// What the daemon answers ([`Error::Refused`]), and what happens on the way to it.
    pub async fn ask<R: Request>(&self, request: &R, call: &Call<'_>) -> Result<R::Reply, Error> {
        let data = request.data();
        let follows = data.len() > CHUNK;
        let until = until(call);
        let mut pause = Pause::new(self.options.patience);
        let answer = loop {
            let error = match self.live(until).await {
                Ok(connection) => {
                    let content = request.content(follows);
                    let data = match follows {
                        true => Data::<&[u8]>::Bytes(Pieces::new(data)),
                        false => Data::Inline,
                    };
                    match exchange(&connection, content, data, call, until).await {
                        Ok(answer) => break answer,
                        Err(failed) => unbegun(&connection, failed)?,
                    }
                }
                Err(error) => error,
            };
            self.pause(error, &mut pause, until).await?;
        };
        request.reply(answer)
    }

    /// Signs data with the engine of an identity.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub async fn commit(
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
        self.ask(&request, call).await
    }

    /// Signs what a reader gives, of any length.
    ///
    /// # Errors
    /// As [`ask`](Self::ask); `Input`, if it cannot be read. If the daemon goes away while the data
    /// is sent, the request is not made again: what was read is gone.
    pub async fn commit_stream(
        &self,
        engine: &EngineId,
        data: &mut (impl AsyncRead + Unpin),
        purpose: &Purpose,
        call: &Call<'_>,
    ) -> Result<Signature, Error> {
        let beginning = read_chunk(data).await.map_err(Error::Input)?;
        if beginning.len() < CHUNK {
            return self.commit(engine, &beginning, purpose, call).await;
        }
        let answer = self.streamed(engine, &beginning, data, purpose, call);
        signature(answer.await?)
    }

    async fn streamed(
        &self,
        engine: &EngineId,
        beginning: &[u8],
        data: &mut (impl AsyncRead + Unpin),
        purpose: &Purpose,
        call: &Call<'_>,
    ) -> Result<Answer, Error> {
        let until = until(call);
        let mut pause = Pause::new(self.options.patience);
        loop {
            let error = match self.live(until).await {
                Ok(connection) => {
                    let content = announced(engine, purpose);
                    let data = Data::Stream(Ahead::new(beginning), &mut *data);
                    match exchange(&connection, content, data, call, until).await {
                        Ok(answer) => return Ok(answer),
                        Err(failed) => unbegun(&connection, failed)?,
                    }
                }
                Err(error) => error,
            };
            self.pause(error, &mut pause, until).await?;
        }
    }

    /// Waits before the next attempt, if there is one after this error.
    async fn pause(
        &self,
        error: Error,
        pause: &mut Pause,
        until: Option<Instant>,
    ) -> Result<(), Error> {
        let until = until.map(Instant::into_std);
        sleep(pause.next(error, until)?).await;
        Ok(())
    }

    /// The connection, or a new one if it has ended.
    async fn live(&self, until: Option<Instant>) -> Result<Arc<Connection>, Error> {
        let mut current = self.connection.lock().await;
        if !current.is_open() {
            let mut options = self.options.clone();
            options.home_id = Some(self.home_id.clone());
            let opened = Connection::open(&options);
            let opened = match until {
                Some(until) => tokio::time::timeout_at(until, opened)
                    .await
                    .map_err(|_| Error::Deadline)?,
                None => opened.await,
            };
            *current = Arc::new(opened?);
        }
        Ok(current.clone())
    }
}

/// The error after which the request may be made again, on another connection.
fn unbegun(connection: &Connection, failed: Failed) -> Result<Error, Error> {
    match failed {
        Failed::NotBegun(error) => {
            connection.retire();
            Ok(error)
        }
        Failed::Finally(error) => Err(error),
    }
}

fn until(call: &Call<'_>) -> Option<Instant> {
    let now = Instant::now();
    call.deadline.and_then(|limit| now.checked_add(limit))
}
