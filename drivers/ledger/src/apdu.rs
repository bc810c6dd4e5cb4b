//! Commands and replies (ISO/IEC 7816-4 §5).

use claviger_token::TokenId;
use zeroize::Zeroizing;

use crate::error::Fault;
use crate::status::Status;

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

/// Exchanges commands and replies with a device.
pub(crate) trait Exchange {
    /// One command that no person has to approve.
    fn command(&mut self, command: &Command) -> Result<Reply, Fault>;

    /// Commands of which a person has to approve the last one.
    fn approved(&mut self, token: &TokenId, commands: Vec<Command>) -> Result<Reply, Fault>;
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
}
