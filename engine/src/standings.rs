//! The states of a node's tokens, the subscribers to changes, and waiting for an absent token.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use claviger_token::sync::lock;
use claviger_token::{Advice, Call, Driver, Error, Event, TokenId, Watch};
use tokio::sync::broadcast;

use crate::EngineError;
use crate::key_engine::Request;
use crate::opening::Wanted;
use crate::token_state::{Happening, TokenChange, TokenState};
use crate::tokens::Tokens;

/// How many changes are kept for a subscriber who is slow to take them.
const KEPT_CHANGES: usize = 1024;
/// How long a look at the devices waits at most before it sees that nobody cares.
const LONGEST_WAIT: Duration = Duration::from_millis(500);
/// How long a request waits at least before it is made again.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);
/// How long is waited at most between two tries to open a token that is away.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// How long at first after its devices changed: a card is seen before it answers.
const RETRY_SOON: Duration = Duration::from_millis(10);

/// How one token stands.
pub(crate) struct Standing {
    token: TokenId,
    backend: String,
    state: Mutex<TokenState>,
    /// Whether it is ready, for those who do not want to take turns to find that out.
    ready: AtomicBool,
    changes: broadcast::Sender<TokenChange>,
}

impl Standing {
    pub(crate) fn note(&self, what: Happening) {
        if what == Happening::Worked && self.ready.load(Ordering::Relaxed) {
            return;
        }
        let mut state = lock(&self.state);
        let before = *state;
        let after = before.after(what);
        if after != before {
            *state = after;
            self.ready
                .store(after == TokenState::Ready, Ordering::Relaxed);
            // Told while the lock is held: changes are told in the order in which they happen.
            let _nobody_listens = self.changes.send(TokenChange {
                token: self.token.clone(),
                before,
                state: after,
            });
        }
    }
}

/// How the tokens stand that were ever seen.
pub(crate) struct Standings {
    known: Mutex<HashMap<TokenId, Arc<Standing>>>,
    changes: broadcast::Sender<TokenChange>,
    /// The backends that subscribers want watched, each as often as it is wanted.
    wanted: Mutex<Vec<String>>,
    /// The schemes of the drivers that a thread watches.
    watched: Mutex<HashSet<&'static str>>,
    /// The tokens that are waited for.
    awaited: Mutex<HashMap<TokenId, Arc<Awaited>>>,
}

/// What a look for a token showed.
enum Looked {
    Back,
    Away {
        /// Whether something happened to the devices since.
        changed: bool,
    },
}

/// Those who wait for one token take turns to look for it.
struct Awaited {
    turn: Arc<tokio::sync::Mutex<Option<Box<dyn Watch>>>>,
    /// How often it came back.
    returns: AtomicU64,
}

impl Default for Standings {
    fn default() -> Self {
        Standings {
            known: Mutex::default(),
            changes: broadcast::channel(KEPT_CHANGES).0,
            wanted: Mutex::default(),
            watched: Mutex::default(),
            awaited: Mutex::default(),
        }
    }
}

impl Standings {
    /// How `token` stands, which is reached by `backend`.
    pub(crate) fn of(&self, token: &TokenId, backend: &str) -> Arc<Standing> {
        let mut known = lock(&self.known);
        let standing = known.entry(token.clone()).or_insert_with(|| {
            Arc::new(Standing {
                token: token.clone(),
                backend: backend.into(),
                state: Mutex::new(TokenState::Absent),
                ready: AtomicBool::new(false),
                changes: self.changes.clone(),
            })
        });
        Arc::clone(standing)
    }

    /// Notes what an error shows of a token that is known.
    pub(crate) fn note_error(&self, error: &Error) {
        if let (Some(token), Some(what)) = (error.token(), Happening::shown_by(error)) {
            let standing = lock(&self.known).get(token).cloned();
            if let Some(standing) = standing {
                standing.note(what);
            }
        }
    }

    pub(crate) fn all(&self) -> Vec<(TokenId, TokenState)> {
        let known: Vec<_> = lock(&self.known).values().cloned().collect();
        let mut all: Vec<_> = known
            .iter()
            .map(|standing| (standing.token.clone(), *lock(&standing.state)))
            .collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }
}

/// The changes of the tokens' states, as they happen; from
/// [`Node::token_changes`](crate::Node::token_changes).
pub struct TokenChanges {
    changes: broadcast::Receiver<TokenChange>,
    /// The devices are watched as long as somebody holds this.
    tokens: Arc<Tokens>,
    /// What is watched for this subscriber.
    wanted: Vec<String>,
}

impl TokenChanges {
    pub(crate) fn subscribe(
        tokens: &Arc<Tokens>,
        backend: Option<&str>,
    ) -> Result<Self, EngineError> {
        let changes = tokens.standings.changes.subscribe();
        let mut drivers = Vec::new();
        let wanted: Vec<String> = match backend {
            None => {
                drivers.extend(tokens.drivers());
                let bare = |driver: &&Arc<dyn Driver>| format!("{}:", driver.scheme());
                drivers.iter().map(bare).collect()
            }
            Some(backend) => {
                let driver = tokens.driver(backend)?;
                // Also a bad one is refused before anything is waited for.
                driver.look(backend, &Call::unlimited())?;
                drivers.push(driver);
                vec![backend.into()]
            }
        };
        lock(&tokens.standings.wanted).extend(wanted.iter().cloned());
        let subscribed = TokenChanges {
            changes,
            tokens: Arc::clone(tokens),
            wanted,
        };
        drivers.into_iter().for_each(|driver| watch(tokens, driver));
        Ok(subscribed)
    }

    /// The next change; waits for one. Who is more than 1,024 changes behind misses the
    /// oldest; [`Node::token_states`](crate::Node::token_states) says how things stand.
    pub async fn next(&mut self) -> TokenChange {
        loop {
            match self.changes.recv().await {
                Ok(change) => return change,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                // The sender lives in `tokens`.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    /// How the tokens stand that were seen so far.
    pub fn states(&self) -> Vec<(TokenId, TokenState)> {
        self.tokens.standings.all()
    }
}

impl Drop for TokenChanges {
    fn drop(&mut self) {
        let mut wanted = lock(&self.tokens.standings.wanted);
        for backend in &self.wanted {
            if let Some(at) = wanted.iter().position(|wanted| wanted == backend) {
                wanted.swap_remove(at);
            }
        }
    }
}

/// Starts the thread that watches the tokens of `driver`, if there is none.
fn watch(tokens: &Arc<Tokens>, driver: &Arc<dyn Driver>) {
    let scheme = driver.scheme();
    if !lock(&tokens.standings.watched).insert(scheme) {
        return;
    }
    let (of_node, its_driver) = (Arc::downgrade(tokens), Arc::clone(driver));
    let started = std::thread::Builder::new()
        .name(format!("watch {scheme}"))
        .spawn(move || {
            let mut watch = its_driver.watch();
            let mut look = true;
            while let Some(tokens) = still_wanted(&of_node, scheme) {
                if look {
                    take_stock(&tokens.standings, &*its_driver);
                }
                drop(tokens);
                look = watch.wait(LONGEST_WAIT);
            }
        });
    if let Err(error) = started {
        tracing::warn!(%error, scheme, "tokens are not watched");
        lock(&tokens.standings.watched).remove(scheme);
    }
}

fn still_wanted(tokens: &Weak<Tokens>, scheme: &str) -> Option<Arc<Tokens>> {
    let tokens = tokens.upgrade()?;
    // Under the lock: who subscribes now starts another thread.
    let mut watched = lock(&tokens.standings.watched);
    if tokens.standings.changes.receiver_count() == 0 {
        watched.remove(scheme);
        return None;
    }
    drop(watched);
    Some(tokens)
}

/// Looks which tokens of the driver are there and which are not any more.
///
/// Nothing is looked at but what somebody wants watched and what has a token that is known: a
/// look loads modules, which is somebody else's code.
fn take_stock(standings: &Standings, driver: &dyn Driver) {
    let scheme = driver.scheme();
    let known: Vec<_> = lock(&standings.known).values().cloned().collect();
    let known = || {
        known
            .iter()
            .filter(|standing| standing.token.kind == scheme)
    };
    let mut backends: BTreeSet<String> = (lock(&standings.wanted).iter())
        .filter(|backend| backend.split(':').next() == Some(scheme))
        .cloned()
        .collect();
    backends.extend(known().map(|standing| standing.backend.clone()));
    let mut seen = HashSet::new();
    for backend in backends {
        match driver.look(&backend, &Call::unlimited()) {
            Ok(found) => {
                for token in found
                    .tokens
                    .iter()
                    .filter(|token| !token.id.serial.is_empty())
                {
                    standings
                        .of(&token.id, &token.backend)
                        .note(Happening::Seen);
                    seen.insert(token.id.clone());
                }
            }
            Err(error) => tracing::debug!(%error, scheme, "tokens cannot be listed"),
        }
    }
    for standing in known().filter(|standing| !seen.contains(&standing.token)) {
        standing.note(Happening::Gone);
    }
}

/// Whether it is the token's absence that keeps it from working.
pub(crate) fn is_absence(error: &EngineError) -> bool {
    matches!(error, EngineError::Token(error)
        if error.advice() == Advice::InsertToken || matches!(error, Error::System { .. }))
}

impl Tokens {
    /// Waits until `token`, which is reached by `backend`, can be opened again.
    ///
    /// # Errors
    /// `absence`, when the deadline of `call` is over, or where it has none; what else
    /// keeps the token from being opened.
    pub(crate) async fn wait_for(
        self: &Arc<Self>,
        wanted: Wanted<'_>,
        Request { who, call }: Request<'_>,
        absence: EngineError,
    ) -> Result<(), EngineError> {
        let (Some(token), backend) = (wanted.token, wanted.backend) else {
            return Err(absence);
        };
        let Some(deadline) = call.deadline() else {
            return Err(absence);
        };
        call.tell(&Event::TokenNeeded {
            token: token.clone(),
        });
        // Where the token is there and gone again at once, this is not to be a busy loop.
        tokio::time::sleep(SHORTEST_WAIT).await;
        let awaited = self.awaited(token);
        let returns = awaited.returns.load(Ordering::Acquire);
        let mut pause = RETRY_INTERVAL;
        loop {
            let turn = Arc::clone(&awaited.turn).lock_owned();
            let Ok(mut turn) = tokio::time::timeout_at(deadline.into(), turn).await else {
                return Err(absence);
            };
            if awaited.returns.load(Ordering::Acquire) != returns {
                return Ok(());
            }
            match call.check() {
                Ok(()) => {}
                Err(Error::DeadlineExceeded) => return Err(absence),
                Err(error) => return Err(error.into()),
            }
            let opening = match self.openings.begin(backend, call).await {
                Ok(opening) => opening,
                Err(Error::DeadlineExceeded) => return Err(absence),
                Err(error) => return Err(error.into()),
            };
            let (tokens, awaited, sought) = (Arc::clone(self), Arc::clone(&awaited), token.clone());
            let (reached_by, its_call) = (backend.to_owned(), call.clone());
            let who = who.clone();
            let limit = pause.min(deadline.saturating_duration_since(Instant::now()));
            // The turn goes along: where a device does not answer, one thread waits for it,
            // however many requests give up meanwhile.
            let looked = tokio::task::spawn_blocking(move || {
                let wanted = Wanted {
                    backend: &reached_by,
                    token: Some(&sought),
                };
                let opened = tokens.open(Some(&who), wanted, &its_call);
                drop(opening);
                match opened {
                    Ok((found, _)) if *found.id() == sought => {
                        awaited.returns.fetch_add(1, Ordering::Release);
                        return Ok(Looked::Back);
                    }
                    Err(error) if !is_absence(&error) => return Err(error),
                    _ => {}
                }
                if turn.is_none() {
                    *turn = Some(tokens.driver(&reached_by)?.watch());
                }
                let changed = turn.as_mut().is_some_and(|watch| watch.wait(limit));
                Ok(Looked::Away { changed })
            });
            match tokio::time::timeout_at(deadline.into(), looked).await {
                Ok(Ok(Ok(Looked::Back))) => return Ok(()),
                Ok(Ok(Ok(Looked::Away { changed: true }))) => pause = RETRY_SOON,
                Ok(Ok(Ok(Looked::Away { changed: false })) | Err(_)) => {
                    pause = RETRY_INTERVAL.min(2 * pause);
                }
                Ok(Ok(Err(error))) => return Err(error),
                Err(_) => return Err(absence),
            }
        }
    }

    fn awaited(&self, token: &TokenId) -> Arc<Awaited> {
        let mut awaited = lock(&self.standings.awaited);
        // What nobody waits for any more is let go, and its watch with it.
        awaited.retain(|_, awaited| Arc::strong_count(awaited) > 1);
        let entry = awaited.entry(token.clone()).or_insert_with(|| {
            Arc::new(Awaited {
                turn: Arc::default(),
                returns: AtomicU64::default(),
            })
        });
        Arc::clone(entry)
    }
}
