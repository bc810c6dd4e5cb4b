//! Whose PIN opens a token, for which token it is meant, and whose login it makes.
//!
//! A backend is a description, and what it describes may be another token by now. So where the
//! engine knows which token it wants, no other one that is opened in its place is given a PIN.
//!
//! # Sharing a login
//! A token is open for the whole process, whoever's PIN opened it. So it is noted whose that
//! was:
//!
//! | the PIN came from | the login is | who uses it |
//! | --- | --- | --- |
//! | what the request [carries](claviger_token::Call::using) | that of the request's sender | the sender, and those whom the policy lets ([`Access::UseLogin`](crate::policy::Access::UseLogin)) |
//! | the node's own access, the backend, or nowhere | the node's | whoever may use the key |
//!
//! The note is made before the PIN is handed out, so that nobody can slip in between the login
//! and the note.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use claviger_token::sync::lock;
use claviger_token::{Call, Error, Pin, PinSource, TokenId, TriesLeft};

use crate::policy::{Access, Policy};
use crate::{EngineError, EngineId};

/// Whose logins the open tokens have. A token that is not in it has the node's.
#[derive(Default)]
pub(crate) struct Logins {
    noted: Mutex<HashMap<TokenId, EngineId>>,
    /// Whether there are any, for those who do not want to wait to find that out.
    any: AtomicBool,
}

impl Logins {
    /// Refuses who must not use somebody else's login.
    ///
    /// # Errors
    /// What `policy` says.
    pub(crate) fn check(
        &self,
        token: &TokenId,
        who: &EngineId,
        policy: &dyn Policy,
    ) -> Result<(), EngineError> {
        if !self.any.load(Ordering::Acquire) {
            return Ok(());
        }
        let owner = self.noted().get(token).cloned();
        match owner.filter(|owner| owner != who) {
            Some(of) => policy.check(who, Access::UseLogin { token, of: &of }),
            None => Ok(()),
        }
    }

    /// The login is that of `owner` from now on; whose it was.
    fn change(&self, token: &TokenId, owner: Option<EngineId>) -> Option<EngineId> {
        let mut noted = self.noted();
        let before = match owner {
            Some(owner) => noted.insert(token.clone(), owner),
            None => noted.remove(token),
        };
        self.any.store(!noted.is_empty(), Ordering::Release);
        before
    }

    fn noted(&self) -> MutexGuard<'_, HashMap<TokenId, EngineId>> {
        lock(&self.noted)
    }
}

/// The PINs of one request: given to one token, if it is known which, and to no other.
pub(crate) struct RequestPins {
    pins: Arc<dyn PinSource>,
    /// The token that is meant, where that is known.
    only: Option<TokenId>,
    logins: Arc<Logins>,
    /// Whose login the PIN makes, where it is not the node's.
    owner: Option<EngineId>,
    seen: Mutex<Asked>,
}

#[derive(Default)]
struct Asked {
    /// Another token that asked for a PIN and did not get it.
    stranger: Option<TokenId>,
    /// The token that got one, and whose login it had before.
    given: Option<(TokenId, Option<EngineId>)>,
}

impl RequestPins {
    /// Gives what `pins` gives; the login is that of `owner`.
    pub(crate) fn new(
        pins: &Arc<dyn PinSource>,
        only: Option<&TokenId>,
        owner: Option<EngineId>,
        logins: &Arc<Logins>,
    ) -> Arc<Self> {
        Arc::new(RequestPins {
            pins: Arc::clone(pins),
            only: only.cloned(),
            logins: Arc::clone(logins),
            owner,
            seen: Mutex::default(),
        })
    }

    /// The other token that asked for a PIN and did not get it, if there was one.
    pub(crate) fn stranger(&self) -> Option<TokenId> {
        self.seen().stranger.clone()
    }

    /// Nothing was opened: the login is whose it was.
    pub(crate) fn take_back(&self) {
        if let Some((token, before)) = self.seen().given.take() {
            self.logins.change(&token, before);
        }
    }

    fn give(
        &self,
        token: &TokenId,
        ask: impl FnOnce(&dyn PinSource) -> Result<Pin, Error>,
    ) -> Result<Pin, Error> {
        if let Some(only) = self.only.as_ref().filter(|only| *only != token) {
            self.seen().stranger = Some(token.clone());
            // No driver tries anything else then.
            return Err(Error::PinSource {
                origin: "the request".into(),
                reason: format!("its PIN is that of {only}, and {token} asks for it"),
            });
        }
        let pin = ask(&*self.pins)?;
        let before = self.logins.change(token, self.owner.clone());
        (self.seen().given).get_or_insert_with(|| (token.clone(), before));
        Ok(pin)
    }

    fn seen(&self) -> MutexGuard<'_, Asked> {
        lock(&self.seen)
    }
}

impl PinSource for RequestPins {
    fn pin(&self, token: &TokenId, label: &str, call: &Call) -> Result<Pin, Error> {
        self.give(token, |pins| pins.pin(token, label, call))
    }

    fn pin_with_tries(
        &self,
        token: &TokenId,
        label: &str,
        tries: TriesLeft,
        call: &Call,
    ) -> Result<Pin, Error> {
        self.give(token, |pins| pins.pin_with_tries(token, label, tries, call))
    }

    fn sends_unsettled(&self, token: &TokenId, label: &str, call: &Call) -> Result<bool, Error> {
        let is_meant = self.only.as_ref().is_none_or(|only| only == token);
        Ok(is_meant && self.pins.sends_unsettled(token, label, call)?)
    }

    fn is_one_for_all(&self) -> bool {
        false
    }
}
