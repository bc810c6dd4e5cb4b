//! Authorisation: a node asks its policy for everything that a request wants.
//!
//! It asks before it opens a token, prompts for a PIN or changes anything.

use std::sync::Arc;

use claviger_token::TokenId;

use crate::{Backend, EngineError, EngineId, Purpose};

/// Decides whether a sender may do something.
///
/// The sender has been authenticated by whoever let its message in: see
/// [`Node::let_in`](crate::Node::let_in).
pub trait Policy: Send + Sync {
    /// # Errors
    /// [`EngineError::NotAllowed`], which becomes the reply.
    fn check(&self, sender: &EngineId, wanted: Permission<'_>) -> Result<(), EngineError>;

    /// Whether whom it judges may learn that an identity of this node is there, and what it is
    /// called. By default everybody may.
    ///
    /// # Errors
    /// [`EngineError::Registry`].
    fn may_see(&self, _identity: &EngineId) -> Result<bool, EngineError> {
        Ok(true)
    }

    /// The only one whom this policy judges, of a [view](crate::Node::seen_by); `None` if it judges
    /// many.
    fn subject(&self) -> Option<Subject> {
        None
    }
}

/// A caller on this machine, for whom a [view](crate::Node::seen_by) of a node is made.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    /// Tells it from all others: views of one name share logins.
    pub name: Arc<str>,
    /// The user, who is noted as the maker of identities.
    pub uid: u32,
}

/// What a sender wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Permission<'a> {
    /// Generate keys for an identity of its own.
    Generate {
        /// The backend of the keys.
        backend: &'a Backend,
    },
    /// Use the key of an identity.
    Use {
        /// The identity that the key was made or adopted for.
        identity: &'a EngineId,
        /// The use of the key.
        operation: Operation<'a>,
    },
    /// Connect to this identity.
    Connect(&'a EngineId),
    /// Adopt a key on a token of this machine.
    Adopt,
    /// Delete this identity.
    Delete(&'a EngineId),
    /// Grant another identity to read for an identity, which signs this.
    Grant {
        /// The reader.
        reader: &'a EngineId,
        /// Who signs it.
        by: &'a EngineId,
    },
    /// Revoke such a grant; the identity signs this.
    Revoke {
        /// The reader.
        reader: &'a EngineId,
        /// Who signs it.
        by: &'a EngineId,
    },
    /// List the tokens of this machine and their slots.
    ListTokens,
    /// Encrypt to this identity or contact.
    Encrypt(&'a EngineId),
    /// Read the evidence about this identity or contact.
    ReadEvidence(&'a EngineId),
    /// Submit evidence, which is stored if it verifies.
    SubmitEvidence,
    /// Attach a device of its own to this node, which then is a token for everybody.
    AttachDevice,
    /// Use a token that somebody else's PIN opened.
    UseLogin {
        /// The token.
        token: &'a TokenId,
        /// The sender whose request carried that PIN; [`EngineId::program`] where it was the
        /// own PIN of another node of this process. It may be a sender of another node: also one
        /// that has the name of who asks is somebody else.
        of: &'a EngineId,
    },
    /// Name more than tokens in a backend: files of this machine, code that is loaded or run, its
    /// arguments, addresses, and where PINs come from. See
    /// [`Driver::names_more`](claviger_token::Driver::names_more).
    AnyBackend,
}

/// A use of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation<'a> {
    /// Sign, for this purpose.
    Sign(&'a Purpose),
    /// Decrypt a ciphertext.
    Decrypt,
}

/// The default policy. Within this process everything is allowed, as the specification has it, and
/// an open token serves everybody. A sender on another node can only use, delete and grant in the
/// name of identities that it owns. It cannot use a login of others, list tokens, or have digests
/// signed ([`Purpose::Prehash`]). It cannot generate keys either, since a request to generate names
/// a backend, and a backend can name files of this machine to be read or run.
#[derive(Debug, Clone, Copy, Default)]
pub struct OwnersOnly;

impl Policy for OwnersOnly {
    fn check(&self, sender: &EngineId, wanted: Permission<'_>) -> Result<(), EngineError> {
        let what = match wanted {
            _ if sender.node.is_none() => return Ok(()),
            Permission::Encrypt(_) | Permission::ReadEvidence(_) | Permission::SubmitEvidence => {
                return Ok(());
            }
            Permission::Generate { .. } => "have keys made on a backend of its choice",
            Permission::Use {
                operation: Operation::Sign(Purpose::Prehash),
                ..
            } => "have a digest signed without its message",
            Permission::Use { identity, .. }
            | Permission::Connect(identity)
            | Permission::Delete(identity)
            | Permission::Grant { by: identity, .. }
            | Permission::Revoke { by: identity, .. }
                if identity == sender =>
            {
                return Ok(());
            }
            Permission::Use { .. } => "use an identity that it does not own",
            Permission::Connect(_) => "connect to an identity that it does not own",
            Permission::Adopt => "adopt a key of this machine",
            Permission::Delete(_) => "delete an identity that it does not own",
            Permission::Grant { .. } => "grant in the name of an identity that it does not own",
            Permission::Revoke { .. } => "revoke in the name of an identity that it does not own",
            Permission::ListTokens => "list the tokens of this machine",
            Permission::UseLogin { .. } => "use a token that is open by somebody else's PIN",
            Permission::AnyBackend => "name more than tokens in a backend",
            Permission::AttachDevice => "attach devices",
        };
        Err(EngineError::NotAllowed {
            sender: sender.clone(),
            what,
        })
    }
}
