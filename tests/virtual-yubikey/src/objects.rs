//! Data objects and slots: what lies where (SP 800-73-4 part 1, table 3).

use std::collections::BTreeMap;

use crate::apdu::{Outcome, Status};
use crate::tlv;

/// The name of a data object, one to three bytes long: 7E, 7F61, 5FC105.
pub type ObjectId = u32;

/// Data objects by name.
pub mod object {
    use super::{ObjectId, Slot};

    /// Discovery Object. It cannot be written.
    pub const DISCOVERY: ObjectId = 0x7e;
    /// Card Capability Container.
    pub const CAPABILITY: ObjectId = 0x5f_c107;
    /// Card Holder Unique Identifier.
    pub const CHUID: ObjectId = 0x5f_c102;
    /// Printed Information. Where a management key is "protected", it lies here, and
    /// reading it takes the PIN.
    pub const PRINTED: ObjectId = 0x5f_c109;
    /// Yubico's notes on how PIN, PUK and management key are kept.
    pub const ADMIN_DATA: ObjectId = 0x5f_ff00;
    /// The attestation key's certificate.
    pub const ATTESTATION: ObjectId = 0x5f_ff01;

    /// Reading these takes the PIN: fingerprints, facial image, printed information,
    /// iris images.
    pub(super) const PIN_PROTECTED: [ObjectId; 4] = [0x5f_c103, 0x5f_c108, PRINTED, 0x5f_c121];

    /// Where the certificate for the key in `slot` lies.
    pub fn certificate(slot: Slot) -> ObjectId {
        match slot.reference() {
            0x9a => 0x5f_c105,
            0x9c => 0x5f_c10a,
            0x9d => 0x5f_c10b,
            0x9e => 0x5f_c101,
            0xf9 => ATTESTATION,
            retired => 0x5f_c10d + ObjectId::from(retired - 0x82),
        }
    }
}

/// A slot for a key: 9A, 9C, 9D, 9E, 82 to 95, F9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u8);

impl Slot {
    /// 9A.
    pub const AUTHENTICATION: Slot = Slot(0x9a);
    /// 9C.
    pub const SIGNATURE: Slot = Slot(0x9c);
    /// 9D.
    pub const KEY_MANAGEMENT: Slot = Slot(0x9d);
    /// 9E.
    pub const CARD_AUTHENTICATION: Slot = Slot(0x9e);
    /// F9: the key that signs attestations, and nothing else.
    pub const ATTESTATION: Slot = Slot(0xf9);

    /// The slot with this key reference (SP 800-73-4 part 1, table 4b), if it is one.
    pub fn new(reference: u8) -> Option<Slot> {
        matches!(reference, 0x9a | 0x9c..=0x9e | 0x82..=0x95 | 0xf9).then_some(Slot(reference))
    }

    /// All of them, F9 last.
    pub fn all() -> impl Iterator<Item = Slot> {
        (0..=0xff).filter_map(Slot::new)
    }

    /// The key reference.
    pub fn reference(self) -> u8 {
        self.0
    }
}

/// The data objects on a card.
#[derive(Debug, Clone, Default)]
pub(crate) struct Objects(BTreeMap<ObjectId, Vec<u8>>);

impl Objects {
    /// The most that one object holds, as Yubico's tools have it (`CB_OBJ_MAX`, less the
    /// header).
    const LARGEST: usize = 3063;
    /// The most that all of them hold.
    const ROOM: usize = 51_200;
    /// The only one that says what the card is: its AID, and that the PIV PIN is the
    /// only PIN (SP 800-73-4 part 1, §3.3.2).
    const DISCOVERY: [u8; 18] = [
        0x4f, 0x0b, 0xa0, 0x00, 0x00, 0x03, 0x08, 0x00, 0x00, 0x10, 0x00, 0x01, 0x00, 0x5f, 0x2f,
        0x02, 0x40, 0x00,
    ];

    /// GET DATA's reply.
    pub(crate) fn read(&self, id: ObjectId, pin_verified: bool) -> Outcome {
        if id == object::DISCOVERY {
            return Ok(tlv::write(id, &[&Objects::DISCOVERY]));
        }
        if object::PIN_PROTECTED.contains(&id) && !pin_verified {
            return Err(Status::SECURITY_STATUS);
        }
        let content = self.0.get(&id).ok_or(Status::NOT_FOUND)?;
        Ok(tlv::write(0x53, &[content]))
    }

    /// PUT DATA; nothing to write means to delete.
    pub(crate) fn write(&mut self, id: ObjectId, content: &[u8]) -> Result<(), Status> {
        if !(0x5f_0000..=0x5f_ffff).contains(&id) {
            return Err(Status::WRONG_DATA);
        }
        if content.is_empty() {
            self.0.remove(&id);
            return Ok(());
        }
        let others = self.0.iter().filter(|(other, _)| **other != id);
        let taken: usize = others.map(|(_, content)| content.len()).sum();
        if content.len() > Objects::LARGEST || taken + content.len() > Objects::ROOM {
            return Err(Status::NO_SPACE);
        }
        self.0.insert(id, content.to_vec());
        Ok(())
    }

    /// The content as it was written.
    pub(crate) fn get(&self, id: ObjectId) -> Option<&[u8]> {
        self.0.get(&id).map(Vec::as_slice)
    }

    /// All go but the attestation key's certificate.
    pub(crate) fn reset(&mut self) {
        self.0.retain(|id, _| *id == object::ATTESTATION);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_a_place_for_its_certificate_and_no_two_the_same() {
        let mut places: Vec<_> = Slot::all().map(object::certificate).collect();
        assert_eq!(places.len(), 25);
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 25);
        assert_eq!(object::certificate(Slot(0x95)), 0x5f_c120);
    }

    #[test]
    fn objects_have_a_limit_each_and_together() {
        let mut objects = Objects::default();
        assert_eq!(objects.write(0x5f_c105, &[0; 3064]), Err(Status::NO_SPACE));
        let fit = (0..20)
            .filter(|n| objects.write(0x5f_ff10 + n, &[0; 3063]).is_ok())
            .count();
        assert_eq!(fit, 16);
        assert_eq!(objects.write(0x5f_ff10, &[]), Ok(()));
        assert_eq!(objects.write(0x5f_ff30, &[0; 3063]), Ok(()));
        assert_eq!(
            objects.write(object::DISCOVERY, &[0]),
            Err(Status::WRONG_DATA)
        );
    }
}
