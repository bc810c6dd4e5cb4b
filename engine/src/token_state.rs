//! The states of a token, the transitions, and what a request gets in each state.
//!
//! A token is always in one of seven states:
//!
//! | state | meaning |
//! | --- | --- |
//! | absent | not attached, or not reachable |
//! | present | attached, not opened by this node |
//! | locked | needs something before it works: a PIN, unlocking, its app |
//! | ready | open and working |
//! | person | waits for a touch, or for an approval on its screen |
//! | blocked | its PIN is blocked after too many wrong attempts |
//! | failed | returned an error of its own |
//!
//! An event leads from the state in the first column to the one in the table:
//!
//! | | seen | gone | refused | worked | person-needed | person-done | pin-blocked | failed |
//! | --- | --- | --- | --- | --- | --- | --- | --- | --- |
//! | absent | present | absent | locked | ready | person | absent | blocked | failed |
//! | present | present | absent | locked | ready | person | present | blocked | failed |
//! | locked | locked | absent | locked | ready | person | locked | blocked | failed |
//! | ready | ready | absent | locked | ready | person | ready | blocked | failed |
//! | person | person | absent | locked | ready | person | ready | blocked | failed |
//! | blocked | blocked | absent | locked | ready | person | blocked | blocked | failed |
//! | failed | failed | absent | locked | ready | person | failed | blocked | failed |
//!
//! A state is the last observation, never a reason to refuse. Each request checks its token again,
//! without spending a PIN attempt:
//!
//! | | signing, decrypting | generating, connecting, deleting |
//! | --- | --- | --- |
//! | absent | waits for the token until the deadline, then gets *unavailable*; without a deadline, gets it at once | *unavailable* |
//! | present | opens the token, which may need the PIN, and is served | the same |
//! | locked | opens the token with the PIN of its source; a rejected PIN is not sent again | the same |
//! | ready | is served | the same |
//! | person | waits for its turn; *busy* if too many wait | the same |
//! | blocked | reads the remaining attempts, sends nothing, and gets *PIN locked* | the same |
//! | failed | opens the token again, and is served or gets the token's error | the same |

use std::fmt;

use claviger_token::{Advice, Error, Event, TokenId};
use serde::Serialize;

use crate::EngineError;

/// The state of a token; see the [tables](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenState {
    /// It is not attached, or cannot be reached.
    Absent,
    /// It is attached, and not opened by this node.
    Present,
    /// It needs something before it works: a PIN, unlocking, its app.
    Locked,
    /// It is open and working.
    Ready,
    /// It waits for a touch, or for an approval on its screen.
    Person,
    /// Its PIN is blocked after too many wrong ones.
    Blocked,
    /// It answered with an error of its own.
    Failed,
}

impl TokenState {
    /// Every state, in the order of the [tables](self).
    pub const ALL: [TokenState; 7] = [
        TokenState::Absent,
        TokenState::Present,
        TokenState::Locked,
        TokenState::Ready,
        TokenState::Person,
        TokenState::Blocked,
        TokenState::Failed,
    ];

    /// The name in the tables and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            TokenState::Absent => "absent",
            TokenState::Present => "present",
            TokenState::Locked => "locked",
            TokenState::Ready => "ready",
            TokenState::Person => "person",
            TokenState::Blocked => "blocked",
            TokenState::Failed => "failed",
        }
    }

    /// The state after something happened.
    #[must_use]
    pub fn after(self, what: Happening) -> TokenState {
        match (what, self) {
            (Happening::Seen, TokenState::Absent) => TokenState::Present,
            (Happening::Seen, other) => other,
            (Happening::Gone, _) => TokenState::Absent,
            (Happening::Refused, _) => TokenState::Locked,
            (Happening::Worked, _) | (Happening::PersonDone, TokenState::Person) => {
                TokenState::Ready
            }
            (Happening::PersonNeeded, _) => TokenState::Person,
            (Happening::PersonDone, other) => other,
            (Happening::PinBlocked, _) => TokenState::Blocked,
            (Happening::Failed, _) => TokenState::Failed,
        }
    }
}

impl fmt::Display for TokenState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An event of a token; see the [tables](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Happening {
    /// It was found among the attached tokens.
    Seen,
    /// It was not found, or no longer answers.
    Gone,
    /// It, or its driver, needs something before it can be opened.
    Refused,
    /// It was opened, or served a request.
    Worked,
    /// It waits for a person.
    PersonNeeded,
    /// It continues after that.
    PersonDone,
    /// It reported that its PIN is blocked.
    PinBlocked,
    /// It answered with an error of its own, or with a malformed reply.
    Failed,
}

impl Happening {
    /// Every event, in the order of the [tables](self).
    pub const ALL: [Happening; 8] = [
        Happening::Seen,
        Happening::Gone,
        Happening::Refused,
        Happening::Worked,
        Happening::PersonNeeded,
        Happening::PersonDone,
        Happening::PinBlocked,
        Happening::Failed,
    ];

    /// The name in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Happening::Seen => "seen",
            Happening::Gone => "gone",
            Happening::Refused => "refused",
            Happening::Worked => "worked",
            Happening::PersonNeeded => "person-needed",
            Happening::PersonDone => "person-done",
            Happening::PinBlocked => "pin-blocked",
            Happening::Failed => "failed",
        }
    }

    /// The event that an error shows; `None` if it shows none.
    pub fn shown_by(error: &Error) -> Option<Happening> {
        match error {
            Error::TokenUnavailable { .. } => Some(Happening::Gone),
            Error::PinNeeded { .. }
            | Error::PinSource { .. }
            | Error::PinLength { .. }
            | Error::PinWrong { .. }
            | Error::PinRefusedBefore { .. }
            | Error::PinUnsettled { .. }
            | Error::PinNotNoted { .. }
            | Error::PinFinalTry { .. }
            | Error::DeviceLocked { .. }
            | Error::AppNotOpen { .. }
            | Error::AppTooOld { .. } => Some(Happening::Refused),
            Error::PinLocked { .. } => Some(Happening::PinBlocked),
            Error::Device { .. } | Error::MalformedReply { .. } => Some(Happening::Failed),
            // The token works, and says no.
            Error::KeyNotFound { .. }
            | Error::KeyMismatch { .. }
            | Error::DecryptionFailed
            | Error::NotTouched { .. }
            | Error::Rejected { .. } => Some(Happening::Worked),
            _ => None,
        }
    }

    /// The event that a notification of an operation shows.
    pub(crate) fn shown_by_event(event: &Event) -> Option<(&TokenId, Happening)> {
        match event {
            Event::TouchNeeded { token } | Event::ApprovalNeeded { token } => {
                Some((token, Happening::PersonNeeded))
            }
            Event::PersonDone { token } => Some((token, Happening::PersonDone)),
            _ => None,
        }
    }
}

/// A change of a token's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TokenChange {
    /// The token.
    pub token: TokenId,
    /// The state before.
    pub before: TokenState,
    /// The state now.
    pub state: TokenState,
}

/// Whether the error means that the token is absent.
pub(crate) fn is_absence(error: &EngineError) -> bool {
    matches!(error, EngineError::Token(error)
        if error.advice() == Advice::InsertToken || matches!(error, Error::System { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of transitions above, cell by cell.
    #[test]
    fn the_table_in_the_documentation_is_what_happens() {
        let rows = include_str!("token_state.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("//! | "))
            .map(|line| line.trim_end_matches(" |").split('|').map(str::trim));
        let rows: Vec<Vec<&str>> = rows
            .map(Iterator::collect)
            .filter(|row: &Vec<&str>| row.len() == 9 && row[1] != "---")
            .collect();
        let (header, rows) = rows.split_first().unwrap();
        assert_eq!(header[1..], Happening::ALL.map(Happening::name));
        assert_eq!(rows.len(), TokenState::ALL.len());
        for (state, row) in TokenState::ALL.into_iter().zip(rows) {
            assert_eq!(row[0], state.name());
            for (what, cell) in Happening::ALL.into_iter().zip(&row[1..]) {
                assert_eq!(state.after(what).name(), *cell, "{state} {what:?}");
            }
        }
    }
}
