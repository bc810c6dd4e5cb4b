//! Authorisation: a node asks its policy before each action.

use crate::{EngineError, EngineId, Purpose};

/// Decides whether a sender may do something to an identity.
///
/// The sender has been authenticated by whoever let its message in.
pub trait Policy: Send + Sync {
    /// # Errors
    /// [`EngineError::NotAllowed`], which becomes the reply.
    fn check(&self, sender: &EngineId, access: Access<'_>) -> Result<(), EngineError>;
}

/// What a sender wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access<'a> {
    /// Have an engine of this identity do something with its key.
    Use {
        /// The identity that the key was made or adopted for.
        identity: &'a EngineId,
        /// What its key does.
        operation: Operation<'a>,
    },
    /// Use the engines of this identity from now on.
    Connect(&'a EngineId),
    /// Use a key that is on a token of this machine.
    Adopt,
    /// Delete this identity.
    Delete(&'a EngineId),
}

/// What a key is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation<'a> {
    /// It signs something for this purpose.
    Sign(&'a Purpose),
    /// It opens a ciphertext.
    Decrypt,
}

/// The default: within this process anyone may do anything, as the specification has
/// it; from another node only an identity's owner uses or deletes it, nobody is let in to
/// what others own, and nobody hands in digests ([`Purpose::Prehash`]).
#[derive(Debug, Clone, Copy, Default)]
pub struct OwnersOnly;

impl Policy for OwnersOnly {
    fn check(&self, sender: &EngineId, access: Access<'_>) -> Result<(), EngineError> {
        let what = match access {
            _ if sender.node.is_none() => return Ok(()),
            Access::Use {
                operation: Operation::Sign(Purpose::Prehash),
                ..
            } => "have a digest signed of which nobody sees the message",
            Access::Use { identity, .. } | Access::Connect(identity) | Access::Delete(identity)
                if identity == sender =>
            {
                return Ok(());
            }
            Access::Use { .. } => "use an identity that it does not own",
            Access::Connect(_) => "connect to an identity that it does not own",
            Access::Adopt => "adopt a key of this machine",
            Access::Delete(_) => "delete an identity that it does not own",
        };
        Err(EngineError::NotAllowed {
            sender: sender.clone(),
            what,
        })
    }
}
