//! The PIN, the touch, and how the rights that they give end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use claviger_token::{
    Access, Call, Driver, Error, Event, FixedPin, KeyRef, RefusedInProcess, TriesLeft,
};
use claviger_virtual_yubikey::{Device, Fault, Rule, Status, Touch, ins};

use crate::common::*;
use crate::stage::*;

/// Commands of another program, on a card where PIV is selected or not.
fn refused(device: &Device, command: &[u8]) -> bool {
    let select = [0, 0xa4, 4, 0, 5, 0xa0, 0, 0, 3, 8];
    [&select[..], command].into_iter().all(|apdu| {
        let answer = device.transmit(apdu);
        let claviger_virtual_yubikey::Answer::Reply(reply, _) = answer else {
            panic!("removed");
        };
        apdu == select || !reply.ends_with(&[0x90, 0])
    })
}

const ASK_FOR_TRIES: [u8; 4] = [0, 0x20, 0, 0x80];

const PUT: [u8; 12] = [0, 0xdb, 0x3f, 0xff, 7, 0x5c, 3, 0x5f, 0xc1, 0x05, 0x53, 0];

#[test]
fn a_wrong_pin_is_counted_and_not_sent_again() {
    let device = yubikey();
    let driver = Desk::with(&[&device]).driver();
    let with = |pin: &str| driver.open("piv:", &call().using(Access::with(FixedPin::new(pin))));
    assert!(matches!(
        with("135791"),
        Err(Error::PinWrong {
            tries: TriesLeft::Exactly(2),
            ..
        })
    ));
    assert!(matches!(
        with("135791"),
        Err(Error::PinRefusedBefore { .. })
    ));
    for length in ["", "12345", "123456789"] {
        assert!(matches!(
            with(length),
            Err(Error::PinLength { min: 6, max: 8, .. })
        ));
    }
    assert_eq!(device.card().pin_tries(), 2);
    assert!(matches!(
        with("135792"),
        Err(Error::PinWrong {
            tries: TriesLeft::Exactly(1),
            ..
        })
    ));
    assert!(matches!(with(PIN), Err(Error::PinFinalTry { .. })));
    assert_eq!(device.card().pin_tries(), 1);
    let token = driver.open(
        "piv:",
        &call().using(Access {
            last_try: true,
            ..access()
        }),
    );
    assert_eq!(device.card().pin_tries(), 3);
    drop(token);
    device.card().block_pin();
    assert!(matches!(with(PIN), Err(Error::PinLocked { .. })));
}

#[test]
fn a_pin_that_is_refused_without_a_count_is_not_sent_again() {
    let device = yubikey();
    // It is asked for the tries; then the PIN comes.
    let no_count = Fault::alter(|_| vec![0x63, 0x00]);
    device
        .faults()
        .add(Rule::new(no_count).on(ins::VERIFY).after(1));
    let memory = Arc::new(RefusedInProcess::default());
    let with = || Access {
        refused_pins: memory.clone(),
        ..Access::with(FixedPin::new("135791"))
    };
    // Another process knows no more than what is written down.
    let open = || {
        Desk::with(&[&device])
            .driver()
            .open("piv:", &call().using(with()))
    };
    assert!(matches!(
        open(),
        Err(Error::PinWrong {
            tries: TriesLeft::Exactly(2),
            ..
        })
    ));
    for _ in 0..3 {
        assert!(matches!(open(), Err(Error::PinRefusedBefore { .. })));
    }
    assert_eq!(device.card().pin_tries(), 2);
}

#[test]
fn a_pin_that_was_changed_elsewhere_costs_one_try() {
    let device = yubikey();
    let desk = Desk::with(&[&device]);
    let token = open(&desk);
    let signer = token
        .signer(&make(&*token, P256), &Call::unlimited())
        .unwrap();
    signer.sign(b"message", &call()).unwrap();
    device.card().change_pin("864209");
    desk.reset(&device);
    assert!(matches!(
        signer.sign(b"message", &call()),
        Err(Error::PinWrong { .. })
    ));
    for _ in 0..3 {
        assert!(matches!(
            signer.sign(b"message", &call()),
            Err(Error::PinNeeded { .. })
        ));
    }
    assert_eq!(device.card().pin_tries(), 2);
}

#[test]
fn a_key_with_policy_always_gets_the_pin_before_each_operation() {
    let device = yubikey();
    let driver = Desk::with(&[&device]).driver();
    let backend = "piv:slot=9c;pin-policy=always";
    let token = driver.open(backend, &call().using(access())).unwrap();
    let slot = driver.named_slot(backend).unwrap().unwrap();
    assert_eq!(slot.to_string(), "9c");
    let public_key = generate(&*token, &slot, P256).unwrap().public_key;
    let signer = token
        .signer(&KeyRef { slot, public_key }, &Call::unlimited())
        .unwrap();
    for _ in 0..3 {
        signer.sign(b"message", &call()).unwrap();
    }
    let counts = counted(&device, || drop(signer.sign(b"message", &call()).unwrap()));
    assert_eq!(
        counts,
        BTreeMap::from([(ins::VERIFY, 2), (ins::AUTHENTICATE, 1)])
    );
    // Another view of the same card, opened once.
    let plain = driver.open("piv:", &call()).unwrap();
    assert_eq!(plain.info().id, token.info().id);
}

#[test]
fn a_touch_is_announced_and_a_missing_one_is_told_apart() {
    for pin_policy in ["once", "always", "never"] {
        let device = yubikey();
        let driver = Desk::with(&[&device]).driver();
        let backend = format!("piv:pin-policy={pin_policy};touch-policy=always");
        let token = driver
            .open(&backend, &call().clone().using(access()))
            .unwrap();
        let signer = token
            .signer(&make(&*token, P256), &Call::unlimited())
            .unwrap();
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let seen = Arc::clone(&events);
        let call =
            Call::unlimited().watched_by(Arc::new(move |e| seen.lock().unwrap().push(e.clone())));
        signer.sign(b"message", &call).unwrap();
        let id = token.info().id.clone();
        let announced = [
            Event::TouchNeeded { token: id.clone() },
            Event::PersonDone { token: id },
        ];
        assert_eq!(std::mem::take(&mut *events.lock().unwrap()), announced);
        device
            .card()
            .set_touch(Touch::Never(Duration::from_millis(10)));
        let counts = counted(&device, || {
            let missed = signer.sign(b"message", &call);
            assert!(
                matches!(missed, Err(Error::NotTouched { .. })),
                "{pin_policy}: {missed:?}"
            );
        });
        assert_eq!(counts[&ins::AUTHENTICATE], 1, "asked for one touch only");
        assert_eq!(*events.lock().unwrap(), announced);
        // Others make a key that wants the PIN in place of this one.
        let theirs = [0, 0x47, 0, 0x82, 8, 0xac, 6, 0x80, 1, 0x11, 0xaa, 1, 3];
        as_administrator(&device)(&theirs);
        assert!(matches!(
            signer.sign(b"message", &call),
            Err(Error::KeyMismatch { .. })
        ));
    }
}

#[test]
fn the_rights_of_the_pin_and_of_the_administrator_end() {
    let device = yubikey();
    let desk = Desk::with(&[&device]);
    let token = open(&desk);
    let key = make(&*token, P256);
    // Whoever speaks to the card now has not the administrator's rights.
    let put = [0, 0xdb, 0x3f, 0xff, 7, 0x5c, 3, 0x5f, 0xc1, 0x05, 0x53, 0];
    let answer = format!("{:02x?}", device.transmit(&put));
    assert!(
        answer.contains("105, 130") || answer.contains("69, 82"),
        "{answer}"
    );
    let signer = token.signer(&key, &Call::unlimited()).unwrap();
    signer.sign(b"message", &call()).unwrap();
    drop((signer, token));
    let answer = format!("{:?}", device.transmit(&[0, 0x20, 0, 0x80]));
    assert!(answer.contains("99, 195"), "the PIN still counts: {answer}");
}

#[test]
fn where_a_select_ends_no_rights_they_end_all_the_same() {
    for device in [plain_card(), old_plain_card()] {
        let desk = Desk::with(&[&device]);
        let token = open(&desk);
        let key = make(&*token, P256);
        assert!(refused(&device, &PUT));
        let signer = token.signer(&key, &Call::unlimited()).unwrap();
        signer.sign(b"message", &call()).unwrap();
        assert!(!refused(&device, &ASK_FOR_TRIES));
        drop((signer, token));
        assert!(refused(&device, &ASK_FOR_TRIES));

        // Whatever the last thing was.
        let token = open(&desk);
        token.delete(&key, &call()).unwrap();
        assert!(refused(&device, &PUT));
        drop(token);
        assert!(refused(&device, &ASK_FOR_TRIES));
        let token = open(&desk);
        let refuse = Rule::new(Fault::Status(Status(0x6f00))).on(ins::GENERATE);
        device.faults().add(refuse);
        assert!(generate(&*token, &key.slot, P256).is_err());
        assert!(refused(&device, &PUT));
        drop(token);
        assert!(refused(&device, &ASK_FOR_TRIES));
    }
}

/// A reader that loses an answer is not a card that loses its power.
#[test]
fn no_rights_stay_when_an_answer_is_lost_and_the_card_keeps_its_power() {
    for device in [plain_card(), old_plain_card()] {
        let desk = Desk::with(&[&device]);
        let token = open(&desk);
        let key = make(&*token, P256);
        // Both attempts.
        desk.lose((ins::PUT_DATA, 2), 0);
        let named = token.name(&key, "bob", &call());
        assert!(
            matches!(named, Err(Error::TokenUnavailable { .. })),
            "{named:?}"
        );
        assert!(desk.has_lost_it());
        assert!(refused(&device, &PUT));
        assert!(refused(&device, &ASK_FOR_TRIES));

        let signer = token.signer(&key, &call()).unwrap();
        signer.sign(b"message", &call()).unwrap();
        assert!(!refused(&device, &ASK_FOR_TRIES));
        desk.lose((ins::AUTHENTICATE, 3), 0);
        let signed = signer.sign(b"message", &call()).map(drop);
        assert!(
            matches!(signed, Err(Error::TokenUnavailable { .. })),
            "{signed:?}"
        );
        assert!(desk.has_lost_it());
        assert!(refused(&device, &ASK_FOR_TRIES));
        drop((signer, token));

        // Nor when it is opened.
        desk.lose((ins::VERIFY, 2), 0);
        assert!(desk.driver().open("piv:", &call()).is_err());
        assert!(refused(&device, &ASK_FOR_TRIES));
    }
}

#[test]
fn a_card_that_could_not_be_reset_is_reset_before_it_is_used_again() {
    let device = plain_card();
    let desk = Desk::with(&[&device]);
    let token = open(&desk);
    let key = make(&*token, P256);
    desk.lose((ins::PUT_DATA, 2), 2);
    assert!(token.name(&key, "bob", &call()).is_err());
    // Neither attempt could end what it began.
    assert!(!refused(&device, &PUT));
    desk.lose((0, 0), 0);
    // A request that needs no rights.
    token.slots(&call()).unwrap();
    assert!(refused(&device, &PUT));
    let signer = token.signer(&key, &call()).unwrap();
    signer.sign(b"message", &call()).unwrap();
}
