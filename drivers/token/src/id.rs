//! The names of tokens, slots and keys.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::PublicKey;

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

impl FromStr for SlotId {
    type Err = std::convert::Infallible;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Ok(SlotId(s.into()))
    }
}

/// A reference to a key: enough to find it again and to identify it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRef {
    /// Its slot.
    pub slot: SlotId,
    /// Its public key.
    pub public_key: PublicKey,
}
