//! The circumstances of a request: how long it may take, whether it was given up, whom to
//! tell that it waits for a person, and what it may use to open a token and to change it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use crate::{Access, Error, KeyUse, TokenId};

/// So often it is looked whether a lock is free.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Who is told when an operation waits for a person.
pub type Watcher = Arc<dyn Fn(&Event) + Send + Sync>;

/// The circumstances of one request.
///
/// What waits on its behalf ends at its deadline, or soon after it was given up: for a PIN,
/// for a turn, for a person. What a device has begun comes to its end. A clone copies three
/// pointers; clones share the cancellation and the access.
#[derive(Clone, Default)]
pub struct Call {
    deadline: Option<Instant>,
    cancelled: Option<Arc<AtomicBool>>,
    watcher: Option<Watcher>,
    access: Option<Arc<Access>>,
    in_place: bool,
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

    /// Lets the call end `limit` from now, unless it ends sooner.
    #[must_use]
    pub fn no_longer_than(mut self, limit: Duration) -> Self {
        let end = Instant::now().checked_add(limit);
        self.deadline = self.deadline.into_iter().chain(end).min();
        self
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

    /// Lets the request keep the thread that makes it until it is done: for a program that makes one
    /// request and does nothing else meanwhile, which saves it another thread. Only the end of the
    /// process ends such a request early, so this has no effect on one that has a deadline.
    #[must_use]
    pub fn in_place(mut self) -> Self {
        self.in_place = true;
        self
    }

    /// Lets the request use `access`: to open tokens, and the management key to make, name and
    /// destroy keys on them. It is used for this request, and for no other.
    #[must_use]
    pub fn using(mut self, access: impl Into<Arc<Access>>) -> Self {
        self.access = Some(access.into());
        self
    }

    /// What the request may use, and nothing else of it: no deadline, no cancellation, nobody to
    /// tell. For what is tidied up on its behalf, whatever became of it.
    #[must_use]
    pub fn to_tidy_up(&self) -> Self {
        Call {
            access: self.access.clone(),
            ..Call::default()
        }
    }

    /// What the request may use to open a token and to change it; nothing where it carries
    /// nothing.
    pub fn access(&self) -> &Access {
        match &self.access {
            Some(access) => access,
            None => Access::none(),
        }
    }

    /// What the request carries to open a token, if anything. Without it, a node uses its own.
    pub fn own_access(&self) -> Option<&Arc<Access>> {
        self.access.as_ref()
    }

    /// The moment by which the operation must be done.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether the request may [keep](Call::in_place) the thread that makes it.
    pub fn is_in_place(&self) -> bool {
        self.in_place && self.deadline.is_none()
    }

    /// Whether the caller has given the operation up.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled
            .as_ref()
            .is_some_and(|c| c.load(Ordering::Relaxed))
    }

    /// Whether somebody can give the operation up.
    pub fn can_be_cancelled(&self) -> bool {
        self.cancelled.is_some()
    }

    /// Whether it lasts until it is done: it has no deadline, and nobody can give it up.
    pub fn is_endless(&self) -> bool {
        self.deadline.is_none() && !self.can_be_cancelled()
    }

    /// How long who waits may wait before it [checks](Call::check) again: until the deadline,
    /// and not longer than `most`.
    pub fn at_most(&self, most: Duration) -> Duration {
        match self.deadline {
            None => most,
            Some(deadline) => deadline.saturating_duration_since(Instant::now()).min(most),
        }
    }

    /// The lock, waited for as long as the call lasts: who has it may wait for a person. That
    /// somebody panicked who had it does not count.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::DeadlineExceeded`].
    pub fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> Result<MutexGuard<'a, T>, Error> {
        loop {
            match mutex.try_lock() {
                Ok(guard) => return Ok(guard),
                Err(TryLockError::Poisoned(guard)) => return Ok(guard.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
            self.check()?;
            std::thread::sleep(self.at_most(LOOK_AGAIN));
        }
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
            .field("access", &self.access)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_waited_for_no_longer_than_the_call_lasts() {
        let (mutex, given_up) = (Mutex::new(()), Arc::new(AtomicBool::new(false)));
        let held = mutex.lock();
        let begun = Instant::now();
        let late = Call::within(Duration::from_millis(50));
        assert!(matches!(late.lock(&mutex), Err(Error::DeadlineExceeded)));
        let cancelled = Call::unlimited().cancelled_by(Arc::clone(&given_up));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                given_up.store(true, Ordering::Relaxed);
            });
            assert!(matches!(cancelled.lock(&mutex), Err(Error::Cancelled)));
        });
        assert!(begun.elapsed() < Duration::from_secs(5));
        drop(held);
        assert!(Call::within(Duration::from_secs(5)).lock(&mutex).is_ok());
    }

    #[test]
    fn a_call_ends_at_the_earliest_of_its_deadlines() {
        let (short, long) = (Duration::from_secs(1), Duration::from_secs(1000));
        for call in [
            Call::unlimited().no_longer_than(short),
            Call::within(long).no_longer_than(short),
            Call::within(short).no_longer_than(long),
        ] {
            assert!(call.deadline() <= Some(Instant::now() + short));
        }
        assert_eq!(Call::unlimited().at_most(short), short);
        assert!(Call::within(short).at_most(long) <= short);
    }

    #[test]
    fn a_call_that_carries_nothing_has_no_pin() {
        let token = TokenId {
            kind: "k".into(),
            manufacturer: "m".into(),
            serial: "s".into(),
        };
        let call = Call::unlimited();
        assert!(call.own_access().is_none());
        let pin = call.access().pins.pin(&token, "", &call);
        assert!(matches!(pin, Err(Error::PinNeeded { .. })));
        let call = call.using(Access::with(crate::FixedPin::new("1234")));
        assert!(call.access().pins.pin(&token, "", &call).is_ok());
        assert!(!format!("{call:?}").contains("1234"));
        let late = call.no_longer_than(Duration::ZERO);
        assert!(late.check().is_err());
        let tidying = late.to_tidy_up();
        assert!(tidying.check().is_ok());
        assert!(tidying.access().pins.pin(&token, "", &tidying).is_ok());
    }
}
