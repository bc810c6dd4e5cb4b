//! Asking the caller of a request for a secret.

use claviger_token::{Call, TokenId, Zeroizing};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SecretKind {
    /// A token's PIN.
    Pin,
    /// A smartcard's management key, in hexadecimal.
    ManagementKey,
}

/// A secret, wiped when it is dropped.
pub type SecretBytes = Zeroizing<Vec<u8>>;

/// Asks whoever makes a request for a secret: its connection, and no other one.
pub trait AskPin: Send + Sync {
    /// Asks, and waits: until there is an answer, `call` ends, or the connection does. `None`:
    /// there is none. `label` is what the token calls itself, if that is known.
    ///
    /// This blocks its thread.
    fn ask(
        &self,
        kind: SecretKind,
        token: &TokenId,
        label: &str,
        tries_left: Option<u32>,
        call: &Call,
    ) -> Option<SecretBytes>;
}

/// Asks a person whether a key may be used.
pub trait Confirm: Send + Sync {
    /// Asks, and waits: until there is an answer, or `call` ends. `question` has names that callers
    /// chose.
    ///
    /// This blocks its thread.
    ///
    /// # Errors
    /// Why there is no answer, as the end of a sentence.
    fn confirm(&self, question: &str, call: &Call) -> Result<bool, String>;
}
