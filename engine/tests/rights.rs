//! Who made an identity, and what others are granted, in the registry.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;

use claviger_engine::grants::{NewGrant, Subject};
use claviger_engine::message::{
    RequestConnectIdentity, RequestDeleteIdentity, RequestGenerateIdentity,
};
use claviger_engine::registry::GrantError;
use claviger_engine::{Backend, Capabilities, IdParams, Node, Registry};
use claviger_memory::MemoryDriver;
use claviger_token::{Algorithm, KeySpec};
use common::filled::{Home, User};
use common::{Device, call, id, node};

fn grant(uid: u32, identity: &str, operation: &str, purpose: &str) -> NewGrant {
    NewGrant::parse(Subject::Uid(uid), "", identity, operation, purpose).unwrap()
}

fn generate(backend: Backend) -> RequestGenerateIdentity {
    RequestGenerateIdentity {
        backend,
        params: IdParams::Ed25519,
        capabilities: Capabilities::Commit,
    }
}

fn as_user(node: &Node, uid: u32) -> Node {
    node.seen_by(Arc::new(User(uid)))
}

#[tokio::test]
async fn the_user_whom_an_identity_is_made_for_is_noted_however_it_is_made() {
    let (home, device) = (tempfile::tempdir().unwrap(), Device::new());
    let node = node(home.path(), &device);
    let (_, key) = device.foreign_key(KeySpec::sign(Algorithm::Ed25519));
    let connect = |to: &str| RequestConnectIdentity {
        external_identity: id(to),
        backend: device.backend(),
        capabilities: Capabilities::Commit,
    };
    let (made, call) = (generate(device.backend()), call());
    let (one, two) = (as_user(&node, 1001), as_user(&node, 1002));
    one.generate(&id("made"), made.clone(), &call)
        .await
        .unwrap();
    two.connect(&id("connected"), connect("made"), &call)
        .await
        .unwrap();
    two.connect(&id("adopted"), connect(&key), &call)
        .await
        .unwrap();
    node.generate(&id("ours"), made, &call).await.unwrap();
    let registry = node.registry();
    let maker = |name: &str| registry.maker_of(&id(name)).unwrap();
    let makers = ["made", "connected", "adopted", "ours", "absent"].map(maker);
    assert_eq!(makers, [Some(1001), Some(1002), Some(1002), None, None]);
    let (_, rights) = registry.rights(None).unwrap().unwrap();
    assert_eq!(rights.makers.len(), 3);
    assert_eq!(rights.makers["adopted"], 1002);
    assert!(registry.check().unwrap().is_empty());
    // It is on the disk.
    let again = Registry::open(home.path()).unwrap();
    assert_eq!(again.maker_of(&id("made")).unwrap(), Some(1001));
}

#[tokio::test]
async fn with_an_identity_its_maker_and_its_grants_go_and_the_next_of_its_name_has_none() {
    let (home, device) = (tempfile::tempdir().unwrap(), Device::new());
    let node = node(home.path(), &device);
    let (one, call) = (as_user(&node, 1001), call());
    for name in ["alice", "bob"] {
        let made = generate(device.backend());
        one.generate(&id(name), made, &call).await.unwrap();
        let kept = grant(1002, name, "sign", "");
        node.registry().add_grant(&kept).unwrap();
    }
    let delete = RequestDeleteIdentity {
        external_identity: id("alice"),
        backend: device.backend(),
    };
    one.delete(&id("alice"), delete, &call).await.unwrap();
    let registry = node.registry();
    assert_eq!(registry.maker_of(&id("alice")).unwrap(), None);
    let made = generate(device.backend());
    node.generate(&id("alice"), made, &call).await.unwrap();
    assert_eq!(registry.maker_of(&id("alice")).unwrap(), None);
    let grants = registry.grants().unwrap();
    assert_eq!(grants.len(), 1);
    assert_eq!(grants[0].what, grant(1002, "bob", "sign", ""));
    assert!(registry.check().unwrap().is_empty());
}

#[tokio::test]
async fn an_identity_of_a_process_that_ended_leaves_no_maker_and_no_grant() {
    let home = tempfile::tempdir().unwrap();
    let open = || {
        Node::builder(Registry::open(home.path()).unwrap())
            .driver(MemoryDriver::new())
            .build()
    };
    let node = open();
    let (one, call) = (as_user(&node, 1001), call());
    let made = generate(Backend::LocalMemory);
    one.generate(&id("alice"), made, &call).await.unwrap();
    let granted = grant(1002, "alice", "sign", "");
    node.registry().add_grant(&granted).unwrap();
    drop((node, one));
    let registry = Registry::open(home.path()).unwrap();
    let (_, rights) = registry.rights(None).unwrap().unwrap();
    assert!(rights.makers.is_empty() && rights.grants.is_empty());
}

#[tokio::test]
async fn a_grant_is_kept_until_it_is_removed_and_names_an_identity_that_is_there() {
    let home = Home::new().await;
    let registry = home.open().unwrap();
    let before = registry.grants().unwrap();
    let absent = registry.add_grant(&grant(1, "absent", "sign", ""));
    let Err(error @ GrantError::NoIdentity { .. }) = absent else {
        panic!("{absent:?}");
    };
    assert_eq!(error.code(), "no-identity");
    let added = registry
        .add_grant(&grant(1, "alice", "sign", "raw"))
        .unwrap();
    let again = registry
        .add_grant(&grant(1, "alice", "sign", "raw"))
        .unwrap();
    assert_eq!(again, added);
    let of_none = grant(1, "", "generate", "");
    let other = registry.add_grant(&of_none).unwrap();
    let backup = registry.backup().unwrap();
    drop(registry);
    let registry = home.open().unwrap();
    let all = [before.clone(), vec![added.clone(), other.clone()]].concat();
    assert_eq!(registry.grants().unwrap(), all);
    assert!(registry.remove_grant(added.id).unwrap());
    assert!(!registry.remove_grant(added.id).unwrap());
    let left = [before, vec![other.clone()]].concat();
    assert_eq!(registry.grants().unwrap(), left);
    // A number is never that of another grant.
    let later = registry
        .add_grant(&grant(2, "alice", "sign", "raw"))
        .unwrap();
    assert!(later.id > other.id);
    drop(registry);
    // A backup holds what was granted then.
    let file = home.path().join("backup");
    std::fs::write(&file, backup.file).unwrap();
    Registry::restore(home.path(), &file).unwrap();
    let registry = home.open().unwrap();
    assert_eq!(registry.grants().unwrap(), all);
    assert_eq!(registry.maker_of(&id("frank")).unwrap(), Some(1001));
}

#[tokio::test]
async fn rights_are_read_again_only_after_they_changed() {
    let home = Home::new().await;
    let (one, other) = (home.open().unwrap(), home.open().unwrap());
    let (mark, rights) = one.rights(None).unwrap().unwrap();
    assert_eq!(rights.makers["frank"], 1001);
    assert_eq!(rights.grants.len(), 1);
    let writes = one.own_writes();
    other.remove_contact("friend").unwrap();
    assert_eq!(one.rights(Some(mark)).unwrap(), None);
    other.remove_grant(rights.grants[0].id).unwrap();
    let (mark, rights) = one.rights(Some(mark)).unwrap().unwrap();
    assert!(rights.grants.is_empty());
    assert_eq!(one.own_writes(), writes);
    one.add_grant(&grant(1, "alice", "delete", "")).unwrap();
    assert!(one.own_writes() > writes);
    let (_, rights) = one.rights(Some(mark)).unwrap().unwrap();
    assert_eq!(rights.grants.len(), 1);
}

#[tokio::test]
async fn rights_that_something_else_altered_are_no_rights() {
    let home = Home::new().await;
    let whole = home.bytes();
    for altered in [
        "UPDATE grants SET number = 1003",
        "UPDATE grants SET identity = 'alice'",
        "UPDATE owner SET uid = 1003",
        "UPDATE owner SET name = 'alice'",
        "DELETE FROM owner",
        "DELETE FROM grants",
        "INSERT INTO grants SELECT 99, subject, 1003, socket, identity, operation, purpose, digest \
         FROM grants",
    ] {
        home.put(&whole);
        home.sql(altered);
        let registry = home.open().unwrap();
        let rights = registry.rights(None);
        let error = rights.expect_err(altered);
        let code = error.code();
        assert!(
            ["registry-damaged", "registry-row-altered"].contains(&code),
            "{altered}: {code}"
        );
        assert!(!registry.check().unwrap().is_empty(), "{altered}");
    }
}
