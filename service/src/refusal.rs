//! What the daemon itself answers in place of a reply.

use claviger_client::wire;

/// Why a request was not carried out, or a connection ends, by no fault of an engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The caller, or all callers together, have too much in flight.
    #[error("too many {what} at once: at most {most} are served")]
    Busy {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        most: usize,
    },
    /// The daemon ends; nothing was begun.
    #[error("the daemon is ending and begins nothing new")]
    Draining,
    /// The caller speaks another version of the protocol.
    #[error("the caller speaks version {theirs} of the protocol, the daemon version {ours}")]
    Version {
        /// The caller's.
        theirs: u32,
        /// The daemon's.
        ours: u32,
    },
    /// The frame cannot stand here, or has no content that the daemon knows.
    #[error("the request is not one: {0}")]
    BadRequest(&'static str),
    /// A frame is too long or malformed.
    #[error("{reason}")]
    BadFrame {
        /// The code of the error.
        code: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The caller did not send what it began, or not begin, in time.
    #[error("the caller {0} in time")]
    TooSlow(&'static str),
    /// The data is longer than the daemon holds at once.
    #[error("the data is longer than {most} bytes")]
    DataTooLong {
        /// The limit.
        most: usize,
    },
    /// A device is described wrongly, or of a kind that nobody serves.
    #[error("{0}")]
    BadDevice(String),
    /// The program has not shown that it has the identity key of its device.
    #[error("the device did not prove its identity key")]
    DeviceUnproven,
    /// Another connection attaches this device.
    #[error("a device with this identity key is attached already")]
    DeviceAttached,
    /// There is no grant of this number.
    #[error("there is no grant of this number")]
    NoGrant,
    /// Only the user that the daemon runs as, and root, may do that.
    #[error("uid {uid} may not {what}")]
    NotAllowed {
        /// The caller.
        uid: u32,
        /// What it asked for, as the end of a sentence.
        what: &'static str,
    },
}

impl Refusal {
    /// A stable code: see ERRORS.md.
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::Busy { .. } => "busy",
            Refusal::Draining => "draining",
            Refusal::Version { .. } => "protocol-version",
            Refusal::BadRequest(_) => "bad-request",
            Refusal::BadFrame { code, .. } => code,
            Refusal::TooSlow(_) => "caller-too-slow",
            Refusal::DataTooLong { .. } => "data-too-long",
            Refusal::BadDevice(_) => "bad-device",
            Refusal::DeviceUnproven => "device-unproven",
            Refusal::DeviceAttached => "device-attached",
            Refusal::NoGrant => "no-grant",
            Refusal::NotAllowed { .. } => "not-allowed",
        }
    }

    pub(crate) fn to_wire(&self) -> wire::Error {
        let mut error = wire::Error {
            code: self.code().to_owned(),
            message: self.to_string(),
            ..wire::Error::default()
        };
        if let Refusal::Version { ours, .. } = self {
            error.fields.insert("speaks".to_owned(), ours.to_string());
        }
        error
    }
}
