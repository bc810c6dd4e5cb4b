//! Who may do what. The seam at which a node decides on authorisation.

use crate::{EngineError, EngineId};

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
    /// Use the engines of this identity from now on.
    Connect(&'a EngineId),
    /// Use a key that is on a token of this machine.
    Adopt,
    /// Delete this identity.
    Delete(&'a EngineId),
}

/// The default: within this process anyone may do anything, as the specification has
/// it; from another node only an identity's owner deletes it, and nobody is let in to
/// what others own.
#[derive(Debug, Clone, Copy, Default)]
pub struct OwnersOnly;

impl Policy for OwnersOnly {
    fn check(&self, sender: &EngineId, access: Access<'_>) -> Result<(), EngineError> {
        let what = match access {
            _ if sender.node.is_none() => return Ok(()),
            Access::Connect(identity) | Access::Delete(identity) if identity == sender => {
                return Ok(());
            }
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
