//! The threads that work a token, and the bounded queue that feeds them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use claviger_token::{Call, Error, TokenId};
use tokio::sync::oneshot;

/// How many operations may wait for a token. More are answered *busy*, at once.
pub(crate) const QUEUE: usize = 256;

type Job = Box<dyn FnOnce() + Send>;

/// Threads of a token's own. They end when the lane is dropped.
pub(crate) struct Lane {
    token: TokenId,
    jobs: SyncSender<Job>,
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
                    what: "no thread for the token".into(),
                    reason: e.to_string(),
                })?;
        }
        Ok(Lane {
            token: token.clone(),
            jobs,
        })
    }

    /// Runs `job` on one of the token's threads.
    ///
    /// When the deadline passes or the caller goes away, a job that has not begun never
    /// does; one that has goes on, and its result is dropped.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::DeadlineExceeded`], or what the job says.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        call: &Call,
        job: impl FnOnce(&Call) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        // The caller may have gone; then nobody wants the result.
        let _gone = self.submit(call, job, |result| drop(reply.send(result)))?;
        let answer = match call.deadline() {
            Some(deadline) => tokio::time::timeout_at(deadline.into(), answer)
                .await
                .map_err(|_| Error::DeadlineExceeded)?,
            None => answer.await,
        };
        // No answer: the job panicked.
        answer.unwrap_or_else(|_| Err(self.unavailable()))
    }

    /// The same for a caller that may block.
    pub(crate) fn run_blocking<T: Send + 'static>(
        &self,
        call: &Call,
        job: impl FnOnce(&Call) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = sync_channel(1);
        let _gone = self.submit(call, job, move |result| drop(reply.send(result)))?;
        let answer = match call.deadline() {
            Some(deadline) => {
                let left = deadline.saturating_duration_since(std::time::Instant::now());
                match answer.recv_timeout(left) {
                    Err(RecvTimeoutError::Timeout) => return Err(Error::DeadlineExceeded),
                    other => other.ok(),
                }
            }
            None => answer.recv().ok(),
        };
        answer.unwrap_or_else(|| Err(self.unavailable()))
    }

    fn submit<T>(
        &self,
        call: &Call,
        job: impl FnOnce(&Call) -> Result<T, Error> + Send + 'static,
        reply: impl FnOnce(Result<T, Error>) + Send + 'static,
    ) -> Result<GoneOnDrop, Error> {
        call.check()?;
        let gone = GoneOnDrop(Arc::default());
        let (caller_gone, call) = (Arc::clone(&gone.0), call.clone());
        let job = Box::new(move || {
            reply(if caller_gone.load(Ordering::Relaxed) {
                Err(Error::Cancelled)
            } else {
                call.check().and_then(|()| job(&call))
            });
        });
        match self.jobs.try_send(job) {
            Ok(()) => Ok(gone),
            Err(TrySendError::Full(_)) => Err(Error::Busy {
                token: self.token.clone(),
            }),
            Err(TrySendError::Disconnected(_)) => Err(self.unavailable()),
        }
    }

    fn unavailable(&self) -> Error {
        Error::TokenUnavailable {
            token: self.token.clone(),
            reason: "the thread that works it ended".into(),
        }
    }
}

struct GoneOnDrop(Arc<AtomicBool>);

impl Drop for GoneOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
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
