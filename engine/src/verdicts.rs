//! Hears what tokens answer to the PINs that they are sent.

use std::sync::Arc;

use claviger_token::{Call, Error, Pin, PinTurn, PinVerdict, RefusedPins, TokenId, TriesLeft};

/// A memory of rejected PINs that also tells `tell` each verdict, after it is recorded.
pub(crate) struct Told<F> {
    pub(crate) memory: Arc<dyn RefusedPins>,
    pub(crate) tell: F,
}

impl<F: Fn(&Pin, PinVerdict) + Send + Sync> RefusedPins for Told<F> {
    fn turn(&self, token: &TokenId, call: &Call) -> Result<Box<dyn PinTurn + '_>, Error> {
        Ok(self.told(self.memory.turn(token, call)?))
    }

    fn turn_at_once(&self, token: &TokenId) -> Result<Option<Box<dyn PinTurn + '_>>, Error> {
        let turn = self.memory.turn_at_once(token)?;
        Ok(turn.map(|turn| self.told(turn)))
    }
}

impl<F: Fn(&Pin, PinVerdict) + Send + Sync> Told<F> {
    fn told<'a>(&'a self, turn: Box<dyn PinTurn + 'a>) -> Box<dyn PinTurn + 'a> {
        Box::new(ToldTurn {
            turn,
            tell: &self.tell,
        })
    }
}

struct ToldTurn<'a, F> {
    turn: Box<dyn PinTurn + 'a>,
    tell: &'a F,
}

impl<F: Fn(&Pin, PinVerdict)> PinTurn for ToldTurn<'_, F> {
    fn begin(&mut self, pin: &Pin, tries: TriesLeft) -> Result<(), Error> {
        self.turn.begin(pin, tries)
    }

    fn begin_anyway(&mut self, pin: &Pin, tries: TriesLeft) -> Result<(), Error> {
        self.turn.begin_anyway(pin, tries)
    }

    fn end(self: Box<Self>, pin: &Pin, verdict: PinVerdict) {
        self.turn.end(pin, verdict);
        (self.tell)(pin, verdict);
    }
}
