//! Modules that fail are left alone for a while by those who only look around.

use std::time::{Duration, Instant};

/// How long a module that cannot be used is left alone by those who only look around, at
/// first and at most. It doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Whether a module that failed a moment ago is tried again at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// At once: somebody wants a token of it.
    Now,
    /// Slower and slower: somebody looks around.
    Slower,
}

/// What was wrong with a module when it was asked last, and how long it is left alone for it.
#[derive(Clone)]
pub(crate) struct Trouble {
    /// The error, where it gave one.
    pub(crate) said: Option<String>,
    at: Instant,
    pause: Duration,
}

impl Trouble {
    pub(crate) fn after(before: Option<&Trouble>, said: Option<String>) -> Self {
        Trouble {
            said,
            at: Instant::now(),
            pause: before.map_or(FIRST_PAUSE, |before| LONGEST_PAUSE.min(2 * before.pause)),
        }
    }

    pub(crate) fn is_too_early(&self, patience: Patience) -> bool {
        patience == Patience::Slower && self.at.elapsed() < self.pause
    }
}
