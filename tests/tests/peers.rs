//! Other people's programs make age files, and keys in memory and on tokens that do RSA
//! open them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::path::Path;
use std::process::Command;

use claviger_engine::message::{RequestEncrypt, RequestGenerateIdentity};
use claviger_engine::{Backend, Capabilities, EngineId, IdParams, Node, Preference, Registry};
use claviger_formats::envelope;
use claviger_memory::MemoryDriver;
use claviger_pkcs11::Pkcs11Driver;
use claviger_tests::{Kryoptic, peers};
use claviger_token::{Access, Call, FixedPin, KeyUse, PublicKey, Secret};

const LETTER: &[u8] = b"Meet me where the keys are kept.\n";

/// A node with an identity `me` on the backend.
async fn identity(node: Node, backend: Backend, params: IdParams) -> (Node, PublicKey) {
    let request = RequestGenerateIdentity {
        backend,
        params,
        capabilities: Capabilities::Decrypt,
    };
    let me = EngineId::local("me");
    node.generate(&me, request, &Call::unlimited())
        .await
        .unwrap();
    let info = node.registry().identity(&me).unwrap().unwrap();
    let key = info.key(KeyUse::Decrypt).unwrap().public_key.clone();
    (node, key)
}

async fn opens(node: &Node, file: Vec<u8>) {
    let me = EngineId::local("me");
    let engine = EngineId::local("me_decryptor_me");
    let opened = node.decrypt(&me, &engine, file, &Call::unlimited()).await;
    assert_eq!(**opened.unwrap(), *LETTER);
}

/// What `rage` encrypts to the recipient.
fn rage(folder: &Path, recipient: &str) -> Vec<u8> {
    std::fs::write(folder.join("letter"), LETTER).unwrap();
    std::fs::write(folder.join("recipients"), format!("{recipient}\n")).unwrap();
    let output = Command::new(peers::rage())
        .args(["-R", "recipients", "letter"])
        .current_dir(folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    output.stdout
}

#[tokio::test]
async fn what_rage_and_age_encryption_make_opens_with_keys_in_memory() {
    if peers::quick("what_rage_and_age_encryption_make_opens_with_keys_in_memory") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for params in [IdParams::Ed25519, IdParams::P256] {
        let node = Node::builder(Registry::in_memory().unwrap())
            .driver(MemoryDriver::new())
            .build();
        let (node, key) = identity(node, Backend::LocalMemory, params).await;
        let recipient = envelope::recipient_text(&key).unwrap();
        opens(&node, rage(folder.path(), &recipient)).await;
        let (from, to) = (folder.path().join("letter"), folder.path().join("made"));
        peers::age_encryption(&recipient, &from, &to);
        opens(&node, std::fs::read(to).unwrap()).await;
    }
}

#[tokio::test]
async fn what_rage_makes_for_an_ssh_rsa_key_opens_on_a_token_that_does_oaep() {
    let skipped = Kryoptic::skipped();
    if let Some(reason) = skipped {
        eprintln!("SKIPPED what_rage_makes_for_an_ssh_rsa_key…: {reason}");
        return;
    }
    let token = Kryoptic::new();
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(Pkcs11Driver::new())
        .access(Access::with(FixedPin::new(Kryoptic::PIN)))
        .build();
    let backend = Backend::from(token.backend());
    let (node, key) = identity(node, backend, IdParams::Rsa2048).await;
    let folder = tempfile::tempdir().unwrap();
    let recipient = envelope::recipient_text(&key).unwrap();
    opens(&node, rage(folder.path(), recipient.trim())).await;
    // And what is made here.
    let request = RequestEncrypt {
        data: Secret::new(LETTER.to_vec()),
        external_identity: EngineId::local("me"),
        use_reads_for: false,
        preference: Preference::default(),
    };
    let file = node
        .encrypt(
            &claviger_engine::EngineId::program(),
            request,
            &Call::unlimited(),
        )
        .await
        .unwrap();
    opens(&node, file).await;
}
