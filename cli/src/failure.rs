//! Failures of a command: one cause, one hint, one code for programs, one exit code.

use std::io;

use claviger_engine::registry::ContactError;
use claviger_engine::{EngineError, RegistryError};
use claviger_token::{Error as TokenError, TokenId};
use serde::Serialize;

use crate::{hints, output};

/// Failure of what was asked for; of `verify`, a signature that is not valid.
pub(crate) const FAILED: u8 = 1;
/// The command line makes no sense.
pub(crate) const USAGE: u8 = 2;
/// `verify` cannot say whether the signature is valid.
pub(crate) const UNJUDGED: u8 = 3;
/// A signal came, such as that of Ctrl-C: 128 and its number, as shells have it.
const INTERRUPTED: u8 = 130;

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What programs know it by: one for each cause, listed in `ERRORS.md`.
    code: &'static str,
    what: String,
    hint: String,
    status: u8,
    token: Option<TokenId>,
    /// A person is told nothing.
    quiet: bool,
}

/// What `--json` says of a failure.
#[derive(Serialize)]
struct View<'a> {
    error: ErrorView<'a>,
}

#[derive(Serialize)]
struct ErrorView<'a> {
    code: &'a str,
    message: &'a str,
    hint: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

impl Failure {
    /// A failure of what was asked for.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Failure {
            code: "failed",
            what: what.into(),
            hint: String::new(),
            status: FAILED,
            token: None,
            quiet: false,
        }
    }

    /// A command line that makes no sense.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Failure {
            code: "usage",
            status: USAGE,
            ..Failure::new(what)
        }
    }

    /// What programs know it by.
    pub(crate) fn coded(mut self, code: &'static str) -> Self {
        self.code = code;
        self
    }

    /// What to do next.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// For what it was that it failed.
    pub(crate) fn said_of(mut self, what: &str) -> Self {
        self.what = format!("{} ({what})", self.what);
        self
    }

    /// Where it is that the command was interrupted, it was by this signal.
    pub(crate) fn after(mut self, signal: Option<u8>) -> Self {
        if let (INTERRUPTED, Some(signal)) = (self.status, signal) {
            self.status = 128 + signal;
        }
        self
    }

    /// Of `verify`: nothing failed of which a forgery's exit status could be said.
    pub(crate) fn unjudged(mut self) -> Self {
        if self.status == FAILED {
            self.status = UNJUDGED;
        }
        self
    }

    /// The exit status.
    pub(crate) fn status(&self) -> u8 {
        self.status
    }

    /// Something on this machine could not be read or written.
    pub(crate) fn io(what: impl Into<String>, error: &io::Error) -> Self {
        Failure::new(format!("{}: {error}", what.into())).coded("io")
    }

    /// Writing went wrong: what was asked for is lost. Whoever stopped reading, as `head`
    /// does, knows it.
    pub(crate) fn writing(what: &str, error: &io::Error) -> Self {
        Failure {
            quiet: error.kind() == io::ErrorKind::BrokenPipe,
            ..Failure::io(format!("{what} cannot be written"), error).coded("output-lost")
        }
    }

    /// Says it on standard error: as one JSON object on one line where JSON was asked for.
    pub(crate) fn print(&self) {
        if !output::is_json() {
            if !self.quiet {
                output::complain("error", &self.what, &self.hint);
            }
            return;
        }
        output::complain_in_json(&View {
            error: ErrorView {
                code: self.code,
                message: &self.what,
                hint: &self.hint,
                token: self.token.as_ref().map(TokenId::to_string),
            },
        });
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let status = match &error {
            EngineError::BadName { .. }
            | EngineError::NoDriver { .. }
            | EngineError::Token(TokenError::BadBackend { .. }) => USAGE,
            EngineError::Token(TokenError::Cancelled) => INTERRUPTED,
            _ => FAILED,
        };
        let token = match &error {
            EngineError::Token(error)
            | EngineError::KeyNotUsable { reason: error }
            | EngineError::DeletionUnfinished { reason: error, .. } => error.token().cloned(),
            _ => None,
        };
        Failure {
            code: error.code(),
            what: error.to_string(),
            hint: hints::of(&error),
            status,
            token,
            quiet: false,
        }
    }
}

impl From<TokenError> for Failure {
    fn from(error: TokenError) -> Self {
        EngineError::from(error).into()
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        EngineError::from(error).into()
    }
}

impl From<ContactError> for Failure {
    fn from(error: ContactError) -> Self {
        let code = error.code();
        match error {
            ContactError::Registry(error) => error.into(),
            other => Failure::new(other.to_string())
                .coded(code)
                .hint(hints::by_code(code)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_depends_on_the_ciphertext_has_no_hint() {
        let failure = Failure::from(TokenError::DecryptionFailed);
        assert_eq!(
            (&*failure.what, &*failure.hint, failure.status),
            ("Decryption Failed", "", FAILED)
        );
    }

    #[test]
    fn a_malformed_backend_is_a_usage_error() {
        let failure = Failure::from(TokenError::BadBackend {
            backend: "x".into(),
            reason: "y".into(),
        });
        assert_eq!((failure.status, failure.code), (USAGE, "bad-backend"));
    }

    #[test]
    fn a_reader_who_has_gone_is_told_nothing() {
        let gone = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(Failure::writing("x", &gone).quiet);
    }

    #[test]
    fn a_failure_to_verify_has_not_the_status_of_a_forgery() {
        assert_eq!(Failure::new("x").unjudged().status, UNJUDGED);
        assert_eq!(Failure::usage("x").unjudged().status, USAGE);
    }
}
