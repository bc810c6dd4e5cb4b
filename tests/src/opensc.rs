//! OpenSC's module over a virtual YubiKey: it generates no keys, and uses those that others
//! have made.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use claviger_conformance::Subject;
use claviger_pkcs11::Pkcs11Driver;
use claviger_token::key::to_hex;
use claviger_token::{Access, Driver, FixedPin, KeyRef, KeyUse, PublicKey, SlotId};
use claviger_virtual_yubikey::{
    Algorithm, Card, Inserted, Origin, Pcscd, PrivateKey, Slot, object,
};
use rand_core::{OsRng, RngCore as _};

/// The module, where Debian has it.
fn module() -> String {
    format!(
        "/usr/lib/{}-linux-gnu/opensc-pkcs11.so",
        std::env::consts::ARCH
    )
}

/// OpenSC's module, and a YubiKey with one key, plugged in when it is first asked for. Clones
/// are the same: where a card has gone that it knew, OpenSC 0.23 waits for itself.
#[derive(Clone, Default)]
pub struct OpenSc(Arc<Inside>);

#[derive(Default)]
struct Inside {
    card: OnceLock<(Inserted, String, PublicKey)>,
    driver: OnceLock<Arc<Pkcs11Driver>>,
}

impl OpenSc {
    const PIN: &str = "246802";

    /// Why it cannot be had, if so.
    pub fn skipped() -> Option<&'static str> {
        let missing = "OpenSC is not installed: run `cargo xtask setup`";
        (!Path::new(&module()).exists()).then_some(missing)
    }

    /// To be called before threads are started: it sets a variable of the environment.
    ///
    /// # Panics
    /// Where there is no pcscd for it.
    pub fn prepare() {
        Pcscd::prepare();
    }

    fn card(&self) -> &(Inserted, String, PublicKey) {
        self.0.card.get_or_init(|| {
            let key = PrivateKey::generate(Algorithm::P256);
            let public = PublicKey::from_der(&key.spki()).expect("a public key in DER");
            // OpenSC shows keys that have certificates.
            let certificate = key.certificate_object().expect("randomness");
            let mut guid = [0; 16];
            OsRng.fill_bytes(&mut guid);
            let slot = Slot::AUTHENTICATION;
            let mut card = Card::builder()
                .pin(Self::PIN)
                .object(object::CHUID, &holder(&guid))
                .object(object::certificate(slot), &certificate)
                .build();
            card.put_key(slot, key, Origin::Generated);
            (Pcscd::insert(card), to_hex(&guid), public)
        })
    }
}

/// A card holder unique identifier with this number (SP 800-73-4 part 1, §3.1.2), which is
/// what OpenSC makes the serial of.
fn holder(guid: &[u8; 16]) -> Vec<u8> {
    // Agency 9999, which is none: of others OpenSC takes this for the serial.
    let agency = b"\x30\x19\xd4\xe7\x39\xda\x73\x9c\xed\x39\xce\x73\x9d\x83\x68\x58\x21\x08\x42\x10\x84\x21\xc8\x42\x10\xc3\xeb";
    let expires = [&[0x35, 8][..], b"20500101"].concat();
    [
        &agency[..],
        &[0x34, 16],
        guid,
        &expires,
        &[0x3e, 0, 0xfe, 0],
    ]
    .concat()
}

impl Subject for OpenSc {
    fn driver(&self) -> Arc<dyn Driver> {
        let make = || Arc::new(Pkcs11Driver::new());
        self.0.driver.get_or_init(make).clone()
    }

    fn backend(&self) -> String {
        // OpenSC has room for its second half.
        let serial = &self.card().1[16..];
        format!("pkcs11:serial={serial}?module-path={}", module())
    }

    fn access(&self) -> Access {
        Access::with(FixedPin::new(Self::PIN))
    }

    fn wrong_access(&self) -> Result<Access, &'static str> {
        Ok(Access::with(FixedPin::new("135791")))
    }

    fn absent_backend(&self) -> Result<String, &'static str> {
        Ok(format!("pkcs11:token=nowhere?module-path={}", module()))
    }

    fn can_generate_none(&self) -> Result<(), &'static str> {
        Ok(())
    }

    fn generates_none(&self) -> Result<(Box<dyn Subject>, KeyRef, KeyUse), &'static str> {
        let key = KeyRef {
            slot: SlotId::new("01"),
            public_key: self.card().2.clone(),
        };
        Ok((Box::new(self.clone()), key, KeyUse::Sign))
    }
}
