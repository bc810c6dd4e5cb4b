//! Messages between engines. A reply goes to the sender of its request, mailbox 0.

use claviger_token::Deletion;
use claviger_token::token::Secret;

use crate::encryption::Preference;
use crate::evidence::Evidence;
use crate::reads_for::EvidenceAbout;
use crate::{Backend, Capabilities, Commitment, EngineError, EngineId, IdParams, Purpose};

/// A message with its sender and target.
#[derive(Debug)]
pub struct EngineMsg {
    /// The sender, which is also the id of an identity that it requests.
    pub sender: EngineId,
    /// The receiver.
    pub target: EngineId,
    /// The mailbox of the target; `None` is 0.
    pub mailbox: Option<u64>,
    /// The content.
    pub msg: Msg,
}

/// The content of a message.
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
    /// To a Decryption engine: decrypt.
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
    /// To the Reads For engine: store this evidence.
    SubmitReadsForEvidence(SubmitReadsForEvidence),
    /// The answer to it.
    ReplySubmitReadsForEvidence(ReplySubmitReadsForEvidence),
    /// To the Reads For engine: return the evidence about an identity.
    QueryReadsForEvidence(QueryReadsForEvidence),
    /// The answer to it.
    ReplyReadsForEvidence(ReplyReadsForEvidence),
}

/// Make an identity for the sender.
#[derive(Debug, Clone)]
pub struct RequestGenerateIdentity {
    /// The token for its keys.
    pub backend: Backend,
    /// Its cryptosystem.
    pub params: IdParams,
    /// Its capabilities.
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
    /// The identity. To adopt keys, its name is the fingerprint of a key on the backend's token, or
    /// the fingerprints of a signing key and a decryption key, separated by a comma.
    pub external_identity: EngineId,
    /// The token of the key to adopt; ignored for an existing identity.
    pub backend: Backend,
    /// The capabilities that the sender requests.
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
    /// Its token; ignored, since the entry knows it.
    pub backend: Backend,
}

/// The answer to [`RequestDeleteIdentity`].
#[derive(Debug, Clone)]
pub struct ReplyDeleteIdentity {
    /// The outcome for each key that was made for the identity, as the device confirmed it. Empty
    /// if the identity had no keys of its own.
    pub keys: Vec<Deletion>,
    /// What went wrong.
    pub err: Option<EngineError>,
}

/// Sign.
#[derive(Debug, Clone)]
pub struct RequestCommitment {
    /// The data to sign: a message, or what the purpose requires.
    pub data: Vec<u8>,
    /// The purpose of the signature.
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

/// Decrypt a ciphertext.
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
    /// What went wrong; `Decryption Failed` for every fault of the ciphertext.
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
    /// The recipient.
    pub external_identity: EngineId,
    /// Whether to use evidence of who reads for whom.
    pub use_reads_for: bool,
    /// The preference if evidence leaves a choice; ignored without evidence.
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
    /// The reader.
    pub a: EngineId,
    /// The identity that it would read for.
    pub b: EngineId,
}

/// The answer to [`RequestReadsFor`].
#[derive(Debug, Clone)]
pub struct ReplyReadsFor {
    /// Whether `a` reads for `b`; false on an error.
    pub reads_for: bool,
    /// What went wrong.
    pub err: Option<EngineError>,
}

/// Store this evidence, if it verifies.
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

/// Return the evidence about an identity.
#[derive(Debug, Clone)]
pub struct QueryReadsForEvidence {
    /// The identity.
    pub external_identity: EngineId,
}

/// The answer to [`QueryReadsForEvidence`].
#[derive(Debug, Clone)]
pub struct ReplyReadsForEvidence {
    /// The identity.
    pub external_identity: EngineId,
    /// The evidence; none on an error.
    pub evidence: EvidenceAbout,
    /// What went wrong.
    pub err: Option<EngineError>,
}
