//! Tokens that are being closed: what is in flight on them ends, and nothing new begins.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use claviger_token::sync::lock;
use claviger_token::{Token, TokenId};

/// The tokens that are being closed, until nobody has them any more.
#[derive(Default)]
pub(crate) struct Closings(Mutex<Vec<Weak<dyn Token>>>);

impl Closings {
    pub(crate) fn begin(&self, token: &Arc<dyn Token>) {
        lock(&self.0).push(Arc::downgrade(token));
    }

    pub(crate) fn has(&self, token: &Arc<dyn Token>) -> bool {
        let mut closing = lock(&self.0);
        closing.retain(|one| one.strong_count() > 0);
        let of = Arc::downgrade(token);
        closing.iter().any(|one| one.ptr_eq(&of))
    }
}

/// How often tokens were locked, so that an opening that was begun before is not used.
#[derive(Default)]
pub(crate) struct Locks(Mutex<Locked>);

#[derive(Default)]
struct Locked {
    count: u64,
    /// The number of the last lock of all tokens, and of each.
    all: u64,
    of: HashMap<TokenId, u64>,
}

impl Locks {
    /// The number of the last lock.
    pub(crate) fn now(&self) -> u64 {
        lock(&self.0).count
    }

    /// One token was locked, or all.
    pub(crate) fn note(&self, token: Option<&TokenId>) {
        let mut locked = lock(&self.0);
        locked.count += 1;
        let count = locked.count;
        match token {
            Some(token) => drop(locked.of.insert(token.clone(), count)),
            None => locked.all = count,
        }
    }

    /// Whether the token was locked after the lock number `then`.
    pub(crate) fn came_since(&self, then: u64, token: &TokenId) -> bool {
        let locked = lock(&self.0);
        let of = locked.of.get(token).copied().unwrap_or_default();
        locked.all.max(of) > then
    }
}
