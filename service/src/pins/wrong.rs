//! How often a caller may give a wrong PIN.
//!
//! A comparison costs the token no attempt, so a caller could try all PINs. After three wrong ones
//! it waits a minute, and after each further one twice as long. It is the user who counts, whatever
//! its groups and sockets are.

use std::collections::HashMap;
use std::time::Duration;

use claviger_token::TokenId;

/// So many wrong PINs in a row are nothing.
const FREE: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_secs(60);
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// The wrong PINs of each user for each token.
#[derive(Debug, Default)]
pub(super) struct WrongPins(HashMap<(u32, TokenId), Wrong>);

#[derive(Debug, Default)]
struct Wrong {
    count: u32,
    /// No further PIN is taken before this moment.
    until: Duration,
}

impl WrongPins {
    /// The user gives one: it counts as wrong until it is known.
    pub(super) fn note(&mut self, uid: u32, token: &TokenId, now: Duration) {
        let wrong = self.0.entry((uid, token.clone())).or_default();
        wrong.count = wrong.count.saturating_add(1);
        if let Some(more) = wrong.count.checked_sub(FREE) {
            let wait = FIRST_WAIT.saturating_mul(1 << more.min(16));
            wrong.until = now.saturating_add(wait.min(LONGEST_WAIT));
        }
    }

    /// Of one that the user gave nothing is known.
    pub(super) fn take_back(&mut self, uid: u32, token: &TokenId) {
        if let Some(wrong) = self.0.get_mut(&(uid, token.clone())) {
            wrong.count = wrong.count.saturating_sub(1);
            if wrong.count < FREE {
                wrong.until = Duration::ZERO;
            }
        }
    }

    /// The user gave the right one.
    pub(super) fn forget(&mut self, uid: u32, token: &TokenId) {
        self.0.remove(&(uid, token.clone()));
    }

    /// How long the user still waits, in whole seconds; 0: not at all.
    pub(super) fn wait(&self, uid: u32, token: &TokenId, now: Duration) -> u64 {
        let wrong = self.0.get(&(uid, token.clone()));
        let left = wrong.map_or(Duration::ZERO, |wrong| wrong.until.saturating_sub(now));
        left.as_millis()
            .div_ceil(1000)
            .try_into()
            .unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_three_wrong_pins_a_user_waits_a_minute_and_then_twice_as_long_each_time() {
        let token = |serial: &str| TokenId {
            kind: "k".into(),
            manufacturer: "m".into(),
            serial: serial.into(),
        };
        let (mut wrong, one, mut now) = (WrongPins::default(), token("1"), Duration::ZERO);
        for waits in [0, 0, 60, 120, 240, 480] {
            wrong.note(7, &one, now);
            assert_eq!(wrong.wait(7, &one, now), waits);
            let over = now + Duration::from_secs(waits);
            let just_before = over.saturating_sub(Duration::from_millis(1));
            assert_eq!(wrong.wait(7, &one, just_before), u64::from(waits > 0));
            now = over;
            assert_eq!(wrong.wait(7, &one, now), 0);
        }
        wrong.note(7, &one, now);
        assert_eq!(
            (wrong.wait(8, &one, now), wrong.wait(7, &token("2"), now)),
            (0, 0)
        );
        for _ in 0..100 {
            wrong.note(7, &one, now);
        }
        assert_eq!(wrong.wait(7, &one, now), 24 * 3600);
        wrong.forget(7, &one);
        for _ in 0..3 {
            wrong.note(7, &one, now);
        }
        wrong.take_back(7, &one);
        assert_eq!(wrong.wait(7, &one, now), 0);
        wrong.note(7, &one, now);
        assert_eq!(wrong.wait(7, &one, now), 60);
        wrong.forget(7, &one);
        assert_eq!(wrong.wait(7, &one, now), 0);
    }
}
