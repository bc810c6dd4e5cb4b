//! Messages between engines. A reply goes to the sender of its request, mailbox 0.

use claviger_token::Deletion;
use claviger_token::token::Secret;

use crate::encryption::Preference;
use crate::evidence::Evidence;
use crate::reads_for::EvidenceAbout;
use crate::{Backend, Capabilities, Commitment, EngineError, EngineId, IdParams, Purpose};

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
    /// To the Encryption engine: encrypt.
    RequestEncrypt(RequestEncrypt),
    /// The answer to it.
    ReplyEncrypt(ReplyEncrypt),
    /// To the Reads For engine: does one identity read for another?
    RequestReadsFor(RequestReadsFor),
    /// The answer to it.
    ReplyReadsFor(ReplyReadsFor),
    /// To the Reads For engine: take this evidence.
    SubmitReadsForEvidence(SubmitReadsForEvidence),
    /// The answer to it.
    ReplySubmitReadsForEvidence(ReplySubmitReadsForEvidence),
    /// To the Reads For engine: what evidence is there about an identity?
    QueryReadsForEvidence(QueryReadsForEvidence),
    /// The answer to it.
    ReplyReadsForEvidence(ReplyReadsForEvidence),
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
    /// The identity; or, as its name, the fingerprint of a key on the backend's token; or those
    /// of the two keys of an identity, one that signs and one that decrypts, with a comma
    /// between them.
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
    /// What to sign: a message, or what the purpose says.
    pub data: Vec<u8>,
    /// What the signature is for.
    pub purpose: Purpose,
}

impl RequestCommitment {
    /// Sign a message, as the specification has it.
    pub fn raw(data: Vec<u8>) -> Self {
        RequestCommitment {
            data,
            purpose: Purpose::Raw,
        }
    }
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

/// Encrypt to an identity, or to a contact.
#[derive(Clone)]
pub struct RequestEncrypt {
    /// The plaintext.
    pub data: Secret,
    /// Who is to read it.
    pub external_identity: EngineId,
    /// Whether evidence of who reads for whom is to be used.
    pub use_reads_for: bool,
    /// What is preferred where evidence leaves a choice; of no account without it.
    pub preference: Preference,
}

impl std::fmt::Debug for RequestEncrypt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestEncrypt")
            .field("external_identity", &self.external_identity)
            .field("use_reads_for", &self.use_reads_for)
            .field("preference", &self.preference)
            .finish_non_exhaustive()
    }
}

/// The answer to [`RequestEncrypt`].
#[derive(Debug, Clone)]
pub struct ReplyEncrypt {
    /// The ciphertext, an age file; empty on an error.
    pub ciphertext: Vec<u8>,
    /// What went wrong.
    pub err: Option<EngineError>,
}

/// Does `a` read for `b`: can whoever holds A's decryptor decrypt what is encrypted to B?
#[derive(Debug, Clone)]
pub struct RequestReadsFor {
    /// Who would read.
    pub a: EngineId,
    /// For whom.
    pub b: EngineId,
}

/// The answer to [`RequestReadsFor`].
#[derive(Debug, Clone)]
pub struct ReplyReadsFor {
    /// Whether it does; false on an error.
    pub reads_for: bool,
    /// What went wrong.
    pub err: Option<EngineError>,
}

/// Take this evidence, if it verifies.
#[derive(Debug, Clone)]
pub struct SubmitReadsForEvidence {
    /// The evidence.
    pub evidence: Evidence,
}

/// The answer to [`SubmitReadsForEvidence`].
#[derive(Debug, Clone)]
pub struct ReplySubmitReadsForEvidence {
    /// What went wrong: `Evidence already exists.`, `Invalid evidence provided.`
    pub err: Option<EngineError>,
}

/// What evidence is there about an identity?
#[derive(Debug, Clone)]
pub struct QueryReadsForEvidence {
    /// The identity.
    pub external_identity: EngineId,
}

/// The answer to [`QueryReadsForEvidence`].
#[derive(Debug, Clone)]
pub struct ReplyReadsForEvidence {
    /// The identity that was asked about.
    pub external_identity: EngineId,
    /// The evidence; none on an error.
    pub evidence: EvidenceAbout,
    /// What went wrong.
    pub err: Option<EngineError>,
}
