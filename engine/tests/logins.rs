//! Whose login a request makes and uses, when it acts for an identity or waits for its turn.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use claviger_engine::message::{RequestConnectIdentity, RequestDeleteIdentity};
use claviger_engine::{Capabilities, EngineError, Node, Registry};
use claviger_token::{Algorithm, KeySpec};
use common::logins::{Private, Stage, is_not_allowed, with_pin};
use common::safes::PINS;
use common::{call, id, until};

async fn sign(node: &Node, who: &str) -> Result<(), EngineError> {
    let (engine, call) = (id("alice_committer_alice"), call());
    let signed = node.commit(&id(who), &engine, b"m".to_vec(), &call).await;
    signed.map(drop)
}

#[tokio::test]
async fn the_login_of_a_grant_is_that_of_who_asked_for_it() {
    let stage = Stage::new().await;
    let node = stage.node(claviger_token::NoPin, Private);
    let (carol, alice, bob) = (id("carol"), id("alice"), id("bob"));
    let call_with_pin = with_pin();
    let granted = node.grant_reads_for(&carol, &bob, &alice, None, &call_with_pin);
    granted.await.unwrap();
    assert_eq!(stage.safes.0[0].came(), [PINS[0]]);
    is_not_allowed(&sign(&node, "alice").await);
    sign(&node, "carol").await.unwrap();
}

/// What `carol` wants to be done on the first safe.
async fn manage(node: &Node, what: &str, stage: &Stage, key: &str) -> Result<(), EngineError> {
    let (carol, call, backend) = (id("carol"), call(), stage.request().backend);
    match what {
        "generate" => {
            let made = node.generate(&carol, stage.request(), &call);
            made.await.map(drop)
        }
        "adopt" => {
            let request = RequestConnectIdentity {
                external_identity: id(key),
                backend,
                capabilities: Capabilities::Commit,
            };
            node.connect(&carol, request, &call).await.map(drop)
        }
        _ => {
            let request = RequestDeleteIdentity {
                external_identity: id("bob"),
                backend,
            };
            node.delete(&carol, request, &call).await.map(drop)
        }
    }
}

#[tokio::test]
async fn who_waited_for_a_turn_does_not_use_a_login_that_was_made_meanwhile() {
    let stage = Stage::new().await;
    let device = &stage.safes.0[0].device;
    let (_, key) = device.foreign_key(KeySpec::sign(Algorithm::Ed25519));
    for what in ["generate", "adopt", "delete"] {
        let node = stage.node(stage.safes.person(), Private);
        stage.safes.log_out();
        // Who has the turn at the token waits for a touch.
        device.wants_touch(true);
        let (first, call) = (id(&format!("first-{what}")), call());
        let first = node.generate(&first, stage.request(), &call);
        let (goes_on, go_on) = tokio::sync::oneshot::channel();
        let waiting = async {
            go_on.await.unwrap();
            manage(&node, what, &stage, &key).await
        };
        let others = async {
            until(|| device.waits_for_touch()).await;
            let opened = device.opened();
            goes_on.send(()).unwrap();
            until(|| device.opened() > opened).await;
            stage.safes.log_out();
            let engine = id("alice_decryptor_alice");
            let (dave, call) = (id("dave"), with_pin());
            let dave = node.decryptor(&dave, &engine, &call).await;
            device.wants_touch(false);
            dave.map(drop)
        };
        let (first, dave, waited) = tokio::join!(first, others, waiting);
        first.unwrap();
        dave.unwrap();
        is_not_allowed(&waited);
    }
    // Of what waited nothing was done.
    let identities = node_names(&stage);
    assert_eq!(
        identities,
        [
            "alice",
            "bob",
            "first-adopt",
            "first-delete",
            "first-generate"
        ]
    );
}

fn node_names(stage: &Stage) -> Vec<String> {
    let registry = Registry::open(stage.home.path()).unwrap();
    let identities = registry.identities().unwrap().into_iter();
    identities.map(|(who, _)| who.name.to_string()).collect()
}
