//! Ciphertexts for a key open; all others give one and the same error.

use claviger_formats::envelope;
use claviger_token::possession::SSH_RSA_LABEL;
use claviger_token::{Algorithm, Error, KeyUse, PublicKey, Unwrap};

use crate::bench::challenge;
use crate::bench::{Bench, OpenKey, refused};
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
        let handle = OpenKey::Decrypts(made.decryptor());
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
        let cannot_open = |request: Unwrap<'_>| match decryptor.unwrap(request, &bench.call) {
            Err(Error::DecryptionFailed) => {}
            Err(other) => panic!("{spec}: {request:?} gave {other:?}"),
            Ok(_) => panic!("{spec}: {request:?} opened"),
        };
        for peer in sound_peers() {
            if peer.algorithm() != spec.algorithm {
                cannot_open(Unwrap::Agree { peer: &peer });
            }
        }
        for ciphertext in &ciphertexts(good.sent()) {
            let is_the_one = *ciphertext == good.sent();
            for label in [SSH_RSA_LABEL, b"another label"] {
                if !is_the_one || label != SSH_RSA_LABEL {
                    cannot_open(Unwrap::Oaep { ciphertext, label });
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

/// A sound public key of each algorithm in which a peer could be sent, whether there is key
/// agreement with it or not: of the right length on the wrong curve, too.
fn sound_peers() -> [PublicKey; 6] {
    let p256 = p256::SecretKey::from_slice(&[7; 32]).unwrap().public_key();
    let k256 = k256::SecretKey::from_slice(&[7; 32]).unwrap().public_key();
    let p384 = p384::SecretKey::from_slice(&[7; 48]).unwrap().public_key();
    let ed25519 = ed25519_dalek::SigningKey::from_bytes(&[7; 32]).verifying_key();
    // Odd, and as long as it has to be; nobody looks for its factors.
    let modulus = [0xc5; 256];
    [
        PublicKey::from_bytes(Algorithm::P256, &p256.to_sec1_bytes()),
        PublicKey::from_bytes(Algorithm::Secp256k1, &k256.to_sec1_bytes()),
        PublicKey::from_bytes(Algorithm::P384, &p384.to_sec1_bytes()),
        PublicKey::from_bytes(Algorithm::Ed25519, ed25519.as_bytes()),
        PublicKey::from_bytes(Algorithm::X25519, &[9; 32]),
        PublicKey::from_rsa(&modulus, &[1, 0, 1]),
    ]
    .map(Result::unwrap)
}

/// What no key opens with the right label, but for `good` itself.
fn ciphertexts(good: &[u8]) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = [0, 1, 31, 32, 33, 64, 65, 66, 97, 256, 384, 512, 5000]
        .map(|length| vec![0; length])
        .into();
    let mut altered = good.to_vec();
    altered[good.len() / 2] ^= 1;
    all.extend([
        altered,
        good.to_vec(),
        good[1..].to_vec(),
        [good, &[0]].concat(),
        vec![0xff; good.len()],
    ]);
    all
}

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
