//! The conformance suite on virtual cards in this process: YubiKeys of each kind of
//! firmware, and a card of the plain standard. On a YubiKey behind PC/SC it runs in the
//! workspace's tests.

use std::sync::{Arc, OnceLock};

use crate::common::{Desk, PIN, access, plain_card};
use claviger_conformance::{CHECKS, Others, Outcome, Plug, Subject};
use claviger_piv::{LONGEST_ED25519_MESSAGE, PivDriver};
use claviger_token::{Access, Driver, FixedPin};
use claviger_virtual_yubikey::{Card, Device, Firmware, Neighbour, object};

struct Virtual {
    desk: Desk,
    device: Device,
    neighbour: Neighbour,
    /// Whether the card itself does, and not only its certificates.
    shows_keys: bool,
    driver: OnceLock<Arc<PivDriver>>,
}

impl Virtual {
    fn yubikey(firmware: Firmware) -> Self {
        let card = Card::builder().firmware(firmware).pin(PIN);
        Virtual::new(Device::new(card.build()))
    }

    fn new(device: Device) -> Self {
        let shows_keys = device.card().object(object::CHUID).is_none();
        Virtual {
            desk: Desk::with(&[&device]),
            neighbour: match shows_keys {
                true => Neighbour::on(device.clone()),
                false => Neighbour::on_a_card_that_hides_keys(device.clone()),
            },
            shows_keys,
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
        let found = self
            .driver()
            .tokens("piv:", &claviger_token::Call::unlimited())
            .unwrap();
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
        Ok(&self.neighbour)
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
            || (!subject.shows_keys && NOT_HIDDEN.contains(&check.name));
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
