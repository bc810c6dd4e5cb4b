//! What happens to devices that are somebody's: virtual cards, treated as real ones.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::fs;

use claviger_hil::config::Config;
use claviger_hil::results::{Finding, Outcome, Standing};
use claviger_hil::screen::Interrupt;
use claviger_hil::virtuals::Tray;
use claviger_piv::PivDriver;
use claviger_token::{Call, Driver as _, KeyRef, KeySpec, NewKey, SlotId, unfinished_mark};
use claviger_virtual_yubikey::{
    Algorithm, Card, Device, Fault, Firmware, Nature, PrivateKey, Rule, Slot, ins, object,
};

use common::{Desk, PIN, failures, outcome, outcomes};

/// Commands that change a card, or cost a try. A VERIFY without a PIN asks how many there
/// are.
fn writes(device: &Device) -> Vec<String> {
    let reads = [
        ins::SELECT,
        ins::GET_RESPONSE,
        ins::GET_DATA,
        ins::GET_METADATA,
        ins::GET_SERIAL,
        ins::ATTEST,
        ins::GET_VERSION,
    ];
    let log = device.faults().log();
    let writes = log.iter().filter(|exchange| match exchange.command[..] {
        [_, ins::VERIFY, _, _] | [_, ins::VERIFY, _, _, 0] => false,
        // The serial, in the OTP application.
        [_, 0x01, 0x10, ..] => false,
        [_, instruction, ..] => !reads.contains(&instruction),
        _ => true,
    });
    writes.map(|exchange| format!("{exchange:?}")).collect()
}

#[test]
fn an_unlisted_card_is_only_read_while_a_listed_one_beside_it_is_benched() {
    let production = Device::new(
        Card::builder()
            .serial(11_111_111)
            .pin(PIN)
            .generated(Slot::AUTHENTICATION, Algorithm::P256)
            .object(object::CHUID, b"somebody's")
            .build(),
    );
    let expendable = Device::new(
        Card::builder()
            .serial(22_222_222)
            .firmware(Firmware::V5_4_3)
            .pin(PIN)
            .generated(Slot::SIGNATURE, Algorithm::P256)
            .build(),
    );
    let before = common::state(&production);
    let kept = common::public(&expendable, Slot::SIGNATURE);

    let desk = Desk::with(&[&production, &expendable]);
    let results = desk.run("[[device]]\nserial = \"22222222\"\n");

    // It was looked at, and nothing else.
    assert!(!production.faults().log().is_empty());
    assert_eq!(writes(&production), [""; 0]);
    assert_eq!(common::state(&production), before);
    let reader = outcomes(&results, "piv-11111111");
    assert_eq!(
        outcome(&results, "piv-11111111", "it_shows_its_slots_without_a_pin"),
        Outcome::Passed
    );
    assert!(reader.iter().all(|(check, outcome, why)| {
        check == "it_shows_its_slots_without_a_pin"
            || (*outcome == Outcome::Skipped && why.contains("not listed"))
    }));
    assert!(results.records().iter().all(|record| {
        record.device() != "piv-11111111"
            || record.device.as_ref().unwrap().standing == Standing::ReadOnly
    }));

    // The other one was put through its paces, and is as it was.
    assert_eq!(failures(&results), [""; 0]);
    assert!(!writes(&expendable).is_empty());
    assert_eq!(outcome(&results, "piv-22222222", FULL), Outcome::Passed);
    assert_eq!(common::public(&expendable, Slot::SIGNATURE), kept);
    for check in ["what_was_there_is_still_there", "nothing_is_left_behind"] {
        assert_eq!(
            outcome(&results, "piv-22222222", check),
            Outcome::Passed,
            "{check}"
        );
    }
    assert_eq!(expendable.card().pin_tries(), 3);
    // Nobody allowed a wrong PIN.
    assert_eq!(
        outcome(&results, "piv-22222222", "a_refused_pin_is_not_sent_twice"),
        Outcome::Skipped
    );
}

/// One that is nobody's YubiKey, and has slots up to this one.
fn of_others(serial: u32, last_retired: u8) -> Device {
    let nature = Nature {
        last_retired,
        ..Nature::CANOKEY
    };
    let card = Card::builder().firmware(Firmware::PIVAPPLET).nature(nature);
    Device::new(card.serial(serial).pin(PIN).build())
}

#[test]
fn a_card_with_fewer_slots_than_it_shows_is_benched_in_those_that_it_has() {
    let card = of_others(33_333_333, 0x8b);
    let desk = Desk::with(&[&card]).only_checks(&[LIVES, FULL]);
    let results = desk.run("[[device]]\nserial = \"33333333\"\n");
    assert_eq!(failures(&results), [""; 0]);
    for check in [LIVES, FULL] {
        assert_eq!(outcome(&results, "piv-33333333", check), Outcome::Passed);
    }
    // Where there is no room for the suite, how much there is.
    let small = of_others(44_444_444, 0x83);
    let desk = Desk::with(&[&small]).only_checks(&[LIVES]);
    let results = desk.run("[[device]]\nserial = \"44444444\"\n");
    let said = failures(&results).join("; ");
    assert!(said.contains("there is room for 2;"), "{said}");
}

const FOUND: &str = "a_token_is_found_by_the_name_that_it_gives";
const LIVES: &str = "a_key_lives_from_generate_to_delete";
const FULL: &str = "a_full_token_says_so";
const WRONG_PIN: &str = "a_refused_pin_is_not_sent_twice";

#[test]
fn two_devices_with_the_same_serial_are_both_only_read() {
    let twins = [(); 2].map(|()| Device::new(Card::builder().serial(7).pin(PIN).build()));
    let desk = Desk::with(&[&twins[0], &twins[1]]);
    let results = desk.run("[[device]]\nserial = \"7\"\n");
    for twin in &twins {
        assert_eq!(writes(twin), [""; 0]);
    }
    let said = failures(&results);
    assert!(
        said.iter()
            .all(|why| why.contains("another device has this serial")),
        "{said:?}"
    );
    assert_eq!(said.len(), 2);
}

#[test]
fn a_serial_that_is_not_plugged_in_is_said_and_the_others_run() {
    let card = Device::new(
        Card::builder()
            .serial(8)
            .firmware(Firmware::V4_3_5)
            .pin(PIN)
            .build(),
    );
    let desk = Desk::with(&[&card]).only_checks(&[LIVES]);
    let results =
        desk.run("[[device]]\nserial = \"9\"\nname = \"nine\"\n[[device]]\nserial = \"8\"\n");
    assert_eq!(
        outcome(&results, "nine", "it_is_plugged_in"),
        Outcome::Failed
    );
    assert!(failures(&results)[0].contains("not plugged in"));
    assert_eq!(outcome(&results, "piv-8", LIVES), Outcome::Passed);
}

#[test]
fn a_card_that_is_full_or_locked_or_near_to_it_is_left_alone() {
    let mut full = Card::builder().serial(1).pin(PIN);
    for reference in 0x82..=0x95 {
        let key = PrivateKey::generate(Algorithm::P256);
        full = full.imported(Slot::new(reference).unwrap(), key);
    }
    let full = Device::new(full.build());
    let locked = Device::new(Card::builder().serial(2).pin(PIN).build());
    locked.card().block_pin();
    let near = Device::new(Card::builder().serial(3).pin(PIN).tries(1, 3).build());
    let foreign = Device::new(Card::builder().serial(4).pin("975310").build());

    let devices = [&full, &locked, &near, &foreign];
    let before = devices.map(common::state);
    let desk = Desk::with(&devices);
    let listed: String = (1..=4)
        .map(|n| format!("[[device]]\nserial = \"{n}\"\n"))
        .collect();
    let results = desk.run(&listed);
    for (name, words) in [
        ("piv-1", "too full"),
        ("piv-2", "locked"),
        ("piv-3", "one PIN attempt remaining"),
        ("piv-4", "rejected the PIN"),
    ] {
        let all = outcomes(&results, name);
        let (_, outcome, why) = all
            .iter()
            .find(|(c, ..)| c == "it_opens_and_has_room")
            .unwrap();
        assert_eq!(*outcome, Outcome::Failed);
        assert!(why.contains(words), "{name}: {why}");
        assert!(
            all.iter().filter(|(_, o, _)| *o == Outcome::Failed).count() == 1,
            "{name}"
        );
    }
    // The last one lost a try, once.
    assert_eq!(foreign.card().pin_tries(), 2);
    assert_eq!(devices.map(common::state)[..3], before[..3]);
}

#[test]
fn a_card_that_is_pulled_out_half_way_is_tidied_up_by_the_next_run() {
    let card = Device::new(
        Card::builder()
            .serial(5)
            .firmware(Firmware::V5_4_3)
            .pin(PIN)
            .generated(Slot::SIGNATURE, Algorithm::P256)
            .build(),
    );
    let desk = Desk::with(&[&card]).only_checks(&[LIVES, FULL]);
    // While the third key is made. The first showed that the card has a slot 95; it and the
    // second were overwritten when they were deleted.
    let pull = Rule::new(Fault::RemoveAfter).on(ins::GENERATE).after(4);
    card.faults().add(pull);
    let results = desk.run("[[device]]\nserial = \"5\"\n");
    let why = failures(&results).join("\n");
    assert!(why.contains("may be left on it"), "{why}");
    assert!(
        outcomes(&results, "piv-5")
            .iter()
            .any(|(_, _, why)| why == "the device was unplugged")
    );
    let note = desk.out().join("left-behind.json");
    assert!(fs::read_to_string(&note).unwrap().contains("\"5\""));
    assert!(card.card().occupied().len() > 1);

    desk.trays.0[0].put_in();
    let results = desk.run("[[device]]\nserial = \"5\"\n");
    assert_eq!(failures(&results), [""; 0]);
    assert!(!note.exists());
    assert!(card.card().key(Slot::SIGNATURE).is_some());
    assert_eq!(
        outcome(&results, "piv-5", "nothing_is_left_behind"),
        Outcome::Passed
    );
}

#[test]
fn endurance_ends_when_the_device_is_gone() {
    let card = Device::new(
        Card::builder()
            .serial(30)
            .firmware(Firmware::V4_3_5)
            .pin(PIN)
            .build(),
    );
    let mut desk = Desk::with(&[&card]).only_checks(&[FOUND]);
    desk.measure = true;
    desk.times.each = 0.005;
    desk.times.endurance = 600.0;
    // More than the other figures take.
    let pull = Rule::new(Fault::RemoveAfter).on(ins::AUTHENTICATE);
    card.faults().add(pull.after(10_000));
    let results = desk.run("[[device]]\nserial = \"30\"\n");
    let ended = results
        .records()
        .iter()
        .find_map(|record| match &record.finding {
            Finding::Endurance {
                errors, seconds, ..
            } => Some((errors.clone(), *seconds)),
            _ => None,
        });
    let (errors, seconds) = ended.unwrap();
    assert!(seconds < 300.0, "{seconds}");
    assert_eq!(errors.last().unwrap().0, "the device is gone");
    assert!(failures(&results).join("\n").contains("may be left on it"));
}

#[test]
fn ctrl_c_leaves_the_card_clean_and_a_partial_report() {
    let card = Device::new(
        Card::builder()
            .serial(6)
            .firmware(Firmware::V5_4_3)
            .pin(PIN)
            .build(),
    );
    let desk = Desk::with(&[&card]).only_checks(&[FOUND, LIVES, FULL]);
    let interrupt = Interrupt::default();
    // While the third key is made, as above.
    let pressed = interrupt.clone();
    let press = Fault::alter(move |reply| {
        pressed.set();
        reply
    });
    card.faults()
        .add(Rule::new(press).on(ins::GENERATE).after(4));
    let results = desk.run_with("[[device]]\nserial = \"6\"\n", &interrupt);
    assert_eq!(failures(&results), [""; 0]);
    let all = outcomes(&results, "piv-6");
    assert!(
        all.iter()
            .any(|(_, outcome, why)| *outcome == Outcome::Skipped && why == "interrupted")
    );
    assert!(
        all.iter()
            .any(|(check, outcome, _)| { check == FOUND && *outcome == Outcome::Passed })
    );
    assert_eq!(
        outcome(&results, "piv-6", "nothing_is_left_behind"),
        Outcome::Passed
    );
    assert!(!desk.out().join("left-behind.json").exists());
    let ends = results.records().last().unwrap();
    assert!(matches!(
        ends.finding,
        Finding::End {
            complete: false,
            ..
        }
    ));
    let page = claviger_hil::report::html::page(results.records());
    assert!(page.contains("interrupted"));
}

#[test]
fn keys_of_others_stay_even_where_the_device_may_be_wiped() {
    // The driver destroys no key that it did not make.
    let card = Device::new(
        Card::builder()
            .serial(10)
            .firmware(Firmware::V5_4_3)
            .pin(PIN)
            .generated(Slot::SIGNATURE, Algorithm::P256)
            .build(),
    );
    let desk = Desk::with(&[&card]).only_checks(&[LIVES, WRONG_PIN]);
    let kept = common::public(&card, Slot::SIGNATURE);
    let results = desk.run("[[device]]\nserial = \"10\"\nwipe = true\nwrong-pin = true\n");
    assert_eq!(failures(&results), [""; 0]);
    assert_eq!(common::public(&card, Slot::SIGNATURE), kept);
    // Here a wrong PIN was allowed.
    assert_eq!(outcome(&results, "piv-10", WRONG_PIN), Outcome::Passed);
    assert_eq!(card.card().pin_tries(), 3);
}

#[test]
fn keys_that_claviger_made_go_where_the_device_may_be_wiped() {
    let card = Device::new(
        Card::builder()
            .serial(12)
            .firmware(Firmware::V5_4_3)
            .pin(PIN)
            .generated(Slot::SIGNATURE, Algorithm::P256)
            .build(),
    );
    let desk = Desk::with(&[&card]).only_checks(&[FOUND]);
    let driver = PivDriver::with_readers(desk.trays.clone());
    let call = Call::unlimited().using(desk.access());
    let token = driver.open("piv:", &call);
    let token = token.unwrap();
    let spec = KeySpec::sign(claviger_token::Algorithm::P256);
    let slot = SlotId::new("82");
    let new = NewKey {
        slot: &slot,
        spec,
        mark: &unfinished_mark(),
    };
    let made = token.generate(&new, &call).unwrap();
    let key = KeyRef {
        slot,
        public_key: made.public_key,
    };
    token.name(&key, "ours", &call).unwrap();
    drop(token);

    let kept = common::public(&card, Slot::SIGNATURE);
    let key = |card: &Device| card.card().key(Slot::new(0x82).unwrap()).map(|k| k.spki());
    let made = key(&card).unwrap();
    // It stays where nobody allowed that.
    let results = desk.run("[[device]]\nserial = \"12\"\n");
    assert_eq!(failures(&results), [""; 0]);
    assert_eq!(key(&card), Some(made.clone()));
    let results = desk.run("[[device]]\nserial = \"12\"\nwipe = true\n");
    assert_eq!(failures(&results), [""; 0]);
    // A card that cannot delete has another key there.
    assert_ne!(key(&card), Some(made));
    assert_eq!(common::public(&card, Slot::SIGNATURE), kept);
}

#[test]
fn a_note_that_names_a_place_alone_deletes_nothing_and_says_who_has_to_look() {
    let place = Slot::new(0x82).unwrap();
    let card = Device::new(
        Card::builder()
            .serial(13)
            .firmware(Firmware::V5_4_3)
            .pin(PIN)
            .generated(place, Algorithm::P256)
            .build(),
    );
    let desk = Desk::with(&[&card]).only_checks(&[FOUND, LIVES]);
    let kept = common::public(&card, place);
    fs::create_dir_all(desk.out()).unwrap();
    let note = desk.out().join("left-behind.json");
    // As versions without marks wrote it.
    let old = r#"[{"token":{"kind":"piv","manufacturer":"Yubico","serial":"13"},"slot":"82"}]"#;
    fs::write(&note, old).unwrap();
    let run = || desk.run("[[device]]\nserial = \"13\"\n");

    let results = run();
    let said = failures(&results);
    assert_eq!(said.len(), 1, "{said:?}");
    for words in ["slot 82", "earlier version", "left-behind.json"] {
        assert!(said[0].contains(words), "{}", said[0]);
    }
    assert_eq!(common::public(&card, place), kept);
    assert!(note.exists());
    assert_eq!(outcome(&results, "piv-13", LIVES), Outcome::Passed);

    // Once somebody has deleted it, there is nothing to be said.
    card.card().remove_key(place);
    assert_eq!(failures(&run()), [""; 0]);
    assert!(!note.exists());
}

#[test]
fn reports_that_cannot_be_written_are_found_before_a_device_is_asked_for_anything() {
    let card = Device::new(Card::builder().serial(6).pin(PIN).build());
    let desk = Desk::with(&[&card]);
    for name in ["results.jsonl", "report.html"] {
        let out = desk.out();
        let _ = fs::remove_dir_all(&out);
        fs::create_dir_all(out.join(name)).unwrap();
        let error = desk.try_run("[[device]]\nserial = \"6\"\n").err().unwrap();
        assert!(error.to_string().contains(name), "{error}");
        assert!(error.hint().contains("--out"));
    }
    assert!(card.faults().log().is_empty());
}

#[test]
fn a_name_that_is_nobodys_is_refused_with_the_names_there_are() {
    let card = Device::new(Card::builder().serial(6).pin(PIN).build());
    let mut desk = Desk::with(&[&card]);
    desk.only = vec!["yubikey".into()];
    let error = desk.try_run("").err().unwrap();
    assert!(error.hint().contains("piv-6"), "{}", error.hint());
}

#[test]
fn a_mistyped_name_leaves_the_last_report_as_it_was() {
    let card = Device::new(Card::builder().serial(6).pin(PIN).build());
    let mut desk = Desk::with(&[&card]).only_checks(&[FOUND]);
    let results = desk.run("");
    claviger_hil::report::write(&desk.out(), results.records()).unwrap();
    let out = desk.out();
    let reports = || {
        let names = ["results.jsonl", "junit.xml", "report.html"];
        names.map(|name| fs::read_to_string(out.join(name)).unwrap())
    };
    let before = reports();
    desk.only = vec!["yubikey".into()];
    assert!(desk.try_run("").is_err());
    desk.only.clear();
    desk.checks = vec!["nothing".into()];
    assert!(desk.try_run("").is_err());
    assert_eq!(reports(), before);

    // Where there was no report, there is none after.
    let mut fresh = Desk::with(&[&card]).only_checks(&[FOUND]);
    fresh.only = vec!["yubikey".into()];
    assert!(fresh.try_run("").is_err());
    assert_eq!(fs::read_dir(fresh.out()).unwrap().count(), 0);
}

#[test]
fn ctrl_c_fails_none_of_the_devices_that_come_after() {
    let cards = [20, 21].map(|serial| {
        let card = Card::builder().serial(serial).firmware(Firmware::V5_4_3);
        Device::new(card.pin(PIN).build())
    });
    let desk = Desk::with(&[&cards[0], &cards[1]]).only_checks(&[FOUND, LIVES]);
    let interrupt = Interrupt::default();
    let pressed = interrupt.clone();
    let press = Fault::alter(move |reply| {
        pressed.set();
        reply
    });
    cards[0].faults().add(Rule::new(press).on(ins::GENERATE));
    let results = desk.run_with(
        "[[device]]\nserial = \"20\"\n[[device]]\nserial = \"21\"\n",
        &interrupt,
    );
    assert_eq!(failures(&results), [""; 0]);
    let second = outcomes(&results, "piv-21");
    assert!(!second.is_empty());
    assert!(
        second
            .iter()
            .all(|(_, outcome, why)| *outcome == Outcome::Skipped && why == "interrupted"),
        "{second:?}"
    );
    assert_eq!(writes(&cards[1]), [""; 0]);
}

#[test]
fn a_missing_configuration_says_what_to_do() {
    let error = Config::read("/no/such/hil.toml".as_ref()).unwrap_err();
    assert!(error.to_string().contains("/no/such/hil.toml"));
    assert!(error.hint().contains("hil.example.toml"));
}

/// A reader is no device: a tray is seen through its card.
#[test]
fn an_empty_reader_is_nothing() {
    let card = Device::new(Card::builder().serial(6).pin(PIN).build());
    let desk = Desk::with(&[&card]);
    let tray: &Tray = &desk.trays.0[0];
    tray.take_out();
    let results = desk.run("");
    assert!(
        results
            .records()
            .iter()
            .all(|record| record.device.is_none())
    );
}
