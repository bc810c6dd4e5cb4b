//! Opening tokens: apart from everything else, since whoever opens one may wait for a person.
//!
//! A token is opened and logged in to before anybody takes a turn at it. Its driver may wait for a
//! person, or for a device that never answers. Then a thread hangs, also when nobody waits for it
//! any more. Limits keep one sender or one token from taking the threads of the others:
//!
//! | what hangs | counts for | who waits for it |
//! | --- | --- | --- |
//! | opening a token that is known | the token: one at a time | who wants this token |
//! | opening what a backend leads to, not known which token that is | its sender: [`EACH`] at a time | who wants the same backend; the sender's further ones |
//! | asking for a PIN before the opening ([`asking`](crate::asking)) | its sender, apart from openings: [`EACH`] at a time | the sender's further requests for the PIN of the same token |
//! | looking at what is attached | its sender, apart from openings: [`EACH`] at a time | who looks by the same backend; the sender's further looks |
//! | looking for a key on a token that is open | the token, apart from openings: as many as it has [threads](crate::waiting_threads) | who wants another key of this token |
//!
//! Who waits takes no thread and keeps nobody else waiting. All that hang take [`MOST`] threads. Of
//! these, [`RESERVED`] are for senders of whom nothing hangs yet: a dozen senders do not keep the
//! others from being served.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use claviger_token::{Call, Error, TokenId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::EngineId;
use crate::sender::Sender;
use crate::turns::{Kept, Turn, Turns, apart, in_time};

/// How many openings of one sender go on at a time where it is not known which token is opened.
pub(crate) const EACH: usize = 8;

/// How many openings go on at a time. The runtime has 512 threads that may block, for everything.
pub(crate) const MOST: usize = 128;

/// How many of these only a sender takes of whom nothing else hangs.
pub(crate) const RESERVED: usize = 32;

/// Who is opening which token.
pub(crate) struct Openings {
    backends: Turns<String>,
    tokens: Turns<TokenId>,
    /// Those of each sender; `None` is the node itself.
    places: Kept<Option<Sender>, Semaphore>,
    threads: Arc<Semaphore>,
    reserved: Arc<Semaphore>,
}

/// The right to open what one backend leads to. It goes along with who opens, also where nobody
/// waits for that any more.
pub(crate) struct Opening {
    _backend: Turn,
    /// Where it is known which token is opened.
    _token: Option<Turn>,
    /// Where it is not.
    _place: Option<OwnedSemaphorePermit>,
    _thread: OwnedSemaphorePermit,
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

impl Default for Openings {
    fn default() -> Self {
        Openings {
            backends: Turns::default(),
            tokens: Turns::default(),
            places: Kept::default(),
            threads: Arc::new(Semaphore::new(MOST - RESERVED)),
            reserved: Arc::new(Semaphore::new(RESERVED)),
        }
    }
}

impl Openings {
    /// Does `work` for `who` as [`apart`] does, when nobody else opens the same.
    ///
    /// # Errors
    /// As [`apart`]: then the work never begins, or goes on and nobody waits for it.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        who: Option<&EngineId>,
        wanted: Wanted<'_>,
        call: &Call,
        work: impl FnOnce(Opening) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let opening = self.begin(who, wanted, call).await?;
        apart(call, move || work(opening)).await
    }

    /// The right to open what is wanted, when nobody else opens the same.
    ///
    /// # Errors
    /// As [`in_time`].
    pub(crate) async fn begin(
        &self,
        who: Option<&EngineId>,
        wanted: Wanted<'_>,
        call: &Call,
    ) -> Result<Opening, Error> {
        let (backend, token, place, is_first) = match wanted.token {
            // Always in this order, so that no two wait for each other.
            Some(token) => {
                let backend = self.backends.take(&wanted.backend.to_owned(), call).await?;
                let token = self.tokens.take(token, call).await?;
                (backend, Some(token), None, false)
            }
            None => {
                let (backend, place) = self.turn_and_place(who, wanted.backend, call).await?;
                let is_first = place.semaphore().available_permits() + 1 == EACH;
                (backend, None, Some(place), is_first)
            }
        };
        Ok(Opening {
            _backend: backend,
            _token: token,
            _place: place,
            _thread: self.thread(is_first, call).await?,
        })
    }

    /// A thread, of those for everybody if one is free; `is_first`: nothing else of the sender
    /// hangs.
    async fn thread(&self, is_first: bool, call: &Call) -> Result<OwnedSemaphorePermit, Error> {
        let mut thread = pin!(Arc::clone(&self.threads).acquire_owned());
        let mut reserved = pin!(Arc::clone(&self.reserved).acquire_owned());
        let either = poll_fn(|cx| match thread.as_mut().poll(cx) {
            Poll::Pending if is_first => reserved.as_mut().poll(cx),
            thread => thread,
        });
        // They are never closed.
        in_time(call, either).await?.map_err(|_| Error::Cancelled)
    }

    /// The turn at a backend, and a place among those of the sender. Who waits for the one does
    /// not hold the other.
    async fn turn_and_place(
        &self,
        who: Option<&EngineId>,
        backend: &str,
        call: &Call,
    ) -> Result<(Turn, OwnedSemaphorePermit), Error> {
        let places = self
            .places
            .of(&who.map(Sender::from), || Semaphore::new(EACH));
        let backend = backend.to_owned();
        loop {
            let turn = self.backends.take(&backend, call).await?;
            if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                return Ok((turn, place));
            }
            drop(turn);
            let place = permit(Arc::clone(&places), call).await?;
            if let Some(turn) = self.backends.take_at_once(&backend) {
                return Ok((turn, place));
            }
        }
    }
}

async fn permit(of: Arc<Semaphore>, call: &Call) -> Result<OwnedSemaphorePermit, Error> {
    // It is never closed.
    in_time(call, of.acquire_owned())
        .await?
        .map_err(|_| Error::Cancelled)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn token(serial: &str) -> TokenId {
        TokenId {
            kind: "k".into(),
            manufacturer: "m".into(),
            serial: serial.into(),
        }
    }

    fn wanted<'a>(backend: &'a str, token: &'a TokenId) -> Wanted<'a> {
        let token = Some(token);
        Wanted { backend, token }
    }

    fn is_late(opening: &Result<Opening, Error>) -> bool {
        matches!(opening, Err(Error::DeadlineExceeded))
    }

    #[tokio::test]
    async fn a_token_is_opened_once_at_a_time_by_whatever_backends_it_is_reached() {
        let (openings, one, other) = (Openings::default(), token("1"), token("2"));
        let call = Call::unlimited();
        let first = openings
            .begin(None, wanted("a", &one), &call)
            .await
            .unwrap();
        let soon = Call::within(Duration::from_millis(1));
        assert!(is_late(
            &openings.begin(None, wanted("b", &one), &soon).await
        ));
        let second = openings.begin(None, wanted("c", &other), &call).await;
        drop((first, second.unwrap()));
        let again = openings.begin(None, wanted("b", &one), &call).await;
        drop(again.unwrap());
    }

    #[tokio::test]
    async fn a_request_that_may_keep_its_thread_is_done_on_it_unless_it_has_a_deadline() {
        let openings = Openings::default();
        let here = std::thread::current().id();
        let in_place = Call::unlimited().in_place();
        let late = in_place.clone().no_longer_than(Duration::from_secs(60));
        for (call, is_here) in [
            (&in_place, true),
            (&late, false),
            (&Call::unlimited(), false),
        ] {
            let run = |work: fn(Opening) -> std::thread::ThreadId| {
                openings.run(None, Wanted::any("a"), call, work)
            };
            let there = run(|_| std::thread::current().id()).await.unwrap();
            assert_eq!(there == here, is_here, "{call:?}");
            let panicked = run(|_| std::panic::resume_unwind(Box::new(()))).await;
            assert!(matches!(panicked, Err(Error::Cancelled)), "{panicked:?}");
        }
        assert_eq!(openings.threads.available_permits(), MOST - RESERVED);
    }

    #[tokio::test]
    async fn many_senders_of_whom_as_much_hangs_as_may_leave_threads_to_others() {
        let openings = Openings::default();
        let soon = Call::within(Duration::from_millis(1));
        let mut hang = Vec::new();
        for sender in 0..MOST / EACH {
            let sender = EngineId::local(format!("sender {sender}"));
            for number in 0..EACH {
                let backend = format!("{sender} {number}");
                let opening = openings.begin(Some(&sender), Wanted::any(&backend), &soon);
                hang.extend(opening.await);
            }
        }
        // Some of theirs wait, and those of others do not.
        assert_eq!(hang.len(), MOST - RESERVED + (RESERVED / EACH));
        for number in 0..RESERVED / 2 {
            let other = EngineId::local(format!("other {number}"));
            let backend = format!("its own {number}");
            let call = Call::unlimited();
            let opening = openings.begin(Some(&other), Wanted::any(&backend), &call);
            hang.push(opening.await.unwrap());
        }
    }

    #[tokio::test]
    async fn who_waits_for_a_place_keeps_nobody_from_the_backend() {
        let openings = Openings::default();
        let [alice, bob] = ["alice", "bob"].map(EngineId::local);
        let call = Call::unlimited();
        let names: Vec<String> = (0..EACH).map(|n| n.to_string()).collect();
        let mut hers = Vec::new();
        for name in &names {
            let opening = openings.begin(Some(&alice), Wanted::any(name), &call).await;
            hers.push(opening.unwrap());
        }
        let waits = openings.begin(Some(&alice), Wanted::any("x"), &call);
        tokio::pin!(waits);
        // It has come as far as it can.
        let begun = tokio::time::timeout(Duration::ZERO, waits.as_mut()).await;
        assert!(begun.is_err());
        let his = openings.begin(Some(&bob), Wanted::any("x"), &call).await;
        // Now both are taken, and then each comes free.
        drop(hers.pop());
        let begun = tokio::time::timeout(Duration::ZERO, waits.as_mut()).await;
        assert!(begun.is_err());
        // Waiting for the backend she has no place: another one of hers has.
        let other = openings.begin(Some(&alice), Wanted::any("y"), &call).await;
        drop((his.unwrap(), other.unwrap()));
        drop(waits.await.unwrap());
    }
}
