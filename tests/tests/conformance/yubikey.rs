//! A virtual YubiKey behind a pcscd, and other programs that write to it.

use std::sync::{Arc, OnceLock};

use claviger_conformance::{Others, Plug, Subject};
use claviger_piv::{LONGEST_ED25519_MESSAGE, PivDriver};
use claviger_token::{Access, Driver, FixedPin};
use claviger_virtual_yubikey::{Card, Inserted, Neighbour, Pcscd};

/// A virtual YubiKey, plugged in when it is first asked for, and another tool that works on it.
#[derive(Default)]
pub(crate) struct YubiKey(OnceLock<(Inserted, Neighbour)>);

impl YubiKey {
    const PIN: &str = "246802";
    /// The one with which cards are delivered.
    pub(crate) const MANAGEMENT_KEY: &str = "010203040506070801020304050607080102030405060708";

    fn plugged(&self) -> &(Inserted, Neighbour) {
        self.0.get_or_init(|| {
            let card = Pcscd::insert(Card::builder().pin(Self::PIN).build());
            let neighbour = Neighbour::on(card.device().clone());
            (card, neighbour)
        })
    }

    fn card(&self) -> &Inserted {
        &self.plugged().0
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
        Ok(&self.plugged().1)
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
