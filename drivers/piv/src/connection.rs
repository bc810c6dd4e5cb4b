//! An open card: transactions, the PIN, recovery.
//!
//! Each operation is one PC/SC transaction, or one single command. Between two of them
//! other programs may use the card, select another application on it, or reset it; then
//! the PIN that we gave does not count any more. So the state that is kept here is a
//! guess that the card corrects:
//!
//! | what happens | what is done, once |
//! | --- | --- |
//! | the card was reset or removed, the service restarted | look for the card in all readers, by its serial; select, give the PIN again, repeat |
//! | a command is refused | select, check the serial, give the PIN again, repeat |
//! | another card is in the reader | it is not used; look for ours |
//!
//! Given again is only a PIN that this card accepted before, and that it has not refused
//! since. What must not be repeated (making a key) is begun with a SELECT and stays in
//! one transaction.
//!
//! No rights stay behind for others. A YubiKey takes them all away at a SELECT. Other cards
//! keep them when the application that is selected is selected again (SP 800-73-4 part 2,
//! §3.1.1): there the PIN is told to be forgotten when the card is closed, and a
//! transaction in which the administrator's key was given ends with a reset of the card.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use claviger_token::key::to_hex;
use claviger_token::{
    Access, Call, Error, PinTurn, PinVerdict, RefusedPins, TokenId, TriesLeft, Watch,
};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::apdu::Lost;
use crate::backend::SCHEME;
use crate::card::{Card, MANAGEMENT, Tries, Verdict};
use crate::error::Fault;
use crate::firmware::{Feature, Make};
use crate::management::{self, Cipher};
use crate::reader::{Link, Readers, Unreachable};
use crate::token::PivToken;

/// The lengths of a PIN in bytes (SP 800-73-4 part 2, §2.4.3).
const PIN_LENGTH: std::ops::RangeInclusive<usize> = 6..=8;
/// The PIN with which cards are delivered. Public knowledge.
const DEFAULT_PIN: &str = "123456";

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked left guesses behind, which the card corrects.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a card shows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: TokenId,
    pub(crate) make: Make,
    /// The serial that attestations name.
    pub(crate) serial: Option<u32>,
}

/// Selects the PIV application and finds out whose it is. `None`: the card has no such
/// application, or nothing that tells it from others.
pub(crate) fn identify(card: &mut Card<'_>) -> Result<Option<Identity>, Fault> {
    let Some(named) = card.select()? else {
        return Ok(None);
    };
    let make = Make::new(card.version()?, named);
    let serial = match &make {
        Make::Yubico(_) if make.has(Feature::Serial) => card.serial()?,
        Make::Yubico(_) => {
            let serial = card.serial_of_otp()?;
            card.select()?;
            serial
        }
        Make::Plain { .. } => None,
    };
    let name = match serial {
        Some(serial) => Some(serial.to_string()),
        None => card.chuid_name()?.map(|name| to_hex(&name)),
    };
    let Some(name) = name else {
        tracing::warn!("a PIV card without a serial and without a CHUID is left alone");
        return Ok(None);
    };
    Ok(Some(Identity {
        id: TokenId {
            kind: SCHEME.into(),
            manufacturer: make.manufacturer().into(),
            serial: name,
        },
        make,
        serial,
    }))
}

/// The readers, and what is open in them.
pub(crate) struct Field {
    readers: Box<dyn Readers>,
    places: Mutex<HashMap<TokenId, Arc<Mutex<Place>>>>,
    /// One for each reader, held while its card is looked at: who finds another's
    /// transaction there is made to wait for 100 ms by libpcsclite, however short it is.
    looking: Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

/// The place of one card: it is opened once, and shared.
#[derive(Default)]
pub(crate) struct Place {
    pub(crate) connection: Weak<Connection>,
    /// One for each set of policies that was asked for.
    pub(crate) tokens: Vec<Weak<PivToken>>,
}

impl Field {
    pub(crate) fn new(readers: impl Readers + 'static) -> Arc<Self> {
        Arc::new(Field {
            readers: Box::new(readers),
            places: Mutex::default(),
            looking: Mutex::default(),
        })
    }

    pub(crate) fn watch(&self) -> Box<dyn Watch> {
        self.readers.watch()
    }

    pub(crate) fn place(&self, id: &TokenId) -> Arc<Mutex<Place>> {
        lock(&self.places).entry(id.clone()).or_default().clone()
    }

    /// The card in `reader`, if it is open. Selecting on another way to the same card
    /// would take its PIN away.
    fn open_in(&self, reader: &str) -> Option<Arc<Connection>> {
        let places: Vec<_> = lock(&self.places).values().cloned().collect();
        places
            .iter()
            // Who is just opening it has not shown it yet.
            .filter_map(|place| place.try_lock().ok()?.connection.upgrade())
            .find(|connection| *lock(&connection.reader) == reader)
    }

    /// Does `work` with each card that can be reached, without a PIN.
    pub(crate) fn visit<T>(
        &self,
        mut work: impl FnMut(&mut Card<'_>, &Identity) -> Result<T, Fault>,
    ) -> Result<Vec<(Identity, T)>, Unreachable> {
        let call = Call::unlimited();
        let mut found: Vec<(Identity, T)> = Vec::new();
        for reader in self.readers.list()? {
            let open = self.open_in(&reader).and_then(|connection| {
                let identity = &connection.identity;
                let done = connection.run(&call, How::REPEAT, |s| work(&mut s.card, identity));
                Some((identity.clone(), done.ok()?))
            });
            let seen = match open {
                Some(seen) => Ok(Some(seen)),
                None => self.look(&reader, &call, &mut work),
            };
            match seen {
                // One card may be in reach of two readers.
                Ok(Some((identity, _))) if found.iter().any(|f| f.0.id == identity.id) => {}
                Ok(seen) => found.extend(seen),
                Err(fault) => tracing::debug!(reader, ?fault, "no card to be used"),
            }
        }
        Ok(found)
    }

    fn looking_at(&self, reader: &str) -> Arc<Mutex<()>> {
        lock(&self.looking)
            .entry(reader.into())
            .or_default()
            .clone()
    }

    fn look<T>(
        &self,
        reader: &str,
        call: &Call,
        work: &mut impl FnMut(&mut Card<'_>, &Identity) -> Result<T, Fault>,
    ) -> Result<Option<(Identity, T)>, Fault> {
        let looking = self.looking_at(reader);
        let _alone = lock(&looking);
        let mut link = self.readers.connect(reader).map_err(Fault::Lost)?;
        let mut transport = link.begin().map_err(Fault::Lost)?;
        let mut card = Card::new(&mut *transport, call);
        let Some(identity) = identify(&mut card)? else {
            return Ok(None);
        };
        let done = work(&mut card, &identity)?;
        Ok(Some((identity, done)))
    }
}

/// An open card.
pub(crate) struct Connection {
    field: Arc<Field>,
    pub(crate) identity: Identity,
    /// Where it was seen last.
    reader: Mutex<String>,
    state: Mutex<State>,
    /// How it was opened, the last time first: where a management key comes from.
    accesses: Mutex<Vec<Access>>,
    /// Of the one who opened it first: for PINs that are given again.
    refused: Arc<dyn RefusedPins>,
    /// The management key that the card accepted.
    management_key: Mutex<Option<Zeroizing<Vec<u8>>>>,
}

#[derive(Default)]
struct State {
    link: Option<Box<dyn Link>>,
    /// Whether the PIV application is selected, as far as we know.
    ready: bool,
    /// Whether the PIN counts, as far as we know.
    verified: bool,
    /// The PIN that the card accepted.
    pin: Option<SecretString>,
    /// How often keys may have changed.
    changes: u64,
}

impl State {
    /// The card has to be looked for, and the PIN given again.
    fn let_go(&mut self) {
        *self = State {
            pin: self.pin.take(),
            changes: self.changes,
            ..State::default()
        };
    }
}

/// What may be done to bring an operation to its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    /// Begin with a SELECT, so that it is known who is spoken to.
    fresh: bool,
    /// Repeat it after a recovery.
    repeat: bool,
}

impl How {
    /// As it comes, and once more after a recovery.
    pub(crate) const REPEAT: How = How {
        fresh: false,
        repeat: true,
    };
    /// From a SELECT on, and once more after a recovery.
    pub(crate) const FRESH: How = How {
        fresh: true,
        repeat: true,
    };
    /// From a SELECT on, and at most once.
    pub(crate) const ONCE: How = How {
        fresh: true,
        repeat: false,
    };
}

/// The card during one transaction, and what is known of it.
pub(crate) struct Session<'a> {
    pub(crate) card: Card<'a>,
    connection: &'a Connection,
    verified: &'a mut bool,
    pin: &'a mut Option<SecretString>,
    changes: &'a mut u64,
    /// Whether the management key was given.
    administered: &'a mut bool,
    /// Whether the application was selected in this transaction: then a refusal is
    /// meant.
    pub(crate) fresh: bool,
}

impl Connection {
    /// Opens the card and logs in.
    pub(crate) fn open(
        field: &Arc<Field>,
        identity: &Identity,
        access: &Access,
    ) -> Result<Arc<Self>, Error> {
        let connection = Arc::new(Connection {
            field: Arc::clone(field),
            identity: identity.clone(),
            reader: Mutex::default(),
            state: Mutex::default(),
            accesses: Mutex::default(),
            refused: Arc::clone(&access.refused_pins),
            management_key: Mutex::default(),
        });
        connection.log_in(access)?;
        connection.remember(access);
        Ok(connection)
    }

    fn id(&self) -> &TokenId {
        &self.identity.id
    }

    /// Where management keys may come from as well.
    pub(crate) fn remember(&self, access: &Access) {
        let mut accesses = lock(&self.accesses);
        accesses.retain(|known| !Arc::ptr_eq(&known.management_keys, &access.management_keys));
        accesses.insert(0, access.clone());
        accesses.truncate(8);
    }

    /// Whether it has a PIN that the card accepted.
    pub(crate) fn is_logged_in(&self) -> bool {
        lock(&self.state).pin.is_some()
    }

    /// Asks for the PIN and gives it to the card, if that risks nothing.
    ///
    /// The PIN is asked for outside of a transaction: a person may take their time.
    pub(crate) fn log_in(&self, access: &Access) -> Result<(), Error> {
        let call = Call::unlimited();
        let default = self.run(&call, How::FRESH, |session| {
            session.check_tries(access.last_try)?;
            match self.identity.make.has(Feature::Metadata) {
                true => Ok(session.card.pin_metadata()?.and_then(|pin| pin.default)),
                false => Ok(None),
            }
        })?;
        let pin = match access.pins.pin(self.id(), "") {
            Err(Error::PinNeeded { .. }) if access.factory_defaults && default != Some(false) => {
                SecretString::from(DEFAULT_PIN)
            }
            pin => pin?,
        };
        if !PIN_LENGTH.contains(&pin.expose_secret().len()) {
            return Err(Error::PinLength {
                token: self.id().clone(),
                min: *PIN_LENGTH.start(),
                max: *PIN_LENGTH.end(),
            });
        }
        self.run(&call, How::ONCE, |session| {
            session.give_pin(&pin, access.last_try, &*access.refused_pins)
        })?;
        lock(&self.state).pin = Some(pin);
        Ok(())
    }

    /// Runs `operation` in a transaction; see the table above.
    pub(crate) fn run<T>(
        &self,
        call: &Call,
        how: How,
        mut operation: impl FnMut(&mut Session<'_>) -> Result<T, Fault>,
    ) -> Result<T, Error> {
        call.check()?;
        let mut state = lock(&self.state);
        call.check()?;
        let mut fresh = how.fresh;
        let mut recovered = false;
        loop {
            let was_ready = state.ready && !fresh;
            let mut began = false;
            let fault = match self.attempt(&mut state, call, fresh, &mut began, &mut operation) {
                Ok(done) => return Ok(done),
                Err(fault) => fault,
            };
            let again = match &fault {
                Fault::Lost(_) => {
                    state.let_go();
                    how.repeat || !began
                }
                // Perhaps another application is selected, or the PIN does not count.
                Fault::Status { .. } | Fault::Malformed { .. } => {
                    state.ready = false;
                    how.repeat && was_ready
                }
                Fault::Ours(_) => false,
            };
            if recovered || !again {
                return Err(fault.into_error(self.id()));
            }
            tracing::debug!(token = %self.id(), ?fault, "recovering");
            recovered = true;
            fresh = true;
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
        let State {
            link: Some(link),
            ready: true,
            verified,
            pin,
            changes,
        } = &mut *state
        else {
            return Ok(None);
        };
        let Ok(mut transport) = link.alone() else {
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
        }))
    }

    fn attempt<T>(
        &self,
        state: &mut State,
        call: &Call,
        fresh: bool,
        began: &mut bool,
        operation: &mut impl FnMut(&mut Session<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        if state.link.is_none() {
            self.locate(state, call)?;
        }
        let State {
            link: Some(link),
            ready,
            verified,
            pin,
            changes,
        } = state
        else {
            return Err(Fault::Lost(Lost::new("it is not in any reader")));
        };
        let mut transport = link.begin().map_err(Fault::Lost)?;
        let mut card = Card::new(&mut *transport, call);
        let fresh = fresh || !*ready;
        if fresh {
            (*ready, *verified) = (false, false);
            match identify(&mut card)? {
                Some(found) if found.id == *self.id() => *ready = true,
                _ => return Err(Fault::Lost(Lost::new("another card is in its reader"))),
            }
        }
        *began = true;
        let mut administered = false;
        let done = operation(&mut Session {
            card,
            connection: self,
            verified,
            pin,
            changes,
            administered: &mut administered,
            fresh,
        });
        if administered && !self.identity.make.select_ends_rights() {
            match transport.reset() {
                Ok(()) => state.let_go(),
                Err(Lost { reason }) => {
                    *ready = false;
                    tracing::warn!(token = %self.id(), reason, "the management session was not ended");
                }
            }
        }
        done
    }

    /// Looks for the card in all readers, in the one where it was last first.
    fn locate(&self, state: &mut State, call: &Call) -> Result<(), Fault> {
        let readers = self.field.readers.list();
        let mut readers = readers.map_err(|e| Fault::Lost(Lost::new(e.reason)))?;
        let last = lock(&self.reader).clone();
        readers.sort_by_key(|reader| *reader != last);
        for reader in readers {
            call.check()?;
            let looking = self.field.looking_at(&reader);
            let _alone = lock(&looking);
            let Ok(mut link) = self.field.readers.connect(&reader) else {
                continue;
            };
            let found = link
                .begin()
                .map_err(Fault::Lost)
                .and_then(|mut transport| identify(&mut Card::new(&mut *transport, call)));
            match found {
                Ok(Some(found)) if found.id == *self.id() => {
                    *lock(&self.reader) = reader;
                    *state = State {
                        link: Some(link),
                        ready: true,
                        verified: false,
                        pin: state.pin.take(),
                        // Others may have had it.
                        changes: state.changes + 1,
                    };
                    return Ok(());
                }
                Err(fault @ Fault::Ours(_)) => return Err(fault),
                _ => {}
            }
        }
        Err(Fault::Lost(Lost::new("it is not in any reader")))
    }

    /// The management key that the operator gives, if they do. Asked for outside of a
    /// transaction.
    pub(crate) fn given_management_key(&self) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        if let Some(key) = &*lock(&self.management_key) {
            return Ok(Some(key.clone()));
        }
        let accesses = lock(&self.accesses).clone();
        for access in accesses {
            match access.management_keys.pin(self.id(), "") {
                Ok(text) => {
                    let key = claviger_token::key::from_hex(text.expose_secret().trim());
                    return match key {
                        Some(key) => Ok(Some(Zeroizing::new(key))),
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

    fn may_try_defaults(&self) -> bool {
        lock(&self.accesses).iter().any(|a| a.factory_defaults)
    }
}

impl Drop for Connection {
    /// Takes back the rights that the PIN gave, which else anybody could use who can
    /// reach the card, until it is reset.
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(link) = &mut state.link else {
            return;
        };
        // Where a SELECT ends nothing, a PIN may count of which we do not know any more.
        if !state.verified && self.identity.make.select_ends_rights() {
            return;
        }
        let call = Call::unlimited();
        if let Ok(mut transport) = link.begin() {
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

impl Session<'_> {
    /// Counts how often keys may have changed.
    pub(crate) fn changes(&self) -> u64 {
        *self.changes
    }

    /// Whether the PIN counts, as far as we know.
    pub(crate) fn is_verified(&self) -> bool {
        *self.verified
    }

    pub(crate) fn note_change(&mut self) {
        *self.changes += 1;
    }

    /// How many tries are left; refuses where a wrong PIN would lock the card.
    fn check_tries(&mut self, last_try: bool) -> Result<TriesLeft, Fault> {
        let token = self.connection.id().clone();
        let mut tries = self.card.tries()?;
        if tries == Tries::Verified {
            self.card.forget_pin()?;
            tries = self.card.tries()?;
        }
        match tries {
            Tries::Left(0) => Err(Error::PinLocked { token }.into()),
            Tries::Left(1) if !last_try => Err(Error::PinFinalTry { token }.into()),
            Tries::Left(left) => Ok(TriesLeft::Exactly(left)),
            // A card that does not forget; it does not tell either.
            Tries::Verified => Ok(TriesLeft::Unknown),
        }
    }

    /// Gives a PIN to the card, unless it was refused before or would be the last.
    fn give_pin(
        &mut self,
        pin: &SecretString,
        last_try: bool,
        refused: &dyn RefusedPins,
    ) -> Result<(), Fault> {
        let mut turn = refused.turn(self.connection.id())?;
        let tries = self.check_tries(last_try)?;
        turn.begin(pin, tries)?;
        self.send_pin(pin, turn)
    }

    fn send_pin(&mut self, pin: &SecretString, turn: Box<dyn PinTurn + '_>) -> Result<(), Fault> {
        let token = self.connection.id().clone();
        let left = match self.card.verify(pin) {
            Ok(Verdict::Accepted) => {
                turn.end(pin, PinVerdict::Accepted);
                *self.verified = true;
                return Ok(());
            }
            Ok(Verdict::Refused(left)) => left,
            Err(fault) => {
                // The deadline passed before it was sent. Else no answer came, and how many
                // tries are left says next time whether that cost one.
                if let Fault::Ours(_) = fault {
                    turn.end(pin, PinVerdict::NotJudged);
                }
                return Err(fault);
            }
        };
        turn.end(pin, PinVerdict::Refused);
        (*self.verified, *self.pin) = (false, None);
        Err(Fault::Ours(match left {
            Some(0) => Error::PinLocked { token },
            left => Error::PinWrong {
                token,
                tries: left.map_or(TriesLeft::Unknown, TriesLeft::Exactly),
            },
        }))
    }

    /// Makes the PIN count, and says whether that took anything.
    pub(crate) fn verify(&mut self) -> Result<bool, Fault> {
        if *self.verified {
            return Ok(false);
        }
        let pin = self.retained()?;
        self.give_pin(&pin, false, &*self.connection.refused)?;
        Ok(true)
    }

    /// Makes the PIN count for just the next operation.
    pub(crate) fn verify_for_one(&mut self) -> Result<(), Fault> {
        if !self.verify()? {
            // The card accepted it in this session, so a try is not at risk; but
            // another application may be selected, which must not see it.
            match self.card.tries()? {
                Tries::Verified => {}
                Tries::Left(_) => {
                    *self.verified = false;
                    return self.verify().map(drop);
                }
            }
            let pin = self.retained()?;
            // It counts at this moment, and the tries are not shown meanwhile: to write
            // down before that it is sent would say nothing.
            let connection = self.connection;
            self.send_pin(&pin, connection.refused.turn(connection.id())?)?;
        }
        Ok(())
    }

    fn retained(&self) -> Result<SecretString, Fault> {
        self.pin.clone().ok_or_else(|| {
            Fault::Ours(Error::PinNeeded {
                token: self.connection.id().clone(),
            })
        })
    }

    /// Does `work` with the rights of the card administrator. They end with a SELECT, or,
    /// where that ends nothing, with the transaction.
    pub(crate) fn administer<T>(
        &mut self,
        given: Option<&Zeroizing<Vec<u8>>>,
        work: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let done = self.authenticate(given).and_then(|()| work(self));
        if !self.connection.identity.make.select_ends_rights() {
            return done;
        }
        // And with them the PIN's.
        *self.verified = false;
        let ended = self.card.in_any_case(|card| card.select());
        match (done, ended) {
            (Ok(done), Ok(_)) => Ok(done),
            // It is done, whatever becomes of the card now.
            (Ok(done), Err(fault)) => {
                tracing::debug!(?fault, "the management session was not ended");
                Ok(done)
            }
            (Err(fault), _) => Err(fault),
        }
    }

    fn authenticate(&mut self, given: Option<&Zeroizing<Vec<u8>>>) -> Result<(), Fault> {
        let connection = self.connection;
        let token = connection.id();
        let metadata = match connection.identity.make.has(Feature::Metadata) {
            true => self.card.metadata(MANAGEMENT)?,
            false => None,
        };
        let cipher = match &metadata {
            None => Cipher::Tdes,
            Some(metadata) => Cipher::from_id(metadata.algorithm)
                .ok_or_else(|| Fault::malformed("GET METADATA", "an unknown management key"))?,
        };
        let is_default = metadata.and_then(|metadata| metadata.default);
        let protected = given.is_none() && self.card.management_key_is_protected()?;
        let key = match given {
            Some(key) => Some(key.clone()),
            None if protected => {
                self.verify()?;
                self.card.protected_management_key()?
            }
            None => None,
        };
        let key = match key {
            Some(key) => key,
            None if connection.may_try_defaults() && is_default != Some(false) => {
                Zeroizing::new(management::FACTORY_DEFAULT.to_vec())
            }
            None => {
                return Err(Fault::Ours(Error::ManagementKeyNeeded {
                    token: token.clone(),
                }));
            }
        };
        *self.administered = true;
        let done = management::authenticate(&mut self.card, cipher, &key, token);
        *lock(&connection.management_key) = done.is_ok().then_some(key);
        done
    }
}

/// What an operator wants to know of a card, as far as it tells without a PIN.
pub(crate) fn notes(card: &mut Card<'_>, make: &Make) -> Result<Vec<(String, String)>, Fault> {
    let mut notes: Vec<(String, String)> = Vec::new();
    let mut note = |name: &str, value: String| notes.push((name.into(), value));
    if let Some(version) = make.version() {
        note("firmware", version.to_string());
    }
    let metadata = make.has(Feature::Metadata);
    let pin = match metadata {
        true => card.pin_metadata()?,
        false => None,
    };
    let counted = pin.as_ref().and_then(|pin| pin.tries).map(|(_, left)| left);
    let left = match counted {
        Some(left) => Some(left),
        None => match card.tries() {
            Ok(Tries::Left(left)) => Some(left),
            // It does not count while the PIN is given.
            Ok(Tries::Verified) | Err(Fault::Status { .. }) => None,
            Err(fault) => return Err(fault),
        },
    };
    if let Some(left) = left {
        note("pin_tries", left.to_string());
    }
    if left == Some(0) {
        note("pin_locked", "true".into());
    }
    if pin.and_then(|pin| pin.default) == Some(true) {
        note("pin_is_default", "true".into());
    }
    if metadata {
        if let Some(left) = card.puk_tries()? {
            note("puk_tries", left.to_string());
        }
        if let Some(key) = card.metadata(MANAGEMENT)? {
            let cipher = Cipher::from_id(key.algorithm);
            note(
                "management_key",
                cipher.map_or("unknown", Cipher::name).into(),
            );
            if key.default == Some(true) {
                note("management_key_is_default", "true".into());
            }
        }
    }
    if make.version().is_some() {
        let protected = card.management_key_is_protected()?;
        note("management_key_protected", protected.to_string());
    }
    Ok(notes)
}
