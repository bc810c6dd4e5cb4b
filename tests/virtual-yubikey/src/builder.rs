//! Cards as a test wants them.

use std::collections::BTreeMap;

use rand_core::{OsRng, RngCore as _};

use crate::attest::Factory;
use crate::auth::{ManagementAlgorithm, ManagementKey, PinPolicy, Reference, Touch, TouchPolicy};
use crate::card::{Card, Key, Origin, Session};
use crate::firmware::Firmware;
use crate::keys::{Algorithm, PrivateKey};
use crate::nature::Nature;
use crate::objects::{ObjectId, Objects, Slot, object};

/// Makes a [`Card`]: firmware 5.7.1, a random serial, the published defaults for PIN, PUK
/// and management key, and nothing in it, unless told otherwise.
#[derive(Clone)]
pub struct Builder {
    firmware: Firmware,
    nature: Nature,
    foreign: bool,
    serial: u32,
    pin: Vec<u8>,
    puk: Vec<u8>,
    tries: (u8, u8),
    management: Option<ManagementKey>,
    management_touch: TouchPolicy,
    keys: BTreeMap<Slot, Key>,
    objects: Vec<(ObjectId, Vec<u8>)>,
    atr: Option<Vec<u8>>,
    touch: Touch,
    keeps_rights: bool,
    pool: Vec<PrivateKey>,
    forgets_pin: bool,
}

impl Builder {
    pub(crate) fn new() -> Builder {
        Builder {
            firmware: Firmware::V5_7_1,
            nature: Nature::YUBIKEY,
            foreign: false,
            // Eight decimal digits, as most real ones have.
            serial: 10_000_000 + OsRng.next_u32() % 90_000_000,
            pin: Reference::PIN.to_vec(),
            puk: Reference::PUK.to_vec(),
            tries: (3, 3),
            management: None,
            management_touch: TouchPolicy::Never,
            keys: BTreeMap::new(),
            objects: Vec::new(),
            atr: None,
            touch: Touch::After(std::time::Duration::ZERO),
            keeps_rights: false,
            pool: Vec::new(),
            forgets_pin: true,
        }
    }

    /// Another firmware.
    pub fn firmware(mut self, firmware: Firmware) -> Builder {
        self.firmware = firmware;
        self
    }

    /// Another kind of card than a YubiKey.
    pub fn nature(mut self, nature: Nature) -> Builder {
        self.nature = nature;
        self
    }

    /// A card whose attestations lead to a root of their own, not to [`ROOT`](crate::ROOT).
    pub fn of_another_maker(mut self) -> Builder {
        self.foreign = true;
        self
    }

    /// Another serial.
    pub fn serial(mut self, serial: u32) -> Builder {
        self.serial = serial;
        self
    }

    /// Another PIN: at most eight bytes.
    pub fn pin(mut self, pin: &str) -> Builder {
        self.pin = pin.as_bytes().to_vec();
        self
    }

    /// Another PUK: at most eight bytes.
    pub fn puk(mut self, puk: &str) -> Builder {
        self.puk = puk.as_bytes().to_vec();
        self
    }

    /// How many tries PIN and PUK have.
    pub fn tries(mut self, pin: u8, puk: u8) -> Builder {
        self.tries = (pin, puk);
        self
    }

    /// Another management key.
    ///
    /// # Panics
    /// If the key is not as long as its kind wants it.
    pub fn management_key(mut self, algorithm: ManagementAlgorithm, key: &[u8]) -> Builder {
        self.management = ManagementKey::new(algorithm, key);
        assert!(
            self.management.is_some(),
            "{algorithm:?} keys have {} bytes",
            algorithm.key_size()
        );
        self
    }

    /// Whether the management key wants a touch.
    pub fn management_touch(mut self, policy: TouchPolicy) -> Builder {
        self.management_touch = policy;
        self
    }

    /// Makes a key in `slot`, as the card would, with the slot's default policies.
    ///
    /// # Panics
    /// Where this system's source of randomness fails.
    pub fn generated(self, slot: Slot, algorithm: Algorithm) -> Builder {
        let pin = default_pin_policy(slot);
        let key = PrivateKey::generate(algorithm);
        self.key(slot, key, Origin::Generated, pin, TouchPolicy::Never)
    }

    /// Puts a key into `slot`, as if imported, with the slot's default policies.
    pub fn imported(self, slot: Slot, key: PrivateKey) -> Builder {
        let pin = default_pin_policy(slot);
        self.key(slot, key, Origin::Imported, pin, TouchPolicy::Never)
    }

    /// Puts a key into `slot`.
    pub fn key(
        mut self,
        slot: Slot,
        private: PrivateKey,
        origin: Origin,
        pin: PinPolicy,
        touch: TouchPolicy,
    ) -> Builder {
        let key = Key {
            private,
            origin,
            pin,
            touch,
        };
        self.keys.insert(slot, key);
        self
    }

    /// Puts a data object on the card: what is within its tag 53.
    pub fn object(mut self, id: ObjectId, content: &[u8]) -> Builder {
        self.objects.push((id, content.to_vec()));
        self
    }

    /// Another answer to reset, such as one of a contactless reader.
    pub fn atr(mut self, atr: &[u8]) -> Builder {
        self.atr = Some(atr.to_vec());
        self
    }

    /// The person at the card; at first one who touches it at once.
    pub fn touch(mut self, touch: Touch) -> Builder {
        self.touch = touch;
        self
    }

    /// Makes no keys of a kind that is in `pool`: it takes the next of these each time. For a
    /// fuzzer, which has no time to wait for a key.
    pub fn pool(mut self, pool: impl IntoIterator<Item = PrivateKey>) -> Builder {
        self.pool = pool.into_iter().collect();
        self
    }

    /// As the standard has it, and unlike a YubiKey: a SELECT of the application that is
    /// selected already changes nothing (SP 800-73-4 part 2, §3.1.1).
    pub fn keeps_rights(mut self) -> Builder {
        self.keeps_rights = true;
        self
    }

    /// As cards were before SP 800-73-4: there is no VERIFY that makes the PIN forgotten.
    pub fn forgets_no_pin(mut self) -> Builder {
        self.forgets_pin = false;
        self
    }

    /// The card.
    ///
    /// # Panics
    /// If an object does not fit, or this system's source of randomness fails.
    #[expect(clippy::panic, reason = "documented")]
    pub fn build(self) -> Card {
        let factory = match self.foreign {
            true => Factory::of_another_maker(),
            false => Factory::new(),
        };
        let Ok(factory) = factory else {
            panic!("the attestation key could not be made");
        };
        let mut objects = Objects::default();
        // Unlike other certificates it comes without 71 and FE.
        let certificate = crate::tlv::write(0x70, &[&factory.certificate]);
        let of_the_test = self.objects.iter().map(|(id, content)| (*id, &content[..]));
        let of_the_factory = [(object::ATTESTATION, &certificate[..])];
        let of_the_factory = of_the_factory.into_iter().filter(|_| self.nature.attests);
        for (id, content) in of_the_factory.chain(of_the_test) {
            if let Err(status) = objects.write(id, content) {
                panic!("object {id:06x} does not fit: {status:04x?}");
            }
        }
        let mut keys = self.keys;
        keys.entry(Slot::ATTESTATION).or_insert(Key {
            private: factory.key,
            origin: Origin::Imported,
            pin: PinPolicy::Once,
            touch: TouchPolicy::Never,
        });
        let management = self
            .management
            .unwrap_or_else(|| default_management_key(&self.firmware));
        Card {
            firmware: self.firmware,
            nature: self.nature,
            serial: self.serial,
            atr: self.atr.unwrap_or_else(|| self.firmware.atr.to_vec()),
            root: factory.root,
            pin: Reference::new(&self.pin, self.tries.0, Reference::PIN),
            puk: Reference::new(&self.puk, self.tries.1, Reference::PUK),
            management,
            management_touch: self.management_touch,
            keys,
            objects,
            touch: self.touch,
            keeps_rights: self.keeps_rights,
            pool: self.pool,
            forgets_pin: self.forgets_pin,
            last_touch: None,
            waited: std::time::Duration::ZERO,
            session: Session::default(),
        }
    }
}

/// The factory's management key, of the first kind that the firmware names.
pub(crate) fn default_management_key(firmware: &Firmware) -> ManagementKey {
    let algorithm = firmware.management.first().copied();
    algorithm
        .and_then(|algorithm| ManagementKey::new(algorithm, &ManagementKey::DEFAULT))
        // Both kinds that a factory uses have 24 bytes.
        .unwrap_or_else(ManagementKey::factory_triple_des)
}

/// 9C wants the PIN always, 9E never, the others once (SP 800-73-4 part 1, table 4b).
pub(crate) fn default_pin_policy(slot: Slot) -> PinPolicy {
    match slot {
        Slot::SIGNATURE => PinPolicy::Always,
        Slot::CARD_AUTHENTICATION => PinPolicy::Never,
        _ => PinPolicy::Once,
    }
}
