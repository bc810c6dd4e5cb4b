//! With what a request makes and destroys keys: its management key, or its leave to try the
//! published one.
//!
//! Both are of the request that carries them, and of no other one. A key that the card accepted
//! is remembered by its source: whoever asks the same source is not asked again, and nobody else
//! gets it.

use std::sync::{Arc, Mutex, Weak};

use claviger_token::sync::lock;
use claviger_token::{Call, Error, PinSource, TokenId};
use secrecy::ExposeSecret;
use zeroize::Zeroizing;

use crate::management;

type Key = Zeroizing<Vec<u8>>;

/// The management keys that a card accepted, each with where it came from.
#[derive(Default)]
pub(crate) struct KnownKeys(Mutex<Vec<(Weak<dyn PinSource>, Key)>>);

/// With what one request administers a card.
pub(crate) struct Administrator<'a> {
    known: &'a KnownKeys,
    source: Arc<dyn PinSource>,
    /// What the source gives, if it gives one.
    pub(crate) key: Option<Key>,
    /// Whether the published key may be tried where there is none.
    pub(crate) may_try_default: bool,
}

impl KnownKeys {
    /// Asks the source that the request carries.
    ///
    /// # Errors
    /// What it says, unless that is that it has none; [`Error::ManagementKeyWrong`] for what is
    /// not hexadecimal.
    pub(crate) fn of(&self, token: &TokenId, call: &Call) -> Result<Administrator<'_>, Error> {
        let access = call.access();
        let source = Arc::clone(&access.management_keys);
        let key = match self.find(&source) {
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
            known: self,
            source,
            key,
            may_try_default: access.factory_defaults,
        })
    }

    fn find(&self, source: &Arc<dyn PinSource>) -> Option<Key> {
        let mut known = lock(&self.0);
        known.retain(|(of, _)| of.strong_count() > 0);
        let mut known = known.iter();
        let found = known.find(|(of, _)| std::ptr::addr_eq(of.as_ptr(), Arc::as_ptr(source)));
        found.map(|(_, key)| key.clone())
    }
}

impl Administrator<'_> {
    /// The card was shown the key that the source gave.
    pub(crate) fn note(&self, accepted: bool) {
        let mut known = lock(&self.known.0);
        known.retain(|(of, _)| !std::ptr::addr_eq(of.as_ptr(), Arc::as_ptr(&self.source)));
        if let (true, Some(key)) = (accepted, &self.key) {
            known.push((Arc::downgrade(&self.source), key.clone()));
        }
    }
}
