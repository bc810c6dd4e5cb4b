//! Failures: their codes in JSON, output that is lost, and files that nobody replaces.
#![cfg(unix)]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Outcome, Stage};
use serde_json::Value;

/// Runs the command by a shell, with something behind it: `>&-`.
fn by_shell(stage: &Stage, words: &[&str], behind: &str) -> Outcome {
    let claviger = stage.claviger([&["--pin-source", "file:pin"], words].concat());
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec \"$0\" \"$@\" {behind}")]);
    shell.arg(claviger.get_program()).args(claviger.get_args());
    shell.current_dir(stage.folder()).stdin(Stdio::null());
    for (name, value) in claviger.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    Outcome::of(&mut shell)
}

fn error(outcome: &Outcome) -> Value {
    let text = outcome.err();
    assert_eq!(text.lines().count(), 1, "{text}");
    let object: Value = serde_json::from_str(&text).unwrap();
    for name in ["code", "message", "hint"] {
        assert!(object["error"][name].is_string(), "{object}");
    }
    assert!(!object["error"]["message"].as_str().unwrap().is_empty());
    object["error"].clone()
}

#[test]
fn with_json_a_failure_is_one_object_with_a_code() {
    let stage = Stage::with_alice();
    stage.write("letter", "Meet me\n");
    stage.write("text", "hello");
    stage.write("wrong", "000000");
    let backend = stage.token.backend();
    for (words, status, code) in [
        (&["sign", "nobody", "letter"][..], 1, "no-identity"),
        (&["sign", "alice", "nowhere"], 1, "io"),
        (&["sign", "alice", "letter"], 1, "pin-needed"),
        (&["show", "nobody"], 1, "no-identity"),
        (
            &[
                "generate",
                "alice",
                "--backend",
                &backend,
                "--pin-source",
                "file:pin",
            ],
            1,
            "identity-exists",
        ),
        (
            &["generate", "b", "--backend", "pkcs11:nonsense"],
            2,
            "bad-backend",
        ),
        (
            &["generate", "b", "--backend", "pkcs11:token=nobody"],
            1,
            "no-token",
        ),
        (&["generate", "b", "--backend", "x:"], 2, "no-driver"),
        (&["generate", "a\nb", "--backend", &backend], 2, "bad-name"),
        (&["connect", "b", "--to", "nobody"], 1, "no-identity"),
        (&["contact", "add", "b", "text"], 1, "bad-contact-file"),
        (&["contact", "remove", "b"], 1, "no-contact"),
        (
            &["contact", "add", "alice", "letter"],
            1,
            "bad-contact-file",
        ),
        (&["decrypt", "letter"], 1, "decryption-failed"),
        (
            &["encrypt", "alice", "letter", "-o", "letter"],
            1,
            "output-is-input",
        ),
        (&["reads-for", "import", "text"], 1, "bad-evidence-file"),
        (
            &["verify", "alice", "--signature", "text", "letter"],
            3,
            "cannot-judge-unknown-form",
        ),
        (&["sign"], 2, "usage"),
        (&["no-such-command"], 2, "usage"),
        (&["sign", "alice", "--pin-source", "1234"], 2, "usage"),
    ] {
        let outcome = stage.run([&["--json"], words].concat());
        assert_eq!(outcome.code(), Some(status), "{words:?} {}", outcome.err());
        assert_eq!(outcome.out(), "", "{words:?}");
        assert_eq!(error(&outcome)["code"], code, "{words:?} {}", outcome.err());
    }
    // Once it is refused, once it is not sent again.
    for code in ["pin-wrong", "pin-refused-before"] {
        let words = [
            "--json",
            "--pin-source",
            "file:wrong",
            "sign",
            "alice",
            "letter",
        ];
        let refused = error(&stage.run(words));
        assert_eq!(refused["code"], code);
        assert!(refused["token"].as_str().unwrap().starts_with("pkcs11:"));
    }
    let empty = stage.path("empty");
    let empty = empty.to_str().unwrap();
    let none = stage.run(["--json", "--home", empty, "identities"]);
    assert_eq!(error(&none)["code"], "no-registry");
}

/// The texts between quotes on lines that name a code.
fn codes_in(source: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(source).unwrap();
    let mut codes = BTreeSet::new();
    let mut take = |text: &str| {
        let quoted = text.split('"').skip(1).step_by(2);
        codes.extend(quoted.map(str::to_owned));
    };
    for part in text.split(".coded(").skip(1) {
        take(part.split(')').next().unwrap());
    }
    for part in text.split("fn code(&self)").skip(1) {
        take(part.split("\n    }\n").next().unwrap());
    }
    for part in text.split("let code = match").skip(1) {
        take(part.split("};").next().unwrap());
    }
    codes
}

#[test]
fn every_code_is_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut sources = vec![
        root.join("drivers/token/src/error.rs"),
        root.join("drivers/piv/src/attestation.rs"),
        root.join("engine/src/commitment.rs"),
        root.join("engine/src/error.rs"),
        root.join("engine/src/evidence.rs"),
        root.join("engine/src/mailboxes.rs"),
        root.join("engine/src/registry/error.rs"),
        root.join("engine/src/registry/certificates.rs"),
        root.join("engine/src/registry/contacts.rs"),
        root.join("engine/src/registry/rights.rs"),
        root.join("engine/src/grants.rs"),
        root.join("service/src/audit/mod.rs"),
        root.join("service/src/home_lock.rs"),
        root.join("service/src/refusal.rs"),
        root.join("service/src/sockets.rs"),
        root.join("formats/src/certificate/error.rs"),
        root.join("formats/src/envelope/encrypt.rs"),
        root.join("formats/src/foreign.rs"),
        root.join("formats/src/sshsig.rs"),
        root.join("formats/src/verdict.rs"),
        root.join("client/src/error.rs"),
        root.join("client/src/frame.rs"),
    ];
    let mut folders = vec![root.join("cli/src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => sources.push(path),
            }
        }
    }
    let mut codes: BTreeSet<String> = sources.iter().flat_map(|path| codes_in(path)).collect();
    codes.extend(["failed", "usage", "cannot-sign", "cannot-decrypt"].map(String::from));
    assert!(
        codes.contains("pin-wrong") && codes.contains("output-lost"),
        "{codes:?}"
    );
    let list = fs::read_to_string(root.join("ERRORS.md")).unwrap();
    let listed: BTreeSet<String> = list
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .map(str::to_owned)
        .collect();
    assert_eq!(codes.difference(&listed).collect::<Vec<_>>(), [""; 0]);
    assert_eq!(listed.difference(&codes).collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn output_that_is_lost_is_an_error_for_every_command() {
    let stage = Stage::with_alice();
    stage.write("letter", "Meet me\n");
    for output in ["sig", "letter.age", "evidence"] {
        let _ = fs::remove_file(stage.path(output));
    }
    stage
        .run(["encrypt", "alice", "letter", "-o", "letter.age"])
        .succeeds();
    stage
        .run_with_pin(&["sign", "alice", "letter", "-o", "sig"])
        .succeeds();
    stage.write("alice.json", stage.run(["--json", "show", "alice"]).bytes());
    let backend = stage.token.backend();
    let before = stage.objects();
    for (words, status) in [
        (&["identities"][..], 1),
        (&["--json", "identities"], 1),
        (&["show", "alice"], 1),
        (&["tokens"], 1),
        (&["doctor"], 1),
        (&["sign", "alice", "letter"], 1),
        (&["encrypt", "alice", "letter"], 1),
        (&["decrypt", "alice", "letter.age"], 1),
        (&["verify", "alice", "--signature", "sig", "letter"], 3),
        (&["contact", "list"], 1),
        (&["contact", "add", "b", "alice.json"], 1),
        (&["reads-for", "list"], 1),
        (&["reads-for", "export", "-"], 1),
        (&["--json", "sign", "alice", "letter", "-o", "other"], 1),
        (&["generate", "b", "--backend", &backend], 1),
        (&["connect", "b", "--to", "alice"], 1),
        (&["delete", "alice"], 1),
        (&["--help"], 1),
        (&["--version"], 1),
    ] {
        let lost = by_shell(&stage, words, ">&-");
        assert_eq!(lost.code(), Some(status), "{words:?} {}", lost.err());
        assert!(
            lost.err().contains("standard output is closed"),
            "{words:?}"
        );
    }
    // Nothing was begun: the keys are there, and so is the name.
    assert_eq!(stage.objects(), before);
    assert_eq!(stage.names(), ["alice"]);
    assert!(!stage.path("other").exists());
    for words in [
        &["identities"][..],
        &["sign", "alice", "letter"],
        &["encrypt", "alice", "letter"],
        &["--json", "show", "alice"],
        &["contact", "list"],
        &["reads-for", "list"],
        &["--help"],
    ] {
        let lost = by_shell(&stage, words, ">/dev/full");
        assert_eq!(lost.code(), Some(1), "{words:?}");
        assert!(
            lost.err().contains("cannot be written"),
            "{words:?} {}",
            lost.err()
        );
    }
    let lost = by_shell(
        &stage,
        &["verify", "alice", "--signature", "sig", "letter"],
        ">/dev/full",
    );
    assert_eq!(lost.code(), Some(3), "{}", lost.err());
    // Who writes to a file needs no standard output, and who wants none says so.
    let words = ["sign", "alice", "letter", "-o", "sig"];
    by_shell(&stage, &words, ">&-").succeeds();
    by_shell(&stage, &["identities"], ">/dev/null").succeeds();
    by_shell(&stage, &["identities"], "1<>/dev/null").succeeds();
    // An empty message is not what was meant by no standard input.
    by_shell(&stage, &["sign", "alice"], "<&-").fails(1, "standard input is closed");
}

#[test]
fn what_a_command_reads_is_not_replaced_by_what_it_writes() {
    let stage = Stage::with_alice();
    fs::create_dir(stage.path("folder")).unwrap();
    let age = |letter: &str| {
        stage.write("letter", "Meet me\n");
        stage
            .run(["encrypt", "alice", "letter", "-o", letter])
            .succeeds();
    };
    age("letter.age");
    symlink("../letter", stage.path("folder/link")).unwrap();
    symlink("../letter.age", stage.path("folder/age")).unwrap();
    fs::hard_link(stage.path("letter"), stage.path("hard")).unwrap();
    let (letter, sealed) = (stage.read("letter"), stage.read("letter.age"));
    let absolute = stage.path("letter").to_str().unwrap().to_owned();
    for output in [
        "letter",
        "./letter",
        "folder/../letter",
        "folder/link",
        "hard",
        &absolute,
    ] {
        for words in [
            &["sign", "alice", "letter", "-o"][..],
            &["encrypt", "alice", "letter", "-o"],
        ] {
            let refused = stage.run_with_pin(&[words, &[output]].concat());
            refused.fails(1, "is what this command reads");
        }
    }
    for output in ["letter.age", "folder/age"] {
        for words in [
            &["decrypt", "alice", "letter.age", "-o"][..],
            &["decrypt", "letter.age", "-o"],
        ] {
            let refused = stage.run_with_pin(&[words, &[output]].concat());
            refused.fails(1, "is what this command reads");
        }
    }
    // By redirection, too: it would read what it writes.
    by_shell(&stage, &["encrypt", "alice", "letter"], ">>letter")
        .fails(1, "is what this command reads");
    by_shell(&stage, &["encrypt", "alice", "-o", "letter"], "<letter")
        .fails(1, "is what this command reads");
    by_shell(
        &stage,
        &["sign", "alice", "letter", "-o", "/dev/fd/3"],
        "3>>letter",
    )
    .fails(1, "is what this command reads");
    for words in [
        &["sign", "alice", "letter", "-o", "pin"][..],
        &["decrypt", "alice", "letter.age", "-o", "pin"],
    ] {
        stage
            .run_with_pin(words)
            .fails(1, "is what this command reads");
    }
    assert_eq!(stage.read("letter"), letter);
    assert_eq!(stage.read("letter.age"), sealed);
    assert_eq!(stage.read("pin"), claviger_tests::SoftHsm::PIN.as_bytes());
    // Devices are nobody's document.
    let null = ["sign", "alice", "/dev/null", "-o", "/dev/null"];
    stage.run_with_pin(&null).succeeds();
}

#[test]
fn nothing_in_the_home_is_replaced() {
    let stage = Stage::with_alice();
    stage.write("letter", "Meet me\n");
    symlink("home", stage.path("link")).unwrap();
    symlink("home/registry.sqlite", stage.path("file")).unwrap();
    fs::hard_link(stage.path("home/registry.sqlite"), stage.path("hard")).unwrap();
    let registry = || {
        let mut names: Vec<_> = fs::read_dir(stage.home())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        (names, stage.json(&["identities"]))
    };
    let before = registry();
    for output in [
        "home/registry.sqlite",
        "home/registry.sqlite-wal",
        "home/new",
        "link/registry.sqlite",
        "file",
        "hard",
    ] {
        for words in [
            &["sign", "alice", "letter", "-o", output][..],
            &["encrypt", "alice", "letter", "-o", output],
            &["reads-for", "export", output],
        ] {
            stage.run_with_pin(words).fails(1, "is in the home folder");
        }
    }
    assert_eq!(registry(), before);
}

#[cfg(target_os = "linux")]
#[test]
fn too_little_memory_to_tell_refused_pins_is_an_error() {
    let stage = Stage::with_alice();
    stage.write("letter", "Meet me\n");
    stage.write("wrong", "000000");
    let words = ["--pin-source", "file:wrong", "sign", "alice", "letter"];
    stage.run(words).fails(1, "rejected the PIN");
    let mut said = 0;
    for mebibytes in (60..400).step_by(20) {
        let claviger = stage.claviger(words);
        let mut shell = Command::new("sh");
        let script = format!("ulimit -v {}; exec \"$0\" \"$@\"", mebibytes << 10);
        shell
            .args(["-c", &script])
            .arg(claviger.get_program())
            .args(claviger.get_args());
        shell.current_dir(stage.folder());
        for (name, value) in claviger.get_envs() {
            if let Some(value) = value {
                shell.env(name, value);
            }
        }
        let outcome = Outcome::of(&mut shell);
        let err = outcome.err();
        assert!(
            !err.contains("memory allocation of"),
            "{mebibytes} MiB: {err}"
        );
        said += usize::from(err.contains("MiB of memory, which are not available"));
    }
    assert!(said > 0, "no limit was the one that matters");
}

#[test]
fn a_reader_who_has_gone_is_an_error_that_is_not_said() {
    let stage = Stage::with_alice();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let gone = Outcome::of(stage.claviger(["identities"]).stdout(writer));
    assert_eq!((gone.code(), gone.err()), (Some(1), String::new()));
    let file = File::create(stage.path("out")).unwrap();
    Outcome::of(stage.claviger(["identities"]).stdout(file)).succeeds();
}
