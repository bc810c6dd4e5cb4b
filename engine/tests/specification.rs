//! The rows of the specification, each as a test against a node.

mod common;

use claviger_engine::message::{
    RequestCommitment, RequestConnectIdentity, RequestDeleteIdentity, RequestGenerateIdentity,
};
use claviger_engine::node::{IDENTITY_MANAGEMENT, MAILBOX_CAPACITY, SendError};
use claviger_engine::{Backend, Capabilities, EngineError, EngineId, EngineMsg, IdParams, Msg};
use claviger_formats::envelope;
use claviger_token::{Algorithm, Error, KeySpec, KeyUse};
use common::*;

use Capabilities::{Commit, CommitAndDecrypt, Decrypt};

const MEMORY: Backend = Backend::LocalMemory;

#[tokio::test]
async fn generate_enters_an_identity_under_the_requesters_own_id() {
    let node = memory_node();
    let reply = make(&node, "alice", &MEMORY).await;
    assert_eq!(reply.external_identity, id("alice"));
    assert_eq!(reply.commitment_engine, Some(id("alice_committer_alice")));
    assert_eq!(reply.decryption_engine, Some(id("alice_decryptor_alice")));
    let all = node.registry().identities().unwrap();
    assert_eq!(all.len(), 1);
    let (who, info) = &all[0];
    assert_eq!(*who, id("alice"));
    assert_eq!(info.backend, MEMORY);
    assert_eq!(info.capabilities, CommitAndDecrypt);
    assert_eq!(info.commitment_engine, reply.commitment_engine);
    assert_eq!(info.decryption_engine, reply.decryption_engine);
}

#[tokio::test]
async fn generate_spawns_just_the_engines_that_were_asked_for() {
    let node = memory_node();
    let commits = generate(&node, "a", &MEMORY, IdParams::P256, Commit).await;
    assert_eq!(commits.commitment_engine, Some(id("a_committer_a")));
    assert_eq!(commits.decryption_engine, None);
    let decrypts = generate(&node, "b", &MEMORY, IdParams::P256, Decrypt).await;
    assert_eq!(decrypts.commitment_engine, None);
    assert_eq!(decrypts.decryption_engine, Some(id("b_decryptor_b")));
    let data = || Msg::RequestCommitment(RequestCommitment::raw(vec![1]));
    assert!(
        node.ask(&id("x"), &id("b_committer_b"), data(), &call())
            .await
            .is_none()
    );
}

#[tokio::test]
async fn a_second_generate_is_refused_and_changes_nothing() {
    let node = memory_node();
    make(&node, "alice", &MEMORY).await;
    let before = node.registry().identities().unwrap();
    let reply = generate(&node, "alice", &MEMORY, IdParams::P256, Commit).await;
    assert_eq!(text(reply.err), "Identity already exists");
    assert_eq!(reply.external_identity, id("alice"));
    assert_eq!(
        (reply.commitment_engine, reply.decryption_engine),
        (None, None)
    );
    assert_eq!(node.registry().identities().unwrap(), before);
}

#[tokio::test]
async fn each_capability_has_a_key_of_its_own() {
    let node = memory_node();
    for (name, params, sign, decrypt) in [
        ("a", IdParams::P256, Algorithm::P256, Algorithm::P256),
        (
            "b",
            IdParams::Ed25519,
            Algorithm::Ed25519,
            Algorithm::X25519,
        ),
        (
            "c",
            IdParams::Secp256k1,
            Algorithm::Secp256k1,
            Algorithm::X25519,
        ),
    ] {
        let reply = generate(&node, name, &MEMORY, params, CommitAndDecrypt).await;
        assert!(reply.err.is_none(), "{:?}", reply.err);
        let info = node.registry().identity(&id(name)).unwrap().unwrap();
        let [signing, decrypting] = &info.keys[..] else {
            panic!("{:?}", info.keys)
        };
        assert_eq!(
            (signing.usage, signing.public_key.algorithm()),
            (KeyUse::Sign, sign)
        );
        assert_eq!(
            (decrypting.usage, decrypting.public_key.algorithm()),
            (KeyUse::Decrypt, decrypt)
        );
        assert_ne!(signing.public_key, decrypting.public_key);
        assert_ne!(signing.slot, decrypting.slot);
    }
}

#[tokio::test]
async fn connect_copies_engine_references_and_only_shrinks() {
    let node = memory_node();
    make(&node, "alice", &MEMORY).await;
    let (committer, decryptor) = (
        Some(id("alice_committer_alice")),
        Some(id("alice_decryptor_alice")),
    );
    for (name, asked, commit, decrypt) in [
        ("b1", Commit, committer.clone(), None),
        ("b2", Decrypt, None, decryptor.clone()),
        ("b3", CommitAndDecrypt, committer.clone(), decryptor.clone()),
    ] {
        let elsewhere = Backend::from("device:elsewhere");
        let reply = connect(&node, name, "alice", &elsewhere, asked).await;
        assert!(reply.err.is_none(), "{:?}", reply.err);
        assert_eq!(
            (&reply.commitment_engine, &reply.decryption_engine),
            (&commit, &decrypt)
        );
        let info = node.registry().identity(&id(name)).unwrap().unwrap();
        assert_eq!(
            info.backend, MEMORY,
            "the backend is copied from the original"
        );
        assert_eq!(info.capabilities, asked);
        assert_eq!(
            (info.commitment_engine, info.decryption_engine),
            (commit, decrypt)
        );
    }
    // From a connection one cannot get more than it has.
    for (from, asked, err) in [
        ("b1", Decrypt, "Capabilities not available"),
        ("b1", CommitAndDecrypt, "Capabilities not available"),
        ("b2", Commit, "Capabilities not available"),
        ("b1", Commit, ""),
    ] {
        let reply = connect(
            &node,
            &format!("of {from} {err}{asked}"),
            from,
            &MEMORY,
            asked,
        )
        .await;
        assert_eq!(text(reply.err), err);
        assert_eq!(reply.commitment_engine.is_some(), err.is_empty());
        assert_eq!(reply.decryption_engine, None);
    }
}

#[tokio::test]
async fn connect_is_refused_in_the_order_of_the_specification() {
    let node = memory_node();
    make(&node, "alice", &MEMORY).await;
    generate(&node, "signer", &MEMORY, IdParams::P256, Commit).await;
    for (name, to, asked, err) in [
        // The requester has an identity: that is said first, whatever else is wrong.
        (
            "alice",
            "nobody",
            CommitAndDecrypt,
            "Identity already exists",
        ),
        ("alice", "signer", Decrypt, "Identity already exists"),
        ("bob", "nobody", Commit, "External identity not found"),
        ("bob", "bob", Commit, "External identity not found"),
        ("bob", "signer", Decrypt, "Capabilities not available"),
        (
            "bob",
            "signer",
            CommitAndDecrypt,
            "Capabilities not available",
        ),
    ] {
        let reply = connect(&node, name, to, &MEMORY, asked).await;
        assert_eq!(text(reply.err), err, "{name} to {to}");
        assert_eq!(
            (reply.commitment_engine, reply.decryption_engine),
            (None, None)
        );
    }
    assert_eq!(node.registry().identities().unwrap().len(), 2);
}

#[tokio::test]
async fn delete_removes_the_named_identity_and_its_engines() {
    let node = memory_node();
    let alice = make(&node, "alice", &MEMORY).await;
    // Anyone within the process may.
    delete(&node, "mallory", "alice").await.unwrap();
    assert!(node.registry().identities().unwrap().is_empty());
    let data = Msg::RequestCommitment(RequestCommitment::raw(vec![1]));
    let engine = alice.commitment_engine.unwrap();
    assert!(
        node.ask(&id("alice"), &engine, data, &call())
            .await
            .is_none()
    );
    let err = delete(&node, "mallory", "alice").await.unwrap_err();
    assert_eq!(err.to_string(), "Identity does not exist");
    make(&node, "alice", &MEMORY).await;
}

#[tokio::test]
async fn connected_identities_outlive_the_original_but_their_engines_name_the_deletion() {
    let node = memory_node();
    let alice = make(&node, "alice", &MEMORY).await;
    connect(&node, "bob", "alice", &MEMORY, CommitAndDecrypt).await;
    delete(&node, "alice", "alice").await.unwrap();

    let bob = node.registry().identity(&id("bob")).unwrap().unwrap();
    assert_eq!(bob.commitment_engine, alice.commitment_engine);
    let deleted = "the identity `alice` was deleted";
    let sign = |who: &'static str| {
        let (node, engine) = (node.clone(), alice.commitment_engine.clone().unwrap());
        async move { node.commit(&id(who), &engine, b"x".to_vec(), &call()).await }
    };
    assert_eq!(sign("bob").await.unwrap_err().to_string(), deleted);
    let file = envelope::encrypt(&[&bob.keys[1].public_key], b"x").unwrap();
    let opened = node
        .decrypt(
            &id("bob"),
            &bob.decryption_engine.clone().unwrap(),
            file,
            &call(),
        )
        .await;
    assert_eq!(opened.unwrap_err().to_string(), deleted);
    let reply = connect(&node, "carol", "bob", &MEMORY, Commit).await;
    assert_eq!(text(reply.err), deleted);

    // A new alice has an engine of the same name; bob was not connected to her.
    make(&node, "alice", &MEMORY).await;
    assert!(sign("alice").await.is_ok());
    assert_eq!(sign("bob").await.unwrap_err().to_string(), deleted);

    delete(&node, "bob", "bob").await.unwrap();
    connect(&node, "bob", "alice", &MEMORY, Commit).await;
    assert!(sign("bob").await.is_ok());
}

#[tokio::test]
async fn what_no_guard_accepts_is_dropped_without_a_reply() {
    let node = memory_node();
    make(&node, "alice", &MEMORY).await;
    let commit = || Msg::RequestCommitment(RequestCommitment::raw(vec![]));
    let delete = || {
        Msg::RequestDeleteIdentity(RequestDeleteIdentity {
            external_identity: id("alice"),
            backend: MEMORY,
        })
    };
    let x = id("x");
    for (target, msg) in [
        (id(IDENTITY_MANAGEMENT), commit()),
        (id("alice_committer_alice"), delete()),
        (id("alice_decryptor_alice"), commit()),
        (id("nobody"), delete()),
    ] {
        assert!(
            node.ask(&x, &target, msg, &call()).await.is_none(),
            "{target}"
        );
    }
    assert_eq!(node.registry().identities().unwrap().len(), 1);
}

#[tokio::test]
async fn replies_come_to_mailbox_0_of_the_sender() {
    let node = memory_node();
    let alice = node.attach("alice").unwrap();
    let request = |mailbox| EngineMsg {
        sender: alice.id().clone(),
        target: node.identity_management(),
        mailbox,
        msg: Msg::RequestGenerateIdentity(RequestGenerateIdentity {
            backend: MEMORY,
            params: IdParams::Ed25519,
            capabilities: Commit,
        }),
    };
    node.send(request(None), &call()).await.unwrap();
    node.send(request(Some(7)), &call()).await.unwrap();
    for err in ["", "Identity already exists"] {
        let reply = alice.receive(0).await;
        assert_eq!(reply.sender, node.identity_management());
        assert_eq!((reply.target, reply.mailbox), (id("alice"), Some(0)));
        let Msg::ReplyGenerateIdentity(reply) = reply.msg else {
            panic!()
        };
        assert_eq!(text(reply.err), err);
    }
    assert!(alice.try_receive(0).is_none());
}

#[tokio::test]
async fn participants_have_numbered_mailboxes() {
    let node = memory_node();
    let (alice, bob) = (node.attach("alice").unwrap(), node.attach("bob").unwrap());
    assert!(matches!(node.attach("bob"), Err(SendError::NameTaken)));
    assert!(matches!(
        node.attach(IDENTITY_MANAGEMENT),
        Err(SendError::NameTaken)
    ));
    for mailbox in [None, Some(3)] {
        let msg = Msg::RequestCommitment(RequestCommitment::raw(vec![]));
        let message = EngineMsg {
            sender: alice.id().clone(),
            target: bob.id().clone(),
            mailbox,
            msg,
        };
        node.send(message, &call()).await.unwrap();
    }
    assert!(bob.try_receive(3).is_some());
    assert!(bob.try_receive(3).is_none());
    assert!(bob.try_receive(0).is_some());
    assert!(bob.try_receive(0).is_none());
    drop(bob);
    assert!(node.attach("bob").is_ok());
}

#[tokio::test]
async fn a_full_mailbox_is_said_before_anything_is_done() {
    let node = memory_node();
    let alice = node.attach("alice").unwrap();
    let request = || EngineMsg {
        sender: alice.id().clone(),
        target: node.identity_management(),
        mailbox: None,
        msg: Msg::RequestDeleteIdentity(RequestDeleteIdentity {
            external_identity: id("bob"),
            backend: MEMORY,
        }),
    };
    for _ in 0..MAILBOX_CAPACITY {
        node.send(request(), &call()).await.unwrap();
    }
    make(&node, "bob", &MEMORY).await;
    assert!(matches!(
        node.send(request(), &call()).await,
        Err(SendError::MailboxFull)
    ));
    assert_eq!(node.registry().identities().unwrap().len(), 1);
    alice.receive(0).await;
    node.send(request(), &call()).await.unwrap();
    assert_eq!(node.registry().identities().unwrap().len(), 0);
}

#[tokio::test]
async fn a_commitment_is_a_signature_with_its_algorithm() {
    let node = memory_node();
    for (name, params) in [
        ("a", IdParams::Ed25519),
        ("b", IdParams::Secp256k1),
        ("c", IdParams::P256),
    ]
    .into_iter()
    .chain([("d", IdParams::P384), ("e", IdParams::Bls)])
    {
        let reply = generate(&node, name, &MEMORY, params, Commit).await;
        let engine = reply.commitment_engine.unwrap();
        // Anyone who knows the engine may ask it.
        let commitment = node
            .commit(&id("z"), &engine, b"data".to_vec(), &call())
            .await
            .unwrap();
        let info = node.registry().identity(&id(name)).unwrap().unwrap();
        let key = &info.key(KeyUse::Sign).unwrap().public_key;
        assert_eq!(key.verify(b"data", &commitment), Ok(()));
        assert!(key.verify(b"date", &commitment).is_err());
    }
}

#[tokio::test]
async fn a_failed_commitment_is_empty_and_says_why() {
    let device = Device::new();
    let home = tempfile::tempdir().unwrap();
    let node = node(home.path(), &device);
    let engine = make(&node, "alice", &device.backend())
        .await
        .commitment_engine
        .unwrap();
    device.detach();
    let request = Msg::RequestCommitment(RequestCommitment::raw(vec![1]));
    let Some(Msg::ReplyCommitment(reply)) = node.ask(&id("alice"), &engine, request, &call()).await
    else {
        panic!()
    };
    assert!(reply.commitment.is_none());
    assert!(text(reply.err).contains("no attached token"));
}

#[tokio::test]
async fn decryption_opens_what_was_encrypted_to_the_identity() {
    let node = memory_node();
    for (name, params) in [("a", IdParams::Ed25519), ("b", IdParams::P256)] {
        let engine = generate(&node, name, &MEMORY, params, Decrypt)
            .await
            .decryption_engine;
        let info = node.registry().identity(&id(name)).unwrap().unwrap();
        let plaintext = vec![5; 3 << 20];
        let file = envelope::encrypt(&[&info.keys[0].public_key], &plaintext).unwrap();
        let opened = node
            .decrypt(&id(name), &engine.unwrap(), file, &call())
            .await
            .unwrap();
        assert_eq!(*opened, plaintext);
    }
}

#[tokio::test]
async fn every_failure_that_depends_on_the_ciphertext_is_the_same() {
    let node = memory_node();
    let engine = make(&node, "alice", &MEMORY)
        .await
        .decryption_engine
        .unwrap();
    make(&node, "other", &MEMORY).await;
    let key = |name| {
        let info = node.registry().identity(&id(name)).unwrap().unwrap();
        info.key(KeyUse::Decrypt).unwrap().public_key.clone()
    };
    let good = envelope::encrypt(&[&key("alice")], b"attack at dawn").unwrap();
    let mut bad = vec![
        Vec::new(),
        b"no age file".to_vec(),
        envelope::encrypt(&[&key("other")], b"attack at dawn").unwrap(),
    ];
    bad.extend((0..good.len()).step_by(7).map(|end| good[..end].to_vec()));
    bad.extend((0..good.len()).step_by(7).map(|i| {
        let mut altered = good.clone();
        altered[i] ^= 0x10;
        altered
    }));
    for file in bad {
        let request =
            Msg::RequestDecryption(claviger_engine::message::RequestDecryption { data: file });
        let Some(Msg::ReplyDecryption(reply)) =
            node.ask(&id("alice"), &engine, request, &call()).await
        else {
            panic!()
        };
        assert_eq!(text(reply.err), "Decryption Failed");
        assert!(reply.data.is_empty());
    }
    assert_eq!(
        *node
            .decrypt(&id("alice"), &engine, good, &call())
            .await
            .unwrap(),
        b"attack at dawn"
    );
}

#[tokio::test]
async fn decryption_failures_that_do_not_depend_on_the_ciphertext_say_what_they_are() {
    let device = Device::new();
    let home = tempfile::tempdir().unwrap();
    let node = node(home.path(), &device);
    let engine = make(&node, "alice", &device.backend())
        .await
        .decryption_engine
        .unwrap();
    device.detach();
    let err = node
        .decrypt(&id("alice"), &engine, Vec::new(), &call())
        .await
        .unwrap_err();
    assert!(err.to_string().contains("no attached token"), "{err}");
}

#[tokio::test]
async fn from_another_node_only_the_owner_deletes_or_connects() {
    let node = memory_node();
    make(&node, "alice", &MEMORY).await;
    let info = node.registry().identity(&id("alice")).unwrap().unwrap();
    let node_id = claviger_engine::NodeId(std::sync::Arc::new(info.keys[0].public_key.clone()));
    let remote = EngineId {
        node: Some(node_id),
        name: "alice".into(),
    };
    let delete = |identity: EngineId| RequestDeleteIdentity {
        external_identity: identity,
        backend: MEMORY,
    };
    let reply = node.delete(&remote, delete(id("alice")), &call()).await;
    assert!(text(reply.err()).contains("may not delete"));
    for to in ["alice", &info.keys[0].public_key.fingerprint().to_string()] {
        let request = RequestConnectIdentity {
            external_identity: id(to),
            backend: MEMORY,
            capabilities: Commit,
        };
        let reply = node.connect(&remote, request, &call()).await;
        assert!(text(reply.err()).contains("may not"));
    }
    assert_eq!(node.registry().identities().unwrap().len(), 1);
}

#[tokio::test]
async fn names_that_would_harm_are_refused_before_anything_is_touched() {
    let device = Device::new();
    let home = tempfile::tempdir().unwrap();
    let node = node(home.path(), &device);
    for name in ["", &"x".repeat(10_000), "a\nb"] {
        let reply = generate(&node, name, &device.backend(), IdParams::P256, Commit).await;
        assert!(text(reply.err).contains("cannot be the name"), "{name:?}");
    }
    assert_eq!(device.keys(), 0);
}

#[tokio::test]
async fn unsupported_combinations_are_refused_before_anything_is_touched() {
    let device = Device::new();
    let home = tempfile::tempdir().unwrap();
    let node = node(home.path(), &device);
    let backend = device.backend();
    // No token has them: the cryptosystem itself does not decrypt.
    for params in [IdParams::P384, IdParams::Bls] {
        let reply = generate(&node, "a", &backend, params, CommitAndDecrypt).await;
        assert!(text(reply.err).contains("cannot decrypt"));
    }
    // This token has not: the message names what it does have.
    let reply = generate(&node, "a", &backend, IdParams::Rsa2048, CommitAndDecrypt).await;
    let err = reply.err.unwrap();
    assert!(err.to_string().contains("rsa2048"), "{err}");
    let EngineError::Token(Error::Unsupported { supported, .. }) = &err else {
        panic!("{err:?}");
    };
    assert!(supported.contains(&KeySpec::sign(Algorithm::Ed25519)));
    let reply = generate(&node, "a", &"nfc:x".into(), IdParams::P256, Commit).await;
    let Some(EngineError::NoDriver { schemes, .. }) = reply.err else {
        panic!("nfc: has a driver");
    };
    assert_eq!(schemes, ["device", "memory"]);
    for unknown in ["no backend at all", "remote:peer"] {
        let reply = generate(&node, "a", &unknown.into(), IdParams::P256, Commit).await;
        assert!(reply.err.is_some(), "{unknown}");
    }
    assert_eq!(device.keys(), 0);
    assert!(node.registry().identities().unwrap().is_empty());
}
