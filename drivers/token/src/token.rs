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

/// What a private-key operation hands out: wiped when dropped.
pub type Secret = Zeroizing<Vec<u8>>;

/// Knows the tokens of one kind.
pub trait Driver: Send + Sync {
    /// What the driver says of itself to people.
    fn about(&self) -> About;

    /// The scheme of the backend strings that this driver serves, such as `pkcs11`.
    fn scheme(&self) -> &'static str {
        self.about().scheme
    }

    /// The attached tokens that fit `backend`, found without a PIN, and the places where
    /// there is something that cannot be read.
    ///
    /// `backend` is a backend string with this driver's [scheme](Driver::scheme); the
    /// bare scheme with a colon fits every token of the kind.
    ///
    /// # Errors
    /// [`Error::BadBackend`], [`Error::BadModule`], [`Error::DeadlineExceeded`],
    /// [`Error::Cancelled`]. That nothing fits is no error.
    fn look(&self, backend: &str, call: &Call) -> Result<Listing, Error>;

    /// The attached tokens that fit `backend`: [`Driver::look`] without what cannot be read.
    ///
    /// # Errors
    /// As [`Driver::look`].
    fn tokens(&self, backend: &str, call: &Call) -> Result<Vec<TokenInfo>, Error> {
        Ok(self.look(backend, call)?.tokens)
    }

    /// The slots of `token` as far as they can be seen without a PIN.
    ///
    /// # Errors
    /// [`Error::TokenUnavailable`] if it went away since it was listed.
    fn slots(&self, token: &TokenInfo, call: &Call) -> Result<Vec<SlotInfo>, Error>;

    /// What waits for tokens of this kind to come and go.
    fn watch(&self) -> Box<dyn Watch> {
        Box::new(Interval)
    }

    /// The slot that `backend` names, if it names one.
    ///
    /// # Errors
    /// [`Error::BadBackend`].
    fn named_slot(&self, backend: &str) -> Result<Option<SlotId>, Error>;

    /// Opens the one token that fits `backend`, logging in where the token wants it, with what
    /// the call [may use](Call::access).
    ///
    /// Opening a token that is open already gives the same token again; no PIN is
    /// asked for then. Where a person has to do something first, such as unlocking the
    /// device, `call` says who is told and how long to wait.
    ///
    /// # Errors
    /// [`Error::BadBackend`], [`Error::BadModule`], [`Error::NoToken`],
    /// [`Error::AmbiguousToken`] (with the candidates), and the PIN errors, of which
    /// each is final for this PIN: nothing is sent twice.
    fn open(&self, backend: &str, call: &Call) -> Result<Arc<dyn Token>, Error>;
}

/// What is found where a driver looks for tokens.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// The tokens.
    pub tokens: Vec<TokenInfo>,
    /// Where there is something that may be a token, and cannot be read.
    pub unreadable: Vec<Unreadable>,
}

/// A place where there is something that may be a token, and cannot be read.
#[derive(Debug, Clone)]
pub struct Unreadable {
    /// The place in the driver's terms: a reader, a module, a slot of it.
    pub place: String,
    /// Why it cannot be read.
    pub error: Error,
}

/// Waits for tokens to come and go.
pub trait Watch: Send {
    /// Waits until tokens may have come or gone since the last time, or until `limit` is
    /// over, and says whether it is worth looking.
    fn wait(&mut self, limit: Duration) -> bool;
}

/// For tokens that do not tell when they come and go: it is always worth looking, four
/// times a second.
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
    /// Who the token is and what it offers.
    fn info(&self) -> &TokenInfo;

    /// Every slot with what is in it, private objects included.
    ///
    /// # Errors
    /// [`Error::TokenUnavailable`], [`Error::Device`].
    fn slots(&self, call: &Call) -> Result<Vec<SlotInfo>, Error>;

    /// A free slot for each key of `specs`, chosen by the token's own policy; no slot
    /// twice, and none of `taken`.
    ///
    /// `taken` are the slots that the caller has given to keys of this token, now or
    /// before. A token that knows by itself which slots are free need not look at it; one
    /// that derives its keys cannot know.
    ///
    /// Nothing is changed on the token, and the slots are not reserved there: it is the
    /// caller who writes down what it is going to do before it does it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the token does not offer one of `specs`;
    /// [`Error::TokenFull`], [`Error::TokenReadOnly`] where there is no room.
    fn free_slots(
        &self,
        specs: &[KeySpec],
        taken: &[SlotId],
        call: &Call,
    ) -> Result<Vec<SlotId>, Error>;

    /// Makes a key on the token that is marked as [unfinished](Unfinished).
    ///
    /// On an error nothing of the key remains on the token, as far as the token can
    /// still be asked; [`Token::discard`] removes what is left.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::TokenFull`], [`Error::TokenReadOnly`],
    /// [`Error::SlotOccupied`], [`Error::NoSuchSlot`], [`Error::TokenUnavailable`],
    /// [`Error::Device`].
    fn generate(&self, new: &NewKey<'_>, call: &Call) -> Result<GeneratedKey, Error>;

    /// Finishes a key that was [generated](Token::generate): its mark becomes `label`, where
    /// the token has labels. Doing it again is no error.
    ///
    /// # Errors
    /// [`Error::KeyNotFound`], [`Error::TokenUnavailable`], [`Error::Device`]. The key
    /// works all the same.
    fn name(&self, key: &KeyRef, label: &str, call: &Call) -> Result<(), Error>;

    /// Destroys the key whose public half is [`KeyRef::public_key`], wherever on the token it
    /// is by now, and nothing else.
    ///
    /// Doing it again is no error: it answers [`Deletion::NothingThere`].
    ///
    /// # Errors
    /// [`Error::TokenUnavailable`], [`Error::TokenReadOnly`], [`Error::CannotDestroy`],
    /// [`Error::Device`]; [`Error::KeyMismatch`] where there is a key and it cannot be told
    /// whether it is the one that is meant. It is left as it is.
    fn delete(&self, key: &KeyRef, call: &Call) -> Result<Deletion, Error>;

    /// Destroys what a generation left that did not come to its end, complete or not.
    ///
    /// A token that changes labels destroys only what still carries the mark: a key that was
    /// [named](Token::name) belongs to an identity, whatever an old copy of the registry
    /// says. Where labels cannot be changed or kept, [`Unfinished::public_key`] decides. What
    /// has neither is left as it is, which [`Deletion::Foreign`] says.
    ///
    /// Doing it again is no error: it answers [`Deletion::NothingThere`].
    ///
    /// # Errors
    /// As [`Token::delete`].
    fn discard(&self, left: &Unfinished, call: &Call) -> Result<Deletion, Error>;

    /// A signer for the key, found by its public half wherever on the token it is.
    ///
    /// # Errors
    /// [`Error::KeyNotFound`], [`Error::KeyMismatch`], [`Error::Unsupported`],
    /// [`Error::NotUsable`], [`Error::TokenUnavailable`], [`Error::DeadlineExceeded`].
    fn signer(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Signer>, Error>;

    /// A decryptor for the key, found by its public half wherever on the token it is.
    ///
    /// # Errors
    /// As [`Token::signer`].
    fn decryptor(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Decryptor>, Error>;

    /// The token as one that derives its keys from a seed, if it is one
    /// ([`TokenInfo::derives`]).
    fn derives(&self) -> Option<&dyn Derives> {
        None
    }
}

/// A token that derives its keys from a seed, by numbered accounts, and can be asked for the
/// public half of any of them.
pub trait Derives: Send + Sync {
    /// The key for `spec` in `account`, and its slot. Nothing becomes of it: it is neither in
    /// use from then on nor listed.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where no account has such a key, [`Error::TokenUnavailable`],
    /// [`Error::DeadlineExceeded`], [`Error::Device`].
    fn derived(
        &self,
        account: u32,
        spec: KeySpec,
        call: &Call,
    ) -> Result<(SlotId, PublicKey), Error>;
}

/// A key that is to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewKey<'a> {
    /// Where.
    pub slot: &'a SlotId,
    /// Of which kind.
    pub spec: KeySpec,
    /// The label that it has until it is [named](Token::name); see [`unfinished_mark`].
    pub mark: &'a str,
}

/// What every mark of an unfinished key begins with.
pub const UNFINISHED: &str = "claviger-unfinished-";

/// A new mark: [`UNFINISHED`] and 32 random hexadecimal digits.
pub fn unfinished_mark() -> String {
    let mut random = [0; 16];
    OsRng.fill_bytes(&mut random);
    format!("{UNFINISHED}{}", to_hex(&random))
}

/// A key whose generation did not come to its end, as far as it was written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// Where it was to be made.
    pub slot: SlotId,
    /// Its mark. Empty where an earlier version noted none.
    pub mark: String,
    /// Its public half, where the generation came so far.
    pub public_key: Option<PublicKey>,
}

/// Signs with one key on a token.
pub trait Signer: Send + Sync {
    /// The key's public half.
    fn public_key(&self) -> &PublicKey;

    /// Where the key was found: another tool may have moved it.
    fn slot(&self) -> SlotId;

    /// The scheme of the signatures that it makes.
    fn scheme(&self) -> Option<SignatureScheme> {
        SignatureScheme::of(self.public_key().algorithm())
    }

    /// Signs `message`, hashed as the scheme of the key demands.
    ///
    /// # Errors
    /// [`Error::BadMessage`], [`Error::KeyNotFound`] if the key has gone,
    /// [`Error::TokenUnavailable`], [`Error::DeadlineExceeded`], [`Error::Device`].
    fn sign(&self, message: &[u8], call: &Call) -> Result<Signature, Error>;

    /// The key as one that signs digests, where the token lets the host hash: for messages
    /// that are longer than memory. `None` where the token hashes, and where the scheme signs
    /// the message itself (Ed25519, BLS).
    fn of_digests(&self) -> Option<&dyn DigestSigner> {
        None
    }
}

/// Signs digests of messages. Who may hand in a digest can have anything signed, so this is
/// for callers that have hashed a message themselves.
pub trait DigestSigner: Send + Sync {
    /// Signs the message with this digest: the hash that the [scheme](Signer::scheme) names,
    /// whole ([`SignatureScheme::digest_length`]).
    ///
    /// # Errors
    /// [`Error::BadMessage`] where it has another length; else as [`Signer::sign`].
    fn sign_digest(&self, digest: &[u8], call: &Call) -> Result<Signature, Error>;
}

/// Opens with one key on a token what was wrapped for it.
///
/// This is the device's primitive; ciphertexts are opened by
/// `claviger-formats`.
pub trait Decryptor: Send + Sync {
    /// The key's public half.
    fn public_key(&self) -> &PublicKey;

    /// Where the key was found: another tool may have moved it.
    fn slot(&self) -> SlotId;

    /// Looks whether it is still this key that answers.
    ///
    /// An agreement does not show with which key it was made; that shows when what was
    /// sealed does not open. Whoever has used the key in vain asks here, and so does not take
    /// a lost key for a bad ciphertext.
    ///
    /// # Errors
    /// [`Error::KeyNotFound`] where it has gone or another is in its place,
    /// [`Error::TokenUnavailable`], [`Error::Device`].
    fn confirm(&self, call: &Call) -> Result<(), Error>;

    /// Performs the private-key operation.
    ///
    /// # Errors
    /// [`Error::DecryptionFailed`] for everything that depends on the input;
    /// [`Error::KeyNotFound`], [`Error::TokenUnavailable`],
    /// [`Error::DeadlineExceeded`], [`Error::Device`] for what does not.
    fn unwrap(&self, request: Unwrap<'_>, call: &Call) -> Result<Secret, Error>;
}

/// The private-key operation that opens something.
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

/// The name of a token: what it is and its serial, never where it is plugged in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TokenId {
    /// The driver's scheme, such as `pkcs11`.
    pub kind: String,
    /// The manufacturer as the token gives it.
    pub manufacturer: String,
    /// The serial as the token gives it; where it gives none that tells it from others, the
    /// driver adds to it what does.
    pub serial: String,
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.kind, self.manufacturer, self.serial)
    }
}

/// A token as it shows itself without a PIN.
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
    /// The kinds of key that it works with, wherever they were made.
    pub uses: Vec<KeySpec>,
    /// Those of them that it states, and that nobody here has seen to work yet.
    pub untried: Vec<KeySpec>,
    /// The name under which it is remembered what was tried: that of the card, or of a model
    /// with its versions. Empty where nothing is to be remembered.
    #[serde(skip)]
    pub remembered_as: String,
    /// The names that earlier versions of the driver gave it.
    #[serde(skip)]
    pub formerly: Vec<TokenId>,
    /// Whether its keys outlive this process.
    pub durable: bool,
    /// Whether its keys are derived from a seed, as on a hardware wallet: they can be
    /// derived again after they were deleted, and every slot has its key already.
    pub derives: bool,
    /// Where its operations are to be run.
    #[serde(skip)]
    pub pace: Pace,
    /// Whether it wants a PIN before it does anything with private keys.
    pub login_required: bool,
    /// What else an operator wants to know: `firmware`, `pin_locked`, `pin_tries` …
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<(String, String)>,
}

impl TokenInfo {
    /// Refuses a key that the token does not make.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with all that it does make.
    pub fn check_makes(&self, spec: KeySpec) -> Result<(), Error> {
        self.check(spec, &self.makes)
    }

    /// Refuses a key that the token does not work with.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with all that it does work with.
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

/// How long a token takes, and so where its operations are to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Quick: a signature costs about as much as handing it to another thread. Called
    /// in place, by any number of threads.
    Quick,
    /// Slow: worked by threads of its own.
    Slow {
        /// How many operations it works on at a time.
        workers: usize,
    },
}

/// The place of a key on its token, in the token's own terms.
///
/// PKCS#11: the `CKA_ID`, in lower-case hexadecimal; for a key without one its
/// fingerprint. PIV: the slot, such as `9a`.
///
/// Where one slot holds one key after another, the token may append `#` and a mark that
/// names the generation: `82#5f0c…`. The mark is stored with the name, so that what is
/// undone or deleted later is the key that was meant and not its successor; it is
/// neither shown nor compared.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlotId(String);

impl SlotId {
    /// The slot that the token calls `name`.
    pub fn new(name: impl Into<String>) -> Self {
        SlotId(name.into())
    }

    /// All of it, to be stored: the token's name for the slot and the mark.
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

    /// Which of the keys that were in the slot is meant, where the token tells them
    /// apart.
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

/// A slot and what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SlotInfo {
    /// The slot.
    pub slot: SlotId,
    /// Whether it holds something.
    pub state: SlotState,
    /// The public key, where it can be read.
    #[serde(skip)]
    pub public_key: Option<PublicKey>,
    /// The key's algorithm, where it is one that Claviger knows.
    pub algorithm: Option<Algorithm>,
    /// The public key's [fingerprint](PublicKey::fingerprint).
    pub fingerprint: Option<String>,
    /// What the token lets the key be used for.
    pub uses: Vec<KeyUse>,
    /// The label of the key.
    pub label: String,
    /// What else an operator wants to know: `pin_policy`, `touch_policy` …
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<(String, String)>,
}

/// Whether a slot holds something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotState {
    /// Nothing: a key can be made here.
    Free,
    /// A key, or another object that is in its way.
    Occupied,
}

/// What is remembered of a key: enough to find it again and to know that it is it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRef {
    /// Where it is.
    pub slot: SlotId,
    /// What it is.
    pub public_key: PublicKey,
}

/// A key that a token just made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratedKey {
    /// The public half, as the token gave it and checked to be a valid key.
    pub public_key: PublicKey,
    /// What the token says about the private half.
    pub protection: Protection,
    /// The token's own certificate of that, where it gives one.
    pub attestation: Option<Attestation>,
}

/// A certificate by which a token states that it made a key itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attestation {
    /// X.509 certificates as PEM: the statement first, then the chain towards a root
    /// as far as the token has it. Checked by the driver to belong together and to be
    /// about this key and this token.
    pub certificates: Vec<String>,
    /// What is stated: `serial`, `firmware`, `pin_policy`, `touch_policy` …
    pub facts: Vec<(String, String)>,
}

/// What a token says about how it keeps a private key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// The key was made by the token itself (`CKA_LOCAL`).
    pub local: bool,
    /// Its value is never shown (`CKA_SENSITIVE`, and always was).
    pub sensitive: bool,
    /// It cannot leave the token wrapped either (`CKA_NEVER_EXTRACTABLE`).
    pub never_extractable: bool,
}

impl Protection {
    /// All that a hardware token promises.
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

    /// The same of a key that the caller has just had made: some tokens do not say of their
    /// own keys that they are (NSS softokn 3.87).
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

/// What became of a key that was to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deletion {
    /// The token confirmed that the key is destroyed.
    Destroyed,
    /// There was no key.
    NothingThere,
    /// The key is no longer used but can be derived again from the token's seed.
    Derivable,
    /// What is in its place is not it, or cannot be shown to be; it was left alone.
    Foreign,
}

impl FromStr for SlotId {
    type Err = std::convert::Infallible;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Ok(SlotId(s.into()))
    }
}
