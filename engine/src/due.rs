//! When it is looked whether something was abandoned on a token.
//!
//! A process that dies and a token that goes away leave an intent open. Who makes or deletes keys on
//! the token resolves it before, and a command does whatever it uses the token for. Most requests to
//! a daemon only use keys, and are not to read the registry for that each time. So it is looked after
//! the first use of each opening, and again where something failed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// So long it is not tried again after it failed.
const PAUSE: Duration = Duration::from_secs(60);

const NEVER: u64 = u64::MAX;

/// When it is time, in milliseconds since this was made; at once at first.
pub(crate) struct Due {
    made: Instant,
    at: AtomicU64,
}

impl Default for Due {
    fn default() -> Self {
        Due {
            made: Instant::now(),
            at: AtomicU64::new(0),
        }
    }
}

impl Due {
    /// Whether it is time. Says so to one caller only, until it is set again.
    pub(crate) fn is_now(&self) -> bool {
        let at = self.at.load(Ordering::Acquire);
        at != NEVER
            && self.now() >= at
            && (self.at)
                .compare_exchange(at, NEVER, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
    }

    /// It is time now.
    pub(crate) fn set(&self) {
        self.at.store(0, Ordering::Release);
    }

    /// It failed: it is time again later, unless it is time before.
    pub(crate) fn failed(&self) {
        let later = self.now().saturating_add(millis(PAUSE));
        self.at.fetch_min(later, Ordering::AcqRel);
    }

    fn now(&self) -> u64 {
        millis(self.made.elapsed())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(NEVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_is_told_that_it_is_time_and_after_a_failure_none_for_a_while() {
        let due = Due::default();
        assert!(due.is_now() && !due.is_now());
        due.failed();
        assert!(!due.is_now());
        due.set();
        due.failed();
        assert!(due.is_now() && !due.is_now());
    }
}
