//! What a request was decided by may have changed by the time of its turn: it is looked at again.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use claviger_engine::message::{RequestConnectIdentity, RequestGenerateIdentity};
use claviger_engine::policy;
use claviger_engine::{
    Backend, Capabilities, EngineError, EngineId, IdParams, Node, Policy, Registry,
};
use claviger_memory::MemoryDriver;
use claviger_token::{Access, Algorithm, Call, Deletion, KeySpec, Token};
use common::safes::{Hesitant, Safes};
use common::{Device, call, connect, delete, generate, hang_while, id, make, until};
use tempfile::TempDir;

use Capabilities::{Commit, CommitAndDecrypt};

/// Lets everybody do everything, but takes its time where `late` connects or deletes.
#[derive(Clone, Default)]
struct Slow {
    asked: Arc<AtomicBool>,
    answers: Arc<AtomicBool>,
}

impl Policy for Slow {
    fn check(&self, sender: &EngineId, access: policy::Permission<'_>) -> Result<(), EngineError> {
        let waits = matches!(
            access,
            policy::Permission::Connect(_) | policy::Permission::Delete(_)
        );
        if waits && *sender == id("late") {
            self.asked.store(true, SeqCst);
            hang_while(|| !self.answers.load(SeqCst));
        }
        Ok(())
    }
}

/// A node with `alice`, whose policy takes its time.
async fn slow() -> (Device, Node, Slow, TempDir) {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let policy = Slow::default();
    let node = Node::builder(Registry::open(home.path()).unwrap())
        .driver(device.clone())
        .driver(MemoryDriver::new())
        .policy(policy.clone())
        .build();
    make(&node, "alice", &device.backend()).await;
    (device, node, policy, home)
}

/// What `late` is told, who wants `identity` deleted, and is decided on before `meanwhile`.
async fn late_deletion(
    (node, policy): (&Node, &Slow),
    identity: &str,
    meanwhile: impl Future<Output = ()>,
) -> Result<Vec<Deletion>, EngineError> {
    let late = {
        let (node, identity) = (node.clone(), identity.to_owned());
        tokio::spawn(async move { delete(&node, "late", &identity).await })
    };
    until(|| policy.asked.load(SeqCst)).await;
    meanwhile.await;
    policy.answers.store(true, SeqCst);
    late.await.unwrap()
}

#[tokio::test]
async fn a_deletion_of_an_identity_that_was_made_anew_meanwhile_does_not_say_that_it_is_done() {
    let (device, node, policy, _home) = slow().await;
    let late = late_deletion((&node, &policy), "alice", async {
        delete(&node, "alice", "alice").await.unwrap();
        make(&node, "alice", &device.backend()).await;
    });
    let late = late.await;
    assert!(
        matches!(late, Err(EngineError::InProgress { .. })),
        "{late:?}"
    );
    assert_eq!(device.keys(), 2);
    assert_eq!(node.registry().identities().unwrap().len(), 1);
    assert!(node.registry().open_intents().unwrap().is_empty());
}

#[tokio::test]
async fn of_two_deletions_of_a_connected_identity_the_second_finds_none() {
    let (device, node, policy, _home) = slow().await;
    connect(&node, "bob", "alice", &device.backend(), Commit).await;
    let late = late_deletion((&node, &policy), "bob", async {
        assert_eq!(delete(&node, "bob", "bob").await.unwrap(), []);
    });
    let late = late.await;
    assert!(
        matches!(late, Err(EngineError::IdentityDoesNotExist)),
        "{late:?}"
    );
}

#[tokio::test]
async fn who_connects_gets_no_more_than_an_identity_has_that_was_made_anew_meanwhile() {
    let (device, node, policy, _home) = slow().await;
    let request = RequestConnectIdentity {
        external_identity: id("alice"),
        backend: device.backend(),
        capabilities: CommitAndDecrypt,
    };
    let late = {
        let node = node.clone();
        tokio::spawn(async move { node.connect(&id("late"), request, &call()).await })
    };
    until(|| policy.asked.load(SeqCst)).await;
    delete(&node, "alice", "alice").await.unwrap();
    let backend = device.backend();
    let made = generate(&node, "alice", &backend, IdParams::Ed25519, Commit).await;
    assert!(made.err.is_none());
    policy.answers.store(true, SeqCst);
    let late = late.await.unwrap();
    assert!(
        matches!(late, Err(EngineError::CapabilitiesNotAvailable)),
        "{late:?}"
    );
    assert_eq!(node.registry().identity(&id("late")).unwrap(), None);
}

/// Two safes, and a person who does not say the PIN of the first until they are let.
struct Prompted {
    safes: Safes,
    node: Node,
    asked: Arc<AtomicBool>,
    answers: Arc<AtomicBool>,
    home: TempDir,
}

impl Prompted {
    fn new() -> Self {
        let (asked, answers): (Arc<AtomicBool>, Arc<AtomicBool>) = Default::default();
        let (safes, home) = (Safes::new(), tempfile::tempdir().unwrap());
        let person = Hesitant {
            knows: safes.person(),
            of: safes.0[0].device.id(),
            asked: Arc::clone(&asked),
            answers: Arc::clone(&answers),
        };
        let node = Node::builder(Registry::open(home.path()).unwrap())
            .driver(safes.clone())
            .driver(MemoryDriver::new())
            .access(Access::with(person))
            .build();
        Prompted {
            safes,
            node,
            asked,
            answers,
            home,
        }
    }

    fn device(&self) -> &Device {
        &self.safes.0[0].device
    }

    fn backend(&self) -> Backend {
        Backend::from(self.device().info().backend.clone())
    }

    /// A key on the first safe that is nobody's, and the request to adopt it.
    fn foreign(&self) -> RequestConnectIdentity {
        let (_, key) = self.device().foreign_key(KeySpec::sign(Algorithm::Ed25519));
        RequestConnectIdentity {
            external_identity: id(&key),
            backend: self.backend(),
            capabilities: Commit,
        }
    }

    /// What `alice` is told who adopts the key, when `meanwhile` happens during the prompt.
    async fn adopts_late(
        &self,
        request: RequestConnectIdentity,
        meanwhile: impl Future<Output = ()>,
    ) -> EngineError {
        let late = {
            let node = self.node.clone();
            tokio::spawn(async move { node.connect(&id("alice"), request, &call()).await })
        };
        until(|| self.asked.load(SeqCst)).await;
        meanwhile.await;
        // Who asked the key for anything from now on would be told something else.
        self.device().misuses_keys(true);
        self.answers.store(true, SeqCst);
        late.await.unwrap().unwrap_err()
    }
}

#[tokio::test]
async fn no_token_is_asked_for_keys_for_a_name_that_was_taken_during_the_prompt() {
    let stage = Prompted::new();
    let request = RequestGenerateIdentity {
        backend: stage.backend(),
        params: IdParams::Ed25519,
        capabilities: CommitAndDecrypt,
    };
    let late = {
        let node = stage.node.clone();
        tokio::spawn(async move { node.generate(&id("alice"), request, &call()).await })
    };
    until(|| stage.asked.load(SeqCst)).await;
    make(&stage.node, "alice", &Backend::LocalMemory).await;
    // Who asked it would be told that there is no room.
    stage.device().has_slots(&["1"], &[]);
    stage.answers.store(true, SeqCst);
    let late = late.await.unwrap();
    assert!(matches!(late, Err(EngineError::IdentityExists)), "{late:?}");
}

#[tokio::test]
async fn no_key_is_tried_for_a_name_that_was_taken_during_the_prompt() {
    let stage = Prompted::new();
    let late = stage.adopts_late(stage.foreign(), async {
        make(&stage.node, "alice", &Backend::LocalMemory).await;
    });
    let late = late.await;
    assert!(matches!(late, EngineError::IdentityExists), "{late:?}");
}

#[tokio::test]
async fn no_key_is_tried_that_became_somebody_elses_during_the_prompt() {
    let stage = Prompted::new();
    // Another process.
    let other = Node::builder(Registry::open(stage.home.path()).unwrap())
        .driver(stage.safes.clone())
        .access(Access::with(stage.safes.person()))
        .build();
    let request = stage.foreign();
    let late = stage.adopts_late(request.clone(), async {
        let adopted = other.connect(&id("bob"), request, &call()).await;
        adopted.unwrap();
    });
    let late = late.await;
    assert!(
        matches!(&late, EngineError::KeyHasOwner { owner, .. } if *owner == Some(id("bob"))),
        "{late:?}"
    );
}

#[tokio::test]
async fn a_request_waits_for_a_token_that_comes_back_under_its_new_name() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let made = make(
        &common::node(home.path(), &device),
        "alice",
        &device.backend(),
    )
    .await;
    let renamed = device.renamed("another");
    renamed.detach();
    let node = common::node(home.path(), &renamed);
    let engine = made.commitment_engine.unwrap();
    let soon = Call::within(Duration::from_secs(20));
    let signing = tokio::spawn(async move {
        let signed = node.commit(&id("alice"), &engine, vec![1], &soon).await;
        signed.map(drop)
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    renamed.attach();
    signing.await.unwrap().unwrap();
}
