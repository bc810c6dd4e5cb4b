//! What is in a slot, from all that a card tells of it.

use claviger_token::{KeyUse, PublicKey, Signature, SignatureScheme, SlotInfo, SlotState};
use zeroize::Zeroizing;

use crate::apdu::Status;
use crate::attestation;
use crate::card::{Card, Metadata, Operation};
use crate::connection::Session;
use crate::error::Fault;
use crate::firmware::{Feature, Make, algorithm, algorithm_id};
use crate::marker::Object;
use crate::policy::{PinPolicy, TouchPolicy};
use crate::slot::{Mark, Slot};
use crate::token::to_be_signed;

/// What is in a slot.
pub(crate) struct Content {
    /// The key, on cards with metadata.
    pub(crate) metadata: Option<Metadata>,
    /// What the certificate object is.
    pub(crate) object: Option<Object>,
    /// The certificate object as it is; empty where there is none.
    pub(crate) certificate: Zeroizing<Vec<u8>>,
    /// The card's statement about the key, on cards that attest but have no metadata.
    attestation: Option<Vec<u8>>,
    /// The public key, by the best of these.
    public_key: Option<PublicKey>,
    /// What fills the slot in place of a key that was destroyed. Then all else is as in
    /// an empty slot.
    pub(crate) filler: Option<Filler>,
}

/// The key that overwrote one of ours.
pub(crate) struct Filler {
    pub(crate) public_key: PublicKey,
    /// Whether the card shows that this is the key in the slot, or that there is none.
    pub(crate) shown: bool,
}

/// Looks into a slot. Needs no PIN.
pub(crate) fn inspect(card: &mut Card<'_>, make: &Make, slot: Slot) -> Result<Content, Fault> {
    let knows = make.has(Feature::Metadata);
    let metadata = match knows {
        true => card.metadata(slot.reference())?,
        false => None,
    };
    let certificate = card.object(slot.certificate())?;
    let object = certificate.as_ref().map(|content| Object::parse(content));
    let certificate = certificate.unwrap_or_default();
    let attestation = match !knows && make.has(Feature::Attestation) {
        true => card.attest(slot)?,
        false => None,
    };
    let certified = match &object {
        Some(Object::Ours(marker)) => marker.public_key.clone(),
        Some(Object::Certificate { public_key, .. }) => public_key.clone(),
        Some(Object::Void(_) | Object::Other) | None => None,
    };
    let public_key = match (&metadata, &attestation) {
        (Some(metadata), _) => metadata.public_key.clone(),
        (None, Some(leaf)) => attestation::key_of(leaf),
        // A certificate says nothing where the card says that there is no key.
        (None, None) if knows => None,
        (None, None) => certified,
    };
    if let Some(Object::Void(filler)) = &object {
        let has_key = metadata.is_some() || attestation.is_some();
        // Else somebody made a key there without a look at the certificate.
        if !has_key || public_key.as_ref() == Some(filler) {
            return Ok(Content {
                metadata: None,
                object: None,
                certificate,
                attestation: None,
                public_key: None,
                filler: Some(Filler {
                    public_key: filler.clone(),
                    shown: has_key || knows,
                }),
            });
        }
    }
    Ok(Content {
        metadata,
        object,
        certificate,
        attestation,
        public_key,
        filler: None,
    })
}

/// Whether a slot of a card that does not show its keys holds the private half of `key`,
/// by a signature. Of keys that cannot sign it is believed. Needs the PIN.
pub(crate) fn holds(session: &mut Session<'_>, slot: Slot, key: &PublicKey) -> Result<bool, Fault> {
    let algorithm = key.algorithm();
    let mark = Mark::random();
    let challenge = mark.as_bytes();
    let (Some(id), Some(scheme), Some(input)) = (
        algorithm_id(algorithm),
        SignatureScheme::of(algorithm),
        to_be_signed(algorithm, challenge),
    ) else {
        return Ok(true);
    };
    // Whatever its policy is.
    session.verify_for_one()?;
    match session.card.operate(slot, id, Operation::Sign, &input) {
        Ok(bytes) => {
            let signature = Signature::from_der(scheme, &bytes).ok();
            Ok(signature.is_some_and(|s| key.verify(challenge, &s).is_ok()))
        }
        Err(Fault::Status { status, .. }) if says_no_such_key(status) => Ok(false),
        Err(fault) => Err(fault),
    }
}

fn says_no_such_key(status: Status) -> bool {
    matches!(
        status,
        Status::WRONG_DATA
            | Status::NOT_SUPPORTED
            | Status::NOT_FOUND
            | Status::WRONG_P1_P2
            | Status::NO_REFERENCE
    )
}

/// Whether there may be a key in a slot that shows nothing.
///
/// Cards without metadata do not tell of keys that were imported, or that nobody wrote a
/// certificate for. So each kind of key is asked for a signature: of an empty slot the
/// card says that it has no such key, of any other it says something else. Some cards
/// say of an empty slot that the conditions are not satisfied, whatever the kind; said of
/// some kinds only, it is about a key. Needs the PIN.
pub(crate) fn key_may_be_there(
    session: &mut Session<'_>,
    make: &Make,
    slot: Slot,
) -> Result<bool, Fault> {
    // RSA-1024, RSA-2048, P-256, P-384, with a block of the right length.
    const KINDS: [(u8, usize); 4] = [(0x06, 128), (0x07, 256), (0x11, 32), (0x14, 48)];
    // RSA-3072 and RSA-4096, which few cards have.
    const NAMED: [(u8, usize); 2] = [(0x05, 384), (0x16, 512)];
    if make.has(Feature::Metadata) {
        return Ok(false);
    }
    let (plain, named) = match make {
        Make::Plain { named } => (true, &named[..]),
        Make::Yubico(_) => (false, &[][..]),
    };
    session.verify()?;
    // What was said of kinds that the card has.
    let (mut conditions, mut no_such_key) = (false, false);
    let also = NAMED.into_iter().filter(|(id, _)| named.contains(id));
    for (id, length) in KINDS.into_iter().chain(also) {
        let mut block = vec![0xff; length];
        block[0] = 0;
        let answer = session.card.operate(slot, id, Operation::Sign, &block);
        match answer {
            Err(Fault::Status { status, .. }) if says_no_such_key(status) => {
                no_such_key |= named.is_empty() || named.contains(&id);
            }
            Err(Fault::Status { status, .. }) if plain && status == Status::CONDITIONS => {
                conditions = true;
            }
            Ok(_) | Err(Fault::Status { .. } | Fault::Malformed { .. }) => return Ok(true),
            Err(fault) => return Err(fault),
        }
    }
    Ok(conditions && no_such_key)
}

impl Content {
    /// Whether the card shows a key here.
    pub(crate) fn has_key(&self) -> bool {
        self.metadata.is_some() || self.attestation.is_some()
    }

    /// Whether the card shows that the key was brought from elsewhere.
    pub(crate) fn is_imported(&self) -> bool {
        let generated = self.metadata.as_ref().and_then(|m| m.generated);
        generated == Some(false)
    }

    /// Whether there is anything here that a new key would be in the way of.
    pub(crate) fn is_occupied(&self) -> bool {
        self.has_key() || self.object.is_some()
    }

    pub(crate) fn public_key(&self) -> Option<&PublicKey> {
        self.public_key.as_ref()
    }

    /// What the key is for: what its certificate says, if it is about this key, else
    /// what is customary for the slot.
    pub(crate) fn uses(&self, slot: Slot) -> Vec<KeyUse> {
        let Some(key) = &self.public_key else {
            return Vec::new();
        };
        let said = match &self.object {
            Some(Object::Ours(marker)) if marker.public_key.as_ref() == Some(key) => {
                Some(vec![marker.usage])
            }
            Some(Object::Certificate {
                public_key: Some(certified),
                uses: Some(uses),
                ..
            }) if certified == key => Some(uses.clone()),
            _ => None,
        };
        let mut uses = said.unwrap_or_else(|| slot.customary_uses().to_vec());
        uses.retain(|usage| key.algorithm().can(*usage));
        uses
    }

    /// When the key wants the PIN and a touch. Of a key that may want a touch and does
    /// not say so nobody is told that it waits.
    pub(crate) fn policies(&self, slot: Slot) -> (PinPolicy, TouchPolicy) {
        let (pin, touch) = match (&self.metadata, &self.attestation) {
            (Some(metadata), _) => (metadata.pin, metadata.touch),
            (None, Some(leaf)) => attestation::policies_of(leaf),
            (None, None) => (None, None),
        };
        (
            pin.unwrap_or(PinPolicy::customary(slot)),
            touch.unwrap_or(TouchPolicy::Never),
        )
    }

    pub(crate) fn label(&self) -> &str {
        match &self.object {
            Some(Object::Ours(marker)) => &marker.label,
            Some(Object::Certificate { label, .. }) => label,
            Some(Object::Void(_) | Object::Other) | None => "",
        }
    }

    /// What is shown of the slot.
    pub(crate) fn info(&self, slot: Slot) -> SlotInfo {
        let key = self.public_key.as_ref();
        let known = self.metadata.as_ref().and_then(|m| algorithm(m.algorithm));
        SlotInfo {
            slot: slot.unmarked(),
            state: match self.is_occupied() {
                true => SlotState::Occupied,
                false => SlotState::Free,
            },
            public_key: key.cloned(),
            algorithm: key.map(PublicKey::algorithm).or(known),
            fingerprint: key.map(|key| key.fingerprint().to_string()),
            uses: self.uses(slot),
            label: self.label().into(),
            notes: self.notes(slot),
        }
    }

    fn notes(&self, slot: Slot) -> Vec<(String, String)> {
        let mut notes = Vec::new();
        let mut note = |name: &str, value: &str| notes.push((name.into(), value.into()));
        if self.has_key() {
            let (pin, touch) = self.policies(slot);
            note("pin_policy", pin.name());
            note("touch_policy", touch.name());
        }
        if let Some(generated) = self.metadata.as_ref().and_then(|m| m.generated) {
            note("origin", if generated { "generated" } else { "imported" });
        }
        if self.filler.is_some() {
            note("claviger", "emptied");
        }
        match &self.object {
            Some(Object::Ours(marker)) if marker.public_key.is_none() => {
                note("claviger", "unfinished");
            }
            Some(Object::Ours(_)) => note("claviger", "made"),
            Some(_) if !self.has_key() && self.public_key.is_none() => {
                note("certificate", "without a key");
            }
            _ => {}
        }
        notes
    }
}
