//! Tokens that are being closed: what is in flight on them ends, and nothing new begins.

use std::sync::{Arc, Mutex, Weak};

use claviger_token::Token;
use claviger_token::sync::lock;

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
