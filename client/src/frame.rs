//! Frames: a length of four bytes (big-endian, at most 1 MiB), and so many bytes of protobuf.
//!
//! ```
//! use claviger_client::frame::{self, Decoder};
//! use claviger_client::wire::{Cancel, Frame, frame::Content};
//!
//! let mut bytes = Vec::new();
//! frame::encode(&Frame::new(7, Content::Cancel(Cancel {})), &mut bytes)?;
//!
//! // However the bytes arrive, the same frame comes out.
//! let mut decoder = Decoder::new();
//! for byte in bytes {
//!     assert!(decoder.next_frame()?.is_none());
//!     decoder.space()[0] = byte;
//!     decoder.filled(1);
//! }
//! assert_eq!(decoder.next_frame()?.map(|frame| frame.id), Some(7));
//! # Ok::<(), frame::FrameError>(())
//! ```
//!
//! A length is judged before it is believed, and a buffer grows only as bytes arrive: who announces
//! a mebibyte and sends nothing gets no memory for it.

use std::io::{self, Read, Write};

use prost::Message;
use zeroize::Zeroize;

use crate::shape;
use crate::wire::Frame;

/// The version of the protocol that this crate speaks.
pub const PROTOCOL: u32 = 1;

/// The most bytes that a frame may have, without its length.
pub const LIMIT: usize = 1 << 20;

/// The most bytes of data in one frame: longer data comes in chunks of at most this length.
pub const CHUNK: usize = 256 << 10;

/// The bytes that say how long a frame is.
const PREFIX: usize = 4;

/// The first buffer of a decoder, and what it keeps between frames.
const SMALL: usize = 4 << 10;

/// Why bytes are no frame. The connection cannot be used any more: where the next frame begins is
/// not known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// It says, or is, longer than a frame may be.
    #[error("a frame of {length} bytes: at most {LIMIT} are allowed")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// Its bytes are not those of a message.
    #[error("a malformed frame: {0}")]
    Malformed(#[source] prost::DecodeError),
    /// Its lists have so many elements that it would take many times its length in memory.
    #[error("a frame of {length} bytes has too many elements")]
    TooManyElements {
        /// Its length in bytes.
        length: usize,
    },
    /// The connection ended within it.
    #[error("the connection ended within a frame, after {received} bytes of it")]
    Truncated {
        /// The bytes of it that came, its length included.
        received: usize,
    },
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}

impl FrameError {
    /// A stable code: see ERRORS.md.
    pub fn code(&self) -> &'static str {
        match self {
            FrameError::TooLong { .. } => "frame-too-long",
            FrameError::Malformed(_) => "frame-malformed",
            FrameError::TooManyElements { .. } => "frame-too-many-elements",
            FrameError::Truncated { .. } => "frame-truncated",
            FrameError::Io(_) => "connection-failed",
        }
    }
}

/// Appends a frame and its length.
///
/// A buffer that has to grow leaves no copy of its bytes behind.
///
/// # Errors
/// `TooLong`; then nothing is appended.
pub fn encode(frame: &Frame, bytes: &mut Vec<u8>) -> Result<(), FrameError> {
    let length = frame.encoded_len();
    if length > LIMIT {
        return Err(FrameError::TooLong { length });
    }
    make_room(bytes, PREFIX + length);
    // At most `LIMIT`, which is less than `u32::MAX`.
    bytes.extend_from_slice(&(length as u32).to_be_bytes());
    frame.encode_raw(bytes);
    Ok(())
}

/// Room for so many bytes more, without a copy of the old ones in freed memory.
fn make_room(bytes: &mut Vec<u8>, more: usize) {
    if bytes.capacity() - bytes.len() >= more {
        return;
    }
    let needed = bytes.len() + more;
    let mut larger = Vec::with_capacity(needed.max(2 * bytes.capacity()));
    larger.extend_from_slice(bytes);
    bytes.zeroize();
    *bytes = larger;
}

/// Writes one frame, at once.
///
/// # Errors
/// `TooLong`, and then nothing is written; `Io`.
pub fn write(frame: &Frame, writer: &mut impl Write) -> Result<(), FrameError> {
    let mut bytes = Vec::new();
    encode(frame, &mut bytes)?;
    let written = writer.write_all(&bytes);
    bytes.zeroize();
    Ok(written?)
}

/// Reads one frame; what comes after it stays in the decoder. `None` is the end of the connection.
///
/// # Errors
/// As [`Decoder::next_frame`]; `Truncated`, if the connection ends within a frame; `Io`.
pub fn read(reader: &mut impl Read, decoder: &mut Decoder) -> Result<Option<Frame>, FrameError> {
    loop {
        if let Some(frame) = decoder.next_frame()? {
            return Ok(Some(frame));
        }
        match reader.read(decoder.space()) {
            Ok(0) => return decoder.end().map(|()| None),
            Ok(length) => decoder.filled(length),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Makes frames of bytes that arrive in pieces of any length.
///
/// Read into [`space`](Decoder::space), say how many bytes came ([`filled`](Decoder::filled)), and
/// take frames ([`next_frame`](Decoder::next_frame)) until there is none.
#[derive(Default)]
pub struct Decoder {
    /// What has arrived is `begin..end`.
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
}

impl Decoder {
    /// Nothing has arrived; this allocates nothing.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Where the next bytes go; it is never empty.
    pub fn space(&mut self) -> &mut [u8] {
        if self.begin == self.end {
            self.begin = 0;
            self.end = 0;
        }
        if self.end == self.buffer.len() {
            self.make_space();
        }
        &mut self.buffer[self.end..]
    }

    /// So many bytes have been put into the space.
    pub fn filled(&mut self, length: usize) {
        self.end = self.end.saturating_add(length).min(self.buffer.len());
    }

    /// The next frame, if all of it has arrived.
    ///
    /// # Errors
    /// `TooLong`, as soon as the length is there, `TooManyElements` and `Malformed`. Then nothing
    /// more can be read.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(length) = self.length()? else {
            return Ok(None);
        };
        let begin = self.begin + PREFIX;
        if self.end - begin < length {
            return Ok(None);
        }
        let bytes = &mut self.buffer[begin..begin + length];
        if length > SMALL && !shape::is_bounded(bytes) {
            bytes.zeroize();
            return Err(FrameError::TooManyElements { length });
        }
        let frame = Frame::decode(&*bytes);
        if frame.as_ref().map_or(true, Frame::is_secret) {
            bytes.zeroize();
        }
        self.begin = begin + length;
        self.give_back(length);
        frame.map(Some).map_err(FrameError::Malformed)
    }

    /// The connection has ended.
    ///
    /// # Errors
    /// `Truncated`, if a frame had begun.
    pub fn end(&self) -> Result<(), FrameError> {
        match self.end - self.begin {
            0 => Ok(()),
            received => Err(FrameError::Truncated { received }),
        }
    }

    /// Whether no byte waits in it.
    pub fn is_empty(&self) -> bool {
        self.begin == self.end
    }

    /// The bytes of memory that its buffer takes.
    pub fn size(&self) -> usize {
        self.buffer.capacity()
    }

    /// Frees the buffer if no byte waits in it: a connection that is idle needs none.
    pub fn release(&mut self) {
        if self.is_empty() {
            *self = Decoder::default();
        }
    }

    /// The length of the frame that has begun, if it is there.
    fn length(&self) -> Result<Option<usize>, FrameError> {
        let arrived = &self.buffer[self.begin..self.end];
        let Some(prefix) = arrived.first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*prefix) as usize;
        match length <= LIMIT {
            true => Ok(Some(length)),
            false => Err(FrameError::TooLong { length }),
        }
    }

    /// The buffer is full up to its end.
    fn make_space(&mut self) {
        // A length that is refused needs no more space than a length.
        let length = self.length().ok().flatten().unwrap_or_default();
        let arrived = self.end - self.begin;
        if self.begin > 0 && self.buffer.len() >= PREFIX + length {
            self.buffer.copy_within(self.begin..self.end, 0);
            self.buffer[arrived..].zeroize();
        } else {
            let mut larger = vec![0; (2 * self.buffer.len()).max(SMALL)];
            larger[..arrived].copy_from_slice(&self.buffer[self.begin..self.end]);
            self.buffer.zeroize();
            self.buffer = larger;
        }
        self.begin = 0;
        self.end = arrived;
    }

    /// Frees what long frames needed, once a short one comes.
    fn give_back(&mut self, length: usize) {
        if self.is_empty() && length < SMALL && self.buffer.len() > 16 * SMALL {
            *self = Decoder::default();
        }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Decoder");
        shown.field("arrived", &(self.end - self.begin)).finish()
    }
}
