//! What tokens and slots show of themselves.

use serde::{Deserialize, Serialize};

use crate::{Algorithm, Error, KeyRef, KeySpec, KeyUse, PublicKey, SlotName, TokenId};

/// What a token shows without a PIN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
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
    #[serde(skip, default = "Pace::one_at_a_time")]
    pub pace: Pace,
    /// Whether it needs a PIN before it uses private keys.
    pub login_required: bool,
    /// Further facts for the operator: `firmware`, `pin_locked`, `pin_tries` …
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<(String, String)>,
}

impl TokenInfo {
    /// A token that makes and uses no keys yet, keeps them, works them one at a time on a thread
    /// of its own, and needs no PIN.
    pub fn new(id: TokenId, backend: impl Into<String>) -> Self {
        TokenInfo {
            id,
            model: String::new(),
            label: String::new(),
            backend: backend.into(),
            makes: Vec::new(),
            uses: Vec::new(),
            untried: Vec::new(),
            remembered_as: String::new(),
            formerly: Vec::new(),
            durable: true,
            derives: false,
            pace: Pace::one_at_a_time(),
            login_required: false,
            notes: Vec::new(),
        }
    }

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

impl Pace {
    fn one_at_a_time() -> Self {
        Pace::Slow { workers: 1 }
    }
}

/// A slot and its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SlotInfo {
    /// The slot.
    pub slot: SlotName,
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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<(String, String)>,
}

impl SlotInfo {
    /// A slot that holds nothing.
    pub fn free(slot: impl Into<SlotName>) -> Self {
        SlotInfo::new(slot.into(), SlotState::Free)
    }

    /// A slot that holds a key of which nothing is known, or another object.
    pub fn occupied(slot: impl Into<SlotName>) -> Self {
        SlotInfo::new(slot.into(), SlotState::Occupied)
    }

    fn new(slot: SlotName, state: SlotState) -> Self {
        SlotInfo {
            slot,
            state,
            public_key: None,
            algorithm: None,
            fingerprint: None,
            uses: Vec::new(),
            label: String::new(),
            notes: Vec::new(),
        }
    }

    /// The slot with this public key, of which the algorithm and the fingerprint are.
    #[must_use]
    pub fn with_key(self, public_key: PublicKey) -> Self {
        SlotInfo {
            algorithm: Some(public_key.algorithm()),
            fingerprint: Some(public_key.fingerprint().to_string()),
            public_key: Some(public_key),
            ..self
        }
    }

    /// The key in the slot, if its public key can be read.
    pub fn key_ref(&self) -> Option<KeyRef> {
        Some(KeyRef {
            slot: self.slot.clone().into(),
            public_key: self.public_key.clone()?,
        })
    }
}

/// Whether a slot holds something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotState {
    /// Nothing: a key can be made here.
    Free,
    /// A key, or another object in its place.
    Occupied,
}
