//! To whom something is encrypted.

use claviger_engine::Capabilities::{Commit, CommitAndDecrypt};
use claviger_engine::node::ENCRYPTION;
use claviger_engine::{EngineError, IdParams, Msg, Node, Preference, Registry};
use claviger_memory::MemoryDriver;

use crate::common::*;
use crate::stage::*;

#[tokio::test]
async fn without_reads_for_it_is_encrypted_at_once_and_to_the_identity_alone() {
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(MemoryDriver::new())
        // Nobody is there to be asked.
        .reads_for(id("nobody"))
        .build();
    make_with(&node, "a", IdParams::P256, CommitAndDecrypt).await;
    make_all(&node, &["b"]).await;
    grant(&node, "b", "a").await;
    for preference in [
        Preference::ITSELF,
        Preference::WITH_READERS,
        Preference::CHEAPEST,
    ] {
        let msg = Msg::RequestEncrypt(request("a", false, preference));
        let reply = node.ask(&id("x"), &id(ENCRYPTION), msg, &call()).await;
        let Some(Msg::ReplyEncrypt(reply)) = reply else {
            panic!("{reply:?}");
        };
        assert!(reply.err.is_none());
        assert!(opens(&node, "a", &reply.ciphertext).await);
        assert!(!opens(&node, "b", &reply.ciphertext).await);
    }
}

#[tokio::test]
async fn the_default_is_the_identity_itself_where_it_has_a_key() {
    let node = memory_node();
    make_all(&node, &["a", "b", "c"]).await;
    grant(&node, "a", "b").await;
    grant(&node, "c", "a").await;
    let file = seal(&node, "a", true).await.unwrap();
    assert!(opens(&node, "a", &file).await);
    assert!(!opens(&node, "b", &file).await);
    assert!(!opens(&node, "c", &file).await);
}

#[tokio::test]
async fn nobody_becomes_a_recipient_in_place_of_an_identity_without_a_key() {
    let node = memory_node();
    make_with(&node, "team", IdParams::P384, Commit).await;
    make_with(&node, "mallory", IdParams::P256, CommitAndDecrypt).await;
    // Whoever wants to be read for says so, and nobody else has to agree.
    let (from, to) = (party(&node, "team"), party(&node, "mallory"));
    let piece = signed(&node, "mallory", from, to).await;
    assert_eq!(submit(&node, piece).await, "");
    for use_reads_for in [false, true] {
        for preference in [
            Preference::ITSELF,
            Preference::CHEAPEST,
            Preference::WITH_READERS,
        ] {
            let request = request("team", use_reads_for, preference.clone());
            let error = node
                .encrypt(&claviger_engine::EngineId::program(), request, &call())
                .await
                .unwrap_err();
            assert!(
                matches!(error, EngineError::NoEncryptionKey { .. }),
                "{preference:?}: {error}"
            );
        }
    }
}

#[tokio::test]
async fn the_cheapest_is_found_transitively() {
    let node = memory_node();
    make_with(&node, "start", IdParams::P256, CommitAndDecrypt).await;
    make_with(&node, "middle", IdParams::P256, CommitAndDecrypt).await;
    make_with(&node, "end", IdParams::Ed25519, CommitAndDecrypt).await;
    grant(&node, "start", "middle").await;
    grant(&node, "middle", "end").await;
    let cheapest = request("start", true, Preference::CHEAPEST);
    let file = node
        .encrypt(&claviger_engine::EngineId::program(), cheapest, &call())
        .await
        .unwrap();
    assert!(opens(&node, "end", &file).await);
    assert!(!opens(&node, "start", &file).await);
}

#[tokio::test]
async fn the_preference_of_the_caller_decides() {
    let node = memory_node();
    make_with(&node, "yubikey", IdParams::P256, CommitAndDecrypt).await;
    make_with(&node, "safe", IdParams::P256, CommitAndDecrypt).await;
    make_with(&node, "cheap", IdParams::Ed25519, CommitAndDecrypt).await;
    make_with(&node, "heir", IdParams::Ed25519, CommitAndDecrypt).await;
    grant(&node, "safe", "yubikey").await;
    grant(&node, "heir", "safe").await;
    grant(&node, "yubikey", "cheap").await;
    for (preference, expected) in [
        (Preference::ITSELF, [true, false, false, false]),
        (Preference::CHEAPEST, [false, false, true, false]),
        (Preference::WITH_READERS, [true, true, false, true]),
    ] {
        let request = request("yubikey", true, preference.clone());
        let file = node
            .encrypt(&claviger_engine::EngineId::program(), request, &call())
            .await
            .unwrap();
        for (who, expected) in ["yubikey", "safe", "cheap", "heir"]
            .into_iter()
            .zip(expected)
        {
            assert_eq!(
                opens(&node, who, &file).await,
                expected,
                "{preference:?} {who}"
            );
        }
    }
}

#[tokio::test]
async fn unknown_recipients_and_deleted_ones_are_said() {
    let node = memory_node();
    for use_reads_for in [false, true] {
        let error = seal(&node, "nobody", use_reads_for).await.unwrap_err();
        assert_eq!(error.to_string(), "External identity not found");
    }
    make_all(&node, &["a"]).await;
    connect(&node, "b", "a", &MEMORY, CommitAndDecrypt).await;
    delete(&node, "a", "a").await.unwrap();
    for use_reads_for in [false, true] {
        let error = seal(&node, "b", use_reads_for).await.unwrap_err();
        assert_eq!(error.to_string(), "the identity `a` was deleted");
    }
}

#[tokio::test]
async fn a_recipient_that_is_made_anew_gets_what_is_for_its_new_key() {
    let node = memory_node();
    make_all(&node, &["a"]).await;
    let old = seal(&node, "a", false).await.unwrap();
    delete(&node, "a", "a").await.unwrap();
    assert!(seal(&node, "a", false).await.is_err());
    make_all(&node, &["a"]).await;
    assert!(!opens(&node, "a", &old).await);
    let new = seal(&node, "a", false).await.unwrap();
    assert!(opens(&node, "a", &new).await);
}

#[tokio::test]
async fn one_who_is_made_anew_by_another_process_is_not_mixed_up_with_the_old_one() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let (here, there) = (node(home.path(), &device), node(home.path(), &device));
    make(&there, "a", &device.backend()).await;
    let old = seal(&here, "a", false).await.unwrap();
    delete(&there, "a", "a").await.unwrap();
    make(&there, "a", &device.backend()).await;
    let new = seal(&here, "a", false).await.unwrap();
    assert!(!opens(&there, "a", &old).await);
    assert!(opens(&there, "a", &new).await);
}
