//! Rejected PINs: none of them is sent to its token again.
//!
//! A driver sends a PIN only in its [turn](RefusedPins::turn), in this order:
//!
//! 1. It takes its turn with the token, so that of several processes with the same wrong PIN only
//!    one sends it. It waits for its turn before it takes the device, not while it holds it
//!    ([`RefusedPins::turn_at_once`]), since two drivers may use one device.
//! 2. It reads the remaining attempts, and stops if the last one must not be spent.
//! 3. [`PinTurn::begin`] refuses a PIN that was rejected before, and otherwise records that one is
//!    being sent.
//! 4. It sends the PIN.
//! 5. [`PinTurn::end`] records the answer of the token, before anything else happens.
//!
//! If step 5 is never reached, since the process died or the token was unplugged, nobody knows
//! whether the PIN was rejected. Then the remaining attempts decide, if the token shows them, and
//! otherwise a person: see [`nothing_was_lost`] and [`PinSource::sends_unsettled`]. [`begin`] does
//! the first three steps.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

use rand_core::{OsRng, RngCore};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};

use crate::sync::lock;
use crate::{Call, Error, Pin, PinSource, TokenId, TriesLeft};

/// Remembers the PINs that tokens rejected.
pub trait RefusedPins: Send + Sync {
    /// Waits until no other user of this memory is sending a PIN to `token`, or until `call` ends.
    ///
    /// # Errors
    /// [`Error::PinNotNoted`] if the memory cannot be used, [`Error::Busy`] if another turn takes
    /// too long, [`Error::DeadlineExceeded`], [`Error::Cancelled`].
    fn turn(&self, token: &TokenId, call: &Call) -> Result<Box<dyn PinTurn + '_>, Error>;

    /// [`RefusedPins::turn`] without waiting; `None` if another user has the turn. For callers that
    /// hold a resource which that user may need, such as a card in a transaction: they release it
    /// first, and then wait.
    ///
    /// By default it returns what [`RefusedPins::turn`] returns, which is right for a memory that
    /// never waits.
    ///
    /// # Errors
    /// [`Error::PinNotNoted`].
    fn turn_at_once(&self, token: &TokenId) -> Result<Option<Box<dyn PinTurn + '_>>, Error> {
        self.turn(token, &Call::unlimited()).map(Some)
    }
}

/// A turn to send one PIN to one token. It ends when it is dropped.
pub trait PinTurn {
    /// Refuses a PIN that the token rejected before, and otherwise records that a PIN is being
    /// sent. `tries` are the remaining attempts that the token reports now.
    ///
    /// # Errors
    /// [`Error::PinRefusedBefore`], [`Error::PinUnsettled`], [`Error::PinNotNoted`]. In each
    /// case the PIN must not be sent.
    fn begin(&mut self, pin: &Pin, tries: TriesLeft) -> Result<(), Error>;

    /// [`PinTurn::begin`] for a person who has confirmed to send a PIN although the outcome of the
    /// last one is unknown.
    ///
    /// # Errors
    /// As [`PinTurn::begin`], except for [`Error::PinUnsettled`].
    fn begin_anyway(&mut self, pin: &Pin, tries: TriesLeft) -> Result<(), Error> {
        self.begin(pin, tries)
    }

    /// Records the token's verdict. Not called if no answer was received.
    ///
    /// If the record cannot be written, the state is as if no answer had been received.
    fn end(self: Box<Self>, pin: &Pin, verdict: PinVerdict);
}

/// The verdict of a token on a PIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinVerdict {
    /// The token accepted it. All records of rejected PINs are removed.
    Accepted,
    /// The token rejected it.
    Refused,
    /// The token did not check it and counted no attempt.
    NotJudged,
}

/// A PIN that is about to be sent, and where it comes from.
#[derive(Clone, Copy)]
pub struct PinAttempt<'a> {
    /// The token that is being opened, as its PIN source knows it. The PIN may be remembered under
    /// the name of another token, the one that holds the PIN.
    pub token: &'a TokenId,
    /// The PIN.
    pub pin: &'a Pin,
    /// Where it comes from.
    pub pins: &'a dyn PinSource,
    /// The token's label, for people.
    pub label: &'a str,
    /// The request.
    pub call: &'a Call,
}

/// Takes a turn with `holder`, the token under which PINs are remembered, and begins it. In the
/// turn, `tries` returns the remaining attempts, or an error if the PIN must not be sent.
///
/// If the outcome of the last PIN is unknown, the source of this one is asked whether to send it.
/// Nobody else waits for that answer.
///
/// # Errors
/// Those of [`RefusedPins::turn`], [`PinTurn::begin`], `tries` and the source. After each of them
/// the PIN must not be sent.
pub fn begin<'a>(
    memory: &'a dyn RefusedPins,
    holder: &TokenId,
    asked: &PinAttempt<'_>,
    mut tries: impl FnMut() -> Result<TriesLeft, Error>,
) -> Result<Box<dyn PinTurn + 'a>, Error> {
    let mut turn = memory.turn(holder, asked.call)?;
    match turn.begin(asked.pin, tries()?) {
        Ok(()) => return Ok(turn),
        Err(unsettled @ Error::PinUnsettled { .. }) => {
            drop(turn);
            let PinAttempt {
                token, label, call, ..
            } = *asked;
            if !asked.pins.sends_unsettled(token, label, call)? {
                return Err(unsettled);
            }
        }
        Err(other) => return Err(other),
    }
    let mut turn = memory.turn(holder, asked.call)?;
    turn.begin_anyway(asked.pin, tries()?)?;
    Ok(turn)
}

/// Whether a PIN whose answer was not received cost no attempt: `before` attempts remained when it
/// was sent, and `now` remain. An accepted PIN resets the counter, so a counter that has not
/// decreased shows that no PIN was rejected.
pub fn nothing_was_lost(before: Option<u8>, now: TriesLeft) -> bool {
    match (before, now) {
        (_, TriesLeft::All) => true,
        (Some(before), TriesLeft::Exactly(now)) => now >= before,
        _ => false,
    }
}

/// Remembers rejected PINs as long as the process lives.
pub struct RefusedInProcess {
    traces: Mutex<HashMap<TokenId, HashSet<[u8; 32]>>>,
    /// Random, so that a hash is useless elsewhere.
    salt: [u8; 32],
}

impl RefusedInProcess {
    /// The memory that the process shares.
    pub fn shared() -> Arc<Self> {
        static SHARED: LazyLock<Arc<RefusedInProcess>> = LazyLock::new(Arc::default);
        Arc::clone(&SHARED)
    }

    fn traces(&self) -> MutexGuard<'_, HashMap<TokenId, HashSet<[u8; 32]>>> {
        // Whole at every moment, so a panic elsewhere does not matter.
        lock(&self.traces)
    }

    fn trace(&self, pin: &Pin) -> [u8; 32] {
        Sha256::new_with_prefix(self.salt)
            .chain_update(pin.expose_secret())
            .finalize()
            .into()
    }
}

impl Default for RefusedInProcess {
    /// A separate, empty memory.
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
    fn turn(&self, token: &TokenId, _: &Call) -> Result<Box<dyn PinTurn + '_>, Error> {
        Ok(Box::new(TurnInProcess {
            memory: self,
            token: token.clone(),
        }))
    }
}

/// Within a process the driver opens a token only once at a time.
struct TurnInProcess<'a> {
    memory: &'a RefusedInProcess,
    token: TokenId,
}

impl PinTurn for TurnInProcess<'_> {
    fn begin(&mut self, pin: &Pin, _: TriesLeft) -> Result<(), Error> {
        let trace = self.memory.trace(pin);
        match self.memory.traces().get(&self.token) {
            Some(refused) if refused.contains(&trace) => Err(Error::PinRefusedBefore {
                token: self.token.clone(),
            }),
            _ => Ok(()),
        }
    }

    fn end(self: Box<Self>, pin: &Pin, verdict: PinVerdict) {
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
        let [wrong, right] = ["135791", "246802"].map(Pin::from);
        let begin = |serial: &str, pin: &Pin| {
            let mut turn = memory.turn(&token(serial), &Call::unlimited()).unwrap();
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

    /// Of one PIN it is not known what became of it.
    struct Unsettled(Mutex<Vec<&'static str>>);

    struct UnsettledTurn<'a>(&'a Unsettled);

    impl RefusedPins for Unsettled {
        fn turn(&self, _: &TokenId, _: &Call) -> Result<Box<dyn PinTurn + '_>, Error> {
            self.0.lock().unwrap().push("turn");
            Ok(Box::new(UnsettledTurn(self)))
        }
    }

    impl PinTurn for UnsettledTurn<'_> {
        fn begin(&mut self, _: &Pin, _: TriesLeft) -> Result<(), Error> {
            let token = token("holder");
            Err(Error::PinUnsettled { token })
        }

        fn begin_anyway(&mut self, _: &Pin, _: TriesLeft) -> Result<(), Error> {
            self.0.0.lock().unwrap().push("begun");
            Ok(())
        }

        fn end(self: Box<Self>, _: &Pin, _: PinVerdict) {}
    }

    impl Drop for UnsettledTurn<'_> {
        fn drop(&mut self) {
            self.0.0.lock().unwrap().push("over");
        }
    }

    /// A person who types PINs and is asked whether to send them.
    struct Person<'a>(&'a Unsettled, bool);

    impl PinSource for Person<'_> {
        fn pin(&self, _: &TokenId, _: &str, _: &Call) -> Result<Pin, Error> {
            Ok(Pin::from("246802"))
        }

        fn sends_unsettled(&self, of: &TokenId, label: &str, _: &Call) -> Result<bool, Error> {
            assert_eq!((of, label), (&token("1"), "label"));
            self.0.0.lock().unwrap().push("asked");
            Ok(self.1)
        }
    }

    #[test]
    fn of_a_pin_that_is_not_settled_the_person_is_asked_while_nobody_waits() {
        let (pin, call) = (Pin::from("246802"), Call::unlimited());
        let begin = |pins: &dyn PinSource, memory: &Unsettled| {
            let label = "label";
            let asked = PinAttempt {
                token: &token("1"),
                pin: &pin,
                pins,
                label,
                call: &call,
            };
            let tries = || Ok(TriesLeft::Unknown);
            begin(memory, &token("holder"), &asked, tries).map(drop)
        };
        let happened = |yes: bool| {
            let memory = Unsettled(Mutex::default());
            let begun = begin(&Person(&memory, yes), &memory);
            assert_eq!(begun.is_ok(), yes, "{begun:?}");
            memory.0.into_inner().unwrap()
        };
        assert_eq!(happened(false), ["turn", "over", "asked"]);
        assert_eq!(
            happened(true),
            ["turn", "over", "asked", "turn", "begun", "over"]
        );
        // A PIN from a file is sent by nobody's decision.
        let memory = Unsettled(Mutex::default());
        let begun = begin(&crate::FixedPin::new("246802"), &memory);
        assert!(
            matches!(begun, Err(Error::PinUnsettled { .. })),
            "{begun:?}"
        );
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
