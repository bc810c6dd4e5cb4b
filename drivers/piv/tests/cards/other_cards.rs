//! Cards that are not Yubico's, or not as they should be: each kind was seen.

use std::sync::Arc;

use crate::common::{Desk, PIN, access, call, plain_card, visible};
use claviger_token::{
    Access, Algorithm, Call, Deletion, Detail, Driver, Error, FixedPin, GeneratedKey, KeyRef,
    KeySpec, KeyUse, NewKey, SlotId, SlotState, Token, Unfinished, possession, unfinished_mark,
};
use claviger_virtual_yubikey::{
    Algorithm as CardAlgorithm, Builder, Card, Device, Fault, Firmware, Nature, Origin, PinPolicy,
    PrivateKey, Rule, Slot, Status, TouchPolicy, ins, object,
};

const P256: KeySpec = KeySpec::sign(Algorithm::P256);

fn card(firmware: Firmware, nature: Nature) -> Device {
    Device::new(builder(firmware, nature).build())
}

fn builder(firmware: Firmware, nature: Nature) -> Builder {
    Card::builder().firmware(firmware).nature(nature).pin(PIN)
}

fn canokey() -> Device {
    card(Firmware::CANOKEY, Nature::CANOKEY)
}

fn pivapplet() -> Device {
    card(Firmware::PIVAPPLET, Nature::PIVAPPLET)
}

fn pico() -> Device {
    card(Firmware::PICO, Nature::PICO)
}

fn open(desk: &Desk) -> Arc<dyn Token> {
    desk.driver().open("piv:", &call().using(access())).unwrap()
}

fn generate(token: &dyn Token, slot: &SlotId, spec: KeySpec) -> Result<GeneratedKey, Error> {
    let mark = &unfinished_mark();
    token.generate(&NewKey { slot, spec, mark }, &call())
}

fn free(token: &dyn Token, spec: KeySpec) -> SlotId {
    token.free_slots(&[spec], &[], &call()).unwrap().remove(0)
}

/// Makes a key, proves it and names it, as a node does.
fn make(token: &dyn Token, spec: KeySpec) -> Result<KeyRef, Error> {
    let slot = free(token, spec);
    let public_key = generate(token, &slot, spec)?.public_key;
    let key = KeyRef { slot, public_key };
    prove(token, &key, spec.usage)?;
    token.name(&key, "alice", &call())?;
    Ok(key)
}

fn prove(token: &dyn Token, key: &KeyRef, usage: KeyUse) -> Result<(), Error> {
    let id = &token.info().id;
    match usage {
        KeyUse::Sign => {
            possession::of_signer(&*token.signer(key, &Call::unlimited())?, id, &call())
        }
        KeyUse::Decrypt => {
            possession::of_decryptor(&*token.decryptor(key, &Call::unlimited())?, id, &call())
        }
    }
}

fn left(slot: &SlotId, key: Option<&KeyRef>) -> Unfinished {
    Unfinished {
        slot: slot.clone(),
        mark: unfinished_mark(),
        public_key: key.map(|key| key.public_key.clone()),
    }
}

fn slot(reference: u8) -> Slot {
    Slot::new(reference).unwrap()
}

fn spki(device: &Device, reference: u8) -> Option<Vec<u8>> {
    device.card().key(slot(reference)).map(PrivateKey::spki)
}

fn note<'a>(notes: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let mut found = notes.iter().filter(|(n, _)| n == name);
    found.next().map(|(_, value)| value.as_str())
}

#[test]
fn a_card_is_yubicos_by_its_root_and_not_by_its_version() {
    let yubikey = Device::new(Card::builder().pin(PIN).build());
    let desk = Desk::with(&[&yubikey]);
    let found = desk
        .driver()
        .tokens("piv:", &Call::unlimited())
        .unwrap()
        .remove(0);
    assert_eq!(found.model, "YubiKey 5.7.1");
    assert_eq!(found.untried, []);
    let stranger = desk.driver_that_trusts_nobody();
    let unknown = stranger
        .tokens("piv:", &Call::unlimited())
        .unwrap()
        .remove(0);
    // Named the same, so that what is known of it stays its own.
    assert_eq!(unknown.id, found.id);

    for device in [
        canokey(),
        pivapplet(),
        pico(),
        card(Firmware::V5_7_1, Nature::WITHOUT_AGREEMENT),
        Device::new(Card::builder().of_another_maker().build()),
    ] {
        let desk = Desk::with(&[&device]);
        let found = desk
            .driver()
            .tokens("piv:", &Call::unlimited())
            .unwrap()
            .remove(0);
        assert!(!found.model.contains("YubiKey"), "{}", found.model);
        assert_eq!(found.untried, found.uses, "nothing was tried");
        assert!(!found.remembered_as.is_empty());
        let slots = visible(&desk.driver(), &found).unwrap();
        let retired = slots.iter().find(|s| s.slot.as_str() == "82").unwrap();
        assert_eq!(note(&retired.notes, "slot"), Some("not tried"));
        // Nothing was written to find out.
        for writing in [ins::PUT_DATA, ins::GENERATE, ins::MOVE_KEY, ins::IMPORT] {
            assert_eq!(device.faults().count(writing), 0);
        }
    }
}

#[test]
fn an_open_token_knows_what_it_is_before_a_key_is_tried_on_it_though_nobody_listed_it() {
    let yubikey = Device::new(Card::builder().pin(PIN).build());
    let attestation_certificate = |device: &Device| {
        let log = device.faults().log();
        let reads = |command: &[u8]| command.ends_with(&[0x5c, 0x03, 0x5f, 0xff, 0x01, 0x00]);
        log.iter().filter(|e| reads(&e.command)).count()
    };
    let desk = Desk::with(&[&yubikey]);
    let token = open(&desk);
    let slot = free(&*token, P256);
    assert_eq!(attestation_certificate(&yubikey), 0);
    generate(&*token, &slot, P256).unwrap();
    let info = token.info();
    assert_eq!(info.model, "YubiKey 5.7.1");
    assert_eq!((info.untried.len(), &*info.remembered_as), (0, ""));
    // To see whose it is, and for the attestation of the key.
    assert_eq!(attestation_certificate(&yubikey), 2);
    token.slots(&call()).unwrap();
    assert_eq!(attestation_certificate(&yubikey), 2);
    drop(token);
    // For an adoption the slots are listed.
    let again = open(&Desk::with(&[&yubikey]));
    again.slots(&call()).unwrap();
    assert_eq!(again.info().untried, []);
    let other = open(&Desk::with(&[&canokey()]));
    other.slots(&call()).unwrap();
    assert_eq!(other.info().untried, other.info().uses);
}

#[test]
fn every_card_makes_uses_and_destroys_the_keys_that_it_can() {
    let cards: [fn() -> Device; 6] = [
        canokey,
        pivapplet,
        pico,
        || card(Firmware::V5_7_1, Nature::WITHOUT_AGREEMENT),
        || card(Firmware::V5_7_1, Nature::BROKEN_ED25519),
        plain_card,
    ];
    for device in cards {
        let device = device();
        let desk = Desk::with(&[&device]);
        for algorithm in [Algorithm::P256, Algorithm::P384] {
            let token = open(&desk);
            let key = make(&*token, KeySpec::sign(algorithm)).unwrap();
            assert_eq!(key.slot.name(), "82");
            drop(token);
            let token = open(&desk);
            prove(&*token, &key, KeyUse::Sign).unwrap();
            let listed = token.slots(&call()).unwrap();
            let listed = listed.iter().find(|s| key.slot.is_in(&s.slot)).unwrap();
            assert_eq!(listed.public_key.as_ref(), Some(&key.public_key));
            assert_eq!(listed.label, "alice");
            let ours = spki(&device, 0x82);
            assert_eq!(token.delete(&key, &call()).unwrap(), Deletion::Destroyed);
            assert_ne!(spki(&device, 0x82), ours);
            let again = token.delete(&key, &call()).unwrap();
            assert_eq!(again, Deletion::NothingThere);
            assert_eq!(free(&*token, P256).name(), "82");
        }
    }
}

#[test]
fn a_slot_that_the_card_does_not_have_is_said_and_leaves_nothing() {
    let device = canokey();
    let token = open(&Desk::with(&[&device]));
    let [first, second] = [0, 1].map(|_| make(&*token, P256).unwrap());
    assert_eq!(second.slot.name(), "83");
    let third = free(&*token, P256);
    assert_eq!(third.name(), "84");
    let before = device.card().occupied();
    match generate(&*token, &third, P256) {
        Err(Error::NoSuchSlot { slot, .. }) => assert_eq!(slot, "84"),
        other => panic!("{other:?}"),
    }
    assert_eq!(device.card().occupied(), before);
    // Whoever remembers what is not there is told what is left.
    let taken: Vec<SlotId> = (0x84..=0x95)
        .map(|n| SlotId::new(format!("{n:x}")))
        .collect();
    match token.free_slots(&[P256], &taken, &call()) {
        Err(error @ Error::OnlyNamedSlots { .. }) => {
            assert!(error.to_string().contains("9a, 9c, 9d, 9e"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(token.delete(&first, &call()).unwrap(), Deletion::Destroyed);
    let free = token.free_slots(&[P256], &taken, &call()).unwrap();
    assert_eq!(free[0].name(), "82");
}

#[test]
fn a_kind_of_key_that_the_card_does_not_make_is_said_and_leaves_nothing() {
    let device = canokey();
    let token = open(&Desk::with(&[&device]));
    let spec = KeySpec::sign(Algorithm::Rsa4096);
    assert!(token.info().untried.contains(&spec));
    let slot = free(&*token, spec);
    let refused = generate(&*token, &slot, spec);
    assert!(
        matches!(refused, Err(Error::Unsupported { wanted, .. }) if wanted == spec),
        "{refused:?}"
    );
    assert_eq!(free(&*token, P256).name(), "82");
    assert_eq!(
        device.card().object(object::certificate(self::slot(0x82))),
        None
    );
}

#[test]
fn a_key_that_does_not_do_what_it_is_for_shows_when_it_is_tried() {
    let tried = [
        (Nature::WITHOUT_AGREEMENT, KeySpec::decrypt(Algorithm::P256)),
        (
            Nature::WITHOUT_AGREEMENT,
            KeySpec::decrypt(Algorithm::X25519),
        ),
        (Nature::BROKEN_ED25519, KeySpec::sign(Algorithm::Ed25519)),
    ];
    for (nature, spec) in tried {
        let device = card(Firmware::V5_7_1, nature);
        let token = open(&Desk::with(&[&device]));
        let slot = free(&*token, spec);
        let public_key = generate(&*token, &slot, spec).unwrap().public_key;
        let key = KeyRef { slot, public_key };
        let proven = prove(&*token, &key, spec.usage);
        assert!(
            matches!(
                proven,
                Err(Error::NoPossession { .. } | Error::NotUsable { .. })
            ),
            "{spec}: {proven:?}"
        );
        let left = left(&key.slot, Some(&key));
        assert_eq!(token.discard(&left, &call()).unwrap(), Deletion::Destroyed);
        assert_eq!(spki(&device, 0x82), None);
    }
}

#[test]
fn move_key_that_a_card_refuses_falls_back_to_overwriting() {
    for status in [0x6d00, 0x6a86, 0x6a81] {
        let device = Device::new(Card::builder().pin(PIN).build());
        let token = open(&Desk::with(&[&device]));
        let key = make(&*token, P256).unwrap();
        let ours = spki(&device, 0x82);
        let refuse = Rule::new(Fault::Status(Status(status))).on(ins::MOVE_KEY);
        device.faults().add(refuse.always());
        assert_eq!(token.delete(&key, &call()).unwrap(), Deletion::Destroyed);
        let filler = spki(&device, 0x82);
        assert!(filler.is_some() && filler != ours);
        let again = token.delete(&key, &call()).unwrap();
        assert_eq!(again, Deletion::NothingThere);
        assert_eq!(free(&*token, P256).name(), "82");
    }
}

#[test]
fn a_certificate_that_the_card_writes_itself_makes_no_key_foreign() {
    let device = pico();
    let desk = Desk::with(&[&device]);
    let token = open(&desk);
    for spec in [P256, KeySpec::decrypt(Algorithm::X25519)] {
        let slot = free(&*token, spec);
        let public_key = generate(&*token, &slot, spec).unwrap().public_key;
        let key = KeyRef { slot, public_key };
        // The mark is there again: by its name alone what was begun is undone.
        let undone = token.discard(&left(&key.slot, None), &call()).unwrap();
        assert_eq!(undone, Deletion::Destroyed);
        // And the final certificate takes its place.
        let key = make(&*token, spec).unwrap();
        let named = token
            .discard(&left(&key.slot, Some(&key)), &call())
            .unwrap();
        assert_eq!(named, Deletion::Foreign);
        assert_eq!(token.delete(&key, &call()).unwrap(), Deletion::Destroyed);
    }
}

#[test]
fn a_generation_that_dies_anywhere_on_any_card_is_undone_or_said_to_be_left() {
    let cards: [fn() -> Device; 3] = [canokey, pivapplet, pico];
    for (number, device) in cards.into_iter().enumerate() {
        for fault in [Fault::RemoveBefore, Fault::RemoveAfter] {
            let mut left_alone = 0;
            for step in 0..60 {
                let device = device();
                let desk = Desk::with(&[&device]);
                let token = open(&desk);
                let slot = free(&*token, P256);
                device
                    .faults()
                    .add(Rule::new(fault.clone()).after(step).always());
                let made = generate(&*token, &slot, P256);
                device.faults().clear();
                if made.is_ok() {
                    assert!(step > 10, "{step}");
                    break;
                }
                let there = spki(&device, 0x82);
                drop(token);
                // Another process, which knows what was written down before.
                let token = open(&desk);
                let undone = token.discard(&left(&slot, None), &call()).unwrap();
                match undone {
                    Deletion::Destroyed => assert!(there.is_some()),
                    Deletion::NothingThere => assert_eq!(there, None, "{step}"),
                    // The card's own certificate is there, and nothing that shows whose key
                    // it is.
                    Deletion::Foreign => {
                        assert_eq!(number, 2, "{step}");
                        assert_eq!(spki(&device, 0x82), there);
                        left_alone += 1;
                        continue;
                    }
                    Deletion::Derivable => panic!("{undone:?}"),
                }
                assert!(there.is_none() || spki(&device, 0x82) != there, "{step}");
                assert_eq!(free(&*token, P256).name(), slot.name(), "{step}");
            }
            // From GENERATE to the end of the PUT DATA that follows it, which is two commands.
            assert!(left_alone <= 2, "{left_alone}");
        }
    }
}

#[test]
fn a_key_that_another_program_makes_where_a_generation_died_is_left() {
    let cards: [(fn() -> Device, bool); 3] = [(canokey, false), (pivapplet, false), (pico, true)];
    for (device, writes_certificates) in cards {
        let mut seen = 0;
        for step in 0..60 {
            let device = device();
            let desk = Desk::with(&[&device]);
            let token = open(&desk);
            let slot = free(&*token, P256);
            let dies = Rule::new(Fault::RemoveAfter).after(step).always();
            device.faults().add(dies);
            let made = generate(&*token, &slot, P256);
            device.faults().clear();
            drop(token);
            if made.is_ok() {
                break;
            }
            let object = object::certificate(self::slot(0x82));
            let marked = device.card().object(object).map(<[u8]>::to_vec);
            let names_it = spki(&device, 0x82)
                .zip(marked)
                .is_some_and(|(key, mark)| mark.windows(key.len()).any(|part| part == key));
            if !names_it {
                // Not made yet, or of which nothing is known but that a key may be there.
                continue;
            }
            // It makes its key as it would in any slot, and leaves the certificate that is
            // there then.
            let theirs = PrivateKey::generate(CardAlgorithm::P256);
            let spki_of_theirs = theirs.spki();
            let its_own = theirs.certificate_object().unwrap();
            let mut card = device.card();
            card.put_key(self::slot(0x82), theirs, Origin::Generated);
            if writes_certificates {
                card.put_object(object, &its_own).unwrap();
            }
            drop(card);
            let token = open(&desk);
            let undone = token.discard(&left(&slot, None), &call()).unwrap();
            assert_eq!(undone, Deletion::Foreign, "{step}");
            assert_eq!(spki(&device, 0x82), Some(spki_of_theirs), "{step}");
            seen += 1;
        }
        assert!(seen > 0);
    }
}

#[test]
fn the_public_half_that_a_failed_generation_learned_is_used_to_undo_it() {
    let device = pico();
    let token = open(&Desk::with(&[&device]));
    let slot = free(&*token, P256);
    // The mark is written, and the key made; the mark is not written again, nor can the
    // driver tidy up.
    let rule = Rule::new(Fault::Status(Status(0x6f00))).on(ins::PUT_DATA);
    // One PUT DATA is two commands: a certificate is longer than one.
    device.faults().add(rule.after(2).always());
    assert!(generate(&*token, &slot, P256).is_err());
    device.faults().clear();
    assert_eq!(device.faults().count(ins::GENERATE), 1);
    let ours = spki(&device, 0x82);
    assert!(ours.is_some());
    let undone = token.discard(&left(&slot, None), &call()).unwrap();
    assert_eq!(undone, Deletion::Destroyed);
    assert_ne!(spki(&device, 0x82), ours);
    assert_eq!(free(&*token, P256).name(), "82");
}

#[test]
fn a_reader_whose_card_cannot_be_read_is_listed_with_the_reason() {
    let good = Device::new(Card::builder().pin(PIN).build());
    let mute = Device::new(Card::builder().nature(Nature::MUTE).build());
    let nameless = plain_card();
    nameless.card().put_object(object::CHUID, &[]).unwrap();
    let driver = Desk::with(&[&mute, &good, &nameless]).driver();
    let listing = driver
        .look("piv:", Detail::Tokens, &Call::unlimited())
        .unwrap();
    assert_eq!(listing.tokens.len(), 1);
    let reasons: Vec<String> = listing
        .unreadable
        .iter()
        .map(|unreadable| {
            assert!(unreadable.place.starts_with("Reader "));
            unreadable.error.to_string()
        })
        .collect();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(reasons[0].contains("6F00"), "{reasons:?}");
    assert!(reasons[1].contains("CHUID"), "{reasons:?}");
    let driver = Desk::with(&[&mute]).driver();
    match driver.open("piv:", &call().using(access())) {
        Err(Error::NoToken { present, .. }) => {
            assert!(present[0].contains("cannot be read"), "{present:?}");
        }
        other => panic!("{:?}", other.map(drop)),
    }
}

#[test]
fn two_cards_of_one_serial_are_listed_as_two_and_refused() {
    let twins = [(); 2].map(|()| Device::new(Card::builder().serial(7).pin(PIN).build()));
    let driver = Desk::with(&[&twins[0], &twins[1]]).driver();
    let found = driver.tokens("piv:serial=7", &Call::unlimited()).unwrap();
    assert_eq!(found.len(), 2);
    let listed = driver.look("piv:serial=7", Detail::Slots, &Call::unlimited());
    for twin in listed.unwrap().tokens {
        assert_eq!(twin.slots.unwrap().len(), 24);
    }
    let readers: Vec<_> = found
        .iter()
        .filter_map(|t| note(&t.notes, "reader"))
        .collect();
    assert_eq!(readers.len(), 2);
    assert_ne!(readers[0], readers[1]);
    match driver.open("piv:serial=7", &call().using(access())) {
        Err(Error::AmbiguousToken { candidates, .. }) => {
            assert!(candidates[0].contains(readers[0]), "{candidates:?}");
            assert!(candidates[1].contains(readers[1]), "{candidates:?}");
        }
        other => panic!("{:?}", other.map(drop)),
    }
    for twin in &twins {
        assert_eq!(
            twin.faults().count(ins::VERIFY),
            0,
            "only asked for the tries"
        );
    }
}

#[test]
fn the_pin_of_a_card_is_not_given_to_its_twin() {
    let [ours, twin] = [(); 2].map(|()| Device::new(Card::builder().serial(7).pin(PIN).build()));
    let desk = Desk::with(&[&ours]);
    let token = open(&desk);
    let key = make(&*token, P256).unwrap();
    let signer = token.signer(&key, &Call::unlimited()).unwrap();
    desk.insert(&twin);
    desk.reset(&ours);
    assert!(matches!(
        signer.sign(b"message", &call()),
        Err(Error::TokenUnavailable { .. })
    ));
    assert_eq!(twin.faults().count(ins::VERIFY), 0);
}

/// Where metadata, or an attestation, do not say what is in a slot.
fn cards_that_show_nothing() -> [Builder; 3] {
    let of = |firmware| Card::builder().firmware(firmware).pin(PIN);
    [
        of(Firmware::V5_2_4),
        of(Firmware::V4_3_5),
        builder(
            Firmware::V5_2_4,
            Nature {
                attests: false,
                ..Nature::YUBIKEY
            },
        ),
    ]
}

#[test]
fn a_stale_certificate_is_shown_as_not_proven_and_proves_nothing() {
    for certified_alone in [false, true] {
        for card in cards_that_show_nothing() {
            let [shown, there] = [0, 1].map(|_| PrivateKey::generate(CardAlgorithm::P256));
            let certificate = shown.certificate_object().unwrap();
            let mut card = card.object(object::certificate(slot(0x82)), &certificate);
            if !certified_alone {
                card = card.imported(slot(0x82), there);
            }
            let device = Device::new(card.build());
            let token = open(&Desk::with(&[&device]));
            let listed = token.slots(&call()).unwrap();
            let listed = listed.iter().find(|s| s.slot.as_str() == "82").unwrap();
            assert_eq!(listed.state, SlotState::Occupied);
            let said = note(&listed.notes, "public_key").unwrap();
            assert!(said.contains("not proven"));
            let key = listed.key_ref().unwrap();
            for usage in [KeyUse::Sign, KeyUse::Decrypt] {
                let proven = prove(&*token, &key, usage);
                assert!(
                    matches!(proven, Err(Error::NoPossession { .. })),
                    "{proven:?}"
                );
            }
        }
    }
}

#[test]
fn a_certificate_that_is_right_stands_for_its_key() {
    for card in cards_that_show_nothing() {
        for algorithm in [CardAlgorithm::P256, CardAlgorithm::Rsa2048] {
            let key = PrivateKey::generate(algorithm);
            let certificate = key.certificate_object().unwrap();
            let card = card
                .clone()
                .object(object::certificate(slot(0x9a)), &certificate)
                .imported(slot(0x9a), key);
            let token = open(&Desk::with(&[&Device::new(card.build())]));
            let listed = token.slots(&call()).unwrap().remove(0);
            let key = listed.key_ref().unwrap();
            prove(&*token, &key, KeyUse::Sign).unwrap();
            // It is not Claviger's.
            assert_eq!(token.delete(&key, &call()).unwrap(), Deletion::Foreign);
        }
    }
}

#[test]
fn a_key_that_was_moved_is_found_used_named_and_destroyed() {
    for (spec, firmware) in [
        (P256, Firmware::V5_7_1),
        (KeySpec::decrypt(Algorithm::X25519), Firmware::V5_7_1),
        (KeySpec::decrypt(Algorithm::P256), Firmware::V5_4_3),
        (P256, Firmware::V5_2_4),
    ] {
        for named in [false, true] {
            let device = Device::new(Card::builder().firmware(firmware).pin(PIN).build());
            let desk = Desk::with(&[&device]);
            let token = open(&desk);
            let slot = free(&*token, spec);
            let public_key = generate(&*token, &slot, spec).unwrap().public_key;
            let key = KeyRef { slot, public_key };
            if named {
                token.name(&key, "alice", &call()).unwrap();
            }
            prove(&*token, &key, spec.usage).unwrap();
            // Others move it, and make a key of their own where it was.
            let theirs = PrivateKey::generate(CardAlgorithm::P256);
            let foreign = theirs.spki();
            {
                let mut card = device.card();
                card.relocate_key(self::slot(0x82), self::slot(0x90));
                card.put_key(self::slot(0x82), theirs, Origin::Generated);
            }
            drop(token);
            let token = open(&desk);
            prove(&*token, &key, spec.usage).unwrap();
            let found = match spec.usage {
                KeyUse::Sign => token.signer(&key, &Call::unlimited()).unwrap().slot(),
                KeyUse::Decrypt => token.decryptor(&key, &Call::unlimited()).unwrap().slot(),
            };
            assert_eq!(found.name(), "90");
            assert_eq!(found.mark(), key.slot.mark(), "it is still Claviger's");
            let deleted = match named {
                true => token.delete(&key, &call()),
                false => token.discard(&left(&key.slot, Some(&key)), &call()),
            };
            let deleted = deleted.unwrap();
            let here = spki(&device, 0x82);
            assert_eq!(here, Some(foreign), "{spec} {firmware:?} {named}");
            assert_eq!(deleted, Deletion::Destroyed, "{spec} {firmware:?} {named}");
        }
    }
}

#[test]
fn a_key_whose_policy_is_never_signs_without_a_pin() {
    let key = PrivateKey::generate(CardAlgorithm::P256);
    let card = Card::builder()
        .pin(PIN)
        .generated(slot(0x9a), CardAlgorithm::P256);
    let never = (Origin::Imported, PinPolicy::Never, TouchPolicy::Never);
    let device = Device::new(card.key(slot(0x82), key, never.0, never.1, never.2).build());
    let driver = Desk::with(&[&device]).driver();
    let token = driver.open("piv:", &Call::unlimited()).unwrap();
    let key = |name: &str| {
        let slots = token.slots(&call()).unwrap();
        let slot = slots.into_iter().find(|s| s.slot.as_str() == name).unwrap();
        slot.key_ref().unwrap()
    };
    prove(&*token, &key("82"), KeyUse::Sign).unwrap();
    let wanting = prove(&*token, &key("9a"), KeyUse::Sign);
    assert!(
        matches!(wanting, Err(Error::PinNeeded { .. })),
        "{wanting:?}"
    );
    // With the PIN it works, and the token is the same.
    let again = driver.open("piv:", &call().using(access())).unwrap();
    prove(&*again, &key("9a"), KeyUse::Sign).unwrap();

    // Where every key wants a PIN, none is no way in.
    let device = Device::new(
        Card::builder()
            .pin(PIN)
            .generated(slot(0x9a), CardAlgorithm::P256)
            .build(),
    );
    let driver = Desk::with(&[&device]).driver();
    assert!(matches!(
        driver.open("piv:", &Call::unlimited()),
        Err(Error::PinNeeded { .. })
    ));
}

#[test]
fn a_blocked_puk_is_said() {
    let device = Device::new(Card::builder().pin(PIN).build());
    let driver = Desk::with(&[&device]).driver();
    let puk_locked = || {
        let found = driver.tokens("piv:", &Call::unlimited()).unwrap().remove(0);
        note(&found.notes, "puk_locked").map(str::to_owned)
    };
    assert_eq!(puk_locked(), None);
    device.card().block_puk();
    assert_eq!(puk_locked().as_deref(), Some("true"));
}

#[test]
fn a_management_key_is_taken_as_people_write_it() {
    let key = "010203040506070801020304050607080102030405060708";
    let spaced: Vec<String> = key
        .as_bytes()
        .chunks(2)
        .map(|c| String::from_utf8(c.into()).unwrap())
        .collect();
    for text in [
        format!("0x{key}"),
        spaced.join(":"),
        spaced.join(" "),
        key.to_uppercase(),
    ] {
        let device = Device::new(Card::builder().pin(PIN).build());
        let access = Access {
            management_keys: Arc::new(FixedPin::new(&text)),
            ..Access::with(FixedPin::new(PIN))
        };
        let call = Call::unlimited().using(access);
        let token = Desk::with(&[&device]).driver().open("piv:", &call).unwrap();
        let (slot, mark) = (free(&*token, P256), &unfinished_mark());
        let (slot, spec) = (&slot, P256);
        let made = token.generate(&NewKey { slot, spec, mark }, &call);
        made.unwrap();
    }
}
