//! The traits that a driver implements, and the names of tokens, slots and keys.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rand_core::{OsRng, RngCore};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::key::to_hex;
use crate::{
    About, Algorithm, Call, Error, KeySpec, KeyUse, PublicKey, Signature, SignatureScheme,
};

/// The result of a private-key operation; wiped when dropped.
pub type Secret = Zeroizing<Vec<u8>>;

/// Lists and opens the tokens of one kind.
pub trait Driver: Send + Sync {
    /// What the driver says of itself to people.
    fn about(&self) -> About;

    /// The scheme of the backend strings that this driver serves, such as `pkcs11`.
    fn scheme(&self) -> &'static str {
        self.about().scheme
    }

    /// The attached tokens that match `backend`, found without a PIN, and the places that cannot
    /// be read.
    ///
    /// `backend` is a backend string with this driver's [scheme](Driver::scheme); the
    /// bare scheme with a colon matches every token of the kind.
    ///
    /// # Errors
    /// [`Error::BadBackend`], [`Error::BadModule`], [`Error::DeadlineExceeded`],
    /// [`Error::Cancelled`]. No match is not an error.
    fn look(&self, backend: &str, call: &Call) -> Result<Listing, Error>;

    /// The attached tokens that match `backend`: [`Driver::look`] without the unreadable places.
    ///
    /// # Errors
    /// As [`Driver::look`].
    fn tokens(&self, backend: &str, call: &Call) -> Result<Vec<TokenInfo>, Error> {
        Ok(self.look(backend, call)?.tokens)
    }

    /// The slots of `token` that are visible without a PIN.
    ///
    /// # Errors
    /// [`Error::TokenUnavailable`] if the token was unplugged since it was listed.
    fn slots(&self, token: &TokenInfo, call: &Call) -> Result<Vec<SlotInfo>, Error>;

    /// Waits until tokens of this kind are plugged in or unplugged.
    fn watch(&self) -> Box<dyn Watch> {
        Box::new(Interval)
    }

    /// The slot that `backend` names, if it names one.
    ///
    /// # Errors
    /// [`Error::BadBackend`].
    fn named_slot(&self, backend: &str) -> Result<Option<SlotId>, Error>;

    /// Opens the one token that matches `backend`, and logs in if the token needs it, with what
    /// the call [may use](Call::access).
    ///
    /// Opening an open token returns the same token, without asking for a PIN. If a person has to
    /// do something first, such as unlocking the device, `call` says who is told and how long to
    /// wait.
    ///
    /// # Errors
    /// [`Error::BadBackend`], [`Error::BadModule`], [`Error::NoToken`],
    /// [`Error::AmbiguousToken`] (with the candidates), and the PIN errors. Each of these is final
    /// for its PIN: nothing is sent twice.
    fn open(&self, backend: &str, call: &Call) -> Result<Arc<dyn Token>, Error>;
}

/// The tokens that a driver finds, and the places that it cannot read.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// The tokens.
    pub tokens: Vec<TokenInfo>,
    /// The places with a possible token that cannot be read.
    pub unreadable: Vec<Unreadable>,
}

/// A place with a possible token that cannot be read.
#[derive(Debug, Clone)]
pub struct Unreadable {
    /// The place in the driver's terms: a reader, a module, a slot of it.
    pub place: String,
    /// Why it cannot be read.
    pub error: Error,
}

/// Waits until tokens are plugged in or unplugged.
pub trait Watch: Send {
    /// Waits until tokens may have changed since the last call, or until `limit` is over. Returns
    /// whether it is worth looking.
    fn wait(&mut self, limit: Duration) -> bool;
}

/// For tokens that announce no changes: it is always worth looking, four times a second.
#[derive(Debug, Clone, Copy, Default)]
pub struct Interval;

impl Watch for Interval {
    fn wait(&mut self, limit: Duration) -> bool {
        std::thread::sleep(limit.min(Duration::from_millis(250)));
        true
    }
}

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

/// The name of a token: its kind, manufacturer and serial, never its reader or path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TokenId {
    /// The driver's scheme, such as `pkcs11`.
    pub kind: String,
    /// The manufacturer as the token gives it.
    pub manufacturer: String,
    /// The serial as the token gives it. If it is not unique, the driver adds what tells the token
    /// apart.
    pub serial: String,
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.kind, self.manufacturer, self.serial)
    }
}

/// What a token shows without a PIN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenInfo {
    /// The token's name.
    #[serde(flatten)]
    pub id: TokenId,
    /// The model as the token gives it.
    pub model: String,
    /// The label that its owner gave it.
    pub label: String,
    /// A backend string that names just this token.
    pub backend: String,
    /// The kinds of key that it makes.
    pub makes: Vec<KeySpec>,
    /// The kinds of key that it can use, wherever they were made.
    pub uses: Vec<KeySpec>,
    /// Those that it states and that have not been tried yet.
    pub untried: Vec<KeySpec>,
    /// The name under which the outcomes of trials are recorded: that of the card, or of a model
    /// with its versions. Empty if nothing is recorded.
    #[serde(skip)]
    pub remembered_as: String,
    /// The names that earlier versions of the driver gave it.
    #[serde(skip)]
    pub formerly: Vec<TokenId>,
    /// Whether its keys outlive this process.
    pub durable: bool,
    /// Whether its keys are derived from a seed, as on a hardware wallet. A deleted key can be
    /// derived again, and every slot already has its key.
    pub derives: bool,
    /// Where to run its operations.
    #[serde(skip)]
    pub pace: Pace,
    /// Whether it needs a PIN before it uses private keys.
    pub login_required: bool,
    /// Further facts for the operator: `firmware`, `pin_locked`, `pin_tries` …
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<(String, String)>,
}

impl TokenInfo {
    /// Refuses a key that the token does not make.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with all kinds that it makes.
    pub fn check_makes(&self, spec: KeySpec) -> Result<(), Error> {
        self.check(spec, &self.makes)
    }

    /// Refuses a key that the token cannot use.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with all kinds that it can use.
    pub fn check_uses(&self, spec: KeySpec) -> Result<(), Error> {
        self.check(spec, &self.uses)
    }

    fn check(&self, spec: KeySpec, all: &[KeySpec]) -> Result<(), Error> {
        if all.contains(&spec) {
            return Ok(());
        }
        Err(Error::Unsupported {
            token: self.id.clone(),
            wanted: spec,
            supported: all.to_vec(),
        })
    }
}

/// The speed of a token, which decides where to run its operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Quick: a signature takes about as long as handing it to another thread. Called in place, by
    /// any number of threads.
    Quick,
    /// Slow: served by threads of its own.
    Slow {
        /// How many operations it handles at a time.
        workers: usize,
    },
}

/// The place of a key on its token, in the token's own terms.
///
/// PKCS#11: the `CKA_ID`, in lower-case hexadecimal; for a key without one its
/// fingerprint. PIV: the slot, such as `9a`.
///
/// If a slot can hold successive keys, the token may append `#` and a mark that names the
/// generation: `82#5f0c…`. The mark is stored with the name, so that a later undo or deletion hits
/// the intended key and not its successor. It is neither shown nor compared.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlotId(String);

impl SlotId {
    /// The slot that the token calls `name`.
    pub fn new(name: impl Into<String>) -> Self {
        SlotId(name.into())
    }

    /// The complete form, for storage: the token's name for the slot and the mark.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The token's name for the slot.
    pub fn name(&self) -> &str {
        self.0.split_once('#').map_or(&*self.0, |(name, _)| name)
    }

    /// This slot with the mark of `other`: of a key that was moved here.
    #[must_use]
    pub fn marked_as(self, other: &SlotId) -> SlotId {
        match (self.mark(), other.mark()) {
            (None, Some(mark)) => SlotId(format!("{}#{mark}", self.0)),
            _ => self,
        }
    }

    /// Which of the slot's successive keys is meant, if the token tells them apart.
    pub fn mark(&self) -> Option<&str> {
        self.0.split_once('#').map(|(_, mark)| mark)
    }
}

impl PartialEq for SlotId {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for SlotId {}

impl std::hash::Hash for SlotId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl PartialOrd for SlotId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SlotId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.name().cmp(other.name())
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A slot and its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SlotInfo {
    /// The slot.
    pub slot: SlotId,
    /// Whether it holds something.
    pub state: SlotState,
    /// The public key, if it can be read.
    #[serde(skip)]
    pub public_key: Option<PublicKey>,
    /// The key's algorithm, if Claviger knows it.
    pub algorithm: Option<Algorithm>,
    /// The public key's [fingerprint](PublicKey::fingerprint).
    pub fingerprint: Option<String>,
    /// The uses that the token allows.
    pub uses: Vec<KeyUse>,
    /// The label of the key.
    pub label: String,
    /// Further facts for the operator: `pin_policy`, `touch_policy` …
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<(String, String)>,
}

/// Whether a slot holds something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotState {
    /// Nothing: a key can be made here.
    Free,
    /// A key, or another object in its place.
    Occupied,
}

/// A reference to a key: enough to find it again and to identify it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRef {
    /// Its slot.
    pub slot: SlotId,
    /// Its public key.
    pub public_key: PublicKey,
}

/// A key that a token just made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratedKey {
    /// The public key from the token, checked to be valid.
    pub public_key: PublicKey,
    /// What the token states about the private key.
    pub protection: Protection,
    /// The token's own certificate of that, if it has one.
    pub attestation: Option<Attestation>,
}

/// A certificate by which a token states that it made a key itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attestation {
    /// X.509 certificates as PEM: the statement first, then the chain towards a root as far as the
    /// token has it. The driver has checked that they belong together, and that they are about this
    /// key and this token.
    pub certificates: Vec<String>,
    /// What is stated: `serial`, `firmware`, `pin_policy`, `touch_policy` …
    pub facts: Vec<(String, String)>,
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

impl FromStr for SlotId {
    type Err = std::convert::Infallible;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Ok(SlotId(s.into()))
    }
}
