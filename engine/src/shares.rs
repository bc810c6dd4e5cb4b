//! What each caller may have waiting for a token.
//!
//! A token's queue is for all callers. One that floods it must leave places for others, and so must
//! several that do. So a caller whose requests come through a view may take three quarters of what
//! the others leave: of 256 places the first one takes 192, the next one 48, then 12, then 3, so that
//! the fifth still has one. What the program asks for itself may take all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use claviger_token::sync::lock;

/// The places of one queue, and who has taken them.
pub(crate) struct Shares {
    most: usize,
    taken: Mutex<HashMap<Option<u32>, usize>>,
}

/// A place, as long as it lives.
pub(crate) struct Place {
    shares: Arc<Shares>,
    caller: Option<u32>,
}

impl Shares {
    /// So many places.
    pub(crate) fn of(most: usize) -> Arc<Self> {
        Arc::new(Shares {
            most,
            taken: Mutex::default(),
        })
    }

    /// How many places are taken.
    pub(crate) fn taken(&self) -> usize {
        lock(&self.taken).values().sum()
    }

    /// A place for a caller, who is a user, or for the program itself; `None` if it has its share.
    pub(crate) fn take(self: &Arc<Self>, caller: Option<u32>) -> Option<Place> {
        let mut taken = lock(&self.taken);
        let all: usize = taken.values().sum();
        let own = taken.get(&caller).copied().unwrap_or_default();
        let left_by_others = self.most.saturating_sub(all - own);
        let has_room = match caller {
            Some(_) => 4 * own < 3 * left_by_others,
            None => own < left_by_others,
        };
        if !has_room {
            return None;
        }
        *taken.entry(caller).or_default() += 1;
        drop(taken);
        Some(Place {
            shares: Arc::clone(self),
            caller,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.shares.taken);
        if let Some(own) = taken.get_mut(&self.caller) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flood(shares: &Arc<Shares>, caller: Option<u32>) -> Vec<Place> {
        std::iter::from_fn(|| shares.take(caller)).collect()
    }

    #[test]
    fn who_floods_a_queue_leaves_places_for_those_who_come_later() {
        let shares = Shares::of(256);
        let floods: Vec<Vec<Place>> = (1..=5).map(|uid| flood(&shares, Some(uid))).collect();
        let taken: Vec<usize> = floods.iter().map(Vec::len).collect();
        assert_eq!(taken, [192, 48, 12, 3, 1]);
        drop(floods);
        assert_eq!(flood(&shares, Some(9)).len(), 192);
        assert!(lock(&shares.taken).is_empty());
    }

    #[test]
    fn the_program_itself_may_take_what_is_free() {
        let shares = Shares::of(256);
        let others = flood(&shares, Some(1));
        let own = flood(&shares, None);
        assert_eq!((others.len(), own.len()), (192, 64));
        assert!(shares.take(Some(2)).is_none() && shares.take(None).is_none());
        drop(others);
        assert_eq!(flood(&shares, None).len(), 192);
    }
}
