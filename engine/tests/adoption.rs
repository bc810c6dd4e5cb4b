//! Taking both keys of a lost identity in one step.
#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

mod common;

use claviger_engine::{Capabilities, EngineError, IdentityInfo, Node, Origin};
use claviger_token::{Algorithm, Error, KeySpec, KeyUse};
use common::*;

use Capabilities::{Commit, CommitAndDecrypt};

/// An identity on the device, and its two fingerprints.
async fn lost(device: &Device) -> (IdentityInfo, [String; 2]) {
    let home = tempfile::tempdir().unwrap();
    let node = node(home.path(), device);
    make(&node, "alice", &device.backend()).await;
    let info = node.registry().identity(&id("alice")).unwrap().unwrap();
    let of = |usage| {
        let key = info.key(usage).unwrap();
        key.public_key.fingerprint().to_string()
    };
    let both = [of(KeyUse::Sign), of(KeyUse::Decrypt)];
    (info, both)
}

fn nothing_is_entered(node: &Node) {
    assert!(node.registry().identities().unwrap().is_empty());
}

#[tokio::test]
async fn both_keys_of_a_lost_identity_are_taken_in_one_step_in_any_order() {
    let device = Device::new();
    let (before, [sign, decrypt]) = lost(&device).await;
    for both in [format!("{sign},{decrypt}"), format!("{decrypt},{sign}")] {
        let home = tempfile::tempdir().unwrap();
        let node = node(home.path(), &device);
        let reply = connect(&node, "alice", &both, &device.backend(), CommitAndDecrypt).await;
        assert!(reply.err.is_none(), "{:?}", reply.err);
        assert_eq!(reply.commitment_engine, before.commitment_engine);
        assert_eq!(reply.decryption_engine, before.decryption_engine);
        let now = node.registry().identity(&id("alice")).unwrap().unwrap();
        for usage in [KeyUse::Sign, KeyUse::Decrypt] {
            let (now, before) = (now.key(usage).unwrap(), before.key(usage).unwrap());
            assert_eq!(now.public_key, before.public_key);
            assert_eq!(now.origin, Origin::Adopted);
        }
        let engine = reply.commitment_engine.unwrap();
        let signed = node.commit(&id("alice"), &engine, vec![1], &call()).await;
        let key = &now.key(KeyUse::Sign).unwrap().public_key;
        assert_eq!(key.verify(&[1], &signed.unwrap()), Ok(()));
        // It is released, not destroyed.
        assert_eq!(delete(&node, "alice", "alice").await.unwrap(), []);
        assert_eq!(device.keys(), 2);
    }
}

#[tokio::test]
async fn what_is_no_pair_is_not_entered() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let (_, [sign, decrypt]) = lost(&device).await;
    let (_, other) = device.foreign_key(KeySpec::sign(Algorithm::Ed25519));
    let (_, third) = device.foreign_key(KeySpec::decrypt(Algorithm::X25519));
    let node = node(home.path(), &device);
    let backend = device.backend();
    let ask = async |both: &str, capabilities| {
        connect(&node, "alice", both, &backend, capabilities)
            .await
            .err
            .unwrap()
    };
    let two_sign = ask(&format!("{sign},{other}"), CommitAndDecrypt).await;
    let missing = KeyUse::Decrypt;
    assert!(matches!(two_sign, EngineError::NoPair { missing: m } if m == missing));
    let two_decrypt = ask(&format!("{decrypt},{third}"), CommitAndDecrypt).await;
    let missing = KeyUse::Sign;
    assert!(matches!(two_decrypt, EngineError::NoPair { missing: m } if m == missing));
    let nowhere = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let not_found = ask(&format!("{sign},{nowhere}"), CommitAndDecrypt).await;
    assert!(
        matches!(&not_found, EngineError::Token(Error::KeyNotFound { key, .. }) if key == nowhere)
    );
    for (words, capabilities) in [
        (format!("{sign},{decrypt}"), Commit),
        (format!("{sign},{sign}"), CommitAndDecrypt),
    ] {
        let refused = ask(&words, capabilities).await;
        assert!(matches!(refused, EngineError::CapabilitiesNotAvailable));
    }
    for words in [
        format!("{sign},"),
        format!("{sign},{decrypt},{other}"),
        format!("{sign}, {decrypt}"),
    ] {
        let refused = ask(&words, CommitAndDecrypt).await;
        assert!(matches!(refused, EngineError::ExternalIdentityNotFound));
    }
    nothing_is_entered(&node);
    // One of them belongs to another identity.
    connect(&node, "bob", &decrypt, &backend, Capabilities::Decrypt).await;
    let owned = ask(&format!("{sign},{decrypt}"), CommitAndDecrypt).await;
    assert!(matches!(owned, EngineError::KeyHasOwner { owner, .. } if owner == Some(id("bob"))));
    assert_eq!(device.keys(), 4);
}

#[tokio::test]
async fn a_pair_of_which_one_key_does_not_prove_itself_is_not_entered() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let (_, [sign, decrypt]) = lost(&device).await;
    let node = node(home.path(), &device);
    device.misuses_keys(true);
    let both = format!("{sign},{decrypt}");
    let refused = connect(&node, "alice", &both, &device.backend(), CommitAndDecrypt).await;
    assert!(matches!(
        refused.err,
        Some(EngineError::Token(Error::NoPossession { .. }))
    ));
    nothing_is_entered(&node);
    device.misuses_keys(false);
    connect(&node, "alice", &both, &device.backend(), CommitAndDecrypt).await;
    assert_eq!(node.registry().identities().unwrap().len(), 1);
}
