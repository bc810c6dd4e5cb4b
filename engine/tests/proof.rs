//! Keys go by their public half: what is proven before an identity is entered, what an intent
//! can prove when it is resolved, and what is remembered of what was tried.
#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

mod common;

use claviger_engine::Capabilities::{Commit, CommitAndDecrypt, Decrypt};
use claviger_engine::registry::Action;
use claviger_engine::{EngineError, IdParams, Registry, RegistryError};
use claviger_token::{Algorithm, Error, Event, KeySpec, KeyUse, possession};
use common::*;

fn unavailable(device: &Device) -> Error {
    Error::TokenUnavailable {
        token: device.id(),
        reason: "pulled out".into(),
    }
}

#[tokio::test]
async fn a_key_that_does_not_do_what_it_is_for_is_destroyed_and_nothing_is_entered() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    device.misuses_keys(true);
    for asked in [Commit, Decrypt, CommitAndDecrypt] {
        let reply = generate(&node, "alice", &device.backend(), IdParams::P256, asked).await;
        assert!(matches!(
            reply.err,
            Some(EngineError::Token(Error::NoPossession { .. }))
        ));
        assert_eq!(device.keys(), 0);
    }
    assert!(node.registry().identities().unwrap().is_empty());
    assert!(node.registry().open_intents().unwrap().is_empty());
}

#[tokio::test]
async fn a_pair_that_is_no_pair_is_not_adopted() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    for (usage, asked) in [(KeyUse::Sign, Commit), (KeyUse::Decrypt, Decrypt)] {
        let spec = KeySpec {
            algorithm: Algorithm::P256,
            usage,
        };
        let (_, fingerprint) = device.foreign_key(spec);
        device.misuses_keys(true);
        let reply = connect(&node, "alice", &fingerprint, &device.backend(), asked).await;
        let error = text(reply.err);
        assert!(error.contains("does not have the private half"), "{error}");
        device.misuses_keys(false);
    }
    assert_eq!(device.keys(), 2);
    assert!(node.registry().identities().unwrap().is_empty());
}

#[tokio::test]
async fn who_generates_is_told_that_each_key_is_proven() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = std::sync::Arc::clone(&told);
    let call = call().watched_by(std::sync::Arc::new(move |event: &Event| {
        if let Event::ProofNeeded { usage, .. } = event {
            seen.lock().unwrap().push(*usage);
        }
    }));
    let request = claviger_engine::message::RequestGenerateIdentity {
        backend: device.backend(),
        params: IdParams::P256,
        capabilities: CommitAndDecrypt,
    };
    node.generate(&id("alice"), request, &call).await.unwrap();
    assert_eq!(*told.lock().unwrap(), [KeyUse::Sign, KeyUse::Decrypt]);
}

#[tokio::test]
async fn a_proof_of_possession_is_signed_for_nobody_else() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    let engine = make(&node, "alice", &device.backend()).await;
    let engine = engine.commitment_engine.unwrap();
    let text = format!("{} 00112233445566778899aabbccddeeff", possession::PREFIX);
    let signed = node
        .commit(&id("alice"), &engine, text.into(), &call())
        .await;
    assert!(matches!(signed, Err(EngineError::ReservedMessage { .. })));
}

#[tokio::test]
async fn a_key_has_its_mark_until_its_identity_is_entered_and_then_its_name() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    device.names_with(Some(unavailable(&device)));
    make(&node, "alice", &device.backend()).await;
    let marked = |label: &String| label.starts_with("claviger-unfinished-");
    assert!(device.labels().iter().all(marked), "{:?}", device.labels());
    let open = node.registry().open_intents().unwrap();
    assert_eq!(open[0].action, Action::Name);
    assert!(open[0].keys.iter().all(|key| key.public_key.is_some()));

    device.names_with(None);
    assert!(
        node.resolve_intents(&claviger_token::Call::unlimited())
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(device.labels(), ["alice", "alice"]);
    assert!(node.registry().open_intents().unwrap().is_empty());
    assert_eq!(node.registry().identities().unwrap().len(), 1);
}

#[tokio::test]
async fn a_token_that_cannot_give_names_keeps_nobody_from_using_the_key() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    device.names_with(Some(Error::Device {
        token: device.id(),
        call: "C_SetAttributeValue".into(),
        status: "CKR_ATTRIBUTE_READ_ONLY".into(),
    }));
    let engine = make(&node, "alice", &device.backend()).await;
    assert!(node.registry().open_intents().unwrap().is_empty());
    let engine = engine.commitment_engine.unwrap();
    (node.commit(&id("alice"), &engine, vec![1], &call()).await).unwrap();
}

/// A copy of the home that was made in the middle of a generation, used when that has ended.
#[tokio::test]
async fn a_copy_of_the_home_destroys_no_key_that_was_entered() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let first = node(home.path(), &device);
    device.wants_touch(true);
    let copy = tempfile::tempdir().unwrap();
    let made = {
        let (node, backend) = (first.clone(), device.backend());
        let making = tokio::spawn(async move { make(&node, "alice", &backend).await });
        // It waits at the proof: the keys are made and noted.
        until(|| device.waits_for_touch()).await;
        for entry in std::fs::read_dir(home.path()).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
            }
        }
        device.wants_touch(false);
        making.await.unwrap()
    };
    let second = node(copy.path(), &device);
    assert_eq!(second.registry().open_intents().unwrap().len(), 1);
    // It is known as a copy, and resolves nothing.
    assert!(second.registry().is_copy() && !first.registry().is_copy());
    let left = second
        .resolve_intents(&claviger_token::Call::unlimited())
        .await
        .unwrap();
    assert!(matches!(
        left[..],
        [(_, EngineError::Registry(RegistryError::Copy))]
    ));
    // Where somebody says that it is the home, the key's name keeps it.
    second.registry().claim_home().unwrap();
    assert!(
        second
            .resolve_intents(&claviger_token::Call::unlimited())
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(device.keys(), 2);
    assert!(!node(copy.path(), &device).registry().is_copy());
    let engine = made.commitment_engine.unwrap();
    (first.commit(&id("alice"), &engine, vec![1], &call()).await).unwrap();
}

#[tokio::test]
async fn what_was_tried_is_remembered() {
    let (device, home) = (Device::untried(), tempfile::tempdir().unwrap());
    let backend = device.backend();
    let p256 = |usage| KeySpec {
        algorithm: Algorithm::P256,
        usage,
    };
    let node = node(home.path(), &device);
    let reply = generate(&node, "alice", &backend, IdParams::P256, CommitAndDecrypt).await;
    assert!(reply.err.is_none(), "{:?}", reply.err);
    device.misuses_keys(true);
    let failed = generate(&node, "bob", &backend, IdParams::Ed25519, Commit).await;
    assert!(failed.err.is_some());
    device.misuses_keys(false);

    // Also by the next process.
    let node = common::node(home.path(), &device);
    let (token, _) = node
        .tokens(
            &claviger_engine::EngineId::program(),
            None,
            &claviger_token::Call::unlimited(),
        )
        .await
        .unwrap()
        .into_iter()
        .find(|(token, _)| token.id == device.id())
        .unwrap();
    for usage in [KeyUse::Sign, KeyUse::Decrypt] {
        assert!(!token.untried.contains(&p256(usage)));
        assert!(token.makes.contains(&p256(usage)) && token.uses.contains(&p256(usage)));
    }
    let ed25519 = KeySpec::sign(Algorithm::Ed25519);
    assert!(!token.makes.contains(&ed25519) && !token.uses.contains(&ed25519));
    let again = generate(&node, "bob", &backend, IdParams::Ed25519, Commit).await;
    assert!(matches!(
        again.err,
        Some(EngineError::Token(Error::Unsupported { .. }))
    ));
}

#[tokio::test]
async fn a_slot_that_is_not_there_is_not_tried_again() {
    let (device, home) = (Device::untried(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    device.has_slots(&["84", "85", "82", "83"], &["84", "85"]);
    make(&node, "alice", &device.backend()).await;
    let alice = node.registry().identity(&id("alice")).unwrap().unwrap();
    let slots: Vec<&str> = alice.keys.iter().map(|key| key.slot.as_str()).collect();
    assert_eq!(slots, ["82", "83"]);
    delete(&node, "alice", "alice").await.unwrap();
    assert_eq!(device.keys(), 0);

    // The next process does not ask for it.
    device.has_slots(&["84", "85", "82", "83"], &[]);
    let node = common::node(home.path(), &device);
    make(&node, "bob", &device.backend()).await;
    let bob = node.registry().identity(&id("bob")).unwrap().unwrap();
    assert_eq!(bob.keys[0].slot.as_str(), "82");
}

#[tokio::test]
async fn the_keys_of_identities_are_listed_as_theirs() {
    let (device, home) = (Device::deriving(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    make(&node, "alice", &device.backend()).await;
    let backend = device.backend().to_string();
    let listed = || async {
        node.tokens(
            &claviger_engine::EngineId::program(),
            Some(&backend),
            &claviger_token::Call::unlimited(),
        )
        .await
        .unwrap()
        .remove(0)
        .1
    };
    let alice = |slot: &claviger_token::SlotInfo| {
        slot.notes
            .contains(&("identity".into(), "alice".to_owned()))
    };
    assert!(listed().await.iter().all(alice));
    // A token that derives its keys does not list all of them.
    device.wipe();
    assert_eq!(device.keys(), 0);
    let slots = listed().await;
    assert_eq!(slots.len(), 2);
    assert!(slots.iter().all(alice));
}

#[tokio::test]
async fn the_registry_is_corrected_where_a_key_has_another_place() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let engine = make(&node(home.path(), &device), "alice", &device.backend()).await;
    let engine = engine.commitment_engine.unwrap();
    device.moves_keys_to("elsewhere");
    let node = node(home.path(), &device);
    (node.commit(&id("alice"), &engine, vec![1], &call()).await).unwrap();
    let noted = Registry::open(home.path()).unwrap();
    let alice = noted.identity(&id("alice")).unwrap().unwrap();
    assert_eq!(alice.keys[0].slot.as_str(), "elsewhere");
}
