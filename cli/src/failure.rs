//! Failures of a command: one cause, one hint, one code for programs, one exit code.

use std::borrow::Cow;
use std::io;

use claviger_engine::registry::ContactError;
use claviger_engine::{EngineError, RegistryError};
use claviger_token::Error as TokenError;
use serde::Serialize;

use crate::hints;

/// The command failed; of `verify`, the signature is not valid.
pub(crate) const FAILED: u8 = 1;
/// The command line is invalid.
pub(crate) const USAGE: u8 = 2;
/// `verify` cannot say whether the signature is valid.
pub(crate) const UNJUDGED: u8 = 3;
/// Ended by a signal, such as that of Ctrl-C: 128 plus its number, as in shells.
const INTERRUPTED: u8 = 130;

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The code for programs: one for each cause, listed in `ERRORS.md`.
    code: Cow<'static, str>,
    what: String,
    hint: String,
    status: u8,
    token: Option<String>,
    /// Whether people are told nothing.
    quiet: bool,
}

/// A failure as `--json` prints it.
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
    token: Option<&'a str>,
}

impl Failure {
    /// A failure of the command.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Failure {
            code: "failed".into(),
            what: what.into(),
            hint: String::new(),
            status: FAILED,
            token: None,
            quiet: false,
        }
    }

    /// An invalid command line.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Failure {
            code: "usage".into(),
            status: USAGE,
            ..Failure::new(what)
        }
    }

    /// Sets the code for programs.
    pub(crate) fn coded(mut self, code: &'static str) -> Self {
        self.code = code.into();
        self
    }

    /// What somebody else failed with, who has told its code and its hint.
    pub(crate) fn told(code: String, what: String, hint: String, token: Option<String>) -> Self {
        Failure {
            status: status_of(&code),
            code: code.into(),
            what,
            hint,
            token,
            quiet: false,
        }
    }

    /// The code for programs.
    pub(crate) fn code(&self) -> &str {
        &self.code
    }

    /// Sets the hint.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Adds what the failure concerns.
    pub(crate) fn said_of(mut self, what: &str) -> Self {
        self.what = format!("{} ({what})", self.what);
        self
    }

    /// If the failure is an interruption, sets the exit status for this signal.
    pub(crate) fn after(mut self, signal: Option<u8>) -> Self {
        if let (INTERRUPTED, Some(signal)) = (self.status, signal) {
            self.status = 128 + signal;
        }
        self
    }

    /// For `verify`: replaces the exit status of a forgery by that of an undecided signature.
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

    /// An error of reading or writing on this machine.
    pub(crate) fn io(what: impl Into<String>, error: &io::Error) -> Self {
        Failure::new(format!("{}: {error}", what.into())).coded("io")
    }

    /// An error of writing, so the answer is lost. A broken pipe is quiet: the reader, such as
    /// `head`, has gone on purpose.
    pub(crate) fn writing(what: &str, error: &io::Error) -> Self {
        Failure {
            quiet: error.kind() == io::ErrorKind::BrokenPipe,
            ..Failure::io(format!("{what} cannot be written"), error).coded("output-lost")
        }
    }

    /// What happened, to what, and why.
    pub(crate) fn message(&self) -> &str {
        &self.what
    }

    /// What to do next, or nothing.
    pub(crate) fn advice(&self) -> &str {
        &self.hint
    }

    /// Whether people are told nothing, since the reader of the output has gone.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// The object that `--json` prints.
    pub(crate) fn view(&self) -> impl Serialize {
        View {
            error: ErrorView {
                code: &self.code,
                message: &self.what,
                hint: &self.hint,
                token: self.token.as_deref(),
            },
        }
    }
}

/// The exit status for a failure with this code.
fn status_of(code: &str) -> u8 {
    match code {
        "bad-name" | "no-driver" | "bad-backend" => USAGE,
        "cancelled" => INTERRUPTED,
        _ => FAILED,
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let status = status_of(error.code());
        let token = match &error {
            EngineError::Token(error)
            | EngineError::KeyNotUsable { reason: error }
            | EngineError::DeletionUnfinished { reason: error, .. } => error.token().cloned(),
            _ => None,
        };
        Failure {
            code: error.code().into(),
            what: error.to_string(),
            hint: hints::of(&error),
            status,
            token: token.map(|token| token.to_string()),
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
        assert_eq!((failure.status, failure.code()), (USAGE, "bad-backend"));
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
