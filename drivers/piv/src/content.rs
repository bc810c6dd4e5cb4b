//! The content of a slot, from all that a card reports about it.

use claviger_token::possession::Challenge;
use claviger_token::{KeyUse, PublicKey, Signature, SignatureScheme, SlotInfo};
use zeroize::Zeroizing;

use crate::apdu::Status;
use crate::attestation;
use crate::block::to_be_signed;
use crate::card::{Card, Metadata, Operation, Shown};
use crate::error::Fault;
use crate::firmware::{Feature, Make, algorithm, algorithm_id};
use crate::marker::{Object, Stage};
use crate::policy::{PinPolicy, TouchPolicy};
use crate::session::Session;
use crate::slot::{Mark, Slot};

/// What is in a slot.
pub(crate) struct Content {
    /// What the card itself says of the key.
    pub(crate) shown: Shown,
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
    /// Whether nobody can know before a generation that there is such a slot.
    untried: bool,
}

/// The key that overwrote one of ours.
pub(crate) struct Filler {
    pub(crate) public_key: PublicKey,
    /// Whether the card shows that this is the key in the slot, or that there is none.
    pub(crate) shown: bool,
}

/// Looks into a slot. Needs no PIN.
pub(crate) fn inspect(card: &mut Card<'_>, make: &Make, slot: Slot) -> Result<Content, Fault> {
    let shown = match make.has(Feature::Metadata) {
        true => card.shown(slot)?,
        false => Shown::Silent,
    };
    let certificate = card.object(slot.certificate())?;
    let object = certificate.as_ref().map(|content| Object::parse(content));
    let certificate = certificate.unwrap_or_default();
    let attestation = match shown == Shown::Silent && make.has(Feature::Attestation) {
        true => card.attest(slot)?,
        false => None,
    };
    let certified = match &object {
        Some(Object::Ours(marker)) => marker.public_key.clone(),
        Some(Object::Certificate { public_key, .. }) => public_key.clone(),
        Some(Object::Void(_) | Object::Other) | None => None,
    };
    let public_key = match (&shown, &attestation) {
        (Shown::Key(metadata), _) => metadata.public_key.clone().or(certified),
        // A certificate says nothing where the card says that there is no key.
        (Shown::Nothing, _) => None,
        (Shown::Silent, Some(leaf)) => attestation::key_of(leaf),
        (Shown::Silent, None) => certified,
    };
    let content = Content {
        shown,
        object,
        certificate,
        attestation,
        public_key,
        filler: None,
        untried: slot.is_retired() && !make.is_yubicos(),
    };
    Ok(match &content.object {
        // Else somebody made a key there without a look at the certificate.
        Some(Object::Void(filler))
            if !content.has_key() || content.public_key.as_ref() == Some(filler) =>
        {
            let filler = Filler {
                public_key: filler.clone(),
                shown: content.is_certain(),
            };
            Content {
                shown: Shown::Nothing,
                object: None,
                attestation: None,
                public_key: None,
                filler: Some(filler),
                untried: false,
                ..content
            }
        }
        _ => content,
    })
}

/// All slots, as far as they are visible without a PIN.
pub(crate) fn visible(card: &mut Card<'_>, make: &Make) -> Result<Vec<SlotInfo>, Fault> {
    let slots = Slot::all().map(|slot| Ok(inspect(card, make, slot)?.info(slot)));
    slots.collect()
}

/// Whether a slot of a card that does not show its keys holds the private half of `key`:
/// by a signature, or by an agreement where it does not sign. Needs the PIN.
pub(crate) fn holds(session: &mut Session<'_>, slot: Slot, key: &PublicKey) -> Result<bool, Fault> {
    let algorithm = key.algorithm();
    let mark = Mark::random();
    let text = mark.as_bytes();
    let challenge = Challenge::new(key);
    let usual = SignatureScheme::of(algorithm);
    let to_sign = usual.and_then(|scheme| to_be_signed(algorithm, scheme, text));
    let (operation, input) = match (to_sign, &challenge) {
        (Some(input), _) => (Operation::Sign, input),
        (None, Some(challenge)) => (Operation::Agree, challenge.sent().into()),
        (None, None) => return Ok(false),
    };
    let Some(id) = algorithm_id(algorithm) else {
        return Ok(false);
    };
    // Whatever its policy is.
    if PinPolicy::customary(slot) != PinPolicy::Never {
        session.verify_for_one()?;
    }
    let answer = match session.card.operate(slot, id, operation, &input) {
        // For an empty slot piv-authenticator 0.7.0 says that the conditions of use are not met.
        Err(Fault::Status { status, .. })
            if says_no_such_key(status) || status == Status::CONDITIONS =>
        {
            return Ok(false);
        }
        answer => answer?,
    };
    Ok(match (SignatureScheme::of(algorithm), challenge) {
        (Some(scheme), _) => Signature::from_der(scheme, &answer)
            .is_ok_and(|signature| key.verify(text, &signature).is_ok()),
        (None, challenge) => challenge.is_some_and(|c| c.is_answered_by(&answer)),
    })
}

pub(crate) fn says_no_such_key(status: Status) -> bool {
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
/// certificate for. So each kind of key is asked for a signature or an agreement: of an
/// empty slot the card says that it has no such key, of any other it says something else.
/// Some cards say of an empty slot that the conditions are not satisfied, whatever the
/// kind; said of some kinds only, it is about a key. Needs the PIN.
pub(crate) fn key_may_be_there(
    session: &mut Session<'_>,
    make: &Make,
    slot: Slot,
) -> Result<bool, Fault> {
    // RSA-1024, RSA-2048, P-256, P-384, with a block of the right length.
    const KINDS: [(u8, usize); 4] = [(0x06, 128), (0x07, 256), (0x11, 32), (0x14, 48)];
    // RSA-3072, RSA-4096, Ed25519 and X25519, which few cards have.
    const NAMED: [(u8, usize); 4] = [(0x05, 384), (0x16, 512), (0xe0, 32), (0xe1, 32)];
    let (others, named) = match make {
        Make::Plain { named } => (true, named.clone()),
        Make::Stated { .. } => {
            let stated = make.supports().into_iter();
            let ids = stated.filter_map(|spec| algorithm_id(spec.algorithm));
            (true, ids.collect())
        }
        Make::Yubico(_) => (false, Vec::new()),
    };
    session.verify()?;
    // What was said of kinds that the card has.
    let (mut conditions, mut no_such_key) = (false, false);
    let also = NAMED.into_iter().filter(|(id, _)| named.contains(id));
    for (id, length) in KINDS.into_iter().chain(also) {
        let mut block = vec![0xff; length];
        block[0] = 0;
        let operation = match id {
            0xe1 => Operation::Agree,
            _ => Operation::Sign,
        };
        let answer = session.card.operate(slot, id, operation, &block);
        match answer {
            Err(Fault::Status { status, .. }) if says_no_such_key(status) => {
                no_such_key |= named.is_empty() || named.contains(&id);
            }
            Err(Fault::Status { status, .. }) if others && status == Status::CONDITIONS => {
                conditions = true;
            }
            Ok(_) | Err(Fault::Status { .. } | Fault::Malformed { .. }) => return Ok(true),
            Err(fault) => return Err(fault),
        }
    }
    Ok(conditions && no_such_key)
}

impl Content {
    fn metadata(&self) -> Option<&Metadata> {
        match &self.shown {
            Shown::Key(metadata) => Some(metadata),
            Shown::Nothing | Shown::Silent => None,
        }
    }

    /// Whether the card shows a key here.
    pub(crate) fn has_key(&self) -> bool {
        self.metadata().is_some() || self.attestation.is_some()
    }

    /// Whether the card itself says what is here, or that nothing is. What a certificate
    /// says may be stale: the key that it is about may have gone, or be another.
    pub(crate) fn is_certain(&self) -> bool {
        match &self.shown {
            Shown::Key(metadata) => metadata.public_key.is_some() || self.public_key.is_none(),
            Shown::Nothing => true,
            Shown::Silent => self.attestation.is_some(),
        }
    }

    /// Whether the card shows that the key was brought from elsewhere.
    pub(crate) fn is_imported(&self) -> bool {
        self.metadata().and_then(|m| m.generated) == Some(false)
    }

    /// Whether there is anything here that a new key would be in the way of.
    pub(crate) fn is_occupied(&self) -> bool {
        self.has_key() || self.object.is_some()
    }

    pub(crate) fn public_key(&self) -> Option<&PublicKey> {
        self.public_key.as_ref()
    }

    /// Whether the certificate is about this key, and the card does not say that it has it.
    pub(crate) fn names(&self, key: &PublicKey) -> bool {
        !self.is_certain() && self.public_key.as_ref() == Some(key)
    }

    /// Whether the certificate is Claviger's.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self.object, Some(Object::Ours(_)))
    }

    /// Whether the certificate says that an identity has this key.
    pub(crate) fn is_named(&self, key: &PublicKey) -> bool {
        match &self.object {
            Some(Object::Ours(marker)) => {
                marker.stage == Stage::Named && marker.public_key.as_ref() == Some(key)
            }
            _ => false,
        }
    }

    /// What the key is for: what its certificate says, if it is about this key, else
    /// what is customary for the slot.
    pub(crate) fn uses(&self, slot: Slot) -> Vec<KeyUse> {
        let Some(key) = &self.public_key else {
            return Vec::new();
        };
        let mut uses = match self.certified_uses() {
            Some(uses) => uses,
            None => slot.customary_uses().to_vec(),
        };
        uses.retain(|usage| key.algorithm().can(*usage));
        uses
    }

    /// What the certificate says that the key is for, if it is about this key and says so.
    pub(crate) fn certified_uses(&self) -> Option<Vec<KeyUse>> {
        let key = self.public_key.as_ref()?;
        match &self.object {
            // While it is being made its certificate does not name it.
            Some(Object::Ours(marker))
                if marker.public_key.as_ref().is_none_or(|named| named == key) =>
            {
                Some(vec![marker.usage])
            }
            Some(Object::Certificate {
                public_key: Some(certified),
                uses: Some(uses),
                ..
            }) if certified == key => Some(uses.clone()),
            _ => None,
        }
    }

    /// When the key wants the PIN and a touch. Of a key that may want a touch and does
    /// not say so nobody is told that it waits.
    pub(crate) fn policies(&self, slot: Slot) -> (PinPolicy, TouchPolicy) {
        let (pin, touch) = match (self.metadata(), &self.attestation) {
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
        let known = self.metadata().and_then(|m| algorithm(m.algorithm?));
        let mut info = match self.is_occupied() {
            true => SlotInfo::occupied(slot.unmarked()),
            false => SlotInfo::free(slot.unmarked()),
        };
        info.algorithm = known;
        info.uses = self.uses(slot);
        info.label = self.label().into();
        info.notes = self.notes(slot);
        match self.public_key.clone() {
            Some(key) => info.with_key(key),
            None => info,
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
        if let Some(generated) = self.metadata().and_then(|m| m.generated) {
            note("origin", if generated { "generated" } else { "imported" });
        }
        if self.filler.is_some() {
            note("claviger", "emptied");
        }
        if self.public_key.is_some() && !self.is_certain() {
            note("public_key", "as its certificate says, not proven");
        }
        if self.untried && !self.is_occupied() {
            note("slot", "not tried");
        }
        match &self.object {
            Some(Object::Ours(marker)) => note(
                "claviger",
                match marker.stage {
                    Stage::Named => "made",
                    Stage::Unfinished | Stage::Doomed => "unfinished",
                },
            ),
            Some(_) if !self.has_key() && self.public_key.is_none() => {
                note("certificate", "without a key");
            }
            _ => {}
        }
        notes
    }
}
