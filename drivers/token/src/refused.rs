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

/// Remembers the PINs that tokens refused.
pub trait RefusedPins: Send + Sync {
    /// Waits until nobody who shares this memory is sending a PIN to `token`, or until `call`
    /// is over.
    ///
    /// # Errors
    /// [`Error::PinNotNoted`] where the memory cannot be used, [`Error::Busy`] where
    /// somebody else's turn takes too long, [`Error::DeadlineExceeded`], [`Error::Cancelled`].
    fn turn(&self, token: &TokenId, call: &Call) -> Result<Box<dyn PinTurn + '_>, Error>;

    /// [`RefusedPins::turn`] without waiting; `None` where somebody else has the turn. For who
    /// holds what they may need, as a card is held in a transaction: it is let go first, and
    /// the turn is waited for without it.
    ///
    /// By default what [`RefusedPins::turn`] gives, which is right where nobody ever waits.
    ///
    /// # Errors
    /// [`Error::PinNotNoted`].
    fn turn_at_once(&self, token: &TokenId) -> Result<Option<Box<dyn PinTurn + '_>>, Error> {
        self.turn(token, &Call::unlimited()).map(Some)
    }
}

/// A turn at sending one PIN to one token. It ends when it is dropped.
pub trait PinTurn {
    /// Says no to a PIN that the token refused before, and else writes down that one is
    /// being sent. `tries` is what the token says at this moment.
    ///
    /// # Errors
    /// [`Error::PinRefusedBefore`], [`Error::PinUnsettled`], [`Error::PinNotNoted`]. In each
    /// case the PIN must not be sent.
    fn begin(&mut self, pin: &Pin, tries: TriesLeft) -> Result<(), Error>;

    /// [`PinTurn::begin`] for a person who knows that it is not known what became of the last
    /// PIN, and takes that risk.
    ///
    /// # Errors
    /// As [`PinTurn::begin`], save for [`Error::PinUnsettled`].
    fn begin_anyway(&mut self, pin: &Pin, tries: TriesLeft) -> Result<(), Error> {
        self.begin(pin, tries)
    }

    /// Writes down what the token made of the PIN. To be left out where no answer came.
    ///
    /// If it cannot be written, it stays as if no answer had come.
    fn end(self: Box<Self>, pin: &Pin, verdict: PinVerdict);
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

/// A PIN, and who was asked for it.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// The token that is being opened, as its PIN's source knows it. What was sent may be
    /// remembered under the name of what holds the PIN.
    pub token: &'a TokenId,
    /// The PIN.
    pub pin: &'a Pin,
    /// Where it comes from.
    pub pins: &'a dyn PinSource,
    /// The token's label, by which a person knows it.
    pub label: &'a str,
    /// For whose request.
    pub call: &'a Call,
}

/// Takes a turn with `holder`, under whose name PINs are remembered, and begins it. `tries` says
/// in the turn how many tries are left, and refuses where the PIN must not be sent.
///
/// Where it is not known what became of the last PIN, the source of this one is asked whether
/// to send it; nobody else has to wait for the answer.
///
/// # Errors
/// Those of [`RefusedPins::turn`], [`PinTurn::begin`], `tries` and the source. In each case
/// the PIN must not be sent.
pub fn begin<'a>(
    memory: &'a dyn RefusedPins,
    holder: &TokenId,
    asked: &Asked<'_>,
    mut tries: impl FnMut() -> Result<TriesLeft, Error>,
) -> Result<Box<dyn PinTurn + 'a>, Error> {
    let mut turn = memory.turn(holder, asked.call)?;
    match turn.begin(asked.pin, tries()?) {
        Ok(()) => return Ok(turn),
        Err(unsettled @ Error::PinUnsettled { .. }) => {
            drop(turn);
            let Asked {
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
    fn turn(&self, token: &TokenId, _: &Call) -> Result<Box<dyn PinTurn + '_>, Error> {
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
            let asked = Asked {
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
