//! The conformance suite on virtual cards in this process: YubiKeys of each kind of
//! firmware, and a card of the plain standard. On a YubiKey behind PC/SC it runs in the
//! workspace's tests.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::{Arc, OnceLock};

use claviger_piv::{LONGEST_ED25519_MESSAGE, PivDriver};
use claviger_token::conformance::{CHECKS, Others, Outcome, Plug, Subject};
use claviger_token::{Access, Algorithm, Driver, FixedPin, KeyRef, KeySpec, PublicKey, SlotId};
use claviger_virtual_yubikey::{
    Algorithm as CardAlgorithm, Card, Device, Firmware, Origin, PrivateKey, Slot, object,
};
use common::{Desk, PIN, access, plain_card};

struct Virtual {
    desk: Desk,
    device: Device,
    driver: OnceLock<Arc<PivDriver>>,
}

impl Virtual {
    fn yubikey(firmware: Firmware) -> Self {
        let card = Card::builder().firmware(firmware).pin(PIN);
        Virtual::new(Device::new(card.build()))
    }

    fn new(device: Device) -> Self {
        Virtual {
            desk: Desk::with(&[&device]),
            device,
            driver: OnceLock::new(),
        }
    }
}

impl Subject for Virtual {
    fn driver(&self) -> Arc<dyn Driver> {
        self.driver
            .get_or_init(|| Arc::new(self.desk.driver()))
            .clone()
    }

    fn backend(&self) -> String {
        let found = self.driver().tokens("piv:").unwrap();
        found[0].backend.clone()
    }

    fn access(&self) -> Access {
        access()
    }

    fn wrong_access(&self) -> Result<Access, &'static str> {
        Ok(Access::with(FixedPin::new("135791")))
    }

    fn absent_backend(&self) -> Result<String, &'static str> {
        Ok("piv:serial=4294967295".into())
    }

    fn capacity(&self) -> Result<usize, &'static str> {
        Ok(20)
    }

    fn longest_ed25519_message(&self) -> usize {
        LONGEST_ED25519_MESSAGE
    }

    fn plug(&self) -> Result<&dyn Plug, &'static str> {
        Ok(self)
    }

    fn others(&self) -> Result<&dyn Others, &'static str> {
        Ok(self)
    }
}

fn slot(name: &SlotId) -> Slot {
    Slot::new(u8::from_str_radix(name.name(), 16).unwrap()).unwrap()
}

fn public(key: &PrivateKey) -> PublicKey {
    PublicKey::from_der(&key.spki()).unwrap()
}

fn generate(algorithm: Algorithm) -> PrivateKey {
    PrivateKey::generate(match algorithm {
        Algorithm::P256 => CardAlgorithm::P256,
        Algorithm::X25519 => CardAlgorithm::X25519,
        other => panic!("{other} is not asked for"),
    })
}

impl Virtual {
    fn shows_keys(&self) -> bool {
        self.device.card().object(object::CHUID).is_none()
    }
}

/// Another tool, that works on the card as such.
impl Others for Virtual {
    fn add_beside(&self, _: &KeyRef) -> Result<PublicKey, &'static str> {
        Err("a slot holds one key")
    }

    fn replace(&self, key: &KeyRef) -> Result<PublicKey, &'static str> {
        let private = generate(key.public_key.algorithm());
        let public = public(&private);
        let mut card = self.device.card();
        card.put_key(slot(&key.slot), private, Origin::Generated);
        Ok(public)
    }

    fn move_key(&self, key: &KeyRef) -> Result<(), &'static str> {
        if !self.shows_keys() {
            return Err("this card moves no keys");
        }
        let to = Slot::new(0x95).unwrap();
        self.device.card().relocate_key(slot(&key.slot), to);
        Ok(())
    }

    fn unname(&self, key: &KeyRef) -> Result<(), &'static str> {
        if !self.shows_keys() {
            return Err("this card shows keys by their certificates only");
        }
        let certificate = object::certificate(slot(&key.slot));
        let written = self.device.card().put_object(certificate, &[]);
        written.map_err(|_| "the card does not take it")
    }

    fn mismatch(&self, spec: KeySpec) -> Result<KeyRef, &'static str> {
        let [shown, there] = [0, 1].map(|_| generate(spec.algorithm));
        let mut card = self.device.card();
        let slot = Slot::new(0x90).unwrap();
        let certificate = shown.certificate_object().unwrap();
        let written = card.put_object(object::certificate(slot), &certificate);
        written.map_err(|_| "the card does not take it")?;
        card.put_key(slot, there, Origin::Imported);
        Ok(KeyRef {
            slot: SlotId::new("90"),
            public_key: public(&shown),
        })
    }

    fn has(&self, key: &PublicKey) -> bool {
        let card = self.device.card();
        Slot::all().any(|slot| {
            card.key(slot)
                .is_some_and(|k| k.spki() == key.to_der().unwrap())
        })
    }

    fn remove(&self, key: &PublicKey) {
        let mut card = self.device.card();
        let certified = |card: &Card, slot| {
            let object = card.object(object::certificate(slot)).unwrap_or_default();
            let der = key.to_der().unwrap();
            object.windows(der.len()).any(|part| part == der)
        };
        for slot in Slot::all().filter(|slot| *slot != Slot::ATTESTATION) {
            let is_it = card
                .key(slot)
                .is_some_and(|k| k.spki() == key.to_der().unwrap());
            if is_it || certified(&card, slot) {
                card.remove_key(slot);
                card.put_object(object::certificate(slot), &[]).unwrap();
            }
        }
    }
}

/// What cannot be shown on any smartcard.
const NOWHERE: [&str; 4] = [
    "a_deletion_leaves_a_foreign_key_in_the_same_place",
    "an_unfinished_key_is_discarded_and_a_foreign_one_beside_it_is_not",
    "a_key_is_used_on_a_token_that_generates_none",
    "what_stands_behind_the_token_may_restart",
];
/// And what cannot on one that does not show its keys.
const NOT_HIDDEN: [&str; 2] = [
    "a_key_that_was_moved_is_found_and_deleted",
    "a_key_without_a_name_is_found_and_deleted",
];

impl Plug for Virtual {
    fn remove(&self) {
        self.desk.remove(&self.device);
    }

    fn insert(&self) {
        self.desk.insert(&self.device);
    }
}

/// Runs every check, each on a card of its own. None but those that are named is skipped.
fn conforms(make: impl Fn() -> Virtual) {
    for check in CHECKS {
        println!("{}", check.name);
        let subject = make();
        let skipped = NOWHERE.contains(&check.name)
            || (!subject.shows_keys() && NOT_HIDDEN.contains(&check.name));
        match (check.run(&subject), skipped) {
            (Outcome::Passed, false) => {}
            (Outcome::Skipped(why), true) => eprintln!("SKIPPED {}: {why}", check.name),
            (outcome, _) => panic!("{}: {outcome:?}", check.name),
        }
    }
}

#[test]
fn a_yubikey_5_7_1_does_all_that_a_token_has_to() {
    conforms(|| Virtual::yubikey(Firmware::V5_7_1));
}

#[test]
fn a_yubikey_5_4_3_does_all_that_a_token_has_to() {
    conforms(|| Virtual::yubikey(Firmware::V5_4_3));
}

#[test]
fn a_yubikey_5_2_4_does_all_that_a_token_has_to() {
    conforms(|| Virtual::yubikey(Firmware::V5_2_4));
}

#[test]
fn a_yubikey_4_3_5_does_all_that_a_token_has_to() {
    conforms(|| Virtual::yubikey(Firmware::V4_3_5));
}

#[test]
fn a_card_of_the_plain_standard_does_all_that_a_token_has_to() {
    conforms(|| Virtual::new(plain_card()));
}
