//! An open token.

use std::sync::{Arc, OnceLock};

use claviger_token::{
    Call, Decryptor, Deletion, Error, GeneratedKey, KeyRef, KeySpec, KeyUse, NewKey, Signer,
    SlotId, SlotInfo, SlotName, Token, TokenInfo, Unfinished,
};

use crate::connection::{Connection, How};
use crate::content::{Filler, holds, inspect, key_may_be_there, visible};
use crate::error::Fault;
use crate::identity::info;
use crate::key::{Key, PivDecryptor, PivSigner};
use crate::policy::Policies;
use crate::session::Session;
use crate::slot::{Slot, new_name};

/// An open token.
pub(crate) struct PivToken {
    /// As it was when the token was opened.
    pub(crate) info: TokenInfo,
    /// As it is since it is known that Yubico made the card.
    pub(crate) proven: OnceLock<TokenInfo>,
    pub(crate) connection: Arc<Connection>,
    /// For the keys that are generated.
    pub(crate) policies: Policies,
}

impl Token for PivToken {
    fn info(&self) -> &TokenInfo {
        if let Some(proven) = self.proven.get() {
            return proven;
        }
        let make = self.connection.make();
        match make.is_yubicos() {
            true => {
                (self.proven).get_or_init(|| info(&self.connection.identity, &make, Vec::new()))
            }
            false => &self.info,
        }
    }

    fn slots(&self, call: &Call) -> Result<Vec<SlotInfo>, Error> {
        self.connection.run(call, How::REPEAT, |session| {
            let make = session.proven_make()?;
            visible(&mut session.card, &make)
        })
    }

    /// Retired slots, in order: the four others have a purpose in the standard, and are
    /// used only where the backend names them.
    ///
    /// A slot that is taken is left out though it is empty: somebody may be about to make
    /// a key there, or believe that there is one.
    fn free_slots(
        &self,
        specs: &[KeySpec],
        taken: &[SlotId],
        call: &Call,
    ) -> Result<Vec<SlotId>, Error> {
        call.check()?;
        for spec in specs {
            self.info().check_makes(*spec)?;
        }
        let free = self.connection.run(call, How::REPEAT, |session| {
            let mut free = Vec::new();
            for slot in Slot::retired() {
                let Some(spec) = specs.get(free.len()) else {
                    break;
                };
                if !is_among(taken, slot) && self.is_free(session, slot)? {
                    free.push(new_name(slot, Some(spec.usage)));
                }
            }
            Ok(free)
        })?;
        match free.len() == specs.len() {
            true => Ok(free),
            false => Err(self.no_room(taken, call)),
        }
    }

    fn generate(&self, new: &NewKey<'_>, call: &Call) -> Result<GeneratedKey, Error> {
        self.make(new, call)
    }

    fn name(&self, key: &KeyRef, label: &str, call: &Call) -> Result<(), Error> {
        self.finish(key, label, call)
    }

    fn delete(&self, key: &KeyRef, call: &Call) -> Result<Deletion, Error> {
        self.delete_key(key, call)
    }

    fn discard(&self, left: &Unfinished, call: &Call) -> Result<Deletion, Error> {
        self.discard_left(left, call)
    }

    fn signer(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Signer>, Error> {
        let key = Key::open(&self.connection, self.info(), (key, KeyUse::Sign), call)?;
        Ok(Arc::new(PivSigner(key)))
    }

    fn decryptor(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Decryptor>, Error> {
        let key = Key::open(&self.connection, self.info(), (key, KeyUse::Decrypt), call)?;
        Ok(Arc::new(PivDecryptor(key)))
    }
}

impl PivToken {
    pub(crate) fn is_free(&self, session: &mut Session<'_>, slot: Slot) -> Result<bool, Fault> {
        let make = self.connection.make();
        let content = inspect(&mut session.card, &make, slot)?;
        if content.is_occupied() {
            return Ok(false);
        }
        match &content.filler {
            None if content.is_certain() => return Ok(true),
            None => {}
            Some(Filler { shown: true, .. }) => return Ok(true),
            Some(Filler { public_key, .. }) => match holds(session, slot, public_key) {
                Ok(true) => return Ok(true),
                // A filler wants no more than the PIN.
                Ok(false) | Err(Fault::Status { .. }) => {}
                Err(fault) => return Err(fault),
            },
        }
        Ok(!key_may_be_there(session, &make, slot)?)
    }

    /// Why there is no slot for another key: the card is full, or those that are left have a
    /// purpose of their own and are taken only by name.
    fn no_room(&self, taken: &[SlotId], call: &Call) -> Error {
        let left = self.connection.run(call, How::REPEAT, |session| {
            let mut left = Vec::new();
            for slot in Slot::all().filter(|slot| !slot.is_retired()) {
                if !is_among(taken, slot) && self.is_free(session, slot)? {
                    left.push(slot.to_string());
                }
            }
            Ok(left)
        });
        let token = self.info.id.clone();
        match left {
            Ok(left) if left.is_empty() => Error::TokenFull { token },
            Ok(left) => Error::OnlyNamedSlots { token, left },
            Err(error) => error,
        }
    }

    pub(crate) fn does_not_make(&self, wanted: KeySpec) -> Error {
        Error::Unsupported {
            token: self.info.id.clone(),
            wanted,
            supported: self.info().makes.clone(),
        }
    }
}

/// Whether a key in `slot` is among those that are taken, whatever its mark is.
fn is_among(taken: &[SlotId], slot: Slot) -> bool {
    let name = SlotName::from(slot.unmarked());
    taken.iter().any(|taken| taken.is_in(&name))
}
