//! Subscribers to the changes of tokens, and the threads that watch the devices for them.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use claviger_token::sync::lock;
use claviger_token::{Call, Driver, TokenId};
use tokio::sync::broadcast;

use crate::EngineError;
use crate::standings::Standings;
use crate::token_state::{Happening, TokenChange, TokenState};
use crate::tokens::Pool;

/// How long a look at the devices waits at most before it sees that nobody cares.
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// The changes of the tokens' states, as they happen; from
/// [`Node::token_changes`](crate::Node::token_changes).
pub struct TokenChanges {
    changes: broadcast::Receiver<TokenChange>,
    /// The devices are watched as long as somebody holds this.
    tokens: Arc<Pool>,
    /// What is watched for this subscriber.
    wanted: Vec<String>,
}

impl TokenChanges {
    /// What fits `backend`, which the caller has looked at, or all.
    pub(crate) fn subscribe(
        tokens: &Arc<Pool>,
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
                drivers.push(tokens.driver(backend)?);
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

    /// Those of the tokens that this node has seen, and no others are looked for.
    pub(crate) fn of_known(tokens: &Arc<Pool>) -> Self {
        let changes = tokens.standings.changes.subscribe();
        let known = lock(&tokens.standings.known);
        let kinds: HashSet<String> = known.keys().map(|token| token.kind.clone()).collect();
        drop(known);
        let drivers = tokens.drivers();
        let drivers = drivers.filter(|driver| kinds.contains(driver.scheme()));
        drivers.for_each(|driver| watch(tokens, driver));
        TokenChanges {
            changes,
            tokens: Arc::clone(tokens),
            wanted: Vec::new(),
        }
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
fn watch(tokens: &Arc<Pool>, driver: &Arc<dyn Driver>) {
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

fn still_wanted(tokens: &Weak<Pool>, scheme: &str) -> Option<Arc<Pool>> {
    let tokens = tokens.upgrade()?;
    // Under the lock: who subscribes now starts another thread.
    let mut watched = lock(&tokens.standings.watched);
    if !tokens.standings.changes.are_listened_to() {
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
        match driver.tokens(&backend, &Call::unlimited()) {
            Ok(found) => {
                for token in found.iter().filter(|token| !token.id.serial.is_empty()) {
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
