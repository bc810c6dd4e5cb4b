//! Private keys of others under the `CKA_ID` of ours that cannot be tried, or must not be.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use claviger_token::{
    Algorithm, Call, Deletion, Error, KeyRef, KeySpec, PublicKey, SlotId, Unfinished,
    unfinished_mark,
};
use cryptoki::object::{Attribute, CertificateType, ObjectClass};
use cryptoki::session::Session;

use crate::common::{Bench, P256, Theirs, key_in};

/// A key that nothing tells from another one by what it does.
const IDLE: [Attribute; 2] = [Attribute::Sign(false), Attribute::Derive(false)];
/// A key that is tried with the PIN only.
const ASKS: [Attribute; 1] = [Attribute::AlwaysAuthenticate(true)];

/// One element of DER.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = u8::try_from(content.len()).unwrap();
    let head = match length {
        0..0x80 => vec![tag, length],
        _ => vec![tag, 0x81, length],
    };
    [head, content].concat()
}

/// As much of a certificate as is read (RFC 5280 §4.1).
fn certify(session: &Session, id: &[u8], key: &PublicKey) {
    let (serial, empty) = ([2, 1, 1], der(0x30, &[]));
    let spki = key.to_der().unwrap();
    let tbs = der(0x30, &[&serial, &empty, &empty, &empty, &empty, &spki]);
    let certificate = der(0x30, &[&tbs, &empty, &[3, 1, 0]]);
    let template = [
        Attribute::Class(ObjectClass::CERTIFICATE),
        Attribute::CertificateType(CertificateType::X_509),
        Attribute::Token(true),
        Attribute::Id(id.to_vec()),
        Attribute::Label(b"certificate".to_vec()),
        Attribute::Subject(vec![0x30, 0]),
        Attribute::Value(certificate),
    ];
    session.create_object(&template).unwrap();
}

/// Puts a private key of others in the place of ours. Our public key object stays, and a
/// certificate of theirs is added where `certified`.
fn exchange(bench: &Bench, theirs: &Theirs<'_>, certified: bool) {
    bench.others(|session| {
        let ours = [
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::Id(theirs.id.to_vec()),
        ];
        for object in session.find_objects(&ours).unwrap() {
            session.destroy_object(object).unwrap();
        }
        let (public, _, key) = theirs.make(session);
        session.destroy_object(public).unwrap();
        if certified {
            certify(session, theirs.id, &key);
        }
    });
}

fn is_doubt(result: &Result<Deletion, Error>) -> bool {
    let told = "a key that cannot be identified";
    matches!(result, Err(Error::KeyMismatch { found, .. }) if found.contains(told))
}

#[test]
fn a_key_of_others_that_cannot_be_tried_is_not_destroyed_in_place_of_ours() {
    for (spec, algorithm) in [
        (P256, Algorithm::P256),
        (KeySpec::decrypt(Algorithm::P256), Algorithm::P256),
        (KeySpec::sign(Algorithm::Ed25519), Algorithm::Ed25519),
        (KeySpec::decrypt(Algorithm::X25519), Algorithm::X25519),
    ] {
        for certified in [true, false] {
            let bench = Bench::new();
            let ours = bench.ours("05", spec);
            let theirs = Theirs {
                algorithm,
                private: &IDLE,
                ..Theirs::p256(&[5])
            };
            exchange(&bench, &theirs, certified);
            let deleted = bench.delete(&ours);
            assert!(is_doubt(&deleted), "{spec}, {certified}: {deleted:?}");
            // Theirs, and our public key, which may be all that tells of the key.
            assert_eq!((bench.count("theirs"), bench.count("ours")), (1, 1));
        }
    }
}

#[test]
fn a_key_of_others_that_asks_for_the_pin_is_not_destroyed_in_place_of_ours() {
    for certified in [true, false] {
        let bench = Bench::new();
        let ours = bench.ours("05", P256);
        let theirs = Theirs {
            private: &ASKS,
            ..Theirs::p256(&[5])
        };
        exchange(&bench, &theirs, certified);
        let deleted = bench.delete(&ours);
        // With their certificate, two keys are possible, and none gets the PIN.
        match certified {
            true => assert!(is_doubt(&deleted), "{deleted:?}"),
            false => assert_eq!(deleted.unwrap(), Deletion::Foreign),
        }
        assert_eq!(bench.count("theirs"), 1);
    }
}

#[test]
fn a_key_of_others_that_cannot_be_tried_is_not_discarded_where_labels_are_fixed() {
    for (private, certified) in [
        (&IDLE[..], true),
        (&IDLE, false),
        (&ASKS, true),
        (&ASKS, false),
    ] {
        let bench = Bench::new();
        let mark = unfinished_mark();
        let ours = bench.others(|session| {
            let pair = Theirs {
                label: &mark,
                ..Theirs::p256(&[7])
            };
            pair.make(session).2
        });
        let fixed = [private, &[Attribute::Modifiable(false)]].concat();
        let theirs = Theirs {
            label: &mark,
            private: &fixed,
            ..Theirs::p256(&[7])
        };
        exchange(&bench, &theirs, certified);
        let left = Unfinished {
            slot: SlotId::new("07"),
            mark: mark.clone(),
            public_key: Some(ours),
        };
        let discarded = bench.discard(&left);
        assert!(
            is_doubt(&discarded) || matches!(discarded, Ok(Deletion::Foreign)),
            "{discarded:?}"
        );
        let private = bench.others(|session| {
            let template = [Attribute::Class(ObjectClass::PRIVATE_KEY)];
            session.find_objects(&template).unwrap().len()
        });
        assert_eq!(private, 1, "{certified}");
    }
}

#[test]
fn our_key_that_was_moved_is_destroyed_and_the_one_in_its_place_that_cannot_be_tried_stays() {
    let bench = Bench::new();
    let ours = bench.ours("05", P256);
    bench.others(|session| {
        let template = [
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::Label(b"ours".to_vec()),
        ];
        for object in session.find_objects(&template).unwrap() {
            let id = [Attribute::Id(vec![6])];
            session.update_attributes(object, &id).unwrap();
        }
        let theirs = Theirs {
            private: &IDLE,
            ..Theirs::p256(&[5])
        };
        let (public, ..) = theirs.make(session);
        session.destroy_object(public).unwrap();
    });
    assert_eq!(bench.delete(&ours).unwrap(), Deletion::Destroyed);
    assert_eq!((bench.count("ours"), bench.count("theirs")), (0, 1));
}

#[test]
fn a_key_anywhere_that_cannot_be_tried_is_named_where_ours_is_not_found() {
    for (private, why) in [
        (&ASKS[..], "it requires the PIN for each use"),
        (&IDLE, "it neither signs nor decrypts"),
    ] {
        let bench = Bench::new();
        let ours = bench.ours("05", P256);
        bench.others(|session| {
            let ours = [Attribute::Label(b"ours".to_vec())];
            for object in session.find_objects(&ours).unwrap() {
                session.destroy_object(object).unwrap();
            }
            // Under another id, and with nothing that tells its public half.
            let theirs = Theirs {
                private,
                ..Theirs::p256(&[6])
            };
            let (public, ..) = theirs.make(session);
            session.destroy_object(public).unwrap();
        });
        let opened = bench.signer(&ours).map(drop);
        let told = format!("a key that cannot be identified: {why}");
        assert!(
            matches!(&opened, Err(Error::KeyMismatch { found, .. }) if *found == told),
            "{opened:?}"
        );
        let deleted = bench.delete(&ours);
        assert!(is_doubt(&deleted), "{deleted:?}");
        assert_eq!(bench.count("theirs"), 1);
    }
}

#[test]
fn a_key_whose_certificate_is_anothers_gets_nothing_to_sign() {
    // The one cannot be told from ours without the PIN; the other is tried.
    for private in [&ASKS[..], &[]] {
        let bench = Bench::new();
        let ours = bench.ours("05", P256);
        let theirs = Theirs {
            private,
            ..Theirs::p256(&[5])
        };
        exchange(&bench, &theirs, true);
        let opened = bench.signer(&ours).map(drop);
        assert!(
            matches!(opened, Err(Error::KeyMismatch { .. })),
            "{opened:?}"
        );
    }
}

#[test]
fn a_key_of_others_in_place_of_ours_is_not_given_our_name() {
    let bench = Bench::new();
    let (ours, _) = bench.unfinished("05", P256).unwrap();
    let theirs = Theirs {
        private: &IDLE,
        ..Theirs::p256(&[5])
    };
    exchange(&bench, &theirs, false);
    let named = bench.token.name(&ours, "alice", &Call::unlimited());
    assert!(matches!(named, Err(Error::KeyMismatch { .. })), "{named:?}");
    assert_eq!((bench.count("theirs"), bench.count("alice")), (1, 0));
}

#[test]
fn our_key_with_its_own_certificate_that_asks_for_the_pin_is_used_and_destroyed() {
    let bench = Bench::new();
    let key: KeyRef = bench.others(|session| {
        let pair = Theirs {
            private: &ASKS,
            ..Theirs::p256(&[5])
        };
        let (.., key) = pair.make(session);
        certify(session, &[5], &key);
        key_in("05", &key)
    });
    bench.signs(&key);
    assert_eq!(bench.delete(&key).unwrap(), Deletion::Destroyed);
    assert_eq!(bench.count("theirs"), 0);
}
