//! What a process costs that makes one signature: the calls that the module gets, and what
//! has to reach the disk.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot run fails"
)]

mod common;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use claviger_altered_module::AlteredModule;
use claviger_tests::SoftHsm;
use common::Stage;

/// An identity `alice` on a token whose module counts its calls.
fn counted() -> (Stage, AlteredModule) {
    let stage = Stage::new();
    stage.write("letter", "x");
    let module = AlteredModule::of(SoftHsm::module().as_ref());
    module.alter(&[&format!("only {}", stage.token.label())]);
    let backend = format!("pkcs11:?module-path={}", module.path().display());
    stage
        .run_with_pin(&["generate", "alice", "--backend", &backend])
        .succeeds();
    module.forget_calls();
    (stage, module)
}

#[test]
fn a_process_that_signs_once_asks_the_module_for_no_more_than_it_needs() {
    let (stage, module) = counted();
    stage
        .run_with_pin(&["sign", "alice", "letter", "-o", "sig"])
        .succeeds();
    // One look at the token, and one more in the turn to send the PIN: somebody else may have
    // spent a try since. A list is asked for twice: for its length, and for itself.
    for (function, most) in [
        ("C_Initialize", 1),
        ("C_GetSlotList", 2),
        ("C_GetTokenInfo", 2),
        ("C_GetMechanismList", 2),
        ("C_GetMechanismInfo", 7),
        ("C_OpenSession", 2),
        ("C_Login", 1),
        // Whether the token answers at all; the private key, its public half.
        ("C_FindObjectsInit", 3),
        ("C_GetAttributeValue", 4),
        ("C_SignInit", 1),
        ("C_Sign", 1),
    ] {
        let calls = module.calls(function);
        assert!((1..=most).contains(&calls), "{calls} calls of {function}");
    }
}

/// The calls of the system that a process makes that signs, of these; each is one line.
fn traced(stage: &Stage, output: &[&str], calls: &str) -> Vec<String> {
    let words = [
        &["--pin-source", "file:pin", "sign", "alice", "letter"],
        output,
    ]
    .concat();
    let command = stage.claviger(&words);
    let mut traced = Command::new("strace");
    traced
        .args(["-f", "-y", "-o", "trace", "-e"])
        .arg(format!("trace={calls}"))
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(stage.folder())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => traced.env(name, value),
            None => traced.env_remove(name),
        };
    }
    assert!(traced.status().unwrap().success());
    let trace = String::from_utf8(stage.read("trace")).unwrap();
    // A call that is interrupted by one of another thread has a second line, and one in which
    // its thread ends has one without a name.
    let is_call =
        |line: &&str| line.contains('(') && !line.contains(" resumed>") && !line.contains("???(");
    trace.lines().filter(is_call).map(str::to_owned).collect()
}

/// How often a process that signs has the system bring a file or a folder to the disk.
fn syncs(stage: &Stage, output: &[&str]) -> Vec<String> {
    traced(stage, output, "fsync,fdatasync,sync_file_range,msync")
}

/// Some containers forbid to trace a process.
fn can_trace() -> bool {
    let traces = Command::new("strace")
        .args(["-qq", "true"])
        .stderr(Stdio::null())
        .status();
    let can = traces.is_ok_and(|status| status.success());
    if !can {
        eprintln!("SKIPPED: strace cannot be run here");
    }
    can
}

#[test]
fn a_process_that_signs_once_opens_the_registry_once_and_makes_no_file_that_says_that_it_lives() {
    let (stage, _module) = counted();
    if !can_trace() {
        return;
    }
    let opened = traced(&stage, &[], "open,openat");
    let to_read_and_write = |line: &&String| line.contains("O_RDWR");
    let registry = |line: &&String| line.contains("/registry.sqlite\"");
    let opens = opened.iter().filter(to_read_and_write).filter(registry);
    assert_eq!(opens.count(), 1, "{opened:?}");
    // Nothing is written that others could ask about: no record bears its name.
    let made = |line: &&String| line.contains("O_EXCL") && line.contains("/run/");
    assert_eq!(opened.iter().filter(made).count(), 0, "{opened:?}");
}

#[test]
fn a_process_that_signs_once_waits_for_the_disk_once_and_no_longer_for_a_file() {
    let (stage, _module) = counted();
    if !can_trace() {
        return;
    }
    // The first one of a home makes the file with the note.
    syncs(&stage, &[]);
    let note = syncs(&stage, &[]);
    assert!(
        note.len() == 1 && note[0].contains("/pins/pin-"),
        "{note:?}"
    );
    // A signature can be made again, so its file is written in the system's own time: neither
    // one that is new nor one that replaces another is waited for.
    for _ in 0..2 {
        let with_file = syncs(&stage, &["-o", "sig"]);
        assert!(
            with_file.len() == 1 && with_file[0].contains("/pins/pin-"),
            "{with_file:?}"
        );
    }
    // That the token has answered is noted all the same.
    let notes = std::fs::read_dir(stage.home().join("pins")).unwrap();
    let notes: Vec<PathBuf> = notes.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(notes.len(), 1);
    assert!(std::fs::read(&notes[0]).unwrap().starts_with(b"done"));
}
