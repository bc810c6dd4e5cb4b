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
use claviger_token::{Access, Call, Error, PinTurn, PublicKey, RefusedPins, SlotId, TokenId};
use secrecy::ExposeSecret;
use zeroize::Zeroizing;

use crate::apdu::Lost;
use crate::card::{Card, Tries};
use crate::error::Fault;
use crate::field::{Answer, Field, Identity, SharedCard, identify};
use crate::firmware::Make;
use crate::held::Held;
use crate::login::Asked;
use crate::management;
use crate::reader::Link;
use crate::session::Session;
use crate::state::{State, Way};

/// So often an operation waits for its turn to send a PIN: it sends one, and a second where
/// its key was moved.
const MOST_TURNS: u8 = 3;

/// An open card.
pub(crate) struct Connection {
    field: Arc<Field>,
    pub(crate) identity: Identity,
    /// Where it was seen last.
    pub(crate) reader: Mutex<String>,
    pub(crate) state: Mutex<State>,
    /// How it was opened, the last time first: where a management key comes from.
    accesses: Mutex<Vec<Access>>,
    /// Of the one who opened it first: for PINs that are given again.
    pub(crate) refused: Arc<dyn RefusedPins>,
    /// The management key that the card accepted.
    pub(crate) management_key: Mutex<Option<Zeroizing<Vec<u8>>>>,
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
    /// Opens the card that was found in `reader`, and logs in.
    pub(crate) fn open(
        field: &Arc<Field>,
        identity: &Identity,
        reader: &str,
        link: Option<Box<dyn Link>>,
        call: &Call,
    ) -> Result<Arc<Self>, Error> {
        let connection = Connection::new(field, identity, call.access());
        *lock(&connection.reader) = reader.into();
        *lock(&connection.state) = State::found(link);
        connection.log_in(call)?;
        Ok(Arc::new(connection))
    }

    fn new(field: &Arc<Field>, identity: &Identity, access: &Access) -> Self {
        let connection = Connection {
            field: Arc::clone(field),
            identity: identity.clone(),
            reader: Mutex::default(),
            state: Mutex::default(),
            accesses: Mutex::default(),
            refused: Arc::clone(&access.refused_pins),
            management_key: Mutex::default(),
        };
        connection.remember(access);
        connection
    }

    /// Opens the card in `reader` if it is `wanted`, and logs in, all in one transaction
    /// where the PIN is there at once, which goes on. `None`: it is not the one, or not to be
    /// read.
    ///
    /// Only where it is known that no other card can be meant.
    pub(crate) fn open_the_only_one(
        field: &Arc<Field>,
        reader: &str,
        link: Box<dyn Link>,
        call: &Call,
        place: impl FnOnce(&TokenId) -> Arc<Mutex<SharedCard>>,
        wanted: impl FnOnce(&Identity) -> bool,
    ) -> Result<Option<Arc<Self>>, Error> {
        let access = call.access();
        let looking = field.looking_at(reader);
        let alone = lock(&looking);
        let Ok(mut held) = Held::begin(link) else {
            return Ok(None);
        };
        let mut turn = held.turn();
        let mut card = Card::new(&mut turn, call);
        let Ok(Answer::Card(identity)) = identify(&mut card) else {
            return Ok(None);
        };
        let place = place(&identity.id);
        // Held through the login, so that a PIN is given once. Who holds it may wait for this
        // card's reader, so it is not waited for.
        let Ok(mut place) = place.try_lock() else {
            return Ok(None);
        };
        if !wanted(&identity) || place.connection.strong_count() > 0 {
            return Ok(None);
        }
        let connection = Connection::new(field, &identity, access);
        let (mut verified, mut pin) = (false, None);
        let mut asked = Asked::default();
        let logged_in = connection.begin_login(
            &mut Session {
                card,
                connection: &connection,
                verified: &mut verified,
                pin: &mut pin,
                changes: &mut 0,
                administered: &mut false,
                fresh: true,
                tries: None,
                turns: &*access.refused_pins,
                turn: None,
            },
            call,
            &mut asked,
        );
        drop(turn);
        drop(alone);
        *lock(&connection.reader) = reader.into();
        *lock(&connection.state) = State::opened(held, verified, pin);
        let logged_in = logged_in.map_err(|fault| fault.into_error(connection.id()));
        connection.end_login(logged_in, call, asked)?;
        let connection = Arc::new(connection);
        place.connection = Arc::downgrade(&connection);
        Ok(Some(connection))
    }

    pub(crate) fn id(&self) -> &TokenId {
        &self.identity.id
    }

    /// Notes the public half of a key that a failed generation left, by the name of its slot:
    /// whoever is to remove it got no answer.
    pub(crate) fn remember_unfinished(&self, slot: &SlotId, key: PublicKey) {
        let name = (self.id().clone(), slot.as_str().to_owned());
        lock(&self.field.unfinished).insert(name, key);
    }

    /// See [`Connection::remember_unfinished`].
    pub(crate) fn unfinished(&self, slot: &SlotId) -> Option<PublicKey> {
        let name = (self.id().clone(), slot.as_str().to_owned());
        lock(&self.field.unfinished).get(&name).cloned()
    }

    /// What was left is gone.
    pub(crate) fn forget_unfinished(&self, slot: &SlotId) {
        let name = (self.id().clone(), slot.as_str().to_owned());
        lock(&self.field.unfinished).remove(&name);
    }

    /// What the card is, as far as it is known by now.
    pub(crate) fn make(&self) -> Make {
        self.field.known(&self.identity)
    }

    /// What the card is, with a look at who made it.
    pub(crate) fn proven_make(&self, card: &mut Card<'_>) -> Result<Make, Fault> {
        self.field.prove(card, &self.identity)
    }

    /// Where management keys may come from as well.
    pub(crate) fn remember(&self, access: &Access) {
        let mut accesses = lock(&self.accesses);
        accesses.retain(|known| !Arc::ptr_eq(&known.management_keys, &access.management_keys));
        accesses.insert(0, access.clone());
        accesses.truncate(8);
    }

    /// Runs `operation` in a transaction; see the table above.
    pub(crate) fn run<T>(
        &self,
        call: &Call,
        how: How,
        operation: impl FnMut(&mut Session<'_>) -> Result<T, Fault>,
    ) -> Result<T, Error> {
        self.run_in_turn(call, how, (&*self.refused, None), operation)
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
        let mut state = lock(&self.state);
        call.check()?;
        let (mut recovered, mut waits) = (false, 0);
        loop {
            let was_ready = state.ready && !how.fresh;
            let mut began = None;
            let ours = (turns, turn.take());
            let done = self.attempt(&mut state, call, how, ours, &mut began, &mut operation);
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
                    state = lock(&self.state);
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
        let mut state = lock(&self.state);
        call.check()?;
        let Some(Way {
            mut transport,
            verified,
            pin,
            changes,
            ..
        }) = state.alone()
        else {
            return Ok(None);
        };
        Ok(operation(&mut Session {
            card: Card::new(&mut *transport, call),
            connection: self,
            verified,
            pin,
            changes,
            // Nobody administers a card with one command.
            administered: &mut false,
            fresh: false,
            tries: None,
            turns: &*self.refused,
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
        let fresh = how.fresh || !state.ready;
        let way = state.begin(|held| !fresh && held.resumes(), how.stays);
        let Some(Way {
            mut transport,
            ready,
            verified,
            pin,
            changes,
        }) = way.map_err(Fault::Lost)?
        else {
            return Err(Fault::Lost(Lost::new("it is not in any reader")));
        };
        let mut card = Card::new(&mut *transport, call);
        if fresh {
            (*ready, *verified) = (false, false);
            match card.select()? {
                Some(_) => *ready = true,
                None => return Err(Fault::Lost(Lost::new("another card is in its reader"))),
            }
        }
        *began = Some(*changes);
        let mut administered = false;
        let done = operation(&mut Session {
            card,
            connection: self,
            verified,
            pin,
            changes,
            administered: &mut administered,
            fresh,
            tries: None,
            turns,
            turn,
        });
        if administered {
            match transport.reset() {
                Ok(()) => state.let_go(),
                Err(Lost { reason, .. }) => {
                    *ready = false;
                    tracing::warn!(token = %self.id(), reason, "the management session was not ended");
                }
            }
        }
        done
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
            let looking = self.field.looking_at(&reader);
            let _alone = lock(&looking);
            let Ok(mut link) = self.field.readers.connect(&reader) else {
                continue;
            };
            let answer = link
                .begin()
                .map_err(Fault::Lost)
                .and_then(|mut transport| identify(&mut Card::new(&mut *transport, call)));
            match answer {
                Ok(Answer::Card(card)) if card.id == *self.id() && found.is_some() => {
                    return Err(Fault::Lost(Lost::new("two cards have its serial")));
                }
                Ok(Answer::Card(card)) if card.id == *self.id() => found = Some((reader, link)),
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

    /// The management key that the operator gives, if they do. Asked for outside of a
    /// transaction.
    pub(crate) fn given_management_key(
        &self,
        call: &Call,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        if let Some(key) = &*lock(&self.management_key) {
            return Ok(Some(key.clone()));
        }
        let accesses = lock(&self.accesses).clone();
        for access in accesses {
            match access.management_keys.pin(self.id(), "", call) {
                Ok(text) => {
                    return match management::parse_key(text.expose_secret()) {
                        Some(key) => Ok(Some(key)),
                        None => Err(Error::ManagementKeyWrong {
                            token: self.id().clone(),
                            reason: "it is not hexadecimal".into(),
                        }),
                    };
                }
                Err(Error::PinNeeded { .. } | Error::ManagementKeyNeeded { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    pub(crate) fn may_try_defaults(&self) -> bool {
        lock(&self.accesses).iter().any(|a| a.factory_defaults)
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
        if let Ok(Some(Way { mut transport, .. })) = state.begin(Held::is_on, false) {
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
