//! The PINs of one request.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard};

use claviger_engine::EngineId;
use claviger_token::sync::lock;
use claviger_token::{Call, Error, Pin, PinSource, PinVerdict, StoredPin, TokenId, TriesLeft};

use super::{Keeper, credential};
use crate::{AskPin, Caller, SecretBytes, SecretKind};

/// The PINs of one request.
pub(super) struct Source {
    keeper: Arc<Keeper>,
    caller: Caller,
    /// The identity whose key the request uses, where it is known that it uses no other one.
    owner: Option<EngineId>,
    /// Asks the connection; `None`: the request asks nobody.
    asker: Option<Arc<dyn AskPin>>,
    purpose: For,
    given: Mutex<Option<Given>>,
    /// A token that took the PIN of the caller, who does not hold it yet.
    is_loose: Mutex<Option<TokenId>>,
}

/// What the PINs are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    /// A request of the caller.
    Caller,
    /// The request to unlock a token: only who asks for that gives the PIN.
    Unlocking,
    /// What the daemon does itself: nobody has to be asked whether it may use what it has.
    Daemon,
}

/// A PIN that the request got: it has one try.
#[derive(Clone)]
struct Given {
    token: TokenId,
    pin: Pin,
    by: By,
    /// Whether it is known if it is right.
    is_judged: bool,
}

impl Given {
    fn new(token: &TokenId, pin: Pin, by: By) -> Self {
        Given {
            token: token.clone(),
            pin,
            by,
            is_judged: false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// The daemon has it.
    Daemon,
    /// The caller gave it.
    Caller,
}

impl Source {
    pub(super) fn of_request(
        keeper: &Arc<Keeper>,
        caller: &Caller,
        owner: Option<EngineId>,
        asker: Arc<dyn AskPin>,
    ) -> Arc<Self> {
        Source::new(keeper, caller, owner, Some(asker), For::Caller)
    }

    /// Of a request that asks nobody: only what the daemon has.
    pub(super) fn unattended(keeper: &Arc<Keeper>, caller: &Caller) -> Arc<Self> {
        Source::new(keeper, caller, None, None, For::Caller)
    }

    /// Of the daemon itself, which asks nobody.
    pub(super) fn of_the_daemon(keeper: &Arc<Keeper>) -> Arc<Self> {
        Source::new(keeper, &Caller::the_daemon(), None, None, For::Daemon)
    }

    pub(super) fn to_unlock(
        keeper: &Arc<Keeper>,
        caller: &Caller,
        asker: Arc<dyn AskPin>,
    ) -> Arc<Self> {
        Source::new(keeper, caller, None, Some(asker), For::Unlocking)
    }

    fn new(
        keeper: &Arc<Keeper>,
        caller: &Caller,
        owner: Option<EngineId>,
        asker: Option<Arc<dyn AskPin>>,
        purpose: For,
    ) -> Arc<Self> {
        Arc::new(Source {
            keeper: Arc::clone(keeper),
            caller: caller.clone(),
            owner,
            asker,
            purpose,
            given: Mutex::default(),
            is_loose: Mutex::default(),
        })
    }

    /// The PIN that it gave.
    pub(super) fn given(&self) -> Option<Pin> {
        self.last().as_ref().map(|given| given.pin.clone())
    }

    /// The PIN that it gave for the token.
    ///
    /// # Errors
    /// [`Error::PinNeeded`] if it is one that the daemon must not use any more.
    fn given_for(&self, token: &TokenId, call: &Call) -> Result<Option<Pin>, Error> {
        let last = self.last().clone();
        let Some(given) = last.filter(|given| given.token == *token) else {
            return Ok(None);
        };
        if given.by == By::Daemon && self.of_daemon(token, call)?.is_none() {
            let token = token.clone();
            return Err(Error::PinNeeded { token });
        }
        Ok(Some(given.pin))
    }

    fn keep(&self, given: Given) -> Pin {
        let pin = given.pin.clone();
        *self.last() = Some(given);
        pin
    }

    fn find(
        &self,
        token: &TokenId,
        label: &str,
        tries: TriesLeft,
        call: &Call,
    ) -> Result<Given, Error> {
        if let Some(given) = self.found_by_daemon(token, call)? {
            return Ok(given);
        }
        self.count(token, false)?;
        let Some(pin) = self.ask(token, label, tries, call)? else {
            return Err(Error::PinNeeded {
                token: token.clone(),
            });
        };
        // Other requests of the same user may have given wrong ones meanwhile.
        self.count(token, true)?;
        Ok(Given::new(token, pin, By::Caller))
    }

    fn found_by_daemon(&self, token: &TokenId, call: &Call) -> Result<Option<Given>, Error> {
        if self.purpose == For::Unlocking {
            return Ok(None);
        }
        let pin = self.of_daemon(token, call)?;
        Ok(pin.map(|pin| Given::new(token, pin, By::Daemon)))
    }

    /// Refuses a PIN of a user who has to wait, and otherwise counts it, if `is_given`.
    fn count(&self, token: &TokenId, is_given: bool) -> Result<(), Error> {
        let (now, uid) = (self.keeper.clock.elapsed(), self.caller.uid);
        let wrong = &mut self.keeper.state().wrong;
        match wrong.wait(uid, token, now) {
            0 if is_given => wrong.note(uid, token, now),
            0 => {}
            seconds => {
                let token = token.clone();
                return Err(Error::PinWait { token, seconds });
            }
        }
        Ok(())
    }

    /// The PIN that the daemon has, if the caller may use it.
    fn of_daemon(&self, token: &TokenId, call: &Call) -> Result<Option<Pin>, Error> {
        let keeper = &self.keeper;
        let (caller, owner) = (&self.caller, self.owner.as_ref());
        let may =
            self.purpose == For::Daemon || keeper.authority.may_use_login(caller, owner, token);
        if !may {
            return Ok(None);
        }
        if let Some(pin) = keeper.state().pin(token) {
            return Ok(Some(pin));
        }
        let settings = keeper.settings.load_full();
        let folder = settings.credentials.as_deref();
        let Some(file) = folder.and_then(|folder| credential::of(folder, token)) else {
            return Ok(None);
        };
        if !keeper.state().may_use_credential(token) {
            return Ok(None);
        }
        StoredPin::File(file).pin(token, "", call).map(Some)
    }

    /// Asks the connection, and then a person at the machine, unless the request asks nobody.
    fn ask(
        &self,
        token: &TokenId,
        label: &str,
        tries: TriesLeft,
        call: &Call,
    ) -> Result<Option<Pin>, Error> {
        let tries = match tries {
            TriesLeft::Exactly(tries) => Some(tries.into()),
            TriesLeft::Final => Some(1),
            TriesLeft::Unknown | TriesLeft::Low | TriesLeft::All => None,
        };
        let Some(connection) = &self.asker else {
            return Ok(None);
        };
        let settings = self.keeper.settings.load_full();
        let limited = match settings.answer_within {
            Some(limit) => call.clone().no_longer_than(limit),
            None => call.clone(),
        };
        let askers = [Some(connection), settings.pinentry.as_ref()];
        for asker in askers.into_iter().flatten() {
            let answer = asker.ask(SecretKind::Pin, token, label, tries, &limited);
            call.check()?;
            if let Some(answer) = answer {
                return text(&answer, "PIN").map(Some);
            }
        }
        Ok(None)
    }

    fn last(&self) -> MutexGuard<'_, Option<Given>> {
        lock(&self.given)
    }

    /// By whom the PIN of the token was given, which is judged now.
    fn judging(&self, token: &TokenId) -> Option<By> {
        let mut given = self.last();
        let given = given.as_mut().filter(|given| given.token == *token)?;
        given.is_judged = true;
        Some(given.by)
    }

    /// Whether what was given is the PIN of the token.
    fn judged(&self, token: &TokenId, is_right: bool) {
        let (keeper, uid) = (&self.keeper, self.caller.uid);
        match (self.judging(token), is_right) {
            (Some(By::Caller), true) => {
                let mut state = keeper.state();
                state.wrong.forget(uid, token);
                if self.purpose == For::Unlocking || !state.hold(&self.caller, token) {
                    *lock(&self.is_loose) = Some(token.clone());
                }
                keeper.changed.notify_one();
            }
            // It was counted when it was given.
            (Some(By::Caller), false) => {}
            // The login is the daemon's, not the caller's: a grant that is taken back ends it.
            (Some(By::Daemon), true) => keeper.authority.view(&self.caller).let_go(token),
            // Somebody changed the PIN.
            (Some(By::Daemon), false) => keeper.state().drop_pin(token),
            (None, _) => {}
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let given = self.last().take();
        if let Some(given) = given.filter(|given| !given.is_judged && given.by == By::Caller) {
            let wrong = &mut self.keeper.state().wrong;
            wrong.take_back(self.caller.uid, &given.token);
        }
        // Only now: before, it was not open yet.
        if let Some(token) = lock(&self.is_loose).take() {
            let to_unlock = self.purpose == For::Unlocking;
            self.keeper.end_loose(&self.caller, &token, to_unlock);
        }
    }
}

impl PinSource for Source {
    fn pin(&self, token: &TokenId, label: &str, call: &Call) -> Result<Pin, Error> {
        self.pin_with_tries(token, label, TriesLeft::Unknown, call)
    }

    fn pin_with_tries(
        &self,
        token: &TokenId,
        label: &str,
        tries: TriesLeft,
        call: &Call,
    ) -> Result<Pin, Error> {
        // A request has one PIN for a token; whether it may be sent again the registry knows.
        if let Some(pin) = self.given_for(token, call)? {
            return Ok(pin);
        }
        let given = self.find(token, label, tries, call)?;
        Ok(self.keep(given))
    }

    fn pin_at_once(
        &self,
        token: &TokenId,
        _: &str,
        _: TriesLeft,
        call: &Call,
    ) -> Result<Option<Pin>, Error> {
        let given = match self.given_for(token, call)? {
            Some(pin) => return Ok(Some(pin)),
            None => self.found_by_daemon(token, call)?,
        };
        Ok(given.map(|given| self.keep(given)))
    }

    fn is_one_for_all(&self) -> bool {
        false
    }

    fn may_be_compared(&self) -> bool {
        true
    }

    fn compared(&self, token: &TokenId, is_same: bool) {
        if !is_same {
            self.keeper.counts.differed.fetch_add(1, Relaxed);
        }
        self.judged(token, is_same);
    }

    fn answered(&self, token: &TokenId, verdict: PinVerdict) {
        match verdict {
            PinVerdict::Accepted => self.judged(token, true),
            PinVerdict::Refused => {
                self.keeper.counts.rejected.fetch_add(1, Relaxed);
                self.judged(token, false);
            }
            PinVerdict::NotJudged => {}
        }
    }
}

/// The management keys of one request: only its connection gives them.
pub(super) struct Keys(pub(super) Arc<dyn AskPin>);

impl PinSource for Keys {
    fn pin(&self, token: &TokenId, label: &str, call: &Call) -> Result<Pin, Error> {
        let answer = (self.0).ask(SecretKind::ManagementKey, token, label, None, call);
        call.check()?;
        match answer {
            Some(answer) => text(&answer, "management key"),
            None => Err(Error::ManagementKeyNeeded {
                token: token.clone(),
            }),
        }
    }

    fn is_one_for_all(&self) -> bool {
        false
    }
}

/// # Errors
/// [`Error::PinSource`], which does not quote it.
fn text(answer: &SecretBytes, what: &str) -> Result<Pin, Error> {
    let failed = |reason: &str| Error::PinSource {
        origin: format!("the caller (its {what})"),
        reason: reason.into(),
    };
    let text = std::str::from_utf8(answer).map_err(|_| failed("it is not UTF-8"))?;
    match text {
        "" => Err(failed("it is empty")),
        _ if text.contains('\0') => Err(failed("it contains a zero byte")),
        _ => Ok(Pin::from(text)),
    }
}
