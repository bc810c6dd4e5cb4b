//! What a request wants of a key: the policy is asked for it again right before the device is.
//!
//! After it was asked first, a request may wait long: for a PIN, for its turn, for a token that is
//! away. Meanwhile the right may be taken back, or the identity's name be another user's.

use std::sync::Arc;

use claviger_token::Error;

use crate::policy::{Operation, Permission, Policy};
use crate::{EngineError, EngineId, Purpose};

/// What a request wants of a key, and of whom it asks that.
#[derive(Clone, Copy)]
pub(crate) struct Wants<'a> {
    pub(crate) policy: &'a Arc<dyn Policy>,
    pub(crate) asker: &'a EngineId,
    pub(crate) operation: Operation<'a>,
}

impl Wants<'_> {
    /// Whether the policy allows it with the key of `identity`.
    ///
    /// # Errors
    /// [`EngineError::NotAllowed`], and what else the policy says.
    pub(crate) fn check(&self, identity: &EngineId) -> Result<(), EngineError> {
        let operation = self.operation;
        let wanted = Permission::Use {
            identity,
            operation,
        };
        self.policy.check(self.asker, wanted)
    }

    /// The same, to be asked on another thread.
    pub(crate) fn later(&self, identity: &EngineId) -> WantsLater {
        WantsLater {
            policy: Arc::clone(self.policy),
            asker: self.asker.clone(),
            identity: identity.clone(),
            signs_for: match self.operation {
                Operation::Sign(purpose) => Some(purpose.clone()),
                Operation::Decrypt => None,
            },
        }
    }
}

/// What a request wants of the key of one identity.
#[derive(Clone)]
pub(crate) struct WantsLater {
    policy: Arc<dyn Policy>,
    asker: EngineId,
    identity: EngineId,
    /// `None`: to decrypt.
    signs_for: Option<Purpose>,
}

impl WantsLater {
    /// As [`Wants::check`].
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        let wants = Wants {
            policy: &self.policy,
            asker: &self.asker,
            operation: match &self.signs_for {
                Some(purpose) => Operation::Sign(purpose),
                None => Operation::Decrypt,
            },
        };
        wants.check(&self.identity)
    }

    /// The same where only a token's error can be said: the request is given up.
    pub(crate) fn check_here(&self) -> Result<(), Error> {
        self.check().map_err(|_| Error::Cancelled)
    }
}
