//! What the daemon is for.

use claviger_tests::SoftHsm;

use super::at_once;
use super::common::{Daemon, Stage};

const LETTER: &[u8] = b"Meet me where the keys are kept.\n";

#[test]
fn ten_programs_sign_at_once() {
    let stage = Stage::with_alice();
    let _daemon = Daemon::start(&stage);
    stage.write("letter", LETTER);
    let signed = at_once(10, |number| {
        let output = format!("sig{number}");
        let words = ["sign", "alice", "letter", "-o", &output];
        stage.run_with_pin(&words).succeeds();
        stage
            .run(["verify", "alice", "--signature", &output, "letter"])
            .succeeds()
            .out()
    });
    assert_eq!(signed, ["valid\n"; 10]);
    let status = stage.json(&["status"]);
    assert!(
        status["requests_served"].as_u64().unwrap() >= 20,
        "{status}"
    );
}

#[test]
fn after_unlock_ten_programs_sign_without_a_pin_until_lock() {
    let stage = Stage::with_alice();
    let _daemon = Daemon::start(&stage);
    stage.write("letter", LETTER);
    let sign = ["sign", "alice", "letter", "--format", "sshsig"];
    stage.run(sign).fails(1, "requires a PIN");
    let backend = stage.token.backend();
    let unlocked = stage.run_with_pin(&["unlock", &backend, "--for", "8h"]);
    let unlocked = unlocked.succeeds().out();
    assert!(unlocked.ends_with(" for 8 h\n"), "{unlocked}");
    at_once(10, |_| drop(stage.run(sign).succeeds()));
    let token = &stage.json(&["status"])["tokens"][0];
    assert_eq!(token["unlocked"], true, "{token}");
    assert!(
        token["unlocked_for"].as_u64().unwrap() <= 8 * 3_600,
        "{token}"
    );
    let locked = stage.json(&["lock"]);
    assert_eq!(locked["tokens"].as_array().unwrap().len(), 1, "{locked}");
    stage.run(sign).fails(1, "requires a PIN");
    assert_eq!(
        stage.run(["lock"]).succeeds().out(),
        "no token was unlocked\n"
    );
}

#[test]
fn who_reads_for_whom_is_signed_by_the_daemon_with_the_pin_that_it_has() {
    let stage = Stage::with_alice();
    stage.generate("bob", &[]).succeeds();
    let _daemon = Daemon::start(&stage);
    let grant = ["reads-for", "grant", "bob", "--by", "alice"];
    stage.run(grant).fails(1, "requires a PIN");
    let backend = stage.token.backend();
    stage.run_with_pin(&["unlock", &backend]).succeeds();
    stage.run(grant).succeeds();
    let check = ["--json", "reads-for", "check", "bob", "alice"];
    assert_eq!(stage.run(check).succeeds().json()["reads_for"], true);
    stage
        .run(["reads-for", "revoke", "bob", "--by", "alice"])
        .succeeds();
    assert_eq!(stage.run(check).json()["reads_for"], false);
    // The command itself has no PIN.
    let here = [&["--no-daemon"], &grant[..]].concat();
    stage.run(here).fails(1, "requires a PIN");
}

#[test]
fn a_key_in_memory_lives_as_long_as_the_daemon() {
    let stage = Stage::new();
    let daemon = Daemon::start(&stage);
    stage.write("letter", LETTER);
    stage
        .run(["generate", "brief", "--backend", "memory:"])
        .succeeds();
    for format in ["raw", "der", "sshsig"] {
        let words = ["sign", "brief", "letter", "--format", format, "-o", "sig"];
        stage.run(words).succeeds();
        stage
            .run(["verify", "brief", "--signature", "sig", "letter"])
            .succeeds();
    }
    stage
        .run(["encrypt", "brief", "letter", "-o", "letter.age"])
        .succeeds();
    for words in [
        &["decrypt", "brief", "letter.age"][..],
        &["decrypt", "letter.age"],
    ] {
        assert_eq!(stage.run(words).succeeds().bytes(), LETTER);
    }
    stage.run(["connect", "other", "--to", "brief"]).succeeds();
    assert_eq!(stage.names(), ["brief", "other"]);
    daemon.stop();
    let _daemon = Daemon::start(&stage);
    assert!(stage.names().is_empty());
    stage
        .run(["sign", "brief", "letter"])
        .fails(1, "there is no identity `brief`");
}

#[test]
fn a_wrong_pin_costs_one_attempt_and_is_not_sent_again() {
    let stage = Stage::with_alice();
    let _daemon = Daemon::start(&stage);
    stage.write("letter", LETTER);
    stage.write("wrong", "000000");
    let words = [
        "--json",
        "--pin-source",
        "file:wrong",
        "sign",
        "alice",
        "letter",
    ];
    stage.run(words).fails(1, "\"code\":\"pin-wrong\"");
    stage.run(words).fails(1, "\"code\":\"pin-refused-before\"");
    stage
        .run_with_pin(&["sign", "alice", "letter", "-o", "sig"])
        .succeeds();
    let backend = stage.token.backend();
    let words = ["--json", "--pin-source", "file:wrong", "unlock", &backend];
    stage.run(words).fails(1, "\"code\":\"pin-");
}

#[test]
fn a_message_of_any_length_is_signed() {
    let stage = Stage::with_alice();
    let _daemon = Daemon::start(&stage);
    for length in [0, 1, 256 << 10, (3 << 20) + 7] {
        let message: Vec<u8> = (0..length).map(|i: u32| (i >> 3) as u8).collect();
        stage.write("message", &message);
        for format in ["raw", "sshsig"] {
            let words = ["sign", "alice", "-", "--format", format, "-o", "sig"];
            stage.feed(&words, &message).succeeds();
            stage
                .run(["verify", "alice", "--signature", "sig", "message"])
                .succeeds();
        }
    }
}

#[test]
fn one_pin_is_not_tried_on_several_tokens() {
    let stage = Stage::with_alice();
    let other = SoftHsm::new();
    let backend = other.backend();
    stage
        .run_with_pin(&["generate", "far", "--backend", &backend])
        .succeeds();
    stage.write("letter", LETTER);
    let encrypt = ["encrypt", "alice", "letter", "--also", "far", "-o", "both"];
    stage.run(encrypt).succeeds();
    let _daemon = Daemon::start(&stage);
    // Nobody has logged in to either of them.
    let refused = stage.run_with_pin(&["decrypt", "both"]);
    refused.fails(1, "keys on several tokens could open the file");
    let opened = stage.run_with_pin(&["decrypt", "far", "both"]).succeeds();
    assert_eq!(opened.bytes(), LETTER);
}

/// The part of the README about the daemon, but for systemd, which no test starts.
#[test]
fn the_readmes_example_of_a_daemon_works_as_written() {
    let readme = include_str!("../../../README.md");
    let (_, section) = readme.split_once("\n## Daemon\n").expect("a section on it");
    let script = section.split("```sh\n").nth(1).unwrap();
    let script = script.split("```").next().unwrap();
    let (systemd, script) = script.split_once('\n').unwrap();
    assert!(systemd.starts_with("systemctl --user enable --now claviger.socket"));

    let stage = Stage::with_alice();
    let _daemon = Daemon::start(&stage);
    stage.write("letter.txt", LETTER);
    let label = format!("'{}'", stage.token.backend());
    assert_eq!(
        script.matches("'pkcs11:token=bench'").count(),
        1,
        "{script}"
    );
    let script = script.replace("'pkcs11:token=bench'", &label);
    // Only `unlock` may need the PIN.
    let script = script.replace("claviger unlock", "claviger unlock --pin-source file:pin");
    let output = stage.script(&script, "").output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    let signatures = stage
        .files()
        .into_iter()
        .filter(|name| name.ends_with(".sig"));
    assert_eq!(signatures.count(), 10);
}
