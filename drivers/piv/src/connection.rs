//! An open card: transactions, the PIN, recovery.
//!
//! Each operation is one PC/SC transaction, or a single command. The first ones share the
//! transaction in which the card was opened ([`held`](crate::held)). Between two of them, other
//! programs may use the card, select another application on it, or reset it. Then the card is
//! logged out. So the state here is a guess that the card corrects:
//!
//! | event | reaction, once |
//! | --- | --- |
//! | the card was reset or removed, or the service restarted | find the card in all readers, by its serial; select, send the PIN again, repeat |
//! | another process is sending a PIN | end the transaction, wait for our turn, select, repeat |
//! | a command is refused | select, send the PIN again, repeat |
//! | another card is in the reader | find ours; the other card is not used |
//! | a command or its answer was lost | reset the card, if it still answers: it may have kept its power, and rights |
//!
//! PC/SC reports if a card was reset or replaced since it was connected. So the card is identified
//! once for each connection. Of two cards with one serial neither is used.
//!
//! A PIN is sent again only if this card accepted it before and has not rejected it since. An
//! operation that must not be repeated (making a key) begins with a SELECT and stays in one
//! transaction.
//!
//! No rights stay behind for other programs. A YubiKey drops all rights at a SELECT; after that,
//! the driver checks that a card that may be a YubiKey did so. Other cards keep them when the
//! selected application is selected again (SP 800-73-4 part 2, §3.1.1). There the card is logged
//! out when it is closed, and a transaction that used the management key ends with a reset.

use std::sync::{Arc, Mutex, PoisonError};

use claviger_token::sync::lock;
use claviger_token::{Call, Error, PinTurn, RefusedPins, TokenId};

use crate::administrator::Administrator;
use crate::apdu::{Lost, Transport};
use crate::card::{Card, Tries};
use crate::error::Fault;
use crate::field::Field;
use crate::firmware::Make;
use crate::held::Held;
use crate::identity::{Answer, Identity, identify};
use crate::reader::Link;
use crate::session::Session;
use crate::state::{State, Way};

/// So often an operation waits for its turn to send a PIN: it sends one, and a second where
/// its key was moved.
const MOST_TURNS: u8 = 3;

/// An open card.
pub(crate) struct Connection {
    pub(crate) field: Arc<Field>,
    pub(crate) identity: Identity,
    /// Where it was seen last.
    pub(crate) reader: Mutex<String>,
    pub(crate) state: Mutex<State>,
    /// Of the one whose PIN the card accepted last: for that PIN, when it is given again.
    pub(crate) refused: Mutex<Arc<dyn RefusedPins>>,
}

/// What may be done to bring an operation to its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    /// Begin with a SELECT, so that it is known who is spoken to.
    fresh: bool,
    /// Repeat it after a recovery.
    repeat: bool,
    /// Let its transaction go on for the next operations.
    stays: bool,
}

impl How {
    /// As it comes, and once more after a recovery.
    pub(crate) const REPEAT: How = How {
        fresh: false,
        repeat: true,
        stays: false,
    };
    /// From a SELECT on, and once more after a recovery.
    pub(crate) const FRESH: How = How {
        fresh: true,
        repeat: true,
        stays: false,
    };
    /// From a SELECT on, and at most once.
    pub(crate) const ONCE: How = How {
        fresh: true,
        repeat: false,
        stays: false,
    };
    /// As [`How::ONCE`], and what comes next is part of the same transaction.
    pub(crate) const LOGIN: How = How {
        stays: true,
        ..How::ONCE
    };
}

impl Connection {
    /// The card, which is in `reader` as far as `state` knows. Nobody is logged in.
    pub(crate) fn new(
        field: &Arc<Field>,
        identity: &Identity,
        reader: &str,
        (state, refused): (State, &Arc<dyn RefusedPins>),
    ) -> Self {
        Connection {
            field: Arc::clone(field),
            identity: identity.clone(),
            reader: Mutex::new(reader.into()),
            state: Mutex::new(state),
            refused: Mutex::new(Arc::clone(refused)),
        }
    }

    pub(crate) fn id(&self) -> &TokenId {
        &self.identity.id
    }

    /// What the card is, as far as it is known by now.
    pub(crate) fn make(&self) -> Make {
        self.field.known(&self.identity)
    }

    /// Runs `operation` in a transaction; see the table above.
    pub(crate) fn run<T>(
        &self,
        call: &Call,
        how: How,
        operation: impl FnMut(&mut Session<'_>) -> Result<T, Fault>,
    ) -> Result<T, Error> {
        let refused = Arc::clone(&lock(&self.refused));
        self.run_in_turn(call, how, (&*refused, None), operation)
    }

    /// [`Connection::run`] with whom to ask for a turn to send a PIN, and the turn itself
    /// where they were asked already.
    ///
    /// Whoever has the turn may be waiting for the card. So it is only waited for where the
    /// card is not held.
    pub(crate) fn run_in_turn<'t, T>(
        &self,
        call: &Call,
        mut how: How,
        (turns, mut turn): (&'t dyn RefusedPins, Option<Box<dyn PinTurn + 't>>),
        mut operation: impl FnMut(&mut Session<'_>) -> Result<T, Fault>,
    ) -> Result<T, Error> {
        call.check()?;
        let mut state = call.lock(&self.state)?;
        call.check()?;
        let (mut recovered, mut waits) = (false, 0);
        loop {
            let was_ready = state.ready && !how.fresh;
            let mut began = None;
            let ours = (turns, turn.take());
            let done = self.attempt(&mut state, call, how, ours, &mut began, &mut operation);
            state.end_operation();
            let fault = match done {
                Ok(done) => return Ok(done),
                Err(fault) => fault,
            };
            let again = match &fault {
                Fault::NotOurTurn
                    if waits < MOST_TURNS && (how.repeat || began == Some(state.changes)) =>
                {
                    state.release();
                    // Nor does anybody here wait for us.
                    drop(state);
                    turn = Some(turns.turn(self.id(), call)?);
                    call.check()?;
                    state = call.lock(&self.state)?;
                    waits += 1;
                    how.fresh = true;
                    continue;
                }
                Fault::Lost(_) => {
                    state.let_go();
                    how.repeat || began.is_none()
                }
                // Perhaps another application is selected, or the PIN does not count.
                Fault::Status { .. } | Fault::Malformed { .. } => {
                    state.ready = false;
                    how.repeat && was_ready
                }
                Fault::NotOurTurn | Fault::Ours(_) => false,
            };
            if recovered || !again {
                return Err(fault.into_error(self.id()));
            }
            tracing::debug!(token = %self.id(), ?fault, "recovering");
            recovered = true;
            how.fresh = true;
        }
    }

    /// Runs an operation that is one single command, without a transaction around it, if
    /// the card is ready for it as far as we know. `None`: nothing came of it, and
    /// [`Connection::run`] finds out why.
    pub(crate) fn run_alone<T>(
        &self,
        call: &Call,
        operation: impl FnOnce(&mut Session<'_>) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        call.check()?;
        let refused = Arc::clone(&lock(&self.refused));
        let mut state = call.lock(&self.state)?;
        call.check()?;
        let Some(Way {
            mut transport,
            verified,
            pin,
            changes,
            ..
        }) = state.alone(call)
        else {
            return Ok(None);
        };
        Ok(operation(&mut Session {
            card: Card::new(&mut *transport, call),
            identity: &self.identity,
            field: &self.field,
            verified,
            pin,
            changes,
            // Nobody administers a card with one command.
            administered: &mut false,
            fresh: false,
            tries: None,
            turns: &*refused,
            turn: None,
        }))
    }

    /// One attempt. `began` is how often keys may have changed when the operation began, if it
    /// did.
    fn attempt<T>(
        &self,
        state: &mut State,
        call: &Call,
        how: How,
        (turns, turn): (&dyn RefusedPins, Option<Box<dyn PinTurn + '_>>),
        began: &mut Option<u64>,
        operation: &mut impl FnMut(&mut Session<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        if !state.has_way() {
            self.locate(state, call)?;
        }
        if state.keeps_rights {
            self.end_rights(state, call)?;
        }
        let fresh = how.fresh || !state.ready;
        let had_rights = state.verified;
        let Some(Way {
            mut transport,
            ready,
            verified,
            pin,
            changes,
        }) = state.begin(|held| !fresh && held.resumes(), how.stays, call)?
        else {
            return Err(Fault::Lost(Lost::new("it is not in any reader")));
        };
        let mut card = Card::new(&mut *transport, call);
        let mut selected = Ok(true);
        if fresh {
            (*ready, *verified) = (false, false);
            selected = card.select().map(|application| application.is_some());
        }
        let mut administered = false;
        let done = match selected {
            Ok(false) => return Err(Fault::Lost(Lost::new("another card is in its reader"))),
            Err(fault) => Err(fault),
            Ok(true) => {
                (*ready, *began) = (true, Some(*changes));
                operation(&mut Session {
                    card,
                    identity: &self.identity,
                    field: &self.field,
                    verified,
                    pin,
                    changes,
                    administered: &mut administered,
                    fresh,
                    tries: None,
                    turns,
                    turn,
                })
            }
        };
        let is_lost = matches!(done, Err(Fault::Lost(_)));
        // Nobody knows what a card does whose answer was lost. It may have kept its power.
        if administered || is_lost {
            let had_rights = administered || had_rights || *verified;
            let reset = match is_lost && !answers(&mut *transport, call) {
                true => {
                    drop(transport);
                    Err(Lost::new("it does not answer"))
                }
                false => transport.reset(),
            };
            state.let_go();
            if let Err(Lost { reason, .. }) = reset {
                state.keeps_rights = had_rights;
                match is_lost {
                    true => tracing::debug!(reason, "the card was not reset"),
                    false => {
                        tracing::warn!(token = %self.id(), reason, "the management session was not ended");
                    }
                }
            }
        }
        done
    }

    /// Resets a card that may have rights of an earlier request.
    fn end_rights(&self, state: &mut State, call: &Call) -> Result<(), Fault> {
        match state.begin(|_| false, false, call)? {
            Some(Way { transport, .. }) => transport.reset().map_err(Fault::Lost)?,
            None => return Err(Fault::Lost(Lost::new("it is not in any reader"))),
        }
        state.let_go();
        state.keeps_rights = false;
        self.locate(state, call)
    }

    /// Looks for the card in all readers. Of two that look like it neither is used: the
    /// PIN of the one is not the other's.
    fn locate(&self, state: &mut State, call: &Call) -> Result<(), Fault> {
        let readers = self.field.readers.list();
        let mut readers = readers.map_err(|e| Fault::Lost(Lost::new(e.reason)))?;
        let last = lock(&self.reader).clone();
        readers.sort_by_key(|reader| *reader != last);
        let mut found: Option<(String, Box<dyn Link>)> = None;
        for reader in readers {
            call.check()?;
            let answer = self.field.in_transaction(&reader, call, identify);
            match answer {
                Ok((Answer::Card(card), _)) if card.id == *self.id() && found.is_some() => {
                    return Err(Fault::Lost(Lost::new("two cards have its serial")));
                }
                Ok((Answer::Card(card), link)) if card.id == *self.id() => {
                    found = Some((reader, link));
                }
                Err(fault @ Fault::Ours(_)) => return Err(fault),
                _ => {}
            }
        }
        let Some((reader, link)) = found else {
            return Err(Fault::Lost(Lost::new("it is not in any reader")));
        };
        *lock(&self.reader) = reader;
        state.found_again(link);
        Ok(())
    }

    /// With what the request makes and destroys keys. A person may be asked for it: to be
    /// called outside of a transaction.
    ///
    /// # Errors
    /// What the source of its management key says.
    pub(crate) fn administrator(&self, call: &Call) -> Result<Administrator, Error> {
        Administrator::of(self.id(), call)
    }
}

impl Drop for Connection {
    /// Takes back the rights that the PIN gave, which else anybody could use who can
    /// reach the card, until it is reset.
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let ends = self.field.known(&self.identity).select_ends_rights();
        // Where a SELECT ends nothing, a PIN may count of which we do not know any more.
        if !state.verified && ends != Some(false) {
            return;
        }
        let call = Call::unlimited();
        if let Ok(Some(Way { mut transport, .. })) = state.begin(Held::is_on, false, &call) {
            let done = match log_out(&mut Card::new(&mut *transport, &call)) {
                Ok(false) => transport.reset().map_err(Fault::Lost),
                done => done.map(drop),
            };
            if let Err(fault) = done {
                tracing::debug!(token = %self.identity.id, ?fault, "not logged out");
            }
        }
    }
}

/// Takes the PIN's rights away, and says whether that is so: some cards do not forget.
fn log_out(card: &mut Card<'_>) -> Result<bool, Fault> {
    card.select()?;
    if card.tries()? == Tries::Verified {
        card.forget_pin()?;
        return Ok(card.tries()? != Tries::Verified);
    }
    Ok(true)
}

/// Whether a card whose answer was lost still answers. One that has left its reader is not reset:
/// before pcscd has noticed that, a reset may keep it from noticing the next card (seen with
/// pcscd 1.9.9 and its virtual reader).
pub(crate) fn answers(transport: &mut dyn Transport, call: &Call) -> bool {
    let call = call.to_tidy_up();
    Card::new(transport, &call).select().is_ok()
}
