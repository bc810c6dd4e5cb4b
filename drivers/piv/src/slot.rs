//! The slots of a PIV card, and the marks that tell successive keys in a slot apart.

use std::fmt;

use claviger_token::key::from_hex;
use claviger_token::{Error, KeyUse, SlotId, backend};
use rand_core::{OsRng, RngCore};

/// A slot, by its key reference (SP 800-73-4 part 1, table 4b).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Slot(u8);

/// The first retired slot.
const RETIRED: u8 = 0x82;
/// The last retired slot.
const RETIRED_END: u8 = 0x95;

impl Slot {
    /// The key that attests others (Yubico).
    pub(crate) const ATTESTATION: Slot = Slot(0xf9);

    /// The slots in the order in which they are shown.
    pub(crate) fn all() -> impl Iterator<Item = Slot> {
        [0x9a, 0x9c, 0x9d, 0x9e]
            .into_iter()
            .map(Slot)
            .chain(Slot::retired())
    }

    /// The slots for keys that have no purpose in the standard: new keys go here.
    pub(crate) fn retired() -> impl Iterator<Item = Slot> {
        (RETIRED..=RETIRED_END).map(Slot)
    }

    /// The slot with this name, such as `9a`; in lower case only, so that a slot has one
    /// name.
    pub(crate) fn parse(name: &str) -> Option<Slot> {
        Slot::all().find(|slot| slot.to_string() == name)
    }

    pub(crate) fn reference(self) -> u8 {
        self.0
    }

    /// The data object with the slot's certificate (SP 800-73-4 part 1, table 3).
    pub(crate) fn certificate(self) -> u32 {
        match self.0 {
            0x9a => 0x5f_c105,
            0x9c => 0x5f_c10a,
            0x9d => 0x5f_c10b,
            0x9e => 0x5f_c101,
            0xf9 => 0x5f_ff01,
            retired => 0x5f_c10d + u32::from(retired.wrapping_sub(RETIRED)),
        }
    }

    /// What a key of others in this slot is for (SP 800-73-4 part 1, table 4b), where it
    /// has no certificate that says so.
    pub(crate) fn customary_uses(self) -> &'static [KeyUse] {
        match self.0 {
            0x9a | 0x9c | 0x9e => &[KeyUse::Sign],
            0x9d => &[KeyUse::Decrypt],
            _ => &[KeyUse::Sign, KeyUse::Decrypt],
        }
    }

    pub(crate) fn unmarked(self) -> SlotId {
        SlotId::new(self.to_string())
    }
}

impl Slot {
    /// Whether a new key goes here though nobody named the slot.
    pub(crate) fn is_retired(self) -> bool {
        (RETIRED..=RETIRED_END).contains(&self.0)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}", self.0)
    }
}

/// Names one generation in a slot. It is made up before the key is, and lies on the
/// card from before the key is made until it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark([u8; Mark::LENGTH]);

impl Mark {
    const LENGTH: usize = 12;

    /// For keys that are made and deleted by the name of their slot alone.
    pub(crate) const UNNAMED: Mark = Mark([0; Mark::LENGTH]);

    pub(crate) fn random() -> Self {
        let mut bytes = [0; Mark::LENGTH];
        OsRng.fill_bytes(&mut bytes);
        Mark(bytes)
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Mark)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What a name says of a key: `82`, `82#5f0c…` or `82#5f0c…:sign`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyName {
    pub(crate) slot: Slot,
    /// Of keys that Claviger made.
    pub(crate) mark: Option<Mark>,
    /// What the key was made for, where that was known when it was named: then nobody has to
    /// read its certificate to find out.
    pub(crate) usage: Option<KeyUse>,
}

const USES: [(KeyUse, &str); 2] = [(KeyUse::Sign, "sign"), (KeyUse::Decrypt, "decrypt")];

/// A name for the key that is going to be made in `slot`.
pub(crate) fn new_name(slot: Slot, usage: Option<KeyUse>) -> SlotId {
    KeyName {
        slot,
        mark: Some(Mark::random()),
        usage,
    }
    .to_id()
}

impl KeyName {
    /// The mark that its certificate has.
    pub(crate) fn mark(&self) -> Mark {
        self.mark.unwrap_or(Mark::UNNAMED)
    }

    /// The same key in another slot.
    pub(crate) fn in_slot(self, slot: Slot) -> Self {
        KeyName { slot, ..self }
    }

    pub(crate) fn to_id(self) -> SlotId {
        let KeyName { slot, mark, usage } = self;
        let usage = USES.iter().find(|(of, _)| Some(*of) == usage);
        match (mark, usage) {
            (None, _) => slot.unmarked(),
            (Some(mark), None) => SlotId::new(format!("{slot}#{mark}")),
            (Some(mark), Some((_, usage))) => SlotId::new(format!("{slot}#{mark}:{usage}")),
        }
    }
}

/// What a name stands for.
///
/// # Errors
/// [`Error::BadBackend`] where it is no name of a slot.
pub(crate) fn parse_name(name: &SlotId) -> Result<KeyName, Error> {
    const SLOTS: &str = "a PIV card has the slots 9a, 9c, 9d, 9e and 82 to 95";
    let bad = || backend::bad(name.name(), SLOTS);
    let slot = Slot::parse(name.name()).ok_or_else(bad)?;
    let Some(mark) = name.mark() else {
        return Ok(KeyName {
            slot,
            mark: None,
            usage: None,
        });
    };
    let (mark, usage) = match mark.split_once(':') {
        None => (mark, None),
        Some((mark, usage)) => {
            let known = USES.iter().find(|(_, name)| *name == usage);
            (mark, Some(known.ok_or_else(bad)?.0))
        }
    };
    let mark = from_hex(mark).and_then(|mark| Mark::from_bytes(&mark));
    Ok(KeyName {
        slot,
        mark: Some(mark.ok_or_else(bad)?),
        usage,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_have_the_objects_of_the_standard() {
        let object = |name| Slot::parse(name).unwrap().certificate();
        assert_eq!(object("9a"), 0x5fc105);
        assert_eq!(object("9e"), 0x5fc101);
        assert_eq!(object("82"), 0x5fc10d);
        assert_eq!(object("95"), 0x5fc120);
        assert_eq!(Slot::all().count(), 24);
        for name in ["", "9b", "9A", "f9", "96", "82#", "+9", "é"] {
            assert_eq!(Slot::parse(name), None, "{name}");
        }
    }

    #[test]
    fn a_new_name_is_the_slot_to_people_and_carries_its_mark() {
        let slot = Slot::parse("82").unwrap();
        for usage in [None, Some(KeyUse::Sign), Some(KeyUse::Decrypt)] {
            let (one, other) = (new_name(slot, usage), new_name(slot, usage));
            assert_eq!(one.name(), slot.unmarked().as_str());
            assert_eq!(one.to_string(), "82");
            let found = parse_name(&one).unwrap();
            assert_eq!((found.slot, found.usage), (slot, usage));
            assert!(found.mark.is_some());
            assert_ne!(parse_name(&other).unwrap().mark, found.mark);
            assert_eq!(found.to_id().as_str(), one.as_str());
            let moved = found.in_slot(Slot::parse("95").unwrap());
            assert_eq!(parse_name(&moved.to_id()).unwrap(), moved);
        }
        let of_old = SlotId::new("82#00112233445566778899aabb");
        assert_eq!(parse_name(&of_old).unwrap().usage, None);
        for name in [
            "82#",
            "82#00",
            "zz",
            "82##",
            "82#00112233445566778899aabb:x",
        ] {
            assert!(parse_name(&SlotId::new(name)).is_err(), "{name}");
        }
    }
}
