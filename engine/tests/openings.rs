//! Devices that do not answer: whose requests they keep waiting, and whose not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use claviger_engine::message::RequestGenerateIdentity;
use claviger_engine::policy::{Permission, Policy};
use claviger_engine::{Backend, Capabilities, EngineError, EngineId, IdParams, Node, Registry};
use claviger_token::{About, Call, Detail, Driver, Error, Listing, Pace, SlotId, Token};
use common::{Device, id};
use tempfile::TempDir;

/// How many devices do not answer, more than threads that open devices; one more does.
const MANY: usize = 150;

/// How many of them a node uses at once: fewer than such threads.
const KNOWN: usize = 80;

/// How many threads a node has to open tokens.
const THREADS: u32 = 128;

/// How long is waited for what must come.
const LONG: Duration = Duration::from_secs(60);

/// How long for what never does.
const SHORT: Duration = Duration::from_millis(200);

/// Many devices, each with a backend of its own.
#[derive(Clone)]
struct Devices(Arc<Vec<Device>>);

impl Devices {
    fn new() -> Self {
        let device = |nth| Device::reached_by(&format!("device:{nth}"));
        Devices(Arc::new((0..=MANY).map(device).collect()))
    }

    /// All but the last one have no answer from now on.
    fn fall_silent(&self, silent: bool) {
        let most = self.0.iter().take(MANY);
        most.for_each(|device| device.falls_silent(silent));
    }
}

impl Driver for Devices {
    fn about(&self) -> About {
        About::new("device", "a device of this test")
    }

    fn look(&self, backend: &str, detail: Detail, call: &Call) -> Result<Listing, Error> {
        self.0[MANY].look(backend, detail, call)
    }

    fn named_slot(&self, _: &str) -> Result<Option<SlotId>, Error> {
        Ok(None)
    }

    fn open(&self, backend: &str, call: &Call) -> Result<Arc<dyn Token>, Error> {
        let fits = |device: &&Device| device.backend().to_string() == backend;
        self.0.iter().find(fits).unwrap().open(backend, call)
    }
}

struct Stage {
    devices: Devices,
    home: TempDir,
}

impl Stage {
    fn new() -> Self {
        Stage {
            devices: Devices::new(),
            home: tempfile::tempdir().unwrap(),
        }
    }

    fn node(&self) -> Node {
        Node::builder(Registry::open(self.home.path()).unwrap())
            .driver(self.devices.clone())
            .build()
    }

    fn backend(&self, nth: usize) -> Backend {
        self.devices.0[nth].backend()
    }

    async fn generate(
        &self,
        node: &Node,
        name: &str,
        nth: usize,
        limit: Duration,
    ) -> Result<(), EngineError> {
        let request = RequestGenerateIdentity {
            backend: self.backend(nth),
            params: IdParams::Ed25519,
            capabilities: Capabilities::Commit,
        };
        let (who, call) = (id(name), Call::within(limit));
        node.generate(&who, request, &call).await.map(drop)
    }

    /// What is left for `who` on the device that answers.
    async fn works_for(&self, node: &Node, who: &str) {
        self.generate(node, who, MANY, LONG).await.unwrap();
        let listed = node.tokens(&id(who), None, &Call::within(LONG)).await;
        assert_eq!(listed.unwrap().len(), 1);
    }
}

impl Drop for Stage {
    /// The threads that hang end, also where the test failed.
    fn drop(&mut self) {
        self.devices.fall_silent(false);
    }
}

fn is_late(done: &Result<(), EngineError>) {
    assert!(
        matches!(done, Err(EngineError::Token(Error::DeadlineExceeded))),
        "{done:?}"
    );
}

/// Drives all of them at once.
async fn together<T: Send + 'static>(
    all: impl Iterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let tasks: Vec<_> = all.map(tokio::spawn).collect();
    let mut done = Vec::new();
    for task in tasks {
        done.push(task.await.unwrap());
    }
    done
}

#[tokio::test]
async fn who_opens_many_devices_that_do_not_answer_keeps_no_other_from_theirs() {
    let stage = Arc::new(Stage::new());
    let node = stage.node();
    stage.devices.fall_silent(true);
    let hung = (0..MANY).map(|nth| {
        let (stage, node) = (Arc::clone(&stage), node.clone());
        async move { stage.generate(&node, "alice", nth, SHORT).await }
    });
    together(hung).await.iter().for_each(is_late);
    // They still hang, and nobody waits for them any more.
    stage.works_for(&node, "bob").await;
    let listed = node.tokens(&id("alice"), None, &Call::within(LONG)).await;
    assert_eq!(listed.unwrap().len(), 1);
}

/// Lets everybody do everything.
struct Anything;

impl Policy for Anything {
    fn check(&self, _: &EngineId, _: Permission<'_>) -> Result<(), EngineError> {
        Ok(())
    }
}

#[tokio::test]
async fn whatever_names_one_view_asks_for_it_keeps_no_other_view_from_its_devices() {
    let stage = Arc::new(Stage::new());
    let node = stage.node();
    let [many, other] = [(); 2].map(|()| node.seen_by(Arc::new(Anything)));
    stage.devices.fall_silent(true);
    let hung = (0..MANY).map(|nth| {
        let (stage, node) = (Arc::clone(&stage), many.clone());
        async move { stage.generate(&node, &format!("a{nth}"), nth, SHORT).await }
    });
    together(hung).await.iter().for_each(is_late);
    stage.works_for(&other, "bob").await;
}

#[tokio::test]
async fn a_known_token_that_does_not_answer_keeps_nobody_from_another_one() {
    let stage = Arc::new(Stage::new());
    let node = stage.node();
    for nth in 0..KNOWN {
        let name = format!("a{nth}");
        stage.generate(&node, &name, nth, LONG).await.unwrap();
    }
    drop(node);
    // Another process, which has opened none of them, and one who uses all.
    let node = stage.node();
    stage.devices.fall_silent(true);
    let hung = (0..KNOWN).map(|nth| {
        let node = node.clone();
        async move {
            let engine = id(&format!("a{nth}_committer_a{nth}"));
            let call = Call::within(SHORT);
            let signed = node.commit(&id("alice"), &engine, vec![1], &call).await;
            signed.map(drop)
        }
    });
    together(hung).await.iter().for_each(is_late);
    stage.works_for(&node, "alice").await;
}

/// A device whose keys are found again at the end, also where the test failed.
struct Hiding(Device);

impl Drop for Hiding {
    fn drop(&mut self) {
        self.0.hides_keys(false);
    }
}

#[tokio::test]
async fn many_keys_that_a_token_does_not_find_keep_nobody_from_another_one() {
    for pace in [Pace::Quick, Pace::Slow { workers: 2 }] {
        let (device, home) = (Device::paced(pace), tempfile::tempdir().unwrap());
        let names: Vec<String> = (0..=THREADS).map(|nth| format!("a{nth}")).collect();
        let request = |backend: Backend| RequestGenerateIdentity {
            backend,
            params: IdParams::Ed25519,
            capabilities: Capabilities::Commit,
        };
        let first = common::node(home.path(), &device);
        for name in &names {
            let request = request(device.backend());
            let made = first.generate(&id(name), request, &Call::unlimited()).await;
            made.unwrap();
        }
        drop(first);
        // Another process, which has found none of them.
        let node = common::node(home.path(), &device);
        let (before, hiding) = (device.opened(), Hiding(device));
        hiding.0.hides_keys(true);
        let signed = names.iter().map(|name| {
            let (node, engine) = (node.clone(), id(&format!("{name}_committer_{name}")));
            let sign = async move {
                let call = Call::unlimited();
                node.commit(&id("alice"), &engine, vec![1], &call).await
            };
            tokio::spawn(sign)
        });
        let signed: Vec<_> = signed.collect();
        common::until(|| hiding.0.opened() >= before + THREADS).await;
        let in_memory = request(Backend::LocalMemory);
        let (bob, call) = (id("bob"), Call::within(LONG));
        node.generate(&bob, in_memory, &call).await.unwrap();
        hiding.0.hides_keys(false);
        for signed in signed {
            signed.await.unwrap().unwrap();
        }
    }
}
