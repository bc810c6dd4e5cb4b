//! A set-up that is not as it should be: what is wrong is said, and the rest works.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Stdio;

use claviger_tests::{SoftHsm, as_root, needs_user};
use common::{Outcome, Stage};
use serde_json::Value;

/// Lets p11-kit know a module, in this test.
fn configure(stage: &Stage, name: &str, module: &str) {
    let folder = stage.path("config/pkcs11/modules");
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join(format!("{name}.module"));
    fs::write(file, format!("module: {module}\n")).unwrap();
}

/// Runs the command as root, or so that it cannot tell the difference.
fn run_as_root(stage: &Stage, words: &[&str]) -> Outcome {
    let as_user = stage.claviger([""; 0]);
    let variables = as_user.get_envs();
    let mut command = as_root(env!("CARGO_BIN_EXE_claviger"));
    command
        .args(words)
        .envs(variables.filter_map(|(name, value)| Some((name, value?))))
        .env("CLAVIGER_DAEMON", "")
        .env_remove("CLAVIGER_LOG")
        .current_dir(stage.folder())
        .stdin(Stdio::null());
    Outcome::of(&mut command)
}

/// Without a smartcard service.
fn run(stage: &Stage, words: &[&str]) -> Outcome {
    let mut command = stage.claviger(words);
    Outcome::of(command.env("PCSCLITE_CSOCK_NAME", stage.path("no-socket")))
}

fn findings(doctor: &Outcome) -> Vec<Value> {
    let report = doctor.json();
    assert_eq!(report["ok"], doctor.code() == Some(0));
    report["findings"].as_array().unwrap().clone()
}

fn find(findings: &[Value], words: &str) -> Value {
    let is_it = |f: &&Value| f["what"].as_str().unwrap().contains(words);
    let found = findings.iter().find(is_it);
    found
        .unwrap_or_else(|| panic!("no {words:?} in {findings:?}"))
        .clone()
}

/// Replaces all of `old` in the registry.
fn alter(path: &Path, old: &[u8], new: &[u8]) {
    assert_eq!(old.len(), new.len());
    let mut file = fs::read(path).unwrap();
    let places: Vec<usize> = (0..file.len() - old.len())
        .filter(|at| file[*at..].starts_with(old))
        .collect();
    assert!(!places.is_empty());
    for at in places {
        file[at..at + old.len()].copy_from_slice(new);
    }
    fs::write(path, file).unwrap();
}

#[test]
fn a_damaged_registry_is_one_finding_among_others() {
    let damages: [&dyn Fn(&Path); 3] = [
        // No page but the first is any good.
        &|path| {
            let mut file = fs::read(path).unwrap();
            file[4096..].fill(0xa5);
            fs::write(path, file).unwrap();
        },
        &|path| alter(path, b"BEGIN PUBLIC KEY", b"BEGIN NOTHING..."),
        &|path| fs::write(path, "my diary, which is longer than a page ".repeat(200)).unwrap(),
    ];
    for damage in damages {
        let stage = Stage::with_alice();
        configure(&stage, "soft", SoftHsm::module());
        let path = stage.home().join("registry.sqlite");
        damage(&path);
        let doctor = stage.run(["--json", "doctor"]);
        assert_eq!(doctor.code(), Some(1));
        let findings = findings(&doctor);
        let broken = find(&findings, path.to_str().unwrap());
        assert_eq!(broken["level"], "error");
        let hint = broken["hint"].as_str().unwrap();
        assert!(
            hint.contains("backup") && hint.contains("--to FINGERPRINT"),
            "{hint}"
        );
        // It went on.
        find(&findings, "libsofthsm2.so works");
        let doctor = stage.run(["doctor"]).out();
        assert!(doctor.contains("something is wrong"), "{doctor}");
    }
}

#[test]
fn modules_that_were_not_asked_are_named() {
    if needs_user("modules_that_were_not_asked_are_named") {
        return;
    }
    let stage = Stage::new();
    configure(&stage, "soft", SoftHsm::module());
    configure(&stage, "gone", "/nonexistent.so");
    let tokens = stage.run(["--json", "tokens"]).succeeds();
    let list = tokens.json();
    let labels = list.as_array().unwrap().iter().map(|token| &token["label"]);
    assert!(labels.into_iter().any(|label| label == stage.token.label()));
    let said = tokens.err();
    assert!(said.starts_with("warning: `/nonexistent.so` "), "{said}");
    assert!(
        said.contains("hint: install the module, or remove it from p11-kit"),
        "{said}"
    );
    assert!(!said.contains("softhsm"), "{said}");
    // Whoever names a token that is not found wants to know, and nobody else.
    let named = |token: &str| stage.run(["tokens", "--backend", &format!("pkcs11:token={token}")]);
    assert!(named("nobody").succeeds().err().contains("/nonexistent.so"));
    assert_eq!(named(stage.token.label()).succeeds().err(), "");
}

#[test]
fn root_loads_no_modules_of_a_user() {
    if needs_user("root_loads_no_modules_of_a_user") {
        return;
    }
    let stage = Stage::new();
    configure(&stage, "gone", "/nonexistent.so");
    let says_so = |tokens: Outcome| tokens.succeeds().err().contains("/nonexistent.so");
    assert!(says_so(stage.run(["tokens"])));
    assert!(!says_so(run_as_root(&stage, &["tokens"])));
}

#[test]
fn what_is_on_a_token_writes_no_lines_of_its_own() {
    let stage = Stage::new();
    let label = "a\nerror: b\u{202e}c\u{1b}[2J";
    stage.pkcs11_tool(&[
        "--keypairgen",
        "--key-type",
        "EC:prime256v1",
        "--id",
        "77",
        "--label",
        label,
    ]);
    let backend = stage.token.backend();
    let out = stage
        .run(["tokens", "--backend", &backend])
        .succeeds()
        .out();
    let shown = "a\u{fffd}error: b\u{fffd}c\u{fffd}[2J";
    assert!(out.contains(shown), "{out}");
    // For programs it is what it is.
    let list = stage.json(&["tokens", "--backend", &backend]);
    assert!(list.to_string().contains("error: b\u{202e}c"), "{list}");
}

#[test]
fn where_nobody_could_look_there_is_not_no_token() {
    if needs_user("where_nobody_could_look_there_is_not_no_token") {
        return;
    }
    let stage = Stage::new();
    let none = run(&stage, &["tokens"]).succeeds();
    assert_eq!(none.out(), "no tokens\n");
    assert!(none.err().contains("warning: "), "{}", none.err());
    assert!(none.err().contains("pcscd"), "{}", none.err());
    for json in [&[][..], &["--json"]] {
        let words = [json, &["tokens", "--backend", "piv:"]].concat();
        let refused = run(&stage, &words).fails(1, "pcscd");
        assert!(refused.err().contains("hint"), "{}", refused.err());
    }
    stage
        .run_with_pin(&["generate", "a", "--backend", "pkcs11:token=nobody"])
        .fails(1, "`claviger doctor` says what is missing");
}

#[test]
fn only_who_enters_something_makes_a_home_folder() {
    let stage = Stage::new();
    stage.write("letter", "x");
    for words in [
        &["identities"][..],
        &["show", "alice"],
        &["delete", "alice"],
        &["sign", "alice", "letter", "-o", "out"],
        &["encrypt", "alice", "letter", "-o", "out"],
        &["decrypt", "letter"],
        &["contact", "list"],
        &["contact", "remove", "alice"],
        &["reads-for", "list"],
        &["reads-for", "check", "alice", "bob"],
        &["reads-for", "export", "out"],
    ] {
        let refused = stage.run(words).fails(1, "there is no registry in");
        assert!(refused.err().contains("--home"), "{}", refused.err());
    }
    let verify = ["verify", "alice", "--signature", "letter", "letter"];
    stage.run(verify).fails(3, "there is no registry in");
    let backend = stage.token.backend();
    stage.run(["tokens", "--backend", &backend]).succeeds();
    stage.run(["doctor"]).succeeds();
    stage
        .run(["doctor", "--forget-refused-pin", "x"])
        .fails(1, "no rejected PIN");
    assert!(!stage.home().exists());
    assert_eq!(stage.files(), ["letter"]);
    // A folder that is there for something else stays as it is.
    fs::create_dir(stage.home()).unwrap();
    stage.run(["identities"]).fails(1, "there is no registry");
    let doctor = stage.run(["doctor"]);
    assert!(doctor.out().contains("no registry in"), "{}", doctor.out());
    assert_eq!(fs::read_dir(stage.home()).unwrap().count(), 0);
    stage.generate("alice", &[]).succeeds();
    assert_eq!(stage.names(), ["alice"]);
}

#[test]
fn a_backend_that_is_not_that_of_the_identity_connects_nothing() {
    let stage = Stage::with_alice();
    let other = SoftHsm::new();
    let connect = |name: &str, backend: &str| {
        stage.run(["connect", name, "--to", "alice", "--backend", backend])
    };
    connect("bob", &other.backend()).fails(2, "are not on a token that fits");
    connect("bob", "floppy:").fails(2, "no driver");
    assert_eq!(stage.names(), ["alice"]);
    connect("bob", &stage.token.backend()).succeeds();
    // The same token, said in another way.
    let serial = stage.json(&["show", "alice"])["keys"][0]["token"].clone();
    let serial = serial.as_str().unwrap().rsplit('/').next().unwrap();
    let backend = format!("pkcs11:serial={serial}?module-path={}", SoftHsm::module());
    connect("carol", &backend).succeeds();
}

#[test]
fn what_goes_to_a_file_is_told_in_json() {
    let stage = Stage::with_alice();
    stage.generate("bob", &[]).succeeds();
    stage.write("letter", "x");
    let seal = ["encrypt", "alice", "letter", "-o", "sealed"];
    stage.run(seal).succeeds();
    for words in [&["decrypt", "alice", "sealed"][..], &["decrypt", "sealed"]] {
        let words = [&["--json"], words, &["-o", "out"]].concat();
        let view = stage.run_with_pin(&words).succeeds().json();
        assert_eq!(
            (&view["name"], &view["output"]),
            (&"alice".into(), &"out".into())
        );
    }
    // Data on standard output stays data.
    let words = ["--json", "decrypt", "alice", "sealed"];
    assert_eq!(stage.run_with_pin(&words).succeeds().out(), "x");
    stage
        .run_with_pin(&["reads-for", "grant", "bob", "--by", "alice"])
        .succeeds();
    let view = stage.json(&["reads-for", "export", "evidence"]);
    assert_eq!(
        (&view["evidence"], &view["output"]),
        (&1.into(), &"evidence".into())
    );
    let text = stage.run(["--json", "reads-for", "export", "-"]).succeeds();
    assert_eq!(text.bytes(), stage.read("evidence"));
}
