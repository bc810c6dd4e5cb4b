//! Identities and keys stay one to one, whatever happens between token and registry.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use claviger_engine::message::RequestGenerateIdentity;
use claviger_engine::{Capabilities, EngineError, IdParams, Node, Origin, Registry, RegistryError};
use claviger_token::{Algorithm, Call, Deletion, Error, KeySpec, KeyUse, Pace, Protection};
use common::*;

use Capabilities::{Commit, CommitAndDecrypt, Decrypt};

/// Resolves what was interrupted, of which nothing may be left.
async fn resolves_all(node: &Node) {
    let left = node.resolve_intents(&Call::unlimited()).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn an_identity_outlives_its_process() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let made = make(&node(home.path(), &device), "alice", &device.backend()).await;
    let node = node(home.path(), &device);
    let info = node.registry().identity(&id("alice")).unwrap().unwrap();
    assert_eq!(info.commitment_engine, made.commitment_engine);
    for key in &info.keys {
        assert_eq!(key.origin, Origin::Generated);
        assert_eq!(key.protection, Some(Protection::FULL));
        assert_eq!(key.token.kind, "device");
    }
    let signed = node
        .commit(
            &id("alice"),
            &made.commitment_engine.unwrap(),
            vec![1],
            &call(),
        )
        .await;
    assert_eq!(
        info.keys[0].public_key.verify(&[1], &signed.unwrap()),
        Ok(())
    );
}

#[tokio::test]
async fn identities_in_memory_are_gone_with_their_process() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let first = node(home.path(), &device);
    make(&first, "alice", &claviger_engine::Backend::LocalMemory).await;
    connect(&first, "bob", "alice", &device.backend(), Commit).await;
    // Another process does not see them, but does not take the name either.
    let second = node(home.path(), &device);
    assert!(second.registry().identities().unwrap().is_empty());
    drop(first);
    drop(second);
    let third = node(home.path(), &device);
    make(&third, "alice", &device.backend()).await;
    assert_eq!(third.registry().identities().unwrap().len(), 1);
}

#[tokio::test]
async fn deleting_destroys_the_keys_and_says_so() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    make(&node, "alice", &device.backend()).await;
    assert_eq!(device.keys(), 2);
    assert_eq!(
        delete(&node, "alice", "alice").await.unwrap(),
        vec![Deletion::Destroyed; 2]
    );
    assert_eq!(device.keys(), 0);
}

#[tokio::test]
async fn deleting_a_connection_leaves_the_keys_alone() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    let alice = make(&node, "alice", &device.backend()).await;
    connect(&node, "bob", "alice", &device.backend(), CommitAndDecrypt).await;
    assert_eq!(delete(&node, "bob", "bob").await.unwrap(), vec![]);
    assert_eq!(device.keys(), 2);
    let engine = alice.commitment_engine.unwrap();
    assert!(
        node.commit(&id("alice"), &engine, vec![1], &call())
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_generation_that_fails_half_way_leaves_nothing() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    device.detach_after(1);
    let reply = generate(
        &node,
        "alice",
        &device.backend(),
        IdParams::P256,
        CommitAndDecrypt,
    )
    .await;
    assert!(reply.err.is_some());
    assert!(node.registry().identities().unwrap().is_empty());
    // The first key is still on the token, which is gone; what is to be done is not forgotten.
    assert_eq!(device.keys(), 1);
    assert_eq!(node.registry().open_intents().unwrap().len(), 1);
    let left = node.resolve_intents(&Call::unlimited()).await.unwrap();
    assert_eq!(
        left.len(),
        1,
        "an absent token is absent, nothing is forgotten"
    );

    device.attach();
    resolves_all(&node).await;
    assert_eq!(device.keys(), 0);
    assert!(node.registry().open_intents().unwrap().is_empty());
    make(&node, "alice", &device.backend()).await;
}

#[tokio::test]
async fn what_was_left_open_is_settled_when_the_token_is_next_used() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let first = node(home.path(), &device);
    device.detach_after(1);
    generate(
        &first,
        "alice",
        &device.backend(),
        IdParams::P256,
        CommitAndDecrypt,
    )
    .await;
    device.attach();
    make(&first, "bob", &device.backend()).await;
    assert_eq!(device.keys(), 2, "only bob's");
}

#[tokio::test]
async fn a_deletion_that_fails_half_way_is_finished_later() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    make(&node, "alice", &device.backend()).await;
    device.detach_after(1);
    let err = delete(&node, "alice", "alice").await.unwrap_err();
    assert!(
        matches!(err, EngineError::DeletionUnfinished { .. }),
        "{err}"
    );
    device.attach();
    assert_eq!(device.keys(), 1);
    // Asking again finishes it; so would any other use of the token.
    assert!(delete(&node, "alice", "alice").await.is_ok());
    assert_eq!(device.keys(), 0);
    assert!(node.registry().identities().unwrap().is_empty());
    assert!(node.registry().open_intents().unwrap().is_empty());
}

#[tokio::test]
async fn deleting_while_the_token_is_away_changes_nothing() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    make(&node, "alice", &device.backend()).await;
    device.detach();
    assert!(delete(&node, "alice", "alice").await.is_err());
    assert_eq!(node.registry().identities().unwrap().len(), 1);
    device.attach();
    assert_eq!(device.keys(), 2);
}

#[tokio::test]
async fn an_old_deletion_does_not_touch_a_new_identity_of_the_same_name() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let first = node(home.path(), &device);
    make(&first, "alice", &device.backend()).await;
    device.detach_after(1);
    delete(&first, "alice", "alice").await.unwrap_err();
    device.attach();
    resolves_all(&first).await;
    make(&first, "alice", &device.backend()).await;
    resolves_all(&first).await;
    assert_eq!(device.keys(), 2);
    assert_eq!(first.registry().identities().unwrap().len(), 1);
}

#[tokio::test]
async fn a_key_that_the_token_does_not_protect_is_removed_again() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    for (protection, reason) in [
        (
            Protection {
                sensitive: false,
                ..Protection::FULL
            },
            "can be read",
        ),
        (
            Protection {
                never_extractable: false,
                ..Protection::FULL
            },
            "can be exported",
        ),
    ] {
        device.protects_with(protection);
        let reply = generate(&node, "alice", &device.backend(), IdParams::P256, Commit).await;
        assert!(text(reply.err).contains(reason));
        assert_eq!(device.keys(), 0);
    }
    // Some tokens do not say of their own keys that they made them. We know it.
    let silent = Protection {
        local: false,
        ..Protection::FULL
    };
    device.protects_with(silent);
    make(&node, "alice", &device.backend()).await;
    let alice = node.registry().identity(&id("alice")).unwrap().unwrap();
    assert_eq!(alice.keys[0].protection, Some(silent));
    assert!(node.registry().open_intents().unwrap().is_empty());
}

#[tokio::test]
async fn a_cancelled_or_late_generation_is_undone() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    let calls = [
        Call::unlimited().cancelled_by(Arc::new(AtomicBool::new(true))),
        Call::within(Duration::ZERO),
    ];
    for call in calls {
        let request = RequestGenerateIdentity {
            backend: device.backend(),
            params: IdParams::P256,
            capabilities: Commit,
        };
        let reply = node.generate(&id("alice"), request, &call).await;
        assert!(matches!(
            reply,
            Err(EngineError::Token(
                Error::Cancelled | Error::DeadlineExceeded
            ))
        ));
        assert_eq!(device.keys(), 0);
    }
    assert!(node.registry().open_intents().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_processes_that_want_one_name_one_gets_it() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let nodes: Vec<_> = (0..8).map(|_| node(home.path(), &device)).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for node in &nodes {
        let (node, backend) = (node.clone(), device.backend());
        tasks.spawn(async move {
            generate(
                &node,
                "alice",
                &backend,
                IdParams::Ed25519,
                CommitAndDecrypt,
            )
            .await
        });
    }
    let replies = tasks.join_all().await;
    assert_eq!(replies.iter().filter(|r| r.err.is_none()).count(), 1);
    for reply in replies {
        assert!(matches!(
            reply.err,
            None | Some(EngineError::IdentityExists | EngineError::InProgress { .. })
        ));
    }
    assert_eq!(device.keys(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_living_process_works_on_is_left_alone() {
    let device = Device::paced(Pace::Slow { workers: 2 });
    let home = tempfile::tempdir().unwrap();
    let (first, second) = (node(home.path(), &device), node(home.path(), &device));
    device.holds_keys(true);
    let (its_node, backend) = (first.clone(), device.backend());
    let made = tokio::spawn(async move { make(&its_node, "alice", &backend).await });
    until(|| device.is_generating()).await;
    assert!(second.registry().open_intents().unwrap().is_empty());
    resolves_all(&second).await;
    device.holds_keys(false);
    made.await.unwrap();
    assert_eq!(device.keys(), 2);
}

#[tokio::test]
async fn what_a_living_process_gave_up_is_settled_by_another() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let first = node(home.path(), &device);
    device.detach_after(1);
    generate(
        &first,
        "alice",
        &device.backend(),
        IdParams::P256,
        CommitAndDecrypt,
    )
    .await;
    device.attach();
    assert_eq!(device.keys(), 1);
    let second = node(home.path(), &device);
    assert_eq!(second.registry().open_intents().unwrap().len(), 1);
    resolves_all(&second).await;
    assert_eq!(device.keys(), 0);
    assert!(first.registry().open_intents().unwrap().is_empty());
}

#[tokio::test]
async fn an_existing_key_is_adopted_and_released_but_never_destroyed() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    let (slot, fingerprint) = device.foreign_key(KeySpec::sign(Algorithm::P256));
    let backend = device.backend();

    let reply = connect(&node, "alice", &fingerprint, &backend, CommitAndDecrypt).await;
    assert_eq!(text(reply.err), "Capabilities not available");
    let reply = connect(&node, "alice", &fingerprint, &backend, Decrypt).await;
    let error = text(reply.err);
    assert!(error.starts_with("Capabilities not available: the key on "));
    assert!(error.ends_with("cannot decrypt: it was made for another use"));
    let other = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let reply = connect(&node, "alice", other, &backend, Commit).await;
    assert_eq!(text(reply.err), "External identity not found");

    let reply = connect(&node, "alice", &fingerprint, &backend, Commit).await;
    assert!(reply.err.is_none(), "{:?}", reply.err);
    let engine = reply.commitment_engine.unwrap();
    assert_eq!(engine, id("alice_committer_alice"));
    let info = node.registry().identity(&id("alice")).unwrap().unwrap();
    assert_eq!(
        (info.keys[0].origin, &info.keys[0].slot),
        (Origin::Adopted, &slot)
    );
    let signed = node
        .commit(&id("alice"), &engine, vec![1], &call())
        .await
        .unwrap();
    assert_eq!(info.keys[0].public_key.verify(&[1], &signed), Ok(()));

    let again = connect(&node, "bob", &fingerprint, &backend, Commit).await;
    assert!(matches!(again.err, Some(EngineError::KeyHasOwner { .. })));

    assert_eq!(delete(&node, "alice", "alice").await.unwrap(), vec![]);
    assert_eq!(device.keys(), 1);
    connect(&node, "bob", &fingerprint, &backend, Commit).await;
    assert!(node.registry().identity(&id("bob")).unwrap().is_some());
}

#[tokio::test]
async fn a_named_slot_must_hold_the_key_that_is_adopted() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    let (slot, fingerprint) = device.foreign_key(KeySpec::sign(Algorithm::P256));
    let (other, _) = device.foreign_key(KeySpec::sign(Algorithm::P256));
    device.name_slot(other.as_str());
    let reply = connect(&node, "alice", &fingerprint, &device.backend(), Commit).await;
    assert!(matches!(
        reply.err,
        Some(EngineError::Token(Error::KeyMismatch { .. }))
    ));
    device.name_slot(slot.as_str());
    let reply = connect(&node, "alice", &fingerprint, &device.backend(), Commit).await;
    assert!(reply.err.is_none(), "{:?}", reply.err);
}

#[tokio::test]
async fn one_named_slot_is_not_enough_for_two_keys() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    device.name_slot("s7");
    let backend = device.backend();
    let reply = generate(&node, "a", &backend, IdParams::P256, CommitAndDecrypt).await;
    assert!(matches!(
        reply.err,
        Some(EngineError::OneSlotForTwoKeys { .. })
    ));
    let reply = generate(&node, "a", &backend, IdParams::P256, Commit).await;
    assert!(reply.err.is_none(), "{:?}", reply.err);
    let info = node.registry().identity(&id("a")).unwrap().unwrap();
    assert_eq!(info.keys[0].slot.as_str(), "s7");
    // Occupied now: refused, and what is in it stays.
    let reply = generate(&node, "b", &backend, IdParams::P256, Commit).await;
    assert!(matches!(
        reply.err,
        Some(EngineError::Token(Error::SlotOccupied { .. }))
    ));
    let engine = info.commitment_engine.unwrap();
    assert!(
        node.commit(&id("a"), &engine, vec![1], &call())
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_key_that_somebody_else_removed_is_reported_and_its_identity_kept() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    let engine = make(&node, "alice", &device.backend())
        .await
        .commitment_engine
        .unwrap();
    assert!(
        node.commit(&id("alice"), &engine, vec![1], &call())
            .await
            .is_ok()
    );
    device.wipe();
    let log = home.path().join("log");
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(std::fs::File::create(&log).unwrap());
    let listening = tracing::subscriber::set_default(subscriber.finish());
    for _ in 0..3 {
        let err = node
            .commit(&id("alice"), &engine, vec![1], &call())
            .await
            .unwrap_err();
        assert!(
            matches!(err, EngineError::Token(Error::KeyNotFound { .. })),
            "{err}"
        );
    }
    drop(listening);
    let said = std::fs::read_to_string(log).unwrap();
    let missing = "key is not on its token any more; the identity is kept identity=alice";
    assert_eq!(said.matches(missing).count(), 1, "{said}");
    assert_eq!(node.registry().identities().unwrap().len(), 1);
    delete(&node, "alice", "alice").await.unwrap();
}

#[tokio::test]
async fn what_another_process_deletes_and_makes_is_seen() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let (here, there) = (node(home.path(), &device), node(home.path(), &device));
    let engine = make(&there, "alice", &device.backend())
        .await
        .commitment_engine
        .unwrap();
    let sign = |who: &'static str| {
        let (here, engine) = (here.clone(), engine.clone());
        async move { here.commit(&id(who), &engine, vec![1], &call()).await }
    };
    assert!(sign("alice").await.is_ok());
    connect(&here, "bob", "alice", &device.backend(), Commit).await;
    assert!(sign("bob").await.is_ok());
    delete(&there, "alice", "alice").await.unwrap();
    assert!(matches!(
        sign("bob").await,
        Err(EngineError::IdentityDeleted { .. })
    ));
    make(&there, "alice", &device.backend()).await;
    assert!(sign("alice").await.is_ok());
    assert!(matches!(
        sign("bob").await,
        Err(EngineError::IdentityDeleted { .. })
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_token_is_worked_by_its_own_threads() {
    let (device, home) = (
        Device::paced(Pace::Slow { workers: 2 }),
        tempfile::tempdir().unwrap(),
    );
    let node = node(home.path(), &device);
    let made = make(&node, "alice", &device.backend()).await;
    let info = node.registry().identity(&id("alice")).unwrap().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..64u8 {
        let (node, engine) = (node.clone(), made.commitment_engine.clone().unwrap());
        tasks.spawn(async move {
            (
                i,
                node.commit(&id("alice"), &engine, vec![i], &call())
                    .await
                    .unwrap(),
            )
        });
    }
    for (i, signed) in tasks.join_all().await {
        assert_eq!(info.keys[0].public_key.verify(&[i], &signed), Ok(()));
    }
    let file = claviger_formats::envelope::encrypt(
        &[&info.key(KeyUse::Decrypt).unwrap().public_key],
        b"plain",
    )
    .unwrap();
    let opened = node
        .decrypt(
            &id("alice"),
            &made.decryption_engine.unwrap(),
            file,
            &call(),
        )
        .await;
    assert_eq!(*opened.unwrap(), b"plain");
}

#[test]
fn a_registry_of_a_newer_version_is_left_alone() {
    let home = tempfile::tempdir().unwrap();
    drop(Registry::open(home.path()).unwrap());
    let file = home.path().join("registry.sqlite");
    let db = rusqlite::Connection::open(&file).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    let before = std::fs::read(&file).unwrap();
    assert!(matches!(
        Registry::open(home.path()),
        Err(RegistryError::Newer { found: 99, .. })
    ));
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[test]
fn what_is_no_registry_is_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("registry.sqlite");
    std::fs::write(&file, "dear diary, this is not a database at all").unwrap();
    assert!(matches!(
        Registry::open(home.path()),
        Err(RegistryError::NotARegistry { .. })
    ));
    assert!(matches!(
        Registry::open(&file),
        Err(RegistryError::NotAFolder { .. })
    ));
    assert!(matches!(
        Registry::open(&file.join("x")),
        Err(RegistryError::NotAFolder { .. })
    ));
    assert_eq!(std::fs::read_to_string(&file).unwrap().len(), 41);
}
