//! PINs in the daemon: given once, kept for as long as somebody said, and used for whom they are.
//!
//! # Where the PIN of a request comes from
//! In this order; the first that has one is used, and no other one is tried after it:
//!
//! 1. what [`Keeper::unlock`] gave, if the caller may use it: on a user's own instance that user
//!    may; otherwise a grant to `use-login` says so;
//! 2. a [credential] of systemd, under the same condition;
//! 3. the connection that asks ([`AskPin`]), and no other one;
//! 4. a pinentry, if the front-end has one.
//!
//! # Who uses a login
//! A login is that of the daemon (1, 2) or of the caller whose PIN made it (3, 4): the
//! engine's rule (`whose_pin`), by the policy of each connection's view. While the token is open a
//! further PIN is compared with the one that it accepted and not sent. After three wrong ones the
//! caller's user waits.
//!
//! # When it ends
//! | what | ends |
//! | --- | --- |
//! | what `unlock` gave | after its time, at [`Keeper::lock`], when the token goes, after a sleep, at the end |
//! | what a connection gave | when the caller's last connection closes, and at all of these |
//! | a login | when none of these is left for its token; requests in flight end first |
//!
//! PINs are [`Pin`](claviger_token::Pin)s: in memory that is not swapped out, and wiped.

mod authority;
mod clock;
pub mod credential;
mod kept;
mod source;
mod wrong;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arc_swap::ArcSwap;
use claviger_engine::node::ClosingToken;
use claviger_engine::{EngineError, EngineId, Node, TokenChanges, TokenState};
use claviger_token::sync::lock;
use claviger_token::{Access, Call, Error, TokenId, TokenInfo};
use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, unconstrained};

pub use self::authority::Authority;
pub use self::clock::{Clock, SystemClock};
use self::kept::State;
use self::source::{Keys, Source};
use crate::{AskPin, Caller};

/// So often it is looked whether a time is over, or the machine slept.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// So often it is looked whether what was locked is closed.
const LOOK_WHETHER_CLOSED: Duration = Duration::from_millis(5);

/// A token that is being closed.
type Closed = JoinHandle<Result<(), Error>>;

/// How the daemon handles PINs.
#[derive(Clone, Default)]
pub struct PinSettings {
    /// The folder of systemd's credentials: [`credential::folder`].
    pub credentials: Option<PathBuf>,
    /// Asks a person at the machine, where the connection gave no PIN.
    pub pinentry: Option<Arc<dyn AskPin>>,
    /// How long a token stays unlocked at most; `None`: as long as is asked for.
    pub longest_unlock: Option<Duration>,
    /// How long a connection, and then a person, is waited for; `None`: as long as the request
    /// lasts.
    pub answer_within: Option<Duration>,
}

/// Keeps PINs, for the daemon.
pub struct Keeper {
    /// The node as the daemon itself uses it.
    node: Node,
    authority: Arc<dyn Authority>,
    settings: ArcSwap<PinSettings>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    counts: Counts,
    /// There is something to watch, or nothing any more.
    changed: Notify,
    runtime: Handle,
}

/// The wrong PINs of callers so far.
#[derive(Default)]
struct Counts {
    rejected: AtomicU64,
    differed: AtomicU64,
}

/// How a token is unlocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unlocked {
    /// How long it still is; `None`: until it is locked, or goes.
    pub left: Option<Duration>,
}

/// A connection of a caller. When the last one is dropped, what the caller gave is forgotten.
#[must_use = "when it is dropped, the caller is gone"]
pub struct Present {
    keeper: Arc<Keeper>,
    caller: Caller,
}

impl Keeper {
    /// A keeper for `node`, in the runtime that this is called in.
    pub fn new(node: &Node, authority: Arc<dyn Authority>, settings: PinSettings) -> Arc<Self> {
        Keeper::with_clock(node, authority, settings, Arc::new(SystemClock))
    }

    /// The same by another clock.
    pub fn with_clock(
        node: &Node,
        authority: Arc<dyn Authority>,
        settings: PinSettings,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        let keeper = Keeper {
            node: node.seen_by(Arc::new(authority::TheDaemon)),
            authority,
            settings: ArcSwap::from_pointee(settings),
            clock,
            state: Mutex::default(),
            counts: Counts::default(),
            changed: Notify::new(),
            runtime: Handle::current(),
        };
        // From now on a sleep is noticed.
        keeper.look();
        Arc::new(keeper)
    }

    /// Handles PINs in another way from now on. What is unlocked for longer than the new
    /// [`PinSettings::longest_unlock`] is locked when that is over.
    pub fn change(&self, settings: PinSettings) {
        let longest = settings.longest_unlock;
        self.settings.store(Arc::new(settings));
        if let Some(longest) = longest {
            let latest = self.clock.elapsed().saturating_add(longest);
            self.state().end_by(latest);
        }
        self.changed.notify_one();
    }

    /// How long a person is waited for.
    pub(crate) fn answers_within(&self) -> Option<Duration> {
        self.settings.load().answer_within
    }

    /// Notes that a connection of `caller` is there, as long as the result lives.
    pub fn connected(self: &Arc<Self>, caller: &Caller) -> Present {
        self.state().arrive(caller);
        Present {
            keeper: Arc::clone(self),
            caller: caller.clone(),
        }
    }

    /// What a request of `caller` may use on tokens; `asker` asks its connection. `owner` is the
    /// identity whose key it uses, if it uses no other one.
    pub fn access(
        self: &Arc<Self>,
        caller: &Caller,
        owner: Option<EngineId>,
        asker: Arc<dyn AskPin>,
    ) -> Arc<Access> {
        self.look();
        let keys = Arc::new(Keys(Arc::clone(&asker)));
        let pins = Source::of_request(self, caller, owner, asker);
        Arc::new(Access {
            management_keys: keys,
            ..Access::without_pin().with_pins(pins)
        })
    }

    /// What a request of `caller` may use that asks nobody: what is unlocked, and the PINs that the
    /// daemon has.
    pub fn access_unattended(self: &Arc<Self>, caller: &Caller) -> Arc<Access> {
        self.look();
        let pins = Source::unattended(self, caller);
        Arc::new(Access::without_pin().with_pins(pins))
    }

    /// What the daemon itself may use: what is unlocked, and the PINs that it has.
    pub fn access_of_the_daemon(self: &Arc<Self>) -> Arc<Access> {
        self.look();
        let pins = Source::of_the_daemon(self);
        Arc::new(Access::without_pin().with_pins(pins))
    }

    /// Logs in to the token that `backend` names with the PIN that the connection gives, and keeps
    /// both until `limit` is over, or until [`Keeper::lock`] where there is none.
    ///
    /// The PIN is sent once; if the token is open, it is compared and not sent. It is kept if it is
    /// the token's.
    ///
    /// # Errors
    /// [`EngineError::NotAllowed`] to whom the [`Authority`] does not let; what the token says.
    pub async fn unlock(
        self: &Arc<Self>,
        caller: &Caller,
        backend: &str,
        limit: Option<Duration>,
        asker: Arc<dyn AskPin>,
        call: &Call,
    ) -> Result<TokenInfo, EngineError> {
        if !self.authority.is_operator(caller) {
            return Err(EngineError::NotAllowed {
                sender: EngineId::program(),
                what: "unlock tokens for others",
            });
        }
        self.look();
        let locks = self.state().locks();
        let source = Source::to_unlock(self, caller, asker);
        let access = Access::without_pin().with_pins(Arc::clone(&source) as _);
        let its_call = call.clone().using(access);
        let program = EngineId::program();
        let token = self.node.log_in(&program, backend, &its_call).await?;
        if !token.login_required && source.given().is_none() {
            // There is no login to keep or to end, and its driver may hold it always.
            return Ok(token);
        }
        let mut state = self.state();
        let longest = self.settings.load().longest_unlock;
        let limit = limit.into_iter().chain(longest).min();
        let until = limit.map(|limit| self.clock.elapsed().saturating_add(limit));
        if state.was_locked_since(locks, &token.id) {
            // Somebody locked it since: what was opened before ends with the source.
            let token = token.id;
            return Err(Error::PinNeeded { token }.into());
        }
        let backends = [backend.to_owned(), token.backend.clone()];
        state.keep(&token.id, source.given(), until, backends);
        drop(state);
        self.changed.notify_one();
        Ok(token)
    }

    /// Wipes the PINs of one token, or of all, and logs out: those of everybody for an operator,
    /// and what the caller itself gave for others. The tokens that were unlocked.
    ///
    /// It waits until what is in flight has ended, as long as `call` lasts. What begins meanwhile
    /// needs a PIN, however this ends.
    pub async fn lock(
        self: &Arc<Self>,
        caller: &Caller,
        token: Option<&TokenId>,
        call: &Call,
    ) -> Vec<TokenId> {
        let (mut tokens, mut closing) = match self.authority.is_operator(caller) {
            true => {
                let tokens = self.state().forget(token, true);
                (tokens, self.node.lock_tokens(token))
            }
            false => {
                let released = self.state().release(caller, token);
                let view = self.authority.view(caller);
                released.held.iter().for_each(|token| view.let_go(token));
                (released.free, Vec::new())
            }
        };
        closing.extend(tokens.iter().filter_map(|token| self.close(token)));
        tokens.extend(closing.iter().map(|closing| closing.token().clone()));
        tokens.sort();
        tokens.dedup();
        // They are closed even if nobody waits for that any more.
        let closed = self.see_closed(closing);
        while !closed.iter().all(JoinHandle::is_finished) && call.check().is_ok() {
            tokio::time::sleep(call.at_most(LOOK_WHETHER_CLOSED)).await;
        }
        self.changed.notify_one();
        tokens
    }

    /// The unlocked token that `backend` names, as far as that is known without a look at devices.
    pub fn named(&self, backend: &str) -> Option<TokenId> {
        self.state().named(backend)
    }

    /// The tokens that are unlocked for everybody who may use that.
    pub fn status(&self) -> Vec<(TokenId, Unlocked)> {
        self.look();
        let now = self.clock.elapsed();
        let kept = self.state();
        let mut all: Vec<_> = (kept.unlocked())
            .map(|(token, until)| {
                let left = until.map(|until| until.saturating_sub(now));
                (token.clone(), Unlocked { left })
            })
            .collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    /// The wrong PINs so far: those that tokens rejected, and those that were compared with the one
    /// that had opened the token, and not sent.
    pub fn wrong_pins(&self) -> (u64, u64) {
        let Counts { rejected, differed } = &self.counts;
        (rejected.load(Relaxed), differed.load(Relaxed))
    }

    /// Ends what is to end, until it is dropped: every few seconds, and when a token goes whose PIN
    /// is kept. To be run as a task.
    pub async fn watch(self: Arc<Self>) {
        let (mut changes, mut is_new) = (None, true);
        loop {
            let is_empty = self.state().is_empty();
            // Tokens of other drivers may have come since.
            if is_empty || is_new {
                let next = (!is_empty).then(|| self.node.known_token_changes());
                self.end_gone(std::mem::replace(&mut changes, next)).await;
            }
            is_new = false;
            let gone = async {
                match &mut changes {
                    Some(changes) => changes.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                change = gone => {
                    if change.state == TokenState::Absent {
                        self.end(&[change.token]);
                    }
                }
                () = self.changed.notified() => is_new = true,
                () = tokio::time::sleep(LOOK_AGAIN) => {
                    self.look();
                    // Of too many changes the first are not told.
                    self.end_absent();
                }
            }
        }
    }

    /// Ends what went before a new subscription; `former` may have changes that nobody heard.
    async fn end_gone(&self, former: Option<TokenChanges>) {
        if let Some(mut former) = former {
            let mut gone = Vec::new();
            while let Some(change) = unconstrained(former.next()).now_or_never() {
                if change.state == TokenState::Absent {
                    gone.push(change.token);
                }
            }
            self.end(&gone);
        }
        self.end_absent();
    }

    /// Ends what was kept for tokens that are not there.
    fn end_absent(&self) {
        let states = self.node.token_states().into_iter();
        let absent = states.filter(|(_, state)| *state == TokenState::Absent);
        let mut gone: Vec<TokenId> = absent.map(|(token, _)| token).collect();
        // Of one that is only held there may be an opening under way.
        gone.retain(|token| self.state().is_unlocked(token));
        self.end(&gone);
    }

    /// Ends what is to end by the time.
    fn look(&self) {
        let mut state = self.state();
        let slept = state.sleep.was_there(&*self.clock);
        let over = match slept {
            true => {
                tracing::info!("the machine slept: all tokens are locked");
                state.forget(None, false)
            }
            false => state.expired(self.clock.elapsed()),
        };
        drop(state);
        // Also what is being opened with a PIN that was kept.
        let closing = match slept {
            true => self.node.lock_tokens(None),
            false => (over
                .iter()
                .flat_map(|token| self.node.lock_tokens(Some(token))))
            .collect(),
        };
        self.see_closed(closing);
        self.close_all(&over);
    }

    /// The tokens have gone: nothing of them is kept.
    fn end(&self, tokens: &[TokenId]) {
        for token in tokens {
            let over = self.state().forget(Some(token), false);
            self.close_all(&over);
        }
    }

    /// The last connection of a caller has closed.
    fn left(&self, caller: &Caller) {
        let released = match self.state().leave(caller) {
            Some(released) if !released.held.is_empty() => released,
            _ => return,
        };
        let view = self.authority.view(caller);
        released.held.iter().for_each(|token| view.let_go(token));
        self.close_all(&released.free);
    }

    /// A token took the PIN of a caller who did not hold it then: it is closed unless somebody holds
    /// it by now.
    fn end_loose(&self, caller: &Caller, token: &TokenId, to_unlock: bool) {
        let mut state = self.state();
        // It may have come back.
        let is_its = !to_unlock && state.hold(caller, token);
        let is_held = state.is_held(token);
        drop(state);
        if !to_unlock && !is_its {
            self.authority.view(caller).let_go(token);
        }
        if !is_held {
            self.close_all(std::slice::from_ref(token));
        }
    }

    fn close_all(&self, tokens: &[TokenId]) {
        self.see_closed(tokens.iter().filter_map(|token| self.close(token)));
    }

    fn see_closed(&self, closing: impl IntoIterator<Item = ClosingToken>) -> Vec<Closed> {
        // What is in flight has its own deadlines.
        let done = |closing: ClosingToken| async { closing.done(&Call::unlimited()).await };
        let closing = closing.into_iter();
        closing.map(|one| self.runtime.spawn(done(one))).collect()
    }

    fn close(&self, token: &TokenId) -> Option<ClosingToken> {
        tracing::info!(%token, "logging out");
        self.node.close_token(token)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.keeper.left(&self.caller);
    }
}
