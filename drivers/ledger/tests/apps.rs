//! Apps that cannot do all that the newest one can, and some that are not what they say.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::time::Duration;

use claviger_ledger_emulator::{Configuration, Ethereum};
use claviger_token::{Call, Driver, Error, KeyRef, SlotName, Token};
use common::{Bus, DECRYPT, SIGN, Told, answers, key, open, open_within, visible};

#[test]
fn a_device_takes_messages_as_long_as_its_memory_is() {
    for (configuration, longest) in [
        (Configuration::nano_s_plus(), 9_012),
        (Configuration::flex(), 13_368),
    ] {
        let bus = Bus::default();
        bus.plug("usb-1", answers(&Ethereum::configured(configuration)));
        let token = open(&bus.driver(), "ledger:").unwrap();
        let key = key(&*token, "0/secp256k1", SIGN);
        let signer = token.signer(&key, &Call::unlimited()).unwrap();
        let message = vec![b'x'; longest + 1];
        let call = Call::unlimited();
        match signer.sign(&message, &call).unwrap_err() {
            Error::BadMessage { reason } => assert!(reason.contains("memory"), "{reason}"),
            other => panic!("{other:?}"),
        }
        let message = &message[1..];
        let signature = signer.sign(message, &call).unwrap();
        key.public_key.verify(message, &signature).unwrap();
    }
    assert_eq!(claviger_ledger::longest_message("Nano S Plus"), 9_012);
    assert_eq!(claviger_ledger::longest_message("Flex"), 13_368);
}

/// The keys of the recorded device's account 0.
fn keys() -> [KeyRef; 2] {
    let bus = Bus::default();
    bus.plug("usb-1", answers(&Ethereum::new()));
    let token = open(&bus.driver(), "ledger:").unwrap();
    [
        key(&*token, "0/secp256k1", SIGN),
        key(&*token, "0/x25519", DECRYPT),
    ]
}

fn signs(token: &dyn Token) {
    let signer = token
        .signer(&key(token, "0/secp256k1", SIGN), &Call::unlimited())
        .unwrap();
    signer.sign(b"a message", &Call::unlimited()).unwrap();
}

#[test]
fn an_app_that_does_not_agree_on_keys_yet_signs() {
    let bus = Bus::default();
    let app = Ethereum::configured(Configuration::before_eip_1024());
    bus.plug("usb-1", answers(&app));
    let driver = bus.driver();
    let listed = driver
        .tokens("ledger:", &Call::unlimited())
        .unwrap()
        .remove(0);
    assert_eq!((&*listed.makes, &*listed.uses), (&[SIGN][..], &[SIGN][..]));
    let note = (
        "decryption".into(),
        "update the app to 1.9.18 or newer".into(),
    );
    assert!(listed.notes.contains(&note), "{:?}", listed.notes);
    assert_eq!(visible(&driver, &listed).unwrap().len(), 5);
    let token = open(&driver, "ledger:").unwrap();
    signs(&*token);
    refused!(
        token.free_slots(&[DECRYPT], &[], &Call::unlimited()),
        Error::Unsupported { .. }
    );
    // A key from before the app was put back.
    let [_, decrypts] = keys();
    let error = token
        .decryptor(&decrypts, &Call::unlimited())
        .map(drop)
        .unwrap_err();
    assert!(matches!(&error, Error::AppTooOld { found, .. } if found == "1.9.17"));
}

#[test]
fn one_query_that_fails_does_not_hide_a_device_that_signs() {
    for status in [[0x6f, 0x00], [0x6d, 0x00], [0x6a, 0x80], [0x69, 0x82]] {
        let bus = Bus::default();
        let mut app = answers(&Ethereum::new());
        bus.plug("usb-1", move |apdu| match apdu {
            [0xe0, 0x18, ..] => status.to_vec(),
            _ => app(apdu),
        });
        let driver = bus.driver();
        let listed = driver
            .tokens("ledger:", &Call::unlimited())
            .unwrap()
            .remove(0);
        assert_eq!(listed.id.serial, "8374458579327a58");
        assert_eq!(listed.makes, [SIGN]);
        signs(&*open(&driver, "ledger:").unwrap());
    }
}

#[test]
fn a_key_that_the_app_does_not_show_hides_no_others() {
    let bus = Bus::default();
    let mut app = answers(&Ethereum::new());
    bus.plug("usb-1", move |apdu| match apdu {
        [0xe0, 0x18, _, _, _, _, path @ ..] if path[8..12] == [0x80, 0, 0, 3] => {
            vec![0x6f, 0x00]
        }
        _ => app(apdu),
    });
    let driver = bus.driver();
    let listed = driver
        .tokens("ledger:", &Call::unlimited())
        .unwrap()
        .remove(0);
    let slots = visible(&driver, &listed).unwrap();
    assert_eq!(slots.len(), 10);
    for slot in slots {
        let hidden = slot.slot == SlotName::new("3/x25519");
        assert_eq!(slot.public_key.is_none(), hidden, "{slot:?}");
        assert_eq!(slot.notes.is_empty(), !hidden, "{slot:?}");
    }
}

#[test]
fn an_app_of_that_name_that_does_not_know_the_commands_is_not_waited_for() {
    for refusal in [0x6d, 0x6e] {
        let bus = Bus::default();
        let mut app = answers(&Ethereum::new());
        bus.plug("usb-1", move |apdu| match apdu {
            [0xe0, ..] => vec![refusal, 0x00],
            _ => app(apdu),
        });
        let driver = bus.driver();
        let listed = driver
            .tokens("ledger:", &Call::unlimited())
            .unwrap()
            .remove(0);
        let state = &listed.notes[0].1;
        assert!(
            state.starts_with("the app Ethereum 1.23.0-dev does not know GET ETH PUBLIC ADDRESS"),
            "{state}"
        );
        let told = Told::default();
        let call = told.watch(Call::within(Duration::from_secs(5)));
        match open_within(&driver, "ledger:", &call)
            .map(drop)
            .unwrap_err()
        {
            Error::Device { call, status, .. } => {
                assert_eq!(call, "GET ETH PUBLIC ADDRESS");
                assert!(status.contains("Ethereum 1.23.0-dev"), "{status}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(told.events(), []);
    }
}

#[test]
fn an_app_that_is_closed_in_the_middle_is_told_from_one_that_does_not_know() {
    let (bus, app) = (Bus::default(), Ethereum::new());
    bus.plug("usb-1", answers(&app));
    let token = open(&bus.driver(), "ledger:").unwrap();
    let signer = token
        .signer(&key(&*token, "0/secp256k1", SIGN), &Call::unlimited())
        .unwrap();
    app.open(claviger_ledger_emulator::Running::Other {
        name: "Bitcoin".into(),
        refusal: 0x6d00,
    });
    refused!(
        signer.sign(b"", &Call::within(Duration::from_millis(700))),
        Error::AppNotOpen { running, .. } if running.as_deref() == Some("Bitcoin")
    );
}
