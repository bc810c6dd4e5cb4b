//! Keys are made, listed, told apart and deleted.

use std::collections::BTreeSet;

use claviger_token::{
    Algorithm, Deletion, Error, KeyRef, KeySpec, KeyUse, SlotId, Unfinished, unfinished_mark,
};

use crate::bench::{Bench, Made, OpenKey, refused};
use crate::check::{Skip, Theme};
use crate::subject::Subject;

/// What these checks are about.
pub(crate) const THEME: Theme = Theme::Keys;

pub(crate) fn a_key_lives_from_generate_to_delete(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    let before = bench.slots();
    bench.any_spec()?;
    for spec in bench.token.info().makes.clone() {
        let slot = bench.free_slot(spec);
        assert_eq!(bench.slots(), before, "asking for a slot changed something");

        let made = bench.make_in(&slot, spec, "conformance");
        let listed = bench.occupied(&slot).expect("a new key is listed");
        let fingerprint = made.key.public_key.fingerprint().to_string();
        assert_eq!(listed.algorithm, Some(spec.algorithm));
        assert_eq!(listed.uses, [spec.usage], "{spec}");
        assert_eq!(listed.public_key.as_ref(), Some(&made.key.public_key));
        assert_eq!(listed.fingerprint, Some(fingerprint));
        assert!(["conformance", ""].contains(&&*listed.label));

        let handle = OpenKey::of(&*bench.token, &made.key, spec.usage).unwrap();
        handle.work(&bench.call).unwrap();

        let deleted = bench.token.delete(&made.key, &bench.call).unwrap();
        let expected = match bench.token.info().derives {
            true => Deletion::Derivable,
            false => Deletion::Destroyed,
        };
        assert_eq!(deleted, expected, "{spec}");
        assert_eq!(bench.slots(), before, "{spec} left something behind");
        let again = bench.token.delete(&made.key, &bench.call).unwrap();
        assert_eq!(again, Deletion::NothingThere);
        refused!(
            OpenKey::of(&*bench.token, &made.key, spec.usage),
            Error::KeyNotFound { .. }
        );
        for _ in 0..2 {
            refused!(handle.work(&bench.call), Error::KeyNotFound { .. });
        }
    }
    Ok(())
}

pub(crate) fn a_kind_of_key_that_is_not_offered_is_refused_and_nothing_changes(
    subject: &dyn Subject,
) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    let before = bench.slots();
    let offered = &bench.token.info().makes;
    let slot = bench.free_slot(bench.any_spec()?);
    for spec in Algorithm::ALL
        .into_iter()
        .flat_map(|a| [KeySpec::sign(a), KeySpec::decrypt(a)])
        .filter(|spec| !offered.contains(spec))
    {
        let by_slot = bench.token.free_slots(&[spec], &[], &bench.call).map(drop);
        let by_key = bench.generate(&slot, spec, "", &bench.call).map(drop);
        for refusal in [by_slot, by_key] {
            match refusal {
                Err(Error::Unsupported {
                    wanted, supported, ..
                }) => {
                    assert_eq!(wanted, spec);
                    assert_eq!(supported, *offered);
                }
                other => panic!("{spec} is not offered, but: {other:?}"),
            }
        }
    }
    assert_eq!(bench.slots(), before);
    Ok(())
}

pub(crate) fn slots_for_several_keys_are_several(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    let offered = bench.token.info().makes.clone();
    let unique = |specs: &[KeySpec]| {
        let slots = bench.token.free_slots(specs, &[], &bench.call).unwrap();
        assert_eq!(slots.len(), specs.len());
        let names = slots.iter().map(SlotId::name);
        names.collect::<BTreeSet<_>>().len()
    };
    assert_eq!(unique(&[]), 0);
    assert_eq!(unique(&[bench.any_spec()?; 2]), 2);
    assert_eq!(unique(&offered), offered.len());

    let slots = bench.token.free_slots(&offered, &[], &bench.call).unwrap();
    let made = |(slot, spec): (&SlotId, &KeySpec)| bench.make_in(slot, *spec, "conformance");
    let made: Vec<Made> = slots.iter().zip(&offered).map(made).collect();
    for (made, spec) in made.iter().zip(&offered) {
        let handle = OpenKey::of(&*bench.token, &made.key, spec.usage).unwrap();
        handle.work(&bench.call).unwrap();
    }

    let impossible = KeySpec::decrypt(Algorithm::Ed25519);
    refused!(
        bench
            .token
            .free_slots(&[offered[0], impossible], &[], &bench.call),
        Error::Unsupported { .. }
    );
    Ok(())
}

pub(crate) fn an_occupied_slot_is_not_overwritten(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    let spec = bench.any_spec()?;
    let made = bench.make(spec);
    let before = bench.slots();
    for other in bench.token.info().makes.clone() {
        refused!(
            bench.generate(&made.key.slot, other, "", &bench.call),
            Error::SlotOccupied { .. }
        );
        assert_ne!(bench.free_slot(other).name(), made.key.slot.name());
    }
    assert_eq!(bench.slots(), before);
    let handle = OpenKey::of(&*bench.token, &made.key, spec.usage).unwrap();
    handle.work(&bench.call).unwrap();
    Ok(())
}

pub(crate) fn a_slot_name_that_makes_no_sense_does_no_harm(
    subject: &dyn Subject,
) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    let spec = bench.any_spec()?;
    let made = bench.make(spec);
    let before = bench.slots();
    for name in ["", "0", "zz", "é", "../..", "\0", &"7".repeat(100_001)] {
        let slot = SlotId::new(name);
        let left = Unfinished {
            slot: slot.clone(),
            mark: unfinished_mark(),
            public_key: None,
        };
        assert!(!matches!(
            bench.token.discard(&left, &bench.call),
            Ok(Deletion::Destroyed | Deletion::Derivable)
        ));
        let key = KeyRef {
            slot,
            public_key: made.key.public_key.clone(),
        };
        // The public half names the key; where it is found by that, it is the one.
        if let Ok(handle) = OpenKey::of(&*bench.token, &key, spec.usage) {
            handle.work(&bench.call).unwrap();
        }
    }
    assert_eq!(bench.slots(), before);
    Ok(())
}

pub(crate) fn a_label_may_be_anything(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    let spec = bench.any_spec()?;
    for label in ["", "Schlüssel für Ωμέγα 🗝", "a\0b\nc", &"long ".repeat(200)] {
        let slot = bench.free_slot(spec);
        let made = bench.make_in(&slot, spec, label);
        assert!(bench.occupied(&slot).is_some());
        let handle = OpenKey::of(&*bench.token, &made.key, spec.usage).unwrap();
        handle.work(&bench.call).unwrap();
    }
    Ok(())
}

pub(crate) fn a_key_is_protected_as_the_token_promises(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    bench.any_spec()?;
    for spec in bench.token.info().makes.clone() {
        assert_eq!(bench.make(spec).protection, subject.protection(), "{spec}");
    }
    Ok(())
}

pub(crate) fn a_key_has_one_use(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    bench.any_spec()?;
    for spec in bench.token.info().makes.clone() {
        let made = bench.make(spec);
        let refusal = match spec.usage {
            KeyUse::Sign => bench
                .token
                .decryptor(&made.key, &claviger_token::Call::unlimited())
                .map(drop),
            KeyUse::Decrypt => bench
                .token
                .signer(&made.key, &claviger_token::Call::unlimited())
                .map(drop),
        };
        refused!(refusal, Error::Unsupported { .. } | Error::NotUsable { .. });
    }
    Ok(())
}

pub(crate) fn a_key_that_is_not_the_one_remembered_is_not_used(
    subject: &dyn Subject,
) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    let spec = bench.any_spec()?;
    let (made, other) = (bench.make(spec), bench.make(spec));
    let key = |slot: &SlotId, made: &Made| KeyRef {
        slot: slot.clone(),
        public_key: made.key.public_key.clone(),
    };
    let free = bench.free_slot(spec);
    for moved in [key(&made.key.slot, &other), key(&free, &made)] {
        match OpenKey::of(&*bench.token, &moved, spec.usage) {
            // By its public half, wherever it is.
            Ok(handle) => {
                assert_eq!(*handle.public_key(), moved.public_key);
                handle.work(&bench.call).unwrap();
            }
            Err(Error::KeyMismatch { .. } | Error::KeyNotFound { .. }) => {}
            Err(other) => panic!("{moved:?} gave {other:?}"),
        }
    }

    // The slot is used again, for another key or for the same derived again: the handle
    // on the one that was deleted does not sign with it.
    let handle = OpenKey::of(&*bench.token, &made.key, spec.usage).unwrap();
    handle.work(&bench.call).unwrap();
    bench.token.delete(&made.key, &bench.call).unwrap();
    let successor = bench.make_in(&made.key.slot, spec, "conformance");
    refused!(
        handle.work(&bench.call),
        Error::KeyNotFound { .. } | Error::KeyMismatch { .. }
    );
    let handle = OpenKey::of(&*bench.token, &successor.key, spec.usage).unwrap();
    handle.work(&bench.call).unwrap();
    Ok(())
}

pub(crate) fn a_key_that_was_named_is_not_discarded(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    bench.any_spec()?;
    if bench.token.info().derives {
        return Err(Skip("its keys cannot be destroyed"));
    }
    for spec in bench.one_spec_of_each_use() {
        let (made, left) = bench.begin(spec);
        bench
            .token
            .name(&made.key, "conformance", &bench.call)
            .unwrap();
        let named = bench.occupied(&made.key.slot).expect("it is listed").label;
        if named != "conformance" {
            return Err(Skip("the token does not change labels"));
        }
        for public_key in [None, left.public_key.clone()] {
            let left = Unfinished {
                public_key,
                ..left.clone()
            };
            let discarded = bench.token.discard(&left, &bench.call).unwrap();
            assert_ne!(discarded, Deletion::Destroyed, "{spec}");
        }
        let handle = OpenKey::of(&*bench.token, &made.key, spec.usage).unwrap();
        handle.work(&bench.call).unwrap();
    }
    Ok(())
}
