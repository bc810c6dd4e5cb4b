//! Processes that die, are interrupted, or get in each other's way: in the end the
//! token holds the keys of the identities that there are, and no others.
#![cfg(unix)]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use claviger_tests::{SoftHsm, is_user};
use common::{Outcome, Stage};
use rustix::fs::OFlags;
use serde_json::Value;

/// Starts to make an RSA key, which takes a while.
fn start_slow_generation(stage: &Stage, name: &str) -> Child {
    let backend = stage.token.backend();
    let mut command = stage.claviger([
        "--pin-source",
        "file:pin",
        "generate",
        name,
        "--backend",
        &backend,
        "--params",
        "rsa4096",
        "--capabilities",
        "commit",
    ]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn send(signal: &str, child: &Child) {
    let id = child.id().to_string();
    let sent = Command::new("kill").args([signal, &id]).status();
    assert!(sent.unwrap().success());
}

#[test]
fn a_pipe_that_gives_no_pin_does_not_hold_back_a_signal() {
    let stage = Stage::with_alice();
    let mut mkfifo = Command::new("mkfifo");
    assert!(mkfifo.arg(stage.path("pipe")).status().unwrap().success());
    stage.write("letter", "Meet me\n");
    let backend = stage.token.backend();
    for words in [
        &["sign", "alice", "letter"][..],
        &["generate", "bob", "--backend", &backend],
        &["delete", "alice"],
    ] {
        let words = [&["--pin-source", "file:pipe"], words].concat();
        let child = stage
            .claviger(words)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let _silent = once_somebody_reads(&stage.path("pipe"));
        send("-TERM", &child);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(128 + 15), "{output:?}");
    }
    assert_eq!(stage.names(), ["alice"]);
    assert_eq!(stage.private_keys(), 2);
}

/// The end of a pipe that somebody writes to, opened once the command wants to read from it. It
/// gives nothing, but ends after a while, so that a command that waits for it does, too.
fn once_somebody_reads(pipe: &Path) -> File {
    use std::os::unix::fs::OpenOptionsExt;
    let begun = Instant::now();
    let flags = OFlags::NONBLOCK.bits();
    loop {
        let mut options = File::options();
        if let Ok(end) = options
            .write(true)
            .custom_flags(flags.cast_signed())
            .open(pipe)
        {
            let kept = end.try_clone().unwrap();
            std::thread::spawn(move || {
                sleep(Duration::from_secs(60));
                drop(kept);
            });
            return end;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "nobody reads");
        sleep(Duration::from_millis(10));
    }
}

/// Sends a signal to generations, each later than the one before, until `hit` says
/// that one was struck in the middle.
fn strike(stage: &Stage, signal: &str, hit: impl Fn(&Output) -> bool) -> Output {
    for attempt in 0..40 {
        let name = format!("victim{attempt}");
        let child = start_slow_generation(stage, &name);
        sleep(Duration::from_millis(20 + 10 * attempt));
        send(signal, &child);
        let output = child.wait_with_output().unwrap();
        stage.heal();
        if hit(&output) {
            return output;
        }
        if output.status.success() {
            stage.run_with_pin(&["delete", &name]).succeeds();
        }
    }
    panic!("no generation was struck in the middle");
}

/// Whether something was interrupted, as `doctor` sees it.
fn is_unsettled(stage: &Stage) -> bool {
    let doctor = stage.run(["--json", "doctor"]);
    let findings = doctor.json()["findings"].clone();
    let mut findings = findings.as_array().unwrap().iter();
    findings.any(|f| f["level"] == "warning" && f["what"].to_string().contains("interrupted"))
}

#[test]
fn a_generation_that_was_killed_is_undone_by_the_next_command_that_uses_the_token() {
    let stage = Stage::new();
    for next in ["generate", "sign", "doctor"] {
        if next == "sign" {
            stage
                .generate("alice", &["--capabilities", "commit"])
                .succeeds();
            stage.write("letter", "x");
        }
        let keys = stage.private_keys();
        strike(&stage, "-KILL", |_| is_unsettled(&stage));
        // What asks for no PIN settles nothing, and works.
        stage.run(["identities"]).succeeds();
        assert!(is_unsettled(&stage));
        match next {
            "generate" => {
                stage
                    .generate("next", &["--capabilities", "commit"])
                    .succeeds();
                stage.run_with_pin(&["delete", "next"]).succeeds();
            }
            "sign" => {
                let signed = stage.run_with_pin(&["sign", "alice", "letter", "-o", "sig"]);
                assert_eq!(signed.succeeds().err(), "");
            }
            _ => {
                let repaired = stage.run_with_pin(&["doctor", "--repair"]).succeeds();
                assert!(repaired.out().contains("is resolved"), "{}", repaired.out());
            }
        }
        assert!(!is_unsettled(&stage), "after {next}");
        assert_eq!(
            stage.private_keys(),
            keys,
            "after {next}: {}",
            stage.objects()
        );
    }
    assert_eq!(stage.names(), ["alice"]);
}

#[test]
fn an_interrupted_generation_is_undone_before_the_command_ends() {
    let stage = Stage::new();
    for (signal, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
        let hit = |output: &Output| {
            said(output).contains("tidying up") && output.status.code() == Some(code)
        };
        let output = strike(&stage, signal, hit);
        assert!(
            said(&output).contains("nothing of it is left"),
            "{}",
            said(&output)
        );
        assert!(output.stdout.is_empty());
        assert!(!is_unsettled(&stage));
        assert!(stage.names().is_empty());
        assert!(!stage.objects().contains("Object"), "{}", stage.objects());
    }
}

#[test]
fn a_second_interrupt_ends_the_command_at_once() {
    let stage = Stage::new();
    for attempt in 0..40 {
        let child = start_slow_generation(&stage, "victim");
        sleep(Duration::from_millis(30 + 10 * attempt));
        send("-INT", &child);
        sleep(Duration::from_millis(20));
        // It may be done by now.
        let _ = Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .stderr(Stdio::null())
            .status();
        let output = child.wait_with_output().unwrap();
        stage.heal();
        if output.status.success() {
            stage.run_with_pin(&["delete", "victim"]).succeeds();
        } else if is_unsettled(&stage) {
            assert_eq!(output.status.code(), Some(130));
            break;
        }
        assert!(attempt < 39, "no generation was struck in the middle");
    }
    stage.run_with_pin(&["doctor", "--repair"]).succeeds();
    assert!(!stage.objects().contains("Object"), "{}", stage.objects());
}

#[test]
fn a_pin_is_not_sent_to_a_token_that_was_not_asked_for() {
    let stage = Stage::with_alice();
    let other = Stage::new();
    // The interrupted generation is on another token, with a PIN of its own.
    let mut command = stage.claviger(["unused"]);
    for attempt in 0..40 {
        let backend = other.token.backend();
        let words = [
            "generate",
            "victim",
            "--backend",
            &backend,
            "--params",
            "rsa4096",
        ];
        command = stage.claviger([&["--pin-source", "file:pin"], &words[..]].concat());
        command.args(["--capabilities", "commit"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        sleep(Duration::from_millis(20 + 10 * attempt));
        send("-KILL", &child);
        child.wait().unwrap();
        other.heal();
        if is_unsettled(&stage) {
            break;
        }
        if stage.names().contains(&"victim".into()) {
            stage.run_with_pin(&["delete", "victim"]).succeeds();
        }
        assert!(attempt < 39, "no generation was struck in the middle");
    }
    drop(command);
    stage.write("letter", "x");
    let signed = stage
        .run_with_pin(&["sign", "alice", "letter", "-o", "sig"])
        .succeeds();
    assert!(
        signed
            .err()
            .starts_with("warning: the generation of `victim`"),
        "{}",
        signed.err()
    );
    assert!(is_unsettled(&stage));
    stage.run_with_pin(&["doctor", "--repair"]).succeeds();
    assert!(!is_unsettled(&stage));
    assert_eq!(other.private_keys(), 0);
    assert_eq!(stage.private_keys(), 2);
}

#[test]
fn what_was_interrupted_is_not_settled_with_a_pin_that_may_be_another_tokens() {
    let stage = Stage::with_alice();
    let other = SoftHsm::new();
    let backend = other.backend();
    let bob = ["generate", "bob", "--backend", &backend];
    stage.run_with_pin(&bob).succeeds();
    stage.write("letter", "Meet me\n");
    let words = [
        "encrypt",
        "alice",
        "--also",
        "bob",
        "letter",
        "-o",
        "letter.age",
    ];
    stage.run(words).succeeds();
    strike(&stage, "-KILL", |_| is_unsettled(&stage));
    let refused = stage.run_with_pin(&["--json", "decrypt", "letter.age"]);
    assert_eq!(refused.code(), Some(1));
    assert!(
        refused.err().contains("pin-for-several-tokens"),
        "{}",
        refused.err()
    );
    assert!(is_unsettled(&stage));
    // Who is named is meant.
    stage
        .run_with_pin(&["decrypt", "alice", "letter.age"])
        .succeeds();
    assert!(!is_unsettled(&stage));
}

#[test]
fn of_several_who_generate_the_same_name_at_once_one_wins() {
    // SoftHSM writes into the token's files at each login, and who looks at the same moment
    // sees no token, or half of one. Such a round shows less, and is played again.
    for _ in 0..10 {
        let stage = Stage::new();
        let (won, complaints) = race(&stage, 4);
        if won == 0 || is_unsettled(&stage) {
            stage.run_with_pin(&["doctor", "--repair"]).succeeds();
        }
        assert!(won <= 1, "{complaints:?}");
        assert_eq!(stage.private_keys(), 2 * won, "{complaints:?}");
        let refused = |said: &String| {
            said.contains("Identity already exists") || said.contains("at this moment")
        };
        if won == 1 {
            let objects = stage.objects();
            for key in stage.json(&["show", "alice"])["keys"].as_array().unwrap() {
                assert!(objects.contains(key["slot"].as_str().unwrap()), "{objects}");
            }
        }
        if won == 1 && complaints.iter().any(refused) {
            return;
        }
    }
    panic!("in no round two of them saw the token");
}

/// Lets several processes generate `alice`; says how many did, and what the others said.
fn race(stage: &Stage, number: usize) -> (usize, Vec<String>) {
    let backend = stage.token.backend();
    let words = [
        "--pin-source",
        "file:pin",
        "generate",
        "alice",
        "--backend",
        &backend,
    ];
    let start = |_| {
        let mut command = stage.claviger(words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let children: Vec<Child> = (0..number).map(start).collect();
    let mut complaints = Vec::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        if !output.status.success() {
            assert_eq!(output.status.code(), Some(1));
            complaints.push(String::from_utf8_lossy(&output.stderr).into_owned());
        }
    }
    (number - complaints.len(), complaints)
}

/// A decryption that has begun to write, and wants more of its input.
fn start_endless_decryption(stage: &Stage, before: &[&str], sealed: &[u8]) -> (Child, ChildStdin) {
    let words = ["--pin-source", "file:pin", "decrypt", "alice", "-o", "out"];
    let claviger = stage.claviger(words);
    let words = before.iter().map(OsStr::new);
    let mut words = words
        .chain([claviger.get_program()])
        .chain(claviger.get_args());
    let mut command = Command::new(words.next().unwrap());
    command.args(words).current_dir(stage.folder());
    for (name, value) in claviger.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(sealed).unwrap();
    let begun = Instant::now();
    while !stage.is_writing(&child) {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "it does not begin"
        );
        sleep(Duration::from_millis(10));
    }
    (child, stdin)
}

#[test]
fn an_interrupted_decryption_leaves_no_file() {
    let stage = Stage::with_alice();
    let sealed = stage.feed(&["encrypt", "alice"], &[1; 200_000]).succeeds();
    let sealed = &sealed.bytes()[..150_000];
    // Whoever runs the tests may ignore some of them.
    let listening = ["env", "--default-signal"];
    for (signal, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129), ("-QUIT", 131)] {
        let (mut child, _stdin) = start_endless_decryption(&stage, &listening, sealed);
        send(signal, &child);
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert!(stage.files().is_empty(), "{:?}", stage.files());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn signals_that_were_ignored_before_are_ignored() {
    let stage = Stage::with_alice();
    let sealed = stage.feed(&["encrypt", "alice"], &[1; 200_000]).succeeds();
    let (begin, rest) = sealed.bytes().split_at(150_000);
    for before in [
        &["nohup"][..],
        &["env", "--ignore-signal=HUP", "--ignore-signal=QUIT"],
    ] {
        let (mut child, mut stdin) = start_endless_decryption(&stage, before, begin);
        send("-HUP", &child);
        if before.len() > 1 {
            send("-QUIT", &child);
        }
        sleep(Duration::from_millis(100));
        stdin.write_all(rest).unwrap();
        drop(stdin);
        assert!(child.wait().unwrap().success());
        assert!(stage.read("out") == [1; 200_000]);
        std::fs::remove_file(stage.path("out")).unwrap();
    }
}

#[test]
fn a_deadline_that_passes_leaves_nothing_behind() {
    let stage = Stage::new();
    let words = [
        "--timeout",
        "0.000001",
        "--pin-source",
        "file:pin",
        "generate",
        "a",
    ];
    let backend = stage.token.backend();
    let mut command = stage.claviger(words);
    Outcome::of(command.args(["--backend", &backend])).fails(1, "the deadline passed");
    assert_eq!(stage.private_keys(), 0);
    assert!(stage.names().is_empty());
}

#[test]
fn whatever_it_waits_for_the_command_ends_in_time() {
    let stage = Stage::with_alice();
    // A smartcard service that does not answer.
    let socket = stage.path("socket");
    let _silent = UnixListener::bind(&socket).unwrap();
    let begin = |words: &[&str]| {
        let mut command = stage.claviger([&["--timeout", "0.5"], words].concat());
        command.env("PCSCLITE_CSOCK_NAME", &socket);
        command
    };
    let begun = Instant::now();
    for words in [
        &["tokens"][..],
        &["tokens", "--backend", "piv:"],
        &["doctor"],
    ] {
        Outcome::of(&mut begin(words)).fails(1, "the deadline passed");
    }
    // Root without a namespace asks the modules that this machine has for everybody, too: one
    // may wait for the same service.
    let backends = [&[][..], &["--backend", "pkcs11:"]];
    for backend in backends.iter().filter(|_| is_user()) {
        let words = [&["tokens", "--watch"], *backend].concat();
        Outcome::of(&mut begin(&words)).succeeds();
    }
    // What is to be encrypted does not come.
    let mut command = begin(&["encrypt", "alice", "-o", "out"]);
    let mut child = (command.stdin(Stdio::piped()).stderr(Stdio::piped()))
        .spawn()
        .unwrap();
    let stdin = child.stdin.take();
    Outcome::from(child.wait_with_output().unwrap()).fails(1, "the deadline passed");
    drop(stdin);
    assert_eq!(stage.files(), ["socket"]);
    assert!(begun.elapsed() < Duration::from_secs(120));
}

#[test]
fn a_token_that_is_absent_is_absent_and_nothing_is_forgotten() {
    let stage = Stage::with_alice();
    stage.write("letter", "x");
    stage.token.remove();
    stage
        .run_with_pin(&["sign", "alice", "letter", "-o", "sig"])
        .fails(1, "no attached token matches");
    stage
        .run_with_pin(&["delete", "alice"])
        .fails(1, "no attached token matches");
    let doctor = stage.run(["doctor"]);
    assert_eq!(doctor.code(), Some(1));
    assert!(
        doctor.out().contains("the token of `alice` is absent"),
        "{}",
        doctor.out()
    );
    assert_eq!(stage.names(), ["alice"]);
    stage.token.insert();
    stage
        .run_with_pin(&["sign", "alice", "letter", "-o", "sig"])
        .succeeds();
    assert_eq!(stage.run(["doctor"]).code(), Some(0));
}

#[test]
fn who_watches_sees_a_token_come_back_as_often_as_it_does() {
    let stage = Stage::new();
    let of_module = format!("pkcs11:?module-path={}", SoftHsm::module());
    for backend in [stage.token.backend(), of_module] {
        // Then it ends, also where nothing comes.
        let until = ["--timeout", "20", "--json"];
        let words = [&until[..], &["tokens", "--watch", "--backend", &backend]].concat();
        let mut watching = stage.claviger(words);
        let mut watching = watching.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
        let mut becomes = |state: &str| {
            let line = lines
                .next()
                .unwrap_or_else(|| panic!("never {state}: {backend}"));
            let change: Value = serde_json::from_str(&line.unwrap()).unwrap();
            assert_eq!(change["state"], state, "{change}");
        };
        becomes("present");
        for _ in 0..2 {
            stage.token.remove();
            becomes("absent");
            stage.token.insert();
            becomes("present");
        }
        watching.kill().unwrap();
        watching.wait().unwrap();
    }
}

#[test]
fn many_processes_may_use_one_token_at_once() {
    let stage = Stage::with_alice();
    stage.write("letter", "x");
    let children: Vec<Child> = (0..16)
        .map(|i| {
            let file = format!("sig{i}");
            let words = [
                "--pin-source",
                "file:pin",
                "sign",
                "alice",
                "letter",
                "-o",
                &file,
            ];
            stage
                .claviger(words)
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
    stage
        .run(["verify", "alice", "--signature", "sig7", "letter"])
        .succeeds();
}
