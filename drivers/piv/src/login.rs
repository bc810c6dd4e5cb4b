//! Logging in: asks for the PIN and sends it. The card is released while the source is asked.

use std::sync::Arc;
use std::time::Duration;

use claviger_token::sync::lock;
use claviger_token::{Access, Call, Error, Pin};
use secrecy::ExposeSecret;

use crate::asking::Asking;
use crate::connection::{Connection, How};
use crate::content::inspect;
use crate::error::{Fault, told};
use crate::policy::PinPolicy;
use crate::session::Session;
use crate::slot::Slot;

/// The lengths of a PIN in bytes (SP 800-73-4 part 2, §2.4.3).
const PIN_LENGTH: std::ops::RangeInclusive<usize> = 6..=8;
/// The PIN with which cards are delivered. Public knowledge.
const DEFAULT_PIN: &str = "123456";
/// How long a PIN is waited for with the card held. A source that is not a person answers
/// at once; then the card need not be selected a second time.
const AT_ONCE: Duration = Duration::from_millis(25);

/// A PIN that is being asked for.
#[derive(Default)]
pub(crate) struct Asked {
    asking: Option<Asking>,
}

impl Connection {
    /// Whether it has a PIN that the card accepted.
    ///
    /// # Errors
    /// What [`Call::check`] says: who is at the card is waited for.
    pub(crate) fn is_logged_in(&self, call: &Call) -> Result<bool, Error> {
        Ok(call.lock(&self.state)?.pin.is_some())
    }

    /// Asks for the PIN and gives it to the card, if that risks nothing.
    pub(crate) fn log_in(&self, call: &Call) -> Result<(), Error> {
        let mut asked = Asked::default();
        let turns = (&*call.access().refused_pins, None);
        let begun = self.run_in_turn(call, How::LOGIN, turns, |session| {
            self.begin_login(session, call, &mut asked)
        });
        self.end_login(begun, call, asked)
    }

    /// Begins to ask for the PIN once it is known that the card may take one, and gives it
    /// to the card if it is there at once, and nobody else is giving one. A person may take
    /// their time; they are waited for outside of the transaction. `true`: it is done.
    pub(crate) fn begin_login(
        &self,
        session: &mut Session<'_>,
        call: &Call,
        asked: &mut Asked,
    ) -> Result<bool, Fault> {
        let access = call.access();
        let tries = session.check_tries(access.last_try)?;
        let asking = asked
            .asking
            .get_or_insert_with(|| Asking::begin(self.id(), tries, call));
        let Some(answer) = asking.within(AT_ONCE) else {
            return Ok(false);
        };
        let pin = self.checked(answer, access, session)?;
        session.tries = Some(tries);
        match session.give_pin(&pin, access.last_try) {
            Err(Fault::NotOurTurn) => Ok(false),
            given => given.map(|()| true),
        }
    }

    /// Ends what [`Connection::begin_login`] began: waits for the PIN where it was not there
    /// at once, and for the turn to give it; and asks a person where they have to decide.
    pub(crate) fn end_login(
        &self,
        begun: Result<bool, Error>,
        call: &Call,
        asked: Asked,
    ) -> Result<(), Error> {
        let access = call.access();
        let last_try = access.last_try;
        let Asked {
            asking: Some(mut asking),
        } = asked
        else {
            return begun.map(drop);
        };
        if let Ok(false) | Err(Error::PinUnsettled { .. }) = begun {
            // Somebody is waited for, and others need the card meanwhile.
            call.lock(&self.state)?.release();
        }
        let mut done = match begun {
            Ok(false) => self.in_turn(call, &asking.answer(call), |session, pin| {
                session.give_pin(pin, last_try)
            }),
            begun => begun.map(drop),
        };
        if let Err(Error::PinUnsettled { .. }) = &done
            && access.pins.sends_unsettled(self.id(), "", call)?
        {
            done = self.in_turn(call, &asking.answer(call), |session, pin| {
                session.give_pin_anyway(pin, last_try)
            });
        }
        match done {
            Ok(()) => {
                *lock(&self.refused) = Arc::clone(&access.refused_pins);
                Ok(())
            }
            // Some keys want no PIN.
            Err(Error::PinNeeded { .. }) if self.has_keys_without_pin(call)? => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes the turn, and then the card, if there is something to give it.
    fn in_turn(
        &self,
        call: &Call,
        answer: &Result<Pin, Error>,
        give: impl Fn(&mut Session<'_>, &Pin) -> Result<(), Fault>,
    ) -> Result<(), Error> {
        let access = call.access();
        if !matches!(answer, Err(Error::PinNeeded { .. }) if access.factory_defaults) {
            self.fits(answer.as_ref().map_err(Clone::clone)?, access)?;
        }
        let turns = &*access.refused_pins;
        let turn = turns.turn(self.id(), call)?;
        let turns = (turns, Some(turn));
        self.run_in_turn(call, How::LOGIN, turns, |session| {
            let pin = self.checked(answer.clone(), access, session)?;
            give(session, &pin)
        })
    }

    /// The PIN that is to be sent: the one that was given, or the published default where
    /// that may be tried and the card does not say that its PIN is another.
    fn checked(
        &self,
        answer: Result<Pin, Error>,
        access: &Access,
        session: &mut Session<'_>,
    ) -> Result<Pin, Fault> {
        let pin = match answer {
            Err(needed @ Error::PinNeeded { .. }) if access.factory_defaults => {
                let metadata = told(session.card.pin_metadata())?.flatten();
                if metadata.and_then(|pin| pin.default) == Some(false) {
                    return Err(needed.into());
                }
                Pin::from(DEFAULT_PIN)
            }
            pin => pin?,
        };
        self.fits(&pin, access)?;
        Ok(pin)
    }

    fn fits(&self, pin: &Pin, access: &Access) -> Result<(), Error> {
        let (length, most) = (pin.expose_secret().len(), *PIN_LENGTH.end());
        if PIN_LENGTH.contains(&length) || (access.any_pin_length && (1..=most).contains(&length)) {
            return Ok(());
        }
        Err(Error::PinLength {
            token: self.id().clone(),
            min: *PIN_LENGTH.start(),
            max: most,
        })
    }

    /// Whether there is a key that works without a PIN.
    fn has_keys_without_pin(&self, call: &Call) -> Result<bool, Error> {
        let make = self.make();
        self.run(call, How::REPEAT, |session| {
            for slot in Slot::all() {
                let content = inspect(&mut session.card, &make, slot)?;
                if content.public_key().is_some() && content.policies(slot).0 == PinPolicy::Never {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }
}
