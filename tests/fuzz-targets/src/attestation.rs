//! Attestations: any bytes as certificates, and chains that were good once.

use std::sync::LazyLock;

use crate::shared::{Input, access, driver, from_pem, to_pem};
use claviger_piv::verify_chain;
use claviger_token::{
    Algorithm, Attestation, Call, Driver as _, KeySpec, NewKey, PublicKey, unfinished_mark,
};
use claviger_virtual_yubikey::Card;

struct Subject {
    key: PublicKey,
    chain: Vec<Vec<u8>>,
    root: String,
}

static SUBJECT: LazyLock<Subject> = LazyLock::new(|| {
    let mut card = Card::builder().build();
    let root = to_pem(card.root_certificate());
    let driver = driver(move |command: &[u8]| Some(card.process(command)));
    let token = driver
        .open("piv:", &Call::unlimited().using(access()))
        .unwrap();
    let spec = KeySpec::sign(Algorithm::P256);
    let call = Call::unlimited().using(access());
    let slot = token.free_slots(&[spec], &[], &call).unwrap().remove(0);
    let new = NewKey {
        slot: &slot,
        spec,
        mark: &unfinished_mark(),
    };
    let made = token.generate(&new, &call).unwrap();
    let attestation = made.attestation.unwrap();
    let key = made.public_key;
    let roots = [&root];
    assert_eq!(verify_chain(&attestation, &key, &roots), Ok(true));
    let chain = attestation.certificates.iter().map(|pem| from_pem(pem));
    Subject {
        key,
        chain: chain.collect(),
        root,
    }
});

/// One input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let which = input.byte().unwrap_or(0);
    let Subject { key, chain, root } = &*SUBJECT;
    let mut certificates: Vec<String> = chain.iter().map(|der| to_pem(der)).collect();
    match which % 4 {
        0 => certificates = vec![to_pem(input.0)],
        1 => certificates = vec![String::from_utf8_lossy(input.0).into_owned()],
        2 => certificates[0] = to_pem(&input.patch(&chain[0])),
        _ => certificates[1] = to_pem(&input.patch(&chain[1])),
    }
    let attestation = Attestation::new(certificates, Vec::new());
    let _ = verify_chain(&attestation, key, &[root]);
    // Nobody else's root is one.
    let others = [to_pem(&chain[0])];
    assert_ne!(verify_chain(&attestation, key, &others), Ok(true));
}
