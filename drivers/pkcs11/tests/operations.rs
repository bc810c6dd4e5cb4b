//! What the driver calls to use a key, and what it believes of the answers.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::Arc;

use claviger_altered_module::AlteredModule;
use claviger_pkcs11::Pkcs11Driver;
use claviger_tests::SoftHsm;
use claviger_token::{
    Algorithm, Call, Driver, Error, KeyRef, KeySpec, NewKey, Signer, Token, unfinished_mark,
};

struct Stage {
    hsm: SoftHsm,
    module: AlteredModule,
}

impl Stage {
    fn new(lines: &[&str]) -> Self {
        let (hsm, module) = (
            SoftHsm::new(),
            AlteredModule::of(SoftHsm::module().as_ref()),
        );
        let stage = Stage { hsm, module };
        stage.alter(lines);
        stage
    }

    fn alter(&self, lines: &[&str]) {
        let only = format!("only {}", self.hsm.label());
        self.module.alter(&[&[&*only], lines].concat());
    }

    fn open(&self) -> Arc<dyn Token> {
        let backend = format!("pkcs11:?module-path={}", self.module.path().display());
        let (driver, access) = (Pkcs11Driver::new(), self.hsm.access());
        driver
            .open(&backend, &Call::unlimited().using(access))
            .unwrap()
    }
}

fn key(token: &Arc<dyn Token>, spec: KeySpec) -> KeyRef {
    let call = Call::unlimited();
    let slot = token.free_slots(&[spec], &[], &call).unwrap().remove(0);
    let new = NewKey {
        slot: &slot,
        spec,
        mark: &unfinished_mark(),
    };
    let public_key = token.generate(&new, &call).unwrap().public_key;
    KeyRef { slot, public_key }
}

fn sign(signer: &Arc<dyn Signer>) -> Result<(), Error> {
    let signature = signer.sign(b"message", &Call::unlimited())?;
    signer.public_key().verify(b"message", &signature).unwrap();
    Ok(())
}

#[test]
fn a_signature_is_one_c_sign() {
    let stage = Stage::new(&[]);
    let token = stage.open();
    for algorithm in [
        Algorithm::P256,
        Algorithm::P384,
        Algorithm::Secp256k1,
        Algorithm::Ed25519,
        Algorithm::Rsa2048,
    ] {
        let signer = token
            .signer(&key(&token, KeySpec::sign(algorithm)), &Call::unlimited())
            .unwrap();
        // The first finds out which functions know the session.
        sign(&signer).unwrap();
        stage.module.forget_calls();
        for _ in 0..3 {
            sign(&signer).unwrap();
        }
        assert_eq!(
            stage.module.all_calls(),
            ["C_SignInit", "C_Sign"].repeat(3),
            "{algorithm}"
        );
    }
}

#[test]
fn a_signature_that_does_not_verify_is_not_given_out() {
    // The zeros that the buffer had are no signature.
    let liar = ["answer C_Sign 0x0"];
    let unknown = ["token manufacturer Somebody"];
    for (before, after) in [
        // Of a key that has proven nothing yet, even where handles are known to be unique.
        (&[][..], &liar[..]),
        // And always where that is not known.
        (&unknown, &[unknown[0], liar[0]]),
    ] {
        let stage = Stage::new(before);
        let token = stage.open();
        let signer = token
            .signer(
                &key(&token, KeySpec::sign(Algorithm::P256)),
                &Call::unlimited(),
            )
            .unwrap();
        if !before.is_empty() {
            sign(&signer).unwrap();
        }
        stage.alter(after);
        let refused = sign(&signer);
        assert!(refused.is_err());
        stage.alter(before);
        sign(&signer).unwrap();
    }
}

#[test]
fn what_an_unknown_token_states_is_not_tried_yet() {
    let token = Stage::new(&["token manufacturer Somebody"]).open();
    let info = token.info();
    let secp256k1 = KeySpec::sign(Algorithm::Secp256k1);
    let oaep = KeySpec::decrypt(Algorithm::Rsa2048);
    let x25519 = KeySpec::decrypt(Algorithm::X25519);
    for spec in [secp256k1, oaep, x25519] {
        assert!(
            info.uses.contains(&spec) && info.untried.contains(&spec),
            "{spec}"
        );
    }
    assert!(info.makes.contains(&oaep));
    assert!(!info.makes.contains(&secp256k1) && !info.makes.contains(&x25519));
    // SoftHSM is known.
    let token = Stage::new(&[]).open();
    assert_eq!(token.info().untried, []);
    assert!(!token.info().uses.contains(&oaep));
}

#[test]
fn a_key_that_the_token_refuses_to_use_says_how() {
    let stage = Stage::new(&[]);
    let token = stage.open();
    let signer = token
        .signer(
            &key(&token, KeySpec::sign(Algorithm::P256)),
            &Call::unlimited(),
        )
        .unwrap();
    // CKR_KEY_FUNCTION_NOT_PERMITTED
    stage.alter(&["answer C_SignInit 0x68"]);
    let refused = sign(&signer);
    let Err(Error::NotUsable { reason, .. }) = &refused else {
        panic!("it was refused, but: {refused:?}");
    };
    assert_eq!(reason, "C_SignInit: CKR_KEY_FUNCTION_NOT_PERMITTED");
    stage.alter(&[]);
    sign(&signer).unwrap();
}

#[test]
fn an_operation_that_is_lost_in_the_module_is_begun_again() {
    let stage = Stage::new(&[]);
    let token = stage.open();
    let signer = token
        .signer(
            &key(&token, KeySpec::sign(Algorithm::P256)),
            &Call::unlimited(),
        )
        .unwrap();
    sign(&signer).unwrap();
    stage.module.forget_calls();
    // CKR_OPERATION_NOT_INITIALIZED
    stage.alter(&["answer C_Sign 0x91"]);
    sign(&signer).unwrap_err();
    assert_eq!(stage.module.calls("C_Sign"), 11);
    stage.alter(&[]);
    sign(&signer).unwrap();
}
