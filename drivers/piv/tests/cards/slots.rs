//! What is in a slot, and who may take it.

use std::sync::{Arc, Mutex};

use claviger_piv::PivDriver;
use claviger_piv::apdu::Lost;
use claviger_piv::reader::{Link, Readers, Unreachable};
use claviger_token::{
    Access, Algorithm, Call, Deletion, Driver, Error, KeyRef, Pin, PinSource, SlotId, SlotState,
    TokenId,
};
use claviger_virtual_yubikey::{
    Algorithm as CardAlgorithm, Card, Device, Firmware, PrivateKey, Slot, ins, object,
};

use crate::common::*;
use crate::stage::*;

/// A source of the management key that does something first.
struct Meanwhile<F>(F);

impl<F: Fn() + Send + Sync> PinSource for Meanwhile<F> {
    fn pin(&self, _: &TokenId, _: &str, _: &Call) -> Result<Pin, Error> {
        (self.0)();
        Ok(MANAGEMENT_KEY.into())
    }
}

/// There is no service to ask.
struct NoService;

impl Readers for NoService {
    fn list(&self) -> Result<Vec<String>, Unreachable> {
        Err(Unreachable {
            what: "the smartcard service cannot be reached".into(),
            reason: "pcscd is not running".into(),
        })
    }

    fn connect(&self, _: &str) -> Result<Box<dyn Link>, Lost> {
        Err(Lost::new("there is no service"))
    }
}

#[test]
fn a_card_without_a_token_open_shows_everything_but_needs_no_pin() {
    let device = Device::new(
        Card::builder()
            .pin(PIN)
            .generated(Slot::new(0x9a).unwrap(), CardAlgorithm::P256)
            .build(),
    );
    let driver = Desk::with(&[&device]).driver();
    let found = driver.tokens("piv:", &Call::unlimited()).unwrap().remove(0);
    assert_eq!(found.model, "YubiKey 5.7.1");
    assert_eq!(found.id.manufacturer, "Yubico");
    assert_eq!(found.id.serial, device.card().serial().to_string());
    let note = |name: &str| {
        let mut notes = found.notes.iter();
        notes
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    };
    assert_eq!(note("firmware"), Some("5.7.1"));
    assert_eq!(note("pin_tries"), Some("3"));
    assert_eq!(note("puk_tries"), Some("3"));
    assert_eq!(note("management_key"), Some("aes192"));
    assert_eq!(note("management_key_protected"), Some("false"));
    let slots = visible(&driver, &found).unwrap();
    assert_eq!(slots.len(), 24);
    assert_eq!(slots[0].slot.as_str(), "9a");
    assert_eq!(slots[0].state, SlotState::Occupied);
    assert_eq!(slots[0].algorithm, Some(Algorithm::P256));
    assert!(slots[0].public_key.is_some());
    assert!(slots[1..].iter().all(|slot| slot.state == SlotState::Free));
    assert_eq!(device.faults().count(ins::VERIFY), 0);
}

#[test]
fn two_cards_are_not_guessed_between() {
    let (one, two) = (yubikey(), yubikey());
    let driver = Desk::with(&[&one, &two]).driver();
    match driver.open("piv:", &call().using(access())) {
        Err(Error::AmbiguousToken { candidates, .. }) => {
            let serials = [&one, &two].map(|d| format!("piv:serial={}", d.card().serial()));
            assert_eq!(candidates, serials);
            driver
                .open(&candidates[1], &call().using(access()))
                .unwrap();
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("opened"),
    }
    assert_eq!(one.faults().count(ins::VERIFY), 0);
}

#[test]
fn a_key_that_shows_nothing_is_not_overwritten() {
    for algorithm in [
        CardAlgorithm::P256,
        CardAlgorithm::P384,
        CardAlgorithm::Rsa2048,
    ] {
        let key = PrivateKey::generate(algorithm);
        let slot = Slot::new(0x82).unwrap();
        let card = Card::builder().firmware(Firmware::V5_2_4).pin(PIN);
        let device = Device::new(card.imported(slot, key).build());
        let token = open(&Desk::with(&[&device]));
        let free = token.free_slots(&[P256], &[], &call()).unwrap();
        assert_eq!(free[0].name(), "83");
        assert!(matches!(
            generate(&*token, &SlotId::new("82"), P256),
            Err(Error::SlotOccupied { .. })
        ));
    }
}

#[test]
fn of_two_who_make_a_key_in_one_slot_the_second_is_told_and_changes_nothing() {
    for card in CANNOT_DELETE.into_iter().chain([yubikey as fn() -> Device]) {
        let device = card();
        let desk = Desk::with(&[&device]);
        let first = open(&desk);
        let theirs = first.free_slots(&[P256], &[], &call()).unwrap().remove(0);
        // The first is quicker while the second is asked for the management key.
        let made: Arc<Mutex<Option<KeyRef>>> = Arc::default();
        let (quick, slot, done) = (first.clone(), theirs.clone(), made.clone());
        let quicker = move || {
            let public_key = generate(&*quick, &slot, P256).unwrap().public_key;
            let slot = slot.clone();
            *done.lock().unwrap() = Some(KeyRef { slot, public_key });
        };
        let slower = Access {
            management_keys: Arc::new(Meanwhile(quicker)),
            ..access()
        };
        let slower = Call::unlimited().using(slower);
        let second = desk.driver().open("piv:", &slower).unwrap();
        let ours = second.free_slots(&[P256], &[], &call()).unwrap().remove(0);
        assert_eq!(ours.name(), theirs.name());
        assert_ne!(ours, theirs);
        let counts = counted(&device, || {
            assert!(matches!(
                generate_by(&*second, &ours, P256, &slower),
                Err(Error::SlotOccupied { .. })
            ));
        });
        assert_eq!(counts[&ins::GENERATE], 1, "the first one's");
        assert_eq!(discard(&*second, &ours).unwrap(), Deletion::Foreign);
        let key = made.lock().unwrap().take().unwrap();
        let signer = first.signer(&key, &Call::unlimited()).unwrap();
        signer.sign(b"message", &call()).unwrap();
        let next = second.free_slots(&[P256], &[], &call()).unwrap();
        assert_eq!(next[0].name(), "83");
    }
}

#[test]
fn a_slot_that_is_taken_is_not_called_free_whatever_its_mark_is() {
    let device = yubikey();
    let token = open(&Desk::with(&[&device]));
    let [first, second] = [0, 1].map(|at| {
        let slots = token.free_slots(&[P256; 2], &[], &call()).unwrap();
        slots[at].clone()
    });
    for taken in [first, SlotId::new("82")] {
        let free = token.free_slots(&[P256], &[taken], &call()).unwrap();
        assert_eq!(free[0].name(), "83");
    }
    let taken: Vec<SlotId> = (0x82..=0x95)
        .map(|n| SlotId::new(format!("{n:x}")))
        .collect();
    assert!(matches!(
        token.free_slots(&[P256], &taken, &call()),
        Err(Error::OnlyNamedSlots { left, .. }) if left == ["9a", "9c", "9d", "9e"]
    ));
    let free = token.free_slots(&[P256], &taken[..1], &call()).unwrap();
    assert_eq!(free[0].name(), second.name());
}

#[test]
fn a_key_that_somebody_else_made_in_the_slot_is_not_taken_for_ours() {
    let device = yubikey();
    let desk = Desk::with(&[&device]);
    let (token, other) = (open(&desk), open(&desk));
    let key = make(&*token, P256);
    let signer = token.signer(&key, &Call::unlimited()).unwrap();
    signer.sign(b"message", &call()).unwrap();
    // Behind our back, in another process.
    other.delete(&key, &call()).unwrap();
    let theirs = make(&*other, P256);
    assert_eq!(theirs.slot.name(), key.slot.name());
    let refused = signer.sign(b"message", &call());
    assert!(
        matches!(refused, Err(Error::KeyMismatch { .. })),
        "{refused:?}"
    );
    let deleted = token.delete(&key, &call()).unwrap();
    assert_eq!(deleted, Deletion::Foreign);
    other.signer(&theirs, &Call::unlimited()).unwrap();
}

#[test]
fn no_service_no_reader_and_no_card_are_told_apart() {
    let driver = PivDriver::with_readers(NoService);
    assert_eq!(driver.tokens("piv:", &Call::unlimited()).unwrap(), []);
    assert!(matches!(
        driver.open("piv:", &call().using(access())),
        Err(Error::System { .. })
    ));
    let driver = Desk::default().driver();
    assert_eq!(driver.tokens("piv:", &Call::unlimited()).unwrap(), []);
    assert!(matches!(
        driver.open("piv:", &call().using(access())),
        Err(Error::NoToken { present, .. }) if present.is_empty()
    ));
    let device = yubikey();
    let driver = Desk::with(&[&device]).driver();
    assert!(matches!(
        driver.open("piv:serial=1", &call().using(access())),
        Err(Error::NoToken { present, .. }) if present.len() == 1
    ));
}

#[test]
fn an_emptied_slot_says_so_and_is_named_and_used_again() {
    for card in CANNOT_DELETE {
        let device = card();
        let driver = Desk::with(&[&device]).driver();
        let backend = "piv:slot=9c";
        let token = driver
            .open(backend, &call().clone().using(access()))
            .unwrap();
        let mut last = None;
        for _ in 0..3 {
            let slot = driver.named_slot(backend).unwrap().unwrap();
            let made = generate(&*token, &slot, P256).unwrap();
            let public_key = made.public_key;
            let key = KeyRef { slot, public_key };
            let signer = token.signer(&key, &Call::unlimited()).unwrap();
            signer.sign(b"message", &call()).unwrap();
            // What was destroyed before is another key than this.
            if let Some(last) = last.replace(key.clone()) {
                let deleted = token.delete(&last, &call()).unwrap();
                assert_eq!(deleted, Deletion::Foreign);
                signer.sign(b"message", &call()).unwrap();
            }
            let deleted = token.delete(&key, &call()).unwrap();
            assert_eq!(deleted, Deletion::Destroyed);
            assert!(matches!(
                signer.sign(b"message", &call()),
                Err(Error::KeyNotFound { .. })
            ));
            let slots = token.slots(&call()).unwrap();
            assert_eq!(visible(&driver, token.info()).unwrap(), slots);
            let emptied = slots.iter().find(|s| key.slot.is_in(&s.slot)).unwrap();
            assert_eq!(emptied.state, SlotState::Free);
            assert_eq!(emptied.public_key, None);
            assert_eq!(emptied.notes, [("claviger".into(), "emptied".into())]);
            let slot = Slot::new(0x9c).unwrap();
            let card = device.card();
            let object = card.object(object::certificate(slot)).unwrap();
            let text = b"empty (Claviger)";
            assert!(object.windows(text.len()).any(|part| part == text));
        }
    }
}
