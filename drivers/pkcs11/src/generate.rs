//! Making and naming keys.

use std::cell::Cell;

use claviger_token::{Call, Error, GeneratedKey, KeyRef, KeySpec, NewKey, SlotId, Unfinished};
use cryptoki::error::Error as Ck;
use cryptoki::object::{Attribute, ObjectClass};
use cryptoki::session::Session;

use crate::delete::refuses_change;
use crate::error::{Fault, is_stale_handle, made_nothing};
use crate::find::{Search, Wanted, parse_id};
use crate::mechanisms::{Names, generation, templates};
use crate::object::{KeyObject, Read, find};
use crate::quirks::Generate;
use crate::token::Pkcs11Token;

/// The classes of the objects that are in a key's way.
const KEY_CLASSES: [ObjectClass; 3] = [
    ObjectClass::PRIVATE_KEY,
    ObjectClass::PUBLIC_KEY,
    ObjectClass::SECRET_KEY,
];

impl Pkcs11Token {
    /// Makes a key that carries its mark.
    pub(crate) fn generate_key(
        &self,
        new: &NewKey<'_>,
        call: &Call,
    ) -> Result<GeneratedKey, Error> {
        self.info.check_makes(new.spec)?;
        self.check_writable()?;
        let id = parse_id(new.slot)?;
        self.connection.run(call, |session, _| {
            for class in KEY_CLASSES {
                if !find(session, class, [Attribute::Id(id.clone())])?.is_empty() {
                    return Err(Fault::Ours(self.occupied(new.slot)));
                }
            }
            // Private keys do not show without a login.
            self.connection.confirm(session)
        })?;
        let names = Names {
            id: &id,
            label: new.mark,
        };
        let attempt = || {
            let begun = Cell::new(false);
            let made = self.connection.run_once(call, |session, _| {
                let made = self.make(session, new.spec, names, &begun);
                made.map_err(|fault| self.not_kept(fault))
            });
            // Whoever gave up meanwhile does not get the key.
            let made = made.and_then(|made| call.check().map(|()| made));
            made.map_err(|error| (error, !begun.get() || self.clean_up(new)))
        };
        let made = match attempt() {
            // SoftHSM fails now and then while other threads search the token.
            Err((Error::Device { .. }, true)) if self.quirks.generate == Generate::ViaSession => {
                attempt()
            }
            other => other,
        };
        made.map_err(|(error, _)| error)
    }

    /// Gives a key its label, both halves of it.
    pub(crate) fn name_key(&self, key: &KeyRef, label: &str, call: &Call) -> Result<(), Error> {
        self.connection.run(call, |session, _| {
            // What is copied is destroyed.
            let wanted = match self.quirks.generate {
                Generate::ViaSession => Wanted::Proven(call),
                Generate::Direct => Wanted::Presumed,
            };
            let search = Search::new(self, session, &key.public_key, wanted);
            let findings = search.run(&key.slot)?;
            if findings.found.is_empty() {
                self.connection.confirm(session)?;
                let missing = findings.missing(self, &key.public_key, &key.slot);
                return Err(Fault::Ours(missing));
            }
            let private = findings.found.into_iter().map(|found| found.read);
            for half in [private.collect(), search.public_halves()?] {
                match self.relabel(session, &half, label) {
                    Err(Fault::Module(error)) if refuses_change(&error) => {
                        let token = &self.info.id;
                        tracing::debug!(%token, %error, "the label cannot be changed");
                    }
                    other => other?,
                }
            }
            Ok(())
        })
    }

    /// Changes the label of half a key, of which there may be several copies.
    ///
    /// SoftHSM2 writes the file of an object anew for that: killed in the middle, or on a full
    /// disk, it would lose a key that an identity has by now. There the half is copied first;
    /// who is killed in between leaves both, of which the next one keeps the copy. Nothing is
    /// destroyed before the copy has been read: on a full disk SoftHSM2 says `CKR_OK` of one
    /// that it could not store.
    fn relabel(&self, session: &Session, half: &[Read], label: &str) -> Result<(), Fault> {
        let new = Attribute::Label(label.as_bytes().to_vec());
        if self.quirks.generate == Generate::Direct {
            let change =
                |read: &Read| session.update_attributes(read.handle, std::slice::from_ref(&new));
            return Ok(half.iter().try_for_each(change)?);
        }
        let kept = half.iter().find(|read| read.key.label == label);
        if let (None, Some(read)) = (kept, half.first()) {
            let copy = session.copy_object(read.handle, &[new, Attribute::Token(true)])?;
            KeyObject::read(session, copy).map_err(|fault| self.not_kept(fault.into()))?;
        }
        let kept = kept.map(|read| read.handle);
        let mut others = half.iter().filter(|read| Some(read.handle) != kept);
        Ok(others.try_for_each(|read| session.destroy_object(read.handle))?)
    }

    /// Removes what a failed generation left, and says whether that worked.
    fn clean_up(&self, new: &NewKey<'_>) -> bool {
        let left = Unfinished {
            slot: new.slot.clone(),
            mark: new.mark.into(),
            public_key: None,
        };
        match self.discard_key(&left, &Call::unlimited()) {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(token = %self.info.id, slot = %new.slot, %error, "a failed generation may have left something");
                false
            }
        }
    }

    /// Makes a key pair and reads back what the token says of it. `begun` tells whether
    /// something may be on the token since.
    fn make(
        &self,
        session: &Session,
        spec: KeySpec,
        names: Names<'_>,
        begun: &Cell<bool>,
    ) -> Result<GeneratedKey, Fault> {
        let direct = self.quirks.generate == Generate::Direct;
        let (public, private) = templates(spec, self.quirks, names, direct);
        let Some(mechanism) = generation(spec, self.quirks) else {
            return Err(Fault::Ours(self.unsupported(spec)));
        };
        let pair = || session.generate_key_pair(&mechanism, &public, &private);
        let (public, private) = match self.quirks.generate {
            Generate::Direct => beginning(begun, pair)?,
            Generate::ViaSession => {
                let (public, private) = pair()?;
                let keep = [Attribute::Token(true)];
                let private_copy = beginning(begun, || session.copy_object(private, &keep))?;
                let public_copy = session.copy_object(public, &keep)?;
                session.destroy_object(private)?;
                session.destroy_object(public)?;
                (public_copy, private_copy)
            }
        };
        let public_key = KeyObject::read(session, public)?.public_key();
        let public_key = public_key.filter(|key| key.algorithm() == spec.algorithm);
        let public_key = public_key.ok_or_else(|| {
            self.malformed(
                "C_GenerateKeyPair",
                "the generated key is not a valid key of this kind",
            )
        })?;
        let protection = KeyObject::read(session, private)?.protection();
        Ok(GeneratedKey::new(public_key, protection))
    }

    /// A token that cannot store a new object may say so only when that is used.
    fn not_kept(&self, fault: Fault) -> Fault {
        match fault {
            Fault::Module(error) if is_stale_handle(&error) => Fault::Ours(Error::Device {
                token: self.info.id.clone(),
                call: "C_GenerateKeyPair".into(),
                status: "CKR_OK, but the key was not stored (the token's disk may be full)".into(),
            }),
            other => other,
        }
    }

    fn occupied(&self, slot: &SlotId) -> Error {
        Error::SlotOccupied {
            token: self.info.id.clone(),
            slot: slot.to_string(),
        }
    }
}

/// Makes something on the token, and notes that unless it was refused at once.
fn beginning<T>(begun: &Cell<bool>, make: impl FnOnce() -> Result<T, Ck>) -> Result<T, Ck> {
    let made = make();
    begun.set(!made.as_ref().is_err_and(made_nothing));
    made
}
