//! Waiting no longer than a request lasts, and turns at what only one may do at a time.

use std::collections::HashMap;
use std::hash::Hash;
use std::pin::pin;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use claviger_token::sync::lock;
use claviger_token::{Call, Error, TokenId};
use tokio::sync::OwnedMutexGuard;
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

/// Turns at many things, each of which one may have at a time. Who asked first has it first.
pub(crate) struct Turns<K>(Mutex<HashMap<K, Weak<tokio::sync::Mutex<()>>>>);

/// A turn; it ends when it is dropped.
pub(crate) type Turn = OwnedMutexGuard<()>;

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Turns(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone> Turns<K> {
    /// Waits for the turn at `key`.
    ///
    /// # Errors
    /// As [`in_time`].
    pub(crate) async fn take(&self, key: &K, call: &Call) -> Result<Turn, Error> {
        let mutex = self.of(key);
        in_time(call, mutex.lock_owned()).await
    }

    fn of(&self, key: &K) -> Arc<tokio::sync::Mutex<()>> {
        let mut known = lock(&self.0);
        if let Some(mutex) = known.get(key).and_then(Weak::upgrade) {
            return mutex;
        }
        known.retain(|_, mutex| mutex.strong_count() > 0);
        let mutex = Arc::default();
        known.insert(key.clone(), Arc::downgrade(&mutex));
        mutex
    }
}

/// The turns that Identity Management takes. Who takes two takes that at an identity first.
#[derive(Default)]
pub(crate) struct ManagementTurns {
    pub(crate) identities: Turns<EngineId>,
    pub(crate) tokens: Turns<TokenId>,
}
