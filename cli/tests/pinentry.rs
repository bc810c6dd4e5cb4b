//! Having a PIN asked for by a `pinentry`.
#![cfg(target_os = "linux")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use claviger_tests::SoftHsm;
use common::Stage;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

const PATIENCE: Duration = Duration::from_secs(20);

/// Speaks as a `pinentry` does (Assuan), notes what it is told, and answers what a file says:
/// a PIN, `cancel`, `silence`, or what is no answer at all.
const SCRIPTED: &str = r#"#!/bin/sh
echo "started" >> told
echo "OK Pleased to meet you"
while read -r line; do
    echo "$line" >> told
    case "$line" in
        GETPIN | CONFIRM*)
            case "$(cat answer)" in
                cancel) echo "ERR 83886179 Operation cancelled <Pinentry>" ;;
                timeout) echo "ERR 83886142 Timeout <Pinentry>" ;;
                "") echo "OK" ;;
                silence) echo $$ > running; exec sleep 60 ;;
                *) printf 'D %s\nOK\n' "$(cat answer)" ;;
            esac ;;
        BYE) echo "OK closing connection"; exit ;;
        *) echo "OK" ;;
    esac
done
"#;

/// `alice`, a letter, and a `pinentry` that answers this.
fn stage(answer: &str) -> Stage {
    let stage = Stage::with_alice();
    stage.write("letter", "x");
    stage.write("answer", answer);
    let program = stage.path("bin/pinentry");
    fs::create_dir(stage.path("bin")).unwrap();
    fs::write(&program, SCRIPTED).unwrap();
    let mut mode = fs::metadata(&program).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
    fs::set_permissions(&program, mode).unwrap();
    stage
}

const SIGN: [&str; 5] = ["sign", "alice", "letter", "-o", "sig"];

/// The command with that `pinentry`, and no screen.
fn claviger(stage: &Stage, options: &[&str]) -> Command {
    let mut command = stage.claviger([options, &SIGN].concat());
    let others = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{others}", stage.path("bin").display()));
    command.env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY");
    command
}

fn told(stage: &Stage) -> String {
    fs::read_to_string(stage.path("told")).unwrap_or_default()
}

/// What it says on standard error, when it failed.
#[track_caller]
fn fails(command: &mut Command) -> String {
    let done = command.output().unwrap();
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    String::from_utf8(done.stderr).unwrap()
}

#[test]
fn a_pinentry_that_is_named_is_told_what_for_and_its_pin_is_sent() {
    let stage = stage(SoftHsm::PIN);
    let done = claviger(&stage, &["--pin-source", "pinentry"])
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let told = told(&stage);
    assert!(told.contains("SETPROMPT PIN:"), "{told}");
    assert!(told.contains(stage.token.label()), "{told}");
    // Nobody said how long it may take.
    assert!(!told.contains("SETTIMEOUT"), "{told}");
}

#[test]
fn a_pinentry_is_told_how_many_attempts_are_left() {
    let stage = stage("975312");
    let named = ["--pin-source", "pinentry"];
    let said = fails(&mut claviger(&stage, &named));
    assert!(
        said.contains("rejected the PIN") && !said.contains("975312"),
        "{said}"
    );
    assert!(!told(&stage).contains("attempts"), "{}", told(&stage));
    // SoftHSM only says that there was a wrong one.
    stage.write("answer", SoftHsm::PIN);
    let done = claviger(&stage, &named).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    assert!(
        told(&stage).contains("few attempts remaining"),
        "{}",
        told(&stage)
    );
}

#[test]
fn a_pinentry_that_gives_none_is_an_error_that_does_not_quote_it() {
    for (answer, reason) in [
        ("cancel", "it was cancelled"),
        ("timeout", "the deadline passed"),
        ("", "nothing was typed"),
        // A line that the protocol does not know, and a byte that is no text.
        ("97531\r86420", "invalid data"),
        ("97531%FF86420", "not UTF-8"),
    ] {
        let stage = stage(answer);
        let said = fails(&mut claviger(&stage, &["--pin-source", "pinentry"]));
        assert!(said.contains(reason), "{answer:?}: {said}");
        assert!(!said.contains("86420"), "{answer:?}: {said}");
    }
    // The program that makes the command an ordinary user's is looked for there, too.
    let stage = stage("");
    fs::remove_file(stage.path("bin/pinentry")).unwrap();
    let path = std::env::var("PATH").unwrap();
    let mut found = path.split(':').map(|folder| format!("{folder}/unshare"));
    let unshare = found.find(|path| fs::exists(path).unwrap()).unwrap();
    std::os::unix::fs::symlink(unshare, stage.path("bin/unshare")).unwrap();
    let mut command = claviger(&stage, &["--pin-source", "pinentry"]);
    let said = fails(command.env("PATH", stage.path("bin")));
    assert!(said.contains("there is no program `pinentry`"), "{said}");
}

#[test]
fn nobody_who_did_not_ask_for_a_pinentry_waits_for_one_without_a_screen_and_a_deadline() {
    let stage = stage(SoftHsm::PIN);
    let timeout = ["--timeout", "60"];
    for (options, screen) in [
        (&[][..], None),
        (&timeout, None),
        (&timeout, Some("")),
        (&[], Some(":0")),
    ] {
        let mut command = claviger(&stage, options);
        if let Some(screen) = screen {
            command.env("DISPLAY", screen);
        }
        let begun = Instant::now();
        let said = fails(&mut command);
        assert!(said.contains("requires a PIN"), "{said}");
        assert!(begun.elapsed() < Duration::from_secs(50));
        assert_eq!(told(&stage), "");
    }
    for screen in ["DISPLAY", "WAYLAND_DISPLAY"] {
        let mut command = claviger(&stage, &timeout);
        let done = command.env(screen, ":0").output().unwrap();
        assert!(done.status.success(), "{done:?}");
        let told = told(&stage);
        let (_, left) = told.split_once("SETTIMEOUT ").expect(&told);
        let left: u32 = left.lines().next().unwrap().parse().unwrap();
        assert!((10..=60).contains(&left), "{told}");
        fs::remove_file(stage.path("told")).unwrap();
    }
}

/// Who was asked and says nothing, once it is there.
#[track_caller]
fn silent_pinentry(stage: &Stage) -> String {
    let begun = Instant::now();
    loop {
        let running = fs::read_to_string(stage.path("running")).unwrap_or_default();
        if running.ends_with('\n') {
            return running.trim().to_owned();
        }
        assert!(begun.elapsed() < PATIENCE, "{}", told(stage));
        sleep(Duration::from_millis(10));
    }
}

/// Waits until it is gone.
#[track_caller]
fn is_ended(running: &str) {
    let begun = Instant::now();
    let is_there = || {
        let line = fs::read_to_string(format!("/proc/{running}/cmdline"));
        line.unwrap_or_default().contains("sleep")
    };
    while is_there() {
        assert!(begun.elapsed() < PATIENCE, "it is still there");
        sleep(Duration::from_millis(10));
    }
}

/// One right after the other.
fn send(signals: &[&str], child: &Child) {
    let id = child.id();
    let lines: String = (signals.iter())
        .map(|signal| format!("kill {signal} {id};"))
        .collect();
    let sent = Command::new("sh").args(["-c", &lines]).status();
    assert!(sent.unwrap().success());
}

#[test]
fn a_pinentry_that_nobody_answers_is_ended_with_the_command() {
    let timeout = ["--pin-source", "pinentry", "--timeout", "2"];
    for (options, signals, codes) in [
        (&timeout[..], &[][..], &[1][..]),
        (&timeout[..2], &["-TERM"], &[143]),
        (&timeout[..2], &["-INT"], &[130]),
        // The second ends the process at once, unless the first has ended it.
        (&timeout[..2], &["-INT", "-TERM"], &[143, 130]),
    ] {
        let stage = stage("silence");
        let mut child = claviger(&stage, options)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let running = silent_pinentry(&stage);
        send(signals, &child);
        let code = child.wait().unwrap().code().unwrap();
        assert!(codes.contains(&code), "{signals:?}: {code}");
        is_ended(&running);
    }
}

#[test]
fn the_pinentry_that_debian_has_asks_at_a_terminal() {
    let stage = Stage::with_alice();
    stage.write("letter", "x");
    fs::create_dir(stage.path("bin")).unwrap();
    let real = std::env::var("PATH").unwrap();
    let mut folders = real
        .split(':')
        .map(|folder| format!("{folder}/pinentry-curses"));
    let real = folders.find(|path| fs::exists(path).unwrap());
    let real = real.expect("pinentry-curses is missing: cargo xtask setup");
    std::os::unix::fs::symlink(real, stage.path("bin/pinentry")).unwrap();

    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let master = openpt(flags).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let line = ioctl_tiocgptpeer(&master, flags).unwrap();
    let claviger = claviger(&stage, &["--pin-source", "pinentry", "--timeout", "60"]);
    let mut command = Command::new("setsid");
    command
        .arg("--ctty")
        .arg(claviger.get_program())
        .args(claviger.get_args());
    command.current_dir(stage.folder());
    for (name, value) in claviger.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("TERM", "xterm").env_remove("GPG_TTY");
    let other = || line.try_clone().unwrap();
    let child = command
        .stdin(other())
        .stdout(other())
        .stderr(other())
        .spawn();
    let mut child = child.unwrap();
    let mut keyboard = File::from(master);
    let shown = Arc::new(Mutex::new(String::new()));
    let (mut screen, seen) = (keyboard.try_clone().unwrap(), Arc::clone(&shown));
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = screen.read(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
            seen.lock().unwrap().push_str(&text);
        }
    });
    let begun = Instant::now();
    while !shown.lock().unwrap().contains("Enter the PIN for") {
        assert!(begun.elapsed() < PATIENCE, "{}", shown.lock().unwrap());
        sleep(Duration::from_millis(20));
    }
    sleep(Duration::from_millis(200));
    keyboard
        .write_all(format!("{}\r", SoftHsm::PIN).as_bytes())
        .unwrap();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(begun.elapsed() < PATIENCE, "{}", shown.lock().unwrap());
        sleep(Duration::from_millis(20));
    };
    let shown = shown.lock().unwrap();
    assert!(status.success(), "{shown}");
    assert!(!shown.contains(SoftHsm::PIN), "{shown}");
}
