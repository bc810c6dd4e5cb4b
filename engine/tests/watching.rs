//! Who watches tokens has nothing looked at but what they want watched.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use claviger_engine::{Node, Registry};
use claviger_token::{About, Call, Detail, Driver, Error, Listing, SlotId, Token, Watch};

const PATIENCE: Duration = Duration::from_secs(60);

/// Writes down what it is asked to look at.
#[derive(Clone, Default)]
struct Lookout(Arc<Mutex<Vec<String>>>);

impl Lookout {
    /// What is looked at from now on, until that has been `times` looks.
    fn next(&self, times: usize) -> Vec<String> {
        self.0.lock().unwrap().clear();
        let give_up = Instant::now() + PATIENCE;
        loop {
            let seen = self.0.lock().unwrap().clone();
            if seen.len() >= times {
                return seen;
            }
            assert!(Instant::now() < give_up, "{seen:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// It is always worth looking, at once.
struct Always;

impl Watch for Always {
    fn wait(&mut self, _: Duration) -> bool {
        std::thread::sleep(Duration::from_millis(5));
        true
    }
}

impl Driver for Lookout {
    fn about(&self) -> About {
        About::new("vault", "a vault of this test")
    }

    fn look(&self, backend: &str, _: Detail, _: &Call) -> Result<Listing, Error> {
        self.0.lock().unwrap().push(backend.into());
        Ok(Listing::default())
    }

    fn watch(&self) -> Box<dyn Watch> {
        Box::new(Always)
    }

    fn named_slot(&self, _: &str) -> Result<Option<SlotId>, Error> {
        Ok(None)
    }

    fn open(&self, backend: &str, _: &Call) -> Result<Arc<dyn Token>, Error> {
        Err(Error::NoToken {
            wanted: backend.into(),
            present: Vec::new(),
        })
    }
}

#[tokio::test]
async fn only_what_somebody_wants_watched_is_looked_at() {
    let lookout = Lookout::default();
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(lookout.clone())
        .build();
    let one = node
        .token_changes(Some("vault:one"), &Call::unlimited())
        .await
        .unwrap();
    assert!(lookout.next(5).iter().all(|backend| backend == "vault:one"));
    let two = node
        .token_changes(Some("vault:two"), &Call::unlimited())
        .await
        .unwrap();
    let seen = lookout.next(6);
    assert!(seen.iter().all(|backend| backend != "vault:"), "{seen:?}");
    assert!(
        seen.iter().any(|backend| backend == "vault:two"),
        "{seen:?}"
    );
    drop(one);
    // The look that went on meanwhile is over.
    lookout.next(2);
    assert!(lookout.next(5).iter().all(|backend| backend == "vault:two"));
    let all = node.token_changes(None, &Call::unlimited()).await.unwrap();
    drop(two);
    lookout.next(3);
    assert!(lookout.next(5).iter().all(|backend| backend == "vault:"));
    drop(all);
}

/// A device that does not answer until it is told to.
#[derive(Clone, Default)]
struct Stuck(Arc<AtomicBool>);

impl Driver for Stuck {
    fn about(&self) -> About {
        Lookout::default().about()
    }

    fn look(&self, _: &str, _: Detail, _: &Call) -> Result<Listing, Error> {
        let end = Instant::now() + PATIENCE;
        while !self.0.load(Ordering::SeqCst) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Listing::default())
    }

    fn named_slot(&self, _: &str) -> Result<Option<SlotId>, Error> {
        Ok(None)
    }

    fn open(&self, backend: &str, call: &Call) -> Result<Arc<dyn Token>, Error> {
        Lookout::default().open(backend, call)
    }
}

#[tokio::test]
async fn who_subscribes_waits_for_a_device_that_does_not_answer_only_until_the_deadline() {
    let stuck = Stuck::default();
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(stuck.clone())
        .build();
    let soon = Call::within(Duration::from_millis(100));
    let begun = Instant::now();
    let changes = node.token_changes(Some("vault:"), &soon).await;
    let code = changes.map(drop).unwrap_err().code();
    assert_eq!(code, "deadline-exceeded");
    assert!(begun.elapsed() < PATIENCE / 2);
    stuck.0.store(true, Ordering::SeqCst);
    let call = Call::unlimited();
    drop(node.token_changes(Some("vault:"), &call).await.unwrap());
}
