//! A token that signs only what it has hashed itself. The mechanisms that SoftHSM has are those
//! of the process, so this is one test.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;

use claviger_tests::SoftHsm;
use claviger_token::{Algorithm, KeySpec};

use crate::common::Bench;

#[test]
fn a_token_that_does_not_sign_hashes_is_given_the_message() {
    SoftHsm::prepare();
    let file = std::env::var_os("SOFTHSM2_CONF").unwrap();
    let mut text = fs::read_to_string(&file).unwrap();
    text.push_str("slots.mechanisms = -CKM_RSA_PKCS,CKM_ECDSA\n");
    fs::write(&file, text).unwrap();
    let bench = Bench::new();
    let spec = KeySpec::sign(Algorithm::Rsa2048);
    assert!(bench.token.info().makes.contains(&spec));
    bench.signs(&bench.ours("01", spec));
    // It hashes for no signatures on curves.
    assert!(
        !bench
            .token
            .info()
            .uses
            .contains(&KeySpec::sign(Algorithm::P256))
    );
}
