//! The states of a node's tokens.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use claviger_token::sync::lock;
use claviger_token::{Error, TokenId, Watch};
use tokio::sync::broadcast;

use crate::token_state::{Happening, TokenChange, TokenState};

/// How many changes are kept for a subscriber who is slow to take them.
const KEPT_CHANGES: usize = 1024;

/// How one token stands.
pub(crate) struct Standing {
    pub(crate) token: TokenId,
    pub(crate) backend: String,
    state: Mutex<TokenState>,
    /// Whether it is ready, for those who do not want to take turns to find that out.
    ready: AtomicBool,
    changes: Arc<Changes>,
}

/// Those who listen to changes; what is kept for them takes memory once there is somebody.
#[derive(Default)]
pub(crate) struct Changes(OnceLock<broadcast::Sender<TokenChange>>);

impl Changes {
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<TokenChange> {
        let sender = self.0.get_or_init(|| broadcast::channel(KEPT_CHANGES).0);
        sender.subscribe()
    }

    /// Whether anybody listens.
    pub(crate) fn are_listened_to(&self) -> bool {
        let sender = self.0.get();
        sender.is_some_and(|sender| sender.receiver_count() > 0)
    }

    fn send(&self, change: TokenChange) {
        if let Some(sender) = self.0.get() {
            let _nobody_listens = sender.send(change);
        }
    }
}

impl Standing {
    pub(crate) fn note(&self, what: Happening) {
        if what == Happening::Worked && self.ready.load(Ordering::Relaxed) {
            return;
        }
        let mut state = lock(&self.state);
        let before = *state;
        let after = before.after(what);
        if after != before {
            *state = after;
            self.ready
                .store(after == TokenState::Ready, Ordering::Relaxed);
            // Told while the lock is held: changes are told in the order in which they happen.
            self.changes.send(TokenChange {
                token: self.token.clone(),
                before,
                state: after,
            });
        }
    }
}

impl Standing {
    /// Notes that the token was closed, if it was open: it needs its PIN from now on.
    pub(crate) fn note_closed(&self) {
        if self.ready.load(Ordering::Relaxed) {
            self.note(Happening::Refused);
        }
    }
}

/// How the tokens stand that were ever seen.
#[derive(Default)]
pub(crate) struct Standings {
    pub(crate) known: Mutex<HashMap<TokenId, Arc<Standing>>>,
    pub(crate) changes: Arc<Changes>,
    /// The backends that subscribers want watched, each as often as it is wanted.
    pub(crate) wanted: Mutex<Vec<String>>,
    /// The schemes of the drivers that a thread watches.
    pub(crate) watched: Mutex<HashSet<&'static str>>,
    /// The tokens that are waited for.
    pub(crate) awaited: Mutex<HashMap<TokenId, Arc<Awaited>>>,
}

/// Those who wait for one token take turns to look for it.
pub(crate) struct Awaited {
    pub(crate) turn: Arc<tokio::sync::Mutex<Option<Box<dyn Watch>>>>,
    /// How often it came back.
    pub(crate) returns: AtomicU64,
}

impl Standings {
    /// How `token` stands, which is reached by `backend`.
    pub(crate) fn of(&self, token: &TokenId, backend: &str) -> Arc<Standing> {
        let mut known = lock(&self.known);
        let standing = known.entry(token.clone()).or_insert_with(|| {
            Arc::new(Standing {
                token: token.clone(),
                backend: backend.into(),
                state: Mutex::new(TokenState::Absent),
                ready: AtomicBool::new(false),
                changes: Arc::clone(&self.changes),
            })
        });
        Arc::clone(standing)
    }

    /// Notes what an error shows of a token that is known.
    pub(crate) fn note_error(&self, error: &Error) {
        if let (Some(token), Some(what)) = (error.token(), Happening::shown_by(error)) {
            let standing = lock(&self.known).get(token).cloned();
            if let Some(standing) = standing {
                standing.note(what);
            }
        }
    }

    pub(crate) fn all(&self) -> Vec<(TokenId, TokenState)> {
        let known: Vec<_> = lock(&self.known).values().cloned().collect();
        let mut all: Vec<_> = known
            .iter()
            .map(|standing| (standing.token.clone(), *lock(&standing.state)))
            .collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }
}
