//! An open token, its keys, and what is done with them.

use std::sync::Arc;

use rand_core::{OsRng, RngCore};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::key::to_hex;
use crate::{
    Call, Error, KeyRef, KeySpec, PublicKey, Signature, SignatureScheme, SlotId, SlotInfo,
    TokenInfo,
};

/// The result of a private-key operation; wiped when dropped.
pub type Secret = Zeroizing<Vec<u8>>;

/// An open token.
pub trait Token: Send + Sync {
    /// The token's name and what it offers.
    fn info(&self) -> &TokenInfo;

    /// All slots and their content, private objects included.
    ///
    /// # Errors
    /// [`Error::TokenUnavailable`], [`Error::Device`].
    fn slots(&self, call: &Call) -> Result<Vec<SlotInfo>, Error>;

    /// A free slot for each key of `specs`, chosen by the token's own policy. The slots are
    /// distinct, and none is in `taken`.
    ///
    /// `taken` has the slots that the caller uses or has used for keys of this token. A token that
    /// knows its free slots can ignore it; a token that derives its keys cannot.
    ///
    /// Nothing is changed on the token, and the slots are not reserved there. The caller records an
    /// intent before it uses them.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the token does not offer one of `specs`;
    /// [`Error::TokenFull`], [`Error::TokenReadOnly`] if there is no room.
    fn free_slots(
        &self,
        specs: &[KeySpec],
        taken: &[SlotId],
        call: &Call,
    ) -> Result<Vec<SlotId>, Error>;

    /// Makes a key on the token that is marked as [unfinished](Unfinished).
    ///
    /// After an error nothing of the key remains on the token, as long as the token still answers;
    /// [`Token::discard`] removes the rest.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::TokenFull`], [`Error::TokenReadOnly`],
    /// [`Error::SlotOccupied`], [`Error::NoSuchSlot`], [`Error::TokenUnavailable`],
    /// [`Error::Device`].
    fn generate(&self, new: &NewKey<'_>, call: &Call) -> Result<GeneratedKey, Error>;

    /// Finishes a key that was [generated](Token::generate): `label` replaces its mark, if the
    /// token has labels. Repeating it is no error.
    ///
    /// # Errors
    /// [`Error::KeyNotFound`], [`Error::TokenUnavailable`], [`Error::Device`]. The key works
    /// nevertheless.
    fn name(&self, key: &KeyRef, label: &str, call: &Call) -> Result<(), Error>;

    /// Destroys the key whose public key is [`KeyRef::public_key`], in whichever slot it is, and
    /// nothing else.
    ///
    /// Repeating it is no error: the answer is [`Deletion::NothingThere`].
    ///
    /// # Errors
    /// [`Error::TokenUnavailable`], [`Error::TokenReadOnly`], [`Error::CannotDestroy`],
    /// [`Error::Device`]; [`Error::KeyMismatch`] if there is a key that cannot be identified. That
    /// key is unchanged.
    fn delete(&self, key: &KeyRef, call: &Call) -> Result<Deletion, Error>;

    /// Destroys what an unfinished generation left, complete or not.
    ///
    /// A token that can change labels destroys only keys that still carry the mark: a key that was
    /// [named](Token::name) belongs to an identity, whatever an old copy of the registry says. If
    /// labels cannot be changed or kept, [`Unfinished::public_key`] decides. A key with neither is
    /// left unchanged, and the answer is [`Deletion::Foreign`].
    ///
    /// Repeating it is no error: the answer is [`Deletion::NothingThere`].
    ///
    /// # Errors
    /// As [`Token::delete`].
    fn discard(&self, left: &Unfinished, call: &Call) -> Result<Deletion, Error>;

    /// A signer for the key, which is found by its public key in any slot.
    ///
    /// # Errors
    /// [`Error::KeyNotFound`], [`Error::KeyMismatch`], [`Error::Unsupported`],
    /// [`Error::NotUsable`], [`Error::TokenUnavailable`], [`Error::DeadlineExceeded`].
    fn signer(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Signer>, Error>;

    /// A decryptor for the key, which is found by its public key in any slot.
    ///
    /// # Errors
    /// As [`Token::signer`].
    fn decryptor(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Decryptor>, Error>;

    /// Access to derived keys, if the token derives its keys from a seed
    /// ([`TokenInfo::derives`]).
    fn derives(&self) -> Option<&dyn Derives> {
        None
    }
}

/// A token that derives its keys from a seed, by numbered accounts, and returns the public key of
/// any account.
pub trait Derives: Send + Sync {
    /// The key for `spec` in `account`, and its slot. The call does not mark the key as used, and
    /// does not list it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if no account has such a key, [`Error::TokenUnavailable`],
    /// [`Error::DeadlineExceeded`], [`Error::Device`].
    fn derived(
        &self,
        account: u32,
        spec: KeySpec,
        call: &Call,
    ) -> Result<(SlotId, PublicKey), Error>;
}

/// A key to make.
#[derive(Debug, Clone, Copy)]
pub struct NewKey<'a> {
    /// Its slot.
    pub slot: &'a SlotId,
    /// Its kind.
    pub spec: KeySpec,
    /// Its label until it is [named](Token::name); see [`unfinished_mark`].
    pub mark: &'a str,
}

/// The prefix of every mark of an unfinished key.
pub const UNFINISHED: &str = "claviger-unfinished-";

/// A new mark: [`UNFINISHED`] and 32 random hexadecimal digits.
pub fn unfinished_mark() -> String {
    let mut random = [0; 16];
    OsRng.fill_bytes(&mut random);
    format!("{UNFINISHED}{}", to_hex(&random))
}

/// A key whose generation did not finish, as far as it was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// Its intended slot.
    pub slot: SlotId,
    /// Its mark; empty if an earlier version recorded none.
    pub mark: String,
    /// Its public key, if the generation got that far.
    pub public_key: Option<PublicKey>,
}

/// Signs with one key on a token.
pub trait Signer: Send + Sync {
    /// The key's public half.
    fn public_key(&self) -> &PublicKey;

    /// The slot in which the key was found; another tool may have moved it.
    fn slot(&self) -> SlotId;

    /// The scheme of its signatures.
    fn scheme(&self) -> Option<SignatureScheme> {
        SignatureScheme::of(self.public_key().algorithm())
    }

    /// Signs `message`, hashed as the key's scheme requires.
    ///
    /// # Errors
    /// [`Error::BadMessage`], [`Error::KeyNotFound`] if the key no longer exists,
    /// [`Error::TokenUnavailable`], [`Error::DeadlineExceeded`], [`Error::Device`].
    fn sign(&self, message: &[u8], call: &Call) -> Result<Signature, Error>;

    /// Signs `message` in one of the [schemes](SignatureScheme::all_of) of the key's algorithm: RSA
    /// keys sign with SHA-512, too. By default only in the key's own.
    ///
    /// # Errors
    /// [`Error::BadMessage`] if the token makes no such signatures; otherwise as [`Signer::sign`].
    fn sign_in(
        &self,
        scheme: SignatureScheme,
        message: &[u8],
        call: &Call,
    ) -> Result<Signature, Error> {
        match self.scheme() == Some(scheme) {
            true => self.sign(message, call),
            false => Err(scheme.not_made_by_token()),
        }
    }

    /// A signer of digests, if the token lets the host hash: for messages that are longer than
    /// memory. `None` if the token hashes, or if the scheme signs the message itself (Ed25519, BLS).
    fn of_digests(&self) -> Option<&dyn DigestSigner> {
        None
    }
}

/// Signs digests of messages. A caller that chooses the digest can have anything signed, so this is
/// for callers that have hashed a message themselves.
pub trait DigestSigner: Send + Sync {
    /// Signs the message with this digest: the complete hash of the [scheme](Signer::scheme)
    /// ([`SignatureScheme::digest_length`]).
    ///
    /// # Errors
    /// [`Error::BadMessage`] if it has another length; otherwise as [`Signer::sign`].
    fn sign_digest(&self, digest: &[u8], call: &Call) -> Result<Signature, Error>;
}

/// Unwraps with one key on a token what was wrapped for it.
///
/// This is the primitive of the device; `claviger-formats` opens ciphertexts with it.
pub trait Decryptor: Send + Sync {
    /// The key's public half.
    fn public_key(&self) -> &PublicKey;

    /// Where the key was found: another tool may have moved it.
    fn slot(&self) -> SlotId;

    /// Checks whether this key still answers.
    ///
    /// A key agreement does not show which key made it. If a ciphertext does not open, the caller
    /// checks here, so that a lost key is not mistaken for a bad ciphertext.
    ///
    /// # Errors
    /// [`Error::KeyNotFound`] if it no longer exists or another key is in its place,
    /// [`Error::TokenUnavailable`], [`Error::Device`].
    fn confirm(&self, call: &Call) -> Result<(), Error>;

    /// Performs the private-key operation.
    ///
    /// # Errors
    /// [`Error::DecryptionFailed`] for every fault of the input;
    /// [`Error::KeyNotFound`], [`Error::TokenUnavailable`],
    /// [`Error::DeadlineExceeded`], [`Error::Device`] for all others.
    fn unwrap(&self, request: Unwrap<'_>, call: &Call) -> Result<Secret, Error>;
}

/// The private-key operation of an unwrapping.
#[derive(Debug, Clone, Copy)]
pub enum Unwrap<'a> {
    /// Key agreement with a peer's public key.
    Agree {
        /// A key of the same algorithm, P-256 or X25519; it is sound, since it is a
        /// [`PublicKey`]. The answer is the x-coordinate, or the shared secret, 32 bytes;
        /// a driver refuses a peer of another algorithm, and an answer of zeros
        /// ([`agreement`](crate::agreement)).
        peer: &'a PublicKey,
    },
    /// RSAES-OAEP with SHA-256 for the hash and for MGF1 (RFC 8017 §7.1).
    Oaep {
        /// The ciphertext, as long as the modulus.
        ciphertext: &'a [u8],
        /// The label *L*.
        label: &'a [u8],
    },
}

/// A key that a token just made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GeneratedKey {
    /// The public key from the token, checked to be valid.
    pub public_key: PublicKey,
    /// What the token states about the private key.
    pub protection: Protection,
    /// The token's own certificate of that, if it has one.
    pub attestation: Option<Attestation>,
}

impl GeneratedKey {
    /// A key without an attestation.
    pub fn new(public_key: PublicKey, protection: Protection) -> Self {
        GeneratedKey {
            public_key,
            protection,
            attestation: None,
        }
    }
}

/// A certificate by which a token states that it made a key itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Attestation {
    /// X.509 certificates as PEM: the statement first, then the chain towards a root as far as the
    /// token has it. The driver has checked that they belong together, and that they are about this
    /// key and this token.
    pub certificates: Vec<String>,
    /// What is stated: `serial`, `firmware`, `pin_policy`, `touch_policy` …
    pub facts: Vec<(String, String)>,
}

impl Attestation {
    /// These certificates, which state these facts.
    pub fn new(certificates: Vec<String>, facts: Vec<(String, String)>) -> Self {
        Attestation {
            certificates,
            facts,
        }
    }
}

/// What a token states about the protection of a private key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// The token made the key itself (`CKA_LOCAL`).
    pub local: bool,
    /// Its value is never shown (`CKA_SENSITIVE`, and always was).
    pub sensitive: bool,
    /// It cannot leave the token wrapped either (`CKA_NEVER_EXTRACTABLE`).
    pub never_extractable: bool,
}

impl Protection {
    /// The promises of a hardware token.
    pub const FULL: Protection = Protection {
        local: true,
        sensitive: true,
        never_extractable: true,
    };

    /// Keys in the memory of a process.
    pub const NONE: Protection = Protection {
        local: true,
        sensitive: false,
        never_extractable: false,
    };

    /// The same for a key that the caller has just had made: some tokens do not state it for their
    /// own keys (NSS softokn 3.87).
    #[must_use]
    pub fn made_here(self) -> Protection {
        Protection {
            local: true,
            ..self
        }
    }

    /// The name of the first promise that is missing.
    pub fn missing(&self) -> Option<&'static str> {
        match self {
            Protection { local: false, .. } => Some("it was not made on the token"),
            Protection {
                sensitive: false, ..
            } => Some("its value can be read"),
            Protection {
                never_extractable: false,
                ..
            } => Some("it can be exported"),
            _ => None,
        }
    }
}

/// The outcome of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deletion {
    /// The token confirmed that the key is destroyed.
    Destroyed,
    /// There was no key.
    NothingThere,
    /// The key is no longer used but can be derived again from the token's seed.
    Derivable,
    /// Another key is in its place, or the key cannot be identified. It was left unchanged.
    Foreign,
}
