//! Destroying a key: on deletion, or after an unfinished generation.

use std::cell::Cell;

use claviger_token::{Call, Deletion, Error, KeyRef, PublicKey, Token, Unfinished};
use zeroize::Zeroizing;

use crate::apdu::Status;
use crate::card::{Deleted, Shown};
use crate::connection::How;
use crate::content::{Content, holds, inspect, key_may_be_there};
use crate::error::Fault;
use crate::firmware::{Feature, Make, algorithm_id};
use crate::making::{customary, not_encoded, remove_mark};
use crate::marker::{self, Marker, Object, Stage};
use crate::policy::{PinPolicy, Policies, TouchPolicy};
use crate::seek::{Match, Sought, seek};
use crate::session::Session;
use crate::slot::{KeyName, Slot, parse_name};
use crate::token::PivToken;

/// What is to be destroyed.
enum Found {
    /// Nothing: it is gone, or never was.
    Nothing,
    /// Something else is in its place.
    Foreign,
    /// Its mark alone.
    Mark,
    /// The key.
    Key(Doomed),
}

/// A key that is to be destroyed.
struct Doomed {
    slot: Slot,
    /// What the slot's certificate says of it, or ought to.
    marker: Marker,
    /// What the slot's certificate object holds.
    certificate: Zeroizing<Vec<u8>>,
}

impl Doomed {
    fn found(slot: Slot, content: &Content, marker: Marker) -> Found {
        Found::Key(Doomed {
            slot,
            marker,
            certificate: content.certificate.clone(),
        })
    }

    /// One that is known by its public half.
    fn by_key(slot: Slot, content: &Content, name: &KeyName, key: &PublicKey) -> Found {
        let usage = name.usage.unwrap_or_else(|| customary(key));
        let marker = Marker {
            mark: name.mark(),
            label: content.label().into(),
            usage,
            public_key: Some(key.clone()),
            stage: Stage::Named,
        };
        Doomed::found(slot, content, marker)
    }
}

/// Whether somebody else made the key: Claviger's have names with a mark, and are made on the
/// card.
fn is_of_others(name: &KeyName, content: &Content) -> bool {
    content.is_imported() || (name.mark.is_none() && !content.is_ours())
}

impl PivToken {
    /// Destroys the key with this public half, and nothing else. Keys that Claviger did not
    /// make, whose names have no mark, are left alone.
    pub(crate) fn delete_key(&self, key: &KeyRef, call: &Call) -> Result<Deletion, Error> {
        let name = parse_name(&key.slot)?;
        self.destroy(&name, call, |session, make| {
            self.find_key(session, make, &name, &key.public_key)
        })
    }

    /// Destroys what a generation left.
    pub(crate) fn discard_left(&self, left: &Unfinished, call: &Call) -> Result<Deletion, Error> {
        let name = parse_name(&left.slot)?;
        let known = match &left.public_key {
            Some(key) => Some(key.clone()),
            None => (self.connection.field).unfinished(self.connection.id(), &left.slot),
        };
        let done = self.destroy(&name, call, |session, make| {
            self.find_left(session, make, &name, known.as_ref(), left.mark.is_empty())
        })?;
        (self.connection.field).forget_unfinished(self.connection.id(), &left.slot);
        Ok(done)
    }

    fn destroy(
        &self,
        name: &KeyName,
        call: &Call,
        find: impl Fn(&mut Session<'_>, &Make) -> Result<Found, Fault>,
    ) -> Result<Deletion, Error> {
        let found = self.connection.run(call, How::FRESH, |session| {
            let make = session.proven_make()?;
            find(session, &make)
        })?;
        match found {
            Found::Nothing => return Ok(Deletion::NothingThere),
            Found::Foreign => return Ok(Deletion::Foreign),
            Found::Mark | Found::Key(_) => {}
        }
        let by = self.connection.administrator(call)?;
        let destroyed = Cell::new(false);
        let found = self.connection.run(call, How::FRESH, |session| {
            let make = session.proven_make()?;
            let found = find(session, &make)?;
            match &found {
                Found::Nothing | Found::Foreign => {}
                Found::Mark => session.administer(&by, |session| {
                    session.note_change();
                    session.card.put_object(name.slot.certificate(), &[])
                })?,
                Found::Key(doomed) => session.administer(&by, |session| {
                    session.note_change();
                    self.end(session, &make, doomed, &destroyed)?;
                    match doomed.slot == name.slot {
                        true => Ok(()),
                        false => remove_mark(session, &make, name),
                    }
                })?,
            }
            Ok(found)
        })?;
        Ok(match (destroyed.get(), found) {
            (true, _) => Deletion::Destroyed,
            (false, Found::Foreign) => Deletion::Foreign,
            (false, _) => Deletion::NothingThere,
        })
    }

    /// The key with this public half, wherever it is.
    fn find_key(
        &self,
        session: &mut Session<'_>,
        make: &Make,
        name: &KeyName,
        key: &PublicKey,
    ) -> Result<Found, Fault> {
        let (content, found) = match seek(session, make, name, key, true)? {
            // Claviger's are made on the card.
            Sought::At(_, content, _) if is_of_others(name, &content) => {
                return Ok(Found::Foreign);
            }
            Sought::At(slot, content, _) => {
                return Ok(Doomed::by_key(slot, &content, name, key));
            }
            Sought::Gone(content, found) => (content, found),
        };
        Ok(match &content.object {
            Some(Object::Ours(marker)) if marker.mark == name.mark() => match found {
                // It is not known whether it was overwritten by now. What is there is the key
                // or its filler.
                Match::Another if marker.stage == Stage::Doomed && !content.is_imported() => {
                    Doomed::found(name.slot, &content, marker.clone())
                }
                Match::Another => Found::Foreign,
                _ => Found::Mark,
            },
            _ if found == Match::Another => Found::Foreign,
            _ => Found::Nothing,
        })
    }

    /// What is left of the generation that `name` names: what its mark says, and where that
    /// is not there, the key that is `known`.
    fn find_left(
        &self,
        session: &mut Session<'_>,
        make: &Make,
        name: &KeyName,
        known: Option<&PublicKey>,
        noted_no_mark: bool,
    ) -> Result<Found, Fault> {
        let content = inspect(&mut session.card, make, name.slot)?;
        let marker = match &content.object {
            Some(Object::Ours(marker)) if marker.mark == name.mark() => Some(marker),
            _ => None,
        };
        match marker.map(|marker| marker.stage) {
            // An identity has it. Earlier versions named keys before they entered them.
            Some(Stage::Named) if !noted_no_mark => return Ok(Found::Foreign),
            _ => {}
        }
        let known = known.or(marker.and_then(|marker| marker.public_key.as_ref()));
        match (marker, known) {
            (Some(marker), known) if marker.stage == Stage::Doomed || known.is_none() => {
                return self.find_marked(session, make, name, &content, marker);
            }
            (_, Some(key)) => match seek(session, make, name, key, true)? {
                Sought::At(_, content, _)
                    if is_of_others(name, &content)
                        || (content.is_named(key) && !noted_no_mark) =>
                {
                    return Ok(Found::Foreign);
                }
                Sought::At(slot, content, _) => {
                    return Ok(Doomed::by_key(slot, &content, name, key));
                }
                Sought::Gone(_, Match::Another) => return Ok(Found::Foreign),
                Sought::Gone(..) if marker.is_some() => return Ok(Found::Mark),
                Sought::Gone(..) => {}
            },
            (_, None) => {}
        }
        let may_be_there = content.has_key()
            || (content.filler.is_none()
                && !content.is_certain()
                && key_may_be_there(session, make, name.slot)?);
        Ok(match may_be_there {
            true => Found::Foreign,
            false => Found::Nothing,
        })
    }

    /// What is in a slot that has the mark of the generation, where no more is known of its
    /// key.
    fn find_marked(
        &self,
        session: &mut Session<'_>,
        make: &Make,
        name: &KeyName,
        content: &Content,
        marker: &Marker,
    ) -> Result<Found, Fault> {
        // Imported: then the slot was used again without a look at its certificate.
        let found = match () {
            () if content.is_imported() => Match::Another,
            () if content.has_key() => Match::Yes,
            () if content.is_certain() => Match::Nothing,
            () => match key_may_be_there(session, make, name.slot)? {
                true => Match::Yes,
                false => Match::Nothing,
            },
        };
        Ok(match found {
            Match::Yes => Doomed::found(name.slot, content, marker.clone()),
            Match::Another => Found::Foreign,
            Match::Nothing | Match::Perhaps | Match::Hidden => Found::Mark,
        })
    }

    /// Destroys a key with the administrator's rights: by the command for it, and where the
    /// card does not have that, by a key that takes its place.
    fn end(
        &self,
        session: &mut Session<'_>,
        make: &Make,
        doomed: &Doomed,
        destroyed: &Cell<bool>,
    ) -> Result<(), Fault> {
        let slot = doomed.slot;
        let deleted = match make.has(Feature::Delete) {
            true => session.card.delete(slot)?,
            false => Deleted::Refused,
        };
        match deleted {
            Deleted::Refused => return self.overwrite(session, make, doomed, destroyed),
            Deleted::Gone => destroyed.set(true),
            Deleted::WasNotThere => {}
        }
        if let Shown::Key(_) = session.card.shown(slot)? {
            return Err(Fault::malformed("MOVE KEY", "the key is still there"));
        }
        session.card.put_object(slot.certificate(), &[])
    }

    /// Destroys a key where the card has no command for it: a new key takes its place
    /// (SP 800-73-4 part 2, §3.3.2), one that is nobody's.
    ///
    /// Before, the certificate is made one that names no key, so that what has been
    /// begun is found and finished whichever of the two keys is there. Where the card
    /// refuses, the certificate becomes again what it was.
    fn overwrite(
        &self,
        session: &mut Session<'_>,
        make: &Make,
        doomed: &Doomed,
        destroyed: &Cell<bool>,
    ) -> Result<(), Fault> {
        let Doomed {
            slot,
            marker:
                Marker {
                    mark,
                    label,
                    usage,
                    stage,
                    ..
                },
            certificate: was,
        } = doomed;
        let slot = *slot;
        let cannot = || {
            Fault::Ours(Error::CannotDestroy {
                token: self.info.id.clone(),
                slot: slot.to_string(),
            })
        };
        // P-256 is the first that cards offer, and every one has it.
        let mut kinds = self.info().makes.iter();
        let kind = kinds.find(|spec| spec.usage == claviger_token::KeyUse::Sign);
        let id = kind.and_then(|spec| algorithm_id(spec.algorithm));
        let id = id.ok_or_else(cannot)?;
        let begun = *stage == Stage::Doomed;
        if !begun {
            let doomed = marker::doomed(mark, *usage, label).ok_or_else(not_encoded)?;
            session.card.put_object(slot.certificate(), &doomed)?;
        }
        let policies = match make.has(Feature::Policies) {
            true => Policies {
                pin: Some(PinPolicy::Once),
                touch: Some(TouchPolicy::Never),
            },
            false => Policies::default(),
        };
        let filler = match session.card.generate(slot, id, policies) {
            // It says that it did nothing.
            Err(Fault::Status {
                status:
                    Status::WRONG_DATA
                    | Status::NOT_SUPPORTED
                    | Status::NO_INSTRUCTION
                    | Status::WRONG_P1_P2,
                ..
            }) => {
                if !begun {
                    session.card.put_object(slot.certificate(), was)?;
                }
                return Err(cannot());
            }
            filler => filler?,
        };
        let shown = match make.has(Feature::Metadata) {
            true => session.card.shown(slot)?,
            false => Shown::Silent,
        };
        let took_its_place = match shown {
            Shown::Key(metadata) => metadata.public_key.is_some_and(|key| key == filler),
            Shown::Nothing => false,
            Shown::Silent => holds(session, slot, &filler)?,
        };
        if !took_its_place {
            return Err(Fault::malformed(
                "GENERATE ASYMMETRIC KEY PAIR",
                "the new key is not in the slot",
            ));
        }
        destroyed.set(true);
        let void = marker::void(mark, &filler).ok_or_else(not_encoded)?;
        session.card.put_object(slot.certificate(), &void)
    }
}
