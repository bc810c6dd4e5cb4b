//! Keys of others next to ours, under the same names, and in their places.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::time::Duration;

use claviger_token::{
    Algorithm, Call, Deletion, Error, KeySpec, NewKey, SlotId, SlotState, Unfinished,
    unfinished_mark,
};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectClass};
use cryptoki::session::Session;

use crate::common::{Bench, P256, Theirs, key_in};

fn destroy_all(session: &Session, template: &[Attribute]) {
    for object in session.find_objects(template).unwrap() {
        session.destroy_object(object).unwrap();
    }
}

#[test]
fn deleting_our_key_leaves_those_of_others_under_the_same_id() {
    for (spec, theirs) in [
        (P256, Algorithm::Rsa2048),
        (P256, Algorithm::P256),
        (KeySpec::decrypt(Algorithm::P256), Algorithm::P256),
        (KeySpec::decrypt(Algorithm::X25519), Algorithm::X25519),
        (KeySpec::sign(Algorithm::Ed25519), Algorithm::Ed25519),
        (KeySpec::sign(Algorithm::Rsa2048), Algorithm::Rsa2048),
    ] {
        let bench = Bench::new();
        let ours = bench.ours("02", spec);
        bench.others(|session| {
            let pair = Theirs {
                algorithm: theirs,
                ..Theirs::p256(&[2])
            };
            pair.make(session);
        });
        assert_eq!(bench.delete(&ours).unwrap(), Deletion::Destroyed, "{spec}");
        assert_eq!(
            (bench.count("ours"), bench.count("theirs")),
            (0, 2),
            "{spec}"
        );
    }
}

#[test]
fn what_replaced_our_key_is_foreign_and_stays() {
    for theirs in [Algorithm::P256, Algorithm::Rsa2048] {
        let bench = Bench::new();
        let ours = bench.ours("05", P256);
        bench.others(|session| {
            destroy_all(session, &[Attribute::Label(b"ours".to_vec())]);
            let pair = Theirs {
                algorithm: theirs,
                ..Theirs::p256(&[5])
            };
            pair.make(session);
        });
        assert_eq!(bench.delete(&ours).unwrap(), Deletion::Foreign);
        assert_eq!(bench.count("theirs"), 2);
    }
}

#[test]
fn a_private_half_that_was_exchanged_is_not_destroyed_with_our_public_half() {
    let bench = Bench::new();
    let ours = bench.ours("05", P256);
    bench.others(|session| {
        let private = [
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::Label(b"ours".to_vec()),
        ];
        destroy_all(session, &private);
        let (public, ..) = Theirs::p256(&[5]).make(session);
        session.destroy_object(public).unwrap();
    });
    assert_eq!(bench.delete(&ours).unwrap(), Deletion::Foreign);
    assert_eq!(bench.count("theirs"), 1);
}

#[test]
fn a_key_that_is_not_there_is_not_called_destroyed() {
    let bench = Bench::new();
    let ours = bench.ours("05", P256);
    bench.others(|session| {
        let private = [
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::Label(b"ours".to_vec()),
        ];
        destroy_all(session, &private);
    });
    assert_eq!(bench.delete(&ours).unwrap(), Deletion::NothingThere);
    // Its public half is ours, too, and goes.
    assert_eq!(bench.count("ours"), 0);
    assert_eq!(bench.delete(&ours).unwrap(), Deletion::NothingThere);
}

#[test]
fn what_cannot_be_told_apart_is_left_and_said() {
    let bench = Bench::new();
    // Neither signs nor agrees, so that nothing shows whose half is whose.
    let private = [Attribute::Sign(false), Attribute::Derive(false)];
    let idle = Theirs {
        private: &private,
        ..Theirs::p256(&[5])
    };
    let (_, _, key) = bench.others(|session| {
        idle.make(session);
        idle.make(session)
    });
    let refused = bench.delete(&key_in("05", &key));
    assert!(
        matches!(refused, Err(Error::KeyMismatch { .. })),
        "{refused:?}"
    );
    assert_eq!(bench.count("theirs"), 4);
}

#[test]
fn a_generation_is_discarded_by_its_mark_wherever_it_is() {
    let bench = Bench::new();
    let (_, left) = bench.unfinished("07", P256).unwrap();
    bench.others(|session| {
        Theirs::p256(&[7]).make(session);
    });
    assert_eq!(bench.discard(&left).unwrap(), Deletion::Destroyed);
    assert_eq!(bench.count("theirs"), 2);
    // Once more: what is in the slot is not it.
    assert_eq!(bench.discard(&left).unwrap(), Deletion::Foreign);
    assert_eq!(bench.count("theirs"), 2);
    let elsewhere = Unfinished {
        slot: SlotId::new("08"),
        ..left
    };
    assert_eq!(bench.discard(&elsewhere).unwrap(), Deletion::NothingThere);
}

#[test]
fn half_a_generation_is_discarded() {
    for lost in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
        let bench = Bench::new();
        let (_, left) = bench.unfinished("07", P256).unwrap();
        bench.others(|session| destroy_all(session, &[Attribute::Class(lost)]));
        assert_eq!(bench.discard(&left).unwrap(), Deletion::Destroyed);
        assert!(bench.slots().is_empty());
    }
}

#[test]
fn a_key_that_was_named_is_safe_from_its_intent() {
    let bench = Bench::new();
    let (key, left) = bench.unfinished("07", P256).unwrap();
    bench.token.name(&key, "alice", &Call::unlimited()).unwrap();
    assert_eq!(bench.count("alice"), 2);
    let with_key = Unfinished {
        public_key: Some(key.public_key.clone()),
        ..left.clone()
    };
    for left in [left, with_key] {
        assert_eq!(bench.discard(&left).unwrap(), Deletion::Foreign);
    }
    bench.signs(&key);
}

#[test]
fn where_labels_cannot_be_changed_the_public_key_decides() {
    let bench = Bench::new();
    let mark = unfinished_mark();
    let (_, _, key) = bench.others(|session| {
        let pair = Theirs {
            label: &mark,
            private: &[Attribute::Modifiable(false)],
            ..Theirs::p256(&[7])
        };
        pair.make(session)
    });
    let mut left = Unfinished {
        slot: SlotId::new("07"),
        mark,
        public_key: None,
    };
    assert_eq!(bench.discard(&left).unwrap(), Deletion::Foreign);
    assert_eq!(bench.slots().len(), 1);
    left.public_key = Some(key);
    assert_eq!(bench.discard(&left).unwrap(), Deletion::Destroyed);
    assert!(bench.slots().is_empty());
}

#[test]
fn what_an_earlier_version_began_is_discarded_by_its_public_key_or_not_at_all() {
    let bench = Bench::new();
    let ours = bench.ours("07", P256);
    let mut left = Unfinished {
        slot: ours.slot.clone(),
        mark: String::new(),
        public_key: None,
    };
    assert_eq!(bench.discard(&left).unwrap(), Deletion::Foreign);
    bench.signs(&ours);
    left.public_key = Some(ours.public_key);
    assert_eq!(bench.discard(&left).unwrap(), Deletion::Destroyed);
}

#[test]
fn a_handle_does_not_sign_with_the_successor_of_its_key() {
    let bench = Bench::new();
    let ours = bench.ours("05", P256);
    let signer = bench.signer(&ours).unwrap();
    signer.sign(b"message", &Call::unlimited()).unwrap();
    bench.others(|session| {
        destroy_all(session, &[Attribute::Label(b"ours".to_vec())]);
        Theirs::p256(&[5]).make(session);
    });
    let refused = signer.sign(b"message", &Call::unlimited());
    assert!(
        matches!(refused, Err(Error::KeyMismatch { .. })),
        "{refused:?}"
    );
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
    assert_eq!(slot.slot.as_str(), "01");
    assert_eq!(slot.state, SlotState::Occupied);
    assert_eq!((slot.fingerprint.as_ref(), &*slot.label), (None, "theirs"));

    let made = bench.unfinished("01", P256);
    assert!(matches!(made, Err(Error::SlotOccupied { .. })), "{made:?}");
    let left = Unfinished {
        slot: SlotId::new("01"),
        mark: "theirs".into(),
        public_key: None,
    };
    assert_eq!(bench.discard(&left).unwrap(), Deletion::NothingThere);
    let there = bench.others(|session| session.find_objects(&secret[..4]).unwrap());
    assert_eq!(there.len(), 1);
}

#[test]
fn a_public_key_alone_is_in_the_way() {
    let bench = Bench::new();
    bench.others(|session| {
        let (_, private, _) = Theirs::p256(&[1]).make(session);
        session.destroy_object(private).unwrap();
    });
    let [slot] = &bench.slots()[..] else {
        panic!("one slot is occupied");
    };
    assert_eq!(slot.slot.as_str(), "01");
    assert_eq!(slot.state, SlotState::Occupied);
    assert!(slot.uses.is_empty() && slot.public_key.is_none());

    let made = bench.unfinished("01", P256);
    assert!(matches!(made, Err(Error::SlotOccupied { .. })), "{made:?}");
}

#[test]
fn a_private_key_of_others_that_a_lost_login_hides_is_not_destroyed() {
    let bench = Bench::new();
    bench.others(|session| {
        let (public, ..) = Theirs::p256(&[1]).make(session);
        session.destroy_object(public).unwrap();
        session.logout().unwrap();
    });
    let made = bench.unfinished("01", P256);
    assert!(matches!(made, Err(Error::SlotOccupied { .. })), "{made:?}");
    assert_eq!(bench.slots().len(), 1);
}

#[test]
fn a_key_that_is_made_too_late_does_not_stay() {
    let bench = Bench::new();
    let call = Call::within(Duration::from_millis(50));
    let new = NewKey {
        slot: &SlotId::new("01"),
        spec: KeySpec::sign(Algorithm::Rsa4096),
        mark: &unfinished_mark(),
    };
    let made = bench.token.generate(&new, &call);
    assert!(matches!(made, Err(Error::DeadlineExceeded)), "{made:?}");
    assert!(bench.slots().is_empty());
}

#[test]
fn a_key_that_cannot_be_destroyed_is_left_whole() {
    let bench = Bench::new();
    let (_, _, key) = bench.others(|session| {
        let pair = Theirs {
            private: &[Attribute::Destroyable(false)],
            ..Theirs::p256(&[1])
        };
        pair.make(session)
    });
    let before = bench.slots();
    let deleted = bench.delete(&key_in("01", &key));
    assert!(
        matches!(deleted, Err(Error::CannotDestroy { .. })),
        "{deleted:?}"
    );
    assert_eq!(bench.slots(), before);
    assert!(before[0].public_key.is_some());
}

#[test]
fn a_key_of_another_algorithm_with_the_same_id_is_passed_over() {
    let bench = Bench::new();
    let ours = bench.others(|session| {
        // An Ed25519 key, whose public half was removed.
        let other = Theirs {
            algorithm: Algorithm::Ed25519,
            ..Theirs::p256(&[1])
        };
        session.destroy_object(other.make(session).0).unwrap();
        Theirs::p256(&[1]).make(session).2
    });
    bench.signs(&key_in("01", &ours));
}

#[test]
fn the_handle_of_a_destroyed_object_is_never_given_to_another() {
    let bench = Bench::new();
    bench.others(|session| {
        let mut seen = std::collections::HashSet::new();
        let label = [AttributeType::Label];
        for _ in 0..50 {
            let (public, private, _) = Theirs::p256(&[1]).make(session);
            for handle in [public, private] {
                assert!(seen.insert(handle.handle()), "a handle came again");
            }
            // Others, found by searches, keep theirs or get new ones.
            session.destroy_object(private).unwrap();
            assert!(session.get_attributes(private, &label).is_err());
            session.destroy_object(public).unwrap();
        }
    });
}
