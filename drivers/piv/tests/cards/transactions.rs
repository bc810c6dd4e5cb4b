//! How long a card is kept from other programs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::{Desk, PIN, access, call};
use claviger_token::{
    Access, Algorithm, Call, Driver, Error, KeyRef, KeySpec, NewKey, Pin, PinSource, Token,
    TokenId, possession, unfinished_mark,
};
use claviger_virtual_yubikey::{Card, Device, Fault, Firmware, Nature, Rule, Status, ins};

const P256: KeySpec = KeySpec::sign(Algorithm::P256);

fn yubikey() -> Device {
    Device::new(Card::builder().pin(PIN).build())
}

/// One that states a firmware and is not a YubiKey.
fn canokey() -> Device {
    let card = Card::builder().firmware(Firmware::CANOKEY);
    Device::new(card.nature(Nature::CANOKEY).pin(PIN).build())
}

fn open(desk: &Desk) -> Arc<dyn Token> {
    desk.driver().open("piv:", &call().using(access())).unwrap()
}

/// Makes a key, in a process of its own.
fn make(desk: &Desk) -> KeyRef {
    let token = open(desk);
    let slot = token.free_slots(&[P256], &[], &call()).unwrap().remove(0);
    let mark = &unfinished_mark();
    let new = NewKey {
        slot: &slot,
        spec: P256,
        mark,
    };
    let public_key = token.generate(&new, &call()).unwrap().public_key;
    let key = KeyRef { slot, public_key };
    possession::of_signer(
        &*token.signer(&key, &Call::unlimited()).unwrap(),
        &token.info().id,
        &call(),
    )
    .unwrap();
    token.name(&key, "alice", &call()).unwrap();
    key
}

/// What a process does that is started for one signature.
fn sign_once(desk: &Desk, key: &KeyRef, access: &Access) {
    let token = desk
        .driver()
        .open("piv:", &call().using(access.clone()))
        .unwrap();
    let signer = token.signer(key, &Call::unlimited()).unwrap();
    signer.sign(b"message", &call()).unwrap();
}

#[test]
fn one_signature_from_nothing_takes_nine_commands_in_one_transaction() {
    for device in [yubikey, canokey] {
        for empty_readers in [0, 2] {
            let device = device();
            let desk = Desk::with(&[&device]);
            (0..empty_readers).for_each(|_| desk.add_an_empty_reader());
            let key = make(&desk);
            // A machine that is busy with other things may take longer than a transaction stays.
            let once = (0..3).any(|_| {
                device.faults().clear_log();
                let before = desk.begun();
                sign_once(&desk, &key, &access());
                let after = desk.begun();
                let log = device.faults().log();
                let sent = log.iter().map(|exchange| exchange.instruction().unwrap());
                let sent: Vec<u8> = sent.collect();
                let ways = (after.0 - before.0, after.1 - before.1);
                println!("{} commands: {sent:02x?}; {ways:?}", sent.len());
                assert!(sent.len() <= 9, "{sent:02x?}");
                ways == (1, 0)
            });
            assert!(once, "it took several transactions");
            // And it left nothing to anybody.
            assert!(!desk.is_busy(&device));
            let select = [0, 0xa4, 4, 0, 5, 0xa0, 0, 0, 3, 8];
            device.transmit(&select);
            let verify = [0, 0x20, 0, 0x80];
            let claviger_virtual_yubikey::Answer::Reply(tries, _) = device.transmit(&verify) else {
                panic!("the card was taken away");
            };
            assert_eq!(tries, [0x63, 0xc3], "the PIN counts");
        }
    }
}

/// Waits until nobody has a transaction with the card, for so long at most.
fn is_free_within(limit: Duration, desk: &Desk, device: &Device) -> bool {
    let end = Instant::now() + limit;
    while desk.is_busy(device) {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

#[test]
fn a_token_that_is_open_and_does_nothing_leaves_the_card_to_others() {
    let device = yubikey();
    let desk = Desk::with(&[&device]);
    let key = make(&desk);
    let token = open(&desk);
    assert!(is_free_within(Duration::from_secs(2), &desk, &device));
    // Others have used it: it is not known any more what is selected, nor by whom.
    desk.reset(&device);
    let signer = token.signer(&key, &Call::unlimited()).unwrap();
    signer.sign(b"message", &call()).unwrap();
    assert!(!desk.is_busy(&device));
    assert_eq!(device.card().pin_tries(), 3);
}

#[test]
fn a_token_that_is_always_at_work_leaves_the_card_to_others_between_two_signatures() {
    let device = yubikey();
    let desk = Desk::with(&[&device]);
    let key = make(&desk);
    let token = open(&desk);
    let signer = token.signer(&key, &Call::unlimited()).unwrap();
    let free = (0..4).filter(|_| {
        signer.sign(b"message", &call()).unwrap();
        !desk.is_busy(&device)
    });
    assert!(free.count() >= 2);
}

#[test]
fn a_card_that_is_taken_out_or_reset_while_its_transaction_goes_on_is_found_again() {
    let device = yubikey();
    let desk = Desk::with(&[&device]);
    let key = make(&desk);
    let replug = || {
        desk.remove(&device);
        desk.insert(&device);
    };
    let disturbances: [&dyn Fn(); 2] = [&|| desk.reset(&device), &replug];
    for disturb in disturbances {
        let token = open(&desk);
        disturb();
        let signer = token.signer(&key, &Call::unlimited()).unwrap();
        disturb();
        signer.sign(b"message", &call()).unwrap();
        disturb();
        drop((signer, token));
        assert!(!desk.is_busy(&device));
        assert_eq!(device.card().pin_tries(), 3);
    }
}

#[test]
fn the_pin_of_a_card_is_not_given_to_the_one_that_takes_its_place_meanwhile() {
    let (ours, other) = (yubikey(), yubikey());
    let desk = Desk::with(&[&ours]);
    let key = make(&desk);
    let token = open(&desk);
    let signer = token.signer(&key, &Call::unlimited()).unwrap();
    desk.swap(&ours, &other);
    assert!(matches!(
        signer.sign(b"message", &call()),
        Err(Error::TokenUnavailable { .. })
    ));
    let verified = other.faults().log().iter().any(|exchange| {
        let command = &exchange.command;
        command.get(1) == Some(&0x20) && command.len() > 5
    });
    assert!(!verified);
}

/// A person who types the PIN, and sees meanwhile whether the card is free.
struct Slow {
    desk: Desk,
    device: Device,
}

impl PinSource for Slow {
    fn pin(&self, _: &TokenId, _: &str, _: &Call) -> Result<Pin, Error> {
        // Longer than a source that is not a person takes.
        std::thread::sleep(Duration::from_millis(50));
        let free = is_free_within(Duration::from_secs(2), &self.desk, &self.device);
        assert!(free, "the card is held while a person types");
        Ok(Pin::from(PIN))
    }
}

/// A person who was asked, and has not answered yet.
struct Thinking(Arc<AtomicBool>);

impl PinSource for Thinking {
    fn pin(&self, _: &TokenId, _: &str, _: &Call) -> Result<Pin, Error> {
        self.0.store(true, Ordering::SeqCst);
        // Longer than a source that is not a person takes.
        std::thread::sleep(Duration::from_millis(300));
        Ok(Pin::from(PIN))
    }
}

#[test]
fn no_question_for_a_pin_stays_behind_where_the_card_does_not_say_whether_it_is_the_default() {
    let ways = [
        Fault::Status(Status(0x6f00)),
        Fault::Reply(vec![0x05, 0x7f, 0x90, 0x00]),
        // Where a PIN is given the card is not asked, and stays.
        Fault::RemoveBefore,
    ];
    for fault in ways {
        let device = yubikey();
        let desk = Desk::with(&[&device]);
        let driver = desk.driver();
        drop(
            driver
                .open("piv:", &call().clone().using(access()))
                .unwrap(),
        );
        (device.faults()).add(Rule::new(fault).on(ins::GET_METADATA).always());
        let was_asked = Arc::default();
        let defaults = Access {
            factory_defaults: true,
            ..Access::with(Thinking(Arc::clone(&was_asked)))
        };
        let opened = driver.open("piv:", &call().clone().using(defaults.clone()));
        assert!(opened.is_ok(), "{:?}", opened.err());
        assert!(was_asked.load(Ordering::SeqCst));
    }
    // Where none is given it is asked, and may be gone: then no PIN is guessed.
    let device = yubikey();
    let driver = Desk::with(&[&device]).driver();
    drop(driver.open("piv:", &call().using(access())).unwrap());
    let gone = Rule::new(Fault::RemoveBefore).on(ins::GET_METADATA);
    device.faults().add(gone.always());
    let defaults = Access {
        factory_defaults: true,
        ..Access::without_pin()
    };
    let opened = driver.open("piv:", &call().using(defaults));
    assert!(
        matches!(&opened, Err(Error::TokenUnavailable { .. })),
        "{:?}",
        opened.err()
    );
}

#[test]
fn nobody_waits_for_the_card_while_a_person_types_the_pin() {
    let device = yubikey();
    let desk = Desk::with(&[&device]);
    let key = make(&desk);
    let before = desk.begun();
    let person = Slow {
        desk: desk.clone(),
        device,
    };
    sign_once(&desk, &key, &Access::with(person));
    let after = desk.begun();
    // One to see whose card it is, and one for everything else.
    assert_eq!((after.0 - before.0, after.1 - before.1), (2, 0));
}
