//! Over a real module.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::Path;

use claviger_pkcs11::with_module;
use claviger_pkcs11_once::Once;
use claviger_tests::SoftHsm;
use cryptoki::context::Pkcs11;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;

/// `CKA_EC_PARAMS` of P-256.
const PARAMS: [u8; 10] = [6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];

/// Does something with a session on a token of its own.
fn with_session(work: impl FnOnce(&Once, &Session)) {
    let token = SoftHsm::new();
    let path = Path::new(SoftHsm::module());
    with_module(path, |module: &Pkcs11| {
        let slots = module.get_slots_with_initialized_token().unwrap();
        let is_it = |slot: &&_| module.get_token_info(**slot).unwrap().label() == token.label();
        let session = module
            .open_rw_session(*slots.iter().find(is_it).unwrap())
            .unwrap();
        let pin = AuthPin::new(SoftHsm::PIN.into());
        session.login(UserType::User, Some(&pin)).unwrap();
        work(&Once::of(path).unwrap(), &session);
    })
    .unwrap();
}

/// A P-256 key pair of the session.
fn p256(session: &Session) -> (ObjectHandle, ObjectHandle) {
    let public = [Attribute::EcParams(PARAMS.to_vec())];
    let private = [Attribute::Sign(true)];
    session
        .generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)
        .unwrap()
}

#[test]
fn a_signature_is_one_call() {
    with_session(|once, session| {
        assert!(once.know(session));
        let (public, private) = p256(session);
        let mut signature = [0; 64];
        session.sign_init(&Mechanism::Ecdsa, private).unwrap();
        assert_eq!(once.sign(session, &[1; 32], &mut signature).unwrap(), 64);
        session
            .verify(&Mechanism::Ecdsa, public, &[1; 32], &signature)
            .unwrap();
        // The operation is over.
        let again = once.sign(session, &[1; 32], &mut signature);
        assert!(
            matches!(
                again,
                Err(Error::Pkcs11(RvError::OperationNotInitialized, _))
            ),
            "{again:?}"
        );
    });
}

#[test]
fn a_decryption_is_one_call() {
    with_session(|once, session| {
        let public = [
            Attribute::ModulusBits(2048.into()),
            Attribute::Encrypt(true),
        ];
        let private = [Attribute::Decrypt(true)];
        let pair = session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private);
        let (public, private) = pair.unwrap();
        let sealed = session
            .encrypt(&Mechanism::RsaPkcs, public, b"secret")
            .unwrap();
        let mut room = [0; 256];
        session.decrypt_init(&Mechanism::RsaPkcs, private).unwrap();
        let length = once.decrypt(session, &sealed, &mut room).unwrap();
        assert_eq!(&room[..length], b"secret");
    });
}

#[test]
fn the_functions_are_those_that_cryptoki_calls() {
    with_session(|once, session| {
        let functions = format!("{session:?}");
        let sign = |text: &str| {
            let at = text.find(" sign: ").or(text.find("C_Sign: Some(")).unwrap();
            let hex = &text[at + text[at..].find("0x").unwrap()..];
            hex[..hex.find(|c: char| !c.is_ascii_alphanumeric()).unwrap()].to_owned()
        };
        assert_eq!(sign(&format!("{once:?}")), sign(&functions));
    });
}

#[test]
fn what_is_no_module_has_none() {
    for path in ["/nonexistent.so", "/etc/passwd"] {
        assert!(Once::of(Path::new(path)).is_err(), "{path}");
    }
}
