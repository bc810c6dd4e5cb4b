//! The threads that serve a token, and their bounded queue.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use claviger_token::{Call, Error, TokenId};
use tokio::sync::oneshot;

use crate::shares::Shares;

/// How many operations may wait for a token. More are answered *busy*, at once.
pub(crate) const QUEUE: usize = 256;

/// How long the token may take to end what it has begun, and for each thing that is tidied
/// up, whatever the caller's deadline.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

type Job = Box<dyn FnOnce() + Send>;

/// Threads of a token's own. They end when the lane is dropped.
pub(crate) struct Lane {
    token: TokenId,
    jobs: SyncSender<Job>,
    /// Who has put those in that no thread has taken.
    shares: Arc<Shares>,
}

impl Lane {
    /// Starts `workers` threads (at least one).
    pub(crate) fn start(token: &TokenId, workers: usize) -> Result<Self, Error> {
        let (jobs, queue) = sync_channel(QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..workers.max(1) {
            let queue = Arc::clone(&queue);
            std::thread::Builder::new()
                .name(format!("token {}", token.serial))
                .spawn(move || work(&queue))
                .map_err(|e| Error::System {
                    what: "the token's thread cannot be started".into(),
                    reason: e.to_string(),
                })?;
        }
        Ok(Lane {
            token: token.clone(),
            jobs,
            shares: Shares::of(QUEUE),
        })
    }

    /// How many jobs wait, those included that were given up.
    pub(crate) fn queued(&self) -> usize {
        self.shares.taken()
    }

    /// Runs `job` on one of the token's threads, for a [caller](Shares::take).
    ///
    /// When the deadline passes or the caller goes away, a job that has not begun never
    /// does; one that has goes on, and its result is dropped.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::DeadlineExceeded`], or what the job says.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        caller: Option<u32>,
        call: &Call,
        job: impl FnOnce(&Call) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        // The caller may have gone; then nobody wants the result.
        let _turn = self.submit(caller, call, job, |result| drop(reply.send(result)))?;
        let answer = match call.deadline() {
            Some(deadline) => tokio::time::timeout_at(deadline.into(), answer)
                .await
                .map_err(|_| Error::DeadlineExceeded)?,
            None => answer.await,
        };
        // No answer: the job panicked.
        answer.unwrap_or_else(|_| Err(self.panicked()))
    }

    /// The same for a caller that may block, and has not more than a few such jobs.
    pub(crate) fn run_blocking<T: Send + 'static>(
        &self,
        call: &Call,
        job: impl FnOnce(&Call) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = sync_channel(1);
        let _turn = self.submit(None, call, job, move |result| drop(reply.send(result)))?;
        match wait(&answer, call) {
            Err(RecvTimeoutError::Timeout) => Err(Error::DeadlineExceeded),
            answer => answer.unwrap_or_else(|_| Err(self.panicked())),
        }
    }

    /// The same for a job that changes something on the token: one that has begun when the
    /// deadline passes is waited for, `patience` more.
    ///
    /// # Errors
    /// [`NotDone`] where it never began, or has not ended then either; within, what the job says.
    pub(crate) fn carry_through<T: Send + 'static>(
        &self,
        call: &Call,
        patience: Duration,
        job: impl FnOnce(&Call) -> Result<T, Error> + Send + 'static,
    ) -> Result<Result<T, Error>, NotDone> {
        let (reply, answer) = sync_channel(1);
        let begun = Arc::new(AtomicBool::new(false));
        let begins = Arc::clone(&begun);
        let job = move |call: &Call| {
            begins.store(true, Ordering::Release);
            job(call)
        };
        let turn = self.submit(None, call, job, move |result| drop(reply.send(result)));
        let turn = turn.map_err(NotDone::NotBegun)?;
        let mut answered = wait(&answer, call);
        if answered.as_ref().err() == Some(&RecvTimeoutError::Timeout) {
            if turn.give_up() {
                return Err(NotDone::NotBegun(Error::DeadlineExceeded));
            }
            answered = answer.recv_timeout(patience);
        }
        match answered {
            Err(RecvTimeoutError::Timeout) => Err(NotDone::StillAtIt),
            // Its time was over when its turn came.
            Ok(Err(error)) if !begun.load(Ordering::Acquire) => Err(NotDone::NotBegun(error)),
            answer => Ok(answer.unwrap_or_else(|_| Err(self.panicked()))),
        }
    }

    fn submit<T>(
        &self,
        caller: Option<u32>,
        call: &Call,
        job: impl FnOnce(&Call) -> Result<T, Error> + Send + 'static,
        reply: impl FnOnce(Result<T, Error>) + Send + 'static,
    ) -> Result<JobStart, Error> {
        call.check()?;
        let place = self.shares.take(caller).ok_or_else(|| self.busy())?;
        let turn = JobStart(Arc::default());
        let (its_turn, call) = (Arc::clone(&turn.0), call.clone());
        let job = Box::new(move || {
            drop(place);
            reply(match JobStart::change(&its_turn, JobStart::BEGUN) {
                true => call.check().and_then(|()| job(&call)),
                false => Err(Error::Cancelled),
            });
        });
        match self.jobs.try_send(job) {
            Ok(()) => Ok(turn),
            Err(TrySendError::Full(_)) => Err(self.busy()),
            Err(TrySendError::Disconnected(_)) => Err(self.unavailable()),
        }
    }

    fn busy(&self) -> Error {
        Error::Busy {
            token: self.token.clone(),
        }
    }

    fn panicked(&self) -> Error {
        Error::TokenUnavailable {
            token: self.token.clone(),
            reason: "its driver panicked".into(),
        }
    }

    fn unavailable(&self) -> Error {
        Error::TokenUnavailable {
            token: self.token.clone(),
            reason: "its worker thread ended".into(),
        }
    }
}

/// Why nothing can be said of what came of a job.
#[derive(Debug)]
pub(crate) enum NotDone {
    /// It never began, and never will.
    NotBegun(Error),
    /// It goes on, and nobody waits for it any more.
    StillAtIt,
}

/// Whether a job has begun, or never will. It never will once this is dropped.
struct JobStart(Arc<AtomicU8>);

impl JobStart {
    const WAITING: u8 = 0;
    const BEGUN: u8 = 1;
    const GIVEN_UP: u8 = 2;

    /// Whether nothing else has been decided before.
    fn change(turn: &AtomicU8, to: u8) -> bool {
        turn.compare_exchange(Self::WAITING, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Whether the job never begins.
    fn give_up(&self) -> bool {
        JobStart::change(&self.0, Self::GIVEN_UP)
    }
}

impl Drop for JobStart {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// The answer, if it comes before the deadline.
fn wait<T>(answer: &Receiver<T>, call: &Call) -> Result<T, RecvTimeoutError> {
    match call.deadline() {
        Some(deadline) => answer.recv_timeout(deadline.saturating_duration_since(Instant::now())),
        None => answer.recv().map_err(|_| RecvTimeoutError::Disconnected),
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        // The lock is held while waiting for a job, never while doing one.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        // A panic in a driver must not take the token's thread with it.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
    }
}
