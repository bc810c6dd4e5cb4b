//! The drivers of a node, and its open tokens.

use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use claviger_token::backend;
use claviger_token::{
    Access, Call, Detail, Driver, Error, NoPin, Pace, PinSource, SlotId, SlotInfo, Token, TokenId,
    TokenInfo, Unreadable,
};

use crate::accepted::Accepted;
use crate::closings::{Closings, Locks};
use crate::due::Due;
use crate::lane::{Lane, NotDone};
use crate::management;
use crate::opening::{Openings, Wanted};
use crate::policy::{Permission, Policy};
use crate::standings::{Standing, Standings};
use crate::token_state::Happening;
use crate::waiting_threads::WaitingThreads;
use crate::whose_pin::{Login, Logins, Owner, RequestPins};
use crate::{EngineError, EngineId};

/// So often it is looked whether a token that is being closed is closed.
const CLOSING_PAUSE: Duration = Duration::from_millis(5);

/// A token, and the slot that its backend names, if it names one.
pub(crate) type Opened = (Arc<OpenToken>, Option<SlotId>);

/// A token that is open, and the threads that work it.
pub(crate) struct OpenToken {
    pub(crate) token: Arc<dyn Token>,
    lane: OnceLock<Lane>,
    /// For requests that hold a thread while they wait for it.
    pub(crate) waiting: WaitingThreads,
    standing: Arc<Standing>,
    /// When it is looked whether something was abandoned on it.
    pub(crate) due: Due,
    /// Whose PIN opened it.
    login: Arc<Login>,
    /// The PIN that it accepted.
    accepted: Accepted<Owner>,
}

impl OpenToken {
    pub(crate) fn id(&self) -> &TokenId {
        &self.token.info().id
    }

    /// Notes what the end of an operation shows of the token.
    pub(crate) fn note<T>(&self, result: &Result<T, Error>) {
        match result {
            Ok(_) => self.standing.note(Happening::Worked),
            Err(error) => {
                if let Some(what) = Happening::shown_by(error) {
                    self.standing.note(what);
                }
            }
        }
    }

    /// `call`, which also notes when the token waits for a person.
    pub(crate) fn noting(&self, call: &Call) -> Call {
        let standing = Arc::clone(&self.standing);
        call.clone().also_watched_by(Arc::new(move |event| {
            if let Some((_, what)) = Happening::shown_by_event(event) {
                standing.note(what);
            }
        }))
    }

    /// Notes that it is closed: it takes its PIN again.
    pub(crate) fn note_closed(&self) {
        self.standing.note_closed();
    }

    /// Whether it may be logged in.
    fn takes_pin(&self) -> bool {
        self.token.info().login_required || self.login.is_owned() || self.accepted.is_known()
    }

    pub(crate) fn is_quick(&self) -> bool {
        self.token.info().pace == Pace::Quick
    }

    /// How many operations wait for it: those that its threads have not begun, and those that wait
    /// for a thread.
    fn queued(&self) -> usize {
        self.lane.get().map_or(0, Lane::queued) + self.waiting.queued()
    }

    /// Runs `job` on a thread of the token's own, for a [caller](Tokens::caller).
    pub(crate) async fn work<T: Send + 'static>(
        &self,
        caller: Option<u32>,
        call: &Call,
        job: impl FnOnce(&Call) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.lane()?.run(caller, call, self.noted(job)).await
    }

    /// Runs `job` for a caller that may block: in place on a quick token, else on a
    /// thread of the token's own.
    pub(crate) fn work_blocking<T: Send + 'static>(
        &self,
        call: &Call,
        job: impl FnOnce(&Call) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        if self.is_quick() {
            return self.in_place(call, job);
        }
        self.work_apart(call, job)
    }

    /// Runs `job` on a thread of the token's own, for a caller that may block.
    pub(crate) fn work_apart<T: Send + 'static>(
        &self,
        call: &Call,
        job: impl FnOnce(&Call) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.lane()?.run_blocking(call, self.noted(job))
    }

    /// The same for a job that changes something on the token: see
    /// [`Lane::carry_through`].
    pub(crate) fn carry_through<T: Send + 'static>(
        &self,
        call: &Call,
        patience: Duration,
        job: impl FnOnce(&Call) -> Result<T, Error> + Send + 'static,
    ) -> Result<Result<T, Error>, NotDone> {
        let lane = self.lane().map_err(NotDone::NotBegun)?;
        lane.carry_through(call, patience, self.noted(job))
    }

    /// `job`, which may keep the token open after everybody else let go of it, and so keeps the
    /// note whose login it has. It must not keep the lane, which its own thread would end.
    fn noted<T>(
        &self,
        job: impl FnOnce(&Call) -> Result<T, Error> + Send + 'static,
    ) -> impl FnOnce(&Call) -> Result<T, Error> + Send + 'static {
        let login = Arc::clone(&self.login);
        move |call| {
            let done = job(call);
            drop(login);
            done
        }
    }

    fn in_place<T>(
        &self,
        call: &Call,
        job: impl FnOnce(&Call) -> Result<T, Error>,
    ) -> Result<T, Error> {
        call.check()?;
        // As on a thread of the token's own: what was begun is undone after a panic, too.
        let done = catch_unwind(AssertUnwindSafe(|| job(call)));
        done.unwrap_or_else(|_| {
            Err(Error::TokenUnavailable {
                token: self.id().clone(),
                reason: "its driver panicked".into(),
            })
        })
    }

    fn lane(&self) -> Result<&Lane, Error> {
        if let Some(lane) = self.lane.get() {
            return Ok(lane);
        }
        let lane = Lane::start(self.id(), workers(&*self.token))?;
        Ok(self.lane.get_or_init(|| lane))
    }
}

/// How many threads work a token; at least one.
fn workers(token: &dyn Token) -> usize {
    match token.info().pace {
        Pace::Quick => 1,
        Pace::Slow { workers } => workers.max(1),
    }
}

/// What is found where the drivers of a node look for tokens.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct FoundTokens {
    /// The tokens, each with what can be seen of its slots.
    pub tokens: Vec<(TokenInfo, Vec<SlotInfo>)>,
    /// Where there is something that may be a token, and cannot be read.
    pub unreadable: Vec<Unreadable>,
}

impl FoundTokens {
    /// What was found.
    pub fn new(tokens: Vec<(TokenInfo, Vec<SlotInfo>)>, unreadable: Vec<Unreadable>) -> Self {
        FoundTokens { tokens, unreadable }
    }
}

/// The tokens of a node as one asks for them: see [`Pool`].
pub(crate) struct Tokens {
    pub(crate) pool: Arc<Pool>,
    policy: Arc<dyn Policy>,
    /// The user whose view this is, if it is one.
    caller: Option<u32>,
    /// Whose PIN opened them, and those that failed to open.
    logins: Arc<Logins>,
}

impl Deref for Tokens {
    type Target = Pool;

    fn deref(&self) -> &Pool {
        &self.pool
    }
}

/// The drivers, how tokens are opened, and those that are: the same for all views of a node.
pub(crate) struct Pool {
    drivers: BTreeMap<&'static str, Arc<dyn Driver>>,
    access: Arc<Access>,
    open: Mutex<HashMap<TokenId, Arc<OpenToken>>>,
    closings: Closings,
    pub(crate) locks: Locks,
    pub(crate) openings: Openings,
    /// Looks at what is attached: no opening keeps one waiting.
    pub(crate) looks: Openings,
    /// Questions for PINs: none keeps an opening waiting.
    pub(crate) questions: Openings,
    pub(crate) standings: Standings,
}

impl Tokens {
    pub(crate) fn new(
        drivers: Vec<Arc<dyn Driver>>,
        access: Access,
        policy: Arc<dyn Policy>,
    ) -> Self {
        let pool = Pool {
            drivers: drivers.into_iter().map(|d| (d.scheme(), d)).collect(),
            access: Arc::new(access),
            open: Mutex::default(),
            closings: Closings::default(),
            locks: Locks::default(),
            openings: Openings::default(),
            looks: Openings::default(),
            questions: Openings::default(),
            standings: Standings::default(),
        };
        Tokens {
            pool: Arc::new(pool),
            policy,
            caller: None,
            logins: Arc::default(),
        }
    }

    /// The same tokens, for requests that ask `policy` and whose logins are their own.
    pub(crate) fn seen_by(&self, policy: &Arc<dyn Policy>) -> Self {
        let subject = policy.subject();
        Tokens {
            pool: Arc::clone(&self.pool),
            policy: Arc::clone(policy),
            caller: subject.as_ref().map(|subject| subject.uid),
            logins: Arc::new(self.logins.of_view(subject)),
        }
    }

    /// Who has a share of what waits for a token: the user whose view this is, if it is one.
    pub(crate) fn caller(&self) -> Option<u32> {
        self.caller
    }
}

impl Pool {
    /// How many operations wait for each open token.
    pub(crate) fn queues(&self) -> Vec<(TokenId, usize)> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = |(id, token): (&TokenId, &Arc<OpenToken>)| (id.clone(), token.queued());
        open.iter().map(queue).collect()
    }

    /// From now on nobody opens the token until all have let go of it who have it; `None` if it is
    /// not open.
    pub(crate) fn begin_closing(&self, token: &TokenId) -> Option<Arc<OpenToken>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let closing = open.remove(token)?;
        self.closings.begin(&closing.token);
        Some(closing)
    }

    /// Locks one token, or all: what is opening it now does not get it. Those that are open by a
    /// PIN, for [`Pool::begin_closing`].
    pub(crate) fn note_lock(&self, token: Option<&TokenId>) -> Vec<TokenId> {
        // Under the lock: who opens one is either found here or finds the note.
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        self.locks.note(token);
        let fits = |one: &TokenId| token.is_none_or(|token| token == one);
        let by_pin = open
            .iter()
            .filter(|(id, open)| fits(id) && open.takes_pin());
        by_pin.map(|(id, _)| id.clone()).collect()
    }

    /// Whether somebody has opened it, and nobody closes it.
    pub(crate) fn is_open(&self, token: &TokenId) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.contains_key(token)
    }

    pub(crate) fn drivers(&self) -> impl Iterator<Item = &Arc<dyn Driver>> {
        self.drivers.values()
    }

    pub(crate) fn driver(&self, backend: &str) -> Result<&Arc<dyn Driver>, EngineError> {
        let (scheme, _) = backend::split(backend)?;
        self.drivers
            .get(scheme)
            .ok_or_else(|| EngineError::NoDriver {
                backend: backend.into(),
                schemes: self.drivers.keys().copied().collect(),
            })
    }

    /// The attached tokens that fit `backend`, or all where there is none. Blocks.
    pub(crate) fn list(
        &self,
        backend: Option<&str>,
        call: &Call,
    ) -> Result<FoundTokens, EngineError> {
        let mut found = FoundTokens::default();
        let asked: Vec<(&Arc<dyn Driver>, String)> = match backend {
            Some(backend) => vec![(self.driver(backend)?, backend.into())],
            None => self
                .drivers
                .values()
                .map(|d| (d, format!("{}:", d.scheme())))
                .collect(),
        };
        let is_named = backend.is_some();
        for (driver, backend) in asked {
            let listing = match driver.look(&backend, Detail::Slots, call) {
                // The tokens of other drivers can be listed.
                Err(error) if !is_named => {
                    tracing::warn!(%error, scheme = driver.scheme(), "tokens cannot be listed");
                    continue;
                }
                listing => listing?,
            };
            found.unreadable.extend(listing.unreadable);
            for listed in listing.tokens {
                let mut token = listed.info;
                match listed.slots {
                    Ok(slots) => found.tokens.push((token, slots)),
                    // It went away meanwhile.
                    Err(Error::TokenUnavailable { .. }) => {}
                    Err(error) if is_named => return Err(error.into()),
                    Err(error) => {
                        token.notes.push(("state".into(), error.to_string()));
                        found.tokens.push((token, Vec::new()));
                    }
                }
            }
        }
        Ok(found)
    }

    /// Whether no other token that is there was called `former` by an earlier version.
    pub(crate) fn is_only_one(&self, token: &TokenInfo, former: &TokenId, call: &Call) -> bool {
        let Ok(driver) = self.driver(&token.backend) else {
            return false;
        };
        let all = driver.tokens(&format!("{}:", driver.scheme()), call);
        all.is_ok_and(|all| {
            let mut others = all.iter().filter(|other| other.id != token.id);
            !others.any(|other| other.formerly.contains(former))
        })
    }
}

impl Tokens {
    /// Opens a token for `who`, or for the node itself. Blocks: it may ask a person for the PIN.
    ///
    /// Where it is known which token is wanted, another one that is reached by the same backend
    /// gets no PIN.
    ///
    /// # Errors
    /// What its driver says; [`EngineError::NotAllowed`] where somebody else's PIN opened it, who
    /// does not share it.
    pub(crate) fn open(
        &self,
        who: Option<&EngineId>,
        wanted: Wanted<'_>,
        call: &Call,
    ) -> Result<Opened, EngineError> {
        let Wanted { backend, token } = wanted;
        let open = |token| {
            let pins = self.pins_of(call, who, token);
            let opened = self.open_with(backend, &self.call_with(call, &pins));
            pins.close(&opened);
            if let (Ok((token, _)), Some(pin)) = (&opened, pins.accepted()) {
                token.accepted.put(pin);
            }
            (opened, pins.stranger())
        };
        let opened = match (open(token), token) {
            ((Err(_), Some(stranger)), Some(wanted))
                if self.was_called(backend, &stranger, wanted, call) =>
            {
                open(Some(&stranger)).0
            }
            ((Err(_), Some(stranger)), Some(wanted)) => {
                Err(EngineError::Token(Error::TokenUnavailable {
                    token: wanted.clone(),
                    reason: format!("{stranger} is there instead"),
                }))
            }
            ((opened, _), _) => opened,
        }?;
        match who {
            // It is judged by its PIN, when nobody waits for this opening any more.
            Some(_) if self.may_compare(call) => {}
            Some(who) => self.check_login(&opened.0, who)?,
            None => {}
        }
        Ok(opened)
    }

    /// Whose login is used for a key of `owner` that `asker` wants to use: through a view the
    /// owner's, since `asker` is only what the caller calls itself.
    pub(crate) fn login_for<'a>(&self, asker: &'a EngineId, owner: &'a EngineId) -> &'a EngineId {
        match self.logins.are_of_view() {
            true => owner,
            false => asker,
        }
    }

    /// Who counts as the one who opens tokens for requests of `who`.
    pub(crate) fn counted(&self, who: &EngineId) -> EngineId {
        self.logins.counted(who)
    }

    /// Refuses a backend of `who` that names more than tokens, unless the policy allows that.
    ///
    /// # Errors
    /// [`EngineError::BackendNamesMore`], [`EngineError::NoDriver`], and what the driver says.
    pub(crate) fn check_backend(&self, who: &EngineId, backend: &str) -> Result<(), EngineError> {
        let Some(attribute) = self.driver(backend)?.names_more(backend)? else {
            return Ok(());
        };
        match self.policy.check(who, Permission::AnyBackend) {
            Err(EngineError::NotAllowed { .. }) => Err(EngineError::BackendNamesMore { attribute }),
            checked => checked,
        }
    }

    /// Refuses who must not use the token since somebody else's PIN opened it.
    ///
    /// # Errors
    /// [`EngineError::NotAllowed`].
    pub(crate) fn check_login(&self, token: &OpenToken, who: &EngineId) -> Result<(), EngineError> {
        let login = (&*token.login, &token.accepted);
        (self.logins).check(login, token.id(), who, &*self.policy)
    }

    /// Lets `who` use the login of the token, by the policy or by the PIN that the request brings.
    ///
    /// # Errors
    /// [`EngineError::NotAllowed`], [`EngineError::Locked`], [`EngineError::PinDiffers`], and what
    /// the source of the PIN says.
    pub(crate) async fn admit(
        self: &Arc<Self>,
        token: &Arc<OpenToken>,
        who: &EngineId,
        call: &Call,
    ) -> Result<(), EngineError> {
        match self.check_login(token, who) {
            Err(_) if self.may_compare(call) => {}
            checked => return checked,
        }
        // A person may be asked for it: that keeps nobody from the token.
        let place = self.place_of_question(who, token.id());
        let (tokens, token) = (Arc::clone(self), Arc::clone(token));
        let (asker, its_call) = (who.clone(), call.clone());
        let counted = self.counted(who);
        let compared =
            self.questions
                .run(
                    Some(&counted),
                    Wanted::any(&place),
                    call,
                    move |_opening| match tokens.check_login(&token, &asker) {
                        Ok(()) => Ok(()),
                        Err(_) => tokens.compare_pin(&token, &asker, &its_call),
                    },
                );
        compared.await?
    }

    /// Where requests of `who` wait for each other that ask for the PIN of the token: the requests
    /// of others do not, whatever names they use.
    pub(crate) fn place_of_question(&self, who: &EngineId, token: &TokenId) -> String {
        format!("the PIN of {} for {token}", self.counted(who))
    }

    /// Compares the PIN that the request brings with the one that the token accepted. Blocks.
    ///
    /// # Errors
    /// [`EngineError::Locked`] if there is nothing to compare, [`EngineError::PinDiffers`], and
    /// what the source of the PIN says.
    fn compare_pin(
        &self,
        token: &OpenToken,
        who: &EngineId,
        call: &Call,
    ) -> Result<(), EngineError> {
        let of = || token.id().clone();
        let pins = &self.access_of(call).pins;
        if !token.accepted.is_known() {
            return Err(EngineError::Locked { token: of() });
        }
        let pin = match pins.pin(token.id(), &token.token.info().label, call) {
            Err(Error::PinNeeded { .. }) => return Err(EngineError::Locked { token: of() }),
            pin => pin?,
        };
        let same = self.logins.compare(&token.accepted, who, &pin);
        pins.compared(token.id(), same == Some(true));
        match same {
            Some(true) => Ok(()),
            Some(false) => Err(EngineError::PinDiffers { token: of() }),
            None => Err(EngineError::Locked { token: of() }),
        }
    }

    /// Makes sure that the request brings the PIN that the token accepted, whatever the policy
    /// says; nothing where that is not known, since the backend or nobody gave it. Blocks.
    ///
    /// # Errors
    /// As [`Tokens::admit`].
    pub(crate) fn check_pin(
        &self,
        token: &OpenToken,
        who: &EngineId,
        call: &Call,
    ) -> Result<(), EngineError> {
        match token.accepted.is_known() {
            true => self.compare_pin(token, who, call),
            false => self.check_login(token, who),
        }
    }

    /// The PINs that requests of this view gave for the token do not count any more.
    pub(crate) fn let_go(&self, token: &TokenId) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let accepted = open.get(token).map(|open| &open.accepted);
        self.logins.let_go(&self.logins.of(token), accepted);
    }

    fn may_compare(&self, call: &Call) -> bool {
        let own = call.own_access();
        own.is_some_and(|access| access.pins.may_be_compared())
    }

    /// Whether one PIN was given for whichever token asks.
    pub(crate) fn has_one_pin_for_all(&self, call: &Call) -> bool {
        self.access_of(call).pins.is_one_for_all()
    }

    /// `call`, for which nobody gives a PIN: a token that wants one is opened only if its
    /// backend says where its PIN is.
    pub(crate) fn without_pin(&self, call: &Call) -> Call {
        let access = Access {
            factory_defaults: false,
            ..(**self.access_of(call)).clone()
        };
        call.clone().using(access.with_pins(Arc::new(NoPin)))
    }

    /// `call`, for work on a token that is open: with what the request carries beside its PIN, and
    /// with what the node has for everybody.
    pub(crate) fn for_work(&self, call: &Call) -> Call {
        let own = call.own_access().map(|own| &**own);
        call.clone().using(management::at_work(own, &self.access))
    }

    fn access_of<'a>(&'a self, call: &'a Call) -> &'a Arc<Access> {
        call.own_access().unwrap_or(&self.access)
    }

    /// The PINs of a request: those that it carries, or the node's own.
    fn pins_of(
        &self,
        call: &Call,
        who: Option<&EngineId>,
        only: Option<&TokenId>,
    ) -> Arc<RequestPins> {
        let who = call.own_access().and(who).cloned();
        RequestPins::new(&self.access_of(call).pins, only, who, &self.logins)
    }

    /// `call` with what it may use: what it carries, or the node's own, with these PINs. What the
    /// registry remembers counts in either case.
    fn call_with(&self, call: &Call, pins: &Arc<RequestPins>) -> Call {
        call.clone().using(Access {
            pins: Arc::clone(pins) as Arc<dyn PinSource>,
            refused_pins: pins.hearing(&self.access.refused_pins),
            first_account: self.access.first_account,
            ..(**self.access_of(call)).clone()
        })
    }

    /// Whether an earlier version called the token `former`, and no other one.
    fn was_called(&self, backend: &str, token: &TokenId, former: &TokenId, call: &Call) -> bool {
        let found = self
            .driver(backend)
            .and_then(|driver| Ok(driver.tokens(backend, call)?));
        let all = found.unwrap_or_default();
        let found = all.iter().find(|found| found.id == *token);
        found.is_some_and(|found| {
            found.formerly.contains(former) && self.is_only_one(found, former, call)
        })
    }

    fn open_with(&self, backend: &str, call: &Call) -> Result<Opened, EngineError> {
        let driver = self.driver(backend)?;
        let slot = driver.named_slot(backend)?;
        let locks = self.locks.now();
        let (mut open, token) = loop {
            let token = driver
                .open(backend, call)
                .inspect_err(|error| self.standings.note_error(error))?;
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            let is_locked = self.locks.came_since(locks, &token.info().id);
            if !is_locked && !self.closings.has(&token) {
                break (open, token);
            }
            drop(open);
            if is_locked {
                // A PIN that it took was given before. Who opens it now waits until it is closed.
                self.closings.begin(&token);
                let token = token.info().id.clone();
                return Err(Error::PinNeeded { token }.into());
            }
            drop(token);
            call.check()?;
            std::thread::sleep(call.at_most(CLOSING_PAUSE));
        };
        let id = token.info().id.clone();
        let known = open
            .get(&id)
            .filter(|known| Arc::ptr_eq(&known.token, &token))
            .cloned();
        let token = known.unwrap_or_else(|| {
            let fresh = Arc::new(OpenToken {
                standing: self.standings.of(&id, &token.info().backend),
                login: self.logins.of(&id),
                accepted: Accepted::default(),
                due: Due::default(),
                waiting: WaitingThreads::of(workers(&*token)),
                token,
                lane: OnceLock::new(),
            });
            open.insert(id, Arc::clone(&fresh));
            fresh
        });
        token.standing.note(Happening::Worked);
        Ok((token, slot))
    }
}
