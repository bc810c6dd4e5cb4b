//! Requests end at their deadlines, and wait for nothing but their own identity and their own
//! token.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use claviger_engine::message::{
    RequestConnectIdentity, RequestDeleteIdentity, RequestGenerateIdentity,
};
use claviger_engine::node::Engines;
use claviger_engine::{Backend, Capabilities, EngineError, IdParams, Node, Registry};
use claviger_formats::envelope;
use claviger_memory::MemoryDriver;
use claviger_token::{Access, Call, Error, Pace, PinSource, Token};
use common::safes::{Hesitant, Safes};
use common::{Device, call, id, make, until};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_millis(200);

/// Two tokens with a PIN each, and the memory.
struct Stage {
    safes: Safes,
    node: Node,
    _home: TempDir,
}

impl Stage {
    fn new(pins: impl FnOnce(&Safes) -> Box<dyn PinSource>) -> Self {
        let (safes, home) = (Safes::new(), tempfile::tempdir().unwrap());
        let mut access = Access::without_pin();
        access.pins = Arc::from(pins(&safes));
        let node = Node::builder(Registry::open(home.path()).unwrap())
            .driver(safes.clone())
            .driver(MemoryDriver::new())
            .access(access)
            .build();
        Stage {
            safes,
            node,
            _home: home,
        }
    }

    fn device(&self, nth: usize) -> &Device {
        &self.safes.0[nth].device
    }

    fn backend(&self, nth: usize) -> Backend {
        Backend::from(self.device(nth).info().backend.clone())
    }
}

async fn generate(
    node: &Node,
    name: &str,
    backend: &Backend,
    call: &Call,
) -> Result<Engines, EngineError> {
    let request = RequestGenerateIdentity {
        backend: backend.clone(),
        params: IdParams::Ed25519,
        capabilities: Capabilities::Commit,
    };
    node.generate(&id(name), request, call).await
}

/// Makes an identity, signs with it and deletes it.
async fn live(node: &Node, name: &str, backend: &Backend) {
    let made = generate(node, name, backend, &call()).await.unwrap();
    let engine = made.commitment_engine.unwrap();
    let signed = node.commit(&id(name), &engine, vec![1], &call()).await;
    signed.unwrap();
    let request = RequestDeleteIdentity {
        external_identity: id(name),
        backend: backend.clone(),
    };
    let deleted = node.delete(&id(name), request, &call()).await.unwrap();
    assert_eq!(deleted.len(), 1);
}

fn is_late<T: std::fmt::Debug>(done: &Result<T, EngineError>) {
    assert!(
        matches!(done, Err(EngineError::Token(Error::DeadlineExceeded))),
        "{done:?}"
    );
}

#[tokio::test]
async fn a_pin_prompt_on_one_token_delays_nothing_on_another() {
    let (asked, answers): (Arc<AtomicBool>, Arc<AtomicBool>) = Default::default();
    let stage = Stage::new(|safes| {
        Box::new(Hesitant {
            knows: safes.person(),
            of: safes.0[0].device.id(),
            asked: Arc::clone(&asked),
            answers: Arc::clone(&answers),
        })
    });
    let (node, backend) = (stage.node.clone(), stage.backend(0));
    let prompted = tokio::spawn(async move { generate(&node, "a", &backend, &call()).await });
    until(|| asked.load(SeqCst)).await;
    live(&stage.node, "b", &stage.backend(1)).await;
    live(&stage.node, "m", &Backend::LocalMemory).await;
    // One with a deadline does not wait for a person who does not answer.
    let begun = Instant::now();
    is_late(&generate(&stage.node, "c", &stage.backend(0), &Call::within(LIMIT)).await);
    assert!(begun.elapsed() < SOON);
    assert!(!prompted.is_finished());
    answers.store(true, SeqCst);
    prompted.await.unwrap().unwrap();
    assert_eq!(stage.node.registry().identities().unwrap().len(), 1);
}

#[tokio::test]
async fn a_generation_on_one_token_delays_nothing_on_another() {
    let stage = Stage::new(|safes| Box::new(safes.person()));
    stage.device(0).holds_keys(true);
    let (node, backend) = (stage.node.clone(), stage.backend(0));
    let making = tokio::spawn(async move { generate(&node, "a", &backend, &call()).await });
    until(|| stage.device(0).is_generating()).await;
    live(&stage.node, "b", &stage.backend(1)).await;
    live(&stage.node, "m", &Backend::LocalMemory).await;
    assert!(stage.device(0).is_generating());
    // Another one on the same token waits for its turn, and no longer than it may.
    is_late(&generate(&stage.node, "c", &stage.backend(0), &Call::within(LIMIT)).await);
    stage.device(0).holds_keys(false);
    making.await.unwrap().unwrap();
}

#[tokio::test]
async fn of_two_requests_for_one_name_on_two_tokens_one_wins_and_the_other_leaves_nothing() {
    for _ in 0..8 {
        let stage = Stage::new(|safes| Box::new(safes.person()));
        stage.device(0).generates_in(Duration::from_millis(20));
        let (a, b, call) = (stage.backend(0), stage.backend(1), call());
        let (one, other) = tokio::join!(
            generate(&stage.node, "alice", &a, &call),
            generate(&stage.node, "alice", &b, &call),
        );
        let (won, lost) = match (one, other) {
            (Ok(_), Err(error)) => (0, error),
            (Err(error), Ok(_)) => (1, error),
            both => panic!("{both:?}"),
        };
        assert!(matches!(lost, EngineError::IdentityExists), "{lost:?}");
        assert_eq!(stage.device(won).keys(), 1);
        assert_eq!(stage.device(1 - won).keys(), 0);
        let info = stage.node.registry().identity(&id("alice")).unwrap();
        assert_eq!(info.unwrap().keys[0].token, stage.device(won).id());
        assert!(stage.node.registry().open_intents().unwrap().is_empty());
    }
}

/// A node with one token that works on one thing at a time, and `alice` on it.
async fn slow() -> (Device, Node, TempDir) {
    let (device, home) = (
        Device::paced(Pace::Slow { workers: 1 }),
        tempfile::tempdir().unwrap(),
    );
    let node = common::node(home.path(), &device);
    make(&node, "alice", &device.backend()).await;
    (device, node, home)
}

#[tokio::test]
async fn what_the_token_has_not_begun_at_the_deadline_never_begins() {
    let (device, node, _home) = slow().await;
    let engine = id("alice_committer_alice");
    device.wants_touch(true);
    let signing = {
        let (node, engine) = (node.clone(), engine.clone());
        tokio::spawn(async move { node.commit(&id("alice"), &engine, vec![1], &call()).await })
    };
    let standing = || node.token_states().into_iter().map(|(_, state)| state);
    until(|| standing().any(|state| state == claviger_engine::TokenState::Person)).await;
    let begun = Instant::now();
    let soon = Call::within(LIMIT);
    is_late(&generate(&node, "bob", &device.backend(), &soon).await);
    let request = RequestDeleteIdentity {
        external_identity: id("alice"),
        backend: device.backend(),
    };
    is_late(
        &node
            .delete(&id("alice"), request, &Call::within(LIMIT))
            .await,
    );
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    device.wants_touch(false);
    signing.await.unwrap().unwrap();
    // Nothing of it happened.
    assert_eq!(device.keys(), 2);
    assert!(node.registry().open_intents().unwrap().is_empty());
    let signed = node.commit(&id("alice"), &engine, vec![1], &call()).await;
    signed.unwrap();
}

#[tokio::test]
async fn the_queue_of_a_token_is_as_long_as_what_waits_for_it() {
    let (device, node, _home) = slow().await;
    let queue = || {
        let queues = node.token_queues();
        assert_eq!(queues.len(), 1, "{queues:?}");
        assert_eq!(queues[0].0, device.id());
        queues[0].1
    };
    assert_eq!(queue(), 0);
    device.wants_touch(true);
    let sign = || {
        let node = node.clone();
        tokio::spawn(async move {
            let engine = id("alice_committer_alice");
            node.commit(&id("alice"), &engine, vec![1], &call()).await
        })
    };
    let first = sign();
    let standing = || node.token_states().into_iter().map(|(_, state)| state);
    until(|| standing().any(|state| state == claviger_engine::TokenState::Person)).await;
    assert_eq!(queue(), 0, "its thread has it");
    let others = [sign(), sign(), sign()];
    until(|| queue() == 3).await;
    device.wants_touch(false);
    for signing in [first].into_iter().chain(others) {
        signing.await.unwrap().unwrap();
    }
    assert_eq!(queue(), 0);
}

#[tokio::test]
async fn every_request_to_identity_management_ends_while_an_open_hangs() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let made = common::node(home.path(), &device);
    make(&made, "alice", &device.backend()).await;
    // Another process, which has not opened it.
    let node = common::node(home.path(), &device);
    device.falls_silent(true);
    let begun = Instant::now();
    let given_up = Arc::new(AtomicBool::new(false));
    let calls = [
        Call::within(LIMIT),
        Call::unlimited().cancelled_by(Arc::clone(&given_up)),
    ];
    for call in calls {
        given_up.store(false, SeqCst);
        let over = {
            let given_up = Arc::clone(&given_up);
            tokio::spawn(async move {
                tokio::time::sleep(LIMIT).await;
                given_up.store(true, SeqCst);
            })
        };
        let ended = |done: Result<(), EngineError>| {
            assert!(
                matches!(
                    done,
                    Err(EngineError::Token(
                        Error::DeadlineExceeded | Error::Cancelled
                    ))
                ),
                "{done:?}"
            );
        };
        ended(
            generate(&node, "bob", &device.backend(), &call)
                .await
                .map(drop),
        );
        let adopt = RequestConnectIdentity {
            external_identity: id("SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
            backend: device.backend(),
            capabilities: Capabilities::Commit,
        };
        ended(node.connect(&id("bob"), adopt, &call).await.map(drop));
        let delete = RequestDeleteIdentity {
            external_identity: id("alice"),
            backend: device.backend(),
        };
        ended(node.delete(&id("alice"), delete, &call).await.map(drop));
        over.await.unwrap();
    }
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    device.falls_silent(false);
    make(&node, "bob", &device.backend()).await;
    assert_eq!(node.registry().identities().unwrap().len(), 2);
}

#[test]
fn those_who_wait_for_a_slow_token_leave_threads_to_others() {
    // Many fewer than there are requests.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .max_blocking_threads(8)
        .build()
        .unwrap();
    runtime.block_on(async {
        let (device, node, _home) = slow().await;
        let keys = node.public_keys(&id("alice")).unwrap().unwrap();
        let file = envelope::encrypt(&[&keys.decrypt.unwrap()], b"text").unwrap();
        device.holds_decryptions(true);
        let decrypt = || {
            let (node, engine, file) = (node.clone(), id("alice_decryptor_alice"), file.clone());
            async move { node.decrypt(&id("alice"), &engine, file, &call()).await }
        };
        let waiting: Vec<_> = (0..40).map(|_| tokio::spawn(decrypt())).collect();
        until(|| device.is_decrypting()).await;
        let soon = Call::within(SOON);
        let made = generate(&node, "bob", &Backend::LocalMemory, &soon).await;
        made.unwrap();
        device.holds_decryptions(false);
        for one in waiting {
            assert_eq!(*one.await.unwrap().unwrap(), b"text");
        }
    });
}

#[tokio::test]
async fn a_key_that_was_slow_for_a_while_is_worked_in_place_again() {
    let (device, home) = (Device::paced(Pace::Quick), tempfile::tempdir().unwrap());
    let node = common::node(home.path(), &device);
    make(&node, "alice", &device.backend()).await;
    let keys = node.public_keys(&id("alice")).unwrap().unwrap();
    let file = envelope::encrypt(&[&keys.decrypt.unwrap()], b"text").unwrap();
    let engine = id("alice_decryptor_alice");
    let decrypt = async || {
        let (who, call) = (id("alice"), call());
        let done = node.decrypt(&who, &engine, file.clone(), &call).await;
        assert_eq!(*done.unwrap(), b"text");
        device.decrypted_here()
    };
    device.decrypts_in(Duration::from_millis(5));
    for _ in 0..4 {
        decrypt().await;
    }
    assert!(!decrypt().await, "a slow operation holds up the task");
    device.decrypts_in(Duration::ZERO);
    let begun = Instant::now();
    // A busy machine may need a few.
    while !decrypt().await {
        assert!(begun.elapsed() < SOON, "it stays with the threads");
    }
}
