//! Homes that cannot be written to: what needs no writing works, and what does says so.
#![cfg(unix)]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use common::{Outcome, Stage};

const UNNOTED: &str = "rejection could not be recorded";

/// Alice, whose letters are signed and encrypted, who grants, and who has a contact.
fn furnished() -> Stage {
    let stage = Stage::with_alice();
    stage.generate("safe", &[]).succeeds();
    stage.write("letter", "Meet me\n");
    stage
        .run_with_pin(&["sign", "alice", "letter", "-o", "sig"])
        .succeeds();
    stage
        .run(["encrypt", "alice", "letter", "-o", "letter.age"])
        .succeeds();
    stage
        .run_with_pin(&["reads-for", "grant", "safe", "--by", "alice"])
        .succeeds();
    let shown = stage.run(["--json", "show", "alice"]).succeeds();
    stage.write("other.json", shown.bytes());
    stage
}

/// Does what needs no writing; `run` runs a command with the PIN at hand.
fn reads(stage: &Stage, run: &dyn Fn(&[&str]) -> Outcome) {
    let backend = stage.token.backend();
    for words in [
        &["identities"][..],
        &["show", "alice"],
        &["verify", "alice", "--signature", "sig", "letter"],
        &["contact", "list"],
        &["reads-for", "list"],
        &["reads-for", "check", "safe", "alice"],
        &["tokens", "--backend", &backend],
        &["encrypt", "alice", "--also", "safe", "letter"],
        &["backup", "-"],
    ] {
        let outcome = run(words);
        assert_eq!(outcome.code(), Some(0), "{words:?}: {}", outcome.err());
        assert!(
            !outcome.err().contains("warning"),
            "{words:?}: {}",
            outcome.err()
        );
    }
    for words in [
        &["sign", "alice", "letter"][..],
        &["decrypt", "alice", "letter.age"],
    ] {
        run(words).fails(1, "--no-pin-ledger");
        let done = run(&[&["--no-pin-ledger"], words].concat()).succeeds();
        assert_eq!(done.err().matches(UNNOTED).count(), 1, "{}", done.err());
    }
    let opened = run(&["--no-pin-ledger", "decrypt", "alice", "letter.age"]);
    assert_eq!(opened.out(), "Meet me\n");
}

/// Wants to write, and may not.
fn writes(stage: &Stage, run: &dyn Fn(&[&str]) -> Outcome, reason: &str) {
    let backend = stage.token.backend();
    let before = stage.objects();
    for words in [
        &["generate", "bob", "--backend", &backend][..],
        &["connect", "bob", "--to", "alice"],
        &["delete", "alice"],
        &["contact", "add", "other", "other.json"],
    ] {
        let with_flag = [&["--no-pin-ledger"], words].concat();
        for words in [words, &with_flag] {
            run(words).fails(1, reason);
        }
    }
    assert_eq!(stage.objects(), before);
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Lets nobody write in the home, for as long as `work` takes.
fn write_protected(stage: &Stage, work: impl FnOnce()) {
    let folders = ["run", "pins", "."];
    let paths = folders.map(|folder| stage.home().join(folder));
    paths.iter().for_each(|path| set_mode(path, 0o500));
    work();
    paths.iter().for_each(|path| set_mode(path, 0o700));
}

#[test]
fn in_a_folder_that_cannot_be_written_to_all_works_that_only_reads() {
    let stage = furnished();
    write_protected(&stage, || {
        let run = |words: &[&str]| stage.run_with_pin(words);
        reads(&stage, &run);
        writes(&stage, &run, "cannot be written to");
        // What needs no PIN needs no flag.
        stage.run(["sign", "alice", "letter"]).fails(1, "PIN");
    });
    let names = fs::read_dir(stage.home()).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["pins", "registry.sqlite", "run"]);
    stage.run_with_pin(&["sign", "alice", "letter"]).succeeds();
}

#[test]
fn a_home_that_is_read_only_and_in_use_is_read_as_it_is() {
    let stage = furnished();
    // Somebody has it open, and has written what is not in the file yet.
    let mut other = stage.claviger(["--pin-source", "file:pin", "sign", "alice"]);
    let mut other = other
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let log = stage.home().join("registry.sqlite-wal");
    let begun = std::time::Instant::now();
    while !log.exists() {
        assert!(begun.elapsed().as_secs() < 60, "it opens nothing");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    stage
        .run(["contact", "add", "other", "other.json"])
        .succeeds();
    assert!(log.metadata().unwrap().len() > 0);
    write_protected(&stage, || {
        assert_eq!(stage.names(), ["alice", "safe"]);
        let contacts = stage.run(["contact", "list"]).succeeds();
        assert!(contacts.out().contains("other"), "{}", contacts.out());
    });
    other.stdin.take().unwrap().write_all(b"x").unwrap();
    assert!(other.wait().unwrap().success());
}

#[test]
fn a_pin_that_is_refused_without_a_note_is_said_to_be() {
    let stage = furnished();
    stage.write("wrong", "000000");
    write_protected(&stage, || {
        let wrong = [
            "--pin-source",
            "file:wrong",
            "--no-pin-ledger",
            "sign",
            "alice",
            "letter",
        ];
        let refused = stage.run(wrong).fails(1, "rejected the PIN");
        assert_eq!(
            refused.err().matches(UNNOTED).count(),
            1,
            "{}",
            refused.err()
        );
    });
    // It was not noted, and the right one works.
    stage.run_with_pin(&["sign", "alice", "letter"]).succeeds();
}

#[test]
fn what_was_refused_before_is_not_sent_without_a_note() {
    let stage = furnished();
    stage.write("wrong", "000000");
    let wrong = ["--pin-source", "file:wrong", "sign", "alice", "letter"];
    stage.run(wrong).fails(1, "rejected the PIN");
    write_protected(&stage, || {
        let again = [&["--no-pin-ledger"], &wrong[..]].concat();
        stage
            .run(again)
            .fails(1, "rejected this PIN before; it was not sent again");
    });
}

#[test]
fn on_a_read_only_mount_all_works_that_only_reads() {
    let stage = furnished();
    let script = r#"
        mount --bind "$HOME_FOLDER" "$HOME_FOLDER"
        mount -o remount,bind,ro "$HOME_FOLDER"
        "$@"
    "#;
    if stage.confined(script, &["identities"]).is_none() {
        return;
    }
    let run = |words: &[&str]| stage.confined(script, words).unwrap();
    reads(&stage, &run);
    writes(&stage, &run, "cannot be written to");
}

#[test]
fn on_a_full_disk_all_works_that_only_reads() {
    let stage = furnished();
    let script = r#"
        mkdir copy && cp -r "$HOME_FOLDER/." copy
        mount -t tmpfs -o size=1m,mode=700 none "$HOME_FOLDER"
        cp -r copy/. "$HOME_FOLDER" && rm -r copy
        dd if=/dev/zero of="$HOME_FOLDER/filler" bs=4k 2>/dev/null || true
        "$@"
    "#;
    if stage.confined(script, &["identities"]).is_none() {
        return;
    }
    let run = |words: &[&str]| stage.confined(script, words).unwrap();
    reads(&stage, &run);
    writes(&stage, &run, "no space is left");
}
