//! Whether a key's operations are as quick as its token says.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Watches the operations of one key.
///
/// A hop to another thread costs some 50 µs. An operation that takes twenty times as long loses
/// little by it, and must not hold up the caller's task.
#[derive(Debug, Default)]
pub(crate) struct Pacer(AtomicU32);

impl Pacer {
    const SLOW: Duration = Duration::from_millis(1);
    /// So many slow operations in a row, and the key is worked by threads.
    const PATIENCE: u32 = 4;

    pub(crate) fn is_slow(&self) -> bool {
        self.0.load(Relaxed) >= Self::PATIENCE
    }

    /// Does `work`, and notes how long it took, whichever thread this is: where only the machine
    /// was busy for a while, the key is soon worked in place again.
    pub(crate) fn timed<T>(&self, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        if begun.elapsed() >= Self::SLOW {
            self.0.fetch_add(1, Relaxed);
        } else if self.0.load(Relaxed) != 0 {
            self.0.store(0, Relaxed);
        }
        done
    }
}
