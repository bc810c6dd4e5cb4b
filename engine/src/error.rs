//! Errors of engines.

use claviger_token::{Error as TokenError, Fingerprint, KeyUse, TokenId};

use crate::evidence::BadEvidence;
use crate::opener::Holder;
use crate::registry::RegistryError;
use crate::{EngineId, IdParams};

/// The error in a reply. Its text is that of the specification, if the specification gives one.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The requester already has an identity.
    #[error("Identity already exists")]
    IdentityExists,
    /// There is no such identity, and no key with this fingerprint.
    #[error("External identity not found")]
    ExternalIdentityNotFound,
    /// The identity or the key does not have all requested capabilities.
    #[error("Capabilities not available")]
    CapabilitiesNotAvailable,
    /// The key to adopt cannot be used like this.
    #[error("Capabilities not available: {reason}")]
    KeyNotUsable {
        /// The token's error.
        reason: TokenError,
    },
    /// There is no identity to delete.
    #[error("Identity does not exist")]
    IdentityDoesNotExist,
    /// The identity of this engine was deleted.
    #[error("the identity `{identity}` was deleted")]
    IdentityDeleted {
        /// The deleted identity.
        identity: EngineId,
    },
    /// No engine of this name accepts such a message.
    #[error("no engine `{engine}` accepts this")]
    NoSuchEngine {
        /// The name.
        engine: EngineId,
    },
    /// The policy does not allow this to the sender.
    #[error("`{sender}` may not {what}")]
    NotAllowed {
        /// The sender.
        sender: EngineId,
        /// What the sender asked for, as the end of a sentence.
        what: &'static str,
    },
    /// The backend names more than tokens, which the policy does not allow to the sender: a file
    /// of this machine, an argument, an address, or where a PIN comes from. It was not looked at.
    #[error("this caller may only say which token it means, and the backend has `{attribute}`")]
    BackendNamesMore {
        /// What the backend names beside tokens.
        attribute: &'static str,
    },
    /// The token is open by a PIN of somebody else, whose login who asks must not use, and who asks
    /// gave no PIN.
    #[error("the token {token} is unlocked by somebody else, and not for this caller")]
    Locked {
        /// The token.
        token: TokenId,
    },
    /// The token is open by a PIN of somebody else, and who asks gave another one. It was compared
    /// with that one here, and not sent.
    #[error("this is not the PIN that {token} is unlocked with; it was not sent")]
    PinDiffers {
        /// The token.
        token: TokenId,
    },
    /// The name cannot be the name of an identity.
    #[error("this cannot be the name of an identity: {reason}")]
    BadName {
        /// Why not.
        reason: &'static str,
    },
    /// The cryptosystem does not have all requested capabilities on any token.
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
        /// The schemes of this node's drivers, in alphabetical order.
        schemes: Vec<&'static str>,
    },
    /// One slot was named for two keys.
    #[error("`{backend}` names one slot, but the identity needs a key for each capability")]
    OneSlotForTwoKeys {
        /// The backend.
        backend: String,
    },
    /// The key to adopt already belongs to an identity of this registry.
    #[error("the key {fingerprint} belongs to {}", match owner {
        Some(owner) => format!("the identity `{owner}`"),
        None => "an identity of somebody else".into(),
    })]
    KeyHasOwner {
        /// The key.
        fingerprint: Fingerprint,
        /// Its identity; `None` if the policy does not let the sender see it.
        owner: Option<EngineId>,
    },
    /// The token has no accounts to search: it does not derive its keys.
    #[error("the token {token} does not derive its keys from a seed: it has no accounts")]
    DerivesNothing {
        /// The token.
        token: TokenId,
    },
    /// Of the two keys to adopt as one identity, neither is for this use.
    #[error("these are not the two keys of an identity: neither can {missing}")]
    NoPair {
        /// The use.
        missing: KeyUse,
    },
    /// This or another process is making or deleting the identity.
    #[error("`{identity}` is being generated or deleted at this moment")]
    InProgress {
        /// The identity.
        identity: EngineId,
    },
    /// The deletion was begun. It is completed when the token is available again.
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
    /// The identity has no encryption key.
    #[error("`{identity}` has no key that decrypts, so nothing can be encrypted to it")]
    NoEncryptionKey {
        /// The identity.
        identity: EngineId,
    },
    /// The ciphertext would have more recipients than the limit.
    #[error(
        "there would be more than {} recipients",
        crate::encryption::MOST_RECIPIENTS
    )]
    TooManyRecipients,
    /// The recipients cannot be combined in one file.
    #[error("the data cannot be encrypted: {reason}")]
    CannotEncrypt {
        /// Why not.
        reason: String,
    },
    /// The Reads For engine did not answer in time.
    #[error("the engine `{engine}` did not answer in time")]
    ReadsForSilent {
        /// The engine.
        engine: EngineId,
    },
    /// The same evidence already exists.
    #[error("Evidence already exists.")]
    EvidenceExists,
    /// The evidence does not verify. It was not stored.
    #[error("Invalid evidence provided.")]
    InvalidEvidence {
        /// What is wrong with it.
        reason: BadEvidence,
    },
    /// No identity here can open the file.
    #[error("no identity here can open the file")]
    NobodyOpens,
    /// No attached token can open the file. Tokens that are not attached may.
    #[error("no attached token can open the file")]
    TokensAway {
        /// The identities with these tokens.
        holders: Vec<Holder>,
    },
    /// Only keys that need a person may open the file, and nobody was to be asked.
    #[error(
        "only a key that needs a touch or an approval may open the file: {}",
        listed(holders)
    )]
    PersonNeeded {
        /// The identities with these keys.
        holders: Vec<Holder>,
    },
    /// A person has to confirm each use of the key, and did not. Nothing was sent to its token.
    #[error("the use of `{identity}` was not confirmed: {reason}")]
    UseNotConfirmed {
        /// The identity, or those that may open a file.
        identity: String,
        /// Why not, as the end of a sentence.
        reason: String,
    },
    /// Several tokens could be meant, and one PIN was given for all of them. It belongs to one of
    /// them and was sent to none.
    #[error("{}, and one PIN was given for all of them", match holders.is_empty() {
        true => "several tokens are involved",
        false => "keys on several tokens could open the file",
    })]
    PinForSeveralTokens {
        /// The identities that may open the file; empty if no file is involved.
        holders: Vec<Holder>,
    },
    /// No evidence proves that the identity reads for anyone through whom it may be reached.
    #[error("nothing proves that `{identity}` reads for {}", names(via))]
    NotProven {
        /// The identity.
        identity: EngineId,
        /// Those whom the sender named.
        via: Vec<EngineId>,
    },
    /// No grant of this identity lets the reader read, so there is none to revoke.
    #[error("no grant of `{by}` lets `{reader}` read")]
    NoSuchGrant {
        /// The reader.
        reader: EngineId,
        /// The identity that the reader would read for.
        by: EngineId,
    },
    /// The raw message begins like something that is signed for another purpose.
    #[error("the message begins like {what}: it is not signed as a document")]
    ReservedMessage {
        /// What it begins like.
        what: &'static str,
        /// Its stable name: the [name](crate::Purpose::name) of a purpose, or `ssh-login`.
        kind: &'static str,
    },
    /// The data does not have the form that this purpose signs.
    #[error("this is not signed for the purpose `{purpose}`: {reason}")]
    NotForPurpose {
        /// The [name](crate::Purpose::name) of the purpose.
        purpose: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The token refused, or is not available.
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

/// Identities and their tokens.
fn listed(holders: &[Holder]) -> String {
    let listed: Vec<String> = holders.iter().map(Holder::to_string).collect();
    listed.join(", ")
}

impl EngineError {
    /// The stable name of the variant; that of the token's or the registry's error, if it is one.
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
            EngineError::BackendNamesMore { .. } => "backend-names-more",
            EngineError::Locked { .. } => "locked",
            EngineError::PinDiffers { .. } => "pin-differs",
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
            EngineError::PersonNeeded { .. } => "person-needed",
            EngineError::UseNotConfirmed { .. } => "use-not-confirmed",
            EngineError::PinForSeveralTokens { .. } => "pin-for-several-tokens",
            EngineError::Token(error) => error.code(),
            EngineError::Registry(error) => error.code(),
        }
    }
}
