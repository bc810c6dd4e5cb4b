//! Devices: tokens of its own that a program attaches to the daemon.
//!
//! A program describes its device ([`Device`]), proves the device's identity key, and then answers
//! what the daemon asks the device for: see [`blocking`](crate::blocking::device) and
//! `asynchronous` (feature `tokio`). A device whose answers take no time and no person implements
//! [`Keys`]; `examples/device.rs` is one.
//!
//! When the connection ends, the device is absent. A program that attaches it again first brings to
//! an end what the last connection asked for.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

pub use crate::wire::device_event::Kind as Happening;
pub use crate::wire::device_reply::Reply;
pub use crate::wire::device_request::Request;
pub use crate::wire::{
    Device, DeviceAgree, DeviceDelete, DeviceFailure, DeviceGenerate, DeviceGenerated, DeviceKey,
    DeviceKeys, DeviceSecret, DeviceSetLabel, DeviceSign, KeySpec, KeyUse,
};

use crate::error::{Error, Refusal};
use crate::wire::{self, Frame, daemon_reply, daemon_request, frame::Content};

/// The prefix of each text by which a device proves its identity key. That key signs no other text
/// with this prefix.
pub const ATTACHMENT_PREFIX: &str = "Claviger: device attachment";

/// The bytes of a challenge.
pub const CHALLENGE: usize = 32;

/// The kind of devices that are nothing more special.
pub const ATTACHED: &str = "attached";

/// The most bytes of a message that a device is given: it fits into a frame.
pub const LONGEST_MESSAGE: usize = 896 << 10;

/// What a device's identity key signs to attach it: [`ATTACHMENT_PREFIX`], a space, the id of the
/// daemon's home, a space, and the challenge in lower-case hexadecimal.
pub fn attachment_text(home_id: &str, challenge: &[u8]) -> Vec<u8> {
    let mut text = format!("{ATTACHMENT_PREFIX} {home_id} ");
    for byte in challenge {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.into_bytes()
}

/// A device of the kind [`ATTACHED`] that makes and uses these kinds of key.
pub fn device(label: &str, public_key: Vec<u8>, keys: &[KeySpec]) -> Device {
    Device {
        kind: ATTACHED.into(),
        label: label.into(),
        public_key,
        makes: keys.to_vec(),
        uses: keys.to_vec(),
        ..Device::default()
    }
}

/// Keys of this algorithm that are for this use.
pub fn spec(algorithm: &str, usage: KeyUse) -> KeySpec {
    KeySpec {
        algorithm: algorithm.into(),
        usage: usage.into(),
    }
}

/// That a device does not do what it was asked for, and why.
pub fn failure(code: &str, message: &str) -> DeviceFailure {
    DeviceFailure {
        code: code.into(),
        message: message.into(),
    }
}

/// The keys of a device whose answers take no time and no person.
pub trait Keys {
    /// All keys.
    fn list(&mut self) -> Vec<DeviceKey>;

    /// Makes a key, in a slot that is free.
    ///
    /// # Errors
    /// `slot-occupied`, `token-full`.
    fn generate(&mut self, wanted: &DeviceGenerate) -> Result<DeviceGenerated, DeviceFailure>;

    /// Gives a key another label.
    ///
    /// # Errors
    /// `key-not-found`, as below.
    fn set_label(&mut self, wanted: &DeviceSetLabel) -> Result<(), DeviceFailure>;

    /// Signs.
    ///
    /// # Errors
    /// `key-not-found`, `bad-message`.
    fn sign(&mut self, wanted: &DeviceSign) -> Result<Vec<u8>, DeviceFailure>;

    /// Agrees with a peer.
    ///
    /// # Errors
    /// `key-not-found`, `decryption-failed`.
    fn agree(&mut self, wanted: &DeviceAgree) -> Result<Zeroizing<Vec<u8>>, DeviceFailure>;

    /// Destroys a key; whether it was there.
    fn delete(&mut self, wanted: &DeviceDelete) -> bool;
}

/// What the keys answer to a request.
pub fn answer(keys: &mut dyn Keys, request: &Request) -> Reply {
    let done = match request {
        Request::List(_) => Ok(Reply::Keys(DeviceKeys { keys: keys.list() })),
        Request::Generate(wanted) => keys.generate(wanted).map(Reply::Generated),
        Request::SetLabel(wanted) => keys.set_label(wanted).map(|()| Reply::Done(true)),
        Request::Sign(wanted) => keys.sign(wanted).map(Reply::Signature),
        Request::Agree(wanted) => keys.agree(wanted).map(|mut secret| {
            let secret = std::mem::take(&mut *secret);
            Reply::Secret(DeviceSecret { secret })
        }),
        Request::Delete(wanted) => Ok(Reply::Done(keys.delete(wanted))),
    };
    done.unwrap_or_else(Reply::Failure)
}

/// The id of the only request that a program makes on the connection of its device.
const ATTACHING: u64 = 1;

/// What has to be done next to attach a device.
pub(crate) enum Step {
    /// Nothing: go on reading.
    Read,
    /// Sign this text, and send the signature.
    Prove(Vec<u8>),
    /// The device is attached.
    Attached(wire::DeviceAttached),
}

/// The request to attach a device.
pub(crate) fn attaching(device: Device) -> Frame {
    let request = wire::AttachDevice {
        device: Some(device),
    };
    let request = wire::DaemonRequest {
        request: Some(daemon_request::Request::AttachDevice(request)),
    };
    Frame::new(ATTACHING, Content::DaemonRequest(request))
}

/// The answer to a challenge.
pub(crate) fn proof(signature: Vec<u8>) -> Frame {
    Frame::new(
        ATTACHING,
        Content::DeviceProof(wire::DeviceProof { signature }),
    )
}

/// What a frame means to a program whose device is not attached yet.
///
/// # Errors
/// What the daemon refuses.
pub(crate) fn step(frame: Frame, home_id: &str) -> Result<Step, Error> {
    match (frame.id, frame.content) {
        (0 | ATTACHING, Some(Content::Error(error))) => Err(Refusal::from(error).into()),
        (ATTACHING, Some(Content::DeviceChallenge(asked))) => match asked.challenge.len() {
            CHALLENGE => Ok(Step::Prove(attachment_text(home_id, &asked.challenge))),
            _ => Err(Error::Protocol {
                what: "its challenge is not one",
            }),
        },
        (ATTACHING, Some(Content::DaemonReply(reply))) => match reply.reply {
            Some(daemon_reply::Reply::DeviceAttached(attached)) => Ok(Step::Attached(attached)),
            _ => Err(crate::answer::unexpected()),
        },
        _ => Ok(Step::Read),
    }
}

/// A reply as a frame.
pub(crate) fn reply(id: u64, reply: Reply) -> Frame {
    let reply = wire::DeviceReply { reply: Some(reply) };
    Frame::new(id, Content::DeviceReply(reply))
}

/// An event as a frame.
pub(crate) fn event(id: u64, kind: Happening) -> Frame {
    let kind = kind.into();
    Frame::new(id, Content::DeviceEvent(wire::DeviceEvent { kind }))
}

/// What is said of a request that was dropped.
pub(crate) fn dropped() -> Reply {
    Reply::Failure(failure("device", "the program did not answer"))
}

/// What is said of a request that this version does not know: a newer daemon may ask for more.
pub(crate) fn unknown() -> Reply {
    Reply::Failure(failure("unsupported", "the request is unknown"))
}

/// When nobody waits any more, as a frame says it: 0 is without limit.
pub(crate) fn deadline(milliseconds: u32) -> Option<Instant> {
    let limit = Duration::from_millis(milliseconds.into());
    (milliseconds != 0).then(|| Instant::now() + limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_attaches_a_device_names_the_home_and_the_challenge() {
        let text = attachment_text("5d41", &[0, 0xab]);
        assert_eq!(text, b"Claviger: device attachment 5d41 00ab");
    }
}
