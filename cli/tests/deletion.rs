//! `delete` asks a person, and not a script.
#![cfg(target_os = "linux")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use claviger_token::shell::quoted;
use common::Stage;

/// Runs the command at a terminal of its own, which `script` (util-linux) makes; the answer
/// is typed once there is the question.
fn at_terminal(stage: &Stage, words: &[&str], answer: &str) -> (Option<i32>, String) {
    let claviger = stage.claviger([&["--pin-source", "file:pin"], words].concat());
    let mut line = quoted(claviger.get_program().to_str().unwrap()).into_owned();
    for word in claviger.get_args() {
        line.push(' ');
        line.push_str(&quoted(word.to_str().unwrap()));
    }
    let mut script = Command::new("script");
    script
        .args(["-qec", &line, "/dev/null"])
        .current_dir(stage.folder());
    for (name, value) in claviger.get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    script.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = script.spawn().unwrap();
    let (mut keyboard, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (mut shown, mut byte) = (Vec::new(), [0]);
    let mut is_answered = false;
    while let Ok(1) = screen.read(&mut byte) {
        shown.extend(byte);
        if !is_answered && shown.ends_with(b"Type yes to delete it: ") {
            keyboard.write_all(answer.as_bytes()).unwrap();
            keyboard.flush().unwrap();
            is_answered = true;
        }
    }
    let code = child.wait().unwrap().code();
    (code, String::from_utf8_lossy(&shown).into_owned())
}

#[test]
fn a_person_at_a_terminal_is_asked_and_a_script_is_not() {
    let stage = Stage::with_alice();
    stage.run(["connect", "bob", "--to", "alice"]).succeeds();
    let objects = stage.objects();
    for answer in ["no\n", "\n", "y\n", "YES\n"] {
        let (code, shown) = at_terminal(&stage, &["delete", "alice"], answer);
        assert_eq!(code, Some(1), "{shown}");
        assert!(shown.contains("is destroyed on pkcs11:"), "{shown}");
        assert!(shown.contains("nothing was deleted"), "{shown}");
        assert_eq!(stage.objects(), objects);
    }
    let (code, shown) = at_terminal(&stage, &["delete", "bob"], "yes\n");
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("is not destroyed"), "{shown}");
    assert_eq!(stage.objects(), objects);
    let (code, shown) = at_terminal(&stage, &["delete", "alice", "--yes"], "");
    assert_eq!(code, Some(0), "{shown}");
    assert!(!shown.contains("Type yes"), "{shown}");
    assert_eq!(stage.private_keys(), 0);
    // A script goes on, as ever.
    stage.generate("alice", &[]).succeeds();
    stage.run_with_pin(&["delete", "alice"]).succeeds();
    assert_eq!(stage.private_keys(), 0);
}
