//! What the daemon keeps of PINs, as data.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use claviger_token::{Pin, TokenId};

use super::clock::Sleep;
use super::wrong::WrongPins;
use crate::Caller;

/// What the daemon keeps.
#[derive(Default)]
pub(super) struct State {
    unlocked: HashMap<TokenId, Kept>,
    /// Whose connections gave a PIN of each token.
    holders: HashMap<TokenId, HashSet<Caller>>,
    /// The tokens that credentials were used for.
    by_credential: HashSet<TokenId>,
    /// The tokens that were locked: no credential is used for them until they are unlocked.
    locked: HashSet<TokenId>,
    /// Whether all are, but those that were unlocked since.
    all_locked: bool,
    unlocked_since: HashSet<TokenId>,
    /// How often somebody locked tokens, or the machine slept; the number of the last lock of all
    /// tokens, and of each.
    locks: u64,
    last_of_all: u64,
    last_of: HashMap<TokenId, u64>,
    present: HashMap<Caller, usize>,
    pub(super) wrong: WrongPins,
    pub(super) sleep: Sleep,
}

/// A token that was unlocked.
struct Kept {
    /// `None`: it took none.
    pin: Option<Pin>,
    until: Option<Duration>,
    /// The backends that name it.
    backends: [String; 2],
}

/// What a caller let go of.
#[derive(Default)]
pub(super) struct Released {
    /// The tokens that it had given a PIN of.
    pub(super) held: Vec<TokenId>,
    /// Those of them that nobody holds any more.
    pub(super) free: Vec<TokenId>,
}

impl State {
    pub(super) fn is_empty(&self) -> bool {
        self.unlocked.is_empty() && self.holders.is_empty() && self.by_credential.is_empty()
    }

    pub(super) fn unlocked(&self) -> impl Iterator<Item = (&TokenId, Option<Duration>)> {
        self.unlocked
            .iter()
            .map(|(token, kept)| (token, kept.until))
    }

    /// Keeps a PIN until then.
    pub(super) fn keep(
        &mut self,
        token: &TokenId,
        pin: Option<Pin>,
        until: Option<Duration>,
        backends: [String; 2],
    ) {
        self.locked.remove(token);
        self.unlocked_since.insert(token.clone());
        let kept = Kept {
            pin,
            until,
            backends,
        };
        self.unlocked.insert(token.clone(), kept);
    }

    /// No token stays unlocked longer than until then.
    pub(super) fn end_by(&mut self, latest: Duration) {
        for kept in self.unlocked.values_mut() {
            kept.until = kept.until.into_iter().chain([latest]).min();
        }
    }

    /// The number of the last lock.
    pub(super) fn locks(&self) -> u64 {
        self.locks
    }

    /// Whether the token was locked after the lock of this number.
    pub(super) fn was_locked_since(&self, then: u64, token: &TokenId) -> bool {
        let of = self.last_of.get(token).copied().unwrap_or_default();
        self.last_of_all.max(of) > then
    }

    fn note_lock(&mut self, token: Option<&TokenId>) {
        self.locks += 1;
        match token {
            Some(token) => drop(self.last_of.insert(token.clone(), self.locks)),
            None => self.last_of_all = self.locks,
        }
    }

    /// The unlocked token that the backend is known to name.
    pub(super) fn named(&self, backend: &str) -> Option<TokenId> {
        let is_its = |kept: &Kept| kept.backends.iter().any(|one| one == backend);
        let mut named = self.unlocked.iter().filter(|(_, kept)| is_its(kept));
        let (token, _) = named.next()?;
        named.next().is_none().then(|| token.clone())
    }

    pub(super) fn is_unlocked(&self, token: &TokenId) -> bool {
        self.unlocked.contains_key(token)
    }

    /// The PIN that is kept.
    pub(super) fn pin(&self, token: &TokenId) -> Option<Pin> {
        self.unlocked.get(token)?.pin.clone()
    }

    /// The PIN that is kept is not the token's any more.
    pub(super) fn drop_pin(&mut self, token: &TokenId) {
        self.unlocked.remove(token);
    }

    /// Whether a credential may be used; then it counts as a holder.
    pub(super) fn may_use_credential(&mut self, token: &TokenId) -> bool {
        let may = !self.locked.contains(token)
            && (!self.all_locked || self.unlocked_since.contains(token));
        if may {
            self.by_credential.insert(token.clone());
        }
        may
    }

    /// The caller gave the PIN; `false` if none of its connections is there any more.
    pub(super) fn hold(&mut self, caller: &Caller, token: &TokenId) -> bool {
        let is_present = self.present.contains_key(caller);
        if is_present {
            let holders = self.holders.entry(token.clone()).or_default();
            holders.insert(caller.clone());
        }
        is_present
    }

    /// The tokens of which something is kept.
    pub(super) fn held(&self) -> HashSet<TokenId> {
        let all = (self.unlocked.keys())
            .chain(self.holders.keys())
            .chain(&self.by_credential);
        all.cloned().collect()
    }

    pub(super) fn arrive(&mut self, caller: &Caller) {
        *self.present.entry(caller.clone()).or_default() += 1;
    }

    /// A connection of the caller has closed; what it lets go of, if that was its last one.
    pub(super) fn leave(&mut self, caller: &Caller) -> Option<Released> {
        let count = self.present.get_mut(caller)?;
        *count -= 1;
        if *count > 0 {
            return None;
        }
        self.present.remove(caller);
        Some(self.release(caller, None))
    }

    /// The caller lets go of one token, or of all.
    pub(super) fn release(&mut self, caller: &Caller, token: Option<&TokenId>) -> Released {
        let mut released = Released::default();
        for (held, holders) in &mut self.holders {
            if token.is_none_or(|token| token == held) && holders.remove(caller) {
                released.held.push(held.clone());
            }
        }
        self.holders.retain(|_, holders| !holders.is_empty());
        let free = released.held.iter().filter(|token| !self.is_held(token));
        released.free = free.cloned().collect();
        released
    }

    /// Those whose time is over and whom nobody holds any more.
    pub(super) fn expired(&mut self, now: Duration) -> Vec<TokenId> {
        let is_over = |kept: &Kept| kept.until.is_some_and(|until| until <= now);
        let over = self.unlocked.extract_if(|_, kept| is_over(kept));
        let over: Vec<TokenId> = over.map(|(token, _)| token).collect();
        over.into_iter()
            .filter(|token| !self.is_held(token))
            .collect()
    }

    /// Forgets everything of one token, or of all; those that were held. `is_locked`: somebody
    /// wants it to stay so.
    pub(super) fn forget(&mut self, token: Option<&TokenId>, is_locked: bool) -> Vec<TokenId> {
        let fits = |one: &TokenId| token.is_none_or(|token| token == one);
        let mut all = self.held();
        all.retain(|one| fits(one));
        if is_locked || token.is_none() {
            self.note_lock(token);
        }
        self.unlocked.retain(|one, _| !fits(one));
        self.holders.retain(|one, _| !fits(one));
        self.by_credential.retain(|one| !fits(one));
        match token {
            Some(token) if is_locked => {
                self.locked.insert(token.clone());
                self.unlocked_since.remove(token);
            }
            None if is_locked => {
                self.all_locked = true;
                self.unlocked_since.clear();
            }
            _ => {}
        }
        let mut all: Vec<TokenId> = all.into_iter().collect();
        all.sort();
        all
    }

    pub(super) fn is_held(&self, token: &TokenId) -> bool {
        self.unlocked.contains_key(token)
            || self.holders.contains_key(token)
            || self.by_credential.contains(token)
    }
}
