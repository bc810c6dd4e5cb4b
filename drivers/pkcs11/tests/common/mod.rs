//! A token of SoftHSM, the driver's view of it, and what others do to it.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::Path;
use std::sync::Arc;

use claviger_pkcs11::{Pkcs11Driver, with_module};
use claviger_tests::SoftHsm;
use claviger_token::{
    Algorithm, Call, Decryptor, Deletion, Detail, Driver, Error, GeneratedKey, KeyRef, KeySpec,
    NewKey, PublicKey, Signer, SlotId, SlotInfo, Token, TokenInfo, Unfinished, possession,
    unfinished_mark,
};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

pub const P256: KeySpec = KeySpec::sign(Algorithm::P256);

/// `CKA_EC_PARAMS` of P-256 and Ed25519.
pub const P256_PARAMS: [u8; 10] = [6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
pub const ED25519_PARAMS: [u8; 5] = [6, 3, 0x2b, 0x65, 0x70];
pub const X25519_PARAMS: [u8; 5] = [6, 3, 0x2b, 0x65, 0x6e];

/// A token, and the driver's view of it.
pub struct Bench {
    pub hsm: SoftHsm,
    pub token: Arc<dyn Token>,
}

impl Bench {
    pub fn new() -> Self {
        let hsm = SoftHsm::new();
        let call = Call::unlimited();
        let opened = Pkcs11Driver::new().open(&hsm.backend(), &call.using(hsm.access()));
        let token = opened.unwrap();
        Bench { hsm, token }
    }

    /// Does something on the token that the driver does not know of.
    pub fn others<T>(&self, work: impl FnOnce(&Session) -> T) -> T {
        with_module(Path::new(SoftHsm::module()), |module| {
            let slots = module.get_slots_with_initialized_token().unwrap();
            let is_it = |slot: &cryptoki::slot::Slot| {
                module.get_token_info(*slot).unwrap().label() == self.hsm.label()
            };
            let slot = slots.into_iter().find(is_it).unwrap();
            work(&module.open_rw_session(slot).unwrap())
        })
        .unwrap()
    }

    /// A finished key of ours in `slot`.
    pub fn ours(&self, slot: &str, spec: KeySpec) -> KeyRef {
        let (key, _) = self.unfinished(slot, spec).unwrap();
        self.token.name(&key, "ours", &Call::unlimited()).unwrap();
        key
    }

    /// A key of ours that was generated and not named.
    pub fn unfinished(&self, slot: &str, spec: KeySpec) -> Result<(KeyRef, Unfinished), Error> {
        let (slot, mark) = (SlotId::new(slot), unfinished_mark());
        let new = NewKey {
            slot: &slot,
            spec,
            mark: &mark,
        };
        let GeneratedKey { public_key, .. } = self.token.generate(&new, &Call::unlimited())?;
        let key = KeyRef {
            slot: slot.clone(),
            public_key,
        };
        let left = Unfinished {
            slot,
            mark,
            public_key: None,
        };
        Ok((key, left))
    }

    pub fn delete(&self, key: &KeyRef) -> Result<Deletion, Error> {
        self.token.delete(key, &Call::unlimited())
    }

    pub fn discard(&self, left: &Unfinished) -> Result<Deletion, Error> {
        self.token.discard(left, &Call::unlimited())
    }

    pub fn signer(&self, key: &KeyRef) -> Result<Arc<dyn Signer>, Error> {
        self.token.signer(key, &Call::unlimited())
    }

    /// The key proves to be there.
    pub fn signs(&self, key: &KeyRef) -> SlotId {
        let (id, call) = (&self.token.info().id, Call::unlimited());
        let signer = self.signer(key).unwrap();
        possession::of_signer(&*signer, id, &call).unwrap();
        signer.slot()
    }

    /// The key proves to be there.
    pub fn agrees(&self, key: &KeyRef) -> Arc<dyn Decryptor> {
        let (id, call) = (&self.token.info().id, Call::unlimited());
        let decryptor = self.token.decryptor(key, &Call::unlimited()).unwrap();
        possession::of_decryptor(&*decryptor, id, &call).unwrap();
        decryptor.confirm(&call).unwrap();
        decryptor
    }

    pub fn slots(&self) -> Vec<SlotInfo> {
        self.token.slots(&Call::unlimited()).unwrap()
    }

    /// How many key objects carry this label.
    pub fn count(&self, label: &str) -> usize {
        self.others(|session| {
            let classes = [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY];
            let found = classes.map(|class| labelled(session, class, label).len());
            found.iter().sum()
        })
    }
}

pub fn key_in(slot: &str, public_key: &PublicKey) -> KeyRef {
    KeyRef {
        slot: SlotId::new(slot),
        public_key: public_key.clone(),
    }
}

fn labelled(session: &Session, class: ObjectClass, label: &str) -> Vec<ObjectHandle> {
    let template = [Attribute::Class(class), Attribute::Label(label.into())];
    session.find_objects(&template).unwrap()
}

/// Key pairs of others. `id` is left out where it is empty.
pub struct Theirs<'a> {
    pub algorithm: Algorithm,
    pub id: &'a [u8],
    pub label: &'a str,
    pub private: &'a [Attribute],
}

impl Theirs<'_> {
    /// A P-256 pair that signs.
    pub fn p256(id: &[u8]) -> Theirs<'_> {
        Theirs {
            algorithm: Algorithm::P256,
            id,
            label: "theirs",
            private: &[],
        }
    }

    /// Makes it: the public and the private object, and what the public half is.
    pub fn make(&self, session: &Session) -> (ObjectHandle, ObjectHandle, PublicKey) {
        let mut common = vec![Attribute::Token(true), Attribute::Label(self.label.into())];
        if !self.id.is_empty() {
            common.push(Attribute::Id(self.id.to_vec()));
        }
        let (mechanism, kind) = match self.algorithm {
            Algorithm::P256 => (
                Mechanism::EccKeyPairGen,
                vec![Attribute::EcParams(P256_PARAMS.to_vec())],
            ),
            Algorithm::Ed25519 => (
                Mechanism::EccEdwardsKeyPairGen,
                vec![Attribute::EcParams(ED25519_PARAMS.to_vec())],
            ),
            Algorithm::X25519 => (
                Mechanism::EccEdwardsKeyPairGen,
                vec![Attribute::EcParams(X25519_PARAMS.to_vec())],
            ),
            _ => (
                Mechanism::RsaPkcsKeyPairGen,
                vec![
                    Attribute::ModulusBits(2048.into()),
                    Attribute::PublicExponent(vec![1, 0, 1]),
                ],
            ),
        };
        let public = [&common[..], &kind].concat();
        let mut private = [&common[..], self.private].concat();
        let says = |of: AttributeType| self.private.iter().any(|a| a.attribute_type() == of);
        for more in [
            Attribute::Private(true),
            Attribute::Sign(self.algorithm != Algorithm::X25519),
            Attribute::Derive(true),
        ] {
            if !says(more.attribute_type()) {
                private.push(more);
            }
        }
        let made = session.generate_key_pair(&mechanism, &public, &private);
        let (public, private) = made.unwrap();
        let key = read(session, public, self.algorithm);
        (public, private, key)
    }
}

fn read(session: &Session, public: ObjectHandle, algorithm: Algorithm) -> PublicKey {
    let wanted = [
        AttributeType::EcPoint,
        AttributeType::Modulus,
        AttributeType::PublicExponent,
    ];
    let read = session.get_attributes(public, &wanted).unwrap();
    match &read[..] {
        // Without the head of the OCTET STRING.
        [Attribute::EcPoint(point)] => PublicKey::from_bytes(algorithm, &point[2..]).unwrap(),
        [Attribute::Modulus(n), Attribute::PublicExponent(e)] => PublicKey::from_rsa(n, e).unwrap(),
        other => panic!("a public key has other attributes: {other:?}"),
    }
}

/// The slots of a token that are visible without a PIN.
pub fn visible(driver: &dyn Driver, token: &TokenInfo) -> Result<Vec<SlotInfo>, Error> {
    let found = driver.look(&token.backend, Detail::Slots, &Call::unlimited())?;
    found.slots_of(&token.id)
}
