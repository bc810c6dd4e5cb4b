//! Making and using keys, command by command.

use std::collections::BTreeMap;

use claviger_token::{
    Algorithm, Call, Deletion, Driver, Error, KeySpec, PublicKey, SlotId, SlotState, Unwrap,
};
use claviger_virtual_yubikey::{Fault, Firmware, Rule, Status, ins};

use crate::common::*;
use crate::stage::*;

fn p256_peer() -> PublicKey {
    let key = p256::SecretKey::from_slice(&[7; 32]).unwrap();
    PublicKey::from_bytes(Algorithm::P256, &key.public_key().to_sec1_bytes()).unwrap()
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
            let listed = slots.iter().find(|s| key.slot.is_in(&s.slot)).unwrap();
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
