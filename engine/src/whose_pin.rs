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
//! | what the request [carries](claviger_token::Call::using) | that of the request's sender | the sender, and those whom the policy lets ([`Permission::UseLogin`](crate::policy::Permission::UseLogin)) |
//! | the node's own access | the node's | whoever may use the key by this node; by others, those whom the policy lets |
//! | the backend, or nowhere | nobody's | whoever may use the key |
//!
//! Through a [view](crate::Node::seen_by) of a node one caller asks, whatever the sender is called:
//! the login of a PIN that a request carries is the view's.
//!
//! A sender is one of one node: `alice` of another node is another one, with another home and
//! another policy.
//!
//! Who must not use a login may show that they have the PIN, where their source lets it be
//! [compared](claviger_token::PinSource::may_be_compared) with the one that the token accepted.
//!
//! The note is made before the PIN is handed out, so that nobody can slip in between the login
//! and the note. It is taken back only where the token did not accept the PIN: what failed
//! otherwise may have failed after the login. No PIN is handed out once the opening that asked
//! for it is over.
//!
//! Drivers share an open token among all nodes of a process. So do nodes the note: it lasts as
//! long as one of them has it, with the token that it opened or tried to open, and as long as an
//! operation goes on that keeps the token open.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

use claviger_token::sync::lock;
use claviger_token::{Call, Error, Pin, PinSource, PinVerdict, RefusedPins, TokenId, TriesLeft};

use crate::accepted::Accepted;
use crate::policy::{Permission, Policy, Subject};
use crate::turns::Kept;
use crate::verdicts::Told;
use crate::{EngineError, EngineId};

/// Whose login each token has, for all nodes of this process.
static LOGINS: LazyLock<Kept<TokenId, Login>> = LazyLock::new(Kept::default);

/// The view whose login it is whose owner let go of it.
const NOBODY: &str = "nobody";

/// The number of the next node.
static NODES: AtomicU64 = AtomicU64::new(0);

/// Whose PIN made a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The node, by its number in this process.
    node: u64,
    /// The view of the node; `None`: the node itself, and so all its views.
    view: Option<Arc<str>>,
    /// The sender; `None`: the node itself or the view, and so all its senders.
    who: Option<EngineId>,
}

impl Owner {
    /// Whether requests of `who` to this node or view use it without a question.
    fn serves(&self, node: u64, view: Option<&str>, who: &EngineId) -> bool {
        self.node == node
            && (self.view.is_none() || self.view.as_deref() == view)
            && self.who.as_ref().is_none_or(|owner| owner == who)
    }
}

/// Whose login a token has.
#[derive(Default)]
pub(crate) struct Login {
    /// `None`: nobody's that is known.
    owner: Mutex<Option<Owner>>,
    /// Whether it is somebody's, for those who do not want to wait to find that out.
    is_owned: AtomicBool,
}

impl Login {
    /// Whether it is somebody's.
    pub(crate) fn is_owned(&self) -> bool {
        self.is_owned.load(Ordering::Acquire)
    }

    /// Whose it is, where `who` does not use it without a question.
    fn of_others(&self, logins: &Logins, who: &EngineId) -> Option<EngineId> {
        if !self.is_owned() {
            return None;
        }
        let owner = self.owner();
        let serves = |owner: &&Owner| owner.serves(logins.node, logins.view.as_deref(), who);
        let others = owner.as_ref().filter(|owner| !serves(owner))?;
        Some(others.who.clone().unwrap_or_else(EngineId::program))
    }

    /// It is that of `before` again, unless it is not that of `owner` any more.
    fn restore(&self, owner: &Owner, before: Option<Owner>) {
        let mut now = self.owner();
        if now.as_ref() == Some(owner) {
            self.put(&mut now, before);
        }
    }

    /// It is that of `owner` from now on; whose it was.
    fn change(&self, owner: &Owner) -> Option<Owner> {
        self.put(&mut self.owner(), Some(owner.clone()))
    }

    fn put(&self, now: &mut Option<Owner>, owner: Option<Owner>) -> Option<Owner> {
        let before = std::mem::replace(now, owner);
        self.is_owned.store(now.is_some(), Ordering::Release);
        before
    }

    fn owner(&self) -> MutexGuard<'_, Option<Owner>> {
        lock(&self.owner)
    }
}

/// The logins of the tokens that a node opened or tried to open.
pub(crate) struct Logins {
    /// The node's number, which no other node of this process has.
    node: u64,
    /// The name of the view, if this is one.
    view: Option<Arc<str>>,
    /// Of the node with all its views: a login lasts longer than a view.
    known: Arc<Mutex<HashMap<TokenId, Arc<Login>>>>,
}

impl Default for Logins {
    fn default() -> Self {
        Logins {
            node: next_number(),
            view: None,
            known: Arc::default(),
        }
    }
}

fn next_number() -> u64 {
    NODES.fetch_add(1, Ordering::Relaxed)
}

impl Logins {
    /// Those of a view of the node. Views of one subject have the same; others are nobody else's.
    pub(crate) fn of_view(&self, subject: Option<Subject>) -> Self {
        let name = match subject {
            Some(subject) => format!("subject {}", subject.name),
            None => format!("number {}", next_number()),
        };
        Logins {
            node: self.node,
            view: Some(name.into()),
            known: Arc::clone(&self.known),
        }
    }

    /// Whether a view has them.
    pub(crate) fn are_of_view(&self) -> bool {
        self.view.is_some()
    }

    /// Who has the login that a PIN makes: one that the request of `who` carries, or else the
    /// node's own. All that is asked through a view is asked by one.
    fn owner(&self, who: Option<EngineId>) -> Owner {
        let view = self.view.clone().filter(|_| who.is_some());
        Owner {
            node: self.node,
            who: who.filter(|_| view.is_none()),
            view,
        }
    }

    /// Who counts where each sender has a limit: all that is asked through a view is asked by one,
    /// whatever names it asks for.
    pub(crate) fn counted(&self, who: &EngineId) -> EngineId {
        match &self.view {
            Some(view) => EngineId::local(Arc::clone(view)),
            None => who.clone(),
        }
    }

    /// Refuses who must not use somebody else's login.
    ///
    /// # Errors
    /// What `policy` says.
    pub(crate) fn check(
        &self,
        (login, accepted): (&Login, &Accepted<Owner>),
        token: &TokenId,
        who: &EngineId,
        policy: &dyn Policy,
    ) -> Result<(), EngineError> {
        match login.of_others(self, who) {
            Some(_) if accepted.was_shown_by(&self.owner(Some(who.clone()))) => Ok(()),
            Some(of) => policy.check(who, Permission::UseLogin { token, of: &of }),
            None => Ok(()),
        }
    }

    /// Compares the PIN of `who` with the one that the token accepted, if that is known.
    pub(crate) fn compare(
        &self,
        accepted: &Accepted<Owner>,
        who: &EngineId,
        pin: &Pin,
    ) -> Option<bool> {
        accepted.compare(self.owner(Some(who.clone())), pin)
    }

    /// The PIN that requests of the view `self` gave does not count any more: they use the login
    /// only if the policy lets them, or if they give it again.
    pub(crate) fn let_go(&self, login: &Login, accepted: Option<&Accepted<Owner>>) {
        let Some(view) = &self.view else {
            return;
        };
        let owner = Owner {
            node: self.node,
            view: Some(Arc::clone(view)),
            who: None,
        };
        let nobody = Owner {
            view: Some(NOBODY.into()),
            ..owner.clone()
        };
        login.restore(&owner, Some(nobody));
        if let Some(accepted) = accepted {
            accepted.forget(&owner);
        }
    }

    /// That of a token.
    pub(crate) fn of(&self, token: &TokenId) -> Arc<Login> {
        let mut known = lock(&self.known);
        let login = known
            .entry(token.clone())
            .or_insert_with(|| LOGINS.of(token, Login::default));
        Arc::clone(login)
    }
}

/// The PINs of one request: given to one token, if it is known which, and to no other.
pub(crate) struct RequestPins {
    pins: Arc<dyn PinSource>,
    /// The token that is meant, where that is known.
    only: Option<TokenId>,
    logins: Arc<Logins>,
    /// Whose login the PIN makes.
    owner: Owner,
    seen: Mutex<PinsGiven>,
}

#[derive(Default)]
struct PinsGiven {
    /// Another token that asked for a PIN and did not get it.
    stranger: Option<TokenId>,
    /// The token that got one last, and the PIN, if it was accepted.
    last: Option<TokenId>,
    accepted: Option<Pin>,
    /// The tokens that got one.
    given: HashMap<TokenId, Given>,
    /// Nobody opens anything with them any more.
    closed: bool,
}

/// A PIN that a token got.
struct Given {
    login: Arc<Login>,
    /// Whose the login was before.
    before: Option<Owner>,
    /// What the token made of it, where its driver says so.
    verdict: Option<PinVerdict>,
}

impl RequestPins {
    /// Gives what `pins` gives; the login is that of `who`, or the node's where that is nobody.
    pub(crate) fn new(
        pins: &Arc<dyn PinSource>,
        only: Option<&TokenId>,
        who: Option<EngineId>,
        logins: &Arc<Logins>,
    ) -> Arc<Self> {
        Arc::new(RequestPins {
            pins: Arc::clone(pins),
            only: only.cloned(),
            logins: Arc::clone(logins),
            owner: logins.owner(who),
            seen: Mutex::default(),
        })
    }

    /// The other token that asked for a PIN and did not get it, if there was one.
    pub(crate) fn stranger(&self) -> Option<TokenId> {
        self.seen().stranger.clone()
    }

    /// `memory`, which also lets this hear what the token answers. It may outlive this.
    pub(crate) fn hearing(self: &Arc<Self>, memory: &Arc<dyn RefusedPins>) -> Arc<dyn RefusedPins> {
        let (memory, pins) = (Arc::clone(memory), Arc::downgrade(self));
        let tell = move |pin: &Pin, verdict| {
            if let Some(pins) = pins.upgrade() {
                pins.hear(pin, verdict);
            }
        };
        Arc::new(Told { memory, tell })
    }

    fn hear(&self, pin: &Pin, verdict: PinVerdict) {
        let mut seen = self.seen();
        if verdict == PinVerdict::Accepted {
            seen.accepted = Some(pin.clone());
        }
        let token = seen.last.clone();
        if let Some(given) = token.as_ref().and_then(|token| seen.given.get_mut(token)) {
            given.verdict = Some(verdict);
            if verdict == PinVerdict::Accepted {
                // Another opening may have given its PIN since, which is not judged.
                given.login.change(&self.owner);
            }
        }
        drop(seen);
        if let Some(token) = token {
            self.pins.answered(&token, verdict);
        }
    }

    /// The PIN that the token accepted, if it got one and did.
    pub(crate) fn accepted(&self) -> Option<Pin> {
        self.seen().accepted.take()
    }

    /// The opening is over: no PIN is given any more. Where `opened` or the token's verdict shows
    /// that it did not accept the one that it got, the login is whose it was.
    pub(crate) fn close<T>(&self, opened: &Result<T, EngineError>) {
        let mut seen = self.seen();
        seen.closed = true;
        for (_, given) in seen.given.drain() {
            let is_others = match opened {
                // Somebody else logged in meanwhile: then a token does not judge any PIN.
                Ok(_) => given.verdict.is_some_and(|of| of != PinVerdict::Accepted),
                Err(error) => {
                    let was_accepted = given.verdict == Some(PinVerdict::Accepted);
                    (!was_accepted && shows_that_none_was_accepted(error))
                        || self.is_wider_than(given.before.as_ref())
                }
            };
            if is_others {
                given.login.restore(&self.owner, given.before);
            }
        }
    }

    /// Whether the PIN is the node's own and the login was one sender's or view's of this node:
    /// then it is no matter whether the PIN was accepted, and who had the login keeps it.
    fn is_wider_than(&self, before: Option<&Owner>) -> bool {
        let is_nodes = self.owner.who.is_none() && self.owner.view.is_none();
        is_nodes && before.is_some_and(|before| before.node == self.owner.node)
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
                reason: format!("it holds the PIN of {only}, but {token} asks for one"),
            });
        }
        let pin = ask(&*self.pins)?;
        let mut seen = self.seen();
        if seen.closed {
            return Err(Error::Cancelled);
        }
        let login = self.logins.of(token);
        let before = login.change(&self.owner);
        seen.last = Some(token.clone());
        let given = seen.given.entry(token.clone());
        let given = given.or_insert(Given {
            login,
            before,
            verdict: None,
        });
        given.verdict = None;
        Ok(pin)
    }

    fn seen(&self) -> MutexGuard<'_, PinsGiven> {
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

/// Whether the token is not logged in with the PIN that it was given, since it refused it, or
/// never got it. What else fails may have failed after the login.
fn shows_that_none_was_accepted(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::Token(
            Error::PinWrong { .. }
                | Error::PinRefusedBefore { .. }
                | Error::PinUnsettled { .. }
                | Error::PinNotNoted { .. }
                | Error::PinFinalTry { .. }
                | Error::PinLocked { .. }
                | Error::PinNotSet { .. }
                | Error::PinLength { .. }
                | Error::PinNeeded { .. }
                | Error::PinSource { .. }
        )
    )
}

#[cfg(test)]
mod tests {
    use claviger_token::FixedPin;

    use super::*;

    #[test]
    fn a_pin_that_comes_after_its_opening_is_over_goes_to_no_token_and_changes_no_login() {
        let token = TokenId {
            kind: "k".into(),
            manufacturer: "m".into(),
            serial: "s".into(),
        };
        let who = |name: &str| Some(EngineId::local(name));
        let (logins, call) = (Arc::<Logins>::default(), Call::unlimited());
        let given: Arc<dyn PinSource> = Arc::new(FixedPin::new("246802"));
        let pins = |owner| RequestPins::new(&given, None, owner, &logins);
        let [first, late] = ["alice", "bob"].map(|name| pins(who(name)));
        assert!(first.pin(&token, "", &call).is_ok());
        first.close(&Ok(()));
        late.close::<()>(&Err(Error::Cancelled.into()));
        for pins in [&first, &late] {
            let pin = pins.pin(&token, "", &call);
            assert!(matches!(pin, Err(Error::Cancelled)), "{pin:?}");
        }
        let owner = || logins.of(&token).owner().clone().unwrap().who;
        assert_eq!(owner(), who("alice"));
        // Nor does what came of an opening change the login that another one made since.
        let [wrong, right] = ["carol", "bob"].map(|name| pins(who(name)));
        for pins in [&wrong, &right] {
            assert!(pins.pin(&token, "", &call).is_ok());
        }
        wrong.close::<()>(&Err(Error::PinRefusedBefore {
            token: token.clone(),
        }
        .into()));
        assert_eq!(owner(), who("bob"));
    }
}
