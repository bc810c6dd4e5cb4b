//! Keys that are found by their public half, however the token shows it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use claviger_pkcs11::Pkcs11Driver;
use claviger_token::{
    Algorithm, Call, Deletion, Error, KeyRef, KeySpec, KeyUse, PublicKey, SlotId, possession,
};
use cryptoki::object::{Attribute, CertificateType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use crate::common::{Bench, P256, P256_PARAMS, Theirs, key_in};

/// Every kind of key that SoftHSM makes and that tells nothing of its public half.
const SILENT: [KeySpec; 5] = [
    P256,
    KeySpec::sign(Algorithm::Secp256k1),
    KeySpec::sign(Algorithm::Ed25519),
    KeySpec::decrypt(Algorithm::P256),
    KeySpec::decrypt(Algorithm::X25519),
];

fn proves(bench: &Bench, key: &KeyRef, usage: KeyUse) -> SlotId {
    match usage {
        KeyUse::Sign => bench.signs(key),
        KeyUse::Decrypt => bench.agrees(key).slot(),
    }
}

fn objects(session: &Session, class: ObjectClass) -> Vec<ObjectHandle> {
    session.find_objects(&[Attribute::Class(class)]).unwrap()
}

#[test]
fn a_moved_key_is_used_where_it_is_and_deleted_there() {
    for spec in [
        P256,
        KeySpec::decrypt(Algorithm::X25519),
        KeySpec::sign(Algorithm::Rsa2048),
    ] {
        let bench = Bench::new();
        let ours = bench.ours("0a", spec);
        bench.others(|session| {
            for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
                for object in objects(session, class) {
                    let id = [Attribute::Id(vec![0xb])];
                    session.update_attributes(object, &id).unwrap();
                }
            }
        });
        assert_eq!(proves(&bench, &ours, spec.usage).name(), "0b");
        assert_eq!(bench.delete(&ours).unwrap(), Deletion::Destroyed);
        assert_eq!(bench.count("ours"), 0);
    }
}

#[test]
fn a_key_without_its_public_object_is_proven_by_use() {
    for spec in SILENT {
        for moved in [false, true] {
            let bench = Bench::new();
            let ours = bench.ours("0a", spec);
            bench.others(|session| {
                // Another of its kind, which is not it.
                let other = Theirs {
                    algorithm: match spec.algorithm {
                        Algorithm::Secp256k1 => Algorithm::P256,
                        other => other,
                    },
                    ..Theirs::p256(&[0xa])
                };
                let (public, ..) = other.make(session);
                session.destroy_object(public).unwrap();
                for object in objects(session, ObjectClass::PUBLIC_KEY) {
                    session.destroy_object(object).unwrap();
                }
                for object in objects(session, ObjectClass::PRIVATE_KEY) {
                    let id = [Attribute::Id(vec![0xb])];
                    if moved {
                        session.update_attributes(object, &id).unwrap();
                    }
                }
            });
            let slot = proves(&bench, &ours, spec.usage);
            assert_eq!(slot.name(), if moved { "0b" } else { "0a" });
            assert_eq!(bench.delete(&ours).unwrap(), Deletion::Destroyed, "{spec}");
            assert_eq!((bench.count("ours"), bench.count("theirs")), (0, 1));
        }
    }
}

#[test]
fn two_pairs_under_one_id_are_told_apart_by_what_they_do() {
    for (spec, usage) in [
        (Algorithm::P256, KeyUse::Sign),
        (Algorithm::X25519, KeyUse::Decrypt),
    ] {
        let bench = Bench::new();
        let pair = Theirs {
            algorithm: spec,
            ..Theirs::p256(&[1])
        };
        let keys = bench.others(|session| [(); 3].map(|()| pair.make(session).2));
        let shown: Vec<_> = bench
            .slots()
            .into_iter()
            .filter_map(|slot| slot.public_key)
            .collect();
        assert_eq!(shown.len(), 3);
        for key in &keys {
            assert!(shown.contains(key));
            proves(&bench, &key_in("01", key), usage);
        }
        // One public object less, and one private one of another pair.
        assert_eq!(
            bench.delete(&key_in("01", &keys[1])).unwrap(),
            Deletion::Destroyed
        );
        for key in [&keys[0], &keys[2]] {
            proves(&bench, &key_in("01", key), usage);
        }
    }
}

#[test]
fn keys_without_an_id_are_named_by_their_fingerprints() {
    let bench = Bench::new();
    let keys = bench.others(|session| [(); 2].map(|()| Theirs::p256(&[]).make(session).2));
    let names: Vec<_> = keys
        .iter()
        .map(|key| key.fingerprint().to_string())
        .collect();
    let mut shown: Vec<_> = bench
        .slots()
        .iter()
        .map(|slot| slot.slot.to_string())
        .collect();
    shown.sort();
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(shown, sorted);
    for (key, name) in keys.iter().zip(&names) {
        assert_eq!(bench.signs(&key_in(name, key)).name(), name);
    }
    assert_eq!(
        bench.delete(&key_in(&names[0], &keys[0])).unwrap(),
        Deletion::Destroyed
    );
    assert_eq!(bench.count("theirs"), 2);
    bench.signs(&key_in(&names[1], &keys[1]));
    // Nothing is generated there.
    let made = bench.unfinished(&names[0], P256);
    assert!(matches!(made, Err(Error::BadBackend { .. })), "{made:?}");
}

#[test]
fn a_public_half_under_another_id_does_not_hide_the_private_one() {
    let bench = Bench::new();
    let key = bench.others(|session| {
        let (public, _, key) = Theirs::p256(&[1]).make(session);
        let id = [Attribute::Id(vec![2])];
        session.update_attributes(public, &id).unwrap();
        key
    });
    assert_eq!(bench.signs(&key_in("02", &key)).name(), "01");
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = u8::try_from(content.len()).unwrap();
    let head = match length {
        0..0x80 => vec![0x30, length],
        _ => vec![0x30, 0x81, length],
    };
    [head, content].concat()
}

/// As much of a certificate as is read (RFC 5280 §4.1), of version 3 or 1.
fn certificate(key: &PublicKey, has_version: bool) -> Vec<u8> {
    let version: &[u8] = if has_version {
        &[0xa0, 3, 2, 1, 2]
    } else {
        &[]
    };
    let (serial, empty) = ([2, 1, 1], sequence(&[]));
    let spki = key.to_der().unwrap();
    let tbs = [version, &serial, &empty, &empty, &empty, &empty, &spki];
    sequence(&[&sequence(&tbs), &empty, &[3, 1, 0]])
}

#[test]
fn a_certificate_stands_in_for_a_public_key() {
    for id in [&[8][..], &[]] {
        let bench = Bench::new();
        let key = bench.others(|session| {
            let (public, _, key) = Theirs::p256(id).make(session);
            session.destroy_object(public).unwrap();
            let mut template = vec![
                Attribute::Class(ObjectClass::CERTIFICATE),
                Attribute::CertificateType(CertificateType::X_509),
                Attribute::Token(true),
                Attribute::Label(b"certificate".to_vec()),
                Attribute::Subject(vec![0x30, 0]),
                Attribute::Value(certificate(&key, id.is_empty())),
            ];
            if !id.is_empty() {
                template.push(Attribute::Id(id.to_vec()));
            }
            session.create_object(&template).unwrap();
            key
        });
        let [shown] = &bench.slots()[..] else {
            panic!("there is one key");
        };
        assert_eq!(shown.public_key.as_ref(), Some(&key));
        bench.signs(&shown.key_ref().unwrap());
        // Without a PIN it is seen, too.
        let info = bench.token.info();
        let seen = common::visible(&Pkcs11Driver::new(), info).unwrap();
        assert_eq!(seen[0].public_key.as_ref(), Some(&key));
        assert_eq!(seen[0].uses, [KeyUse::Sign, KeyUse::Decrypt]);
        assert_eq!(seen[0].slot, shown.slot);
    }
}

/// Puts a public key object in the place of the one that the token made.
fn replace_public(session: &Session, public: ObjectHandle, params: &[u8], point: &[u8]) {
    use cryptoki::object::KeyType;
    session.destroy_object(public).unwrap();
    let template = [
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::EC),
        Attribute::Token(true),
        Attribute::Id(vec![1]),
        Attribute::EcParams(params.to_vec()),
        Attribute::EcPoint(point.to_vec()),
    ];
    session.create_object(&template).unwrap();
}

#[test]
fn a_public_key_may_be_encoded_as_others_do() {
    // What `openssl ecparam -name prime256v1 -param_enc explicit -outform der` writes.
    let explicit = "3081f7020101302c06072a8648ce3d0101022100ffffffff00000001000000000000000000\
        000000ffffffffffffffffffffffff305b0420ffffffff00000001000000000000000000000000fffffffff\
        ffffffffffffffc04205ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604b031500\
        c49d360886e704936a6678e1139d26b7819f7e900441046b17d1f2e12c4247f8bce6e563a440f277037d812deb\
        33a0f4a13945d898c2964fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5022100\
        ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551020101";
    let explicit = claviger_token::key::from_hex(explicit).unwrap();
    let octets = |point: &[u8]| [&[4, 65], point].concat();
    let bits = |point: &[u8]| [&[3, 66, 0], point].concat();
    let bare = |point: &[u8]| point.to_vec();
    for (params, encode) in [
        (&explicit[..], octets as fn(&[u8]) -> Vec<u8>),
        (&explicit, bits),
        (&P256_PARAMS, bits),
        (&P256_PARAMS, bare),
    ] {
        let bench = Bench::new();
        let key = bench.others(|session| {
            let (public, _, key) = Theirs::p256(&[1]).make(session);
            replace_public(session, public, params, &encode(key.as_bytes()));
            key
        });
        assert_eq!(bench.slots()[0].public_key.as_ref(), Some(&key));
        bench.signs(&key_in("01", &key));
        // Wherever it is.
        bench.signs(&key_in("02", &key));
    }
}

#[test]
fn a_pair_that_is_no_pair_signs_nothing_and_agrees_on_nothing() {
    let bench = Bench::new();
    let old = bench.others(|session| {
        let (_, private, old) = Theirs::p256(&[7]).make(session);
        session.destroy_object(private).unwrap();
        let (public, ..) = Theirs::p256(&[7]).make(session);
        session.destroy_object(public).unwrap();
        old
    });
    let (id, call) = (&bench.token.info().id, Call::unlimited());
    let key = key_in("07", &old);
    let signed = bench
        .signer(&key)
        .and_then(|signer| signer.sign(b"message", &call).map(drop));
    assert!(
        matches!(
            signed,
            Err(Error::KeyMismatch { .. } | Error::NoPossession { .. })
        ),
        "{signed:?}"
    );
    let opened = bench
        .token
        .decryptor(&key, &Call::unlimited())
        .and_then(|decryptor| {
            let proof = possession::of_decryptor(&*decryptor, id, &call);
            assert!(decryptor.confirm(&call).is_err());
            proof
        });
    assert!(
        matches!(
            opened,
            Err(Error::KeyMismatch { .. } | Error::NoPossession { .. })
        ),
        "{opened:?}"
    );
}

#[test]
fn a_key_that_may_not_be_used_says_why() {
    let bench = Bench::new();
    let (sign, decrypt) = bench.others(|session| {
        let make = |id: &[u8], private: &[Attribute]| {
            let pair = Theirs {
                private,
                ..Theirs::p256(id)
            };
            pair.make(session).2
        };
        (
            make(&[1], &[Attribute::Sign(false)]),
            make(&[2], &[Attribute::Derive(false)]),
        )
    });
    let signer = bench.signer(&key_in("01", &sign)).map(drop);
    let Err(Error::NotUsable { reason, wanted, .. }) = signer else {
        panic!("CKA_SIGN is false, but: {signer:?}");
    };
    assert_eq!((&*reason, wanted), ("CKA_SIGN is false", P256));
    let decryptor = bench
        .token
        .decryptor(&key_in("02", &decrypt), &Call::unlimited())
        .map(drop);
    let Err(Error::NotUsable { reason, .. }) = decryptor else {
        panic!("CKA_DERIVE is false, but: {decryptor:?}");
    };
    assert_eq!(reason, "CKA_DERIVE is false");
}

#[test]
fn a_key_that_wants_the_pin_each_time_gets_it() {
    let bench = Bench::new();
    let private = [Attribute::AlwaysAuthenticate(true)];
    let keys = bench.others(|session| {
        [Algorithm::P256, Algorithm::Rsa2048].map(|algorithm| {
            let pair = Theirs {
                algorithm,
                private: &private,
                ..Theirs::p256(&[1])
            };
            pair.make(session).2
        })
    });
    for key in &keys {
        let key = key_in("01", key);
        for _ in 0..2 {
            bench.signs(&key);
        }
        // What does not want it is not disturbed.
        let other = bench.ours("02", P256);
        bench.signs(&other);
        bench.delete(&other).unwrap();
        assert_eq!(bench.delete(&key).unwrap(), Deletion::Destroyed);
    }
    assert_eq!(bench.count("theirs"), 0);
}
