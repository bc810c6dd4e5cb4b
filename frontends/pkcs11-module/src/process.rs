//! The state of one process. A child that was forked has none: locks may be held there by threads
//! that it does not have, and the connection is its parent's. It initialises the module anew.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cryptoki_sys::{CKR_CRYPTOKI_ALREADY_INITIALIZED, CKR_CRYPTOKI_NOT_INITIALIZED};

use crate::daemon::Daemon;
use crate::entry::Done;
use crate::sessions::Sessions;

/// What belongs to one process.
pub(crate) struct Process {
    id: u32,
    pub(crate) daemon: Daemon,
    /// `None` as long as it is not initialised.
    sessions: Mutex<Option<Sessions>>,
}

/// Null, or a process that is never freed. A lock would not do: it may be held when a child is
/// forked.
static CURRENT: AtomicPtr<Process> = AtomicPtr::new(null_mut());

impl Process {
    /// This process, once it has initialised the module.
    ///
    /// # Errors
    /// `CKR_CRYPTOKI_NOT_INITIALIZED`.
    pub(crate) fn this() -> Done<&'static Self> {
        Process::known().ok_or(CKR_CRYPTOKI_NOT_INITIALIZED)
    }

    fn known() -> Option<&'static Self> {
        // SAFETY: it is null, or `Box::leak` gave it, and nothing frees it.
        let known = unsafe { CURRENT.load(Ordering::Acquire).as_ref() };
        known.filter(|known| known.id == std::process::id())
    }

    fn known_or_new() -> &'static Self {
        loop {
            // That of a parent is left as it is, with its connection.
            let before = CURRENT.load(Ordering::Acquire);
            if let Some(known) = Process::known() {
                return known;
            }
            let new: &'static Process = Box::leak(Box::new(Process {
                id: std::process::id(),
                daemon: Daemon::default(),
                sessions: Mutex::default(),
            }));
            let pointer = std::ptr::from_ref(new).cast_mut();
            let put =
                CURRENT.compare_exchange(before, pointer, Ordering::AcqRel, Ordering::Acquire);
            if put.is_ok() {
                return new;
            }
        }
    }

    /// # Errors
    /// `CKR_CRYPTOKI_ALREADY_INITIALIZED`.
    pub(crate) fn initialise() -> Done {
        let mut sessions = Process::known_or_new().lock();
        match &*sessions {
            Some(_) => Err(CKR_CRYPTOKI_ALREADY_INITIALIZED),
            None => {
                *sessions = Some(Sessions::default());
                Ok(())
            }
        }
    }

    /// # Errors
    /// `CKR_CRYPTOKI_NOT_INITIALIZED`.
    pub(crate) fn finalise() -> Done {
        let this = Process::this()?;
        let ended = this.lock().take();
        this.daemon.leave();
        ended.map(drop).ok_or(CKR_CRYPTOKI_NOT_INITIALIZED)
    }

    /// Works with the sessions, which nobody else does meanwhile. Not for requests to the daemon.
    ///
    /// # Errors
    /// `CKR_CRYPTOKI_NOT_INITIALIZED`, and those of the work.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Sessions) -> Done<T>) -> Done<T> {
        match &mut *self.lock() {
            Some(sessions) => work(sessions),
            None => Err(CKR_CRYPTOKI_NOT_INITIALIZED),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Sessions>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
