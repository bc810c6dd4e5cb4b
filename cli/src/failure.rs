//! Why a command failed: one cause, one hint, one exit status.

use std::io;

use claviger_engine::registry::ContactError;
use claviger_engine::{EngineError, RegistryError};
use claviger_token::Error as TokenError;

use crate::output;

/// Failure of what was asked for.
pub(crate) const FAILED: u8 = 1;
/// The command line makes no sense.
pub(crate) const USAGE: u8 = 2;
/// A signal came, such as that of Ctrl-C: 128 and its number, as shells have it.
const INTERRUPTED: u8 = 130;

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    hint: String,
    code: u8,
}

impl Failure {
    /// A failure of what was asked for.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Failure {
            what: what.into(),
            hint: String::new(),
            code: FAILED,
        }
    }

    /// A command line that makes no sense.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Failure {
            code: USAGE,
            ..Failure::new(what)
        }
    }

    /// Nobody is there any more to read what we write.
    pub(crate) fn unheard() -> Self {
        Failure::new("")
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
        if let (INTERRUPTED, Some(signal)) = (self.code, signal) {
            self.code = 128 + signal;
        }
        self
    }

    /// The exit status.
    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// Something on this machine could not be read or written.
    pub(crate) fn io(what: impl Into<String>, error: &io::Error) -> Self {
        Failure::new(format!("{}: {error}", what.into()))
    }

    /// Writing went wrong.
    pub(crate) fn writing(what: &str, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::unheard(),
            _ => Failure::io(format!("{what} cannot be written"), error),
        }
    }

    /// Says it on standard error.
    pub(crate) fn print(&self) {
        if !self.what.is_empty() {
            output::complain("error", &self.what, &self.hint);
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let code = match &error {
            EngineError::BadName { .. }
            | EngineError::NoDriver { .. }
            | EngineError::Token(TokenError::BadBackend { .. }) => USAGE,
            EngineError::Token(TokenError::Cancelled) => INTERRUPTED,
            _ => FAILED,
        };
        let hint = match &error {
            EngineError::Token(TokenError::NoToken { present, .. }) if present.is_empty() => {
                format!("{}; `claviger doctor` says what is missing", error.hint())
            }
            _ => error.hint(),
        };
        Failure {
            what: error.to_string(),
            hint,
            code,
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
        match error {
            ContactError::Registry(error) => error.into(),
            other => {
                Failure::new(other.to_string()).hint("choose another name, or remove it first")
            }
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
            (&*failure.what, &*failure.hint, failure.code),
            ("Decryption Failed", "", FAILED)
        );
    }

    #[test]
    fn a_malformed_backend_is_a_usage_error() {
        let failure = Failure::from(TokenError::BadBackend {
            backend: "x".into(),
            reason: "y".into(),
        });
        assert_eq!(failure.code, USAGE);
    }

    #[test]
    fn a_reader_who_has_gone_is_told_nothing() {
        let gone = io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(Failure::writing("x", &gone).what, "");
    }
}
