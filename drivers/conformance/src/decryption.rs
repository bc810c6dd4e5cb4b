//! Ciphertexts for a key open; all others give one and the same error.

use claviger_formats::envelope;
use claviger_token::key::from_hex;
use claviger_token::possession::SSH_RSA_LABEL;
use claviger_token::{Algorithm, Error, KeyUse, Unwrap};
use p256::elliptic_curve::sec1::ToEncodedPoint;

use crate::bench::challenge;
use crate::bench::{Bench, Handle, refused};
use crate::check::{Skip, Theme};
use crate::subject::Subject;

/// What these checks are about.
pub(crate) const THEME: Theme = Theme::Decryption;

pub(crate) fn a_decryptor_agrees_with_what_its_peer_computes(
    subject: &dyn Subject,
) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    for spec in bench.specs(KeyUse::Decrypt)? {
        let made = bench.make(spec);
        let handle = Handle::Decrypts(made.decryptor());
        for _ in 0..8 {
            handle.work(&bench.call).unwrap();
        }
    }
    Ok(())
}

pub(crate) fn what_does_not_open_says_only_that(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    for spec in bench.specs(KeyUse::Decrypt)? {
        let made = bench.make(spec);
        let decryptor = made.decryptor();
        let good = challenge(&made.key.public_key);
        let mut inputs: Vec<Vec<u8>> = [0, 1, 31, 32, 33, 64, 65, 66, 97, 256, 384, 512, 5000]
            .map(|length| vec![0; length])
            .into();
        inputs.push(good.sent()[1..].to_vec());
        inputs.push([good.sent(), &[0]].concat());
        match spec.algorithm {
            Algorithm::P256 => {
                inputs.push([&[4][..], &[0; 64]].concat());
                let mut off_curve = good.sent().to_vec();
                off_curve[64] ^= 1;
                inputs.push(off_curve);
                let point = p256::PublicKey::from_sec1_bytes(good.sent()).unwrap();
                inputs.push(point.to_encoded_point(true).as_bytes().to_vec());
                inputs.push([&[6], &good.sent()[1..]].concat());
            }
            Algorithm::X25519 => {
                inputs.extend(X25519_LOW_ORDER.map(|hex| from_hex(hex).unwrap()));
            }
            _ => {
                let mut altered = good.sent().to_vec();
                altered[100] ^= 1;
                inputs.push(altered);
                inputs.push(vec![0xff; good.sent().len()]);
                refused!(
                    decryptor.unwrap(
                        Unwrap::Oaep {
                            ciphertext: good.sent(),
                            label: b"another label"
                        },
                        &bench.call
                    ),
                    Error::DecryptionFailed
                );
            }
        }
        for input in &inputs {
            for request in [
                Unwrap::Agree { peer: input },
                Unwrap::Oaep {
                    ciphertext: input,
                    label: SSH_RSA_LABEL,
                },
            ] {
                match decryptor.unwrap(request, &bench.call) {
                    Err(Error::DecryptionFailed) => {}
                    Err(other) => panic!("{spec}: {request:?} gave {other:?}"),
                    Ok(_) => panic!("{spec}: {request:?} opened"),
                }
            }
        }
        let answer = decryptor.unwrap(good.request(), &bench.call).unwrap();
        assert!(
            good.is_answered_by(&answer),
            "{spec} is spoilt by bad input"
        );
    }
    Ok(())
}

/// The points of small order (RFC 7748 §6.1), besides zero: 1, two of order 8, p - 1, p, p + 1.
const X25519_LOW_ORDER: [&str; 6] = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

pub(crate) fn an_envelope_opens_for_its_recipient_alone(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    for spec in bench.specs(KeyUse::Decrypt)? {
        let (made, other) = (bench.make(spec), bench.make(spec));
        let decryptor = made.decryptor();
        let open = |file: &[u8]| envelope::decrypt(&*decryptor, file, &bench.call);

        for length in [0, 1, 65_536, 200_000] {
            let plaintext = vec![7; length];
            let file = envelope::encrypt(&[&made.key.public_key], &plaintext).unwrap();
            assert!(*open(&file).unwrap() == plaintext, "{spec}, {length} bytes");
        }

        let both = [&other.key.public_key, &made.key.public_key];
        let file = envelope::encrypt(&both, b"for two").unwrap();
        assert_eq!(**open(&file).unwrap(), *b"for two");

        let foreign = envelope::encrypt(&[&other.key.public_key], b"for another").unwrap();
        refused!(open(&foreign), Error::DecryptionFailed);
        refused!(open(b""), Error::DecryptionFailed);
        refused!(open(&[b'a'; 1000]), Error::DecryptionFailed);

        let file = envelope::encrypt(&[&made.key.public_key], b"conformance").unwrap();
        for i in (0..file.len()).step_by(7).chain([file.len() - 1]) {
            refused!(open(&file[..i]), Error::DecryptionFailed);
            let mut altered = file.clone();
            altered[i] ^= 1;
            refused!(open(&altered), Error::DecryptionFailed);
        }
        assert_eq!(**open(&file).unwrap(), *b"conformance");
    }
    Ok(())
}
