//! Clocks: how long a PIN is kept, and whether the machine slept.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Whether the clocks are so far apart for another reason than that they were read one after the
/// other.
const JUMP: Duration = Duration::from_secs(1);

/// What a [`Keeper`](super::Keeper) knows of time. Both count from some moment on.
pub trait Clock: Send + Sync {
    /// The time that went by while the machine was awake (`CLOCK_MONOTONIC`).
    fn awake(&self) -> Duration;

    /// The time that went by, sleep included (`CLOCK_BOOTTIME`).
    fn elapsed(&self) -> Duration;
}

/// The clocks of the system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn awake(&self) -> Duration {
        read(ClockId::Monotonic)
    }

    fn elapsed(&self) -> Duration {
        read(ClockId::Boottime)
    }
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

/// Notices that the machine slept.
#[derive(Debug, Default)]
pub(super) struct Sleep {
    /// How long it had slept when it was looked at last.
    slept: Option<Duration>,
}

impl Sleep {
    /// Whether it slept since this was asked last.
    pub(super) fn was_there(&mut self, clock: &dyn Clock) -> bool {
        let (earlier, elapsed, later) = (clock.awake(), clock.elapsed(), clock.awake());
        // This thread was kept from the processor: it says nothing.
        if later.saturating_sub(earlier) >= JUMP / 2 {
            return false;
        }
        let slept = elapsed.saturating_sub(earlier);
        let before = self.slept.replace(slept);
        before.is_some_and(|before| slept.saturating_sub(before) >= JUMP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Clocks(Duration, Duration);

    impl Clock for Clocks {
        fn awake(&self) -> Duration {
            self.0
        }

        fn elapsed(&self) -> Duration {
            self.1
        }
    }

    #[test]
    fn only_a_jump_of_one_clock_against_the_other_is_a_sleep() {
        let seconds = Duration::from_secs;
        let mut sleep = Sleep::default();
        for (awake, elapsed, slept) in [
            (10, 4_000, false),
            (500, 4_490, false),
            (501, 4_492, true),
            (502, 4_493, false),
            (600, 9_000, true),
            (601, 9_001, false),
        ] {
            let clocks = Clocks(seconds(awake), seconds(elapsed));
            assert_eq!(sleep.was_there(&clocks), slept, "{awake} {elapsed}");
        }
    }

    #[test]
    fn the_clocks_of_the_system_go_on() {
        let (awake, elapsed) = (SystemClock.awake(), SystemClock.elapsed());
        std::thread::sleep(Duration::from_millis(2));
        assert!(SystemClock.awake() > awake && SystemClock.elapsed() > elapsed);
        assert!(SystemClock.elapsed() + JUMP > SystemClock.awake());
    }
}
