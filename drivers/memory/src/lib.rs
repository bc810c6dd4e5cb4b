//! `LocalMemory`: keys that exist only in this process.
//!
//! ```
//! use claviger_memory::MemoryDriver;
//! use claviger_token::{Algorithm, Call, Detail, Driver, KeyRef, KeySpec, NewKey};
//!
//! let call = Call::unlimited();
//! let token = MemoryDriver::new().open("memory:", &call)?;
//! let spec = KeySpec::sign(Algorithm::Ed25519);
//! let slot = token.free_slots(&[spec], &[], &call)?.remove(0);
//! let new = NewKey { slot: &slot, spec, mark: "alice" };
//! let public_key = token.generate(&new, &call)?.public_key;
//!
//! let signer = token.signer(&KeyRef { slot, public_key: public_key.clone() }, &call)?;
//! let signature = signer.sign(b"message", &call)?;
//! assert!(public_key.verify(b"message", &signature).is_ok());
//! # Ok::<(), claviger_token::Error>(())
//! ```
//!
//! A key is in one place and is wiped there when it is deleted. Handles to a deleted key return
//! [`Error::KeyNotFound`]. Only an operation in progress keeps the key until it ends.
#![forbid(unsafe_code)]

mod private_key;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use claviger_token::backend;
use claviger_token::key::to_hex;
use claviger_token::sync::{lock, read, write};
use claviger_token::{
    About, Call, Decryptor, Deletion, Detail, DigestSigner, Driver, Error, Example, GeneratedKey,
    KeyRef, KeySpec, KeyUse, Listed, Listing, NewKey, Pace, Protection, PublicKey, Secret,
    Signature, SignatureScheme, Signer, SlotId, SlotInfo, Token, TokenId, TokenInfo, Unfinished,
    Unwrap,
};
use rand_core::{OsRng, RngCore};

use crate::private_key::PrivateKey;

const SCHEME: &str = "memory";
const BACKEND: &str = "memory:";

/// Serves one token, which starts empty and ends with the driver and every handle on the token.
pub struct MemoryDriver {
    token: Arc<MemoryToken>,
}

impl MemoryDriver {
    /// What the driver says of itself to people.
    pub const ABOUT: About = About::new(SCHEME, "a token in the memory of a process").written(
        BACKEND,
        &[Example::new(
            BACKEND,
            "the memory of this process; its keys are lost when it ends",
        )],
    );

    /// A driver with a new, empty token.
    pub fn new() -> Self {
        let id = TokenId {
            kind: SCHEME.into(),
            manufacturer: "Claviger".into(),
            serial: random_name(),
        };
        let mut info = TokenInfo::new(id, BACKEND);
        info.model = "LocalMemory".into();
        info.makes = private_key::SUPPORTS.to_vec();
        info.uses.clone_from(&info.makes);
        info.durable = false;
        info.pace = Pace::Quick;
        MemoryDriver {
            token: Arc::new(MemoryToken {
                info,
                keys: RwLock::default(),
            }),
        }
    }
}

impl Default for MemoryDriver {
    fn default() -> Self {
        MemoryDriver::new()
    }
}

impl Driver for MemoryDriver {
    fn about(&self) -> About {
        MemoryDriver::ABOUT
    }

    fn look(&self, backend: &str, detail: Detail, call: &Call) -> Result<Listing, Error> {
        check_backend(backend)?;
        call.check()?;
        let info = self.token.info.clone();
        let found = Listed::with_slots(info, detail, |_| self.token.slots(call));
        Ok(Listing::new([found], []))
    }

    fn named_slot(&self, backend: &str) -> Result<Option<SlotId>, Error> {
        check_backend(backend)?;
        Ok(None)
    }

    fn open(&self, backend: &str, call: &Call) -> Result<Arc<dyn Token>, Error> {
        check_backend(backend)?;
        call.check()?;
        Ok(self.token.clone())
    }
}

fn check_backend(text: &str) -> Result<(), Error> {
    match backend::of_scheme(SCHEME, text)?.is_empty() {
        true => Ok(()),
        false => Err(backend::bad(text, "nothing may follow the colon")),
    }
}

/// 64 random bits in hexadecimal.
fn random_name() -> String {
    to_hex(&OsRng.next_u64().to_be_bytes())
}

struct MemoryToken {
    info: TokenInfo,
    /// The only strong references to the keys, so that what is removed here is wiped.
    keys: RwLock<BTreeMap<SlotId, Arc<Key>>>,
}

struct Key {
    public: PublicKey,
    private: PrivateKey,
    usage: KeyUse,
    label: Mutex<String>,
}

impl Key {
    fn label(&self) -> MutexGuard<'_, String> {
        lock(&self.label)
    }
}

type Keys = BTreeMap<SlotId, Arc<Key>>;

impl MemoryToken {
    // A thread that panicked has left the map whole: each change to it is one call.
    fn read(&self) -> RwLockReadGuard<'_, Keys> {
        read(&self.keys)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Keys> {
        write(&self.keys)
    }

    fn occupied(&self, slot: &SlotId) -> Error {
        Error::SlotOccupied {
            token: self.info.id.clone(),
            slot: slot.to_string(),
        }
    }

    fn find<'a>(
        &self,
        keys: &'a Keys,
        wanted: &PublicKey,
    ) -> Result<(&'a SlotId, &'a Arc<Key>), Error> {
        let mut keys = keys.iter();
        keys.find(|(_, key)| key.public == *wanted)
            .ok_or_else(|| Error::KeyNotFound {
                token: self.info.id.clone(),
                key: wanted.fingerprint().to_string(),
            })
    }

    /// Removes the key that `is_it` names.
    fn remove(&self, is_it: impl Fn(&Key) -> bool) -> Deletion {
        let mut keys = self.write();
        let before = keys.len();
        keys.retain(|_, key| !is_it(key));
        match keys.len() < before {
            true => Deletion::Destroyed,
            false => Deletion::NothingThere,
        }
    }

    fn handle(&self, wanted: &KeyRef, usage: KeyUse) -> Result<Arc<MemoryKey>, Error> {
        let keys = self.read();
        let (slot, key) = self.find(&keys, &wanted.public_key)?;
        if key.usage != usage {
            return Err(Error::NotUsable {
                token: self.info.id.clone(),
                wanted: KeySpec {
                    algorithm: key.public.algorithm(),
                    usage,
                },
                reason: "it was made for another use".into(),
            });
        }
        Ok(Arc::new(MemoryKey {
            token: self.info.id.clone(),
            slot: slot.clone(),
            public: key.public.clone(),
            key: Arc::downgrade(key),
        }))
    }
}

impl Token for MemoryToken {
    fn info(&self) -> &TokenInfo {
        &self.info
    }

    fn slots(&self, call: &Call) -> Result<Vec<SlotInfo>, Error> {
        call.check()?;
        let shown = |(slot, key): (&SlotId, &Arc<Key>)| {
            let mut shown = SlotInfo::occupied(slot.clone()).with_key(key.public.clone());
            shown.uses = vec![key.usage];
            shown.label.clone_from(&key.label());
            shown
        };
        Ok(self.read().iter().map(shown).collect())
    }

    /// Slots have random names, so that two callers who ask at once get two slots.
    fn free_slots(
        &self,
        specs: &[KeySpec],
        _: &[SlotId],
        call: &Call,
    ) -> Result<Vec<SlotId>, Error> {
        for spec in specs {
            self.info.check_makes(*spec)?;
        }
        call.check()?;
        Ok(specs.iter().map(|_| SlotId::new(random_name())).collect())
    }

    fn generate(
        &self,
        &NewKey { slot, spec, mark }: &NewKey<'_>,
        call: &Call,
    ) -> Result<GeneratedKey, Error> {
        self.info.check_makes(spec)?;
        call.check()?;
        if self.read().contains_key(slot) {
            return Err(self.occupied(slot));
        }
        let broken = |reason: &str| Error::MalformedReply {
            token: self.info.id.clone(),
            call: "generate".into(),
            reason: reason.into(),
        };
        let (private, public) =
            PrivateKey::generate(spec).ok_or_else(|| broken("no key was generated"))?;
        let public =
            PublicKey::from_bytes(spec.algorithm, &public).map_err(|e| broken(&e.to_string()))?;
        let key = Key {
            public: public.clone(),
            private,
            usage: spec.usage,
            label: Mutex::new(mark.into()),
        };
        match self.write().entry(slot.clone()) {
            std::collections::btree_map::Entry::Vacant(place) => place.insert(Arc::new(key)),
            // Another thread was quicker.
            std::collections::btree_map::Entry::Occupied(_) => return Err(self.occupied(slot)),
        };
        Ok(GeneratedKey::new(public, Protection::NONE))
    }

    fn name(&self, key: &KeyRef, label: &str, call: &Call) -> Result<(), Error> {
        call.check()?;
        let keys = self.read();
        let (_, named) = self.find(&keys, &key.public_key)?;
        *named.label() = label.into();
        Ok(())
    }

    fn delete(&self, key: &KeyRef, call: &Call) -> Result<Deletion, Error> {
        call.check()?;
        Ok(self.remove(|found| found.public == key.public_key))
    }

    fn discard(&self, left: &Unfinished, call: &Call) -> Result<Deletion, Error> {
        call.check()?;
        Ok(self.remove(|found| !left.mark.is_empty() && *found.label() == left.mark))
    }

    fn signer(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Signer>, Error> {
        call.check()?;
        Ok(self.handle(key, KeyUse::Sign)?)
    }

    fn decryptor(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Decryptor>, Error> {
        call.check()?;
        Ok(self.handle(key, KeyUse::Decrypt)?)
    }
}

/// A handle to a key; its use was checked before.
struct MemoryKey {
    token: TokenId,
    slot: SlotId,
    public: PublicKey,
    key: Weak<Key>,
}

impl MemoryKey {
    fn key(&self, call: &Call) -> Result<Arc<Key>, Error> {
        call.check()?;
        self.key.upgrade().ok_or_else(|| Error::KeyNotFound {
            token: self.token.clone(),
            key: self.public.fingerprint().to_string(),
        })
    }

    fn finished(&self, signature: Option<Vec<u8>>) -> Result<Signature, Error> {
        SignatureScheme::of(self.public.algorithm())
            .zip(signature)
            .and_then(|(scheme, bytes)| Signature::new(scheme, bytes).ok())
            .ok_or_else(|| Error::BadMessage {
                reason: "the key does not sign".into(),
            })
    }
}

impl Signer for MemoryKey {
    fn public_key(&self) -> &PublicKey {
        &self.public
    }

    fn slot(&self) -> SlotId {
        self.slot.clone()
    }

    fn sign(&self, message: &[u8], call: &Call) -> Result<Signature, Error> {
        self.finished(self.key(call)?.private.sign(message))
    }

    fn of_digests(&self) -> Option<&dyn DigestSigner> {
        self.scheme()?.digest_length().map(|_| self as _)
    }
}

impl DigestSigner for MemoryKey {
    fn sign_digest(&self, digest: &[u8], call: &Call) -> Result<Signature, Error> {
        self.scheme()
            .map_or(Ok(()), |scheme| scheme.check_digest(digest))?;
        self.finished(self.key(call)?.private.sign_digest(digest))
    }
}

impl Decryptor for MemoryKey {
    fn public_key(&self) -> &PublicKey {
        &self.public
    }

    fn slot(&self) -> SlotId {
        self.slot.clone()
    }

    /// A handle knows its key for ever.
    fn confirm(&self, call: &Call) -> Result<(), Error> {
        self.key(call).map(drop)
    }

    fn unwrap(&self, request: Unwrap<'_>, call: &Call) -> Result<Secret, Error> {
        let key = self.key(call)?;
        match request {
            Unwrap::Agree { peer } => key.private.agree(peer),
            // No RSA key is ever made here.
            Unwrap::Oaep { .. } => None,
        }
        .ok_or(Error::DecryptionFailed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_follows_the_colon_is_too_much() {
        for text in ["memory:a=1", "memory:a", "memory:;", "memory: "] {
            let refused = check_backend(text);
            let Err(Error::BadBackend { reason, .. }) = refused else {
                panic!("{refused:?}");
            };
            assert_eq!(reason, "nothing may follow the colon");
        }
        check_backend(BACKEND).unwrap();
    }
}
