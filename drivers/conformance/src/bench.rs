//! The token under test, and the keys that a check makes on it.

use std::sync::Arc;

use claviger_token::possession::Challenge;
use claviger_token::{
    Call, Decryptor, Error, GeneratedKey, KeyRef, KeySpec, KeyUse, NewKey, Protection, PublicKey,
    Signer, SlotId, SlotInfo, SlotState, Token, Unfinished, unfinished_mark,
};

use crate::check::Skip;
use crate::subject::Subject;

/// Panics unless the call is refused with the error that is named.
macro_rules! refused {
    ($call:expr, $error:pat) => {
        match $call {
            Err($error) => {}
            Err(other) => panic!(
                "{} gave {other:?}, not {}",
                stringify!($call),
                stringify!($error)
            ),
            Ok(_) => panic!("{} was not refused", stringify!($call)),
        }
    };
}

pub(crate) use refused;

/// The token under test, open.
pub(crate) struct Bench {
    pub(crate) token: Arc<dyn Token>,
    pub(crate) call: Call,
}

/// A key that a check made; it is deleted when the check is done with it.
pub(crate) struct Made {
    pub(crate) token: Arc<dyn Token>,
    call: Call,
    pub(crate) key: KeyRef,
    pub(crate) protection: Protection,
}

impl Bench {
    pub(crate) fn open(subject: &dyn Subject) -> Bench {
        let call = Call::unlimited().using(subject.access());
        let token = subject.driver().open(&subject.backend(), &call);
        Bench {
            token: token.unwrap(),
            call,
        }
    }

    /// What the token offers for `usage`; nothing is a reason to skip.
    pub(crate) fn specs(&self, usage: KeyUse) -> Result<Vec<KeySpec>, Skip> {
        let specs: Vec<KeySpec> = (self.token.info().makes.iter().copied())
            .filter(|spec| spec.usage == usage)
            .collect();
        match (specs.is_empty(), usage) {
            (false, _) => Ok(specs),
            (true, KeyUse::Sign) => Err(Skip("the token offers no key that signs")),
            (true, KeyUse::Decrypt) => Err(Skip("the token offers no key that decrypts")),
        }
    }

    /// For each use that the token offers, one kind of key.
    pub(crate) fn one_spec_of_each_use(&self) -> Vec<KeySpec> {
        [KeyUse::Sign, KeyUse::Decrypt]
            .into_iter()
            .filter_map(|usage| self.specs(usage).ok()?.first().copied())
            .collect()
    }

    /// The kind of key for checks that want any.
    pub(crate) fn any_spec(&self) -> Result<KeySpec, Skip> {
        let first = self.token.info().makes.first().copied();
        first.ok_or(Skip("the token generates no keys"))
    }

    pub(crate) fn free_slot(&self, spec: KeySpec) -> SlotId {
        self.token
            .free_slots(&[spec], &[], &self.call)
            .unwrap()
            .remove(0)
    }

    pub(crate) fn make(&self, spec: KeySpec) -> Made {
        let slot = self.free_slot(spec);
        self.make_in(&slot, spec, "conformance")
    }

    pub(crate) fn make_in(&self, slot: &SlotId, spec: KeySpec, label: &str) -> Made {
        let made = self.begin_in(slot, spec, &unfinished_mark());
        self.token.name(&made.key, label, &self.call).unwrap();
        made
    }

    /// Makes a key, does not finish it, and says what would be noted of it.
    pub(crate) fn begin(&self, spec: KeySpec) -> (Made, Unfinished) {
        let (slot, mark) = (self.free_slot(spec), unfinished_mark());
        let made = self.begin_in(&slot, spec, &mark);
        let public_key = Some(made.key.public_key.clone());
        let left = Unfinished {
            slot,
            mark,
            public_key,
        };
        (made, left)
    }

    /// Makes a key, and does not finish it.
    pub(crate) fn begin_in(&self, slot: &SlotId, spec: KeySpec, mark: &str) -> Made {
        let made = self.generate(slot, spec, mark, &self.call);
        let made = made.unwrap_or_else(|e| panic!("{spec} is offered, but: {e}"));
        assert_eq!(made.public_key.algorithm(), spec.algorithm);
        Made {
            token: self.token.clone(),
            call: self.call.clone(),
            key: KeyRef {
                slot: slot.clone(),
                public_key: made.public_key,
            },
            protection: made.protection,
        }
    }

    pub(crate) fn generate(
        &self,
        slot: &SlotId,
        spec: KeySpec,
        mark: &str,
        call: &Call,
    ) -> Result<GeneratedKey, Error> {
        self.token.generate(&NewKey { slot, spec, mark }, call)
    }

    /// All slots; without what an operator is told of those that are free, such as that
    /// a key was destroyed there.
    pub(crate) fn slots(&self) -> Vec<SlotInfo> {
        let mut slots = self.token.slots(&self.call).unwrap();
        let free = slots.iter_mut().filter(|s| s.state == SlotState::Free);
        free.for_each(|slot| slot.notes.clear());
        slots.sort_by(|a, b| a.slot.cmp(&b.slot));
        slots
    }

    pub(crate) fn occupied(&self, slot: &SlotId) -> Option<SlotInfo> {
        (self.slots().into_iter()).find(|s| slot.is_in(&s.slot) && s.state == SlotState::Occupied)
    }
}

impl Made {
    pub(crate) fn signer(&self) -> Arc<dyn Signer> {
        let signer = self.token.signer(&self.key, &Call::unlimited()).unwrap();
        assert_eq!(*signer.public_key(), self.key.public_key);
        signer
    }

    pub(crate) fn decryptor(&self) -> Arc<dyn Decryptor> {
        let decryptor = self.token.decryptor(&self.key, &Call::unlimited()).unwrap();
        assert_eq!(*decryptor.public_key(), self.key.public_key);
        decryptor
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Err(e) = self.token.delete(&self.key, &self.call) {
            eprintln!("left behind in slot {}: {e}", self.key.slot);
        }
    }
}

/// Any private-key operation, for checks to which it does not matter which.
pub(crate) enum OpenKey {
    Signs(Arc<dyn Signer>),
    Decrypts(Arc<dyn Decryptor>),
}

impl OpenKey {
    pub(crate) fn of(token: &dyn Token, key: &KeyRef, usage: KeyUse) -> Result<OpenKey, Error> {
        Ok(match usage {
            KeyUse::Sign => OpenKey::Signs(token.signer(key, &Call::unlimited())?),
            KeyUse::Decrypt => OpenKey::Decrypts(token.decryptor(key, &Call::unlimited())?),
        })
    }

    /// Whose signatures and agreements these are.
    pub(crate) fn public_key(&self) -> &PublicKey {
        match self {
            OpenKey::Signs(signer) => signer.public_key(),
            OpenKey::Decrypts(decryptor) => decryptor.public_key(),
        }
    }

    /// Where the key was found.
    pub(crate) fn slot(&self) -> SlotId {
        match self {
            OpenKey::Signs(signer) => signer.slot(),
            OpenKey::Decrypts(decryptor) => decryptor.slot(),
        }
    }

    /// Uses the key; whether an agreement is of another key shows when it is asked for.
    pub(crate) fn confirmed(&self, call: &Call) -> Result<(), Error> {
        match self {
            OpenKey::Signs(_) => self.work(call),
            OpenKey::Decrypts(decryptor) => {
                let challenge = challenge(decryptor.public_key());
                match decryptor.unwrap(challenge.request(), call) {
                    Ok(answer) if challenge.is_answered_by(&answer) => Ok(()),
                    Ok(_) | Err(Error::DecryptionFailed) => decryptor.confirm(call),
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Uses the key and checks what comes of it.
    pub(crate) fn work(&self, call: &Call) -> Result<(), Error> {
        match self {
            OpenKey::Signs(signer) => {
                let signature = signer.sign(b"conformance", call)?;
                (signer.public_key().verify(b"conformance", &signature)).unwrap();
            }
            OpenKey::Decrypts(decryptor) => {
                let challenge = challenge(decryptor.public_key());
                let answer = decryptor.unwrap(challenge.request(), call)?;
                assert!(challenge.is_answered_by(&answer), "another secret");
            }
        }
        Ok(())
    }
}

pub(crate) fn challenge(key: &PublicKey) -> Challenge {
    Challenge::new(key).unwrap_or_else(|| panic!("{} does not decrypt", key.algorithm()))
}
