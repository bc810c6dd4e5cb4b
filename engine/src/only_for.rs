//! Sends a PIN only to the token that it is meant for.
//!
//! A backend is a description, and may match another token by now. So if the engine knows which
//! token it needs, no other token that is opened in its place gets a PIN.

use std::sync::{Arc, Mutex, PoisonError};

use claviger_token::{Access, Call, Error, Pin, PinSource, TokenId, TriesLeft};

/// Gives PINs to one token, and notes who else asked for one.
pub(crate) struct OnlyFor {
    token: TokenId,
    pins: Arc<dyn PinSource>,
    stranger: Mutex<Option<TokenId>>,
}

impl OnlyFor {
    /// The PINs of `access`, for `token` alone.
    pub(crate) fn new(token: &TokenId, access: &Access) -> Arc<Self> {
        Arc::new(OnlyFor {
            token: token.clone(),
            pins: Arc::clone(&access.pins),
            stranger: Mutex::default(),
        })
    }

    /// The other token that asked for a PIN and did not get it, if there was one.
    pub(crate) fn stranger(&self) -> Option<TokenId> {
        self.noted().clone()
    }

    fn refuse(&self, token: &TokenId) -> Error {
        *self.noted() = Some(token.clone());
        Error::PinNeeded {
            token: token.clone(),
        }
    }

    fn noted(&self) -> std::sync::MutexGuard<'_, Option<TokenId>> {
        self.stranger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PinSource for OnlyFor {
    fn pin(&self, token: &TokenId, label: &str, call: &Call) -> Result<Pin, Error> {
        match *token == self.token {
            true => self.pins.pin(token, label, call),
            false => Err(self.refuse(token)),
        }
    }

    fn pin_with_tries(
        &self,
        token: &TokenId,
        label: &str,
        tries: TriesLeft,
        call: &Call,
    ) -> Result<Pin, Error> {
        match *token == self.token {
            true => self.pins.pin_with_tries(token, label, tries, call),
            false => Err(self.refuse(token)),
        }
    }

    fn sends_unsettled(&self, token: &TokenId, label: &str, call: &Call) -> Result<bool, Error> {
        Ok(*token == self.token && self.pins.sends_unsettled(token, label, call)?)
    }

    fn is_one_for_all(&self) -> bool {
        false
    }
}
