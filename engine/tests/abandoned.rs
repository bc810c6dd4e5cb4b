//! What is abandoned on a token, resolved by requests of others that only use keys of it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;

use claviger_engine::policy::{Permission, Policy};
use claviger_engine::{Capabilities, EngineError, EngineId, IdParams, Node};
use claviger_formats::envelope::{self, Sealed};
use common::{Device, call, generate, id, make, node, until};

/// Who may do everything.
struct Anything;

impl Policy for Anything {
    fn check(&self, _: &EngineId, _: Permission<'_>) -> Result<(), EngineError> {
        Ok(())
    }
}

async fn sign(node: &Node) {
    let (alice, engine, call) = (id("alice"), id("alice_committer_alice"), call());
    let signed = node.commit(&alice, &engine, b"m".to_vec(), &call);
    signed.await.unwrap();
}

/// The token goes away while a key is made, and is back.
async fn abandon(node: &Node, device: &Device) {
    let (keys, p256) = (device.keys(), IdParams::P256);
    device.detach_after(1);
    let both = Capabilities::CommitAndDecrypt;
    let made = generate(node, "bob", &device.backend(), p256, both).await;
    assert!(made.err.is_some());
    device.attach();
    assert_eq!(device.keys(), keys + 1);
    assert_eq!(node.registry().open_intents().unwrap().len(), 1);
}

#[tokio::test]
async fn a_view_that_uses_a_key_resolves_what_was_abandoned_on_its_token() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let whole = node(home.path(), &device);
    make(&whole, "alice", &device.backend()).await;
    let view = whole.seen_by(Arc::new(Anything));
    // There is nothing at first.
    sign(&view).await;
    let keys = device.keys();
    abandon(&view, &device).await;
    // Who serves nobody else says itself when.
    sign(&whole).await;
    assert_eq!(device.keys(), keys + 1);
    sign(&view).await;
    until(|| view.registry().open_intents().unwrap().is_empty()).await;
    assert_eq!(device.keys(), keys);
}

#[tokio::test]
async fn what_another_process_abandoned_is_resolved_by_who_opens_a_file_on_the_token() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let other = node(home.path(), &device);
    make(&other, "alice", &device.backend()).await;
    let keys = device.keys();
    abandon(&other, &device).await;
    drop(other);
    let whole = node(home.path(), &device);
    let view = whole.seen_by(Arc::new(Anything));
    let recipient = view.public_keys(&id("alice")).unwrap().unwrap();
    let file = envelope::encrypt(&[&recipient.decrypt.unwrap()], b"text").unwrap();
    let sealed = Sealed::read(file.as_slice()).unwrap();
    let (asker, alice) = (EngineId::program(), id("alice"));
    let opener = claviger_engine::opener::Opener::only(&view, &asker, &alice, sealed.stanzas());
    opener.await.unwrap().open(&call()).await.unwrap();
    until(|| view.registry().open_intents().unwrap().is_empty()).await;
    assert_eq!(device.keys(), keys);
}
