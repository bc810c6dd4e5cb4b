//! The circumstances of a request: its deadline, its cancellation, who is told that it waits for a
//! person, and the access that it may use.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::{Error, KeyUse, TokenId};

/// Who is told when an operation waits for a person.
pub type Watcher = Arc<dyn Fn(&Event) + Send + Sync>;

/// The circumstances of one operation on a token.
///
/// Cheap to clone; the clones share the cancellation.
#[derive(Clone, Default)]
pub struct Call {
    deadline: Option<Instant>,
    cancelled: Option<Arc<AtomicBool>>,
    watcher: Option<Watcher>,
    without_pin: bool,
}

impl Call {
    /// No deadline, no cancellation, nobody to tell.
    pub fn unlimited() -> Self {
        Call::default()
    }

    /// A call that must be done `limit` from now.
    pub fn within(limit: Duration) -> Self {
        Call {
            deadline: Instant::now().checked_add(limit),
            ..Call::default()
        }
    }

    /// Lets `cancelled`, once true, give the operation up at the next step at which
    /// the device can be told or has not yet been asked.
    #[must_use]
    pub fn cancelled_by(mut self, cancelled: Arc<AtomicBool>) -> Self {
        self.cancelled = Some(cancelled);
        self
    }

    /// Tells `watcher` when the operation waits for a person.
    #[must_use]
    pub fn watched_by(mut self, watcher: Watcher) -> Self {
        self.watcher = Some(watcher);
        self
    }

    /// Tells `watcher` as well as those who are told already.
    #[must_use]
    pub fn also_watched_by(mut self, watcher: Watcher) -> Self {
        self.watcher = Some(match self.watcher.take() {
            None => watcher,
            Some(first) => Arc::new(move |event: &Event| {
                first(event);
                watcher(event);
            }),
        });
        self
    }

    /// Lets nobody be asked for a PIN on behalf of this operation: a token that wants one is
    /// opened only if its backend says where its PIN is.
    #[must_use]
    pub fn without_pin(mut self) -> Self {
        self.without_pin = true;
        self
    }

    /// Whether nobody may be asked for a PIN; whoever opens tokens heeds it.
    pub fn asks_no_pin(&self) -> bool {
        self.without_pin
    }

    /// The moment by which the operation must be done.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether the caller has given the operation up.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled
            .as_ref()
            .is_some_and(|c| c.load(Ordering::Relaxed))
    }

    /// To be called before each step that the device is asked for.
    ///
    /// # Errors
    /// [`Error::Cancelled`] or [`Error::DeadlineExceeded`]; the device was not asked.
    pub fn check(&self) -> Result<(), Error> {
        if self.is_cancelled() {
            return Err(Error::Cancelled);
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(Error::DeadlineExceeded),
            _ => Ok(()),
        }
    }

    /// Tells the watcher, if there is one.
    pub fn tell(&self, event: &Event) {
        if let Some(watcher) = &self.watcher {
            watcher(event);
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("deadline", &self.deadline)
            .field("cancelled", &self.is_cancelled())
            .finish_non_exhaustive()
    }
}

/// A waiting operation tells its caller that it waits for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The token waits to be touched.
    TouchNeeded {
        /// The token.
        token: TokenId,
    },
    /// The token waits for an approval on its own screen or PIN pad.
    ApprovalNeeded {
        /// The token.
        token: TokenId,
    },
    /// The device is locked and waits to be unlocked.
    UnlockNeeded {
        /// What it is, such as `Ledger Nano X`; who it is shows when it is unlocked.
        device: String,
    },
    /// The device waits for an app to be opened on it.
    AppNeeded {
        /// What it is, such as `Ledger Nano X`.
        device: String,
        /// The app, such as `Ethereum`.
        app: String,
    },
    /// The token is not there, and is waited for until the deadline.
    TokenNeeded {
        /// The token.
        token: TokenId,
    },
    /// A key is used once to prove that the token has it: if the token wants a touch or an
    /// approval next, it is for that.
    ProofNeeded {
        /// The token.
        token: TokenId,
        /// What the key is for.
        usage: KeyUse,
    },
    /// The token went on after a touch or an approval.
    PersonDone {
        /// The token.
        token: TokenId,
    },
}
