//! Errors from status words and transports.

use claviger_token::{Error, TokenId};

use crate::app::{APP, App};
use crate::status::Status;
use crate::transport::Broken;

/// Why an operation did not succeed, before it is known whether that can be mended.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The way to the device broke. `asked`: a person may have been asked, and may have
    /// approved.
    Lost { reason: String, asked: bool },
    /// The device is locked.
    Locked { device: String },
    /// Another app is open, or none.
    NoApp {
        device: String,
        running: Option<String>,
    },
    /// The device is not done with an earlier request, which a person has to answer.
    Occupied,
    /// The app that is open has the right name, and does not know a command.
    Unknown {
        device: String,
        app: App,
        call: &'static str,
        status: Status,
    },
    /// The device is there, and its keys are not those of the token.
    OtherSeed,
    /// The app refused a command.
    Status { call: &'static str, status: Status },
    /// The reply makes no sense.
    Malformed { call: &'static str, reason: String },
    /// Nothing that another attempt mends.
    Ours(Error),
}

impl Fault {
    pub(crate) fn malformed(call: &'static str, reason: impl Into<String>) -> Self {
        Fault::Malformed {
            call,
            reason: reason.into(),
        }
    }

    pub(crate) fn broken(call: &'static str, broken: Broken, asked: bool) -> Self {
        match broken {
            Broken::Lost(reason) => Fault::Lost { reason, asked },
            Broken::Malformed(reason) => Fault::Malformed { call, reason },
        }
    }

    /// The error for the caller.
    pub(crate) fn into_error(self, token: &TokenId) -> Error {
        let token = token.clone();
        match self {
            Fault::Lost { reason, .. } => Error::TokenUnavailable { token, reason },
            Fault::Locked { device } => Error::DeviceLocked { device },
            Fault::NoApp { device, running } => Error::AppNotOpen {
                device,
                app: APP.into(),
                running,
            },
            Fault::Occupied => Error::Busy { token },
            Fault::Unknown {
                device, app, call, ..
            } if app.is_too_old() => {
                tracing::debug!(call, "not known to this version");
                app.too_old(device)
            }
            Fault::Unknown {
                app, call, status, ..
            } => Error::Device {
                token,
                call: call.into(),
                status: format!("{status} (the app {app} that is open is not Ledger's)"),
            },
            Fault::OtherSeed => Error::TokenUnavailable {
                token,
                reason: "the attached Ledger has another seed".into(),
            },
            Fault::Status {
                status: Status::REJECTED,
                ..
            } => Error::Rejected { token },
            Fault::Status { call, status } => Error::Device {
                token,
                call: call.into(),
                status: status.to_string(),
            },
            Fault::Malformed { call, reason } => Error::MalformedReply {
                token,
                call: call.into(),
                reason,
            },
            Fault::Ours(error) => error,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Ours(error)
    }
}
