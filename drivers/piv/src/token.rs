//! An open token and the keys on it.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::{Arc, Mutex, Weak};

use claviger_token::{
    Algorithm, Attestation, Call, Decryptor, Deletion, Error, Event, GeneratedKey, KeyRef, KeySpec,
    KeyUse, NewKey, Protection, PublicKey, Secret, Signature, SignatureScheme, Signer, SlotId,
    SlotInfo, Token, TokenInfo, Unfinished, Unwrap,
};
use sha2::{Digest, Sha256, Sha384};
use zeroize::Zeroizing;

use crate::apdu::Status;
use crate::attestation::{self, Checked};
use crate::card::{Operation, Tries};
use crate::connection::{Connection, How, Session, lock};
use crate::content::{Content, Filler, holds, inspect, key_may_be_there};
use crate::error::Fault;
use crate::firmware::{Feature, algorithm_id};
use crate::marker::{self, Marker, Object};
use crate::policy::{PinPolicy, Policies, TouchPolicy};
use crate::slot::{Mark, Slot, new_name, parse_name};

/// An open token.
pub(crate) struct PivToken {
    pub(crate) me: Weak<PivToken>,
    pub(crate) info: TokenInfo,
    pub(crate) connection: Arc<Connection>,
    /// For the keys that are generated.
    pub(crate) policies: Policies,
}

impl Token for PivToken {
    fn info(&self) -> &TokenInfo {
        &self.info
    }

    fn slots(&self, call: &Call) -> Result<Vec<SlotInfo>, Error> {
        let make = &self.connection.identity.make;
        self.connection.run(call, How::REPEAT, |session| {
            Slot::all()
                .map(|slot| Ok(inspect(&mut session.card, make, slot)?.info(slot)))
                .collect()
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
            self.info.check_makes(*spec)?;
        }
        let free = self.connection.run(call, How::REPEAT, |session| {
            let mut free = Vec::new();
            for slot in Slot::retired() {
                if free.len() == specs.len() {
                    break;
                }
                // The name counts, whatever the mark is.
                if self.is_free(session, slot)? && !taken.contains(&slot.unmarked()) {
                    free.push(new_name(slot));
                }
            }
            Ok(free)
        })?;
        match free.len() == specs.len() {
            true => Ok(free),
            false => Err(Error::TokenFull {
                token: self.info.id.clone(),
            }),
        }
    }

    /// Marks the slot, makes the key, and describes it in the slot's certificate object;
    /// all in one transaction, and at most once.
    fn generate(
        &self,
        &NewKey {
            slot,
            spec,
            mark: label,
        }: &NewKey<'_>,
        call: &Call,
    ) -> Result<GeneratedKey, Error> {
        self.info.check_makes(spec)?;
        let (place, mark) = parse_name(slot)?;
        let mark = mark.unwrap_or(Mark::UNNAMED);
        let occupied = || {
            Fault::Ours(Error::SlotOccupied {
                token: self.info.id.clone(),
                slot: place.to_string(),
            })
        };
        // Before anybody is asked for a management key.
        self.connection.run(call, How::REPEAT, |session| {
            match self.is_free(session, place)? {
                true => Ok(()),
                false => Err(occupied()),
            }
        })?;
        let given = self.connection.given_management_key()?;
        let touched = Cell::new(false);
        let made = self.connection.run(call, How::ONCE, |session| {
            match self.is_free(session, place)? {
                true => {}
                false => return Err(occupied()),
            }
            session.administer(given.as_ref(), |session| {
                touched.set(true);
                session.note_change();
                self.make(session, place, &mark, spec, label)
            })
        });
        if made.is_err() && touched.get() {
            let left = SlotId::new(format!("{place}#{mark}"));
            if let Err(error) = self.destroy(&left, None, &Call::unlimited()) {
                tracing::warn!(token = %self.info.id, %slot, %error, "a failed generation may have left something");
            }
        }
        made
    }

    /// Destroys the key if it is the one that was made under this name.
    ///
    /// A slot that holds nothing, or what somebody else put there, is left as it is. So is
    /// one where this cannot be told: [`Error::KeyMismatch`].
    fn delete(&self, key: &KeyRef, call: &Call) -> Result<Deletion, Error> {
        self.destroy(&key.slot, Some(&key.public_key), call)
    }

    fn discard(&self, left: &Unfinished, call: &Call) -> Result<Deletion, Error> {
        self.destroy(&left.slot, left.public_key.as_ref(), call)
    }

    fn name(&self, _: &KeyRef, _label: &str, call: &Call) -> Result<(), Error> {
        call.check()
    }

    fn signer(&self, key: &KeyRef) -> Result<Arc<dyn Signer>, Error> {
        Ok(Arc::new(PivSigner(self.key(key, KeyUse::Sign)?)))
    }

    fn decryptor(&self, key: &KeyRef) -> Result<Arc<dyn Decryptor>, Error> {
        Ok(Arc::new(PivDecryptor(self.key(key, KeyUse::Decrypt)?)))
    }
}

/// What is left of a generation.
enum Found {
    /// Nothing of it.
    Nothing,
    /// Its mark alone.
    Mark,
    /// Its key, and what its certificate says, or ought to; then what lies there.
    Key(Marker, Zeroizing<Vec<u8>>),
}

fn not_encoded() -> Fault {
    Fault::malformed("PUT DATA", "the certificate cannot be encoded")
}

impl PivToken {
    fn is_free(&self, session: &mut Session<'_>, slot: Slot) -> Result<bool, Fault> {
        let make = &self.connection.identity.make;
        let content = inspect(&mut session.card, make, slot)?;
        if content.is_occupied() {
            return Ok(false);
        }
        match &content.filler {
            None => {}
            Some(Filler { shown: true, .. }) => return Ok(true),
            Some(Filler { public_key, .. }) => match holds(session, slot, public_key) {
                Ok(true) => return Ok(true),
                // A filler wants no more than the PIN.
                Ok(false) | Err(Fault::Status { .. }) => {}
                Err(fault) => return Err(fault),
            },
        }
        Ok(!key_may_be_there(session, make, slot)?)
    }

    /// Destroys the key that was made under this name; `ours` is its public half, where
    /// that is known.
    fn destroy(
        &self,
        slot: &SlotId,
        ours: Option<&PublicKey>,
        call: &Call,
    ) -> Result<Deletion, Error> {
        let (place, mark) = parse_name(slot)?;
        // The slots of keys that others made have names without a mark.
        let ours = ours.filter(|_| mark.is_some());
        let mark = mark.unwrap_or(Mark::UNNAMED);
        let found = self.connection.run(call, How::FRESH, |session| {
            self.find(session, place, &mark, ours)
        })?;
        if matches!(found, Found::Nothing) {
            return Ok(Deletion::NothingThere);
        }
        let given = self.connection.given_management_key()?;
        let make = &self.connection.identity.make;
        let destroyed = Cell::new(false);
        self.connection.run(call, How::FRESH, |session| {
            let found = self.find(session, place, &mark, ours)?;
            if matches!(found, Found::Nothing) {
                return Ok(());
            }
            session.administer(given.as_ref(), |session| {
                session.note_change();
                match found {
                    Found::Nothing => return Ok(()),
                    Found::Mark => {}
                    Found::Key(marker, was) if !make.has(Feature::Delete) => {
                        return self.overwrite(session, place, &marker, &was, &destroyed);
                    }
                    Found::Key(..) => {
                        destroyed.set(session.card.delete(place)? || destroyed.get());
                        if session.card.metadata(place.reference())?.is_some() {
                            return Err(Fault::malformed("MOVE KEY", "the key is still there"));
                        }
                    }
                }
                session.card.put_object(place.certificate(), &[])
            })
        })?;
        Ok(match destroyed.get() {
            true => Deletion::Destroyed,
            false => Deletion::NothingThere,
        })
    }

    /// What is left in `slot` of the generation that `mark` names, and whose key is `ours`
    /// where that is known.
    fn find(
        &self,
        session: &mut Session<'_>,
        slot: Slot,
        mark: &Mark,
        ours: Option<&PublicKey>,
    ) -> Result<Found, Fault> {
        let make = &self.connection.identity.make;
        let content = inspect(&mut session.card, make, slot)?;
        let marker = match &content.object {
            Some(Object::Ours(marker)) if marker.mark == *mark => marker,
            // Written where there was no key, or over one that was destroyed: ours had
            // gone.
            Some(Object::Ours(_) | Object::Void(_)) => return Ok(Found::Nothing),
            _ if content.filler.is_some() => return Ok(Found::Nothing),
            Some(Object::Certificate { .. } | Object::Other) | None => {
                return self.find_without_marker(session, slot, mark, ours, &content);
            }
        };
        // Whether it is another: then the slot was used again without a look at its
        // certificate.
        let another = match (&marker.public_key, &content.metadata) {
            (Some(ours), _) if content.has_key() => content.public_key() != Some(ours),
            (None, Some(metadata)) => metadata.generated == Some(false),
            (None, None) if content.has_key() => false,
            _ if make.has(Feature::Metadata) => return Ok(Found::Mark),
            (Some(ours), _) if holds(session, slot, ours)? => false,
            (ours, _) => match key_may_be_there(session, make, slot)? {
                true => ours.is_some(),
                false => return Ok(Found::Mark),
            },
        };
        Ok(match another {
            true => Found::Nothing,
            false => Found::Key(marker.clone(), content.certificate.clone()),
        })
    }

    /// What is left in a slot where our certificate is not, since others deleted it or
    /// put theirs in its place: the key tells, where that is known.
    fn find_without_marker(
        &self,
        session: &mut Session<'_>,
        slot: Slot,
        mark: &Mark,
        ours: Option<&PublicKey>,
        content: &Content,
    ) -> Result<Found, Fault> {
        let make = &self.connection.identity.make;
        // `None` where it cannot be told.
        let is_ours = match (ours, content.public_key()) {
            // Ours was made on the card.
            _ if content.is_imported() => Some(false),
            (Some(ours), found) if content.has_key() => found.map(|found| found == ours),
            (None, _) if content.has_key() => None,
            _ if !key_may_be_there(session, make, slot)? => Some(false),
            // Without a signature it would only be believed.
            (Some(ours), _) if SignatureScheme::of(ours.algorithm()).is_some() => {
                Some(holds(session, slot, ours)?)
            }
            _ => None,
        };
        match (is_ours, ours) {
            (Some(false), _) => Ok(Found::Nothing),
            (Some(true), Some(ours)) => {
                let marker = Marker {
                    mark: *mark,
                    label: content.label().into(),
                    usage: match SignatureScheme::of(ours.algorithm()) {
                        Some(_) => KeyUse::Sign,
                        None => KeyUse::Decrypt,
                    },
                    public_key: Some(ours.clone()),
                };
                Ok(Found::Key(marker, content.certificate.clone()))
            }
            _ => Err(Fault::Ours(Error::KeyMismatch {
                token: self.info.id.clone(),
                slot: slot.to_string(),
                expected: "one that is known to be Claviger's".into(),
                found: match &content.object {
                    None => "a key without a certificate".into(),
                    Some(_) => "a key with another certificate".into(),
                },
            })),
        }
    }

    /// Destroys the key that `marker` is about where the card has no command for it: a
    /// new key takes its place (SP 800-73-4 part 2, §3.3.2), one that is nobody's.
    ///
    /// Before, the certificate is made one that names no key, so that what has been
    /// begun is found and finished whichever of the two keys is there. Where the card
    /// refuses, the certificate becomes again what it was.
    fn overwrite(
        &self,
        session: &mut Session<'_>,
        slot: Slot,
        marker: &Marker,
        was: &[u8],
        destroyed: &Cell<bool>,
    ) -> Result<(), Fault> {
        let make = &self.connection.identity.make;
        let Marker {
            mark,
            label,
            usage,
            public_key,
        } = marker;
        let cannot = || {
            Fault::Ours(Error::CannotDestroy {
                token: self.info.id.clone(),
                slot: slot.to_string(),
            })
        };
        // P-256 is the first that cards offer.
        let mut kinds = self.info.makes.iter();
        let kind = kinds.find(|spec| spec.usage == KeyUse::Sign);
        let id = kind.and_then(|spec| algorithm_id(spec.algorithm));
        let id = id.ok_or_else(cannot)?;
        if public_key.is_some() {
            let begun = marker::unfinished(mark, *usage, label).ok_or_else(not_encoded)?;
            session.card.put_object(slot.certificate(), &begun)?;
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
                if public_key.is_some() {
                    session.card.put_object(slot.certificate(), was)?;
                }
                return Err(cannot());
            }
            filler => filler?,
        };
        let took_its_place = match make.has(Feature::Metadata) {
            true => {
                let metadata = session.card.metadata(slot.reference())?;
                metadata.and_then(|m| m.public_key).as_ref() == Some(&filler)
            }
            false => holds(session, slot, &filler)?,
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

    /// Makes a key in a slot that is free, with the administrator's rights.
    fn make(
        &self,
        session: &mut Session<'_>,
        slot: Slot,
        mark: &Mark,
        spec: KeySpec,
        label: &str,
    ) -> Result<GeneratedKey, Fault> {
        let make = &self.connection.identity.make;
        let id = algorithm_id(spec.algorithm).ok_or_else(|| self.unsupported(spec))?;
        let begun = marker::unfinished(mark, spec.usage, label).ok_or_else(not_encoded)?;
        session.card.put_object(slot.certificate(), &begun)?;

        let policies = match make.has(Feature::Policies) {
            true => Policies {
                pin: self.policies.pin.or(Some(PinPolicy::Once)),
                touch: self.policies.touch,
            },
            false => Policies::default(),
        };
        let public_key = session.card.generate(slot, id, policies)?;
        let done = marker::finished(mark, spec.usage, label, &public_key);
        let done = done.ok_or_else(not_encoded)?;
        session.card.put_object(slot.certificate(), &done)?;

        let mut local = true;
        if make.has(Feature::Metadata) {
            let metadata = session.card.metadata(slot.reference())?;
            let metadata = metadata.ok_or_else(|| {
                Fault::malformed("GENERATE ASYMMETRIC KEY PAIR", "there is no key afterwards")
            })?;
            if metadata.public_key.as_ref() != Some(&public_key) {
                return Err(self.not_protected("the card shows another key in the slot"));
            }
            local = metadata.generated == Some(true);
        }
        let attestation = self.attest(session, slot, &public_key)?;
        Ok(GeneratedKey {
            public_key,
            protection: Protection {
                local,
                // The standard has no command that gives a private key away, neither
                // plain nor wrapped, and Yubico's extensions have none.
                sensitive: true,
                never_extractable: true,
            },
            attestation,
        })
    }

    /// The card's statement about a key that it just made, checked; `None` where it
    /// makes none, or none that can be read.
    fn attest(
        &self,
        session: &mut Session<'_>,
        slot: Slot,
        key: &PublicKey,
    ) -> Result<Option<Attestation>, Fault> {
        let identity = &self.connection.identity;
        let Some(firmware) = identity.make.version() else {
            return Ok(None);
        };
        if !identity.make.has(Feature::Attestation) {
            return Ok(None);
        }
        let Some(leaf) = session.card.attest(slot)? else {
            tracing::debug!(token = %self.info.id, "the card attests nothing");
            return Ok(None);
        };
        let signer = session.card.object(Slot::ATTESTATION.certificate())?;
        let signer = signer.unwrap_or_default();
        let signer = crate::tlv::find(&signer, 0x70).unwrap_or(&signer);
        match attestation::check(&leaf, signer, key, identity.serial, firmware) {
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

    fn unsupported(&self, wanted: KeySpec) -> Error {
        Error::Unsupported {
            token: self.info.id.clone(),
            wanted,
            supported: self.info.uses.clone(),
        }
    }

    fn key(&self, key: &KeyRef, usage: KeyUse) -> Result<Key, Error> {
        let algorithm = key.public_key.algorithm();
        let spec = KeySpec { algorithm, usage };
        self.info.check_uses(spec)?;
        let key = Key {
            slot: parse_name(&key.slot)?.0,
            public_key: key.public_key.clone(),
            spec,
            id: algorithm_id(algorithm).ok_or_else(|| self.unsupported(spec))?,
            token: self.me.upgrade().ok_or_else(|| Error::TokenUnavailable {
                token: self.info.id.clone(),
                reason: "it is being closed".into(),
            })?,
            checked: Mutex::default(),
        };
        self.connection
            .run(&Call::unlimited(), How::REPEAT, |s| key.policies(s))?;
        Ok(key)
    }
}

/// A key on a token.
struct Key {
    token: Arc<PivToken>,
    slot: Slot,
    public_key: PublicKey,
    spec: KeySpec,
    id: u8,
    /// The policies, and at which count of changes the slot was looked at.
    checked: Mutex<Option<(u64, PinPolicy, TouchPolicy)>>,
}

impl Key {
    /// What the key wants before it works. Looks at the slot if something may have
    /// changed since that was done last.
    fn policies(&self, session: &mut Session<'_>) -> Result<(PinPolicy, TouchPolicy), Fault> {
        let changes = session.changes();
        if let Some((at, pin, touch)) = *lock(&self.checked)
            && at == changes
        {
            return Ok((pin, touch));
        }
        let content = self.examine(session)?;
        let (pin, touch) = content.policies(self.slot);
        *lock(&self.checked) = Some((changes, pin, touch));
        Ok((pin, touch))
    }

    /// Makes sure that the key is in its slot and may be used like this.
    fn examine(&self, session: &mut Session<'_>) -> Result<Content, Fault> {
        let token = &self.token;
        let id = token.info.id.clone();
        let make = &token.connection.identity.make;
        let content = inspect(&mut session.card, make, self.slot)?;
        let expected = self.public_key.fingerprint().to_string();
        if !content.has_key() && content.public_key().is_none() {
            return Err(Fault::Ours(Error::KeyNotFound {
                token: id,
                key: expected,
            }));
        }
        match content.public_key() {
            Some(found) if *found == self.public_key => {}
            found => {
                return Err(Fault::Ours(Error::KeyMismatch {
                    token: id,
                    slot: self.slot.to_string(),
                    expected,
                    found: found.map_or("a key without a readable public half".into(), |key| {
                        key.fingerprint().to_string()
                    }),
                }));
            }
        }
        if !content.uses(self.slot).contains(&self.spec.usage) {
            return Err(token.unsupported(self.spec).into());
        }
        Ok(content)
    }

    /// GENERAL AUTHENTICATE alone, where nothing else is missing and it is one command.
    fn operate_alone(
        &self,
        session: &mut Session<'_>,
        operation: Operation,
        input: &[u8],
    ) -> Option<Zeroizing<Vec<u8>>> {
        let (at, pin, touch) = (*lock(&self.checked))?;
        let settled = at == session.changes()
            && input.len() <= LONGEST_IN_ONE_COMMAND
            && touch == TouchPolicy::Never
            && match pin {
                PinPolicy::Never => true,
                PinPolicy::Once => session.is_verified(),
                PinPolicy::Always => false,
            };
        settled
            .then(|| session.card.operate(self.slot, self.id, operation, input))?
            .ok()
    }

    /// One GENERAL AUTHENTICATE, and before it only what is missing.
    fn operate(
        &self,
        operation: Operation,
        input: &[u8],
        call: &Call,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let connection = &self.token.connection;
        let done = connection.run_alone(call, |s| self.operate_alone(s, operation, input))?;
        if let Some(done) = done {
            return Ok(done);
        }
        connection.run(call, How::REPEAT, |session| {
            let (pin, touch) = self.policies(session)?;
            match pin {
                PinPolicy::Never => {}
                PinPolicy::Once => drop(session.verify()?),
                PinPolicy::Always => session.verify_for_one()?,
            }
            let touched = touch != TouchPolicy::Never;
            let token = || self.token.info.id.clone();
            if touched {
                call.tell(&Event::TouchNeeded { token: token() });
            }
            let done = session.card.operate(self.slot, self.id, operation, input);
            if touched {
                call.tell(&Event::PersonDone { token: token() });
            }
            match done {
                Err(fault) => Err(self.explain(session, fault, operation, pin, touched)),
                done => done,
            }
        })
    }

    /// What a refusal means.
    fn explain(
        &self,
        session: &mut Session<'_>,
        fault: Fault,
        operation: Operation,
        pin: PinPolicy,
        touched: bool,
    ) -> Fault {
        let Some(status) = fault.status() else {
            return fault;
        };
        // With the PIN given, or not needed, only the touch can have been missing.
        if touched
            && matches!(status, Status::SECURITY | Status::CONDITIONS)
            && (pin == PinPolicy::Never
                || matches!(
                    session.card.in_any_case(|card| card.tries()),
                    Ok(Tries::Verified)
                ))
        {
            // Unless it is another key by now, which wants more.
            return match self.examine(session) {
                Err(Fault::Ours(
                    reason @ (Error::KeyNotFound { .. } | Error::KeyMismatch { .. }),
                )) => Fault::Ours(reason),
                _ => Fault::Ours(Error::NotTouched {
                    token: self.token.info.id.clone(),
                }),
            };
        }
        if operation == Operation::Sign && status == Status::WRONG_LENGTH {
            return Fault::Ours(Error::BadMessage {
                reason: "it is too long for the card".into(),
            });
        }
        // Otherwise it is tried again after a SELECT.
        if session.fresh
            && let Err(Fault::Ours(reason)) = self.examine(session)
        {
            return Fault::Ours(reason);
        }
        fault
    }
}

/// Neither the command nor its reply is cut into pieces up to here.
const LONGEST_IN_ONE_COMMAND: usize = 128;

struct PivSigner(Key);

/// `DigestInfo` of SHA-256, without the digest (RFC 8017 §9.2, note 1).
const SHA256_DIGEST_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
    0x00, 0x04, 0x20,
];

/// Ed25519 signs the message itself (RFC 8032 §5.1.6), so it has to fit into the card:
/// YubiKeys take about 3 KiB in one command, chained or not.
pub const LONGEST_ED25519_MESSAGE: usize = 3000;

/// EMSA-PKCS1-v1_5 with SHA-256 (RFC 8017 §9.2): cards take the block as it is.
fn padded(message: &[u8], length: usize) -> Option<Vec<u8>> {
    let info = [&SHA256_DIGEST_INFO[..], &Sha256::digest(message)].concat();
    let padding = length.checked_sub(info.len() + 3).filter(|n| *n >= 8)?;
    Some([&[0, 1][..], &vec![0xff; padding], &[0], &info].concat())
}

/// What the card is given for a signature of `message`; `None` where its keys of this
/// kind make none.
pub(crate) fn to_be_signed(algorithm: Algorithm, message: &[u8]) -> Option<Cow<'_, [u8]>> {
    Some(match SignatureScheme::of(algorithm)? {
        SignatureScheme::Ed25519 => message.into(),
        SignatureScheme::EcdsaP256Sha256 => Sha256::digest(message).to_vec().into(),
        SignatureScheme::EcdsaP384Sha384 => Sha384::digest(message).to_vec().into(),
        SignatureScheme::RsaPkcs1Sha256 => padded(message, algorithm.rsa_bits()? / 8)?.into(),
        _ => return None,
    })
}

impl Signer for PivSigner {
    fn public_key(&self) -> &PublicKey {
        &self.0.public_key
    }

    fn slot(&self) -> SlotId {
        self.0.slot.unmarked()
    }

    /// Ed25519: messages of at most [`LONGEST_ED25519_MESSAGE`] bytes.
    fn sign(&self, message: &[u8], call: &Call) -> Result<Signature, Error> {
        call.check()?;
        let key = &self.0;
        let unsupported = || key.token.unsupported(key.spec);
        let scheme = SignatureScheme::of(key.spec.algorithm).ok_or_else(unsupported)?;
        if scheme == SignatureScheme::Ed25519 && message.len() > LONGEST_ED25519_MESSAGE {
            return Err(Error::BadMessage {
                reason: format!(
                    "with Ed25519 this token signs at most {LONGEST_ED25519_MESSAGE} bytes"
                ),
            });
        }
        let input = to_be_signed(key.spec.algorithm, message).ok_or_else(unsupported)?;
        let bytes = key.operate(Operation::Sign, &input, call)?;
        let signature = Signature::from_der(scheme, &bytes).ok();
        let signature = signature.filter(|s| key.public_key.verify(message, s).is_ok());
        if let Some(signature) = signature {
            return Ok(signature);
        }
        // It is checked here since nothing else would show that somebody else made a
        // new key in the slot.
        let connection = &key.token.connection;
        connection.run(call, How::FRESH, |session| key.examine(session).map(drop))?;
        Err(Error::MalformedReply {
            token: key.token.info.id.clone(),
            call: "GENERAL AUTHENTICATE".into(),
            reason: "the signature is not one of this key".into(),
        })
    }
}

struct PivDecryptor(Key);

impl Decryptor for PivDecryptor {
    fn public_key(&self) -> &PublicKey {
        &self.0.public_key
    }

    fn slot(&self) -> SlotId {
        self.0.slot.unmarked()
    }

    fn confirm(&self, call: &Call) -> Result<(), Error> {
        let key = &self.0;
        let connection = &key.token.connection;
        connection.run(call, How::FRESH, |session| key.examine(session).map(drop))
    }

    fn unwrap(&self, request: Unwrap<'_>, call: &Call) -> Result<Secret, Error> {
        call.check()?;
        let key = &self.0;
        let Unwrap::Agree { peer } = request else {
            return Err(Error::DecryptionFailed);
        };
        if !is_sound_peer(key.spec.algorithm, peer) {
            return Err(Error::DecryptionFailed);
        }
        let secret = key.operate(Operation::Agree, peer, call)?;
        if secret.len() != 32 {
            return Err(Error::MalformedReply {
                token: key.token.info.id.clone(),
                call: "GENERAL AUTHENTICATE".into(),
                reason: "the secret is not 32 bytes long".into(),
            });
        }
        // Every byte is looked at, whatever it is.
        match secret.iter().fold(0, |all, byte| all | byte) {
            0 => Err(Error::DecryptionFailed),
            _ => Ok(secret),
        }
    }
}

/// Whether the peer's key is one that the card may see: on the curve, in the one form
/// that is agreed, and not of small order.
fn is_sound_peer(algorithm: Algorithm, peer: &[u8]) -> bool {
    match algorithm {
        Algorithm::P256 => {
            peer.len() == 65 && peer[0] == 4 && PublicKey::from_bytes(algorithm, peer).is_ok()
        }
        Algorithm::X25519 => <[u8; 32]>::try_from(peer).is_ok_and(|peer| {
            // Any scalar tells: all are multiples of eight.
            let scalar = x25519_dalek::StaticSecret::from([0x55; 32]);
            scalar.diffie_hellman(&peer.into()).was_contributory()
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_padded_to_the_length_of_the_modulus() {
        let block = padded(b"abc", 256).unwrap();
        assert_eq!(block.len(), 256);
        assert_eq!(block[..3], [0, 1, 0xff]);
        assert_eq!(block[256 - 52], 0);
        assert!(padded(b"abc", 60).is_none());
    }

    #[test]
    fn a_peer_that_gives_a_known_secret_is_not_sound() {
        assert!(is_sound_peer(Algorithm::X25519, &[9; 32]));
        assert!(!is_sound_peer(Algorithm::X25519, &[0; 32]));
        assert!(!is_sound_peer(Algorithm::X25519, &[9; 31]));
        assert!(!is_sound_peer(Algorithm::P256, &[4; 65]));
        assert!(!is_sound_peer(Algorithm::P384, &[4; 97]));
    }
}
