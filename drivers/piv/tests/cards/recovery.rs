//! A card that others use, reset and take away, and one that makes no sense.

use std::collections::BTreeMap;

use claviger_token::{Call, Driver, Error, KeyRef};
use claviger_virtual_yubikey::{Fault, Firmware, Rule, ins};

use crate::common::*;
use crate::stage::*;

#[test]
fn a_reset_and_another_application_are_recovered_from() {
    for firmware in [Firmware::V5_7_1, Firmware::V4_3_5] {
        let device = old(firmware);
        let desk = Desk::with(&[&device]);
        let token = open(&desk);
        let signer = token
            .signer(&make(&*token, P256), &Call::unlimited())
            .unwrap();
        let sign = || drop(signer.sign(b"message", &call()).unwrap());
        sign();
        let reset = || desk.reset(&device);
        // Selects PIV anew, which takes the PIN away.
        let select = || drop(device.transmit(&[0, 0xa4, 4, 0, 5, 0xa0, 0, 0, 3, 8]));
        // The OTP application, which the virtual card has with old firmware only.
        let select_otp =
            || drop(device.transmit(&[0, 0xa4, 4, 0, 7, 0xa0, 0, 0, 5, 0x27, 0x20, 1]));
        let replug = || {
            desk.remove(&device);
            desk.insert(&device);
        };
        let mut disturbances: Vec<&dyn Fn()> = vec![&reset, &select, &replug];
        if firmware == Firmware::V4_3_5 {
            disturbances.push(&select_otp);
        }
        for disturb in disturbances {
            disturb();
            let counts = counted(&device, sign);
            assert!(counts[&ins::VERIFY] >= 2, "{counts:02x?}");
            let counts = counted(&device, sign);
            assert_eq!(counts, BTreeMap::from([(ins::AUTHENTICATE, 1)]));
        }
        assert_eq!(device.card().pin_tries(), 3);
    }
}

#[test]
fn listing_does_not_take_the_pin_from_an_open_token() {
    let device = yubikey();
    let driver = Desk::with(&[&device]).driver();
    let token = driver.open("piv:", &call().using(access())).unwrap();
    let signer = token
        .signer(&make(&*token, P256), &Call::unlimited())
        .unwrap();
    signer.sign(b"message", &call()).unwrap();
    let counts = counted(&device, || {
        let found = driver.tokens("piv:", &Call::unlimited()).unwrap();
        visible(&driver, &found[0]).unwrap();
        signer.sign(b"message", &call()).unwrap();
    });
    assert!(!counts.contains_key(&ins::SELECT), "{counts:02x?}");
}

#[test]
fn another_card_in_the_same_reader_is_never_used() {
    let (device, other) = (yubikey(), yubikey());
    let desk = Desk::with(&[&device]);
    let token = open(&desk);
    let signer = token
        .signer(&make(&*token, P256), &Call::unlimited())
        .unwrap();
    signer.sign(b"message", &call()).unwrap();
    desk.swap(&device, &other);
    for _ in 0..2 {
        assert!(matches!(
            signer.sign(b"message", &call()),
            Err(Error::TokenUnavailable { .. })
        ));
    }
    let sent = other.faults().log();
    assert!(sent.iter().all(|e| e.instruction() != Some(ins::VERIFY)));
    desk.insert(&device);
    signer.sign(b"message", &call()).unwrap();
}

#[test]
fn malformed_replies_are_errors_and_spend_no_tries() {
    let changes: [fn(Vec<u8>) -> Vec<u8>; 5] = [
        |_| Vec::new(),
        |_| vec![0x90],
        |_| vec![0x90, 0x00],
        |mut reply| {
            reply.insert(0, 0x7f);
            reply
        },
        |mut reply| {
            if reply.len() > 4 {
                reply[1] ^= 0x83;
            }
            reply
        },
    ];
    for change in changes {
        for step in 0..30 {
            let device = yubikey();
            let desk = Desk::with(&[&device]);
            device
                .faults()
                .add(Rule::new(Fault::alter(change)).after(step));
            let driver = desk.driver();
            let Ok(token) = driver.open("piv:", &call().clone().using(access())) else {
                assert_eq!(device.card().pin_tries(), 3);
                continue;
            };
            let worked = (|| {
                let slot = token.free_slots(&[P256], &[], &call())?.remove(0);
                let public_key = generate(&*token, &slot, P256)?.public_key;
                let key = KeyRef { slot, public_key };
                token
                    .signer(&key, &Call::unlimited())?
                    .sign(b"message", &call())?;
                token.delete(&key, &call())
            })();
            assert_eq!(device.card().pin_tries(), 3, "step {step}: {worked:?}");
        }
    }
}

#[test]
fn two_processes_share_a_card() {
    let device = yubikey();
    let desk = Desk::with(&[&device]);
    // Each of them knows nothing of the other.
    let tokens = [open(&desk), open(&desk)];
    let keys: Vec<KeyRef> = tokens.iter().map(|token| make(&**token, P256)).collect();
    assert_ne!(keys[0].slot.name(), keys[1].slot.name());
    let signers: Vec<_> = tokens
        .iter()
        .zip(&keys)
        .map(|(token, key)| token.signer(key, &Call::unlimited()).unwrap())
        .collect();
    std::thread::scope(|scope| {
        for signer in &signers {
            scope.spawn(|| {
                for _ in 0..20 {
                    signer.sign(b"message", &call()).unwrap();
                }
            });
        }
    });
    // One ends, and takes its rights with it; the other gets them again.
    let [first, second] = tokens;
    drop((first, signers.into_iter().next()));
    let signer = second.signer(&keys[1], &Call::unlimited()).unwrap();
    signer.sign(b"message", &call()).unwrap();
    assert_eq!(device.card().pin_tries(), 3);
}
