//! The PIN that a token accepted, and who else showed that they have it.
//!
//! A second login to a PKCS#11 token succeeds with any PIN, and on a smartcard a wrong one costs an
//! attempt. So while a token is open, a further PIN is compared with the one that was accepted,
//! and sent to nobody.
//!
//! What is kept is the PIN itself, no hash of it: the driver has it anyway, to log in again, and
//! clones of a [`Pin`] are one piece of locked memory. Whoever can read that memory finds a PIN of
//! six digits by any hash of it, too. It is kept as long as the token is open.

use std::sync::{Mutex, MutexGuard};

use claviger_token::Pin;
use claviger_token::sync::lock;
use rand_core::{OsRng, RngCore};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The PIN that a token accepted; `W` are those who show that they have it.
pub(crate) struct Accepted<W>(Mutex<State<W>>);

struct State<W> {
    pin: Option<Pin>,
    /// Who gave the same PIN.
    shown_by: Vec<W>,
}

impl<W> Default for Accepted<W> {
    fn default() -> Self {
        Accepted(Mutex::new(State {
            pin: None,
            shown_by: Vec::new(),
        }))
    }
}

impl<W: PartialEq> Accepted<W> {
    /// The token accepted this PIN just now.
    pub(crate) fn put(&self, pin: Pin) {
        let mut state = self.state();
        let is_known = state.pin.as_ref().is_some_and(|known| is_same(known, &pin));
        if !is_known {
            state.shown_by.clear();
        }
        state.pin = Some(pin);
    }

    /// Whether there is a PIN to compare with.
    pub(crate) fn is_known(&self) -> bool {
        self.state().pin.is_some()
    }

    /// Whether `pin` is the one that the token accepted; then `who` showed that they have it.
    /// `None`: there is none.
    pub(crate) fn compare(&self, who: W, pin: &Pin) -> Option<bool> {
        let mut state = self.state();
        let same = is_same(state.pin.as_ref()?, pin);
        if same && !state.shown_by.contains(&who) {
            state.shown_by.push(who);
        }
        Some(same)
    }

    /// Whether `who` showed that they have it.
    pub(crate) fn was_shown_by(&self, who: &W) -> bool {
        self.state().shown_by.contains(who)
    }

    /// What `who` showed does not count any more.
    pub(crate) fn forget(&self, who: &W) {
        self.state().shown_by.retain(|other| other != who);
    }

    fn state(&self) -> MutexGuard<'_, State<W>> {
        lock(&self.0)
    }
}

/// Compares digests under a random key, so that the time tells neither where two PINs begin to
/// differ nor how long they are.
fn is_same(one: &Pin, other: &Pin) -> bool {
    let mut key = [0; 32];
    OsRng.fill_bytes(&mut key);
    let digest = |pin: &Pin| {
        Sha256::new_with_prefix(key)
            .chain_update(pin.expose_secret())
            .finalize()
    };
    digest(one).ct_eq(&digest(other)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gives_the_accepted_pin_is_known_until_another_one_is_accepted_or_they_are_forgotten() {
        let accepted = Accepted::default();
        assert_eq!(accepted.compare("bob", &Pin::from("1111")), None);
        accepted.put(Pin::from("1111"));
        for wrong in ["", "111", "11111", "1112"] {
            assert_eq!(accepted.compare("bob", &Pin::from(wrong)), Some(false));
        }
        assert!(!accepted.was_shown_by(&"bob"));
        for who in ["bob", "carol"] {
            assert_eq!(accepted.compare(who, &Pin::from("1111")), Some(true));
        }
        // The token was logged in to again by the same PIN.
        accepted.put(Pin::from("1111"));
        assert!(accepted.was_shown_by(&"bob") && accepted.was_shown_by(&"carol"));
        accepted.forget(&"bob");
        assert!(!accepted.was_shown_by(&"bob") && accepted.was_shown_by(&"carol"));
        accepted.put(Pin::from("2222"));
        assert!(!accepted.was_shown_by(&"carol"));
    }
}
