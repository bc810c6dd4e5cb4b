//! Data of a request that comes in chunks.
//!
//! Each chunk is asked for: so at most one waits in memory for each request, and what the engine
//! asks a person before, such as a PIN, does not stand behind it.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use claviger_client::wire::{Chunk, frame::Content};
use claviger_token::{Call, Zeroizing};
use sha2::{Digest, Sha256};

use crate::Refusal;
use crate::outbox::Outbox;

/// So often it is looked whether the request has ended meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Where the connection puts the chunks of a request.
pub(crate) type Chunks = SyncSender<Chunk>;

/// The data of a request, read as it comes. Reading blocks.
pub(crate) struct Incoming {
    outbox: Arc<Outbox>,
    id: u64,
    call: Call,
    chunks: Receiver<Chunk>,
    /// What came last, and how much of it has been read.
    data: Zeroizing<Vec<u8>>,
    read: usize,
    is_last: bool,
}

impl Incoming {
    /// The data of the request `id`, which begins with `data`.
    pub(crate) fn new(outbox: &Arc<Outbox>, id: u64, call: &Call, data: Vec<u8>) -> (Chunks, Self) {
        let (sender, chunks) = sync_channel(1);
        let incoming = Incoming {
            outbox: Arc::clone(outbox),
            id,
            call: call.clone(),
            chunks,
            data: Zeroizing::new(data),
            read: 0,
            is_last: false,
        };
        (sender, incoming)
    }

    /// All of it.
    ///
    /// # Errors
    /// [`Refusal::DataTooLong`]; `None` where it does not come.
    pub(crate) fn whole(mut self, most: usize) -> Result<Zeroizing<Vec<u8>>, Option<Refusal>> {
        let mut all = Zeroizing::new(Vec::new());
        let mut part = Zeroizing::new(vec![0; 64 << 10]);
        loop {
            match self.read(&mut part).map_err(|_| None)? {
                0 => return Ok(all),
                length if all.len() + length > most => {
                    return Err(Some(Refusal::DataTooLong { most }));
                }
                length => append(&mut all, &part[..length]),
            }
        }
    }

    fn next(&mut self) -> io::Result<()> {
        if !self.outbox.send(self.id, Content::Chunk(Chunk::default())) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        loop {
            if self.call.check().is_err() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match self.chunks.recv_timeout(self.call.at_most(LOOK_AGAIN)) {
                Ok(mut chunk) => {
                    self.data = Zeroizing::new(std::mem::take(&mut chunk.data));
                    self.read = 0;
                    self.is_last = chunk.last;
                    return Ok(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
            }
        }
    }
}

/// Appends without leaving a copy in freed memory.
fn append(all: &mut Zeroizing<Vec<u8>>, part: &[u8]) {
    if all.capacity() - all.len() < part.len() {
        let mut larger = Vec::with_capacity((all.len() + part.len()).max(2 * all.capacity()));
        larger.extend_from_slice(all);
        *all = Zeroizing::new(larger);
    }
    all.extend_from_slice(part);
}

impl Read for Incoming {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.read == self.data.len() {
            if self.is_last || into.is_empty() {
                return Ok(0);
            }
            self.next()?;
        }
        let left = &self.data[self.read..];
        let length = left.len().min(into.len());
        into[..length].copy_from_slice(&left[..length]);
        self.read += length;
        Ok(length)
    }
}

/// Data and the SHA-256 of what was read of it, for the log.
pub(crate) struct Hashed<R> {
    data: R,
    hash: Option<Sha256>,
}

impl<R: Read> Hashed<R> {
    pub(crate) fn new(data: R, is_wanted: bool) -> Self {
        Hashed {
            data,
            hash: is_wanted.then(Sha256::new),
        }
    }

    pub(crate) fn digest(self) -> Option<[u8; 32]> {
        self.hash.map(|hash| hash.finalize().into())
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.data.read(into)?;
        if let Some(hash) = &mut self.hash {
            hash.update(&into[..length]);
        }
        Ok(length)
    }
}
