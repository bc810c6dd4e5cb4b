//! Callers that flood the queue of a slow token, and what they leave to others.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use claviger_engine::policy::{Permission, Policy, Subject};
use claviger_engine::{EngineError, EngineId, Node};
use claviger_formats::envelope;
use claviger_token::{Error, Pace};
use common::{Device, call, id, make, node, until};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// A user who may do everything.
struct User(u32);

impl Policy for User {
    fn check(&self, _: &EngineId, _: Permission<'_>) -> Result<(), EngineError> {
        Ok(())
    }

    fn subject(&self) -> Option<Subject> {
        Some(Subject {
            name: format!("user {}", self.0).into(),
            uid: self.0,
        })
    }
}

/// A slow token with keys of `alice`, whom three users may use.
async fn stage() -> (Device, [Node; 3], TempDir) {
    let device = Device::paced(Pace::Slow { workers: 1 });
    let home = tempfile::tempdir().unwrap();
    let node = node(home.path(), &device);
    make(&node, "alice", &device.backend()).await;
    let users = [1, 2, 3].map(|uid| node.seen_by(Arc::new(User(uid))));
    (device, users, home)
}

/// Requests of one user, and how many of them were told that the token is busy.
struct Requests {
    all: Vec<JoinHandle<bool>>,
    busy: Arc<AtomicUsize>,
}

impl Requests {
    fn begin<F>(number: usize, request: impl Fn() -> F) -> Self
    where
        F: Future<Output = Result<(), EngineError>> + Send + 'static,
    {
        let busy = Arc::<AtomicUsize>::default();
        let one = |request: F| {
            let busy = Arc::clone(&busy);
            async move {
                match request.await {
                    Ok(()) => true,
                    Err(EngineError::Token(Error::Busy { .. })) => {
                        busy.fetch_add(1, SeqCst);
                        false
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        };
        let all = (0..number).map(|_| tokio::spawn(one(request())));
        let all = all.collect();
        Requests { all, busy }
    }

    fn busy(&self) -> usize {
        self.busy.load(SeqCst)
    }

    /// How many were served.
    async fn served(self) -> usize {
        let mut served = 0;
        for one in self.all {
            served += usize::from(one.await.unwrap());
        }
        served
    }
}

#[tokio::test]
async fn who_floods_a_slow_token_with_signatures_leaves_places_for_others() {
    let (device, users, _home) = stage().await;
    let sign = |user: &Node| {
        let user = user.clone();
        move || {
            let user = user.clone();
            async move {
                let (alice, engine, call) = (id("alice"), id("alice_committer_alice"), call());
                let signed = user.commit(&alice, &engine, b"m".to_vec(), &call);
                signed.await.map(drop)
            }
        }
    };
    // The key is found once.
    sign(&users[0])().await.unwrap();
    device.wants_touch(true);
    let first = Requests::begin(1, sign(&users[0]));
    until(|| device.waits_for_touch()).await;
    let mut floods = Vec::new();
    for (user, takes) in users.iter().zip([192, 48, 12]) {
        let flood = Requests::begin(300, sign(user));
        until(|| flood.busy() == 300 - takes).await;
        floods.push((flood, takes));
    }
    device.wants_touch(false);
    assert_eq!(first.served().await, 1);
    for (flood, takes) in floods {
        assert_eq!(flood.served().await, takes);
    }
}

#[tokio::test]
async fn who_floods_a_slow_token_with_files_leaves_places_for_others() {
    let (device, users, _home) = stage().await;
    let keys = users[0].public_keys(&id("alice")).unwrap().unwrap();
    let file = envelope::encrypt(&[&keys.decrypt.unwrap()], b"text").unwrap();
    let open = |user: &Node| {
        let (user, file) = (user.clone(), file.clone());
        move || {
            let (user, file) = (user.clone(), file.clone());
            async move {
                let engine = id("alice_decryptor_alice");
                let opened = user.decrypt(&id("alice"), &engine, file, &call()).await;
                opened.map(|text| assert_eq!(*text, b"text"))
            }
        }
    };
    // The key is found once: of those who look for it nobody is told that the token is busy.
    open(&users[0])().await.unwrap();
    device.holds_decryptions(true);
    let flood = Requests::begin(300, open(&users[0]));
    until(|| flood.busy() >= 300 - 195).await;
    let other = Requests::begin(20, open(&users[1]));
    let third = Requests::begin(5, open(&users[2]));
    device.holds_decryptions(false);
    assert!(flood.served().await >= 192);
    assert_eq!((other.served().await, third.served().await), (20, 5));
}
