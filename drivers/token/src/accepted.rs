//! The management keys that tokens accepted from one request.

use std::fmt;
use std::sync::{Arc, Mutex, Weak};

use zeroize::Zeroizing;

use crate::sync::lock;
use crate::{PinSource, TokenId};

/// The management keys that tokens accepted, each with its token and its source, so that no source
/// is asked twice in a request. It is part of the request's [`Access`](crate::Access) and ends with
/// it: then the keys are wiped.
#[derive(Default)]
pub struct AcceptedKeys(Mutex<Vec<Accepted>>);

struct Accepted {
    token: TokenId,
    source: Weak<dyn PinSource>,
    key: Zeroizing<Vec<u8>>,
}

impl Accepted {
    fn is_of(&self, token: &TokenId, source: &Arc<dyn PinSource>) -> bool {
        self.token == *token && std::ptr::addr_eq(self.source.as_ptr(), Arc::as_ptr(source))
    }
}

impl AcceptedKeys {
    /// The key that `token` accepted from `source`, in bytes.
    pub fn find(&self, token: &TokenId, source: &Arc<dyn PinSource>) -> Option<Zeroizing<Vec<u8>>> {
        let mut accepted = lock(&self.0);
        // Another source may come to lie where one was.
        accepted.retain(|accepted| accepted.source.strong_count() > 0);
        let mut accepted = accepted.iter();
        let found = accepted.find(|accepted| accepted.is_of(token, source));
        found.map(|accepted| accepted.key.clone())
    }

    /// `token` accepted this key from `source`.
    pub fn note(&self, token: &TokenId, source: &Arc<dyn PinSource>, key: Zeroizing<Vec<u8>>) {
        self.forget(token, source);
        lock(&self.0).push(Accepted {
            token: token.clone(),
            source: Arc::downgrade(source),
            key,
        });
    }

    /// `token` refused what `source` gave.
    pub fn forget(&self, token: &TokenId, source: &Arc<dyn PinSource>) {
        lock(&self.0).retain(|accepted| !accepted.is_of(token, source));
    }
}

impl fmt::Debug for AcceptedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AcceptedKeys")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FixedPin;

    #[test]
    fn a_key_is_of_its_token_and_its_source_and_goes_with_the_source() {
        let keys = AcceptedKeys::default();
        let token = |serial: &str| TokenId {
            kind: "piv".into(),
            manufacturer: "Yubico".into(),
            serial: serial.into(),
        };
        let source = || -> Arc<dyn PinSource> { Arc::new(FixedPin::new("1")) };
        let (one, other) = (source(), source());
        keys.note(&token("1"), &one, vec![1].into());
        keys.note(&token("1"), &one, vec![2].into());
        let found = keys.find(&token("1"), &one);
        assert_eq!(found.map(|key| key.to_vec()), Some(vec![2]));
        assert!(keys.find(&token("2"), &one).is_none());
        assert!(keys.find(&token("1"), &other).is_none());
        assert_eq!(format!("{keys:?}"), "AcceptedKeys");
        drop(one);
        assert!(keys.find(&token("1"), &other).is_none());
        assert!(lock(&keys.0).is_empty());
        keys.note(&token("1"), &other, vec![1].into());
        keys.forget(&token("1"), &other);
        assert!(keys.find(&token("1"), &other).is_none());
    }
}
