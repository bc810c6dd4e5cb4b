//! Another tool that works on a virtual card, as the conformance suite wants one.

use claviger_conformance::Others;
use claviger_token::{Algorithm, KeyRef, KeySpec, PublicKey, SlotId};

use crate::card::{Card, Origin};
use crate::faults::Device;
use crate::keys::{self, PrivateKey};
use crate::objects::{Slot, object};

/// Another tool that works on a card. It goes by slots, as such tools do.
pub struct Neighbour {
    device: Device,
    /// Whether the card itself shows which keys it has.
    shows_keys: bool,
}

impl Neighbour {
    /// One that works on this card, which shows which keys it has.
    pub fn on(device: Device) -> Self {
        Neighbour {
            device,
            shows_keys: true,
        }
    }

    /// One that works on this card, which does not show which keys it has: others know it by
    /// certificates.
    pub fn on_a_card_that_hides_keys(device: Device) -> Self {
        Neighbour {
            device,
            shows_keys: false,
        }
    }

    /// Where the card has the key.
    fn slot_of(&self, key: &PublicKey) -> Option<Slot> {
        let card = self.device.card();
        let is_it = |slot: &Slot| card.key(*slot).and_then(public) == Some(key.clone());
        Slot::all().find(is_it)
    }
}

/// The slot for a pair that is none: nobody else's key is there.
const MISMATCHED: u8 = 0x90;

impl Others for Neighbour {
    fn add_beside(&self, _: &KeyRef) -> Result<PublicKey, &'static str> {
        Err("a slot of a card holds one key")
    }

    fn replace(&self, key: &KeyRef) -> Result<PublicKey, &'static str> {
        let foreign = generate(key.public_key.algorithm())?;
        let shown = public(&foreign).ok_or(NOT_READ)?;
        let mut card = self.device.card();
        card.put_key(slot(&key.slot)?, foreign, Origin::Generated);
        Ok(shown)
    }

    fn move_key(&self, key: &KeyRef) -> Result<(), &'static str> {
        if !self.shows_keys {
            return Err("this card moves no keys");
        }
        let mut card = self.device.card();
        let occupied = card.occupied();
        let retired =
            Slot::all().filter(|slot| slot.reference() < Slot::AUTHENTICATION.reference());
        let free = retired.filter(|slot| !occupied.contains(slot)).last();
        card.relocate_key(slot(&key.slot)?, free.ok_or("there is no free slot")?);
        Ok(())
    }

    fn unname(&self, key: &KeyRef) -> Result<(), &'static str> {
        if !self.shows_keys {
            return Err("this card shows keys by their certificates only");
        }
        let certificate = object::certificate(slot(&key.slot)?);
        let removed = self.device.card().put_object(certificate, &[]);
        removed.map_err(|_| NOT_WRITTEN)
    }

    fn mismatch(&self, spec: KeySpec) -> Result<KeyRef, &'static str> {
        let (shown, there) = (generate(spec.algorithm)?, generate(spec.algorithm)?);
        let certificate = shown.certificate_object().ok_or("no certificate")?;
        let slot = Slot::new(MISMATCHED).ok_or(NO_SLOT)?;
        let mut card = self.device.card();
        card.put_object(object::certificate(slot), &certificate)
            .map_err(|_| NOT_WRITTEN)?;
        card.put_key(slot, there, Origin::Imported);
        Ok(KeyRef {
            slot: SlotId::new(format!("{MISMATCHED:x}")),
            public_key: public(&shown).ok_or(NOT_READ)?,
        })
    }

    fn has(&self, key: &PublicKey) -> bool {
        self.slot_of(key).is_some()
    }

    fn remove(&self, key: &PublicKey) {
        let found = self.slot_of(key);
        let mut card = self.device.card();
        let doomed = Slot::all().filter(|slot| *slot != Slot::ATTESTATION);
        let doomed: Vec<Slot> = doomed
            .filter(|slot| Some(*slot) == found || is_certified(&card, *slot, key))
            .collect();
        for slot in doomed {
            card.remove_key(slot);
            // Nothing is removed where nothing is.
            let _ = card.put_object(object::certificate(slot), &[]);
        }
    }
}

const NO_SLOT: &str = "the card has no such slot";
const NOT_READ: &str = "its public half cannot be read";
const NOT_WRITTEN: &str = "the card does not take it";

/// Whether the slot's certificate names this key.
fn is_certified(card: &Card, slot: Slot, key: &PublicKey) -> bool {
    let object = card.object(object::certificate(slot)).unwrap_or_default();
    key.to_der()
        .is_some_and(|der| object.windows(der.len()).any(|part| part == der))
}

fn public(key: &PrivateKey) -> Option<PublicKey> {
    PublicKey::from_der(&key.spki()).ok()
}

fn slot(id: &SlotId) -> Result<Slot, &'static str> {
    let reference = u8::from_str_radix(id.name(), 16).ok();
    reference.and_then(Slot::new).ok_or(NO_SLOT)
}

fn generate(algorithm: Algorithm) -> Result<PrivateKey, &'static str> {
    let algorithm = match algorithm {
        Algorithm::P256 => keys::Algorithm::P256,
        Algorithm::P384 => keys::Algorithm::P384,
        Algorithm::Ed25519 => keys::Algorithm::Ed25519,
        Algorithm::X25519 => keys::Algorithm::X25519,
        Algorithm::Rsa2048 => keys::Algorithm::Rsa2048,
        _ => return Err("the other tool makes no such keys"),
    };
    Ok(PrivateKey::generate(algorithm))
}
