//! Listening for the end of a review that its caller gave up.
//!
//! The device shows such a review until a person answers it. Other processes wait as long, and this
//! process may ask for nothing meanwhile. So a thread listens for the answer, and ends with the
//! review, or with the driver.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use crate::port::Port;

/// How soon the end of the review is noticed.
const EVERY: Duration = Duration::from_millis(100);

/// Listens until the review is over, unless another thread does.
pub(crate) fn listen(port: &Arc<Port>) {
    if port.listened_to.swap(true, Ordering::SeqCst) {
        return;
    }
    let listener = Listener(Arc::downgrade(port));
    let spawned = thread::Builder::new()
        .name("claviger-review".into())
        .spawn(move || while listener.hears() {});
    if let Err(error) = spawned {
        // The next request of this process finds out.
        port.listened_to.store(false, Ordering::SeqCst);
        tracing::debug!(%error, "nobody listens for the end of a review");
    }
}

struct Listener(Weak<Port>);

impl Listener {
    /// Whether there is still something to listen for, a moment later.
    fn hears(&self) -> bool {
        thread::sleep(EVERY);
        self.0
            .upgrade()
            .is_some_and(|port| port.is_still_given_up())
    }
}
