//! Where the tokens of a module were last attached, and which are missing.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use claviger_token::TokenId;
use claviger_token::sync::lock;
use cryptoki::slot::{Slot, TokenInfo};

use crate::trouble::{Patience, Trouble};

/// A token's name and label.
type Name = (TokenId, String);

/// Where tokens were seen last.
#[derive(Default)]
pub(crate) struct LastSlots {
    slots: Mutex<HashMap<Name, Slot>>,
    missed: Mutex<Option<Missed>>,
}

/// Tokens that were seen and are not there.
struct Missed {
    names: HashSet<Name>,
    /// When they were looked for last, and how long they are not.
    trouble: Trouble,
}

impl LastSlots {
    /// Notes in which slot a token was seen; `None` where that does not tell it from its twin.
    pub(crate) fn note(&self, token: TokenId, label: &str, slot: Option<Slot>) {
        let mut slots = lock(&self.slots);
        let name = (token, label.to_owned());
        match slot {
            Some(slot) => drop(slots.insert(name, slot)),
            None => drop(slots.remove(&name)),
        }
    }

    /// Whether one that was seen is not among those that are `there`, and it is time to look
    /// for it. It may be gone for good, so it is looked for slower and slower.
    pub(crate) fn is_to_be_looked_for(&self, there: &[(Slot, TokenInfo)]) -> bool {
        let names = self.missing(there);
        let mut missed = lock(&self.missed);
        let before = missed
            .take()
            .filter(|before| names.is_subset(&before.names));
        if names.is_empty() {
            return false;
        }
        let before = before.map(|before| before.trouble);
        let early = (before.as_ref()).is_some_and(|early| early.is_too_early(Patience::Slower));
        let trouble = match before {
            Some(early_still) if early => early_still,
            before => Trouble::after(before.as_ref(), None),
        };
        *missed = Some(Missed { names, trouble });
        !early
    }

    fn missing(&self, there: &[(Slot, TokenInfo)]) -> HashSet<Name> {
        let mut slots = lock(&self.slots);
        // With another in its place it is not the module that does not see it.
        slots.retain(|(_, label), slot| {
            let mut there = there.iter();
            let now = there.find(|(at, _)| at == slot);
            now.is_none_or(|(_, token)| token.label() == label)
        });
        let is_there = |slot: &Slot| there.iter().any(|(at, _)| at == slot);
        let missing = slots.iter().filter(|(_, slot)| !is_there(slot));
        missing.map(|(name, _)| name.clone()).collect()
    }
}
