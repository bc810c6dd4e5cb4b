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

/// The token's own name for a slot: where a key is, whichever key that is.
///
/// PKCS#11: the `CKA_ID`, in lower-case hexadecimal; for a key without one its
/// fingerprint. PIV: the slot, such as `9a`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlotName(String);

impl SlotName {
    /// The slot that the token calls `name`.
    pub fn new(name: impl Into<String>) -> Self {
        SlotName(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&SlotId> for SlotName {
    fn from(slot: &SlotId) -> Self {
        SlotName(slot.name().into())
    }
}

impl From<SlotId> for SlotName {
    fn from(slot: SlotId) -> Self {
        SlotName::from(&slot)
    }
}

/// A slot, and which of the successive keys in it is meant.
///
/// If a slot can hold successive keys, the token may append `#` and a mark that names the
/// generation to the [name](SlotName) of the slot: `82#5f0c…`. The mark is stored with the name, so
/// that a later undo or deletion hits the intended key and not its successor. Two of these are
/// equal if their marks are, too; [`SlotId::is_in`] compares the slots alone. The mark is not
/// shown.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlotId(String);

impl SlotId {
    /// The slot that the token calls `name`, with the mark in it.
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

    /// Which of the slot's successive keys is meant, if the token tells them apart.
    pub fn mark(&self) -> Option<&str> {
        self.0.split_once('#').map(|(_, mark)| mark)
    }

    /// Whether it is in this slot, whatever its mark is.
    pub fn is_in(&self, slot: &SlotName) -> bool {
        self.name() == slot.as_str()
    }

    /// This slot with the mark of `other`: of a key that was moved here.
    #[must_use]
    pub fn marked_as(self, other: &SlotId) -> SlotId {
        match (self.mark(), other.mark()) {
            (None, Some(mark)) => SlotId(format!("{}#{mark}", self.0)),
            _ => self,
        }
    }
}

impl From<SlotName> for SlotId {
    fn from(slot: SlotName) -> Self {
        SlotId(slot.0)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_told_from_the_key_in_it() {
        let (one, next) = (SlotId::new("82#5f"), SlotId::new("82#60"));
        assert_ne!(one, next);
        assert_ne!(one, SlotId::new("82"));
        let slot = SlotName::new("82");
        assert!(one.is_in(&slot) && next.is_in(&slot) && !one.is_in(&SlotName::new("83")));
        assert_eq!(
            (SlotName::from(&one), &*one.to_string()),
            (slot.clone(), "82")
        );
        assert_eq!(SlotId::from(slot).mark(), None);
        let moved = SlotId::new("83").marked_as(&one);
        assert_eq!(moved, SlotId::new("83#5f"));
        let stored = |slot: &SlotId| slot.as_str().parse::<SlotId>().unwrap();
        assert_eq!(stored(&moved), moved);
    }
}
