//! A virtual YubiKey behind a pcscd, and other programs that write to it.

use std::sync::{Arc, OnceLock};

use claviger_piv::{LONGEST_ED25519_MESSAGE, PivDriver};
use claviger_token::conformance::{Others, Plug, Subject};
use claviger_token::{Access, Algorithm, Driver, FixedPin, KeyRef, KeySpec, PublicKey, SlotId};
use claviger_virtual_yubikey::{
    Algorithm as CardAlgorithm, Card, Inserted, Origin, Pcscd, PrivateKey, Slot, object,
};

/// A virtual YubiKey, plugged in when it is first asked for.
#[derive(Default)]
pub(crate) struct YubiKey(OnceLock<Inserted>);

impl YubiKey {
    const PIN: &str = "246802";
    /// The one with which cards are delivered.
    pub(crate) const MANAGEMENT_KEY: &str = "010203040506070801020304050607080102030405060708";

    fn card(&self) -> &Inserted {
        self.0
            .get_or_init(|| Pcscd::insert(Card::builder().pin(Self::PIN).build()))
    }

    /// Where the card has the key.
    fn slot_of(&self, key: &PublicKey) -> Option<Slot> {
        let card = self.card().card();
        let is_it = |slot: &Slot| card.key(*slot).map(public_key).as_ref() == Some(key);
        card.occupied().into_iter().find(is_it)
    }
}

impl Subject for YubiKey {
    fn driver(&self) -> Arc<dyn Driver> {
        // All of these are one.
        Arc::new(PivDriver::new())
    }

    fn backend(&self) -> String {
        format!("piv:serial={}", self.card().card().serial())
    }

    fn access(&self) -> Access {
        Access {
            management_keys: Arc::new(FixedPin::new(Self::MANAGEMENT_KEY)),
            ..Access::with(FixedPin::new(Self::PIN))
        }
    }

    fn wrong_access(&self) -> Result<Access, &'static str> {
        Ok(Access::with(FixedPin::new("135791")))
    }

    fn absent_backend(&self) -> Result<String, &'static str> {
        Ok("piv:serial=4294967295".into())
    }

    /// The retired slots.
    fn capacity(&self) -> Result<usize, &'static str> {
        Ok(20)
    }

    fn longest_ed25519_message(&self) -> usize {
        LONGEST_ED25519_MESSAGE
    }

    fn others(&self) -> Result<&dyn Others, &'static str> {
        Ok(self)
    }

    fn can_restart(&self) -> Result<(), &'static str> {
        Ok(())
    }

    fn restart(&self) -> Result<(), &'static str> {
        Pcscd::restart();
        self.card().insert();
        Ok(())
    }

    fn plug(&self) -> Result<&dyn Plug, &'static str> {
        Ok(self)
    }
}

impl Plug for YubiKey {
    fn remove(&self) {
        self.card().remove();
    }

    fn insert(&self) {
        self.card().insert();
    }
}

impl Others for YubiKey {
    fn add_beside(&self, _: &KeyRef) -> Result<PublicKey, &'static str> {
        Err("a slot of a card holds one key")
    }

    fn replace(&self, key: &KeyRef) -> Result<PublicKey, &'static str> {
        let foreign = PrivateKey::generate(algorithm(key.public_key.algorithm())?);
        let public = public_key(&foreign);
        let mut card = self.card().card();
        card.put_key(slot(&key.slot), foreign, Origin::Generated);
        Ok(public)
    }

    fn move_key(&self, key: &KeyRef) -> Result<(), &'static str> {
        let mut card = self.card().card();
        let occupied = card.occupied();
        let free = Slot::all().filter(|slot| slot.reference() < 0x9a);
        let free = free.filter(|slot| !occupied.contains(slot)).last();
        card.relocate_key(slot(&key.slot), free.ok_or("there is no free slot")?);
        Ok(())
    }

    fn unname(&self, _: &KeyRef) -> Result<(), &'static str> {
        Err("a slot of a card has a name always")
    }

    fn mismatch(&self, spec: KeySpec) -> Result<KeyRef, &'static str> {
        let algorithm = algorithm(spec.algorithm)?;
        let [named, there] = [(); 2].map(|()| PrivateKey::generate(algorithm));
        let certificate = named
            .certificate_object()
            .ok_or("there is no certificate")?;
        let slot = Slot::AUTHENTICATION;
        let mut card = self.card().card();
        card.put_key(slot, there, Origin::Imported);
        card.put_object(object::certificate(slot), &certificate)
            .map_err(|_| "the card takes no certificate")?;
        Ok(KeyRef {
            slot: SlotId::new("9a"),
            public_key: public_key(&named),
        })
    }

    fn has(&self, key: &PublicKey) -> bool {
        self.slot_of(key).is_some()
    }

    fn remove(&self, key: &PublicKey) {
        let slot = self.slot_of(key).unwrap_or(Slot::AUTHENTICATION);
        let mut card = self.card().card();
        card.remove_key(slot);
        card.put_object(object::certificate(slot), &[])
            .expect("an object can be deleted");
    }
}

fn public_key(key: &PrivateKey) -> PublicKey {
    PublicKey::from_der(&key.spki()).expect("a public key in DER")
}

fn slot(id: &SlotId) -> Slot {
    let reference = u8::from_str_radix(&id.as_str()[..2], 16);
    let slot = reference.ok().and_then(Slot::new);
    slot.expect("a slot of a card")
}

fn algorithm(algorithm: Algorithm) -> Result<CardAlgorithm, &'static str> {
    match algorithm {
        Algorithm::P256 => Ok(CardAlgorithm::P256),
        Algorithm::P384 => Ok(CardAlgorithm::P384),
        Algorithm::Ed25519 => Ok(CardAlgorithm::Ed25519),
        Algorithm::X25519 => Ok(CardAlgorithm::X25519),
        _ => Err("the other program makes no such keys"),
    }
}
