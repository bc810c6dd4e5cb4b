//! Backups: made, restored, and what becomes of keys that a backup does not know.
#![cfg(unix)]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use common::{Outcome, Stage};
use serde_json::Value;

fn fingerprints(stage: &Stage, name: &str) -> [String; 2] {
    let shown = stage.json(&["show", name]);
    let of = |usage: &str| {
        let mut keys = shown["keys"].as_array().unwrap().iter();
        let key = keys.find(|key| key["use"] == usage).unwrap();
        key["fingerprint"].as_str().unwrap().to_owned()
    };
    [of("sign"), of("decrypt")]
}

/// The lines of a doctor's answer that begin with this command.
fn commands(doctor: &Outcome, command: &str) -> Vec<String> {
    let out = doctor.out();
    let lines = out.lines().map(str::trim);
    let lines = lines.filter(|line| line.starts_with(command));
    lines.map(str::to_owned).collect()
}

/// The command with words as somebody pastes them into a shell.
fn pasted(stage: &Stage, words: &str) -> Command {
    let plain = stage.claviger([""; 0]);
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec \"$@\" {words}"), "sh"]);
    shell.arg(plain.get_program()).args(plain.get_args());
    shell.envs(plain.get_envs().filter_map(|(k, v)| Some((k, v?))));
    shell.current_dir(stage.folder());
    shell
}

#[test]
fn a_backup_is_whole_private_and_never_in_the_home() {
    let stage = Stage::with_alice();
    let made = stage.run(["backup", "file"]).succeeds();
    assert!(made.out().contains("1 identity"), "{}", made.out());
    let path = stage.path("file");
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let json = stage.json(&["backup", "again"]);
    assert_eq!(
        (&json["identities"], &json["output"]),
        (&1.into(), &"again".into())
    );
    assert_eq!(json["first_account"].as_u64().unwrap() % 1000, 0);
    let piped = stage.run(["backup", "-"]).succeeds();
    assert!(piped.bytes().starts_with(b"SQLite format 3\0"));
    for name in [
        "home/backup",
        "home/registry.sqlite",
        "home/registry.sqlite-wal",
    ] {
        stage
            .run(["backup", name])
            .fails(1, "is in the home folder");
    }
    stage
        .run(["backup", "nowhere/file"])
        .fails(1, "`nowhere/file` cannot be written");
    stage
        .run(["backup", "/dev/full"])
        .fails(1, "cannot be written");
    assert_eq!(stage.files(), ["again", "file"]);
    let empty = stage.path("empty");
    let empty = empty.to_str().unwrap();
    stage
        .run(["--home", empty, "backup", "file"])
        .fails(1, "there is no registry");
}

#[test]
fn a_restored_identity_works_and_the_hints_of_a_lost_registry_lead_there() {
    let stage = Stage::with_alice();
    stage.write("letter", "Meet me\n");
    stage
        .run(["encrypt", "alice", "letter", "-o", "letter.age"])
        .succeeds();
    stage.run(["backup", "file"]).succeeds();
    let registry = stage.home().join("registry.sqlite");
    for damage in ["", "my diary, which is longer than a page "] {
        fs::write(&registry, damage.repeat(200)).unwrap();
        let broken = stage.run(["show", "alice"]);
        assert!(
            broken.err().contains("claviger restore FILE"),
            "{}",
            broken.err()
        );
        let doctor = stage.run(["doctor"]);
        assert!(
            doctor.out().contains("claviger restore FILE"),
            "{}",
            doctor.out()
        );
        let restored = stage.run(["restore", "file"]).succeeds();
        assert!(
            restored.out().contains("before-restore"),
            "{}",
            restored.out()
        );
        assert_eq!(stage.names(), ["alice"]);
        let opened = stage.run_with_pin(&["decrypt", "alice", "letter.age"]);
        assert_eq!(opened.succeeds().out(), "Meet me\n");
    }
    fs::remove_file(&registry).unwrap();
    let restored = stage.json(&["restore", "file"]);
    assert_eq!(
        (&restored["identities"], &restored["moved_aside"]),
        (&1.into(), &Value::Null)
    );
    assert_eq!(stage.names(), ["alice"]);
}

#[test]
fn what_is_no_backup_is_refused_by_its_name() {
    let stage = Stage::with_alice();
    stage.run(["backup", "file"]).succeeds();
    stage.write("text", "dear diary".repeat(1000));
    stage.write("nothing", "");
    let good = stage.read("file");
    stage.write("half", &good[..good.len() / 2]);
    stage
        .run(["restore", "text"])
        .fails(1, "`text` is not a registry");
    stage.run(["restore", "nothing"]).fails(1, "nothing");
    stage.run(["restore", "half"]).fails(1, "half");
    stage.run(["restore", "nowhere"]).fails(1, "nowhere");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let theirs = stage.path("theirs");
        fs::write(&theirs, &good).unwrap();
        fs::set_permissions(&theirs, fs::Permissions::from_mode(0o666)).unwrap();
        stage
            .run(["restore", "theirs"])
            .fails(1, "install -m 600 theirs NEW");
    }
    assert_eq!(stage.names(), ["alice"]);
}

#[test]
fn keys_that_the_backup_does_not_know_are_listed_and_taken_in_one_step() {
    let stage = Stage::with_alice();
    stage.write("letter", "Meet me\n");
    stage.run(["backup", "file"]).succeeds();
    stage.generate("bob", &[]).succeeds();
    let bob = fingerprints(&stage, "bob");
    stage
        .run_with_pin(&["reads-for", "grant", "alice", "--by", "bob"])
        .succeeds();
    stage.run(["reads-for", "export", "evidence"]).succeeds();
    stage
        .run(["encrypt", "bob", "letter", "-o", "letter.age"])
        .succeeds();

    stage.run(["restore", "file"]).succeeds();
    let doctor = stage.run(["doctor"]).succeeds();
    assert!(
        doctor.out().contains("2 keys that no identity here uses"),
        "{}",
        doctor.out()
    );
    let mut offered = commands(&doctor, "claviger connect");
    // Root without a namespace sees the tokens of other tests, too, by the module that p11-kit
    // is configured for.
    offered.retain(|command| command.contains(stage.token.label()));
    assert_eq!(offered.len(), 1, "{offered:?}");
    let words = format!("claviger connect bob --to {} --backend ", bob.join(","));
    assert!(offered[0].starts_with(&words), "{offered:?}");
    // It can be pasted.
    let words = offered[0].strip_prefix("claviger ").unwrap();
    Outcome::of(&mut pasted(
        &stage,
        &format!("--pin-source file:pin {words}"),
    ))
    .succeeds();
    assert_eq!(fingerprints(&stage, "bob"), bob);
    let opened = stage.run_with_pin(&["decrypt", "bob", "letter.age"]);
    assert_eq!(opened.succeeds().out(), "Meet me\n");
    // What it granted counts again.
    let check = ["reads-for", "check", "alice", "bob"];
    assert_eq!(stage.run(check).code(), Some(1));
    stage.run(["reads-for", "import", "evidence"]).succeeds();
    stage.run(check).succeeds();
    let doctor = stage.run(["doctor"]).succeeds();
    assert!(
        !doctor.out().contains("no identity here uses"),
        "{}",
        doctor.out()
    );

    // It is released, not destroyed.
    stage.run_with_pin(&["delete", "bob"]).succeeds();
    assert_eq!(stage.private_keys(), 4);
}

#[test]
fn two_keys_that_are_no_pair_are_refused_before_a_pin_is_asked_for() {
    let stage = Stage::with_alice();
    stage.run(["backup", "file"]).succeeds();
    for name in ["bob", "carol"] {
        stage.generate(name, &[]).succeeds();
    }
    let (bob, carol) = (fingerprints(&stage, "bob"), fingerprints(&stage, "carol"));
    let alice = fingerprints(&stage, "alice");
    stage.run(["restore", "file"]).succeeds();
    let backend = stage.token.backend();
    let connect = |keys: [&str; 2]| {
        let to = keys.join(",");
        stage.run_with_pin(&["connect", "dave", "--to", &to, "--backend", &backend])
    };
    connect([&bob[0], &carol[0]]).fails(1, "neither can decrypt");
    connect([&bob[1], &carol[1]]).fails(1, "neither can sign");
    connect([&bob[0], &bob[0]]).fails(2, "one key");
    let nowhere = format!("SHA256:{}", "A".repeat(43));
    connect([&bob[0], &nowhere]).fails(1, &nowhere);
    connect([&bob[0], &alice[1]]).fails(1, "belongs to the identity `alice`");
    stage
        .run(["connect", "dave", "--to", "SHA256:x,SHA256:y"])
        .fails(2, "`SHA256:x` is no fingerprint");
    assert_eq!(stage.names(), ["alice"]);
    assert_eq!(stage.private_keys(), 6);
}
