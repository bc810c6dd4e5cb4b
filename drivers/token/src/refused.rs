//! Which PINs were refused: none of them is sent to that token again.
//!
//! A driver sends no PIN but in its [turn](RefusedPins::turn), and does so in this order:
//!
//! 1. it takes its turn with the token, so that of several who have the same wrong PIN one
//!    sends it;
//! 2. it reads how many tries the token has left, and stops where the last is not to be
//!    risked;
//! 3. [`PinTurn::begin`] says no to a PIN that was refused before, and else writes down
//!    that one is being sent;
//! 4. it sends the PIN;
//! 5. [`PinTurn::end`] writes down what the token made of it, before anything else happens.
//!
//! If the fifth is never reached, since the process died or the token was pulled out, it is
//! not known whether the PIN was refused. Then the tries that are left decide, where the
//! token tells them, and else an operator: see [`nothing_was_lost`].

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use rand_core::{OsRng, RngCore};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::{Error, TokenId, TriesLeft};

/// Remembers the PINs that tokens refused.
pub trait RefusedPins: Send + Sync {
    /// Waits until nobody who shares this memory is sending a PIN to `token`.
    ///
    /// # Errors
    /// [`Error::PinNotNoted`] where the memory cannot be used, [`Error::Busy`] where
    /// somebody else's turn takes too long.
    fn turn(&self, token: &TokenId) -> Result<Box<dyn PinTurn + '_>, Error>;
}

/// A turn at sending one PIN to one token. It ends when it is dropped.
pub trait PinTurn {
    /// Says no to a PIN that the token refused before, and else writes down that one is
    /// being sent. `tries` is what the token says at this moment.
    ///
    /// # Errors
    /// [`Error::PinRefusedBefore`], [`Error::PinUnsettled`], [`Error::PinNotNoted`]. In each
    /// case the PIN must not be sent.
    fn begin(&mut self, pin: &SecretString, tries: TriesLeft) -> Result<(), Error>;

    /// Writes down what the token made of the PIN. To be left out where no answer came.
    ///
    /// If it cannot be written, it stays as if no answer had come.
    fn end(self: Box<Self>, pin: &SecretString, verdict: PinVerdict);
}

/// What a token made of a PIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinVerdict {
    /// It is the right one. All that was refused before is forgotten.
    Accepted,
    /// It is a wrong one.
    Refused,
    /// The token did not look at it, and counted nothing.
    NotJudged,
}

/// Whether a PIN that was sent when the token had `before` tries left, and whose answer
/// never came, cost no try, as far as `now` shows. A PIN that is accepted sets the count to
/// its highest, so what has not become less was not refused.
pub fn nothing_was_lost(before: Option<u8>, now: TriesLeft) -> bool {
    match (before, now) {
        (_, TriesLeft::All) => true,
        (Some(before), TriesLeft::Exactly(now)) => now >= before,
        _ => false,
    }
}

/// Remembers refused PINs as long as the process lives.
pub struct RefusedInProcess {
    traces: Mutex<HashMap<TokenId, HashSet<[u8; 32]>>>,
    /// Random, so that a trace is worth nothing elsewhere.
    salt: [u8; 32],
}

impl RefusedInProcess {
    /// The memory that all in this process share who have no better one.
    pub fn shared() -> Arc<Self> {
        static SHARED: LazyLock<Arc<RefusedInProcess>> = LazyLock::new(Arc::default);
        Arc::clone(&SHARED)
    }

    fn traces(&self) -> MutexGuard<'_, HashMap<TokenId, HashSet<[u8; 32]>>> {
        // Whole at every moment, so a panic elsewhere does not matter.
        self.traces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trace(&self, pin: &SecretString) -> [u8; 32] {
        Sha256::new_with_prefix(self.salt)
            .chain_update(pin.expose_secret())
            .finalize()
            .into()
    }
}

impl Default for RefusedInProcess {
    /// A memory of its own, which is empty.
    fn default() -> Self {
        let mut salt = [0; 32];
        OsRng.fill_bytes(&mut salt);
        RefusedInProcess {
            traces: Mutex::default(),
            salt,
        }
    }
}

impl RefusedPins for RefusedInProcess {
    fn turn(&self, token: &TokenId) -> Result<Box<dyn PinTurn + '_>, Error> {
        Ok(Box::new(TurnInProcess {
            memory: self,
            token: token.clone(),
        }))
    }
}

/// Within a process the driver itself opens a token once at a time.
struct TurnInProcess<'a> {
    memory: &'a RefusedInProcess,
    token: TokenId,
}

impl PinTurn for TurnInProcess<'_> {
    fn begin(&mut self, pin: &SecretString, _: TriesLeft) -> Result<(), Error> {
        let trace = self.memory.trace(pin);
        match self.memory.traces().get(&self.token) {
            Some(refused) if refused.contains(&trace) => Err(Error::PinRefusedBefore {
                token: self.token.clone(),
            }),
            _ => Ok(()),
        }
    }

    fn end(self: Box<Self>, pin: &SecretString, verdict: PinVerdict) {
        let trace = self.memory.trace(pin);
        let mut traces = self.memory.traces();
        match verdict {
            PinVerdict::Accepted => drop(traces.remove(&self.token)),
            PinVerdict::Refused => drop(traces.entry(self.token).or_default().insert(trace)),
            PinVerdict::NotJudged => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(serial: &str) -> TokenId {
        TokenId {
            kind: "k".into(),
            manufacturer: "m".into(),
            serial: serial.into(),
        }
    }

    #[test]
    fn a_refused_pin_is_refused_for_its_token_until_another_is_accepted() {
        let memory = RefusedInProcess::default();
        let [wrong, right] = ["135791", "246802"].map(SecretString::from);
        let begin = |serial: &str, pin: &SecretString| {
            let mut turn = memory.turn(&token(serial)).unwrap();
            turn.begin(pin, TriesLeft::Unknown).map(|()| turn)
        };
        begin("1", &wrong).unwrap().end(&wrong, PinVerdict::Refused);
        assert!(matches!(
            begin("1", &wrong),
            Err(Error::PinRefusedBefore { .. })
        ));
        assert!(begin("2", &wrong).is_ok());
        let turn = begin("1", &right).unwrap();
        turn.end(&right, PinVerdict::Accepted);
        assert!(begin("1", &wrong).is_ok());
    }

    #[test]
    fn only_a_count_that_is_shown_and_did_not_fall_says_that_nothing_was_lost() {
        use TriesLeft::{All, Exactly, Final, Low, Unknown};
        for (before, now) in [(Some(3), Exactly(3)), (Some(2), Exactly(3)), (None, All)] {
            assert!(nothing_was_lost(before, now), "{before:?} {now:?}");
        }
        for (before, now) in [
            (Some(3), Exactly(2)),
            (Some(3), Unknown),
            (None, Exactly(3)),
            (None, Unknown),
            (None, Low),
            (None, Final),
        ] {
            assert!(!nothing_was_lost(before, now), "{before:?} {now:?}");
        }
    }
}
