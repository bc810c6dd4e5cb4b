//! The threads that requests keep while they wait for a token.
//!
//! Some requests hold a thread of the runtime while the token works for them, and while it works
//! for others. The runtime has 512 of them for everything. So a token's requests get as many as
//! keep its workers busy. The others wait without one, as many as wait in a [lane](crate::lane);
//! more are answered *busy*, at once.

use std::sync::Arc;

use claviger_token::{Call, Error, TokenId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::lane::QUEUE;
use crate::shares::Shares;
use crate::turns::in_time;

/// How many threads there are for each worker: one waits for it, the next is ready.
const FOR_EACH_WORKER: usize = 2;

/// The threads of one token.
pub(crate) struct WaitingThreads {
    free: Arc<Semaphore>,
    queue: Arc<Shares>,
}

impl WaitingThreads {
    pub(crate) fn of(workers: usize) -> Self {
        WaitingThreads {
            free: Arc::new(Semaphore::new(FOR_EACH_WORKER * workers)),
            queue: Shares::of(QUEUE),
        }
    }

    /// How many wait.
    pub(crate) fn queued(&self) -> usize {
        self.queue.taken()
    }

    /// Waits until a thread may be taken for a [caller](Shares::take); it may until the result is
    /// dropped.
    ///
    /// # Errors
    /// [`Error::Busy`], and as [`in_time`].
    pub(crate) async fn take(
        &self,
        caller: Option<u32>,
        token: &TokenId,
        call: &Call,
    ) -> Result<OwnedSemaphorePermit, Error> {
        let busy = || Error::Busy {
            token: token.clone(),
        };
        let _queued = self.queue.take(caller).ok_or_else(busy)?;
        self.take_for_key(call).await
    }

    /// [`WaitingThreads::take`] for the search for a key. One of those who want a key looks for
    /// it, so no more wait than there are keys, and none is answered *busy*.
    ///
    /// # Errors
    /// As [`in_time`].
    pub(crate) async fn take_for_key(&self, call: &Call) -> Result<OwnedSemaphorePermit, Error> {
        let free = Arc::clone(&self.free).acquire_owned();
        // It is never closed.
        in_time(call, free).await?.map_err(|_| Error::Cancelled)
    }

    /// A thread for the search for a key, if one may be taken at once.
    pub(crate) fn take_at_once(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).try_acquire_owned().ok()
    }
}
