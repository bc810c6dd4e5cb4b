//! The examples of the crates do what they say, in memory and on SoftHSM2.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::path::PathBuf;
use std::process::Command;

use claviger_tests::SoftHsm;

/// An example, which is built with the tests.
fn example(name: &str) -> Command {
    let program = std::env::current_exe().unwrap();
    let folder: PathBuf = program.ancestors().nth(2).unwrap().join("examples");
    Command::new(folder.join(name))
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// What the example says with a key in memory, and with one on a token.
fn in_memory_and_on_a_token(name: &str) -> [String; 2] {
    let token = SoftHsm::new();
    let (variable, value) = token.environment();
    let mut on_token = example(name);
    on_token.arg(token.backend()).env(variable, &value);
    let said = output(on_token.env("PIN", SoftHsm::PIN));
    // It has cleaned up after itself.
    let mut list = Command::new("pkcs11-tool");
    list.args(["--module", SoftHsm::module(), "--list-objects"])
        .args(["--token-label", token.label(), "--login", "--pin"])
        .arg(SoftHsm::PIN)
        .env(variable, value);
    assert_eq!(output(&mut list), "");
    [output(&mut example(name)), said]
}

#[test]
fn an_age_file_is_opened() {
    for said in in_memory_and_on_a_token("age_file") {
        assert!(
            said.ends_with("alice opens it: Meet me at the bridge.\n"),
            "{said}"
        );
    }
}

#[test]
fn a_certificate_signing_request_is_what_openssl_verifies() {
    for request in in_memory_and_on_a_token("csr") {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("csr.pem");
        std::fs::write(&file, request).unwrap();
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-verify", "-noout", "-subject", "-in"]);
        // Versions differ in their blanks.
        let said = output(openssl.arg(&file)).replace(' ', "");
        assert_eq!(said, "subject=O=Example,CN=alice\n");
    }
}

#[test]
fn a_tls_server_has_its_key_on_a_token() {
    for said in in_memory_and_on_a_token("tls") {
        assert_eq!(said, "hello from a key on a token\n");
    }
}

#[test]
fn tokens_are_watched() {
    let token = SoftHsm::new();
    let (variable, value) = token.environment();
    let said = output(example("watch_tokens").arg("1").env(variable, value));
    assert!(said.contains("memory:"), "{said}");
}

#[test]
fn a_driver_is_short() {
    assert!(output(&mut example("driver")).starts_with("onekey:Example/1 has the key SHA256:"));
}
