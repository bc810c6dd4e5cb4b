//! Sessions: the one that holds the login, the pool, and recovery.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use claviger_token::sync::lock;
use claviger_token::{Call, Error, Pin, PinSource, RefusedPins, TokenId, TriesLeft};
use cryptoki::error::Error as Ck;
use cryptoki::session::Session;
use cryptoki::slot::{Limit, Slot, TokenInfo};

use crate::error::{Fault, from_module};
use crate::gate::Entered;
use crate::login::{Door, Login, is_logged_in, login};
use crate::module::{Module, Sessions};
use crate::name::token_id;
use crate::quirks::Quirks;
use crate::trouble::Patience;

use self::opened::Opened;

mod context;
mod opened;

/// So many sessions work at a time, besides the one that holds the login.
const MOST_SESSIONS: usize = 8;

/// So often one call recovers the connection before its operation begins. On a busy
/// machine the recoveries of other tokens of the module may undo several in a row.
const MOST_RECOVERIES: usize = 16;

/// How often another session is taken where one is said to be in use already.
const MOST_LEFTOVERS: usize = 10;
const LEFTOVER_PAUSE: Duration = Duration::from_millis(2);

/// So often a waiting call looks whether it was given up.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The sessions with one token.
///
/// They are numbered by *epochs*: a recovery begins a new one. What was found in one
/// epoch, such as the handle of a key, means nothing in another.
pub(crate) struct Connection {
    module: Arc<Module>,
    id: TokenId,
    /// Some makers give all their tokens one serial; no PIN is sent to a token with
    /// another label.
    label: String,
    /// Its slot, where another token had this name and label, too, when it was opened.
    only_in: Option<Slot>,
    login_required: bool,
    write_protected: bool,
    quirks: &'static Quirks,
    /// Of the one who opened it first: for recovery.
    refused: Arc<dyn RefusedPins>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    epoch: u64,
    slot: Slot,
    /// Open as long as the connection works, so that the login lasts. Absent while
    /// there is no working session, and so until the next recovery.
    anchor: Option<Opened>,
    /// The anchor of before, while a recovery looks for the token: with the last session the
    /// login would end.
    replaced: Option<Opened>,
    idle: Vec<Opened>,
    lent: usize,
    most: usize,
    waiting: usize,
    recovering: bool,
    failures: u64,
    failure: Option<Error>,
    /// The PIN that the token accepted, for recovery.
    pin: Option<Pin>,
}

/// What went wrong, when, and whether the token was asked to do anything.
struct Failed {
    fault: Fault,
    epoch: u64,
    began: bool,
}

/// The PIN that was accepted before, and never another one.
struct Retained(Option<Pin>);

/// The PIN that was accepted before; another one only where there is none any more.
struct RetainedFirst<'a>(Retained, &'a dyn PinSource);

impl PinSource for RetainedFirst<'_> {
    fn pin(&self, token: &TokenId, label: &str, call: &Call) -> Result<Pin, Error> {
        match &self.0.0 {
            Some(_) => self.0.pin(token, label, call),
            None => self.1.pin(token, label, call),
        }
    }

    fn pin_with_tries(
        &self,
        token: &TokenId,
        label: &str,
        tries: TriesLeft,
        call: &Call,
    ) -> Result<Pin, Error> {
        match &self.0.0 {
            Some(_) => self.0.pin(token, label, call),
            None => self.1.pin_with_tries(token, label, tries, call),
        }
    }

    fn sends_unsettled(&self, token: &TokenId, label: &str, call: &Call) -> Result<bool, Error> {
        match &self.0.0 {
            Some(_) => Ok(false),
            None => self.1.sends_unsettled(token, label, call),
        }
    }
}

impl PinSource for Retained {
    fn pin(&self, token: &TokenId, _label: &str, _: &Call) -> Result<Pin, Error> {
        self.0.clone().ok_or_else(|| Error::PinNeeded {
            token: token.clone(),
        })
    }
}

/// The right to work with one session for one operation.
struct Lease<'a> {
    connection: &'a Connection,
    /// The module is left after the session has been dealt with.
    entered: Entered<'a>,
    epoch: u64,
    /// The session, if it may be used again; else it has been closed.
    sound: Option<Opened>,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.connection.state);
        state.lent -= 1;
        let mut sound = self.sound.take();
        if state.epoch == self.epoch && state.anchor.is_some() {
            state.idle.extend(sound.take());
        }
        let waiting = state.waiting > 0;
        drop(state);
        if waiting {
            self.connection.changed.notify_one();
        }
        if let Some(session) = sound {
            session.close(&self.connection.module, &self.entered);
        }
    }
}

impl Connection {
    /// Opens the token in `slot` and logs in. If the slot alone tells it from its twin, it
    /// is looked for `only_in` there.
    pub(crate) fn open(
        module: &Arc<Module>,
        (slot, only_in): (Slot, Option<Slot>),
        info: &TokenInfo,
        id: &TokenId,
        quirks: &'static Quirks,
        how: &Login<'_>,
    ) -> Result<Arc<Self>, Error> {
        let connection = Connection {
            module: module.clone(),
            id: id.clone(),
            label: info.label().into(),
            only_in,
            login_required: info.login_required(),
            write_protected: info.write_protected(),
            quirks,
            refused: Arc::clone(how.refused),
            state: Mutex::new(State {
                epoch: 0,
                slot,
                anchor: None,
                replaced: None,
                idle: Vec::new(),
                lent: 0,
                most: most_sessions(info),
                waiting: 0,
                recovering: false,
                failures: 0,
                failure: None,
                pin: None,
            }),
            changed: Condvar::new(),
        };
        // Outlives the right to enter: it may enter the module when it is dropped.
        let connection = Arc::new(connection);
        let entered = module.enter(how.call)?;
        let (anchor, pin) = connection.anchor(slot, info, how, &entered)?;
        {
            let mut state = lock(&connection.state);
            state.anchor = Some(anchor);
            state.pin = pin;
        }
        module.watch(Arc::downgrade(&connection) as _, &entered);
        drop(entered);
        Ok(connection)
    }

    /// Runs `operation` with a session of its own and the epoch of it.
    ///
    /// If the session turns out to be dead there is one recovery, and `operation` runs
    /// once more; so it must be one that may be repeated.
    pub(crate) fn run<T>(
        &self,
        call: &Call,
        operation: impl Fn(&Session, u64) -> Result<T, Fault>,
    ) -> Result<T, Error> {
        self.work(call, 1, operation)
    }

    /// Runs `operation` with a session of its own, at most once, whatever comes.
    pub(crate) fn run_once<T>(
        &self,
        call: &Call,
        operation: impl Fn(&Session, u64) -> Result<T, Fault>,
    ) -> Result<T, Error> {
        self.work(call, 0, operation)
    }

    fn work<T>(
        &self,
        call: &Call,
        mut repetitions: usize,
        operation: impl Fn(&Session, u64) -> Result<T, Fault>,
    ) -> Result<T, Error> {
        let (mut recoveries, mut leftovers) = (0, 0);
        loop {
            let failed = match self.attempt(call, &operation) {
                Ok(value) => return Ok(value),
                Err(failed) => failed,
            };
            if failed.fault.is_leftover() && leftovers < MOST_LEFTOVERS {
                tracing::debug!(token = %self.id, fault = ?failed.fault, "using another session");
                leftovers += 1;
                std::thread::sleep(LEFTOVER_PAUSE);
                continue;
            }
            let again = match failed.began {
                true => repetitions > 0,
                // Before the operation began another token's recovery may have taken
                // the sessions away, even right after our own.
                false => recoveries < MOST_RECOVERIES,
            };
            if !again || !failed.fault.is_dead_session() {
                return Err(failed.fault.into_error(&self.id));
            }
            tracing::debug!(token = %self.id, fault = ?failed.fault, "session is dead");
            repetitions -= usize::from(failed.began);
            recoveries += 1;
            self.recover(failed.epoch, call, None)?;
        }
    }

    fn attempt<T>(
        &self,
        call: &Call,
        operation: &impl Fn(&Session, u64) -> Result<T, Fault>,
    ) -> Result<T, Failed> {
        // Dropped in reverse: the session is closed before its place is free.
        let (mut lease, session) = self.lease(call).map_err(|(fault, epoch)| Failed {
            fault,
            epoch,
            began: false,
        })?;
        let done = operation(&session, lease.epoch);
        // After a refusal an operation may still be active in the session.
        match matches!(done, Ok(_) | Err(Fault::Ours(_))) {
            true => lease.sound = Some(session),
            false => session.close(&self.module, &lease.entered),
        }
        done.map_err(|fault| Failed {
            fault,
            epoch: lease.epoch,
            began: true,
        })
    }

    fn lease(&self, call: &Call) -> Result<(Lease<'_>, Opened), (Fault, u64)> {
        let entered = self.module.enter(call);
        let mut state = lock(&self.state);
        let entered = entered.map_err(|over| (over.into(), state.epoch))?;
        loop {
            let epoch = state.epoch;
            call.check().map_err(|e| (e.into(), epoch))?;
            let anchor = state.anchor.as_ref();
            if !anchor.is_some_and(|anchor| anchor.is_of(&self.module)) {
                return Err((Fault::Gone("there is no session".into()), epoch));
            }
            let session = match state.idle.pop() {
                Some(session) => match session.if_of(&self.module) {
                    Some(session) => Some(session),
                    None => continue,
                },
                None if state.lent < state.most => None,
                None => {
                    state = self.wait(state, call);
                    continue;
                }
            };
            state.lent += 1;
            let slot = state.slot;
            drop(state);
            let lease = Lease {
                connection: self,
                entered,
                epoch,
                sound: None,
            };
            let session = match session {
                Some(session) => session,
                None => self
                    .open_session(slot, &lease.entered)
                    .map_err(|error| (error.into(), epoch))?,
            };
            return Ok((lease, session));
        }
    }

    /// Waits until something changed, it is time to look again, or the deadline.
    fn wait<'a>(&self, mut state: MutexGuard<'a, State>, call: &Call) -> MutexGuard<'a, State> {
        let left = call
            .deadline()
            .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        state.waiting += 1;
        let waited = self
            .changed
            .wait_timeout(state, left.unwrap_or(LOOK_AGAIN).min(LOOK_AGAIN));
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state
    }

    fn open_session(&self, slot: Slot, entered: &Entered<'_>) -> Result<Opened, Ck> {
        let open = || match self.write_protected {
            true => self.module.pkcs11.open_ro_session(slot),
            false => self.module.pkcs11.open_rw_session(slot),
        };
        Opened::new(&self.module, open, entered)
    }

    fn anchor(
        &self,
        slot: Slot,
        info: &TokenInfo,
        how: &Login<'_>,
        entered: &Entered<'_>,
    ) -> Result<(Opened, Option<Pin>), Error> {
        let session = self
            .open_session(slot, entered)
            .map_err(|error| from_module(&error, &self.id))?;
        let door = Door {
            module: &self.module,
            slot,
            info,
            id: &self.id,
            quirks: self.quirks,
        };
        match login(&door, &session, how) {
            Ok(pin) => Ok((session, pin)),
            // Not a word about the PIN: the token's file was away at this moment.
            Err(Error::Device { call, status, .. }) if self.module.forgets_tokens(entered) => {
                Err(Error::TokenUnavailable {
                    token: self.id.clone(),
                    reason: format!("{call}: {status}"),
                })
            }
            Err(other) => Err(other),
        }
    }

    /// Initialises the module anew; the next operation logs in again.
    pub(crate) fn restart_module(&self) {
        self.module.restart();
    }

    /// Whether the token can be used only after a recovery with another PIN.
    pub(crate) fn has_failed(&self) -> bool {
        let state = lock(&self.state);
        state.anchor.is_none() && state.failure.is_some()
    }

    /// Makes the connection work again, if it does not; with PINs from `how` where the
    /// token refused the one that it accepted before.
    pub(crate) fn revive(&self, how: &Login<'_>) -> Result<(), Error> {
        let (epoch, retained) = {
            let state = lock(&self.state);
            (state.epoch, Retained(state.pin.clone()))
        };
        let how = Login {
            pins: &RetainedFirst(retained, how.pins),
            ..*how
        };
        self.recover(epoch, how.call, Some(&how))
    }

    /// Replaces what failed in `epoch` by a new session with a new login. Of several
    /// threads that want it, one does it, and all have its result; but where its own call
    /// ends meanwhile, the next one does it.
    fn recover(&self, epoch: u64, call: &Call, how: Option<&Login<'_>>) -> Result<(), Error> {
        let mut state = lock(&self.state);
        let failures = state.failures;
        loop {
            if state.epoch != epoch {
                return Ok(());
            }
            if state.failures != failures {
                return Err(state.failure.clone().unwrap_or_else(|| self.unavailable()));
            }
            if !state.recovering {
                break;
            }
            call.check()?;
            state = self.wait(state, call);
        }
        state.recovering = true;
        let retained = Retained(state.pin.clone());
        drop(state);
        let turn = Recovering(self);
        let retained = Login {
            pins: &retained,
            last_try: false,
            // The token took it.
            any_length: true,
            refused: &self.refused,
            call,
        };
        let result = self.reattach(how.unwrap_or(&retained));
        let mut state = lock(&self.state);
        let result = match result {
            Ok(found) => {
                state.slot = found.slot;
                state.anchor = Some(found.anchor);
                state.pin = found.pin.or(state.pin.take());
                state.epoch += 1;
                state.failure = None;
                tracing::info!(token = %self.id, "session recovered");
                Ok(())
            }
            // That is the caller's end, and says nothing of the token.
            Err(error @ (Error::Cancelled | Error::DeadlineExceeded)) => Err(error),
            Err(error) => {
                if is_refusal(&error) {
                    state.pin = None;
                }
                state.failures += 1;
                state.failure = Some(error.clone());
                tracing::debug!(token = %self.id, %error, "session not recovered");
                Err(error)
            }
        };
        drop(state);
        drop(turn);
        result
    }

    fn reattach(&self, how: &Login<'_>) -> Result<Attached, Error> {
        {
            let entered = self.module.enter(how.call)?;
            let (older, idle) = {
                let mut state = lock(&self.state);
                let older = match state.anchor.take() {
                    Some(anchor) => state.replaced.replace(anchor),
                    None => None,
                };
                (older, std::mem::take(&mut state.idle))
            };
            for session in idle.into_iter().chain(older) {
                session.close(&self.module, &entered);
            }
        }
        match self.attach(how) {
            Err(Error::TokenUnavailable { .. }) if self.module.reset(how.call)? => self.attach(how),
            other => other,
        }
    }

    /// Finds the token and logs in. The session that is replaced is closed after that: with
    /// the last one the login would end.
    fn attach(&self, how: &Login<'_>) -> Result<Attached, Error> {
        let (entered, sight) = match self.module.look(Patience::Now, how.call) {
            Ok(looked) => looked,
            Err(Fault::Ours(over)) => return Err(over),
            Err(_) => return Err(self.unavailable()),
        };
        let old = lock(&self.state).replaced.take();
        // The new session may get the handle of one that the token's leaving has ended.
        let old = (old.and_then(|old| old.if_of(&self.module)))
            .filter(|old| old.get_session_info().is_ok());
        let attached = self.attach_to_one(sight.tokens, how, &entered);
        if let Some(old) = old {
            old.close(&self.module, &entered);
        }
        attached
    }

    fn attach_to_one(
        &self,
        tokens: Vec<(Slot, TokenInfo)>,
        how: &Login<'_>,
        entered: &Entered<'_>,
    ) -> Result<Attached, Error> {
        let mut found = (tokens.into_iter()).filter(|(slot, info)| self.is(*slot, info));
        let (slot, info) = match (found.next(), found.next()) {
            (Some(one), None) => one,
            (None, _) => return Err(self.unavailable()),
            // Which of them took the PIN is not known.
            (Some(_), Some(_)) => {
                return Err(Error::TokenUnavailable {
                    token: self.id.clone(),
                    reason: "the module lists several tokens with its serial and label".into(),
                });
            }
        };
        let (anchor, pin) = self.anchor(slot, &info, how, entered)?;
        Ok(Attached { slot, anchor, pin })
    }

    fn is(&self, slot: Slot, info: &TokenInfo) -> bool {
        self.only_in.is_none_or(|only| only == slot)
            && token_id(info, self.quirks) == self.id
            && info.label() == self.label
    }

    fn unavailable(&self) -> Error {
        Error::TokenUnavailable {
            token: self.id.clone(),
            reason: "the module does not list it".into(),
        }
    }

    /// Makes sure that the token behind the session is this one and logged in: where
    /// an empty answer would else be believed.
    pub(crate) fn confirm(&self, session: &Session) -> Result<(), Fault> {
        if self.login_required && !is_logged_in(session)? {
            return Err(Fault::Gone("it is not logged in".into()));
        }
        let slot = session.get_session_info()?.slot_id();
        match self.module.token_info(slot) {
            Ok(info) if self.is(slot, &info) => Ok(()),
            _ => Err(Fault::Gone("it is no longer in its slot".into())),
        }
    }
}

impl Connection {
    /// Every session that is not lent.
    fn take_sessions(&self) -> impl Iterator<Item = Opened> + use<> {
        let mut state = lock(&self.state);
        let (anchor, replaced) = (state.anchor.take(), state.replaced.take());
        let idle = std::mem::take(&mut state.idle);
        idle.into_iter().chain(replaced).chain(anchor)
    }
}

impl Sessions for Connection {
    /// Ends the use of every session that is not lent. Called by [`Module::reset`],
    /// and so while none is.
    fn forget_sessions(&self, alone: &Entered<'_>) {
        for session in self.take_sessions() {
            session.close(&self.module, alone);
        }
    }

    fn forget_handles(&self) {
        lock(&self.state).epoch += 1;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let sessions = self.take_sessions();
        let open: Vec<_> = sessions.filter_map(|s| s.if_of(&self.module)).collect();
        if open.is_empty() {
            return;
        }
        // However long it takes: sessions are closed by nobody else.
        if let Ok(entered) = self.module.enter(&Call::unlimited()) {
            for session in open {
                session.close(&self.module, &entered);
            }
        }
    }
}

/// A token that was found again.
struct Attached {
    slot: Slot,
    anchor: Opened,
    pin: Option<Pin>,
}

/// Ends the turn of the thread that recovers, however it ends.
struct Recovering<'a>(&'a Connection);

impl Drop for Recovering<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).recovering = false;
        self.0.changed.notify_all();
    }
}

/// Whether the token said no to the PIN, so that it must not be sent again.
fn is_refusal(error: &Error) -> bool {
    matches!(
        error,
        Error::PinWrong { .. } | Error::PinLength { .. } | Error::PinRefusedBefore { .. }
    )
}

fn most_sessions(info: &TokenInfo) -> usize {
    let limits = [info.max_session_count(), info.max_rw_session_count()];
    let limits = limits.into_iter().filter_map(|limit| match limit {
        // One is the anchor's. Zero is no statement.
        Limit::Max(most) if most > 0 => usize::try_from(most).ok()?.checked_sub(1),
        _ => None,
    });
    limits
        .min()
        .unwrap_or(MOST_SESSIONS)
        .clamp(1, MOST_SESSIONS)
}
