//! One attached device as a token.

use std::sync::Arc;

use claviger_token::key::to_hex;
use claviger_token::{
    Call, Decryptor, Deletion, Error, GeneratedKey, KeyRef, KeySpec, KeyUse, NewKey, Signer,
    SlotId, SlotInfo, SlotName, Token, TokenInfo, Unfinished,
};
use rand_core::{OsRng, RngCore};

use crate::description::LONGEST_LABEL;
use crate::device::Device;
use crate::key::AttachedKey;
use crate::link::{Reply, Request, StatedKey};

/// The digits of a slot that is named here.
const SLOT: usize = 32;

/// The characters of a slot's name that an error shows.
const SHOWN: usize = 200;

/// An attached device as a token.
pub(crate) struct AttachedToken(Device);

impl AttachedToken {
    pub(crate) fn new(device: Device) -> Self {
        AttachedToken(device)
    }

    fn handle(&self, wanted: &KeyRef, usage: KeyUse, call: &Call) -> Result<AttachedKey, Error> {
        let found = self.0.find(wanted, call)?;
        let key = found.ok_or_else(|| self.0.not_found(&wanted.public_key))?;
        if key.usage != usage {
            return Err(Error::NotUsable {
                token: self.info().id.clone(),
                wanted: KeySpec {
                    algorithm: key.public_key.algorithm(),
                    usage,
                },
                reason: "it was made for another use".into(),
            });
        }
        self.0.info().check_uses(KeySpec {
            algorithm: key.public_key.algorithm(),
            usage,
        })?;
        Ok(AttachedKey::new(self.0.clone(), key))
    }

    /// Destroys a key, and sees that it is gone.
    fn destroy(&self, key: &StatedKey, call: &Call) -> Result<Deletion, Error> {
        let (slot, public_key) = (&*key.slot, &key.public_key);
        let Reply::Done(was_there) = self.0.change(Request::Delete { slot, public_key }, call)?
        else {
            return Err(self
                .0
                .malformed("delete", "it is the answer to something else"));
        };
        let is_it = |other: &StatedKey| other.public_key == key.public_key;
        match (self.0.keys(call)?.iter().any(is_it), was_there) {
            (true, _) => Err(Error::CannotDestroy {
                token: self.info().id.clone(),
                slot: slot.into(),
            }),
            (false, true) => Ok(Deletion::Destroyed),
            (false, false) => Ok(Deletion::NothingThere),
        }
    }
}

impl Token for AttachedToken {
    fn info(&self) -> &TokenInfo {
        self.0.info()
    }

    fn slots(&self, call: &Call) -> Result<Vec<SlotInfo>, Error> {
        let shown = |key: StatedKey| {
            let mut shown = SlotInfo::occupied(SlotName::new(key.slot)).with_key(key.public_key);
            shown.uses = vec![key.usage];
            shown.label = key.label;
            shown
        };
        Ok(self.0.keys(call)?.into_iter().map(shown).collect())
    }

    /// Slots have random names. So a key in a slot is known to be ours, though a program died
    /// before it could note the key itself.
    fn free_slots(
        &self,
        specs: &[KeySpec],
        _: &[SlotId],
        call: &Call,
    ) -> Result<Vec<SlotId>, Error> {
        for spec in specs {
            self.0.info().check_makes(*spec)?;
        }
        let room = self.0.description().stated().most_keys;
        if self.0.keys(call)?.len() + specs.len() > room {
            let token = self.info().id.clone();
            return Err(Error::TokenFull { token });
        }
        Ok(specs.iter().map(|_| SlotId::new(random_slot())).collect())
    }

    fn generate(
        &self,
        &NewKey { slot, spec, mark }: &NewKey<'_>,
        call: &Call,
    ) -> Result<GeneratedKey, Error> {
        self.0.info().check_makes(spec)?;
        let name = slot.name();
        if name.len() != SLOT || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            // A key of another program may be in one that is called otherwise.
            return Err(Error::NoSuchSlot {
                token: self.info().id.clone(),
                slot: name.chars().take(SHOWN).collect(),
            });
        }
        let request = Request::Generate {
            slot: name,
            spec,
            label: cut(mark),
        };
        match self.0.change(request, call)? {
            Reply::Generated {
                public_key,
                protection,
            } if public_key.algorithm() == spec.algorithm => {
                Ok(GeneratedKey::new(public_key, protection))
            }
            _ => Err(self
                .0
                .malformed("generate", "it is no key of the kind that was asked for")),
        }
    }

    fn name(&self, key: &KeyRef, label: &str, call: &Call) -> Result<(), Error> {
        let found = self.0.find(key, call)?;
        let found = found.ok_or_else(|| self.0.not_found(&key.public_key))?;
        let request = Request::SetLabel {
            slot: &found.slot,
            public_key: &found.public_key,
            label: cut(label),
        };
        match self.0.change(request, call)? {
            Reply::Done(_) => Ok(()),
            _ => Err(self
                .0
                .malformed("set-label", "it is the answer to something else")),
        }
    }

    fn delete(&self, key: &KeyRef, call: &Call) -> Result<Deletion, Error> {
        match self.0.find(key, call)? {
            Some(found) => self.destroy(&found, call),
            None => Ok(Deletion::NothingThere),
        }
    }

    fn discard(&self, left: &Unfinished, call: &Call) -> Result<Deletion, Error> {
        let keys = self.0.keys(call)?;
        match keys.iter().find(|key| left.slot.name() == key.slot) {
            Some(key) if !left.mark.is_empty() && key.label == left.mark => self.destroy(key, call),
            Some(_) => Ok(Deletion::Foreign),
            None => Ok(Deletion::NothingThere),
        }
    }

    fn signer(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Signer>, Error> {
        Ok(Arc::new(self.handle(key, KeyUse::Sign, call)?))
    }

    fn decryptor(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Decryptor>, Error> {
        Ok(Arc::new(self.handle(key, KeyUse::Decrypt, call)?))
    }
}

/// 128 random bits in hexadecimal.
fn random_slot() -> String {
    let mut random = [0; SLOT / 2];
    OsRng.fill_bytes(&mut random);
    to_hex(&random)
}

/// As much of a label as a key has.
fn cut(label: &str) -> &str {
    let mut length = label.len().min(LONGEST_LABEL);
    while !label.is_char_boundary(length) {
        length -= 1;
    }
    &label[..length]
}
