//! The data of a request, in the pieces that the daemon asks for.

use zeroize::Zeroizing;

use crate::frame::CHUNK;
use crate::wire::Chunk;

/// The pieces of data in memory.
pub(crate) struct Pieces<'a> {
    rest: &'a [u8],
}

impl<'a> Pieces<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Pieces<'a> {
        Pieces { rest: data }
    }

    /// The next one; after the last one they are empty.
    pub(crate) fn next(&mut self) -> Chunk {
        let (piece, rest) = self.rest.split_at(self.rest.len().min(CHUNK));
        self.rest = rest;
        Chunk {
            data: piece.to_vec(),
            last: rest.is_empty(),
        }
    }
}

/// Pieces that are read one ahead, so that the last one is known as such.
pub(crate) struct Ahead(Zeroizing<Vec<u8>>);

impl Ahead {
    pub(crate) fn new(beginning: &[u8]) -> Ahead {
        Ahead(Zeroizing::new(beginning.to_vec()))
    }

    /// The piece before this one, which is empty at the end.
    pub(crate) fn push(&mut self, mut following: Zeroizing<Vec<u8>>) -> Chunk {
        let last = following.is_empty();
        std::mem::swap(&mut self.0, &mut following);
        Chunk {
            data: std::mem::take(&mut *following),
            last,
        }
    }
}
