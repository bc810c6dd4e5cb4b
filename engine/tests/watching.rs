//! Who watches tokens has nothing looked at but what they want watched.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use claviger_engine::{Node, Registry};
use claviger_token::{About, Call, Detail, Driver, Error, Listing, SlotId, Token, Watch};

/// Writes down what it is asked to look at.
#[derive(Clone, Default)]
struct Lookout(Arc<Mutex<Vec<String>>>);

impl Lookout {
    /// What is looked at from now on, until that has been `times` looks.
    fn next(&self, times: usize) -> Vec<String> {
        self.0.lock().unwrap().clear();
        let give_up = Instant::now() + Duration::from_secs(60);
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
    let one = node.token_changes(Some("vault:one")).unwrap();
    assert!(lookout.next(5).iter().all(|backend| backend == "vault:one"));
    let two = node.token_changes(Some("vault:two")).unwrap();
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
    let all = node.token_changes(None).unwrap();
    drop(two);
    lookout.next(3);
    assert!(lookout.next(5).iter().all(|backend| backend == "vault:"));
    drop(all);
}
