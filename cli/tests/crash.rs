//! Killed at any point of a generation or a deletion, or out of space: afterwards the
//! token holds the keys of the identities that there are, and no others.
#![cfg(unix)]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::collections::BTreeSet;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Instant;

use common::Stage;

/// How many processes are killed.
const KILLS: u32 = 40;
/// So many pages of a token's disk are free at most: with that many a generation succeeds.
const PAGES: u32 = 12;

/// The `CKA_ID`s of the objects of one kind, as OpenSC sees them.
fn ids(objects: &str, kind: &str) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    let mut of_kind = false;
    for line in objects.lines() {
        if line.contains(" Object;") || line.contains(" object ") {
            of_kind = line.starts_with(kind);
        }
        if let Some(id) = line.trim().strip_prefix("ID:").filter(|_| of_kind) {
            ids.insert(id.trim().to_owned());
        }
    }
    ids
}

/// The slots of the identities that there are.
fn slots(stage: &Stage) -> BTreeSet<String> {
    let identities = stage.json(&["identities"]);
    let keys = identities
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|i| i["keys"].as_array().unwrap());
    keys.map(|key| key["slot"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn wherever_a_process_is_killed_keys_and_identities_stay_one_to_one() {
    const FOREIGN: &str = "f0f0f0";
    let stage = Stage::new();
    stage.pkcs11_tool(&[
        "--keypairgen",
        "--key-type",
        "EC:prime256v1",
        "--id",
        FOREIGN,
    ]);
    let backend = stage.token.backend();
    let generate = ["generate", "victim", "--backend", &backend];
    let delete = ["delete", "victim"];

    // How long each takes when nobody interferes.
    let timed = |words: &[&str]| {
        let begun = Instant::now();
        stage.run_with_pin(words).succeeds();
        begun.elapsed()
    };
    let (generation, deletion) = (timed(&generate), timed(&delete));

    let (mut struck, mut unsettled) = (0, 0);
    // On a machine that is busy with other things the times are not what they were.
    for i in 0..10 * KILLS {
        if i >= KILLS && struck > KILLS / 2 && unsettled > 0 {
            break;
        }
        let exists = stage.names().contains(&"victim".into());
        let (words, length) = if exists {
            (&delete[..], deletion)
        } else {
            (&generate[..], generation)
        };
        let mut child = stage
            .claviger([&["--pin-source", "file:pin"], words].concat())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Evenly over the run, in an order that does not favour either command.
        sleep(length.mul_f64(f64::from(i * 7 % KILLS) / f64::from(KILLS)));
        child.kill().unwrap();
        struck += u32::from(!child.wait().unwrap().success());
        stage.heal();
        let doctor = stage.run(["--json", "doctor"]).json();
        let mut findings = doctor["findings"].as_array().unwrap().iter();
        let is_it = |what: &str| what.contains("interrupted");
        unsettled += u32::from(
            findings.any(|f| f["level"] == "warning" && is_it(f["what"].as_str().unwrap())),
        );
    }
    assert!(struck > KILLS / 2, "{struck} of {KILLS} were struck");
    assert!(unsettled > 0, "nothing was struck in the middle");

    // The next start that has the PIN puts things right.
    stage.run_with_pin(&["doctor", "--repair"]).succeeds();
    let mut expected = slots(&stage);
    expected.insert(FOREIGN.into());
    let objects = stage.objects();
    assert_eq!(ids(&objects, "Private Key"), expected, "{objects}");
    assert_eq!(ids(&objects, "Public Key"), expected, "{objects}");
    if stage.names().is_empty() {
        stage.run_with_pin(&generate).succeeds();
    }
    stage.write("letter", "x");
    stage
        .run_with_pin(&["sign", "victim", "letter", "-o", "sig"])
        .succeeds();
    stage
        .run_with_pin(&["decrypt", "victim", "letter"])
        .fails(1, "Decryption Failed");
}

/// What is done with a token after its worst day.
fn works_as_before(stage: &Stage) {
    stage.write("letter", "x");
    stage
        .run_with_pin(&["sign", "alice", "letter", "-o", "sig"])
        .succeeds();
    assert_eq!(stage.run(["doctor"]).code(), Some(0));
    stage.generate("bob", &[]).succeeds();
}

#[test]
fn on_a_full_disk_nothing_is_made_and_nothing_is_lost() {
    let stage = Stage::with_alice();
    let before = (stage.objects(), slots(&stage));
    let script = r#"
        mkdir copy && cp -r "$HOME_FOLDER/." copy
        mount -t tmpfs -o size=1m,mode=700 none "$HOME_FOLDER"
        cp -r copy/. "$HOME_FOLDER" && rm -r copy
        dd if=/dev/zero of="$HOME_FOLDER/filler" bs=4k 2>/dev/null || true
        "$@"
    "#;
    let backend = stage.token.backend();
    for words in [
        &["generate", "bob", "--backend", &backend][..],
        &["delete", "alice"],
    ] {
        let Some(outcome) = stage.confined(script, words) else {
            return;
        };
        outcome.fails(1, "no space is left");
    }
    assert_eq!((stage.objects(), slots(&stage)), before);
    works_as_before(&stage);
}

#[test]
fn on_a_full_disk_the_token_keeps_what_it_had_and_says_what_it_could_not() {
    let stage = Stage::with_alice();
    let before = (stage.objects(), slots(&stage));
    // The token's state is written at each login, and lost where that fails: SoftHSM wants
    // some space for that.
    let script = r#"
        mount -t tmpfs -o size=1m none config
        cp -r "$TOKEN_FOLDER/." config
        mount --bind config "$TOKEN_FOLDER"
        dd if=/dev/zero of=config/filler bs=4k 2>/dev/null || true
        truncate -s -4k config/filler
        status=0
        "$@" || status=$?
        rm config/filler
        umount "$TOKEN_FOLDER"
        rm -r "$TOKEN_FOLDER"/* && cp -r config/. "$TOKEN_FOLDER"
        exit $status
    "#;
    std::fs::create_dir_all(stage.path("config")).unwrap();
    let generate = ["generate", "bob", "--backend", &stage.token.backend()];
    let Some(outcome) = stage.confined(script, &generate) else {
        return;
    };
    outcome.fails(1, "the token's disk may be full");
    stage.heal();
    assert_eq!((stage.objects(), slots(&stage)), before);
    works_as_before(&stage);
}

#[test]
fn wherever_the_disk_of_the_token_becomes_full_each_identity_keeps_both_halves_of_its_keys() {
    // What the script needs beside: the number of pages that are free.
    let script = r#"
        mount -t tmpfs -o size=1m none disk
        cp -r "$TOKEN_FOLDER/." disk
        mount --bind disk "$TOKEN_FOLDER"
        dd if=/dev/zero of=disk/filler bs=4k 2>/dev/null || true
        truncate -s "-$((4 * $(cat pages)))k" disk/filler
        status=0
        "$@" || status=$?
        rm disk/filler
        umount "$TOKEN_FOLDER"
        rm -r "$TOKEN_FOLDER"/* && cp -r disk/. "$TOKEN_FOLDER"
        exit $status
    "#;
    let stage = Stage::with_alice();
    std::fs::create_dir_all(stage.path("disk")).unwrap();
    stage.write("letter", "x");
    let mut made = BTreeSet::new();
    for pages in 0..PAGES {
        stage.write("pages", pages.to_string());
        let generate = ["generate", "bob", "--backend", &stage.token.backend()];
        let Some(outcome) = stage.confined(script, &generate) else {
            return;
        };
        stage.heal();
        made.insert(outcome.code() == Some(0));
        stage.run_with_pin(&["doctor", "--repair"]).succeeds();
        let (expected, objects) = (slots(&stage), stage.objects());
        for half in ["Private Key", "Public Key"] {
            assert_eq!(ids(&objects, half), expected, "{pages} pages: {objects}");
        }
        for name in stage.names() {
            stage
                .run_with_pin(&["sign", &name, "letter", "-o", "sig"])
                .succeeds();
        }
        if stage.names().contains(&"bob".into()) {
            stage.run_with_pin(&["delete", "bob"]).succeeds();
        }
    }
    assert_eq!(made.len(), 2, "it was never full, or always");
}

#[test]
fn a_registry_that_cannot_be_written_to_is_said_before_anything_is_made() {
    let stage = Stage::with_alice();
    let before = stage.objects();
    let script = r#"
        mount --bind "$HOME_FOLDER" "$HOME_FOLDER"
        mount -o remount,bind,ro "$HOME_FOLDER"
        "$@"
    "#;
    let generate = ["generate", "bob", "--backend", &stage.token.backend()];
    if let Some(outcome) = stage.confined(script, &generate) {
        outcome.fails(1, "cannot be written");
        assert_eq!(stage.objects(), before);
    }
}
