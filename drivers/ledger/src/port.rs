//! An open device: one command at a time, deadlines, cancellation, late replies.
//!
//! A reply does not name its command. So a command whose caller has given up leaves its reply
//! *owed*: before the next command, the port waits for it and discards it. The device still shows
//! the request meanwhile, and the next caller is told to answer it there. A
//! [claim](crate::claim) keeps other processes away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use claviger_token::sync::lock;
use claviger_token::{Call, Error, Event, TokenId};

use crate::apdu::{Command, Exchange, Reply};
use crate::app::{APP, App};
use crate::backend::SCHEME;
use crate::claim::{Claim, Taken};
use crate::error::Fault;
use crate::ethereum::{self, Known};
use crate::listener;
use crate::status::Status;
use crate::transport::{Attached, Broken, Devices, Transport};

/// How long a person is waited for where the caller gives no deadline, except for an
/// approval, which ends when the device says so.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How soon a deadline or a cancellation is noticed.
const SLICE: Duration = Duration::from_millis(50);
/// A device that takes longer waits for a person.
const AT_ONCE: Duration = Duration::from_millis(300);
/// How long a device may take for what no person has to approve.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a reply that is owed is waited for by who only looks.
const GLANCE: Duration = Duration::from_millis(100);
/// How often it is tried to claim a device that another process talks to.
const KNOCKING: Duration = Duration::from_millis(5);
/// How many replies to commands of others may lie there: more reports than a device's node
/// keeps.
const MOST_LYING: usize = 64;
/// How many replies to commands of others are thrown away, and how long the one that is
/// wanted may take after such a one.
const STALE: usize = 4;
const AFTER_STALE: Duration = Duration::from_secs(1);

/// Where a device is, or was.
pub(crate) struct Port {
    pub(crate) path: String,
    pub(crate) model: String,
    state: Mutex<State>,
    freed: Condvar,
    /// A person is being asked.
    reviewing: AtomicBool,
    /// A thread listens for the end of a review that was given up.
    listened_to: AtomicBool,
}

/// What a device shows of itself.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) known: Known,
    /// It is busy with a review, and this is what it showed before.
    pub(crate) reviewing: bool,
}

#[derive(Default)]
struct State {
    /// Somebody talks to the device.
    taken: bool,
    link: Option<Link>,
    /// What the device showed of itself last.
    known: Option<Known>,
}

/// An open way to a device, and what is known of it as long as it is open.
struct Link {
    transport: Box<dyn Transport>,
    /// Replies may come in that belong to commands of others.
    fresh: bool,
    /// A reply is still to come in that nobody waits for.
    owed: bool,
    /// The device was not done with a command when its caller gave up, and shows no review: it
    /// keeps nobody from the device.
    abandoned: bool,
    /// Until when one may come in that a process left behind which has ended.
    left_behind: Option<Instant>,
    /// Held while the device is talked to, or owes a reply.
    claim: Option<Claim>,
    known: Option<Known>,
}

impl Port {
    pub(crate) fn new(attached: Attached) -> Self {
        Port {
            path: attached.path,
            model: attached.model,
            state: Mutex::default(),
            freed: Condvar::new(),
            reviewing: AtomicBool::new(false),
            listened_to: AtomicBool::new(false),
        }
    }

    /// What people call it.
    pub(crate) fn device(&self) -> String {
        format!("Ledger {}", self.model)
    }

    /// Whether it was open when it was used last.
    pub(crate) fn is_open(&self) -> bool {
        let state = lock(&self.state);
        state.taken || state.link.is_some()
    }

    /// What the device shows of itself. While somebody talks to it, or a person is asked:
    /// what it showed last.
    pub(crate) fn look(
        self: &Arc<Self>,
        devices: &dyn Devices,
        call: &Call,
    ) -> Result<Shown, Fault> {
        let (busy, was_open) = {
            let state = lock(&self.state);
            let busy = state.known.clone().filter(|_| state.taken);
            (busy, state.link.is_some())
        };
        if let Some(known) = busy {
            let reviewing = self.reviewing.load(Ordering::Relaxed);
            return Ok(Shown { known, reviewing });
        }
        let look = || self.talk_within(GLANCE, devices, call, |session| session.look());
        let seen = match look() {
            // It may be back.
            Err(Fault::Lost { .. }) if was_open => look(),
            seen => seen,
        };
        let (known, reviewing) = match seen {
            Err(Fault::Occupied) => {
                let known = lock(&self.state).known.clone();
                (known.ok_or(Fault::Occupied)?, true)
            }
            seen => (seen?, false),
        };
        Ok(Shown { known, reviewing })
    }

    /// Opens the device if need be, and does `work` with it when nobody else does.
    pub(crate) fn talk<T>(
        self: &Arc<Self>,
        devices: &dyn Devices,
        call: &Call,
        work: impl FnOnce(&mut Session<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.talk_within(PATIENCE, devices, call, work)
    }

    /// [`Port::talk`], which waits no longer than `patience` for a reply that is owed.
    fn talk_within<T>(
        self: &Arc<Self>,
        patience: Duration,
        devices: &dyn Devices,
        call: &Call,
        work: impl FnOnce(&mut Session<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let mut turn = self.take(call)?;
        if turn.link.as_ref().is_none_or(|link| link.claim.is_none()) {
            let claim = self.claim(devices, call)?;
            let left_behind = claim.left_behind().map(|left| Instant::now() + left);
            let link = match turn.link.take() {
                Some(link) => link,
                None => Link::open(devices, &self.path)?,
            };
            turn.link = Some(Link {
                owed: link.owed || left_behind.is_some(),
                left_behind,
                claim: Some(claim),
                ..link
            });
        }
        let Some(mut link) = turn.link.take() else {
            return Err(Fault::broken(
                "opening it",
                Broken::Lost(String::new()),
                false,
            ));
        };
        let mut session = Session {
            link: &mut link,
            port: self,
            call,
        };
        let done = session.settle(patience).and_then(|()| work(&mut session));
        match &done {
            // What comes next on this way belongs to nothing.
            Err(Fault::Lost { .. } | Fault::Malformed { .. }) => return done,
            // Whoever unlocks it, or opens the app, may have chosen another seed.
            Err(Fault::Locked { .. } | Fault::NoApp { .. }) => link.known = None,
            _ => {}
        }
        if !link.owed {
            link.claim = None;
        }
        turn.known.clone_from(&link.known);
        // A way on which a reply to nothing may come in is not used again.
        if !link.abandoned {
            let is_given_up = link.is_given_up();
            turn.link = Some(link);
            drop(turn);
            if is_given_up {
                self.listen();
            }
        }
        done
    }

    /// Listens until the review is over, unless a thread does already.
    fn listen(self: &Arc<Self>) {
        if self.listened_to.swap(true, Ordering::SeqCst) {
            return;
        }
        let port = Arc::downgrade(self);
        let goes_on = move || port.upgrade().is_some_and(|port| port.is_still_given_up());
        if let Err(error) = listener::listen(goes_on) {
            // The next request of this process finds out.
            self.listened_to.store(false, Ordering::SeqCst);
            tracing::debug!(%error, "nobody listens for the end of a review");
        }
    }

    /// Whether the review that was given up is still on the screen of the device. If the device
    /// says that it is over, other processes may use the device from now on.
    fn is_still_given_up(&self) -> bool {
        let Some(mut turn) = self.take_at_once() else {
            // Whoever talks to the device listens, too.
            return true;
        };
        let goes_on = turn.link.as_mut().is_some_and(Link::is_still_reviewing);
        if !goes_on {
            if let Some(link) = &mut turn.link {
                self.review(link, false);
                link.claim = None;
            }
            turn.link.take_if(|link| link.abandoned);
            // With the turn: whoever gives up the next review sees it.
            self.listened_to.store(false, Ordering::SeqCst);
        }
        goes_on
    }

    /// Notes for this process and for others whether a person is being asked.
    fn review(&self, link: &Link, on: bool) {
        self.reviewing.store(on, Ordering::Relaxed);
        if let Some(claim) = &link.claim {
            match on {
                true => claim.begin_review(),
                false => claim.end_review(),
            }
        }
    }

    /// Waits until no other process talks to the device.
    fn claim(&self, devices: &dyn Devices, call: &Call) -> Result<Claim, Fault> {
        let name = devices.shared_name(&self.path);
        let begun = Instant::now();
        loop {
            match Claim::take(name.as_deref()) {
                Ok(claim) => return Ok(claim),
                Err(Taken { reviewing: false }) if begun.elapsed() < ANSWER => {}
                Err(Taken { .. }) => return Err(Fault::Occupied),
            }
            call.check()?;
            std::thread::sleep(KNOCKING.min(slice(call)));
        }
    }

    /// Waits for its turn.
    fn take(&self, call: &Call) -> Result<Turn<'_>, Error> {
        let mut state = lock(&self.state);
        loop {
            call.check()?;
            if let Some(turn) = self.turn(&mut state) {
                return Ok(turn);
            }
            let woken = self.freed.wait_timeout(state, slice(call));
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A turn, if nobody has it.
    fn take_at_once(&self) -> Option<Turn<'_>> {
        self.turn(&mut lock(&self.state))
    }

    fn turn(&self, state: &mut State) -> Option<Turn<'_>> {
        let is_free = !std::mem::replace(&mut state.taken, true);
        is_free.then(|| Turn {
            port: self,
            link: state.link.take(),
            known: state.known.clone(),
        })
    }
}

impl Link {
    fn open(devices: &dyn Devices, path: &str) -> Result<Link, Fault> {
        let transport = devices.connect(path);
        Ok(Link {
            transport: transport.map_err(|e| Fault::broken("opening it", e, false))?,
            fresh: true,
            owed: false,
            abandoned: false,
            left_behind: None,
            claim: None,
            known: None,
        })
    }

    /// Whether other processes wait for the end of a review that nobody waits for here.
    fn is_given_up(&self) -> bool {
        self.owed && self.claim.as_ref().is_some_and(Claim::is_shared)
    }

    /// Whether the device has not yet said that a review is over that was given up.
    fn is_still_reviewing(&mut self) -> bool {
        if !self.is_given_up() {
            return false;
        }
        match self.transport.receive(Duration::ZERO) {
            Ok(Some(_)) => {}
            Ok(None) if self.left_behind.is_some_and(|end| end <= Instant::now()) => {
                self.fresh = true;
            }
            Ok(None) => return true,
            Err(error) => {
                tracing::debug!(?error, "the device went during a review");
                self.abandoned = true;
            }
        }
        (self.owed, self.left_behind) = (false, None);
        false
    }
}

/// The right to talk to a device. No lock is held meanwhile.
struct Turn<'a> {
    port: &'a Port,
    link: Option<Link>,
    known: Option<Known>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.port.state) = State {
            taken: false,
            link: self.link.take(),
            known: self.known.take(),
        };
        self.port.freed.notify_one();
    }
}

/// As long as one may sleep without missing the deadline.
pub(crate) fn slice(call: &Call) -> Duration {
    let left = (call.deadline()).map(|end| end.saturating_duration_since(Instant::now()));
    // Never nothing: a wait of no length is another thing to a socket.
    let least = Duration::from_millis(1);
    left.map_or(SLICE, |left| left.clamp(least, SLICE))
}

/// The device during one operation.
pub(crate) struct Session<'a> {
    link: &'a mut Link,
    port: &'a Port,
    call: &'a Call,
}

/// Who is asked to approve, and whether the caller has been told.
pub(crate) struct Approval<'a> {
    pub(crate) token: &'a TokenId,
    /// Whether the person is being asked, or will be only by a later command.
    asked: bool,
    told: bool,
}

impl Session<'_> {
    /// The app and the seed, asked for unless they are known already.
    pub(crate) fn known(&mut self) -> Result<Known, Fault> {
        if let Some(known) = &self.link.known {
            return Ok(known.clone());
        }
        let app = self.app()?;
        if app.name != APP {
            return Err(self.no_app(Some(app.name)));
        }
        let root = ethereum::signing_key(self, 0)?;
        let peer = ethereum::agreement(self)?;
        let known = Known::new(app, root, peer)?;
        self.link.known = Some(known.clone());
        Ok(known)
    }

    /// The same, and whether that still holds as far as the app tells: the device may be
    /// locked by now, or gone.
    fn look(&mut self) -> Result<Known, Fault> {
        if let Some(known) = self.link.known.clone()
            && self.app()? != known.app
        {
            self.forget();
        }
        self.known()
    }

    /// What was asked before is asked anew.
    pub(crate) fn forget(&mut self) {
        self.link.known = None;
    }

    /// The app that is open. On a way that was just opened an answer to what another
    /// program asked may come first: it is known by its form, and thrown away.
    fn app(&mut self) -> Result<App, Fault> {
        let command = ethereum::name_and_version();
        let mut limit = ANSWER;
        self.send(&command)?;
        for _ in 0..STALE {
            let reply = self.receive(command.name, Some(limit), None)?;
            let app = match reply.status {
                Status::OK => ethereum::app_of(&reply.data),
                Status::REJECTED => Err(Fault::malformed(command.name, "a rejection")),
                _ => {
                    return self
                        .check(command.name, reply)
                        .and_then(|r| ethereum::app_of(&r.data));
                }
            };
            match app {
                Err(fault) if self.link.fresh => {
                    tracing::debug!(?fault, "a reply to another request");
                    limit = AFTER_STALE;
                }
                app => {
                    self.link.fresh = false;
                    return app;
                }
            }
        }
        Err(Fault::malformed(
            command.name,
            "it does not name the open app",
        ))
    }

    fn approve_one(
        &mut self,
        command: &Command,
        last: bool,
        approval: &mut Approval<'_>,
    ) -> Result<Reply, Fault> {
        approval.asked = last;
        if last {
            self.review(true);
        }
        let sent = self.send(command);
        let reply = sent.and_then(|()| {
            let reply = self.receive(command.name, None, Some(approval));
            reply.map_err(|fault| match fault {
                Fault::Lost { reason, .. } => Fault::Lost {
                    reason,
                    asked: last,
                },
                other => other,
            })
        });
        if last {
            // Where its end is not waited for it goes on, and begins anew for others: they
            // wait for it from now on.
            self.review(self.link.owed);
        }
        self.check(command.name, reply?)
    }

    fn review(&self, on: bool) {
        self.port.review(self.link, on);
    }

    /// Waits for the reply that is owed, if one is, and throws it away. Meanwhile the device
    /// gets no command.
    fn settle(&mut self, patience: Duration) -> Result<(), Fault> {
        if !self.link.owed {
            return Ok(());
        }
        let left_behind = self.link.left_behind;
        let patience = left_behind.map_or(patience, |end| {
            patience.min(end.saturating_duration_since(Instant::now()))
        });
        // Not the token: that is who is asked to approve, and this may as well be rejected.
        let nobody = nobody();
        let mut approval = Approval {
            token: &nobody,
            asked: true,
            told: false,
        };
        let late = self.receive("an earlier request", Some(patience), Some(&mut approval));
        match late {
            Ok(_) => {}
            // Nobody knows whether it is to come.
            Err(Fault::Lost { .. })
                if self.link.owed && left_behind.is_some_and(|end| end <= Instant::now()) =>
            {
                (self.link.owed, self.link.fresh) = (false, true);
            }
            Err(Fault::Lost { .. }) if self.link.owed => return Err(Fault::Occupied),
            Err(fault) => return Err(fault),
        }
        self.link.left_behind = None;
        self.review(false);
        Ok(())
    }

    fn send(&mut self, command: &Command) -> Result<(), Fault> {
        let broken = |e| Fault::broken(command.name, e, false);
        self.call.check()?;
        // Also notices that the device has gone since. What it said to other processes may
        // lie here, too, and the beginning of it may be lost.
        for _ in 0..MOST_LYING {
            match self.link.transport.receive(Duration::ZERO) {
                Ok(None) => break,
                Ok(Some(_)) => tracing::debug!("an unexpected reply"),
                Err(Broken::Lost(reason) | Broken::Malformed(reason)) => {
                    return Err(broken(Broken::Lost(reason)));
                }
            }
        }
        let sent = self.link.transport.send(&command.encode());
        sent.map_err(broken)
    }

    /// Waits for the reply.
    fn receive(
        &mut self,
        name: &'static str,
        limit: Option<Duration>,
        mut approval: Option<&mut Approval<'_>>,
    ) -> Result<Reply, Fault> {
        let begun = Instant::now();
        self.link.owed = true;
        let is_review = approval.as_ref().is_some_and(|approval| approval.asked);
        loop {
            if let Err(over) = self.call.check() {
                if !is_review {
                    self.abandon();
                }
                return Err(over.into());
            }
            let received = self.link.transport.receive(slice(self.call));
            match received {
                Ok(Some(reply)) => {
                    self.link.owed = false;
                    tracing::trace!(command = name, received = reply.len());
                    return Reply::parse(name, reply);
                }
                Ok(None) => {}
                Err(e) => {
                    self.link.owed = false;
                    return Err(Fault::broken(name, e, false));
                }
            }
            let waited = begun.elapsed();
            if limit.is_some_and(|limit| waited >= limit) {
                return Err(Fault::broken(
                    name,
                    Broken::Lost("it does not answer".into()),
                    false,
                ));
            }
            if let Some(approval) = &mut approval
                && waited >= AT_ONCE
                && !std::mem::replace(&mut approval.told, true)
            {
                let token = approval.token.clone();
                self.call.tell(&Event::ApprovalNeeded { token });
            }
        }
    }

    /// Gives up a command of which no person is asked: its reply comes in a moment, or is not
    /// waited for.
    fn abandon(&mut self) {
        match self.link.transport.receive(GLANCE) {
            Ok(Some(_)) => self.link.owed = false,
            Ok(None) | Err(_) => self.link.abandoned = true,
        }
    }

    /// Sorts out what a status means.
    fn check(&mut self, call: &'static str, reply: Reply) -> Result<Reply, Fault> {
        match reply.status {
            Status::OK => Ok(reply),
            Status::LOCKED => Err(Fault::Locked {
                device: self.port.device(),
            }),
            Status::NO_APP => Err(self.no_app(None)),
            status @ (Status::NO_CLASS | Status::NO_INSTRUCTION) => Err(self.unknown(call, status)),
            Status::OCCUPIED => Err(Fault::Occupied),
            status => Err(Fault::Status { call, status }),
        }
    }

    /// Why a command is not known: another app is open, or this one is not what it says.
    fn unknown(&mut self, call: &'static str, status: Status) -> Fault {
        if call == ethereum::NAME_AND_VERSION {
            return self.no_app(None);
        }
        match self.app() {
            Ok(app) if app.name == APP => Fault::Unknown {
                device: self.port.device(),
                app,
                call,
                status,
            },
            Ok(app) => self.no_app(Some(app.name)),
            Err(fault) => fault,
        }
    }

    fn no_app(&self, running: Option<String>) -> Fault {
        Fault::NoApp {
            device: self.port.device(),
            // The name of the system's own screen.
            running: running.filter(|name| name != "BOLOS"),
        }
    }
}

impl Exchange for Session<'_> {
    /// One command that no person has to approve.
    fn command(&mut self, command: &Command) -> Result<Reply, Fault> {
        self.send(command)?;
        let reply = self.receive(command.name, Some(ANSWER), None)?;
        self.check(command.name, reply)
    }

    /// Commands that a person has to approve: `last` says of each whether the approval
    /// may come of it.
    fn approved(&mut self, token: &TokenId, commands: Vec<Command>) -> Result<Reply, Fault> {
        let mut approval = Approval {
            token,
            asked: false,
            told: false,
        };
        let mut left = commands.len();
        let mut done = Err(Fault::malformed("nothing", "nothing was asked"));
        for command in commands {
            left -= 1;
            done = self.approve_one(&command, left == 0, &mut approval);
            if done.is_err() {
                break;
            }
        }
        if approval.told {
            let token = token.clone();
            self.call.tell(&Event::PersonDone { token });
        }
        done
    }
}

/// The token where nobody knows which it is.
pub(crate) fn nobody() -> TokenId {
    TokenId {
        kind: SCHEME.into(),
        manufacturer: "Ledger".into(),
        serial: String::new(),
    }
}
