//! Messages between engines. Every reply goes to the request's sender, mailbox 0.

use claviger_token::Deletion;
use claviger_token::token::Secret;

use crate::{Backend, Capabilities, Commitment, EngineError, EngineId, IdParams};

/// A message on its way.
#[derive(Debug)]
pub struct EngineMsg {
    /// Who sends it; the key under which an identity is entered.
    pub sender: EngineId,
    /// Who is to have it.
    pub target: EngineId,
    /// In which of the target's mailboxes; `None` is 0.
    pub mailbox: Option<u64>,
    /// What it says.
    pub msg: Msg,
}

/// What a message says.
#[derive(Debug)]
#[non_exhaustive]
pub enum Msg {
    /// To Identity Management: make an identity for the sender.
    RequestGenerateIdentity(RequestGenerateIdentity),
    /// The answer to it.
    ReplyGenerateIdentity(ReplyGenerateIdentity),
    /// To Identity Management: let the sender use an existing identity or key.
    RequestConnectIdentity(RequestConnectIdentity),
    /// The answer to it.
    ReplyConnectIdentity(ReplyConnectIdentity),
    /// To Identity Management: remove an identity.
    RequestDeleteIdentity(RequestDeleteIdentity),
    /// The answer to it.
    ReplyDeleteIdentity(ReplyDeleteIdentity),
    /// To a Commitment engine: sign.
    RequestCommitment(RequestCommitment),
    /// The answer to it.
    ReplyCommitment(ReplyCommitment),
    /// To a Decryption engine: open.
    RequestDecryption(RequestDecryption),
    /// The answer to it.
    ReplyDecryption(ReplyDecryption),
}

/// Make an identity for the sender.
#[derive(Debug, Clone)]
pub struct RequestGenerateIdentity {
    /// Where its keys are to be made.
    pub backend: Backend,
    /// Its cryptosystem.
    pub params: IdParams,
    /// What it is to be able to do.
    pub capabilities: Capabilities,
}

/// The answer to [`RequestGenerateIdentity`]. With an error there are no engines.
#[derive(Debug, Clone)]
pub struct ReplyGenerateIdentity {
    /// The engine that signs for the identity.
    pub commitment_engine: Option<EngineId>,
    /// The engine that decrypts for the identity.
    pub decryption_engine: Option<EngineId>,
    /// The identity: the requester's own id.
    pub external_identity: EngineId,
    /// What went wrong.
    pub err: Option<EngineError>,
}

/// Let the sender use an existing identity, or adopt an existing key.
#[derive(Debug, Clone)]
pub struct RequestConnectIdentity {
    /// The identity; or, as its name, the fingerprint of a key on the backend's token.
    pub external_identity: EngineId,
    /// Where the key to adopt is; of no account for an identity that is known.
    pub backend: Backend,
    /// What the sender wants to be able to do.
    pub capabilities: Capabilities,
}

/// The answer to [`RequestConnectIdentity`]. With an error there are no engines.
#[derive(Debug, Clone)]
pub struct ReplyConnectIdentity {
    /// The engine that signs.
    pub commitment_engine: Option<EngineId>,
    /// The engine that decrypts.
    pub decryption_engine: Option<EngineId>,
    /// What went wrong.
    pub err: Option<EngineError>,
}

/// Remove an identity.
#[derive(Debug, Clone)]
pub struct RequestDeleteIdentity {
    /// The identity.
    pub external_identity: EngineId,
    /// Where it is. The entry knows it, so this is of no account.
    pub backend: Backend,
}

/// The answer to [`RequestDeleteIdentity`].
#[derive(Debug, Clone)]
pub struct ReplyDeleteIdentity {
    /// What became of each key that was made for the identity: what the device
    /// confirmed. Empty where the identity had none of its own.
    pub keys: Vec<Deletion>,
    /// What went wrong.
    pub err: Option<EngineError>,
}

/// Sign.
#[derive(Debug, Clone)]
pub struct RequestCommitment {
    /// What to sign.
    pub data: Vec<u8>,
}

/// The answer to [`RequestCommitment`].
#[derive(Debug, Clone)]
pub struct ReplyCommitment {
    /// The signature; `None` (the empty commitment) on an error.
    pub commitment: Option<Commitment>,
    /// What went wrong.
    pub err: Option<EngineError>,
}

/// Open a ciphertext.
#[derive(Debug, Clone)]
pub struct RequestDecryption {
    /// The ciphertext: an age file.
    pub data: Vec<u8>,
}

/// The answer to [`RequestDecryption`].
#[derive(Clone)]
pub struct ReplyDecryption {
    /// The plaintext; empty on an error.
    pub data: Secret,
    /// What went wrong; `Decryption Failed` for all that depends on the ciphertext.
    pub err: Option<EngineError>,
}

impl std::fmt::Debug for ReplyDecryption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplyDecryption")
            .field("err", &self.err)
            .finish_non_exhaustive()
    }
}
