//! What was found on a device stays found: transcripts are replayed, and hold no secrets.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use claviger_hil::HilError;
use claviger_hil::replay::replay;
use claviger_hil::transcript::{self, Line};
use claviger_virtual_yubikey::{Card, Device, Fault, Firmware, Rule, Status, ins};

use common::{Desk, PIN, failures};

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(self::files(&path)),
            false => files.push(path),
        }
    }
    files
}

/// To keep a finding, copy its transcript there.
#[test]
fn every_transcript_that_is_kept_still_holds() {
    let kept = files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("transcripts"));
    assert!(kept.len() >= 5, "{kept:?}");
    for path in kept {
        match replay(&path) {
            Ok(done) => assert!(done.calls > 0, "{}", path.display()),
            Err(error) => panic!("{error}; {}", error.hint()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn what_is_recorded_holds_no_secret_and_replays() {
    let card = Card::builder().serial(57).firmware(Firmware::V5_4_3);
    let device = Device::new(card.pin(PIN).build());
    let mut desk = Desk::with(&[&device]).only_checks(&[
        "a_key_lives_from_generate_to_delete",
        "a_signature_verifies_and_an_altered_message_does_not",
        "a_decryptor_agrees_with_what_its_peer_computes",
        "a_refused_pin_is_not_sent_twice",
        "a_token_that_went_away_works_again_when_it_is_back",
        "eight_threads_sign_at_once",
    ]);
    desk.record = true;
    let results = desk.run("[[device]]\nserial = \"57\"\nwrong-pin = true\n");
    assert_eq!(failures(&results), [""; 0]);

    let recorded = files(&desk.out().join("transcripts"));
    // Threads have no order, and this card cannot be pulled out.
    assert_eq!(recorded.len(), 4);
    let all: String = recorded
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    // Digests are signed as well.
    assert!(all.contains("\"sign_digest\""));
    // What crossed the wire, as the card has seen it.
    let log = device.faults().log();
    let mut secrets = Vec::new();
    for exchange in &log {
        let reply = exchange.reply.clone().unwrap();
        match exchange.command[..] {
            [_, ins::VERIFY, _, _, 8, ref pin @ ..] => secrets.push(pin.to_vec()),
            [_, ins::AUTHENTICATE, _, 0x9b, _, ref data @ ..] => {
                secrets.push(data.get(4..).unwrap_or_default().to_vec());
                secrets.push(reply[4..reply.len() - 2].to_vec());
            }
            // A key agreement with P-256.
            [_, ins::AUTHENTICATE, 0x11, _, _, ref data @ ..] if data.get(4) == Some(&0x85) => {
                secrets.push(reply[4..reply.len().saturating_sub(2).max(4)].to_vec());
            }
            _ => {}
        }
    }
    secrets.retain(|secret| secret.len() >= 8);
    secrets.push(PIN.as_bytes().to_vec());
    secrets.push((1..=8).collect());
    assert!(secrets.len() > 20, "{}", secrets.len());
    for secret in secrets {
        assert!(!all.contains(&hex(&secret)), "{}", hex(&secret));
    }
    assert!(!all.contains(PIN));
    for path in recorded {
        assert!(replay(&path).unwrap().to_the_end);
    }
}

#[test]
fn a_transcript_of_a_failure_replays_as_the_failure_and_shows_when_it_is_another() {
    let card = Card::builder().serial(58).firmware(Firmware::V5_4_3);
    let device = Device::new(card.pin(PIN).build());
    // A card that says nonsense when it signs.
    let nonsense = Rule::new(Fault::Status(Status(0x6f00)))
        .on(ins::AUTHENTICATE)
        .after(12);
    device.faults().add(nonsense);
    let mut desk = Desk::with(&[&device]).only_checks(&["a_key_lives_from_generate_to_delete"]);
    desk.record = true;
    let results = desk.run("[[device]]\nserial = \"58\"\n");
    assert_eq!(failures(&results).len(), 1, "{:?}", failures(&results));
    let recorded = files(&desk.out().join("transcripts"));
    let [path] = &recorded[..] else {
        panic!("{recorded:?}");
    };
    assert_eq!(transcript::read(path).unwrap().0.outcome, "failed");
    replay(path).unwrap();

    // The driver is asked for something else than then; the card says something else.
    let (head, lines) = transcript::read(path).unwrap();
    let altered = desk.out().join("altered.jsonl");
    for (index, line) in lines.iter().enumerate() {
        let mut changed = lines.clone();
        match (&mut changed[index], line) {
            (Line::Done { result }, _) => *result = serde_json::json!({ "ok": "another" }),
            (Line::Command { command, .. }, Line::Command { command: was, .. }) => {
                // What is written is signed anew; the rest must be the same.
                *command = format!("00ee{}", was.get(4..).unwrap_or_default());
            }
            _ => continue,
        }
        if index % 7 == 0 {
            transcript::write(&altered, &head, &changed).unwrap();
            let error = replay(&altered).unwrap_err();
            assert!(matches!(error, HilError::Deviation { .. }), "{error}");
        }
    }
}

/// The driver lets the card go while a person looks for the PIN.
#[test]
fn a_pin_that_came_late_then_or_comes_late_now_makes_no_difference() {
    let card = Card::builder().serial(59).firmware(Firmware::V5_4_3);
    let device = Device::new(card.pin(PIN).build());
    let mut desk = Desk::with(&[&device]).only_checks(&["a_key_lives_from_generate_to_delete"]);
    desk.record = true;
    let results = desk.run("[[device]]\nserial = \"59\"\n");
    assert_eq!(failures(&results), [""; 0]);
    let recorded = files(&desk.out().join("transcripts"));
    let (head, lines) = transcript::read(&recorded[0]).unwrap();
    let is_select =
        |line: &Line| matches!(line, Line::Command { command, .. } if command.starts_with("00a4"));
    let asks_tries =
        |line: &Line| matches!(line, Line::Command { command, .. } if command == "0020008000");
    let pin = lines
        .iter()
        .position(|line| matches!(line, Line::Pin { .. }));
    let pin = pin.unwrap();
    let before = |fits: &dyn Fn(&Line) -> bool| lines[..pin].iter().rposition(fits).unwrap();
    let again = [before(&is_select), before(&asks_tries)].map(|at| lines[at].clone());
    // Whichever of the two was recorded, the other is made of it.
    let mut other = lines.clone();
    match lines[pin + 1..].starts_with(&again) {
        true => drop(other.drain(pin + 1..pin + 3)),
        false => drop(other.splice(pin + 1..pin + 1, again)),
    }
    let path = desk.out().join("other.jsonl");
    transcript::write(&path, &head, &other).unwrap();
    for path in [&recorded[0], &path] {
        assert!(replay(path).unwrap().to_the_end);
    }
}

#[test]
fn what_is_no_transcript_of_a_card_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    for text in [
        "",
        "{}",
        r#"{"transcript":2,"check":"","outcome":"","kind":"piv","device":"","firmware":"","claviger":""}"#,
        r#"{"transcript":1,"check":"","outcome":"","kind":"ledger","device":"","firmware":"","claviger":""}"#,
    ] {
        fs::write(&path, text).unwrap();
        let error = replay(&path).unwrap_err();
        assert!(
            matches!(error, HilError::BadReport { .. }),
            "{text}: {error}"
        );
    }
}

#[test]
fn what_a_ledger_agrees_on_is_not_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let check = "a_decryptor_agrees_with_what_its_peer_computes";
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_claviger-hil"))
        .args([
            "--virtual",
            "--only",
            "ledger-model",
            "--no-measure",
            "--record",
        ])
        .args(["--check", check, "--out"])
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(run.status.success());
    let path = folder
        .path()
        .join(format!("transcripts/ledger-model/{check}.jsonl"));
    let (_, lines) = transcript::read(&path).unwrap();
    let agreed = lines.iter().filter_map(|line| match line {
        Line::Command {
            command,
            reply,
            reply_hidden,
            ..
        } if command.starts_with("e0180101") => Some((reply.clone(), *reply_hidden)),
        _ => None,
    });
    let agreed: Vec<_> = agreed.collect();
    assert_eq!(agreed.len(), 8);
    let hidden = format!("{}9000", "5a".repeat(32));
    assert!(
        agreed
            .iter()
            .all(|one| *one == (Some(hidden.clone()), true)),
        "{agreed:?}"
    );
}
