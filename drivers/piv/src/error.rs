//! Errors from status words.

use claviger_token::{Error, TokenId};

use crate::apdu::{Lost, Status};

/// Why an operation did not succeed, before it is known whether that can be mended.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The card was reset or removed.
    Lost(Lost),
    /// The card refused a command.
    Status { call: &'static str, status: Status },
    /// The card's reply makes no sense.
    Malformed {
        call: &'static str,
        reason: &'static str,
    },
    /// Somebody else is sending a PIN to the card, and may need it for that: their turn is
    /// waited for without the card. Nothing was sent of what needs the PIN.
    NotOurTurn,
    /// Nothing that another attempt mends.
    Ours(Error),
}

/// What the card tells, if it does: one that does not tell one thing may tell the others.
///
/// # Errors
/// Where the card is lost, or another attempt mends nothing.
pub(crate) fn told<T>(answer: Result<T, Fault>) -> Result<Option<T>, Fault> {
    match answer {
        Ok(told) => Ok(Some(told)),
        Err(Fault::Status { .. } | Fault::Malformed { .. }) => Ok(None),
        Err(fault) => Err(fault),
    }
}

impl Fault {
    pub(crate) fn malformed(call: &'static str, reason: &'static str) -> Self {
        Fault::Malformed { call, reason }
    }

    /// The status word, if that is what went wrong.
    pub(crate) fn status(&self) -> Option<Status> {
        match self {
            Fault::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The error for the caller.
    pub(crate) fn into_error(self, token: &TokenId) -> Error {
        let token = token.clone();
        match self {
            Fault::Lost(Lost { reason, .. }) => Error::TokenUnavailable { token, reason },
            Fault::Status {
                status: Status::BLOCKED,
                call: "VERIFY",
            } => Error::PinLocked { token },
            Fault::Status {
                status: Status::FULL,
                ..
            } => Error::TokenFull { token },
            Fault::Status { call, status } => Error::Device {
                token,
                call: call.into(),
                status: status.to_string(),
            },
            Fault::Malformed { call, reason } => Error::MalformedReply {
                token,
                call: call.into(),
                reason: reason.into(),
            },
            Fault::NotOurTurn => Error::Busy { token },
            Fault::Ours(error) => error,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Ours(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_word_stays_visible() {
        let token = TokenId {
            kind: "piv".into(),
            manufacturer: "Yubico".into(),
            serial: "1".into(),
        };
        let error = |status| {
            Fault::Status {
                call: "GENERAL AUTHENTICATE",
                status: Status(status),
            }
            .into_error(&token)
        };
        assert_eq!(
            error(0x6985).to_string(),
            "GENERAL AUTHENTICATE on piv:Yubico/1 failed: 6985 (conditions of use not satisfied)"
        );
        assert!(matches!(error(0x6a84), Error::TokenFull { .. }));
        let texts: std::collections::HashSet<String> = (0..=u16::MAX)
            .map(|status| error(status).to_string())
            .collect();
        assert_eq!(texts.len(), 0x1_0000);
    }
}
