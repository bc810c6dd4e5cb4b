//! Authorisation: a node asks its policy for everything that a request wants.
//!
//! It asks before it opens a token, prompts for a PIN or changes anything.

use claviger_token::TokenId;

use crate::{Backend, EngineError, EngineId, Purpose};

/// Decides whether a sender may do something.
///
/// The sender has been authenticated by whoever let its message in: see
/// [`Node::let_in`](crate::Node::let_in).
pub trait Policy: Send + Sync {
    /// # Errors
    /// [`EngineError::NotAllowed`], which becomes the reply.
    fn check(&self, sender: &EngineId, access: Access<'_>) -> Result<(), EngineError>;
}

/// What a sender wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access<'a> {
    /// Have keys made for an identity of its own.
    Generate {
        /// Where.
        backend: &'a Backend,
    },
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
    /// Have an identity sign that another one reads for it.
    Grant {
        /// Who is to read.
        reader: &'a EngineId,
        /// Who signs it.
        by: &'a EngineId,
    },
    /// Have an identity sign that another one does not read for it any more.
    Revoke {
        /// Who is not to read.
        reader: &'a EngineId,
        /// Who signs it.
        by: &'a EngineId,
    },
    /// See the tokens of this machine and what is in their slots.
    ListTokens,
    /// Encrypt to this identity or contact.
    Encrypt(&'a EngineId),
    /// See who reads for this identity or contact, and for whom it reads.
    ReadEvidence(&'a EngineId),
    /// Have evidence stored, if it verifies.
    SubmitEvidence,
    /// Use a token that is open by somebody else's PIN.
    UseLogin {
        /// The token.
        token: &'a TokenId,
        /// The sender of the request whose PIN it was.
        of: &'a EngineId,
    },
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
/// it, and a token that is open is open for all. From another node only an identity's owner uses
/// it, deletes it and grants in its name; nobody is let in to what others own, uses their login
/// or sees the tokens, and nobody hands in digests ([`Purpose::Prehash`]). Nobody has keys made
/// from there either: whoever does names the backend that is opened, and a backend can name files
/// of this machine that are then read or run.
#[derive(Debug, Clone, Copy, Default)]
pub struct OwnersOnly;

impl Policy for OwnersOnly {
    fn check(&self, sender: &EngineId, access: Access<'_>) -> Result<(), EngineError> {
        let what = match access {
            _ if sender.node.is_none() => return Ok(()),
            Access::Encrypt(_) | Access::ReadEvidence(_) | Access::SubmitEvidence => {
                return Ok(());
            }
            Access::Generate { .. } => "have keys made on a backend of its choice",
            Access::Use {
                operation: Operation::Sign(Purpose::Prehash),
                ..
            } => "have a digest signed of which nobody sees the message",
            Access::Use { identity, .. }
            | Access::Connect(identity)
            | Access::Delete(identity)
            | Access::Grant { by: identity, .. }
            | Access::Revoke { by: identity, .. }
                if identity == sender =>
            {
                return Ok(());
            }
            Access::Use { .. } => "use an identity that it does not own",
            Access::Connect(_) => "connect to an identity that it does not own",
            Access::Adopt => "adopt a key of this machine",
            Access::Delete(_) => "delete an identity that it does not own",
            Access::Grant { .. } => "grant in the name of an identity that it does not own",
            Access::Revoke { .. } => "revoke in the name of an identity that it does not own",
            Access::ListTokens => "list the tokens of this machine",
            Access::UseLogin { .. } => "use a token that is open by somebody else's PIN",
        };
        Err(EngineError::NotAllowed {
            sender: sender.clone(),
            what,
        })
    }
}
