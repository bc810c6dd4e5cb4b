//! Commands, replies, status words (ISO/IEC 7816-4 §5).

use std::fmt;

use zeroize::Zeroizing;

use crate::error::Fault;

/// The most data in one command.
pub(crate) const LONGEST_DATA: usize = 255;

/// One command.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    /// What error messages call it.
    pub(crate) name: &'static str,
    pub(crate) class: u8,
    pub(crate) instruction: u8,
    pub(crate) p1: u8,
    pub(crate) p2: u8,
    /// At most [`LONGEST_DATA`] bytes.
    pub(crate) data: Vec<u8>,
}

impl Command {
    /// Ledgers want the length of the data where there is none, too, and no `Le`.
    pub(crate) fn encode(&self) -> Vec<u8> {
        debug_assert!(self.data.len() <= LONGEST_DATA);
        let mut apdu = vec![self.class, self.instruction, self.p1, self.p2];
        apdu.push(self.data.len() as u8);
        apdu.extend_from_slice(&self.data);
        apdu
    }
}

/// What a device answered. The data is wiped when dropped.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) data: Zeroizing<Vec<u8>>,
    pub(crate) status: Status,
}

impl Reply {
    /// Takes the status word off.
    pub(crate) fn parse(call: &'static str, mut reply: Zeroizing<Vec<u8>>) -> Result<Self, Fault> {
        let Some((_, &status)) = reply.split_last_chunk::<2>() else {
            return Err(Fault::malformed(call, "there is no status word"));
        };
        let length = reply.len() - 2;
        reply.truncate(length);
        Ok(Reply {
            data: reply,
            status: Status(u16::from_be_bytes(status)),
        })
    }
}

/// A status word, as the Ethereum app and the system of the device mean it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u16);

impl Status {
    pub(crate) const OK: Status = Status(0x9000);
    pub(crate) const LOCKED: Status = Status(0x5515);
    pub(crate) const NO_APP: Status = Status(0x6511);
    pub(crate) const REJECTED: Status = Status(0x6985);
    /// The app is not done with something else.
    pub(crate) const OCCUPIED: Status = Status(0x6986);
    pub(crate) const WRONG_DATA: Status = Status(0x6a80);
    pub(crate) const NO_MEMORY: Status = Status(0x6a84);
    pub(crate) const NO_INSTRUCTION: Status = Status(0x6d00);
    pub(crate) const NO_CLASS: Status = Status(0x6e00);

    fn meaning(self) -> &'static str {
        match self.0 {
            0x5515 => "the device is locked",
            0x6511 => "no app is open",
            0x6700 => "wrong length",
            0x6982 => "security status not satisfied",
            0x6985 => "rejected by the user",
            0x6986 => "the app is busy with something else",
            0x6a15 => "the app does not allow this derivation path",
            0x6a80 => "incorrect data",
            0x6a84 => "not enough memory",
            0x6b00 => "incorrect parameter in P1 or P2",
            0x6d00 => "instruction not supported by the app that is open",
            0x6e00 => "class not supported by the app that is open",
            0x6f00 => "no precise diagnosis",
            0x9000 => "success",
            _ => "not documented",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04X} ({})", self.0, self.meaning())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_command_says_how_long_it_is(
            head in any::<[u8; 4]>(),
            data in prop::collection::vec(any::<u8>(), 0..=LONGEST_DATA),
        ) {
            let [class, instruction, p1, p2] = head;
            let command = Command { name: "TEST", class, instruction, p1, p2, data };
            let apdu = command.encode();
            prop_assert_eq!(&apdu[..4], &head);
            prop_assert_eq!(usize::from(apdu[4]), command.data.len());
            prop_assert_eq!(&apdu[5..], &command.data);
        }

        #[test]
        fn a_reply_is_data_and_a_status(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            match Reply::parse("TEST", Zeroizing::new(bytes.clone())) {
                Ok(reply) => {
                    let whole = [&reply.data[..], &reply.status.0.to_be_bytes()].concat();
                    prop_assert_eq!(whole, bytes);
                }
                Err(_) => prop_assert!(bytes.len() < 2),
            }
        }
    }

    #[test]
    fn a_status_shows_its_number() {
        assert_eq!(
            Status(0x6a15).to_string(),
            "6A15 (the app does not allow this derivation path)"
        );
        assert_eq!(Status(0x1234).to_string(), "1234 (not documented)");
    }
}
