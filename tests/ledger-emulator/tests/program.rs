//! The program, for people who try something out.
#![cfg(test)]
#![allow(clippy::unwrap_used, reason = "tests and what they share")]

use std::process::Command;

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_claviger-ledger-emulator"))
}

#[test]
fn a_command_finds_the_device_and_its_exit_code_is_handed_on() {
    let script = "echo $CLAVIGER_LEDGER_ADDRESS; exit 7";
    let output = program()
        .args(["--approval", "reject", "sh", "-c", script])
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.starts_with("127.0.0.1:"), "{printed}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(printed.trim()), "{said}");
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn a_mistyped_option_is_explained() {
    let output = program().args(["--approve"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("usage:"), "{said}");
}
