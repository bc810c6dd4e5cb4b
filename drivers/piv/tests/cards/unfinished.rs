//! Generations and deletions that die anywhere.

use std::sync::Arc;

use claviger_token::{Algorithm, Call, Deletion, KeyRef, KeySpec, SlotInfo, Token};
use claviger_virtual_yubikey::{Device, Fault, Rule, Status, object};

use crate::common::*;
use crate::stage::*;

/// Ends the faults of a card, but not its nature.
fn mend(device: &Device) {
    let plain = device.card().object(object::CHUID).is_some();
    device.faults().clear();
    if plain {
        without_extensions(device);
    }
}

/// What a person sees of the slots, without the notes.
fn shown(token: &dyn Token) -> Vec<SlotInfo> {
    let mut slots = token.slots(&call()).unwrap();
    slots.iter_mut().for_each(|slot| slot.notes.clear());
    slots
}

#[test]
fn a_generation_that_dies_anywhere_is_undone_by_its_name() {
    for fault in [Fault::RemoveBefore, Fault::RemoveAfter] {
        for step in 0..40 {
            let device = yubikey();
            let desk = Desk::with(&[&device]);
            let token = open(&desk);
            let before = inventory(&device);
            let slot = token.free_slots(&[P256], &[], &call()).unwrap().remove(0);
            // All commands fail from here on, as if the process had died: the driver's
            // own tidying up does not come through either.
            device
                .faults()
                .add(Rule::new(fault.clone()).after(step).always());
            let made = generate(&*token, &slot, P256);
            device.faults().clear();
            if made.is_ok() {
                assert!(step > 10, "{step}");
                break;
            }
            drop(token);
            let token = open(&desk);
            discard(&*token, &slot).unwrap();
            assert_eq!(inventory(&device), before, "died at step {step}");
            let again = discard(&*token, &slot).unwrap();
            assert_eq!(again, Deletion::NothingThere);
            let free = token.free_slots(&[P256], &[], &call()).unwrap();
            assert_eq!(free[0].name(), slot.name());
        }
    }
}

#[test]
fn a_generation_that_fails_leaves_nothing() {
    for step in 0..40 {
        let device = yubikey();
        let token = open(&Desk::with(&[&device]));
        let before = inventory(&device);
        let slot = token.free_slots(&[P256], &[], &call()).unwrap().remove(0);
        let once = Rule::new(Fault::Status(Status(0x6f00))).after(step);
        device.faults().add(once);
        let made = generate(&*token, &slot, P256);
        device.faults().clear();
        match made {
            Ok(_) => assert!(inventory(&device) != before),
            Err(_) => assert_eq!(inventory(&device), before, "step {step}"),
        }
    }
}

#[test]
fn a_deletion_that_dies_anywhere_is_finished_by_its_name() {
    for fault in [Fault::RemoveBefore, Fault::RemoveAfter] {
        for step in 0..40 {
            let device = yubikey();
            let desk = Desk::with(&[&device]);
            let token = open(&desk);
            let before = inventory(&device);
            let key = make(&*token, P256);
            device
                .faults()
                .add(Rule::new(fault.clone()).after(step).always());
            let deleted = token.delete(&key, &call());
            device.faults().clear();
            drop(token);
            let token = open(&desk);
            token.delete(&key, &call()).unwrap();
            assert_eq!(inventory(&device), before, "died at step {step}");
            if deleted.is_ok() {
                break;
            }
        }
    }
}

#[test]
fn without_a_command_to_delete_a_generation_that_dies_anywhere_is_undone_all_the_same() {
    for card in CANNOT_DELETE {
        for emptied_before in [false, true] {
            for fault in [Fault::RemoveBefore, Fault::RemoveAfter] {
                for step in 0..60 {
                    let device = card();
                    let desk = Desk::with(&[&device]);
                    let token = open(&desk);
                    if emptied_before {
                        let deleted = token.delete(&make(&*token, P256), &call());
                        assert_eq!(deleted.unwrap(), Deletion::Destroyed);
                    }
                    let before = shown(&*token);
                    let filler = key_in_82(&device);
                    assert_eq!(filler.is_some(), emptied_before);
                    let slot = token.free_slots(&[P256], &[], &call()).unwrap().remove(0);
                    assert_eq!(slot.name(), "82");
                    device
                        .faults()
                        .add(Rule::new(fault.clone()).after(step).always());
                    let made = generate(&*token, &slot, P256);
                    mend(&device);
                    if made.is_ok() {
                        assert!(step > 10, "{step}");
                        break;
                    }
                    let left = key_in_82(&device);
                    drop(token);
                    let token = open(&desk);
                    discard(&*token, &slot).unwrap();
                    assert_eq!(shown(&*token), before, "died at step {step}");
                    assert!(left == filler || key_in_82(&device) != left, "{step}");
                    let again = discard(&*token, &slot).unwrap();
                    assert_eq!(again, Deletion::NothingThere);
                    let key = make(&*token, P256);
                    assert_eq!(key.slot.name(), slot.name());
                    let signer = token.signer(&key, &Call::unlimited()).unwrap();
                    signer.sign(b"message", &call()).unwrap();
                }
            }
        }
    }
}

#[test]
fn without_a_command_to_delete_a_deletion_that_dies_anywhere_is_finished_all_the_same() {
    for card in CANNOT_DELETE {
        for spec in [P256, KeySpec::decrypt(Algorithm::P256)] {
            for fault in [Fault::RemoveBefore, Fault::RemoveAfter] {
                for step in 0..60 {
                    let device = card();
                    let desk = Desk::with(&[&device]);
                    let token = open(&desk);
                    let before = shown(&*token);
                    let key = make(&*token, spec);
                    let died = (fault.clone(), step);
                    let (token, is_whole) = delete_and_repeat(&desk, &device, token, &key, died);
                    assert_eq!(shown(&*token), before, "died at step {step}");
                    let free = token.free_slots(&[P256], &[], &call()).unwrap();
                    assert_eq!(free[0].name(), "82");
                    if is_whole {
                        break;
                    }
                }
            }
        }
    }
}

#[test]
fn a_deletion_by_the_key_that_dies_anywhere_leaves_no_key_when_it_is_repeated() {
    for card in CANNOT_DELETE.into_iter().chain([yubikey as fn() -> Device]) {
        for fault in [Fault::RemoveBefore, Fault::RemoveAfter] {
            for step in 0..60 {
                let device = card();
                let desk = Desk::with(&[&device]);
                let token = open(&desk);
                let key = make(&*token, P256);
                put_object(&device, 0x82, &losses(&device)[1]);
                let died = (fault.clone(), step);
                let (_, is_whole) = delete_and_repeat(&desk, &device, token, &key, died);
                if is_whole {
                    break;
                }
            }
        }
    }
}

/// Deletes `key` in slot 82, with a `fault` from the step on at which the deletion dies, and once
/// more when the card is mended. Gives the card as it is open now, and whether the first deletion
/// came to its end before that step.
fn delete_and_repeat(
    desk: &Desk,
    device: &Device,
    token: Arc<dyn Token>,
    key: &KeyRef,
    (fault, step): (Fault, usize),
) -> (Arc<dyn Token>, bool) {
    let ours = key_in_82(device);
    device.faults().add(Rule::new(fault).after(step).always());
    let deleted = token.delete(key, &call());
    mend(device);
    drop(token);
    let token = open(desk);
    let there = key_in_82(device) == ours;
    let repeated = token.delete(key, &call()).unwrap();
    assert!(!there || repeated == Deletion::Destroyed, "{step}");
    assert!(key_in_82(device) != ours, "{step}");
    let again = token.delete(key, &call()).unwrap();
    assert_eq!(again, Deletion::NothingThere, "{step}");
    assert!(deleted.is_err() || step > 10, "{step}");
    (token, deleted.is_ok())
}
