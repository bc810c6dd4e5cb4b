//! What goes wrong at the worst moment, and what is left of it afterwards.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_engine::message::{RequestDeleteIdentity, RequestEncrypt, RequestGenerateIdentity};
use claviger_engine::{
    Capabilities, EngineError, EngineId, IdParams, Node, NodeId, Party, PublicKeys, Registry,
    RegistryError,
};
use claviger_token::{Algorithm, Call, Deletion, Error, KeySpec, Pace, Secret};
use common::*;

use Capabilities::{Commit, CommitAndDecrypt};

fn mismatch(device: &Device) -> Error {
    Error::KeyMismatch {
        token: device.id(),
        slot: "82".into(),
        expected: "the key that was made there".into(),
        found: "another".into(),
    }
}

/// Neither keys nor anything to be resolved.
fn nothing_is_left(node: &Node, device: &Device) {
    assert_eq!(device.keys(), 0);
    assert!(node.registry().identities().unwrap().is_empty());
    assert!(node.registry().open_intents().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_misses_its_deadline_leaves_no_key_on_a_token_of_several_threads() {
    let device = Device::paced(Pace::Slow { workers: 4 });
    let home = tempfile::tempdir().unwrap();
    let node = node(home.path(), &device);
    device.generates_in(Duration::from_millis(400));
    let request = RequestGenerateIdentity {
        backend: device.backend(),
        params: IdParams::Ed25519,
        capabilities: CommitAndDecrypt,
    };
    let call = Call::within(Duration::from_millis(100));
    let reply = node.generate(&id("alice"), request, &call).await;
    assert!(matches!(
        reply,
        Err(EngineError::Token(Error::DeadlineExceeded))
    ));
    assert!(!device.is_generating());
    nothing_is_left(&node, &device);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_panics_leaves_nothing() {
    for pace in [Pace::Quick, Pace::Slow { workers: 1 }] {
        let (device, home) = (Device::paced(pace), tempfile::tempdir().unwrap());
        let node = node(home.path(), &device);
        device.panics(true);
        let reply = generate(&node, "alice", &device.backend(), IdParams::P256, Commit).await;
        assert!(matches!(
            reply.err,
            Some(EngineError::Token(Error::TokenUnavailable { .. }))
        ));
        nothing_is_left(&node, &device);
        device.panics(false);
        make(&node, "alice", &device.backend()).await;
    }
}

#[tokio::test]
async fn a_name_of_another_node_does_not_take_over_an_engine() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = Node::builder(Registry::open(home.path()).unwrap())
        .driver(device.clone())
        .policy(MakesForAll)
        .build();
    let engine = make(&node, "alice", &device.backend()).await;
    let engine = engine.commitment_engine.unwrap();
    let info = node.registry().identity(&id("alice")).unwrap().unwrap();
    let key = info.keys[0].public_key.clone();
    let remote = EngineId {
        node: Some(NodeId(Arc::new(key.clone()))),
        name: "alice".into(),
    };
    let request = RequestGenerateIdentity {
        backend: device.backend(),
        params: IdParams::Ed25519,
        capabilities: Commit,
    };
    let reply = node.generate(&remote, request, &call()).await;
    assert!(matches!(reply, Err(EngineError::IdentityExists)));
    assert_eq!(device.keys(), 2);
    let signed = node.commit(&id("alice"), &engine, vec![1], &call()).await;
    assert_eq!(key.verify(&[1], &signed.unwrap()), Ok(()));
}

#[tokio::test]
async fn a_key_that_is_to_be_undone_is_not_adopted() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let first = node(home.path(), &device);
    device.detach_after(1);
    let params = IdParams::Ed25519;
    generate(&first, "alice", &device.backend(), params, CommitAndDecrypt).await;
    drop(first);
    device.attach();
    let node = node(home.path(), &device);
    let seen = node
        .tokens(
            &EngineId::program(),
            Some(&device.backend().to_string()),
            &Call::unlimited(),
        )
        .await;
    let key = seen.unwrap()[0].1[0].fingerprint.clone().unwrap();
    let reply = connect(&node, "bob", &key, &device.backend(), Commit).await;
    assert!(matches!(
        reply.err,
        Some(EngineError::ExternalIdentityNotFound)
    ));
    nothing_is_left(&node, &device);
}

#[tokio::test]
async fn a_token_that_cannot_be_looked_into_does_not_hide_the_others() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    device.fails_with(Some(Error::Device {
        token: device.id(),
        call: "slots".into(),
        status: "broken".into(),
    }));
    let all = node
        .tokens(&EngineId::program(), None, &Call::unlimited())
        .await
        .unwrap();
    assert_eq!(all.len(), 2);
    let broken = all.iter().find(|(token, _)| token.id == device.id());
    let (name, state) = broken.unwrap().0.notes.last().unwrap();
    assert!(name == "state" && state.contains("broken"), "{state}");
    let named = node
        .tokens(
            &EngineId::program(),
            Some(&device.backend().to_string()),
            &Call::unlimited(),
        )
        .await;
    assert!(matches!(
        named,
        Err(EngineError::Token(Error::Device { .. }))
    ));
}

#[tokio::test]
async fn a_key_that_cannot_be_deleted_stays_and_keeps_nobody_from_the_token() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    make(&node, "alice", &device.backend()).await;
    device.deletes_with(Some(mismatch(&device)));
    let refused = delete(&node, "alice", "alice").await.unwrap_err();
    assert!(matches!(
        refused,
        EngineError::Token(Error::KeyMismatch { .. })
    ));
    assert!(node.registry().open_intents().unwrap().is_empty());
    make(&node, "bob", &device.backend()).await;

    // One that was begun, and cannot be finished.
    device.deletes_with(None);
    device.detach_after(1);
    let refused = delete(&node, "alice", "alice").await.unwrap_err();
    assert!(matches!(refused, EngineError::DeletionUnfinished { .. }));
    device.attach();
    device.deletes_with(Some(mismatch(&device)));
    make(&node, "carol", &device.backend()).await;
    assert_eq!(
        node.resolve_intents(&Call::unlimited())
            .await
            .unwrap()
            .len(),
        1
    );
    device.deletes_with(None);
    assert!(
        node.resolve_intents(&Call::unlimited())
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(node.registry().identities().unwrap().len(), 2);
    assert_eq!(device.keys(), 4);
}

#[tokio::test]
async fn a_deletion_that_is_finished_later_does_not_say_that_derived_keys_are_destroyed() {
    let (device, home) = (Device::deriving(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    make(&node, "alice", &device.backend()).await;
    device.detach_after(1);
    delete(&node, "alice", "alice").await.unwrap_err();
    device.attach();
    let request = RequestDeleteIdentity {
        backend: device.backend(),
        external_identity: id("alice"),
    };
    let reply = node.delete(&id("alice"), request, &call()).await;
    assert_eq!(reply.unwrap(), [Deletion::Derivable; 2]);
}

#[tokio::test]
async fn who_signs_does_not_wait_for_those_who_write_to_the_registry() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let engine = make(&node(home.path(), &device), "alice", &device.backend()).await;
    let engine = engine.commitment_engine.unwrap();
    let node = node(home.path(), &device);
    let other = rusqlite::Connection::open(home.path().join("registry.sqlite")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (waiting, backend) = (node.clone(), device.backend());
    let waiting = tokio::spawn(async move { make(&waiting, "bob", &backend).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let call = Call::within(Duration::from_secs(20));
    let signed = node.commit(&id("alice"), &engine, vec![1], &call).await;
    assert!(signed.is_ok() && !waiting.is_finished());
    other.execute_batch("ROLLBACK").unwrap();
    waiting.await.unwrap();
}

#[tokio::test]
async fn what_another_process_releases_is_noticed() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let (here, there) = (node(home.path(), &device), node(home.path(), &device));
    let (_, key) = device.foreign_key(KeySpec::sign(Algorithm::Ed25519));
    let adopted = connect(&here, "alice", &key, &device.backend(), Commit).await;
    let engine = adopted.commitment_engine.unwrap();
    connect(&here, "bob", "alice", &device.backend(), Commit).await;
    let sign = async || (here.commit(&id("bob"), &engine, vec![1], &call())).await;
    assert!(sign().await.is_ok());
    delete(&there, "alice", "alice").await.unwrap();
    let limit = Instant::now() + Duration::from_secs(30);
    let refused = loop {
        match sign().await {
            Err(refused) => break refused,
            Ok(_) => assert!(Instant::now() < limit, "it is served for ever"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(matches!(refused, EngineError::IdentityDeleted { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn volatile_identities_of_the_dead_are_forgotten_and_no_others() {
    for _ in 0..10 {
        let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
        let dead = node(home.path(), &device);
        for number in 0..40 {
            let name = format!("v{number}");
            make(&dead, &name, &claviger_engine::Backend::LocalMemory).await;
        }
        drop(dead);
        let path = home.path().to_owned();
        let other = std::thread::spawn(move || Registry::open(&path).is_ok());
        let node = node(home.path(), &device);
        make(&node, "v39", &device.backend()).await;
        assert!(other.join().unwrap());
        assert!(node.registry().identity(&id("v39")).unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decryption_ends_at_its_deadline_on_a_key_that_has_turned_slow() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    let made = make(&node, "alice", &device.backend()).await;
    let engine = made.decryption_engine.unwrap();
    let request = RequestEncrypt {
        data: Secret::new(b"x".to_vec()),
        external_identity: id("alice"),
        use_reads_for: false,
        preference: Default::default(),
    };
    let file = node
        .encrypt(&EngineId::program(), request, &call())
        .await
        .unwrap();
    let decrypt = |call| {
        let (node, engine, file) = (node.clone(), engine.clone(), file.clone());
        async move { node.decrypt(&id("alice"), &engine, file, &call).await }
    };
    device.decrypts_in(Duration::from_millis(5));
    for _ in 0..5 {
        decrypt(call()).await.unwrap();
    }
    device.decrypts_in(Duration::from_secs(60));
    let begun = Instant::now();
    let call = Call::within(Duration::from_millis(200));
    let refused = decrypt(call).await.unwrap_err();
    assert!(matches!(
        refused,
        EngineError::Token(Error::DeadlineExceeded)
    ));
    assert!(begun.elapsed() < Duration::from_secs(50));
}

#[tokio::test]
async fn an_empty_file_where_the_registry_was_is_no_fresh_start() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("registry.sqlite");
    std::fs::write(&path, b"").unwrap();
    make_private(&path, 0o600);
    assert!(matches!(
        Registry::open(home.path()),
        Err(RegistryError::Empty { .. })
    ));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    std::fs::remove_file(&path).unwrap();
    Registry::open(home.path()).unwrap();
}

#[cfg(unix)]
#[tokio::test]
async fn a_home_that_others_can_write_to_is_not_used() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("registry.sqlite");
    drop(Registry::open(home.path()).unwrap());
    for (what, mode, usual) in [
        (home.path(), 0o777, 0o700),
        (home.path(), 0o720, 0o755),
        (path.as_path(), 0o666, 0o600),
        (path.as_path(), 0o620, 0o644),
    ] {
        make_private(what, mode);
        let refused = Registry::open(home.path()).err().unwrap();
        let RegistryError::NotPrivate { path: named, .. } = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(named, what);
        make_private(what, usual);
        drop(Registry::open(home.path()).unwrap());
    }
}

fn make_private(path: &std::path::Path, mode: u32) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
}

#[test]
fn of_eight_who_make_the_registry_at_once_each_has_it() {
    let home = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| Registry::open(home.path()).unwrap());
        }
    });
    let left = std::fs::read_dir(home.path()).unwrap();
    let left = left.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().contains(".new")
    });
    assert_eq!(left.count(), 0);
}

/// A process has one current folder, so this test is a process of its own.
#[test]
fn a_home_that_was_named_from_the_current_folder_stays_the_same_when_that_changes() {
    const FOLDER: &str = "CLAVIGER_TEST_FOLDER";
    let Some(folder) = std::env::var_os(FOLDER) else {
        let folder = tempfile::tempdir().unwrap();
        let name = "a_home_that_was_named_from_the_current_folder_stays_the_same_when_that_changes";
        let alone = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(FOLDER, folder.path())
            .output()
            .unwrap();
        assert!(alone.status.success(), "{alone:?}");
        assert!(String::from_utf8_lossy(&alone.stdout).contains("1 passed"));
        return;
    };
    std::env::set_current_dir(&folder).unwrap();
    let registry = Registry::open(std::path::Path::new("home")).unwrap();
    std::env::set_current_dir("/").unwrap();
    let friend = Party {
        name: "friend".into(),
        keys: PublicKeys::default(),
    };
    registry.add_contact(&friend).unwrap();
    drop(registry);
    let home = std::path::Path::new(&folder).join("home");
    let contacts = Registry::open(&home).unwrap().contacts().unwrap();
    assert_eq!(contacts, [friend]);
}
