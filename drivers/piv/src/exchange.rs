//! Commands and replies of smartcards (ISO/IEC 7816-4).
//!
//! Long commands are sent by command chaining (§5.3.3) and long replies are fetched
//! with GET RESPONSE (§7.6.1): every PIV card takes that (SP 800-73-4 part 2, §2.4.2),
//! while extended lengths are not offered by all of them and not over all readers.

use zeroize::Zeroizing;

use crate::apdu::{Status, Transport};
use crate::error::Fault;

/// One command. Shows without its data, which may be a PIN.
pub(crate) struct Command<'a> {
    /// What error messages call it.
    pub(crate) name: &'static str,
    pub(crate) ins: u8,
    pub(crate) p1: u8,
    pub(crate) p2: u8,
    pub(crate) data: &'a [u8],
    /// Whether the card may answer with data.
    pub(crate) answers: bool,
}

/// What a card answered. The data is wiped when dropped.
pub(crate) struct Reply {
    pub(crate) data: Zeroizing<Vec<u8>>,
    pub(crate) status: Status,
}

/// The most data in one short command APDU.
const CHUNK: usize = 255;

/// No object and no reply of a PIV card is longer; who sends more is broken.
const LONGEST_REPLY: usize = 16_384;

/// In so many pieces at most: replies come in pieces of some 250 bytes.
const MOST_PIECES: usize = 256;

/// Sends `command`, in as many APDUs as it takes, and gets the whole reply.
pub(crate) fn exchange(
    transport: &mut dyn Transport,
    command: &Command<'_>,
) -> Result<Reply, Fault> {
    let mut chunks = command.data.chunks(CHUNK).peekable();
    let mut last: &[u8] = &[];
    while let Some(chunk) = chunks.next() {
        if chunks.peek().is_none() {
            last = chunk;
            break;
        }
        let apdu = apdu(0x10, command, chunk, None);
        let (data, status) = send(transport, command, &apdu)?;
        if status != Status::OK || !data.is_empty() {
            return Ok(Reply { data, status });
        }
    }
    let le = (command.answers || last.is_empty()).then_some(0);
    let (mut data, mut status) = send(transport, command, &apdu(0, command, last, le))?;
    if status.0 >> 8 == 0x6c {
        let exact = apdu(0, command, last, Some(status.0 as u8));
        (data, status) = send(transport, command, &exact)?;
    }
    if status.0 >> 8 != 0x61 {
        return Ok(Reply { data, status });
    }
    // With room for all of it: a vector that grows leaves copies behind.
    let mut whole = Zeroizing::new(Vec::with_capacity(LONGEST_REPLY));
    whole.extend_from_slice(&data);
    for _ in 0..MOST_PIECES {
        let get_response = [0, 0xc0, 0, 0, status.0 as u8];
        (data, status) = send(transport, command, &get_response)?;
        if whole.len() + data.len() > LONGEST_REPLY {
            break;
        }
        whole.extend_from_slice(&data);
        if status.0 >> 8 != 0x61 {
            return Ok(Reply {
                data: whole,
                status,
            });
        }
    }
    Err(Fault::malformed(command.name, "the reply does not end"))
}

fn apdu(class: u8, command: &Command<'_>, data: &[u8], le: Option<u8>) -> Zeroizing<Vec<u8>> {
    // With room for all of it, see above.
    let mut apdu = Zeroizing::new(Vec::with_capacity(6 + data.len()));
    apdu.extend_from_slice(&[class, command.ins, command.p1, command.p2]);
    if !data.is_empty() {
        // A chunk is at most 255 bytes long.
        apdu.push(data.len() as u8);
        apdu.extend_from_slice(data);
    }
    apdu.extend(le);
    apdu
}

fn send(
    transport: &mut dyn Transport,
    command: &Command<'_>,
    apdu: &[u8],
) -> Result<(Zeroizing<Vec<u8>>, Status), Fault> {
    let mut reply = Zeroizing::new(transport.transmit(apdu).map_err(Fault::Lost)?);
    let Some((_, &[high, low])) = reply.split_last_chunk::<2>() else {
        return Err(Fault::malformed(command.name, "there is no status word"));
    };
    let status = Status(u16::from_be_bytes([high, low]));
    tracing::trace!(command = command.name, sent = apdu.len(), received = reply.len(), %status);
    let length = reply.len() - 2;
    reply.truncate(length);
    Ok((reply, status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::Script;

    fn command(data: &[u8]) -> Command<'_> {
        Command {
            name: "TEST",
            ins: 0x87,
            p1: 0x11,
            p2: 0x9a,
            data,
            answers: true,
        }
    }

    #[test]
    fn a_long_command_is_chained_and_a_long_reply_is_fetched() {
        let data: Vec<u8> = (0..300).map(|i| i as u8).collect();
        let first = [&[0x10, 0x87, 0x11, 0x9a, 255][..], &data[..255]].concat();
        let second = [&[0x00, 0x87, 0x11, 0x9a, 45][..], &data[255..], &[0]].concat();
        let mut script = Script::default();
        script.expect(&first, &[0x90, 0x00]);
        script.expect(&second, &[1, 2, 0x61, 0x02]);
        script.expect(&[0, 0xc0, 0, 0, 2], &[3, 4, 0x90, 0x00]);
        let reply = exchange(&mut script, &command(&data)).unwrap();
        assert_eq!(
            (&reply.data[..], reply.status),
            (&[1, 2, 3, 4][..], Status::OK)
        );
        script.finish();
    }

    #[test]
    fn a_wrong_length_is_corrected_once() {
        let mut script = Script::default();
        script.expect(&[0, 0x87, 0x11, 0x9a, 0], &[0x6c, 0x03]);
        script.expect(&[0, 0x87, 0x11, 0x9a, 3], &[7, 8, 9, 0x90, 0x00]);
        let reply = exchange(&mut script, &command(&[])).unwrap();
        assert_eq!(reply.data[..], [7, 8, 9]);
        script.finish();
    }

    #[test]
    fn a_chain_that_is_refused_ends() {
        let mut script = Script::default();
        script.expect_any(&[0x68, 0x84]);
        let reply = exchange(&mut script, &command(&[0; 600])).unwrap();
        assert_eq!(reply.status, Status(0x6884));
        script.finish();
    }

    #[test]
    fn what_has_no_status_or_no_end_is_malformed() {
        for reply in [&[][..], &[0x90]] {
            let mut script = Script::default();
            script.expect_any(reply);
            let done = exchange(&mut script, &command(&[]));
            assert!(matches!(done, Err(Fault::Malformed { .. })));
        }
        let mut endless = Script::always(&[0x61, 0x00]);
        assert!(exchange(&mut endless, &command(&[])).is_err());
        let mut endless = Script::always(&[[0; 200].as_slice(), &[0x61, 0xff]].concat());
        assert!(exchange(&mut endless, &command(&[])).is_err());
    }
}
