//! When a request is made again.

use std::time::{Duration, Instant};

use crate::error::Error;

/// The pause before a daemon that went away is looked for again, at first and at most.
const FIRST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_millis(100);

/// Why there is no answer.
pub(crate) enum Failed {
    /// The daemon did not begin, so it may be asked again.
    NotBegun(Error),
    /// That is the outcome.
    Finally(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        match error.may_pass() {
            true => Failed::NotBegun(error),
            false => Failed::Finally(error),
        }
    }
}

/// The pauses between the attempts of one request.
pub(crate) struct Pause {
    patience: Duration,
    limit: Option<Instant>,
    next: Duration,
}

impl Pause {
    pub(crate) fn new(patience: Duration) -> Pause {
        Pause {
            patience,
            limit: None,
            next: FIRST,
        }
    }

    /// How long to wait after this error.
    ///
    /// # Errors
    /// The error, if it is the last one.
    pub(crate) fn next(&mut self, error: Error, until: Option<Instant>) -> Result<Duration, Error> {
        let now = Instant::now();
        let patience = self.patience;
        let limit = *self.limit.get_or_insert_with(|| now + patience);
        let limit = until.map_or(limit, |until| until.min(limit));
        if !error.may_pass() || now >= limit {
            return Err(error);
        }
        let pause = self.next.min(limit - now);
        self.next = (2 * self.next).min(LONGEST);
        Ok(pause)
    }
}

/// What is left until then, as a frame says it: 0 is without limit.
pub(crate) fn milliseconds(until: Option<Instant>) -> u32 {
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    left.map_or(0, |left| {
        // Deadlines of more than 49 days are as good as that.
        u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1)
    })
}
