//! Errors of engines.

use claviger_token::{Error as TokenError, Fingerprint, KeyUse, TokenId};

use crate::evidence::BadEvidence;
use crate::opener::Holder;
use crate::registry::RegistryError;
use crate::{EngineId, IdParams};

/// The error in a reply. Its text is the one that the specification gives, where it
/// gives one.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The requester has an identity already.
    #[error("Identity already exists")]
    IdentityExists,
    /// There is nothing to connect to: no such identity, no key with this fingerprint.
    #[error("External identity not found")]
    ExternalIdentityNotFound,
    /// The identity, or the key, cannot do all that is asked for.
    #[error("Capabilities not available")]
    CapabilitiesNotAvailable,
    /// The key that is to be adopted cannot be used like this.
    #[error("Capabilities not available: {reason}")]
    KeyNotUsable {
        /// What the token says.
        reason: TokenError,
    },
    /// There is nothing to delete.
    #[error("Identity does not exist")]
    IdentityDoesNotExist,
    /// The identity whose engine this is was deleted.
    #[error("the identity `{identity}` was deleted")]
    IdentityDeleted {
        /// The identity that was deleted.
        identity: EngineId,
    },
    /// No engine of this name accepts such a message.
    #[error("no engine `{engine}` accepts this")]
    NoSuchEngine {
        /// The name.
        engine: EngineId,
    },
    /// The policy does not let the sender do this.
    #[error("`{sender}` may not {what}")]
    NotAllowed {
        /// Who asked.
        sender: EngineId,
        /// What for.
        what: &'static str,
    },
    /// The name cannot be the name of an identity.
    #[error("this cannot be the name of an identity: {reason}")]
    BadName {
        /// Why not.
        reason: &'static str,
    },
    /// The cryptosystem cannot do all that is asked for, on no token.
    #[error("identities of {params} cannot decrypt")]
    CannotDecrypt {
        /// The cryptosystem.
        params: IdParams,
    },
    /// No driver of this node serves the backend.
    #[error("no driver serves the backend `{backend}`")]
    NoDriver {
        /// The backend.
        backend: String,
        /// The schemes of the drivers that this node has, in alphabetical order.
        schemes: Vec<&'static str>,
    },
    /// One slot was named for two keys.
    #[error("`{backend}` names one slot, but the identity needs a key for each capability")]
    OneSlotForTwoKeys {
        /// The backend.
        backend: String,
    },
    /// The key to adopt belongs to an identity of this registry already.
    #[error("the key {fingerprint} belongs to the identity `{owner}`")]
    KeyHasOwner {
        /// The key.
        fingerprint: Fingerprint,
        /// Its identity.
        owner: EngineId,
    },
    /// Accounts are looked for on a token that has none.
    #[error("the token {token} does not derive its keys from a seed: it has no accounts")]
    DerivesNothing {
        /// The token.
        token: TokenId,
    },
    /// Of two keys that are to be adopted as one identity neither is for this use.
    #[error("these are not the two keys of an identity: neither can {missing}")]
    NoPair {
        /// The use.
        missing: KeyUse,
    },
    /// The identity is being made or deleted at this moment, here or by another process.
    #[error("`{identity}` is being generated or deleted at this moment")]
    InProgress {
        /// The identity.
        identity: EngineId,
    },
    /// The deletion was begun, and is finished when the token can be asked again.
    #[error("the deletion of `{identity}` is not finished: {reason}")]
    DeletionUnfinished {
        /// The identity.
        identity: EngineId,
        /// Why not.
        reason: TokenError,
    },
    /// A contact has the name.
    #[error("a contact has this name")]
    NameIsContact,
    /// The identity has no key that one can encrypt to.
    #[error("`{identity}` has no key that decrypts, so nothing can be encrypted to it")]
    NoEncryptionKey {
        /// The identity.
        identity: EngineId,
    },
    /// More would have to be able to open the ciphertext than one is made for.
    #[error(
        "there would be more than {} recipients",
        crate::encryption::MOST_RECIPIENTS
    )]
    TooManyRecipients,
    /// The recipients do not go together.
    #[error("the data cannot be encrypted: {reason}")]
    CannotEncrypt {
        /// Why not.
        reason: String,
    },
    /// The Reads For engine was asked and did not answer in time.
    #[error("the engine `{engine}` did not answer in time")]
    ReadsForSilent {
        /// The engine.
        engine: EngineId,
    },
    /// The same has been said before.
    #[error("Evidence already exists.")]
    EvidenceExists,
    /// The evidence is not what it says, and was not taken.
    #[error("Invalid evidence provided.")]
    InvalidEvidence {
        /// What is wrong with it.
        reason: BadEvidence,
    },
    /// No identity here can open the file.
    #[error("no identity here can open the file")]
    NobodyOpens,
    /// No token that is attached can open the file; others may.
    #[error("no attached token can open the file")]
    TokensAway {
        /// Whose tokens they are.
        holders: Vec<Holder>,
    },
    /// Several tokens would do, and one PIN was given for whichever asks. It is the PIN of one
    /// of them, and was sent to none.
    #[error("{}, and one PIN was given for all of them", match holders.is_empty() {
        true => "several tokens are involved",
        false => "keys on several tokens could open the file",
    })]
    PinForSeveralTokens {
        /// Who may open the file; nobody where it is not about a file.
        holders: Vec<Holder>,
    },
    /// Nothing proves that the identity reads for one of those through whom it may be reached.
    #[error("nothing proves that `{identity}` reads for {}", names(via))]
    NotProven {
        /// The identity.
        identity: EngineId,
        /// Those who were named.
        via: Vec<EngineId>,
    },
    /// No grant of this identity lets the reader read, so there is none to revoke.
    #[error("no grant of `{by}` lets `{reader}` read")]
    NoSuchGrant {
        /// Who was said to read.
        reader: EngineId,
        /// For whom.
        by: EngineId,
    },
    /// A raw message begins like something that is signed for another purpose.
    #[error("the message begins like {what}: it is not signed as a document")]
    ReservedMessage {
        /// What it begins like.
        what: &'static str,
        /// What that is called: the [name](crate::Purpose::name) of a purpose, or `ssh-login`.
        kind: &'static str,
    },
    /// The data is not what is signed for the purpose.
    #[error("this is not signed for the purpose `{purpose}`: {reason}")]
    NotForPurpose {
        /// The [name](crate::Purpose::name) of the purpose.
        purpose: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The token refused, or was not to be had.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The registry could not be read or written.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Names, each in quotes.
fn names(who: &[EngineId]) -> String {
    let quoted: Vec<String> = who.iter().map(|id| format!("`{id}`")).collect();
    quoted.join(" or ")
}

impl EngineError {
    /// A name for the variant that does not change, for programs; that of the token's or the
    /// registry's error, where it is one.
    pub fn code(&self) -> &'static str {
        match self {
            EngineError::IdentityExists => "identity-exists",
            EngineError::ExternalIdentityNotFound => "external-identity-not-found",
            EngineError::CapabilitiesNotAvailable => "capabilities-not-available",
            EngineError::KeyNotUsable { .. } => "key-not-usable",
            EngineError::IdentityDoesNotExist => "identity-does-not-exist",
            EngineError::IdentityDeleted { .. } => "identity-deleted",
            EngineError::NoSuchEngine { .. } => "no-such-engine",
            EngineError::NotAllowed { .. } => "not-allowed",
            EngineError::BadName { .. } => "bad-name",
            EngineError::CannotDecrypt { .. } => "cannot-decrypt",
            EngineError::NoDriver { .. } => "no-driver",
            EngineError::OneSlotForTwoKeys { .. } => "one-slot-for-two-keys",
            EngineError::KeyHasOwner { .. } => "key-has-owner",
            EngineError::DerivesNothing { .. } => "derives-nothing",
            EngineError::NoPair { .. } => "no-pair",
            EngineError::InProgress { .. } => "in-progress",
            EngineError::DeletionUnfinished { .. } => "deletion-unfinished",
            EngineError::NameIsContact => "name-is-contact",
            EngineError::NoEncryptionKey { .. } => "no-encryption-key",
            EngineError::TooManyRecipients => "too-many-recipients",
            EngineError::CannotEncrypt { .. } => "cannot-encrypt",
            EngineError::ReadsForSilent { .. } => "reads-for-silent",
            EngineError::EvidenceExists => "evidence-exists",
            EngineError::InvalidEvidence { .. } => "invalid-evidence",
            EngineError::NotProven { .. } => "not-proven",
            EngineError::NoSuchGrant { .. } => "no-such-grant",
            EngineError::ReservedMessage { .. } => "reserved-message",
            EngineError::NotForPurpose { .. } => "not-for-purpose",
            EngineError::NobodyOpens => "nobody-opens",
            EngineError::TokensAway { .. } => "token-away",
            EngineError::PinForSeveralTokens { .. } => "pin-for-several-tokens",
            EngineError::Token(error) => error.code(),
            EngineError::Registry(error) => error.code(),
        }
    }
}
