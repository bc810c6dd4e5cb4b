//! Waiting no longer than a request lasts, and turns at what only one may do at a time.

use std::collections::HashMap;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use claviger_token::sync::lock;
use claviger_token::{Call, Error, TokenId};
use tokio::sync::OwnedMutexGuard;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::EngineId;

/// So often it is looked whether the request was cancelled.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Whoever puts a question to a person takes it back within this time.
const GRACE: Duration = Duration::from_millis(500);

/// What `work` answers, if it does before the request is over.
///
/// # Errors
/// [`Error::DeadlineExceeded`], [`Error::Cancelled`].
pub(crate) async fn in_time<T>(call: &Call, work: impl Future<Output = T>) -> Result<T, Error> {
    let mut work = pin!(work);
    let mut ends = None;
    loop {
        let longest = match (call.can_be_cancelled(), call.deadline()) {
            (false, None) => return Ok(work.await),
            (true, _) => call.at_most(LOOK_AGAIN),
            (false, Some(deadline)) => deadline.saturating_duration_since(Instant::now()),
        };
        if let Ok(done) = timeout(longest, work.as_mut()).await {
            return Ok(done);
        }
        match call.check() {
            Err(Error::Cancelled) => {
                let end = *ends.get_or_insert_with(|| Instant::now() + GRACE);
                if Instant::now() >= end {
                    return Err(Error::Cancelled);
                }
            }
            checked => checked?,
        }
    }
}

/// Does `work`, which may keep its thread, on a thread that may block; or on this one, if the
/// request [may keep it](Call::in_place).
///
/// # Errors
/// As [`in_time`]: then the work goes on, and nobody waits for it. [`Error::Cancelled`] also where
/// it panicked, or the runtime ends.
pub(crate) async fn apart<T: Send + 'static>(
    call: &Call,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let done = match call.is_in_place() {
        // A panic ends the work alone, as it does on another thread.
        true => catch_unwind(AssertUnwindSafe(work)).ok(),
        false => in_time(call, spawn_blocking(work)).await?.ok(),
    };
    done.ok_or(Error::Cancelled)
}

/// What there is one of for each key, as long as somebody has it.
pub(crate) struct Kept<K, V>(Mutex<HashMap<K, Weak<V>>>);

impl<K, V> Default for Kept<K, V> {
    fn default() -> Self {
        Kept(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone, V> Kept<K, V> {
    /// That of `key`; where nobody has it, what `make` makes.
    pub(crate) fn of(&self, key: &K, make: impl FnOnce() -> V) -> Arc<V> {
        let mut known = lock(&self.0);
        if let Some(kept) = known.get(key).and_then(Weak::upgrade) {
            return kept;
        }
        known.retain(|_, kept| kept.strong_count() > 0);
        let made = Arc::new(make());
        known.insert(key.clone(), Arc::downgrade(&made));
        made
    }
}

/// Turns at many things, each of which one may have at a time. Who asked first has it first.
pub(crate) struct Turns<K>(Kept<K, tokio::sync::Mutex<()>>);

/// A turn; it ends when it is dropped.
pub(crate) type Turn = OwnedMutexGuard<()>;

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Turns(Kept::default())
    }
}

impl<K: Eq + Hash + Clone> Turns<K> {
    /// Waits for the turn at `key`.
    ///
    /// # Errors
    /// As [`in_time`].
    pub(crate) async fn take(&self, key: &K, call: &Call) -> Result<Turn, Error> {
        let mutex = self.0.of(key, Default::default);
        in_time(call, mutex.lock_owned()).await
    }

    /// The turn at `key`, if nobody has it.
    pub(crate) fn take_at_once(&self, key: &K) -> Option<Turn> {
        let mutex = self.0.of(key, Default::default);
        mutex.try_lock_owned().ok()
    }
}

/// The turns that Identity Management takes. Who takes two takes that at an identity first.
#[derive(Default)]
pub(crate) struct ManagementTurns {
    pub(crate) identities: Turns<EngineId>,
    pub(crate) tokens: Turns<TokenId>,
}
