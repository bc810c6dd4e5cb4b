//! `ssh-add -x` and `-X`: an agent that signs nothing until its passphrase comes again.
//!
//! A lock is for all connections of a user. The passphrase is kept as a salted hash, in memory only.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use claviger_token::sync::lock;
use rand_core::{OsRng, RngCore};
use subtle::ConstantTimeEq;
use tokio::task::spawn_blocking;

use crate::messages::Passphrase;

/// So many wrong passphrases cost no time.
const FREE: u32 = 3;

/// The longest time for which no passphrase is taken after a wrong one.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The cost of a hash: N = 2^14, r = 8, p = 1 takes 16 MiB and some tens of milliseconds.
const COST: u8 = 14;

/// The locks of all users.
#[derive(Default)]
pub(crate) struct Locks(Mutex<HashMap<u32, Locked>>);

#[derive(Clone)]
struct Locked {
    salt: [u8; 16],
    hash: [u8; 32],
    wrong: u32,
    /// Until then no passphrase is compared.
    closed_until: Instant,
}

/// What came of an attempt to unlock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unlocked {
    Yes,
    NotLocked,
    Wrong,
    TooSoon,
}

impl Locks {
    pub(crate) fn is_locked(&self, uid: u32) -> bool {
        lock(&self.0).contains_key(&uid)
    }

    /// Locks, unless it is locked already. Whether it did.
    pub(crate) async fn lock(&self, uid: u32, passphrase: Passphrase) -> bool {
        if self.is_locked(uid) {
            return false;
        }
        let mut salt = [0; 16];
        OsRng.fill_bytes(&mut salt);
        let Some(hash) = hashed(passphrase, salt).await else {
            return false;
        };
        let mut locks = lock(&self.0);
        let is_new = !locks.contains_key(&uid);
        locks.entry(uid).or_insert(Locked {
            salt,
            hash,
            wrong: 0,
            closed_until: Instant::now(),
        });
        is_new
    }

    pub(crate) async fn unlock(&self, uid: u32, passphrase: Passphrase) -> Unlocked {
        let locked = {
            let mut locks = lock(&self.0);
            let Some(locked) = locks.get_mut(&uid) else {
                return Unlocked::NotLocked;
            };
            let now = Instant::now();
            if now < locked.closed_until {
                return Unlocked::TooSoon;
            }
            // It counts before it is compared: several at once are no way around the wait.
            locked.wrong = locked.wrong.saturating_add(1);
            locked.closed_until = now + wait_after(locked.wrong);
            locked.clone()
        };
        let hash = hashed(passphrase, locked.salt).await;
        if !hash.is_some_and(|hash| bool::from(hash.ct_eq(&locked.hash))) {
            return Unlocked::Wrong;
        }
        let mut locks = lock(&self.0);
        // Another one may have unlocked it, and a third one locked it again.
        if (locks.get(&uid)).is_some_and(|now| now.salt == locked.salt) {
            locks.remove(&uid);
        }
        Unlocked::Yes
    }
}

/// One second after the last free one, and doubling.
fn wait_after(wrong: u32) -> Duration {
    match wrong.checked_sub(FREE) {
        None => Duration::ZERO,
        Some(more) => Duration::from_secs(1 << more.min(10)).min(LONGEST_WAIT),
    }
}

async fn hashed(passphrase: Passphrase, salt: [u8; 16]) -> Option<[u8; 32]> {
    let hash = spawn_blocking(move || {
        let params = scrypt::Params::new(COST, 8, 1, 32).ok()?;
        let mut hash = [0; 32];
        scrypt::scrypt(&passphrase.0, &salt, &params, &mut hash).ok()?;
        Some(hash)
    });
    hash.await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    fn words(text: &str) -> Passphrase {
        Passphrase(Zeroizing::new(text.as_bytes().to_vec()))
    }

    #[tokio::test]
    async fn only_the_same_passphrase_unlocks_and_only_its_own_user() {
        let locks = Locks::default();
        assert_eq!(locks.unlock(1, words("a")).await, Unlocked::NotLocked);
        assert!(locks.lock(1, words("a")).await);
        assert!(!locks.lock(1, words("b")).await, "a lock is not replaced");
        assert!(locks.is_locked(1) && !locks.is_locked(2));
        assert_eq!(locks.unlock(2, words("a")).await, Unlocked::NotLocked);
        assert_eq!(locks.unlock(1, words("b")).await, Unlocked::Wrong);
        assert_eq!(locks.unlock(1, words("a")).await, Unlocked::Yes);
        assert!(!locks.is_locked(1));
    }

    #[tokio::test]
    async fn guesses_take_longer_and_longer() {
        let locks = Locks::default();
        assert!(locks.lock(1, words("a")).await);
        for _ in 0..FREE {
            assert_eq!(locks.unlock(1, words("b")).await, Unlocked::Wrong);
        }
        // It may have taken longer than the wait: then it is as if somebody had waited.
        let then = lock(&locks.0).get(&1).map(|locked| locked.closed_until);
        let right = locks.unlock(1, words("a")).await;
        assert!(right == Unlocked::TooSoon || then.is_some_and(|then| then <= Instant::now()));
        let waits = [1, 2, 3, 4, 5, 8, 9, 40].map(|wrong| wait_after(wrong).as_secs());
        assert_eq!(waits, [0, 0, 1, 2, 4, 32, 60, 60]);
    }
}
