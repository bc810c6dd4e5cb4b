//! Which keys are destroyed, and which are left alone.

use claviger_token::{
    Algorithm, Call, Deletion, Error, KeyRef, KeySpec, SlotId, Token, possession,
};
use claviger_virtual_yubikey::{
    Algorithm as CardAlgorithm, Card, Device, Fault, Firmware, PrivateKey, Rule, Slot, Status, ins,
    object,
};

use crate::common::*;
use crate::stage::*;

/// Uses a key for what it is, and checks what comes of it.
fn works(token: &dyn Token, key: &KeyRef) {
    prove(token, key, &call()).unwrap();
}

/// What is run before a key is entered.
fn prove(token: &dyn Token, key: &KeyRef, call: &Call) -> Result<(), Error> {
    let id = &token.info().id;
    match token.signer(key, &Call::unlimited()) {
        Ok(signer) => possession::of_signer(&*signer, id, call),
        Err(Error::Unsupported { .. }) => {
            possession::of_decryptor(&*token.decryptor(key, &Call::unlimited())?, id, call)
        }
        Err(error) => Err(error),
    }
}

#[test]
fn a_key_that_others_made_over_ours_or_over_a_filler_is_not_overwritten() {
    for card in CANNOT_DELETE {
        // GENERATE of a P-256 key, of a P-384 key, and IMPORT of one that wants the PIN
        // each time.
        let by_others = |kind| vec![0, 0x47, 0, 0x82, 5, 0xac, 3, 0x80, 1, kind];
        let elements = PrivateKey::generate(CardAlgorithm::P256).import_elements();
        let data = [&elements[..], &[0xaa, 1, 3]].concat();
        let import = [&[0, 0xfe, 0x11, 0x82, data.len() as u8][..], &data].concat();
        let commands = [by_others(0x11), by_others(0x14), import];
        for (emptied, command) in commands.iter().flat_map(|c| [(false, c), (true, c)]) {
            let device = card();
            let token = open(&Desk::with(&[&device]));
            let key = make(&*token, P256);
            if emptied {
                let deleted = token.delete(&key, &call()).unwrap();
                assert_eq!(deleted, Deletion::Destroyed);
            }
            // Another program makes a key, and leaves our certificate there.
            let send = as_administrator(&device);
            let made = send(command);
            assert!(made.ends_with(&[0x90, 0]) || made[made.len() - 2] == 0x61);
            let theirs = key_in_82(&device);
            let deleted = token.delete(&key, &call()).unwrap();
            match emptied {
                // Ours was gone before.
                true => assert_ne!(deleted, Deletion::Destroyed),
                false => assert_eq!(deleted, Deletion::Foreign),
            }
            let free = token.free_slots(&[P256], &[], &call()).unwrap();
            assert_eq!(free[0].name(), "83");
            assert!(matches!(
                generate(&*token, &key.slot, P256),
                Err(Error::SlotOccupied { .. })
            ));
            assert_eq!(key_in_82(&device), theirs);
        }
    }
}

#[test]
fn a_card_that_refuses_to_overwrite_keeps_the_key_and_one_that_fails_is_asked_again() {
    for card in CANNOT_DELETE {
        let device = card();
        let token = open(&Desk::with(&[&device]));
        let key = make(&*token, P256);
        let before = token.slots(&call()).unwrap();
        let refuse = |status| Rule::new(Fault::Status(Status(status))).on(ins::GENERATE);
        for status in [0x6a80, 0x6a81, 0x6d00] {
            device.faults().add(refuse(status));
            assert!(matches!(
                token.delete(&key, &call()),
                Err(Error::CannotDestroy { .. })
            ));
            assert_eq!(token.slots(&call()).unwrap(), before);
            let signer = token.signer(&key, &Call::unlimited()).unwrap();
            signer.sign(b"message", &call()).unwrap();
        }
        device.faults().add(refuse(0x6f00));
        assert!(matches!(
            token.delete(&key, &call()),
            Err(Error::Device { .. })
        ));
        let deleted = token.delete(&key, &call()).unwrap();
        assert_eq!(deleted, Deletion::Destroyed);
    }
}

#[test]
fn what_others_made_is_never_touched() {
    let first = Slot::new(0x82).unwrap();
    let device = yubikey();
    let desk = Desk::with(&[&device]);
    let token = open(&desk);
    // The process dies before anything is done; somebody else takes the slot.
    let dead = token.free_slots(&[P256], &[], &call()).unwrap().remove(0);
    assert_eq!(dead.name(), "82");
    let other = open(&desk);
    let theirs = make(&*other, P256);
    assert_eq!(theirs.slot.name(), dead.name());
    let before = inventory(&device);
    for (name, expected) in [
        (&dead, Deletion::Foreign),
        (&SlotId::new("82"), Deletion::Foreign),
        (&SlotId::new("83"), Deletion::NothingThere),
    ] {
        assert_eq!(discard(&*token, name).unwrap(), expected);
    }
    assert_eq!(inventory(&device), before);
    let signer = other.signer(&theirs, &Call::unlimited()).unwrap();
    signer.sign(b"message", &call()).unwrap();

    // A key without a certificate, a certificate without a key, something else.
    let key = PrivateKey::generate(CardAlgorithm::P256);
    let card = Card::builder()
        .pin(PIN)
        .imported(first, key)
        .object(
            object::certificate(Slot::new(0x83).unwrap()),
            &[0x70, 0x01, 0x00],
        )
        .object(
            object::certificate(Slot::new(0x84).unwrap()),
            b"something else",
        );
    let device = Device::new(card.build());
    let token = open(&Desk::with(&[&device]));
    let before = inventory(&device);
    let free = token.free_slots(&[P256], &[], &call()).unwrap();
    assert_eq!(free[0].name(), "85");
    for (name, expected) in [
        ("82", Deletion::Foreign),
        ("83", Deletion::NothingThere),
        ("84", Deletion::NothingThere),
    ] {
        assert!(matches!(
            generate(&*token, &SlotId::new(name), P256),
            Err(Error::SlotOccupied { .. })
        ));
        let left = discard(&*token, &SlotId::new(name)).unwrap();
        assert_eq!(left, expected, "{name}");
    }
    assert_eq!(inventory(&device), before);
}

#[test]
fn a_key_that_lost_its_certificate_is_used_and_destroyed_and_by_its_slot_alone_left_alone() {
    for card in CANNOT_DELETE.into_iter().chain([yubikey as fn() -> Device]) {
        for spec in [P256, KeySpec::decrypt(Algorithm::P256)] {
            for loss in losses(&card()) {
                let device = card();
                let desk = Desk::with(&[&device]);
                let token = open(&desk);
                let key = make(&*token, spec);
                let ours = key_in_82(&device);
                put_object(&device, 0x82, &loss);
                // It may be another's by now.
                assert_eq!(discard(&*token, &key.slot).unwrap(), Deletion::Foreign);
                assert_eq!(key_in_82(&device), ours);
                drop(token);
                let token = open(&desk);
                works(&*token, &key);
                assert_eq!(token.delete(&key, &call()).unwrap(), Deletion::Destroyed);
                assert!(key_in_82(&device) != ours);
                let again = token.delete(&key, &call()).unwrap();
                assert_eq!(again, Deletion::NothingThere);
                let again = discard(&*token, &key.slot).unwrap();
                assert_eq!(again, Deletion::NothingThere);
                let free = token.free_slots(&[P256], &[], &call()).unwrap();
                assert_eq!(free[0].name(), "82");
            }
        }
    }
}

#[test]
fn the_key_of_others_where_ours_was_is_never_destroyed_by_its_name() {
    for card in CANNOT_DELETE.into_iter().chain([yubikey as fn() -> Device]) {
        let by_others = |kind| vec![0, 0x47, 0, 0x82, 5, 0xac, 3, 0x80, 1, kind];
        let elements = PrivateKey::generate(CardAlgorithm::P256).import_elements();
        let import = [&[0, 0xfe, 0x11, 0x82, elements.len() as u8][..], &elements].concat();
        for command in [by_others(0x11), by_others(0x14), import.clone()] {
            let device = card();
            let token = open(&Desk::with(&[&device]));
            let key = make(&*token, P256);
            put_object(&device, 0x82, &[]);
            let made = as_administrator(&device)(&command);
            assert!(made.ends_with(&[0x90, 0]) || made[made.len() - 2] == 0x61);
            let theirs = key_in_82(&device);
            let deleted = token.delete(&key, &call()).unwrap();
            assert_eq!(deleted, Deletion::Foreign);
            assert_eq!(discard(&*token, &key.slot).unwrap(), Deletion::Foreign);
            assert_eq!(key_in_82(&device), theirs);
        }
    }
}

#[test]
fn a_key_that_claviger_did_not_make_is_not_destroyed_though_it_is_known() {
    for firmware in [Firmware::V5_7_1, Firmware::V5_4_3] {
        let first = Slot::new(0x82).unwrap();
        let card = Card::builder().firmware(firmware).pin(PIN);
        let device = Device::new(card.generated(first, CardAlgorithm::P256).build());
        let token = open(&Desk::with(&[&device]));
        let slots = token.slots(&call()).unwrap();
        let theirs = slots.into_iter().find(|s| s.slot.as_str() == "82");
        let key = theirs.unwrap().key_ref().unwrap();
        let before = key_in_82(&device);
        let deleted = token.delete(&key, &call());
        assert_eq!(deleted.unwrap(), Deletion::Foreign);
        assert_eq!(key_in_82(&device), before);
    }
}

#[test]
fn a_card_that_refuses_to_overwrite_keeps_the_certificate_of_others() {
    for card in CANNOT_DELETE {
        let device = card();
        let token = open(&Desk::with(&[&device]));
        let key = make(&*token, P256);
        for loss in losses(&device) {
            put_object(&device, 0x82, &loss);
            let object = object::certificate(Slot::new(0x82).unwrap());
            let before = device.card().object(object).map(<[u8]>::to_vec);
            let refuse = Rule::new(Fault::Status(Status(0x6a81))).on(ins::GENERATE);
            device.faults().add(refuse);
            assert!(matches!(
                token.delete(&key, &call()),
                Err(Error::CannotDestroy { .. })
            ));
            assert_eq!(device.card().object(object), before.as_deref());
        }
    }
}
