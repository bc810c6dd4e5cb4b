//! The states of a node's tokens.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

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
    changes: broadcast::Sender<TokenChange>,
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
            let _nobody_listens = self.changes.send(TokenChange {
                token: self.token.clone(),
                before,
                state: after,
            });
        }
    }
}

/// How the tokens stand that were ever seen.
pub(crate) struct Standings {
    pub(crate) known: Mutex<HashMap<TokenId, Arc<Standing>>>,
    pub(crate) changes: broadcast::Sender<TokenChange>,
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

impl Default for Standings {
    fn default() -> Self {
        Standings {
            known: Mutex::default(),
            changes: broadcast::channel(KEPT_CHANGES).0,
            wanted: Mutex::default(),
            watched: Mutex::default(),
            awaited: Mutex::default(),
        }
    }
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
                changes: self.changes.clone(),
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
