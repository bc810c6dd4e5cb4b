//! How many refusals have a line of their own: whoever is granted nothing must not be able to fill
//! the disk, since no key is used when nothing can be written.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::Caller;

/// So many lines a user has in each period; then refusals are counted.
const LINES: u32 = 20;
const PERIOD: Duration = Duration::from_secs(1);

/// What was refused lately, by user.
#[derive(Default)]
pub(super) struct Refusals(HashMap<u32, Refused>);

struct Refused {
    since: Instant,
    lines: u32,
    counted: u64,
    last: Caller,
}

impl Refusals {
    /// Whether one more has a line of its own. Else it is counted.
    pub(super) fn has_line(&mut self, caller: &Caller, now: Instant) -> bool {
        let refused = self.0.entry(caller.uid).or_insert_with(|| Refused {
            since: now,
            lines: 0,
            counted: 0,
            last: caller.clone(),
        });
        if refused.lines < LINES {
            refused.lines += 1;
            return true;
        }
        refused.counted += 1;
        refused.last = caller.clone();
        false
    }

    /// Ends the periods that are over, or all: who was refused last in each, and how many were
    /// counted.
    pub(super) fn end(&mut self, now: Option<Instant>) -> Vec<(Caller, u64)> {
        let is_over = |_: &u32, refused: &mut Refused| {
            now.is_none_or(|now| now.saturating_duration_since(refused.since) >= PERIOD)
        };
        let over = self.0.extract_if(is_over);
        over.filter(|(_, refused)| refused.counted > 0)
            .map(|(_, refused)| (refused.last, refused.counted))
            .collect()
    }
}
