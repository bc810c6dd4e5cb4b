//! Frames of 64 bytes, as a Ledger speaks over HID.
//!
//! | bytes | |
//! | --- | --- |
//! | 2 | the channel, always 0101 |
//! | 1 | the tag of APDUs, 05 |
//! | 2 | the sequence number, from 0 on, big-endian |
//! | 2 | in frame 0 only: the length of the APDU, big-endian |
//! | rest | the APDU, or its next part; what is left of the last frame is zero |

use zeroize::Zeroizing;

/// The length of a frame in bytes.
pub const FRAME: usize = 64;

const CHANNEL: [u8; 2] = [0x01, 0x01];
const TAG: u8 = 0x05;
/// Channel, tag, sequence number.
const HEADER: usize = 5;

/// A status word, and nothing else.
const SHORTEST_REPLY: usize = 2;
/// A short APDU has at most 256 bytes of data and a status word (ISO/IEC 7816-4 §5.1);
/// Ledgers have a buffer for a few more.
pub(crate) const LONGEST_REPLY: usize = 260;

/// The frames of a command.
pub fn frames(command: &[u8]) -> Result<Vec<[u8; FRAME]>, BadFrame> {
    let length = u16::try_from(command.len()).map_err(|_| BadFrame::Length(command.len()))?;
    let data = [&length.to_be_bytes(), command].concat();
    let chunks = data.chunks(FRAME - HEADER).zip(0u16..);
    Ok(chunks
        .map(|(chunk, sequence)| {
            let mut frame = [0; FRAME];
            frame[..2].copy_from_slice(&CHANNEL);
            frame[2] = TAG;
            frame[3..HEADER].copy_from_slice(&sequence.to_be_bytes());
            frame[HEADER..HEADER + chunk.len()].copy_from_slice(chunk);
            frame
        })
        .collect())
}

/// Assembles replies from frames. Unusable after an error.
#[derive(Default)]
pub struct Assembler {
    /// The length in frame 0.
    length: usize,
    sequence: u16,
    data: Zeroizing<Vec<u8>>,
}

impl Assembler {
    /// Adds the next frame. Returns the reply when it is complete.
    ///
    /// # Errors
    /// [`BadFrame`] if it is not the expected frame.
    pub fn push(&mut self, frame: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, BadFrame> {
        if frame.len() != FRAME {
            return Err(BadFrame::Truncated(frame.len()));
        }
        let (header, mut rest) = frame.split_at(HEADER);
        if header[..2] != CHANNEL {
            return Err(BadFrame::Channel);
        }
        if header[2] != TAG {
            return Err(BadFrame::Tag(header[2]));
        }
        let sequence = u16::from_be_bytes([header[3], header[4]]);
        if sequence != self.sequence {
            return Err(BadFrame::Sequence {
                expected: self.sequence,
                found: sequence,
            });
        }
        if sequence == 0 {
            let (length, data) = rest.split_at(2);
            self.length = u16::from_be_bytes([length[0], length[1]]).into();
            if !(SHORTEST_REPLY..=LONGEST_REPLY).contains(&self.length) {
                return Err(BadFrame::Length(self.length));
            }
            // With room for all of it: a vector that grows leaves copies behind.
            self.data = Zeroizing::new(Vec::with_capacity(self.length));
            rest = data;
        }
        let missing = self.length - self.data.len();
        self.data
            .extend_from_slice(&rest[..missing.min(rest.len())]);
        if self.data.len() < self.length {
            // A reply has few frames.
            self.sequence += 1;
            return Ok(None);
        }
        self.sequence = 0;
        Ok(Some(std::mem::take(&mut self.data)))
    }
}

/// The received frame is not the expected one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// It does not have 64 bytes.
    #[error("a frame of {0} bytes")]
    Truncated(usize),
    /// It belongs to another channel.
    #[error("a frame of another channel")]
    Channel,
    /// It is not part of an APDU.
    #[error("a frame with the tag {0:02x}")]
    Tag(u8),
    /// It is out of order.
    #[error("frame {found} instead of frame {expected}")]
    Sequence {
        /// The expected sequence number.
        expected: u16,
        /// The received sequence number.
        found: u16,
    },
    /// No APDU has this length.
    #[error("an APDU of {0} bytes")]
    Length(usize),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn assembled(frames: &[[u8; FRAME]]) -> Result<Option<Zeroizing<Vec<u8>>>, BadFrame> {
        let mut assembler = Assembler::default();
        let (last, before) = frames.split_last().unwrap();
        for frame in before {
            assert_eq!(assembler.push(frame)?, None);
        }
        assembler.push(last)
    }

    #[test]
    fn frames_look_as_documented() {
        let frames = frames(&[0xb0, 0x01, 0, 0, 0]).unwrap();
        assert_eq!(frames.len(), 1);
        assert_eq!(
            frames[0][..13],
            [1, 1, 5, 0, 0, 0, 5, 0xb0, 0x01, 0, 0, 0, 0]
        );
    }

    #[test]
    fn a_frame_that_is_not_the_next_is_refused() {
        let good = frames(&[7; 100]).unwrap();
        let second = |change: fn(&mut [u8; FRAME])| {
            let mut frames = good.clone();
            change(&mut frames[1]);
            assembled(&frames)
        };
        assert_eq!(assembled(&good), Ok(Some(Zeroizing::new(vec![7; 100]))));
        let sequence = |found| BadFrame::Sequence { expected: 1, found };
        assert_eq!(second(|f| f[4] = 2), Err(sequence(2)));
        assert_eq!(second(|f| f[4] = 0), Err(sequence(0)));
        assert_eq!(second(|f| f[3] = 1), Err(sequence(257)));
        assert_eq!(second(|f| f[0] = 2), Err(BadFrame::Channel));
        assert_eq!(second(|f| f[2] = 2), Err(BadFrame::Tag(2)));
        for cut in [0, 1, 5, 63] {
            let truncated = Assembler::default().push(&good[0][..cut]);
            assert_eq!(truncated, Err(BadFrame::Truncated(cut)));
        }
        assert!(Assembler::default().push(&[0; 65]).is_err());
        assert!(Assembler::default().push(&good[1]).is_err());
    }

    #[test]
    fn a_length_that_no_reply_has_is_refused() {
        for length in [0u16, 1, 261, 0x8000, 0xffff] {
            let mut frame = frames(&[7; 10]).unwrap()[0];
            frame[5..7].copy_from_slice(&length.to_be_bytes());
            let refused = Assembler::default().push(&frame);
            assert_eq!(refused, Err(BadFrame::Length(length.into())));
        }
        assert!(frames(&[0; 0x1_0000]).is_err());
    }

    proptest! {
        #[test]
        fn what_is_cut_into_frames_comes_together_again(
            replies in prop::collection::vec(prop::collection::vec(any::<u8>(), 2..=260), 1..4)
        ) {
            let mut assembler = Assembler::default();
            for reply in &replies {
                let frames = frames(reply).unwrap();
                let (last, before) = frames.split_last().unwrap();
                for frame in before {
                    prop_assert_eq!(assembler.push(frame), Ok(None));
                }
                let whole = assembler.push(last).unwrap().unwrap();
                prop_assert_eq!(&*whole, reply);
            }
        }

        #[test]
        fn no_frames_panic(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..70), 0..9)) {
            let mut assembler = Assembler::default();
            for frame in frames {
                if assembler.push(&frame).is_err() {
                    break;
                }
            }
        }

        #[test]
        fn a_changed_header_never_gives_a_reply(at in 0usize..5, bit in 0u8..8) {
            let mut frame = frames(&[0x90, 0x00]).unwrap()[0];
            frame[at] ^= 1 << bit;
            prop_assert!(Assembler::default().push(&frame).is_err());
        }
    }
}
