//! Two safes, on the first of which `alice` and `bob` have keys, and a policy that keeps each
//! login for whose PIN made it.

use claviger_engine::message::RequestGenerateIdentity;
use claviger_engine::policy::{self, OwnersOnly};
use claviger_engine::{
    Backend, Capabilities, EngineError, EngineId, IdParams, Node, Policy, Registry,
};
use claviger_token::{Access, Call, Driver, FixedPin, PinSource, Token};
use tempfile::TempDir;

use super::safes::{PINS, Safes};
use super::{call, id};

/// Whoever's PIN opened a token uses it, and nobody else.
pub struct Private;

impl Policy for Private {
    fn check(&self, who: &EngineId, access: policy::Permission<'_>) -> Result<(), EngineError> {
        match access {
            policy::Permission::UseLogin { .. } => Err(EngineError::NotAllowed {
                sender: who.clone(),
                what: "use somebody else's login",
            }),
            _ => Ok(()),
        }
    }
}

/// `alice` and `bob` with keys on the first of two safes, and nobody logged in.
pub struct Stage {
    pub safes: Safes,
    pub home: TempDir,
}

impl Stage {
    pub async fn new() -> Self {
        Stage::with(Safes::new()).await
    }

    pub async fn with(safes: Safes) -> Self {
        let stage = Stage {
            safes,
            home: tempfile::tempdir().unwrap(),
        };
        let node = stage.node(stage.safes.person(), OwnersOnly);
        for name in ["alice", "bob"] {
            let made = node.generate(&id(name), stage.request(), &call()).await;
            made.unwrap();
        }
        stage.safes.log_out();
        stage
    }

    /// For an identity on the first safe.
    pub fn request(&self) -> RequestGenerateIdentity {
        RequestGenerateIdentity {
            backend: Backend::from(self.safes.0[0].device.info().backend.clone()),
            params: IdParams::Ed25519,
            capabilities: Capabilities::CommitAndDecrypt,
        }
    }

    pub fn node(&self, pins: impl PinSource + 'static, policy: impl Policy + 'static) -> Node {
        self.node_with(self.safes.clone(), pins, policy)
    }

    pub fn node_with(
        &self,
        driver: impl Driver + 'static,
        pins: impl PinSource + 'static,
        policy: impl Policy + 'static,
    ) -> Node {
        Node::builder(Registry::open(self.home.path()).unwrap())
            .driver(driver)
            .access(Access::with(pins))
            .policy(policy)
            .build()
    }

    /// The PINs that came to the first safe since this was asked last.
    pub fn came(&self) -> Vec<String> {
        self.safes.0[0].came()
    }
}

/// A call that carries the PIN of the first safe.
pub fn with_pin() -> Call {
    Call::unlimited().using(Access::with(FixedPin::new(PINS[0])))
}

pub fn is_not_allowed<T: std::fmt::Debug>(done: &Result<T, EngineError>) {
    assert!(
        matches!(done, Err(EngineError::NotAllowed { .. })),
        "{done:?}"
    );
}
