//! Destroying keys, only those that are proven to be meant.
//!
//! Each object is found and read just before it is destroyed, one after the other: once an object
//! is destroyed, its handle may refer to another one.

use std::cell::Cell;

use claviger_token::{Call, Deletion, Error, KeyRef, SlotId, Unfinished};
use cryptoki::error::{Error as Ck, RvError};
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use crate::error::{Fault, is_stale_handle};
use crate::find::{Proof, Search, Wanted, parse_slot};
use crate::object::{Read, read_keys};
use crate::token::Pkcs11Token;

/// The classes of the objects that make up a key of ours; the private half goes first, so
/// that where it cannot be destroyed nothing is.
const PAIR: [ObjectClass; 2] = [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY];

/// So many objects at most are destroyed as one key: a token whose objects stay although it
/// says that they are destroyed has no end.
const MOST_OBJECTS: usize = 16;

impl Pkcs11Token {
    /// Destroys the key whose public half is given.
    pub(crate) fn delete_key(&self, key: &KeyRef, call: &Call) -> Result<Deletion, Error> {
        self.destroying(call, |session, destroyed| {
            self.destroy_key(session, key, call, destroyed)
        })
    }

    /// Destroys what an unfinished generation left.
    pub(crate) fn discard_key(&self, left: &Unfinished, call: &Call) -> Result<Deletion, Error> {
        self.destroying(call, |session, destroyed| {
            let marked = self.destroy_marked(session, left, destroyed)?;
            if marked == Marked::Unchangeable
                && let Some(key) = &left.public_key
            {
                let key = KeyRef {
                    slot: left.slot.clone(),
                    public_key: key.clone(),
                };
                return self.destroy_key(session, &key, call, destroyed);
            }
            if destroyed.get() {
                return Ok(Deletion::Destroyed);
            }
            self.connection.confirm(session)?;
            match marked == Marked::Unchangeable || self.is_occupied(session, &left.slot)? {
                true => Ok(Deletion::Foreign),
                false => Ok(Deletion::NothingThere),
            }
        })
    }

    /// Runs what destroys something, which may be repeated, and what is to be done afterwards.
    /// The cell tells whether anything was destroyed.
    fn destroying(
        &self,
        call: &Call,
        work: impl Fn(&Session, &Cell<bool>) -> Result<Deletion, Fault>,
    ) -> Result<Deletion, Error> {
        let destroyed = Cell::new(false);
        let done = self
            .connection
            .run(call, |session, _| work(session, &destroyed));
        if destroyed.get() && self.quirks.reuses_handles {
            self.connection.restart_module();
        }
        done
    }

    /// Destroys what is proven to be the key. One that cannot be tried is a doubt, and stays.
    fn destroy_key(
        &self,
        session: &Session,
        key: &KeyRef,
        call: &Call,
        destroyed: &Cell<bool>,
    ) -> Result<Deletion, Fault> {
        let KeyRef { slot, public_key } = key;
        let search = Search::new(self, session, public_key, Wanted::Proven(call));
        let mut left = MOST_OBJECTS;
        let findings = loop {
            let findings = search.run(slot)?;
            let mut found = findings.found.iter();
            let Some(found) = found.find(|found| found.proof == Proof::Proven) else {
                break findings;
            };
            left = left.checked_sub(1).ok_or_else(|| self.still_there())?;
            self.destroy(session, found.read.handle, slot, destroyed)?;
        };
        // Private keys do not show without a login.
        self.connection.confirm(session)?;
        if findings.doubt.is_some() && !destroyed.get() {
            return Err(Fault::Ours(findings.missing(self, public_key, slot)));
        }
        let was_destroyed = destroyed.get();
        while let Some(public) = search.public_halves()?.first() {
            left = left.checked_sub(1).ok_or_else(|| self.still_there())?;
            self.destroy(session, public.handle, slot, &Cell::new(true))?;
        }
        Ok(match (was_destroyed, findings.instead) {
            (true, _) => Deletion::Destroyed,
            (false, Some(_)) => Deletion::Foreign,
            (false, None) => Deletion::NothingThere,
        })
    }

    /// Destroys the objects that carry the mark, if the token changes labels.
    fn destroy_marked(
        &self,
        session: &Session,
        left: &Unfinished,
        destroyed: &Cell<bool>,
    ) -> Result<Marked, Fault> {
        if left.mark.is_empty() {
            return Ok(Marked::Unchangeable);
        }
        for class in PAIR {
            for _ in 0..MOST_OBJECTS {
                let label = Attribute::Label(left.mark.clone().into());
                let found = read_keys(session, class, [label])?;
                let marked = found.into_iter().find(|read| read.key.label == left.mark);
                let Some(marked) = marked else { break };
                self.check_writable()?;
                if !self.changes_labels(session, &marked, &left.mark)? {
                    return Ok(Marked::Unchangeable);
                }
                self.destroy(session, marked.handle, &left.slot, destroyed)?;
            }
        }
        Ok(Marked::Destroyed)
    }

    /// Whether the label of the object can be changed, so that the mark says that nobody has
    /// named the key: tried with the label that it has.
    fn changes_labels(&self, session: &Session, read: &Read, label: &str) -> Result<bool, Fault> {
        if !read.key.modifiable {
            return Ok(false);
        }
        let label = [Attribute::Label(label.into())];
        match session.update_attributes(read.handle, &label) {
            Ok(()) => Ok(true),
            // It vanished; there is nothing to be destroyed.
            Err(error) if is_stale_handle(&error) => Ok(true),
            Err(error) if refuses_change(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Destroys one object, and notes that unless somebody else was quicker.
    fn destroy(
        &self,
        session: &Session,
        object: ObjectHandle,
        slot: &SlotId,
        destroyed: &Cell<bool>,
    ) -> Result<(), Fault> {
        self.check_writable()?;
        match session.destroy_object(object) {
            Ok(()) => {
                destroyed.set(true);
                Ok(())
            }
            Err(error) if is_stale_handle(&error) => Ok(()),
            Err(Ck::Pkcs11(RvError::ActionProhibited, _)) if !destroyed.get() => {
                Err(Fault::Ours(Error::CannotDestroy {
                    token: self.info.id.clone(),
                    slot: slot.to_string(),
                }))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether there is a half of a key in the slot.
    fn is_occupied(&self, session: &Session, slot: &SlotId) -> Result<bool, Fault> {
        let Ok(id) = parse_slot(slot) else {
            return Ok(false);
        };
        for class in PAIR {
            let there = read_keys(session, class, [Attribute::Id(id.clone())])?;
            if there.iter().any(|read| read.key.id == id) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn still_there(&self) -> Error {
        Error::Device {
            token: self.info.id.clone(),
            call: "C_DestroyObject".into(),
            status: "CKR_OK, but the object is still there".into(),
        }
    }
}

/// What became of the objects that carry a mark.
#[derive(PartialEq, Eq)]
enum Marked {
    /// There are none any more.
    Destroyed,
    /// The token does not change labels, so that the mark says nothing; or there was none.
    Unchangeable,
}

/// Whether it says that an attribute cannot be changed.
pub(crate) fn refuses_change(error: &Ck) -> bool {
    matches!(
        error,
        Ck::Pkcs11(
            RvError::ActionProhibited
                | RvError::AttributeReadOnly
                | RvError::AttributeTypeInvalid
                | RvError::AttributeValueInvalid
                | RvError::FunctionNotSupported
                | RvError::TemplateInconsistent,
            _
        )
    ) || matches!(error, Ck::NullFunctionPointer)
}
