//! What a node is made of.

use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use claviger_token::{Access, Driver, TokenId};

use super::Node;
use crate::EngineId;
use crate::exchange_state::{Exchange, READS_FOR_DEADLINE};
use crate::inner::{Inner, READS_FOR};
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

    /// How tokens are opened for requests that [carry](claviger_token::Call::using) nothing of
    /// their own for it. Without it no PIN is given to any. Which PINs were refused is
    /// remembered in the node's registry, whatever `access` says.
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Lets PINs be sent also where the registry cannot be written to, so that a refusal is
    /// not remembered: `tell` hears of each token before. Without it no PIN is sent then. One
    /// that was refused like this is the last in this process.
    #[must_use]
    pub fn unnoted_pins(mut self, tell: impl Fn(&TokenId) + Send + Sync + 'static) -> Self {
        self.unnoted_pins = Some(Arc::new(tell));
        self
    }

    /// Who may do what. Without it [`OwnersOnly`].
    #[must_use]
    pub fn policy(mut self, policy: impl Policy + 'static) -> Self {
        self.policy = Arc::new(policy);
        self
    }

    /// Which Reads For engine the Encryption engine asks. Without it the node's own.
    #[must_use]
    pub fn reads_for(mut self, engine: EngineId) -> Self {
        self.reads_for = engine;
        self
    }

    /// How long the Reads For engine may take. Without it [`READS_FOR_DEADLINE`].
    #[must_use]
    pub fn reads_for_deadline(mut self, deadline: Duration) -> Self {
        self.reads_for_deadline = deadline;
        self
    }

    /// The node.
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
        Node(Arc::new(Inner {
            registry: self.registry,
            tokens: Arc::new(Tokens::new(self.drivers, access, Arc::clone(&self.policy))),
            policy: self.policy,
            exchange: Exchange::new(self.reads_for, self.reads_for_deadline),
            engines: RwLock::default(),
            participants: RwLock::default(),
            missed: Mutex::default(),
            turns: ManagementTurns::default(),
        }))
    }
}

impl Node {
    /// A node whose identities are in `registry`.
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
