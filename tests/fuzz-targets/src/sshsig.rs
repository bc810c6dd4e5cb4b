//! SSH signatures: any bytes, and signatures that were good once.

use std::sync::LazyLock;

use crate::shared::Input;
use claviger_formats::sshsig;
use claviger_memory::MemoryDriver;
use claviger_token::{
    Algorithm, Call, Driver as _, KeyRef, KeySpec, NewKey, PublicKey, Signature, SignatureScheme,
    unfinished_mark,
};

const MESSAGE: &[u8] = b"message";

static SUBJECTS: LazyLock<Vec<(PublicKey, String)>> = LazyLock::new(|| {
    let token = MemoryDriver::new().open("memory:", &Call::unlimited());
    let (token, call) = (token.unwrap(), Call::unlimited());
    let data = sshsig::signed_data(sshsig::FILE_NAMESPACE, MESSAGE).unwrap();
    let specs = [Algorithm::P256, Algorithm::Ed25519].map(KeySpec::sign);
    let subjects = specs.into_iter().map(|spec| {
        let slot = token.free_slots(&[spec], &[], &call).unwrap().remove(0);
        let new = NewKey {
            slot: &slot,
            spec,
            mark: &unfinished_mark(),
        };
        let public_key = token.generate(&new, &call).unwrap().public_key;
        let key = KeyRef { slot, public_key };
        let signature = token
            .signer(&key, &Call::unlimited())
            .unwrap()
            .sign(&data, &call)
            .unwrap();
        let pem = sshsig::to_pem(&key.public_key, sshsig::FILE_NAMESPACE, &signature);
        (key.public_key, pem.unwrap())
    });
    subjects.collect()
});

/// One input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let which = usize::from(input.byte().unwrap_or(0));
    let (key, pem) = &SUBJECTS[which / 2 % SUBJECTS.len()];
    let file = match which % 2 {
        0 => input.0.to_vec(),
        _ => input.patch(pem.as_bytes()),
    };
    let _ = sshsig::verify(key, sshsig::FILE_NAMESPACE, MESSAGE, &file);
    // Of another message it never is a signature.
    assert!(sshsig::verify(key, sshsig::FILE_NAMESPACE, b"another", &file).is_err());
    for scheme in [
        SignatureScheme::of(Algorithm::P256),
        SignatureScheme::of(Algorithm::P384),
    ] {
        if let Ok(signature) = Signature::from_der(scheme.unwrap(), data) {
            assert!(signature.to_der().is_ok());
            assert!(key.verify(MESSAGE, &signature).is_err());
        }
    }
}
