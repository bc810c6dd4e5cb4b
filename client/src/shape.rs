//! How much memory a frame becomes, judged before it is decoded.
//!
//! An element of a list takes two bytes on the wire if it is empty, and up to 300 bytes in memory:
//! a frame of 1 MiB would become more than a hundred. So the elements of all lists of a long frame
//! are counted before, by the table of messages that the build makes of the `.proto` files.

use prost::encoding::decode_varint;

/// The fields of one message that are messages or lists: their numbers, whether they are lists, and
/// which message they are.
type Fields = &'static [(u32, bool, Option<usize>)];

mod made {
    include!(concat!(env!("OUT_DIR"), "/shape.rs"));
}

use made::{FRAME, MESSAGES};

/// A frame may have so many elements of lists, and one more for each so many of its bytes.
const ELEMENTS: usize = 1024;
const BYTES_EACH: usize = 32;

/// Messages that are nested deeper are not decoded.
const DEEPEST: usize = 100;

/// Why no more is counted.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    TooMany,
    /// Nobody decodes any more of it.
    Malformed,
}

/// Whether the lists of a frame have so few elements that it takes a small multiple of its length.
pub(crate) fn is_bounded(frame: &[u8]) -> bool {
    let mut left = ELEMENTS + frame.len() / BYTES_EACH;
    let counted = walk(MESSAGES[FRAME], frame, &mut left, 0);
    counted != Err(Stop::TooMany)
}

/// Counts the elements of a message.
fn walk(fields: Fields, mut bytes: &[u8], left: &mut usize, depth: usize) -> Result<(), Stop> {
    if depth > DEEPEST {
        return Err(Stop::Malformed);
    }
    while !bytes.is_empty() {
        let key = number(&mut bytes)?;
        match key & 7 {
            0 => drop(number(&mut bytes)?),
            1 => drop(take(&mut bytes, 8)?),
            5 => drop(take(&mut bytes, 4)?),
            2 => {
                let length = number(&mut bytes)?;
                let content = take(&mut bytes, length)?;
                element(fields, key >> 3, content, left, depth)?;
            }
            // No message of the wire has groups, and what is in one is not counted.
            3 => return Err(Stop::TooMany),
            _ => return Err(Stop::Malformed),
        }
    }
    Ok(())
}

fn number(bytes: &mut &[u8]) -> Result<u64, Stop> {
    decode_varint(bytes).map_err(|_| Stop::Malformed)
}

fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Result<&'a [u8], Stop> {
    let length = usize::try_from(length).map_err(|_| Stop::Malformed)?;
    let (taken, rest) = bytes.split_at_checked(length).ok_or(Stop::Malformed)?;
    *bytes = rest;
    Ok(taken)
}

/// Counts what has a length: an element of a list, or a message.
fn element(
    fields: Fields,
    number: u64,
    content: &[u8],
    left: &mut usize,
    depth: usize,
) -> Result<(), Stop> {
    let known = fields
        .iter()
        .find(|(known, ..)| u64::from(*known) == number);
    let Some((_, is_list, message)) = known else {
        return Ok(());
    };
    if *is_list {
        *left = left.checked_sub(1).ok_or(Stop::TooMany)?;
    }
    match message.and_then(|message| MESSAGES.get(message)) {
        Some(fields) => walk(fields, content, left, depth + 1),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::frame::LIMIT;
    use crate::wire::{self, Frame, engine_msg::Msg, frame::Content};

    fn bytes(content: Content) -> Vec<u8> {
        Frame::new(1, content).encode_to_vec()
    }

    fn to_engine(msg: Msg) -> Content {
        Content::Engine(wire::EngineMsg {
            msg: Some(msg),
            ..wire::EngineMsg::default()
        })
    }

    fn from_daemon(reply: wire::daemon_reply::Reply) -> Content {
        let reply = Some(reply);
        Content::DaemonReply(wire::DaemonReply { reply })
    }

    #[test]
    fn a_long_frame_of_empty_elements_is_refused_whichever_list_they_are_of() {
        let many = LIMIT / 2 - 64;
        let via = wire::Preference {
            via: vec![wire::EngineId::default(); many],
            ..wire::Preference::default()
        };
        let mut encrypt = wire::RequestEncrypt::default();
        encrypt.preference = Some(via);
        let evidence = wire::ReplyReadsForEvidence {
            evidence: vec![Vec::new(); many],
            ..wire::ReplyReadsForEvidence::default()
        };
        let identities = wire::IdentitiesReply {
            identities: vec![wire::Identity::default(); many],
            ..wire::IdentitiesReply::default()
        };
        let identities = wire::daemon_reply::Reply::Identities(identities);
        for content in [
            to_engine(Msg::RequestEncrypt(encrypt)),
            to_engine(Msg::ReplyReadsForEvidence(evidence)),
            from_daemon(identities),
        ] {
            let bytes = bytes(content);
            assert!(bytes.len() <= LIMIT && bytes.len() > LIMIT / 2);
            assert!(!is_bounded(&bytes));
        }
    }

    #[test]
    fn long_frames_that_are_made_by_somebody_are_not_refused() {
        // What looks like many elements is data.
        let data = [0x0a, 0].repeat(LIMIT / 2 - 64);
        let sign = wire::RequestCommitment {
            data: data.clone(),
            purpose: None,
        };
        let grant = wire::Grant {
            identity: "build-bot".into(),
            operation: "sign".into(),
            ..wire::Grant::default()
        };
        let grants = wire::GrantsReply {
            grants: vec![grant; 1000],
            ..wire::GrantsReply::default()
        };
        let evidence = wire::ReplyReadsForEvidence {
            evidence: vec![vec![7; 200]; 5000],
            ..wire::ReplyReadsForEvidence::default()
        };
        let chunk = wire::Chunk { data, last: true };
        for content in [
            to_engine(Msg::RequestCommitment(sign)),
            to_engine(Msg::ReplyReadsForEvidence(evidence)),
            from_daemon(wire::daemon_reply::Reply::Grants(grants)),
            Content::Chunk(chunk),
        ] {
            assert!(is_bounded(&bytes(content)));
        }
    }

    #[test]
    fn what_is_no_frame_is_left_to_the_decoder_unless_that_skips_what_is_not_counted() {
        for bytes in [&[][..], &[0x0a, 200, 1], &[0x80], &[0x09, 1], &[7]] {
            assert!(is_bounded(bytes), "{bytes:?}");
        }
        let group = [0x0b, 0x0c];
        assert!(!is_bounded(&group));
    }

    #[test]
    fn each_list_of_the_wire_is_in_the_table() {
        let lists = |fields: &Fields| fields.iter().filter(|(_, is_list, _)| *is_list).count();
        let found: usize = MESSAGES.iter().map(lists).sum();
        let said = concat!(
            include_str!("../proto/claviger/v1/daemon.proto"),
            include_str!("../proto/claviger/v1/device.proto"),
            include_str!("../proto/claviger/v1/engine.proto"),
            include_str!("../proto/claviger/v1/frame.proto"),
            include_str!("../proto/claviger/v1/types.proto"),
        );
        let is_list = |line: &&str| {
            let line = line.trim_start();
            (line.starts_with("repeated ") && !line.starts_with("repeated KeyUse"))
                && !line.starts_with("repeated Deletion")
                || line.starts_with("map<")
        };
        let numbers = said.lines().filter(is_list).count();
        // Lists of numbers take no more memory than a small multiple of their length.
        assert_eq!(found, numbers);
    }
}
