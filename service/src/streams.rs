//! Data of a request that comes in chunks.
//!
//! Each chunk is asked for: so at most one waits in memory for each request, and what the engine
//! asks a person before, such as a PIN, does not stand behind it.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use claviger_client::wire::{Chunk, frame::Content};
use claviger_token::{Call, Zeroizing};
use sha2::{Digest, Sha256};

use crate::Refusal;
use crate::outbox::Line;

/// So often it is looked whether the request has ended meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Where the connection puts the chunks of a request.
pub(crate) type Chunks = SyncSender<Chunk>;

/// The data of a request, read as it comes. Reading blocks.
pub(crate) struct Incoming {
    line: Line,
    call: Call,
    chunks: Receiver<Chunk>,
    /// What came last, and how much of it has been read.
    data: Zeroizing<Vec<u8>>,
    read: usize,
    is_last: bool,
    /// How many bytes have come, and how many may.
    came: usize,
    most: Option<usize>,
}

impl Incoming {
    /// The data of the request of `line`, which begins with `data`.
    pub(crate) fn new(line: &Line, call: &Call, data: Vec<u8>) -> (Chunks, Self) {
        let (sender, chunks) = sync_channel(1);
        let incoming = Incoming {
            line: line.clone(),
            call: call.clone(),
            chunks,
            came: data.len(),
            most: None,
            data: Zeroizing::new(data),
            read: 0,
            is_last: false,
        };
        (sender, incoming)
    }

    /// Reading fails with [`io::ErrorKind::FileTooLarge`] once more than `most` bytes have come.
    #[must_use]
    pub(crate) fn at_most(mut self, most: usize) -> Self {
        self.most = Some(most);
        self
    }

    /// All of it.
    ///
    /// # Errors
    /// [`Refusal::DataTooLong`]; `None` where it does not come.
    pub(crate) fn whole(self, most: usize) -> Result<Zeroizing<Vec<u8>>, Option<Refusal>> {
        read_whole(self.at_most(most)).map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => Some(Refusal::DataTooLong { most }),
            _ => None,
        })
    }

    fn is_not_too_long(&self) -> io::Result<()> {
        match self.most.is_some_and(|most| self.came > most) {
            true => Err(io::ErrorKind::FileTooLarge.into()),
            false => Ok(()),
        }
    }

    fn next(&mut self) -> io::Result<()> {
        if !self.line.send(Content::Chunk(Chunk::default())) {
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
                    self.came = self.came.saturating_add(self.data.len());
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

/// All that `from` has, without a copy of it in freed memory.
///
/// # Errors
/// Those of `from`.
pub(crate) fn read_whole(mut from: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut all = Zeroizing::new(Vec::new());
    let mut part = Zeroizing::new(vec![0; 64 << 10]);
    loop {
        match from.read(&mut part) {
            Ok(0) => return Ok(all),
            Ok(length) => append(&mut all, &part[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
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
        self.is_not_too_long()?;
        while self.read == self.data.len() {
            if self.is_last || into.is_empty() {
                return Ok(0);
            }
            self.next()?;
            self.is_not_too_long()?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives what it has in small pieces.
    struct Piecewise<'a>(&'a [u8]);

    impl Read for Piecewise<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let length = into.len().min(1000);
            self.0.read(&mut into[..length])
        }
    }

    #[test]
    fn data_that_outgrows_its_buffer_is_wiped_where_it_was() {
        let data: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        assert!(*read_whole(Piecewise(&data)).unwrap() == data);
        // A buffer that is full is not grown, which would free the old bytes as they are.
        let mut all = Zeroizing::new(Vec::with_capacity(1000));
        append(&mut all, &data[..1000]);
        let before = all.as_ptr();
        append(&mut all, &data[1000..1001]);
        assert!(before != all.as_ptr() && *all == data[..1001]);
    }
}
