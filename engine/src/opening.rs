//! Opening tokens: apart from everything else, since whoever opens one may wait for a person.
//!
//! A token is opened and logged in to before anybody takes a turn at it. Of those who open by one
//! backend one is at it, on a thread of its own, and the others wait without one; so a token that
//! does not answer takes one thread, however many requests wait for it and give up. Together they
//! take [`MOST`] threads.

use std::sync::Arc;

use claviger_token::{Call, Error, SlotId, TokenId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::node::Inner;
use crate::tokens::OpenToken;
use crate::turns::{Turn, Turns, in_time};
use crate::{EngineError, EngineId};

/// So many tokens are being opened at a time; more wait.
pub(crate) const MOST: usize = 64;

/// A token, and the slot that its backend names, if it names one.
pub(crate) type Opened = (Arc<OpenToken>, Option<SlotId>);

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

impl Inner {
    /// Opens a token for `who`, or for the node itself. What is noted of it under a name that earlier versions gave it is
    /// noted under its own from now on.
    ///
    /// # Errors
    /// What its driver says; as [`in_time`]. An opening that nobody waits for any more goes on,
    /// and the next one finds the token open.
    pub(crate) async fn open(
        self: &Arc<Self>,
        who: Option<&EngineId>,
        wanted: Wanted<'_>,
        call: &Call,
    ) -> Result<Opened, EngineError> {
        let opening = self.tokens.openings.begin(wanted.backend, call).await?;
        let (node, who, its_call) = (Arc::clone(self), who.cloned(), call.clone());
        let (backend, token) = (wanted.backend.to_owned(), wanted.token.cloned());
        let opened = tokio::task::spawn_blocking(move || {
            let _opening = opening;
            its_call.check()?;
            let wanted = Wanted {
                backend: &backend,
                token: token.as_ref(),
            };
            let opened = node.tokens.open(who.as_ref(), wanted, &its_call)?;
            node.rename(opened, &its_call)
        });
        let opened = in_time(call, opened).await?;
        opened.unwrap_or_else(|_| Err(Error::Cancelled.into()))
    }
}
