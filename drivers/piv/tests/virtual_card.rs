//! What the driver does on virtual YubiKeys, command by command.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use claviger_piv::PivDriver;
use claviger_piv::apdu::Lost;
use claviger_piv::reader::{Link, Readers, Unreachable};
use claviger_token::{
    Access, Algorithm, Call, Deletion, Driver, Error, Event, FixedPin, GeneratedKey, KeyRef,
    KeySpec, NewKey, Pin, PinSource, PublicKey, RefusedInProcess, SlotId, SlotInfo, SlotState,
    Token, TokenId, TriesLeft, Unfinished, Unwrap, possession,
};
use claviger_virtual_yubikey::{
    Algorithm as CardAlgorithm, Card, Device, Fault, Firmware, ManagementAlgorithm, PrivateKey,
    Rule, Slot, Status, Touch, ins, object,
};
use common::{
    Desk, MANAGEMENT_KEY, PIN, access, old_plain_card, plain_card, visible, without_extensions,
};

const P256: KeySpec = KeySpec::sign(Algorithm::P256);

fn yubikey() -> Device {
    Device::new(Card::builder().pin(PIN).build())
}

fn old(firmware: Firmware) -> Device {
    Device::new(Card::builder().firmware(firmware).pin(PIN).build())
}

/// Cards that have no command to destroy a key.
const CANNOT_DELETE: [fn() -> Device; 4] = [
    || old(Firmware::V5_4_3),
    || old(Firmware::V5_2_4),
    || old(Firmware::V4_3_5),
    plain_card,
];

/// Ends the faults of a card, but not its nature.
fn mend(device: &Device) {
    let plain = device.card().object(object::CHUID).is_some();
    device.faults().clear();
    if plain {
        without_extensions(device);
    }
}

fn call() -> Call {
    Call::unlimited()
}

fn open(desk: &Desk) -> Arc<dyn Token> {
    desk.driver().open("piv:", &call().using(access())).unwrap()
}

/// The label of keys that are not named yet.
const MARK: &str = "claviger-unfinished-00112233445566778899aabbccddeeff";

/// Makes a key that is not named yet.
fn generate(token: &dyn Token, slot: &SlotId, spec: KeySpec) -> Result<GeneratedKey, Error> {
    let mark = MARK;
    token.generate(&NewKey { slot, spec, mark }, &call())
}

/// Makes a key and names it.
fn make(token: &dyn Token, spec: KeySpec) -> KeyRef {
    let slot = token.free_slots(&[spec], &[], &call()).unwrap().remove(0);
    let public_key = generate(token, &slot, spec).unwrap().public_key;
    let key = KeyRef { slot, public_key };
    token.name(&key, "alice", &call()).unwrap();
    key
}

/// Removes what a generation left of which no more is known than its slot.
fn discard(token: &dyn Token, slot: &SlotId) -> Result<Deletion, Error> {
    let left = Unfinished {
        slot: slot.clone(),
        mark: MARK.into(),
        public_key: None,
    };
    token.discard(&left, &call())
}

/// How many commands `work` takes, by instruction.
fn counted(device: &Device, work: impl FnOnce()) -> BTreeMap<u8, usize> {
    device.faults().clear_log();
    work();
    let mut counts = BTreeMap::new();
    for exchange in device.faults().log() {
        *counts.entry(exchange.instruction().unwrap()).or_default() += 1;
    }
    counts
}

#[test]
fn a_signature_and_an_agreement_take_one_command() {
    let device = yubikey();
    let token = open(&Desk::with(&[&device]));
    for (spec, commands) in [
        (P256, 1),
        (KeySpec::sign(Algorithm::P384), 1),
        (KeySpec::sign(Algorithm::Ed25519), 1),
        // A block that is longer than a short command, and the rest of the signature.
        (KeySpec::sign(Algorithm::Rsa2048), 2),
    ] {
        let signer = token
            .signer(&make(&*token, spec), &Call::unlimited())
            .unwrap();
        signer.sign(b"first", &call()).unwrap();
        for _ in 0..3 {
            let counts = counted(&device, || drop(signer.sign(b"message", &call()).unwrap()));
            assert_eq!(
                counts[&ins::AUTHENTICATE],
                commands,
                "{spec}: {counts:02x?}"
            );
            let rest = counts
                .keys()
                .all(|i| [ins::AUTHENTICATE, ins::GET_RESPONSE].contains(i));
            assert!(rest, "{spec}: {counts:02x?}");
        }
    }
    for (algorithm, peer) in [
        (Algorithm::P256, p256_peer()),
        (
            Algorithm::X25519,
            PublicKey::from_bytes(Algorithm::X25519, &[9; 32]).unwrap(),
        ),
    ] {
        let key = make(&*token, KeySpec::decrypt(algorithm));
        let decryptor = token.decryptor(&key, &Call::unlimited()).unwrap();
        let agree = || {
            let secret = decryptor.unwrap(Unwrap::Agree { peer: &peer }, &call());
            assert_eq!(secret.unwrap().len(), 32);
        };
        agree();
        let counts = counted(&device, agree);
        assert_eq!(counts, BTreeMap::from([(ins::AUTHENTICATE, 1)]));
    }
}

fn p256_peer() -> PublicKey {
    let key = p256::SecretKey::from_slice(&[7; 32]).unwrap();
    PublicKey::from_bytes(Algorithm::P256, &key.public_key().to_sec1_bytes()).unwrap()
}

#[test]
fn a_generation_is_one_transaction_of_few_commands() {
    let device = yubikey();
    let token = open(&Desk::with(&[&device]));
    let slot = token.free_slots(&[P256], &[], &call()).unwrap().remove(0);
    let counts = counted(&device, || {
        drop(generate(&*token, &slot, P256).unwrap());
    });
    assert_eq!(counts[&ins::GENERATE], 1);
    assert!(!counts.contains_key(&ins::VERIFY), "{counts:02x?}");
    let commands: usize = counts.values().sum();
    println!("generate: {commands} APDUs: {counts:02x?}");
    assert!(commands <= 30, "{counts:02x?}");
}

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
fn management_keys_come_from_where_they_may() {
    let needed = |device: &Device, access: Access| {
        let token = Desk::with(&[device])
            .driver()
            .open("piv:", &call().using(access))
            .unwrap();
        let slot = token.free_slots(&[P256], &[], &call()).unwrap().remove(0);
        generate(&*token, &slot, P256).map(drop)
    };
    let pin_only = || Access::with(FixedPin::new(PIN));
    let keyed = |key: &str| Access {
        management_keys: Arc::new(FixedPin::new(key)),
        ..pin_only()
    };
    let defaults = || Access {
        factory_defaults: true,
        ..pin_only()
    };
    let device = yubikey();
    assert!(matches!(
        needed(&device, pin_only()),
        Err(Error::ManagementKeyNeeded { .. })
    ));
    for key in ["", "zz", "0102", &"11".repeat(24)] {
        assert!(
            matches!(
                needed(&device, keyed(key)),
                Err(Error::ManagementKeyWrong { .. })
            ),
            "{key}"
        );
    }
    assert!(device.card().occupied().len() <= 1);
    needed(&device, defaults()).unwrap();
    needed(&device, keyed(&format!(" {MANAGEMENT_KEY}\n"))).unwrap();

    for algorithm in [
        ManagementAlgorithm::TripleDes,
        ManagementAlgorithm::Aes128,
        ManagementAlgorithm::Aes192,
        ManagementAlgorithm::Aes256,
    ] {
        let key: Vec<u8> = (1..).step_by(2).take(algorithm.key_size()).collect();
        let card = Card::builder().pin(PIN).management_key(algorithm, &key);
        let device = Device::new(card.build());
        needed(&device, keyed(&claviger_token::key::to_hex(&key))).unwrap();
        assert!(matches!(
            needed(&device, defaults()),
            Err(Error::ManagementKeyNeeded { .. })
        ));

        // The same key, behind the PIN.
        let printed = [
            &[0x88, key.len() as u8 + 2, 0x89, key.len() as u8][..],
            &key,
        ]
        .concat();
        let card = Card::builder()
            .pin(PIN)
            .management_key(algorithm, &key)
            .object(object::PRINTED, &printed)
            .object(object::ADMIN_DATA, &[0x80, 0x03, 0x81, 0x01, 0x02]);
        let device = Device::new(card.build());
        needed(&device, pin_only()).unwrap();
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

#[test]
fn an_attestation_leads_to_the_makers_root() {
    let device = yubikey();
    let token = open(&Desk::with(&[&device]));
    let slot = token.free_slots(&[P256], &[], &call()).unwrap().remove(0);
    let made = generate(&*token, &slot, P256).unwrap();
    let attestation = made.attestation.unwrap();
    let serial = device.card().serial().to_string();
    for fact in [
        ("serial", serial.as_str()),
        ("firmware", "5.7.1"),
        ("pin_policy", "once"),
        ("touch_policy", "never"),
    ] {
        let fact = (fact.0.to_owned(), fact.1.to_owned());
        assert!(attestation.facts.contains(&fact), "{fact:?}");
    }
    let pem = |der: &[u8]| {
        use p256::pkcs8::der::pem::{LineEnding, encode_string};
        encode_string("CERTIFICATE", LineEnding::LF, der).unwrap()
    };
    let root = pem(device.card().root_certificate());
    let verify = claviger_piv::verify_chain;
    assert_eq!(verify(&attestation, &made.public_key, &[&root]), Ok(true));
    let other = pem(yubikey().card().root_certificate());
    assert_eq!(
        verify(&attestation, &made.public_key, &[&other]),
        Ok(root == other)
    );
    let none: [&String; 0] = [];
    assert_eq!(verify(&attestation, &made.public_key, &none), Ok(false));
    let another = make(&*token, P256).public_key;
    assert!(verify(&attestation, &another, &[&root]).is_err());
    let mut cut = attestation;
    cut.certificates.pop();
    assert_eq!(verify(&cut, &made.public_key, &[&root]), Ok(false));
}

/// What is on the card, as a test sees it.
fn inventory(device: &Device) -> Vec<(Slot, bool, bool)> {
    let card = device.card();
    Slot::all()
        .map(|slot| {
            let object = object::certificate(slot);
            (
                slot,
                card.key(slot).is_some(),
                card.object(object).is_some(),
            )
        })
        .collect()
}

#[test]
fn a_generation_that_dies_anywhere_is_undone_by_its_name() {
    for fault in [Fault::RemoveBefore, Fault::RemoveAfter] {
        for step in 0..40 {
            let device = yubikey();
            let desk = Desk::with(&[&device]);
            let token = open(&desk);
            let before = inventory(&device);
            let slot = token.free_slots(&[P256], &[], &call()).unwrap().remove(0);
            // All commands fail from here on, as if the process had died: the driver's
            // own tidying up does not come through either.
            device
                .faults()
                .add(Rule::new(fault.clone()).after(step).always());
            let made = generate(&*token, &slot, P256);
            device.faults().clear();
            if made.is_ok() {
                assert!(step > 10, "{step}");
                break;
            }
            drop(token);
            let token = open(&desk);
            discard(&*token, &slot).unwrap();
            assert_eq!(inventory(&device), before, "died at step {step}");
            let again = discard(&*token, &slot).unwrap();
            assert_eq!(again, Deletion::NothingThere);
            assert_eq!(token.free_slots(&[P256], &[], &call()).unwrap(), [slot]);
        }
    }
}

#[test]
fn a_generation_that_fails_leaves_nothing() {
    for step in 0..40 {
        let device = yubikey();
        let token = open(&Desk::with(&[&device]));
        let before = inventory(&device);
        let slot = token.free_slots(&[P256], &[], &call()).unwrap().remove(0);
        let once = Rule::new(Fault::Status(Status(0x6f00))).after(step);
        device.faults().add(once);
        let made = generate(&*token, &slot, P256);
        device.faults().clear();
        match made {
            Ok(_) => assert!(inventory(&device) != before),
            Err(_) => assert_eq!(inventory(&device), before, "step {step}"),
        }
    }
}

#[test]
fn a_deletion_that_dies_anywhere_is_finished_by_its_name() {
    for fault in [Fault::RemoveBefore, Fault::RemoveAfter] {
        for step in 0..40 {
            let device = yubikey();
            let desk = Desk::with(&[&device]);
            let token = open(&desk);
            let before = inventory(&device);
            let key = make(&*token, P256);
            device
                .faults()
                .add(Rule::new(fault.clone()).after(step).always());
            let deleted = token.delete(&key, &call());
            device.faults().clear();
            drop(token);
            let token = open(&desk);
            token.delete(&key, &call()).unwrap();
            assert_eq!(inventory(&device), before, "died at step {step}");
            if deleted.is_ok() {
                break;
            }
        }
    }
}

/// What a person sees of the slots, without the notes.
fn shown(token: &dyn Token) -> Vec<SlotInfo> {
    let mut slots = token.slots(&call()).unwrap();
    slots.iter_mut().for_each(|slot| slot.notes.clear());
    slots
}

/// The public key of what is in 82.
fn key_in_82(device: &Device) -> Option<Vec<u8>> {
    let card = device.card();
    card.key(Slot::new(0x82).unwrap()).map(PrivateKey::spki)
}

#[test]
fn without_a_command_to_delete_a_generation_that_dies_anywhere_is_undone_all_the_same() {
    for card in CANNOT_DELETE {
        for emptied_before in [false, true] {
            for fault in [Fault::RemoveBefore, Fault::RemoveAfter] {
                for step in 0..60 {
                    let device = card();
                    let desk = Desk::with(&[&device]);
                    let token = open(&desk);
                    if emptied_before {
                        let deleted = token.delete(&make(&*token, P256), &call());
                        assert_eq!(deleted.unwrap(), Deletion::Destroyed);
                    }
                    let before = shown(&*token);
                    let filler = key_in_82(&device);
                    assert_eq!(filler.is_some(), emptied_before);
                    let slot = token.free_slots(&[P256], &[], &call()).unwrap().remove(0);
                    assert_eq!(slot, SlotId::new("82"));
                    device
                        .faults()
                        .add(Rule::new(fault.clone()).after(step).always());
                    let made = generate(&*token, &slot, P256);
                    mend(&device);
                    if made.is_ok() {
                        assert!(step > 10, "{step}");
                        break;
                    }
                    let left = key_in_82(&device);
                    drop(token);
                    let token = open(&desk);
                    discard(&*token, &slot).unwrap();
                    assert_eq!(shown(&*token), before, "died at step {step}");
                    assert!(left == filler || key_in_82(&device) != left, "{step}");
                    let again = discard(&*token, &slot).unwrap();
                    assert_eq!(again, Deletion::NothingThere);
                    let key = make(&*token, P256);
                    assert_eq!(key.slot, slot);
                    let signer = token.signer(&key, &Call::unlimited()).unwrap();
                    signer.sign(b"message", &call()).unwrap();
                }
            }
        }
    }
}

#[test]
fn without_a_command_to_delete_a_deletion_that_dies_anywhere_is_finished_all_the_same() {
    for card in CANNOT_DELETE {
        for spec in [P256, KeySpec::decrypt(Algorithm::P256)] {
            for fault in [Fault::RemoveBefore, Fault::RemoveAfter] {
                for step in 0..60 {
                    let device = card();
                    let desk = Desk::with(&[&device]);
                    let token = open(&desk);
                    let before = shown(&*token);
                    let key = make(&*token, spec);
                    let ours = key_in_82(&device);
                    device
                        .faults()
                        .add(Rule::new(fault.clone()).after(step).always());
                    let deleted = token.delete(&key, &call());
                    mend(&device);
                    drop(token);
                    let token = open(&desk);
                    let there = key_in_82(&device) == ours;
                    let repeated = token.delete(&key, &call()).unwrap();
                    assert!(!there || repeated == Deletion::Destroyed, "{step}");
                    assert!(key_in_82(&device) != ours, "{step}");
                    assert_eq!(shown(&*token), before, "died at step {step}");
                    let again = token.delete(&key, &call()).unwrap();
                    assert_eq!(again, Deletion::NothingThere);
                    let free = token.free_slots(&[P256], &[], &call()).unwrap();
                    assert_eq!(free, [SlotId::new("82")]);
                    if deleted.is_ok() {
                        assert!(step > 10, "{step}");
                        break;
                    }
                }
            }
        }
    }
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
            let emptied = slots.iter().find(|s| s.slot == key.slot).unwrap();
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

#[test]
fn a_key_that_others_made_over_ours_or_over_a_filler_is_not_overwritten() {
    for card in CANNOT_DELETE {
        // GENERATE of a P-256 key, of a P-384 key, and IMPORT of one that wants the PIN
        // each time.
        let by_others = |kind| vec![0, 0x47, 0, 0x82, 5, 0xac, 3, 0x80, 1, kind];
        let elements = PrivateKey::generate(CardAlgorithm::P256).import_elements();
        let data = [&elements[..], &[0xaa, 1, 3]].concat();
        let import = [&[0, 0xfe, 0x11, 0x82, data.len() as u8][..], &data].concat();
        let commands = [by_others(0x11), by_others(0x14), import];
        for (emptied, command) in commands.iter().flat_map(|c| [(false, c), (true, c)]) {
            let device = card();
            let token = open(&Desk::with(&[&device]));
            let key = make(&*token, P256);
            if emptied {
                let deleted = token.delete(&key, &call()).unwrap();
                assert_eq!(deleted, Deletion::Destroyed);
            }
            // Another program makes a key, and leaves our certificate there.
            let send = as_administrator(&device);
            let made = send(command);
            assert!(made.ends_with(&[0x90, 0]) || made[made.len() - 2] == 0x61);
            let theirs = key_in_82(&device);
            let deleted = token.delete(&key, &call()).unwrap();
            match emptied {
                // Ours was gone before.
                true => assert_ne!(deleted, Deletion::Destroyed),
                false => assert_eq!(deleted, Deletion::Foreign),
            }
            let free = token.free_slots(&[P256], &[], &call()).unwrap();
            assert_eq!(free, [SlotId::new("83")]);
            assert!(matches!(
                generate(&*token, &key.slot, P256),
                Err(Error::SlotOccupied { .. })
            ));
            assert_eq!(key_in_82(&device), theirs);
        }
    }
}

#[test]
fn a_card_that_refuses_to_overwrite_keeps_the_key_and_one_that_fails_is_asked_again() {
    for card in CANNOT_DELETE {
        let device = card();
        let token = open(&Desk::with(&[&device]));
        let key = make(&*token, P256);
        let before = token.slots(&call()).unwrap();
        let refuse = |status| Rule::new(Fault::Status(Status(status))).on(ins::GENERATE);
        for status in [0x6a80, 0x6a81, 0x6d00] {
            device.faults().add(refuse(status));
            assert!(matches!(
                token.delete(&key, &call()),
                Err(Error::CannotDestroy { .. })
            ));
            assert_eq!(token.slots(&call()).unwrap(), before);
            let signer = token.signer(&key, &Call::unlimited()).unwrap();
            signer.sign(b"message", &call()).unwrap();
        }
        device.faults().add(refuse(0x6f00));
        assert!(matches!(
            token.delete(&key, &call()),
            Err(Error::Device { .. })
        ));
        let deleted = token.delete(&key, &call()).unwrap();
        assert_eq!(deleted, Deletion::Destroyed);
    }
}

#[test]
fn what_others_made_is_never_touched() {
    let first = Slot::new(0x82).unwrap();
    let device = yubikey();
    let desk = Desk::with(&[&device]);
    let token = open(&desk);
    // The process dies before anything is done; somebody else takes the slot.
    let dead = token.free_slots(&[P256], &[], &call()).unwrap().remove(0);
    assert_eq!(dead, SlotId::new("82"));
    let other = open(&desk);
    let theirs = make(&*other, P256);
    assert_eq!(theirs.slot, dead);
    let before = inventory(&device);
    for (name, expected) in [
        (&dead, Deletion::Foreign),
        (&SlotId::new("82"), Deletion::Foreign),
        (&SlotId::new("83"), Deletion::NothingThere),
    ] {
        assert_eq!(discard(&*token, name).unwrap(), expected);
    }
    assert_eq!(inventory(&device), before);
    let signer = other.signer(&theirs, &Call::unlimited()).unwrap();
    signer.sign(b"message", &call()).unwrap();

    // A key without a certificate, a certificate without a key, something else.
    let key = PrivateKey::generate(CardAlgorithm::P256);
    let card = Card::builder()
        .pin(PIN)
        .imported(first, key)
        .object(
            object::certificate(Slot::new(0x83).unwrap()),
            &[0x70, 0x01, 0x00],
        )
        .object(
            object::certificate(Slot::new(0x84).unwrap()),
            b"something else",
        );
    let device = Device::new(card.build());
    let token = open(&Desk::with(&[&device]));
    let before = inventory(&device);
    let free = token.free_slots(&[P256], &[], &call()).unwrap();
    assert_eq!(free, [SlotId::new("85")]);
    for (name, expected) in [
        ("82", Deletion::Foreign),
        ("83", Deletion::NothingThere),
        ("84", Deletion::NothingThere),
    ] {
        assert!(matches!(
            generate(&*token, &SlotId::new(name), P256),
            Err(Error::SlotOccupied { .. })
        ));
        let left = discard(&*token, &SlotId::new(name)).unwrap();
        assert_eq!(left, expected, "{name}");
    }
    assert_eq!(inventory(&device), before);
}

/// Ways to lose our certificate in 82: it is deleted, replaced, overwritten with something
/// else.
fn losses(device: &Device) -> [Vec<u8>; 3] {
    let card = device.card();
    let theirs = card.attestation_certificate().unwrap();
    let certificate = [
        &[0x70][..],
        &length(theirs.len()),
        theirs,
        &[0x71, 1, 0, 0xfe, 0],
    ];
    [Vec::new(), certificate.concat(), vec![0x70, 1, 0]]
}

#[test]
fn a_key_that_lost_its_certificate_is_used_and_destroyed_and_by_its_slot_alone_left_alone() {
    for card in CANNOT_DELETE.into_iter().chain([yubikey as fn() -> Device]) {
        for spec in [P256, KeySpec::decrypt(Algorithm::P256)] {
            for loss in losses(&card()) {
                let device = card();
                let desk = Desk::with(&[&device]);
                let token = open(&desk);
                let key = make(&*token, spec);
                let ours = key_in_82(&device);
                put_object(&device, 0x82, &loss);
                // It may be another's by now.
                assert_eq!(discard(&*token, &key.slot).unwrap(), Deletion::Foreign);
                assert_eq!(key_in_82(&device), ours);
                drop(token);
                let token = open(&desk);
                works(&*token, &key);
                assert_eq!(token.delete(&key, &call()).unwrap(), Deletion::Destroyed);
                assert!(key_in_82(&device) != ours);
                let again = token.delete(&key, &call()).unwrap();
                assert_eq!(again, Deletion::NothingThere);
                let again = discard(&*token, &key.slot).unwrap();
                assert_eq!(again, Deletion::NothingThere);
                let free = token.free_slots(&[P256], &[], &call()).unwrap();
                assert_eq!(free, [SlotId::new("82")]);
            }
        }
    }
}

/// Uses a key for what it is, and checks what comes of it.
fn works(token: &dyn Token, key: &KeyRef) {
    prove(token, key, &call()).unwrap();
}

/// What is run before a key is entered.
fn prove(token: &dyn Token, key: &KeyRef, call: &Call) -> Result<(), Error> {
    let id = &token.info().id;
    match token.signer(key, &Call::unlimited()) {
        Ok(signer) => possession::of_signer(&*signer, id, call),
        Err(Error::Unsupported { .. }) => {
            possession::of_decryptor(&*token.decryptor(key, &Call::unlimited())?, id, call)
        }
        Err(error) => Err(error),
    }
}

#[test]
fn a_deletion_by_the_key_that_dies_anywhere_leaves_no_key_when_it_is_repeated() {
    for card in CANNOT_DELETE.into_iter().chain([yubikey as fn() -> Device]) {
        for fault in [Fault::RemoveBefore, Fault::RemoveAfter] {
            for step in 0..60 {
                let device = card();
                let desk = Desk::with(&[&device]);
                let token = open(&desk);
                let key = make(&*token, P256);
                let ours = key_in_82(&device);
                put_object(&device, 0x82, &losses(&device)[1]);
                device
                    .faults()
                    .add(Rule::new(fault.clone()).after(step).always());
                let deleted = token.delete(&key, &call());
                mend(&device);
                drop(token);
                let token = open(&desk);
                let there = key_in_82(&device) == ours;
                let repeated = token.delete(&key, &call()).unwrap();
                assert!(!there || repeated == Deletion::Destroyed, "{step}");
                assert!(key_in_82(&device) != ours, "{step}");
                let again = token.delete(&key, &call()).unwrap();
                assert_eq!(again, Deletion::NothingThere);
                if deleted.is_ok() {
                    assert!(step > 10, "{step}");
                    break;
                }
            }
        }
    }
}

#[test]
fn the_key_of_others_where_ours_was_is_never_destroyed_by_its_name() {
    for card in CANNOT_DELETE.into_iter().chain([yubikey as fn() -> Device]) {
        let by_others = |kind| vec![0, 0x47, 0, 0x82, 5, 0xac, 3, 0x80, 1, kind];
        let elements = PrivateKey::generate(CardAlgorithm::P256).import_elements();
        let import = [&[0, 0xfe, 0x11, 0x82, elements.len() as u8][..], &elements].concat();
        for command in [by_others(0x11), by_others(0x14), import.clone()] {
            let device = card();
            let token = open(&Desk::with(&[&device]));
            let key = make(&*token, P256);
            put_object(&device, 0x82, &[]);
            let made = as_administrator(&device)(&command);
            assert!(made.ends_with(&[0x90, 0]) || made[made.len() - 2] == 0x61);
            let theirs = key_in_82(&device);
            let deleted = token.delete(&key, &call()).unwrap();
            assert_eq!(deleted, Deletion::Foreign);
            assert_eq!(discard(&*token, &key.slot).unwrap(), Deletion::Foreign);
            assert_eq!(key_in_82(&device), theirs);
        }
    }
}

#[test]
fn a_key_that_claviger_did_not_make_is_not_destroyed_though_it_is_known() {
    for firmware in [Firmware::V5_7_1, Firmware::V5_4_3] {
        let first = Slot::new(0x82).unwrap();
        let card = Card::builder().firmware(firmware).pin(PIN);
        let device = Device::new(card.generated(first, CardAlgorithm::P256).build());
        let token = open(&Desk::with(&[&device]));
        let slots = token.slots(&call()).unwrap();
        let theirs = slots.into_iter().find(|s| s.slot == SlotId::new("82"));
        let SlotInfo {
            slot, public_key, ..
        } = theirs.unwrap();
        let public_key = public_key.unwrap();
        let before = key_in_82(&device);
        let deleted = token.delete(&KeyRef { slot, public_key }, &call());
        assert_eq!(deleted.unwrap(), Deletion::Foreign);
        assert_eq!(key_in_82(&device), before);
    }
}

#[test]
fn a_card_that_refuses_to_overwrite_keeps_the_certificate_of_others() {
    for card in CANNOT_DELETE {
        let device = card();
        let token = open(&Desk::with(&[&device]));
        let key = make(&*token, P256);
        for loss in losses(&device) {
            put_object(&device, 0x82, &loss);
            let object = object::certificate(Slot::new(0x82).unwrap());
            let before = device.card().object(object).map(<[u8]>::to_vec);
            let refuse = Rule::new(Fault::Status(Status(0x6a81))).on(ins::GENERATE);
            device.faults().add(refuse);
            assert!(matches!(
                token.delete(&key, &call()),
                Err(Error::CannotDestroy { .. })
            ));
            assert_eq!(device.card().object(object), before.as_deref());
        }
    }
}

/// Speaks to the card with the management key, as another program does.
fn as_administrator(device: &Device) -> impl Fn(&[u8]) -> Vec<u8> {
    let key = device.card().management_key().clone();
    let send = |apdu: &[u8]| match device.transmit(apdu) {
        claviger_virtual_yubikey::Answer::Reply(reply, _) => reply,
        claviger_virtual_yubikey::Answer::Removed(_) => panic!("removed"),
    };
    send(&[0, 0xa4, 4, 0, 5, 0xa0, 0, 0, 3, 8]);
    let algorithm = key.algorithm() as u8;
    let witness = send(&[0, 0x87, algorithm, 0x9b, 4, 0x7c, 2, 0x80, 0]);
    let size = key.algorithm().block_size();
    let witness = key.decrypt(&witness[4..4 + size]).unwrap();
    let size = size as u8;
    let template = [
        &[0x7c, 2 * size + 4, 0x80, size][..],
        &witness,
        &[0x81, size],
    ]
    .concat();
    let template = [template, vec![0x5a; usize::from(size)]].concat();
    let header = [0, 0x87, algorithm, 0x9b, template.len() as u8];
    assert!(send(&[&header[..], &template].concat()).ends_with(&[0x90, 0]));
    send
}

fn length(n: usize) -> [u8; 3] {
    [0x82, (n >> 8) as u8, n as u8]
}

/// Writes a slot's certificate object, as another program does; nothing removes it.
fn put_object(device: &Device, reference: u8, content: &[u8]) {
    let send = as_administrator(device);
    let id = [0x5c, 3, 0x5f, 0xc1, 0x0d + reference - 0x82, 0x53];
    let data = [&id[..], &length(content.len()), content].concat();
    let mut chunks = data.chunks(255).peekable();
    while let Some(chunk) = chunks.next() {
        let class = if chunks.peek().is_some() { 0x10 } else { 0 };
        let header = [class, 0xdb, 0x3f, 0xff, chunk.len() as u8];
        assert!(send(&[&header[..], chunk].concat()).ends_with(&[0x90, 0]));
    }
}

#[test]
fn old_firmware_does_all_that_it_offers() {
    for firmware in [Firmware::V5_4_3, Firmware::V5_2_4, Firmware::V4_3_5] {
        let device = old(firmware);
        let token = open(&Desk::with(&[&device]));
        assert_eq!(token.info().id.serial, device.card().serial().to_string());
        let specs = token.info().makes.clone();
        assert_eq!(specs.len(), 4, "{specs:?}");
        let mut made = Vec::new();
        for spec in specs {
            let key = make(&*token, spec);
            match spec.usage {
                claviger_token::KeyUse::Sign => {
                    let signer = token.signer(&key, &Call::unlimited()).unwrap();
                    signer.sign(b"message", &call()).unwrap();
                }
                claviger_token::KeyUse::Decrypt => {
                    let decryptor = token.decryptor(&key, &Call::unlimited()).unwrap();
                    let peer = p256_peer();
                    decryptor
                        .unwrap(Unwrap::Agree { peer: &peer }, &call())
                        .unwrap();
                }
            }
            made.push((key, spec));
        }
        let slots = token.slots(&call()).unwrap();
        for (key, spec) in &made {
            let deleted = token.delete(key, &call()).unwrap();
            assert_eq!(deleted, Deletion::Destroyed);
            let listed = slots.iter().find(|s| s.slot == key.slot).unwrap();
            assert_eq!(listed.public_key.as_ref(), Some(&key.public_key));
            assert_eq!(listed.uses, [spec.usage]);
            assert_eq!(listed.label, "alice");
        }
        // Of a generation that never came to its key there is nothing to destroy.
        let before = inventory(&device);
        let slot = SlotId::new("90");
        device
            .faults()
            .add(Rule::new(Fault::Status(Status(0x6f00))).on(ins::GENERATE));
        assert!(generate(&*token, &slot, P256).is_err());
        device.faults().clear();
        assert_eq!(inventory(&device), before);
    }
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
        assert_eq!(free, [SlotId::new("83")]);
        assert!(matches!(
            generate(&*token, &SlotId::new("82"), P256),
            Err(Error::SlotOccupied { .. })
        ));
    }
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
fn a_card_of_the_plain_standard_is_served_without_yubicos_extensions() {
    let device = plain_card();
    let desk = Desk::with(&[&device]);
    let driver = desk.driver();
    let found = driver.tokens("piv:", &Call::unlimited()).unwrap().remove(0);
    assert_eq!(found.id.manufacturer, "PIV");
    assert_eq!(found.id.serial, "ab".repeat(16));
    // Nobody is logged in by what is bound to fail.
    let counts = counted(&device, || {
        let opened = driver.open("piv:pin-policy=always", &call().using(access()));
        assert!(matches!(opened.err(), Some(Error::BadBackend { .. })));
    });
    assert!(!counts.contains_key(&ins::VERIFY), "{counts:02x?}");
    let token = driver
        .open(&found.backend, &call().using(access()))
        .unwrap();
    let mut made = Vec::new();
    for spec in [P256, KeySpec::sign(Algorithm::Rsa2048)] {
        let key = make(&*token, spec);
        let signer = token.signer(&key, &Call::unlimited()).unwrap();
        signer.sign(b"message", &call()).unwrap();
        let counts = counted(&device, || drop(signer.sign(b"message", &call()).unwrap()));
        assert!(!counts.contains_key(&ins::VERIFY), "{counts:02x?}");
        assert!(!counts.contains_key(&ins::SELECT), "{counts:02x?}");
        made.push(key);
    }
    let used = || {
        let slots = token.slots(&call()).unwrap();
        let used = slots.iter().filter(|s| s.state == SlotState::Occupied);
        used.count()
    };
    assert_eq!(used(), 2);
    for key in made {
        let deleted = token.delete(&key, &call()).unwrap();
        assert_eq!(deleted, Deletion::Destroyed);
    }
    assert_eq!(used(), 0);
}

/// A source of the management key that does something first.
struct Meanwhile<F>(F);

impl<F: Fn() + Send + Sync> PinSource for Meanwhile<F> {
    fn pin(&self, _: &TokenId, _: &str, _: &Call) -> Result<Pin, Error> {
        (self.0)();
        Ok(MANAGEMENT_KEY.into())
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
        let second = desk
            .driver()
            .open("piv:", &call().clone().using(slower.clone()))
            .unwrap();
        let ours = second.free_slots(&[P256], &[], &call()).unwrap().remove(0);
        assert_eq!(ours, theirs);
        assert_ne!(ours.as_str(), theirs.as_str());
        let counts = counted(&device, || {
            assert!(matches!(
                generate(&*second, &ours, P256),
                Err(Error::SlotOccupied { .. })
            ));
        });
        assert_eq!(counts[&ins::GENERATE], 1, "the first one's");
        assert_eq!(discard(&*second, &ours).unwrap(), Deletion::Foreign);
        let key = made.lock().unwrap().take().unwrap();
        let signer = first.signer(&key, &Call::unlimited()).unwrap();
        signer.sign(b"message", &call()).unwrap();
        let next = second.free_slots(&[P256], &[], &call()).unwrap();
        assert_eq!(next, [SlotId::new("83")]);
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
        assert_eq!(free, [SlotId::new("83")]);
    }
    let taken: Vec<SlotId> = (0x82..=0x95)
        .map(|n| SlotId::new(format!("{n:x}")))
        .collect();
    assert!(matches!(
        token.free_slots(&[P256], &taken, &call()),
        Err(Error::OnlyNamedSlots { left, .. }) if left == ["9a", "9c", "9d", "9e"]
    ));
    let free = token.free_slots(&[P256], &taken[..1], &call()).unwrap();
    assert_eq!(free, [second]);
}

#[test]
fn two_processes_share_a_card() {
    let device = yubikey();
    let desk = Desk::with(&[&device]);
    // Each of them knows nothing of the other.
    let tokens = [open(&desk), open(&desk)];
    let keys: Vec<KeyRef> = tokens.iter().map(|token| make(&**token, P256)).collect();
    assert_ne!(keys[0].slot, keys[1].slot);
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
    assert_eq!(theirs.slot, key.slot);
    let refused = signer.sign(b"message", &call());
    assert!(
        matches!(refused, Err(Error::KeyMismatch { .. })),
        "{refused:?}"
    );
    let deleted = token.delete(&key, &call()).unwrap();
    assert_eq!(deleted, Deletion::Foreign);
    other.signer(&theirs, &Call::unlimited()).unwrap();
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
