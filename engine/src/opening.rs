//! Opening tokens: apart from everything else, since whoever opens one may wait for a person.
//!
//! A token is opened and logged in to before anybody takes a turn at it. Of those who open by one
//! backend one is at it, on a thread of its own, and the others wait without one; so a token that
//! does not answer takes one thread, however many requests wait for it and give up. Together they
//! take [`MOST`] threads.

use std::sync::Arc;

use claviger_token::{Call, Error, TokenId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::turns::{Turn, Turns, in_time};

/// So many tokens are being opened at a time; more wait.
pub(crate) const MOST: usize = 64;

/// Who is opening which token.
pub(crate) struct Openings {
    turns: Turns<String>,
    threads: Arc<Semaphore>,
}

/// The right to open what one backend names. It goes along with who opens, also where nobody
/// waits for that any more.
pub(crate) struct Opening {
    _turn: Turn,
    _thread: OwnedSemaphorePermit,
}

impl Default for Openings {
    fn default() -> Self {
        Openings {
            turns: Turns::default(),
            threads: Arc::new(Semaphore::new(MOST)),
        }
    }
}

impl Openings {
    /// Waits until nobody else opens by this backend.
    ///
    /// # Errors
    /// As [`in_time`].
    pub(crate) async fn begin(&self, backend: &str, call: &Call) -> Result<Opening, Error> {
        let turn = self.turns.take(&backend.to_owned(), call).await?;
        let thread = Arc::clone(&self.threads).acquire_owned();
        // It is never closed.
        let thread = in_time(call, thread).await?.map_err(|_| Error::Cancelled)?;
        Ok(Opening {
            _turn: turn,
            _thread: thread,
        })
    }
}

/// Which token is to be opened.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// By what it is reached.
    pub(crate) backend: &'a str,
    /// Which one is meant, where that is known: another one gets no PIN.
    pub(crate) token: Option<&'a TokenId>,
}

impl<'a> Wanted<'a> {
    /// Whatever `backend` leads to.
    pub(crate) fn any(backend: &'a str) -> Self {
        Wanted {
            backend,
            token: None,
        }
    }
}
