//! Making and naming keys.

use std::cell::Cell;

use claviger_token::{
    Attestation, Call, Error, GeneratedKey, KeyRef, KeySpec, KeyUse, NewKey, Protection, PublicKey,
    SignatureScheme, Token, Unfinished,
};

use crate::apdu::Status;
use crate::attestation::{self, Checked};
use crate::card::Shown;
use crate::connection::How;
use crate::content::inspect;
use crate::error::Fault;
use crate::firmware::{Feature, Make, algorithm_id};
use crate::marker::{self, Object, Stage};
use crate::policy::{PinPolicy, Policies};
use crate::seek::{Sought, seek};
use crate::session::Session;
use crate::slot::{KeyName, Mark, Slot, parse_name};
use crate::token::PivToken;

const GENERATE: &str = "GENERATE ASYMMETRIC KEY PAIR";

pub(crate) fn not_encoded() -> Fault {
    Fault::malformed("PUT DATA", "the certificate cannot be encoded")
}

/// A key that is being made.
struct Plan<'a> {
    slot: Slot,
    mark: Mark,
    spec: KeySpec,
    label: &'a str,
}

impl PivToken {
    /// Marks the slot and makes the key; all in one transaction, and at most once.
    pub(crate) fn make(&self, new: &NewKey<'_>, call: &Call) -> Result<GeneratedKey, Error> {
        self.info().check_makes(new.spec)?;
        let name = parse_name(new.slot)?;
        let plan = Plan {
            slot: name.slot,
            mark: name.mark(),
            spec: new.spec,
            label: new.mark,
        };
        let occupied = || {
            Fault::Ours(Error::SlotOccupied {
                token: self.info.id.clone(),
                slot: plan.slot.to_string(),
            })
        };
        let free = |session: &mut Session<'_>| match self.is_free(session, plan.slot)? {
            true => Ok(()),
            false => Err(occupied()),
        };
        // Before anybody is asked for a management key.
        self.connection.run(call, How::REPEAT, |s| free(s))?;
        let by = self.connection.administrator(call)?;
        let touched = Cell::new(false);
        let key = Cell::new(None);
        let made = self.connection.run(call, How::ONCE, |session| {
            let make = session.proven_make()?;
            free(session)?;
            session.administer(&by, |session| {
                touched.set(true);
                session.note_change();
                self.make_here(session, &make, &plan, &key)
            })
        });
        if made.is_err() && touched.get() {
            self.clean_up(new, key.take(), call);
        }
        made
    }

    fn clean_up(&self, new: &NewKey<'_>, public_key: Option<PublicKey>, call: &Call) {
        let left = Unfinished {
            slot: new.slot.clone(),
            mark: new.mark.into(),
            public_key,
        };
        if let Err(error) = self.discard_left(&left, &call.to_tidy_up()) {
            if let Some(public_key) = left.public_key {
                // What the caller cannot know, since it got no answer.
                (self.connection.field).remember_unfinished(
                    self.connection.id(),
                    &left.slot,
                    public_key,
                );
            }
            let slot = new.slot;
            tracing::warn!(token = %self.info.id, %slot, %error, "a failed generation may have left something");
        }
    }

    /// Makes a key in a slot that is free, with the administrator's rights.
    fn make_here(
        &self,
        session: &mut Session<'_>,
        make: &Make,
        plan: &Plan<'_>,
        key: &Cell<Option<PublicKey>>,
    ) -> Result<GeneratedKey, Fault> {
        let Plan {
            slot,
            mark,
            spec,
            label,
        } = *plan;
        let id = algorithm_id(spec.algorithm).ok_or_else(|| self.does_not_make(spec))?;
        let begun = marker::unfinished(&mark, spec.usage, label).ok_or_else(not_encoded)?;
        let marked = session.card.put_object(slot.certificate(), &begun);
        marked.map_err(|fault| self.is_missing(fault, make, slot))?;

        let policies = self.policies_for(make);
        let public_key = session
            .card
            .generate(slot, id, policies)
            .map_err(|fault| self.not_made(fault, make, slot, spec))?;
        key.set(Some(public_key.clone()));
        PivToken::keep_mark(session, make, plan, &public_key)?;
        let shown = match make.has(Feature::Metadata) {
            true => session.card.shown(slot)?,
            false => Shown::Silent,
        };

        let mut local = true;
        match shown {
            Shown::Silent => {}
            Shown::Nothing => {
                return Err(Fault::malformed(GENERATE, "the slot is empty afterwards"));
            }
            Shown::Key(metadata) => {
                if metadata.public_key.is_some_and(|shown| shown != public_key) {
                    return Err(self.not_protected("the card shows another key in the slot"));
                }
                local = metadata.generated != Some(false);
                let kept = policies.pin.is_none_or(|pin| metadata.pin == Some(pin))
                    && policies
                        .touch
                        .is_none_or(|touch| metadata.touch == Some(touch));
                if !kept && make.is_yubicos() {
                    return Err(
                        self.not_protected("the card applied other policies than requested")
                    );
                }
            }
        }
        let attestation = self.attest(session, make, slot, &public_key)?;
        let protection = Protection {
            local,
            // The standard has no command that gives a private key away, neither
            // plain nor wrapped, and Yubico's extensions have none.
            sensitive: true,
            never_extractable: true,
        };
        let mut made = GeneratedKey::new(public_key, protection);
        made.attestation = attestation;
        Ok(made)
    }

    /// Of a card that has policies for sure the PIN is wanted once, unless the operator
    /// says otherwise. No other is asked for what nobody asked for.
    fn policies_for(&self, make: &Make) -> Policies {
        match make.has(Feature::Policies) {
            true => Policies {
                pin: self.policies.pin.or(Some(PinPolicy::Once)),
                touch: self.policies.touch,
            },
            false => self.policies,
        }
    }

    /// Sees to it that the slot says whose the key is, whatever the card wrote there itself:
    /// some put a certificate of their own in it when they make a key. The mark names the key
    /// from now on. Nothing comes before this: what dies until then leaves a key of which
    /// nothing says whose it is.
    fn keep_mark(
        session: &mut Session<'_>,
        make: &Make,
        plan: &Plan<'_>,
        public_key: &PublicKey,
    ) -> Result<(), Fault> {
        // Yubico's leave the mark as it is.
        if make.is_yubicos() {
            return Ok(());
        }
        let object = marker::unnamed(&plan.mark, plan.spec.usage, plan.label, public_key);
        let object = object.ok_or_else(not_encoded)?;
        session.card.put_object(plan.slot.certificate(), &object)
    }

    /// Writes the final certificate of a key that was made, unless somebody put theirs there
    /// meanwhile.
    pub(crate) fn finish(&self, key: &KeyRef, label: &str, call: &Call) -> Result<(), Error> {
        let name = parse_name(&key.slot)?;
        let Some(mark) = name.mark else {
            // A key that Claviger did not make has the name that it has.
            return Ok(());
        };
        let find = |session: &mut Session<'_>, make: &Make| match seek(
            session,
            make,
            &name,
            &key.public_key,
            false,
        )? {
            Sought::At(slot, content, _) => Ok((slot, content)),
            Sought::Gone(..) => Err(Fault::Ours(Error::KeyNotFound {
                token: self.info.id.clone(),
                key: key.public_key.fingerprint().to_string(),
            })),
        };
        let by = self.connection.administrator(call)?;
        self.connection.run(call, How::FRESH, |session| {
            let make = session.proven_make()?;
            let (slot, content) = find(session, &make)?;
            let usage = match &content.object {
                Some(Object::Ours(marker))
                    if marker.stage == Stage::Named && marker.label == label =>
                {
                    return Ok(());
                }
                Some(Object::Ours(marker)) => marker.usage,
                None => name.usage.unwrap_or(customary(&key.public_key)),
                Some(_) => return Ok(()),
            };
            let done = marker::finished(&mark, usage, label, &key.public_key);
            let done = done.ok_or_else(not_encoded)?;
            session.administer(&by, |session| {
                session.card.put_object(slot.certificate(), &done)?;
                match slot == name.slot {
                    true => Ok(()),
                    false => remove_mark(session, &make, &name),
                }
            })
        })
    }

    /// The slot's certificate object is not there: nor is the slot.
    fn is_missing(&self, fault: Fault, make: &Make, slot: Slot) -> Fault {
        let no_such_object = fault.status().is_some_and(|status| {
            matches!(
                status,
                Status::NOT_FOUND | Status::WRONG_P1_P2 | Status::NO_REFERENCE | Status::WRONG_DATA
            )
        });
        match no_such_object && !make.is_yubicos() {
            true => self.no_such_slot(slot),
            false => fault,
        }
    }

    /// What it means that a card that is not Yubico's refuses to make a key
    /// (SP 800-73-4 part 2, §3.3.2): it does not know the reference, or the algorithm.
    fn not_made(&self, fault: Fault, make: &Make, slot: Slot, spec: KeySpec) -> Fault {
        if make.is_yubicos() {
            return fault;
        }
        match fault.status() {
            Some(Status::WRONG_P1_P2 | Status::NO_REFERENCE | Status::NOT_FOUND) => {
                self.no_such_slot(slot)
            }
            Some(Status::WRONG_DATA) if self.policies != Policies::default() => {
                Fault::Ours(Error::BadBackend {
                    backend: self.info.backend.clone(),
                    reason: "the card has no policies for PIN and touch, or not this kind of key"
                        .into(),
                })
            }
            Some(Status::WRONG_DATA | Status::NOT_SUPPORTED) => {
                Fault::Ours(self.does_not_make(spec))
            }
            _ => fault,
        }
    }

    fn no_such_slot(&self, slot: Slot) -> Fault {
        Fault::Ours(Error::NoSuchSlot {
            token: self.info.id.clone(),
            slot: slot.to_string(),
        })
    }

    /// The card's statement about a key that it just made, checked; `None` where it
    /// makes none, or none that can be read.
    fn attest(
        &self,
        session: &mut Session<'_>,
        make: &Make,
        slot: Slot,
        key: &PublicKey,
    ) -> Result<Option<Attestation>, Fault> {
        let Some(firmware) = make.version() else {
            return Ok(None);
        };
        if !make.has(Feature::Attestation) {
            return Ok(None);
        }
        let Some(leaf) = session.card.attest(slot)? else {
            tracing::debug!(token = %self.info.id, "the card attests nothing");
            return Ok(None);
        };
        let signer = session.card.object(Slot::ATTESTATION.certificate())?;
        let signer = signer.unwrap_or_default();
        let signer = marker::certificate(&signer).unwrap_or_else(|| (&*signer).into());
        let serial = self.connection.identity.serial;
        match attestation::check(&leaf, &signer, key, serial, firmware) {
            Checked::Attested(attestation) => Ok(Some(attestation)),
            Checked::Unreadable(reason) => {
                tracing::warn!(token = %self.info.id, reason, "the attestation cannot be read");
                Ok(None)
            }
            Checked::Contradicts(reason) => Err(self.not_protected(reason)),
        }
    }

    fn not_protected(&self, reason: &str) -> Fault {
        Fault::Ours(Error::NotProtected {
            token: self.info.id.clone(),
            reason: reason.into(),
        })
    }
}

/// What a key is for of which nothing else is known.
pub(crate) fn customary(key: &PublicKey) -> KeyUse {
    match SignatureScheme::of(key.algorithm()) {
        Some(_) => KeyUse::Sign,
        None => KeyUse::Decrypt,
    }
}

/// Removes our certificate from a slot that its key has left.
pub(crate) fn remove_mark(
    session: &mut Session<'_>,
    make: &Make,
    name: &KeyName,
) -> Result<(), Fault> {
    let content = inspect(&mut session.card, make, name.slot)?;
    match &content.object {
        Some(Object::Ours(marker)) if marker.mark == name.mark() => {
            session.card.put_object(name.slot.certificate(), &[])
        }
        _ => Ok(()),
    }
}
