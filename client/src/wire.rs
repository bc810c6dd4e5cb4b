//! The messages of the wire, made from `proto/claviger/v1`, whose comments say what they are.
//!
//! Those with a secret are wiped when they are dropped, and their `Debug` shows lengths only.

use std::fmt;

use zeroize::Zeroize;

#[allow(
    missing_docs,
    rustdoc::all,
    clippy::all,
    reason = "they are made from the files in proto"
)]
mod made {
    include!(concat!(env!("OUT_DIR"), "/claviger.v1.rs"));
}

pub use made::*;

/// The descriptors of the messages (a `FileDescriptorSet`), for languages that read them when they
/// run.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.pb"));

impl Frame {
    /// A frame with this id and content, and no deadline.
    pub fn new(id: u64, content: frame::Content) -> Frame {
        Frame {
            id,
            deadline_ms: 0,
            content: Some(content),
        }
    }

    /// What kind of message it has, for logs; `unknown` is one that this version does not know.
    pub fn kind(&self) -> &'static str {
        use frame::Content as C;
        match &self.content {
            None => "unknown",
            Some(C::Hello(_)) => "hello",
            Some(C::Engine(_)) => "engine",
            Some(C::Error(_)) => "error",
            Some(C::Cancel(_)) => "cancel",
            Some(C::Event(_)) => "event",
            Some(C::PinRequest(_)) => "pin-request",
            Some(C::PinAnswer(_)) => "pin-answer",
            Some(C::Chunk(_)) => "chunk",
            Some(C::DaemonRequest(_)) => "daemon-request",
            Some(C::DaemonReply(_)) => "daemon-reply",
            Some(C::DeviceChallenge(_)) => "device-challenge",
            Some(C::DeviceProof(_)) => "device-proof",
            Some(C::DeviceRequest(_)) => "device-request",
            Some(C::DeviceCancel(_)) => "device-cancel",
            Some(C::DeviceReply(_)) => "device-reply",
            Some(C::DeviceEvent(_)) => "device-event",
        }
    }

    /// Whether its bytes have to be wiped.
    pub(crate) fn is_secret(&self) -> bool {
        use engine_msg::Msg;
        match &self.content {
            Some(frame::Content::PinAnswer(_) | frame::Content::Chunk(_)) => true,
            Some(frame::Content::DeviceReply(reply)) => {
                matches!(reply.reply, Some(device_reply::Reply::Secret(_)))
            }
            Some(frame::Content::Engine(message)) => matches!(
                message.msg,
                Some(Msg::RequestEncrypt(_) | Msg::ReplyDecryption(_))
            ),
            _ => false,
        }
    }
}

impl Drop for PinAnswer {
    fn drop(&mut self) {
        self.pin.zeroize();
    }
}

impl fmt::Debug for PinAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("PinAnswer");
        shown.field("has_pin", &self.pin.is_some()).finish()
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.data.zeroize();
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Chunk");
        shown.field("length", &self.data.len());
        shown.field("last", &self.last).finish()
    }
}

impl fmt::Debug for RequestCommitment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("RequestCommitment");
        shown.field("length", &self.data.len());
        shown.field("purpose", &self.purpose).finish()
    }
}

impl Drop for RequestEncrypt {
    fn drop(&mut self) {
        self.data.zeroize();
    }
}

impl fmt::Debug for RequestEncrypt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("RequestEncrypt");
        shown.field("length", &self.data.len());
        shown.field("external_identity", &self.external_identity);
        shown.field("use_reads_for", &self.use_reads_for).finish()
    }
}

impl Drop for ReplyDecryption {
    fn drop(&mut self) {
        self.data.zeroize();
    }
}

impl fmt::Debug for ReplyDecryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("ReplyDecryption");
        shown.field("length", &self.data.len());
        shown.field("err", &self.err);
        shown.field("data_follows", &self.data_follows).finish()
    }
}

impl fmt::Debug for DeviceSign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("DeviceSign");
        shown.field("slot", &self.slot);
        shown.field("scheme", &self.scheme);
        shown.field("length", &self.data.len()).finish()
    }
}

impl Drop for DeviceSecret {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl fmt::Debug for DeviceSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("DeviceSecret");
        shown.field("length", &self.secret.len()).finish()
    }
}
