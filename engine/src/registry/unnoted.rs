//! PINs that are sent without a record, where the registry cannot be written.
//!
//! The registry does not protect against resending then, so the program must allow it
//! ([`NodeBuilder::unnoted_pins`](crate::node::NodeBuilder::unnoted_pins)), and is told of each
//! token. This process sends no further PIN after a rejection.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use claviger_token::sync::lock;
use claviger_token::{Error, TokenId};

use super::error::RegistryError;

/// Somebody is told of each token to which a PIN is sent without a note.
pub(crate) type Tell = Arc<dyn Fn(&TokenId) + Send + Sync>;

/// Lets PINs be sent without a note. Clones are the same.
#[derive(Clone)]
pub(crate) struct Unnoted {
    tell: Tell,
    /// Tokens that refused one.
    refused: Arc<Mutex<HashSet<TokenId>>>,
}

impl Unnoted {
    pub(crate) fn new(tell: Tell) -> Self {
        Unnoted {
            tell,
            refused: Arc::default(),
        }
    }

    /// Lets a PIN be sent to a token that has refused none of those.
    ///
    /// # Errors
    /// [`Error::PinRefusedBefore`].
    pub(crate) fn begin(&self, token: &TokenId) -> Result<(), Error> {
        if self.refused().contains(token) {
            return Err(Error::PinRefusedBefore {
                token: token.clone(),
            });
        }
        (self.tell)(token);
        Ok(())
    }

    pub(crate) fn note_refusal(&self, token: &TokenId) {
        self.refused().insert(token.clone());
    }

    fn refused(&self) -> std::sync::MutexGuard<'_, HashSet<TokenId>> {
        lock(&self.refused)
    }
}

/// Whether it is that nothing can be written: not that something is wrong with what is there.
pub(crate) fn is_unwritable(error: &RegistryError) -> bool {
    matches!(error, RegistryError::ReadOnly | RegistryError::DiskFull)
}
