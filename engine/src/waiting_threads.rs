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
use crate::turns::in_time;

/// How many threads there are for each worker: one waits for it, the next is ready.
const FOR_EACH_WORKER: usize = 2;

/// The threads of one token.
pub(crate) struct WaitingThreads {
    free: Arc<Semaphore>,
    queue: Semaphore,
}

impl WaitingThreads {
    pub(crate) fn of(workers: usize) -> Self {
        WaitingThreads {
            free: Arc::new(Semaphore::new(FOR_EACH_WORKER * workers)),
            queue: Semaphore::new(QUEUE),
        }
    }

    /// Waits until a thread may be taken; it may until the result is dropped.
    ///
    /// # Errors
    /// [`Error::Busy`], and as [`in_time`].
    pub(crate) async fn take(
        &self,
        token: &TokenId,
        call: &Call,
    ) -> Result<OwnedSemaphorePermit, Error> {
        let busy = |_| Error::Busy {
            token: token.clone(),
        };
        let _queued = self.queue.try_acquire().map_err(busy)?;
        let free = Arc::clone(&self.free).acquire_owned();
        // It is never closed.
        in_time(call, free).await?.map_err(|_| Error::Cancelled)
    }
}
