//! What a node is made of.

use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use claviger_token::{Access, Driver, TokenId};

use super::Node;
use crate::EngineId;
use crate::exchange_state::{Exchange, READS_FOR_DEADLINE};
use crate::inner::{Inner, READS_FOR, Shared};
use crate::policy::{OwnersOnly, Policy};
use crate::registry::Registry;
use crate::registry::unnoted::Tell;
use crate::tokens::Tokens;
use crate::turns::ManagementTurns;

/// What a node is made of.
pub struct NodeBuilder {
    registry: Registry,
    drivers: Vec<Arc<dyn Driver>>,
    access: Access,
    policy: Arc<dyn Policy>,
    reads_for: EngineId,
    reads_for_deadline: Duration,
    unnoted_pins: Option<Tell>,
}

impl NodeBuilder {
    /// Adds a driver; there is one for each scheme of backends.
    #[must_use]
    pub fn driver(mut self, driver: impl Driver + 'static) -> Self {
        self.drivers.push(Arc::new(driver));
        self
    }

    /// Adds drivers that the program uses by itself, too.
    #[must_use]
    pub fn drivers(mut self, drivers: impl IntoIterator<Item = Arc<dyn Driver>>) -> Self {
        self.drivers.extend(drivers);
        self
    }

    /// Sets how tokens are opened for requests that do not [carry](claviger_token::Call::using)
    /// their own access. By default no token gets a PIN. Rejected PINs are remembered in the node's
    /// registry, whatever `access` says.
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Allows PINs to be sent even if the registry cannot be written, so that a rejection cannot be
    /// recorded; `tell` is called before each token gets one. By default no PIN is sent then. After
    /// a rejection this process sends no further PIN.
    #[must_use]
    pub fn unnoted_pins(mut self, tell: impl Fn(&TokenId) + Send + Sync + 'static) -> Self {
        self.unnoted_pins = Some(Arc::new(tell));
        self
    }

    /// Sets the policy; [`OwnersOnly`] by default.
    #[must_use]
    pub fn policy(mut self, policy: impl Policy + 'static) -> Self {
        self.policy = Arc::new(policy);
        self
    }

    /// Sets the Reads For engine that the Encryption engine asks; the node's own by default.
    #[must_use]
    pub fn reads_for(mut self, engine: EngineId) -> Self {
        self.reads_for = engine;
        self
    }

    /// Sets the time limit of the Reads For engine; [`READS_FOR_DEADLINE`] by default.
    #[must_use]
    pub fn reads_for_deadline(mut self, deadline: Duration) -> Self {
        self.reads_for_deadline = deadline;
        self
    }

    /// Builds the node.
    pub fn build(self) -> Node {
        let mut refused_pins = self.registry.refused_pins().clone();
        if let Some(tell) = self.unnoted_pins {
            refused_pins = refused_pins.unnoted(tell);
        }
        let access = Access {
            refused_pins: Arc::new(refused_pins),
            first_account: self.registry.first_account(),
            ..self.access
        };
        let shared = Shared {
            registry: self.registry,
            exchange: Exchange::new(self.reads_for, self.reads_for_deadline),
            engines: RwLock::default(),
            participants: RwLock::default(),
            missed: Mutex::default(),
            turns: ManagementTurns::default(),
        };
        let tokens = Tokens::new(self.drivers, access, Arc::clone(&self.policy));
        Node(Arc::new(Inner::new(shared, tokens, self.policy)))
    }
}

impl Node {
    /// Starts building a node whose identities are in `registry`.
    pub fn builder(registry: Registry) -> NodeBuilder {
        NodeBuilder {
            registry,
            drivers: Vec::new(),
            access: Access::without_pin(),
            policy: Arc::new(OwnersOnly),
            reads_for: EngineId::local(READS_FOR),
            reads_for_deadline: READS_FOR_DEADLINE,
            unnoted_pins: None,
        }
    }
}
