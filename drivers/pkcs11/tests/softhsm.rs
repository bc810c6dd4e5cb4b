//! Keys of others on a token of SoftHSM, next to those that Claviger makes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use claviger_pkcs11::{Pkcs11Driver, with_module};
use claviger_tests::SoftHsm;
use claviger_token::{
    Algorithm, Call, Deletion, Driver, Error, GeneratedKey, KeyRef, KeySpec, PublicKey, Signer,
    SlotId, SlotInfo, SlotState, Token,
};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectHandle};
use cryptoki::session::Session;

const P256: KeySpec = KeySpec::sign(Algorithm::P256);

/// `CKA_EC_PARAMS` of P-256.
const PARAMS: [u8; 10] = [6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];

/// A token, and the driver's view of it.
struct Bench {
    hsm: SoftHsm,
    token: Arc<dyn Token>,
}

impl Bench {
    fn new() -> Self {
        let hsm = SoftHsm::new();
        let call = Call::unlimited();
        let opened = Pkcs11Driver::new().open(&hsm.backend(), &hsm.access(), &call);
        let token = opened.unwrap();
        Bench { hsm, token }
    }

    /// Does something on the token that the driver does not know of.
    fn others<T>(&self, work: impl FnOnce(&Session) -> T) -> T {
        with_module(SoftHsm::module().as_ref(), |module| {
            let slots = module.get_slots_with_initialized_token().unwrap();
            let is_it = |slot: &cryptoki::slot::Slot| {
                module.get_token_info(*slot).unwrap().label() == self.hsm.label()
            };
            let slot = slots.into_iter().find(is_it).unwrap();
            work(&module.open_rw_session(slot).unwrap())
        })
        .unwrap()
    }

    fn generate(&self, slot: &str) -> Result<GeneratedKey, Error> {
        let (slot, call) = (SlotId::new(slot), Call::unlimited());
        self.token.generate(&slot, P256, "ours", &call)
    }

    fn delete(&self, slot: &str) -> Result<Deletion, Error> {
        self.token.delete(&SlotId::new(slot), &Call::unlimited())
    }

    /// A signer for the key in slot 01.
    fn signer(&self, public_key: PublicKey) -> Result<Arc<dyn Signer>, Error> {
        let slot = SlotId::new("01");
        self.token.signer(&KeyRef { slot, public_key })
    }

    /// Signs with the key in slot 01.
    fn signs(&self, key: &PublicKey) {
        let signer = self.signer(key.clone()).unwrap();
        let signature = signer.sign(b"message", &Call::unlimited()).unwrap();
        key.verify(b"message", &signature).unwrap();
    }

    fn slots(&self) -> Vec<SlotInfo> {
        self.token.slots(&Call::unlimited()).unwrap()
    }
}

/// A key pair on the token: its public and its private half.
fn pair(session: &Session, id: u8, private: &[Attribute]) -> (ObjectHandle, ObjectHandle) {
    let common = [Attribute::Token(true), Attribute::Id(vec![id])];
    let params = [Attribute::EcParams(PARAMS.to_vec())];
    let public = [&common[..], &params].concat();
    let mine = [Attribute::Private(true), Attribute::Sign(true)];
    let private = [&common[..], &mine, private].concat();
    session
        .generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)
        .unwrap()
}

/// A P-256 key pair and what its public half is.
fn p256(session: &Session, id: u8) -> (ObjectHandle, ObjectHandle, PublicKey) {
    let (public, private) = pair(session, id, &[]);
    let point = session.get_attributes(public, &[AttributeType::EcPoint]);
    let Attribute::EcPoint(point) = point.unwrap().remove(0) else {
        panic!("a point was asked for");
    };
    // Without the head of the OCTET STRING.
    let key = PublicKey::from_bytes(Algorithm::P256, &point[2..]).unwrap();
    (public, private, key)
}

#[test]
fn a_secret_key_of_others_is_in_the_way_and_is_not_destroyed() {
    let bench = Bench::new();
    let secret = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Id(vec![1]),
        Attribute::Label(b"theirs".to_vec()),
        Attribute::ValueLen(32.into()),
    ];
    bench.others(|session| {
        session
            .generate_key(&Mechanism::AesKeyGen, &secret)
            .unwrap();
    });
    let [slot] = &bench.slots()[..] else {
        panic!("one slot is occupied");
    };
    assert_eq!(slot.slot.name(), "01");
    assert_eq!(slot.state, SlotState::Occupied);
    assert_eq!((slot.fingerprint.as_ref(), &*slot.label), (None, "theirs"));

    let made = bench.generate("01");
    assert!(matches!(made, Err(Error::SlotOccupied { .. })), "{made:?}");
    assert_eq!(bench.delete("01").unwrap(), Deletion::NothingThere);
    let left = bench.others(|session| session.find_objects(&secret[..4]).unwrap());
    assert_eq!(left.len(), 1);
}

#[test]
fn a_public_key_alone_is_in_the_way() {
    let bench = Bench::new();
    bench.others(|session| {
        let (_, private) = pair(session, 1, &[]);
        session.destroy_object(private).unwrap();
    });
    let [slot] = &bench.slots()[..] else {
        panic!("one slot is occupied");
    };
    assert_eq!(slot.slot.name(), "01");
    assert_eq!(slot.state, SlotState::Occupied);
    assert!(slot.uses.is_empty() && slot.public_key.is_none());

    let made = bench.generate("01");
    assert!(matches!(made, Err(Error::SlotOccupied { .. })), "{made:?}");
    // What a crash left of a key of ours looks like that, too.
    assert_eq!(bench.delete("01").unwrap(), Deletion::Destroyed);
    assert!(bench.slots().is_empty());
}

#[test]
fn a_private_key_of_others_that_a_lost_login_hides_is_not_destroyed() {
    let bench = Bench::new();
    bench.others(|session| {
        let (public, _) = pair(session, 1, &[]);
        session.destroy_object(public).unwrap();
        session.logout().unwrap();
    });
    let made = bench.generate("01");
    assert!(matches!(made, Err(Error::SlotOccupied { .. })), "{made:?}");
    assert_eq!(bench.slots().len(), 1);
}

#[test]
fn a_key_that_is_made_too_late_does_not_stay() {
    let bench = Bench::new();
    let call = Call::within(Duration::from_millis(50));
    let spec = KeySpec::sign(Algorithm::Rsa4096);
    let made = bench.token.generate(&SlotId::new("01"), spec, "", &call);
    assert!(matches!(made, Err(Error::DeadlineExceeded)), "{made:?}");
    assert!(bench.slots().is_empty());
}

#[test]
fn of_two_pairs_with_one_id_none_is_guessed() {
    let bench = Bench::new();
    let [ours, theirs] = bench.others(|session| [p256(session, 1), p256(session, 1)]);
    let is_not_guessed = || {
        for (_, _, key) in [&ours, &theirs] {
            let refused = bench.signer(key.clone()).err();
            assert!(
                matches!(refused, Some(Error::KeyMismatch { .. })),
                "{refused:?}"
            );
        }
        assert!(bench.slots().iter().all(|slot| slot.public_key.is_none()));
    };
    is_not_guessed();
    // Both public keys are there, and it cannot be told whose half has gone.
    bench.others(|session| session.destroy_object(theirs.1).unwrap());
    is_not_guessed();
    bench.others(|session| session.destroy_object(theirs.0).unwrap());
    bench.signs(&ours.2);
}

#[test]
fn a_key_of_another_algorithm_with_the_same_id_is_passed_over() {
    let bench = Bench::new();
    let ours = bench.others(|session| {
        // An Ed25519 key, whose public half was removed.
        let common = [Attribute::Token(true), Attribute::Id(vec![1])];
        let params = [Attribute::EcParams(vec![6, 3, 0x2b, 0x65, 0x70])];
        let public = [&common[..], &params].concat();
        let private = [&common[..], &[Attribute::Private(true)]].concat();
        let pair = session.generate_key_pair(&Mechanism::EccEdwardsKeyPairGen, &public, &private);
        session.destroy_object(pair.unwrap().0).unwrap();
        p256(session, 1).2
    });
    bench.signs(&ours);
}

#[test]
fn a_key_that_cannot_be_destroyed_is_left_whole() {
    let bench = Bench::new();
    bench.others(|session| pair(session, 1, &[Attribute::Destroyable(false)]));
    let before = bench.slots();
    let deleted = bench.delete("01");
    assert!(
        matches!(deleted, Err(Error::CannotDestroy { .. })),
        "{deleted:?}"
    );
    assert_eq!(bench.slots(), before);
    assert!(before[0].public_key.is_some());
}
