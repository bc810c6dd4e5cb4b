//! What all connections share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use claviger_attached::Devices;
use claviger_client::frame::PROTOCOL;
use claviger_client::wire;
use claviger_engine::{FoundTokens, Node};
use claviger_token::sync::lock;
use claviger_token::{Call, TokenId};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::Caller;
use crate::asking::Confirm;
use crate::audit::Audit;
use crate::authority::ByRules;
use crate::limits::{Limits, Loads};
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::pins::{Keeper, PinSettings, Unlocked};
use crate::policy::Rules;
use crate::replies::{self, Hints};
use crate::sockets::SocketFile;

/// How the front-end shows tokens as JSON.
pub(crate) type TokensJson = fn(&FoundTokens) -> String;

/// So long connections have to end after their requests were given up.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// How far the daemon has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Running,
    /// Nothing new is begun.
    Draining,
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) node: Node,
    pub(crate) rules: Arc<Rules>,
    pub(crate) audit: Audit,
    /// Whether there is a log at all.
    pub(crate) audits: bool,
    pub(crate) pins: PinSettings,
    pub(crate) devices: Devices,
    pub(crate) metrics: Option<Arc<Metrics>>,
    /// Who asks a person to confirm the use of a key.
    pub(crate) confirmer: Option<Arc<dyn Confirm>>,
    /// The socket at which figures are shown; its file is removed with it.
    pub(crate) figures_at: Mutex<Option<SocketFile>>,
    pub(crate) keeper: OnceLock<Arc<Keeper>>,
    pub(crate) hints: Hints,
    pub(crate) tokens_json: TokensJson,
    pub(crate) program: String,
    pub(crate) home_id: String,
    pub(crate) is_system: bool,
    /// What callers may take: it may change while the daemon serves.
    pub(crate) limits: ArcSwap<Limits>,
    pub(crate) loads: Loads,
    pub(crate) begun_at: Instant,
    pub(crate) state: watch::Sender<State>,
    pub(crate) is_draining: AtomicBool,
    pub(crate) is_forced: AtomicBool,
    pub(crate) in_flight: AtomicU32,
    pub(crate) answered: AtomicU64,
    pub(crate) connections: Mutex<HashMap<u64, Living>>,
    pub(crate) numbers: AtomicU64,
    pub(crate) ended: Notify,
}

/// A request in flight.
pub(crate) struct InFlight(Arc<Shared>);

impl Drop for InFlight {
    fn drop(&mut self) {
        // In one order with the beginning of the draining: either it is seen here, or the last
        // connection sees that nothing is in flight.
        let before = self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
        if before == 1 && self.0.is_draining.load(Ordering::SeqCst) {
            self.0.wake_all();
        }
    }
}

/// A connection that lives.
pub(crate) struct Living {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) task: Option<AbortHandle>,
}

impl Shared {
    /// What callers may take at this moment.
    pub(crate) fn limits(&self) -> Guard<Arc<Limits>> {
        self.limits.load()
    }

    /// Whether nothing new is begun.
    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// How many devices one caller may attach.
    pub(crate) fn most_devices(&self) -> usize {
        self.limits().devices_of_caller
    }

    /// Whether a request of any connection is in flight, which may need a device of another one.
    pub(crate) fn has_in_flight(&self) -> bool {
        self.in_flight.load(Ordering::SeqCst) > 0
    }

    /// Whether what is in flight is given up.
    pub(crate) fn is_forced(&self) -> bool {
        self.is_forced.load(Ordering::Relaxed)
    }

    /// Who keeps PINs; it belongs to the runtime in which it is first asked for.
    pub(crate) fn keeper(&self) -> &Arc<Keeper> {
        self.keeper.get_or_init(|| {
            let authority = Arc::new(ByRules(Arc::clone(&self.rules)));
            Keeper::new(&self.node, authority, self.pins.clone())
        })
    }

    /// Wipes all PINs, and logs out.
    pub(crate) async fn log_out(&self) {
        let Some(keeper) = self.keeper.get() else {
            return;
        };
        let the_daemon = Caller::the_daemon();
        keeper.lock(&the_daemon, None, &Call::within(GRACE)).await;
    }

    /// A request has begun; it is in flight as long as the result lives.
    pub(crate) fn begun(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    pub(crate) fn answered(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn hello(&self) -> wire::Hello {
        wire::Hello {
            version: PROTOCOL,
            program: self.program.clone(),
            home_id: self.home_id.clone(),
            is_own: !self.is_system,
            answers_pins: false,
        }
    }

    pub(crate) fn status(&self) -> wire::StatusReply {
        let unlocked: HashMap<TokenId, Unlocked> = match self.keeper.get() {
            Some(keeper) => keeper.status().into_iter().collect(),
            None => HashMap::new(),
        };
        let (audit, audit_failure) = self.audit.status();
        let tokens = self.node.token_states().into_iter();
        wire::StatusReply {
            program: self.program.clone(),
            home_id: self.home_id.clone(),
            pid: std::process::id(),
            uptime_s: self.begun_at.elapsed().as_secs(),
            connections: u32::try_from(lock(&self.connections).len()).unwrap_or(u32::MAX),
            requests_in_flight: self.in_flight.load(Ordering::Relaxed),
            requests_served: self.answered.load(Ordering::Relaxed),
            tokens: tokens
                .map(|(token, state)| wire::TokenStatus {
                    state: state.name().to_owned(),
                    ..token_status(&token, unlocked.get(&token))
                })
                .collect(),
            audit: audit.to_owned(),
            audit_failure: audit_failure.unwrap_or_default(),
        }
    }
}

fn token_status(token: &TokenId, unlocked: Option<&Unlocked>) -> wire::TokenStatus {
    let left = unlocked.and_then(|unlocked| unlocked.left);
    wire::TokenStatus {
        token: Some(replies::token(token)),
        is_unlocked: unlocked.is_some(),
        // 0 is for ever.
        unlocked_for_s: left.map_or(0, |left| left.as_secs().max(1)),
        ..wire::TokenStatus::default()
    }
}
