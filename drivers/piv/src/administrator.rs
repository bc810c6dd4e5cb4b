//! With what a request makes and destroys keys: its management key, or its leave to try the
//! published one.
//!
//! Both are of the request that carries them, and of no other one. A key that the card accepted is
//! kept with the request's [`Access`](claviger_token::Access), so that its source is not asked
//! again, and is wiped with it.

use std::sync::Arc;

use claviger_token::access::Access;
use claviger_token::{AcceptedKeys, Call, Error, PinSource, TokenId};
use secrecy::ExposeSecret;
use zeroize::Zeroizing;

use crate::management;

/// With what one request administers a card.
pub(crate) struct Administrator {
    accepted: Arc<AcceptedKeys>,
    source: Arc<dyn PinSource>,
    /// What the source gives, if it gives one.
    pub(crate) key: Option<Zeroizing<Vec<u8>>>,
    /// Whether the published key may be tried where there is none.
    pub(crate) may_try_default: bool,
}

impl Administrator {
    /// Asks the source that the request carries.
    ///
    /// # Errors
    /// What it says, unless that is that it has none; [`Error::ManagementKeyWrong`] for what is
    /// not hexadecimal.
    pub(crate) fn of(token: &TokenId, call: &Call) -> Result<Administrator, Error> {
        let Access {
            accepted_keys: accepted,
            management_keys: source,
            ..
        } = call.access();
        let key = match accepted.find(token, source) {
            Some(key) => Some(key),
            None => match source.pin(token, "", call) {
                Ok(text) => {
                    let key = management::parse_key(text.expose_secret());
                    Some(key.ok_or_else(|| Error::ManagementKeyWrong {
                        token: token.clone(),
                        reason: "it is not hexadecimal".into(),
                    })?)
                }
                Err(Error::PinNeeded { .. } | Error::ManagementKeyNeeded { .. }) => None,
                Err(error) => return Err(error),
            },
        };
        Ok(Administrator {
            accepted: Arc::clone(accepted),
            source: Arc::clone(source),
            key,
            may_try_default: call.access().factory_defaults,
        })
    }

    /// The card was shown the key that the source gave.
    pub(crate) fn note(&self, token: &TokenId, accepted: bool) {
        match &self.key {
            Some(key) if accepted => self.accepted.note(token, &self.source, key.clone()),
            _ => self.accepted.forget(token, &self.source),
        }
    }
}
