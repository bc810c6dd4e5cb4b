//! A registry that something else has changed, as the command shows it.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

mod common;

use common::Stage;
use rusqlite::Connection;
use serde_json::Value;

/// Changes the registry as somebody does who has the file, and nothing of ours.
fn alter(stage: &Stage, statements: &str) {
    let db = Connection::open(stage.home().join("registry.sqlite")).unwrap();
    db.execute_batch(statements).unwrap();
}

/// What `doctor` finds at this level: texts, codes and hints.
fn found(stage: &Stage, level: &str) -> Vec<[String; 3]> {
    let outcome = stage.run(["--json", "doctor"]);
    let report: Value = outcome.json();
    assert_eq!(report["ok"] == true, outcome.code() == Some(0), "{report}");
    let findings = report["findings"].as_array().unwrap().clone();
    let text = |finding: &Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
    findings
        .iter()
        .filter(|finding| finding["level"] == level)
        .map(|finding| ["what", "code", "hint"].map(|name| text(finding, name)))
        .collect()
}

#[test]
fn what_was_altered_is_named_by_doctor_and_used_by_nobody() {
    let stage = Stage::with_alice();
    stage.generate("mallory", &[]).succeeds();
    let sound = found(&stage, "info");
    assert!(
        sound
            .iter()
            .any(|[what, ..]| what == "the registry is intact")
    );
    assert!(found(&stage, "error").is_empty());
    alter(
        &stage,
        "UPDATE identity SET sign_key = (SELECT sign_key FROM identity WHERE name = 'mallory'),
         decrypt_key = (SELECT decrypt_key FROM identity WHERE name = 'mallory')
         WHERE name = 'alice'",
    );
    let errors = found(&stage, "error");
    let [what, code, hint] = &errors[0];
    assert!(
        what.contains("`alice`") && what.contains("registry.sqlite"),
        "{what}"
    );
    assert_eq!(code, "registry-row-altered");
    assert!(hint.contains("claviger restore"), "{hint}");
    stage.write("letter", "dear friend");
    for words in [
        &["sign", "alice", "letter", "-o", "sig"][..],
        &["encrypt", "alice", "letter", "-o", "sealed"],
        &["show", "alice"],
        &["identities"],
    ] {
        stage.run_with_pin(words).fails(1, "not as it was written");
    }
    let refused = stage.run(["--json", "show", "alice"]).err();
    assert!(refused.contains("\"registry-row-altered\""), "{refused}");
    // The other one is as it was.
    let words = ["sign", "mallory", "letter", "-o", "sig"];
    stage.run_with_pin(&words).succeeds();
}

#[test]
fn a_damaged_page_is_said_with_what_to_do() {
    let stage = Stage::with_alice();
    let path = stage.home().join("registry.sqlite");
    let mut bytes = std::fs::read(&path).unwrap();
    // How many cells the second page has (SQLite's file format, §1.6).
    bytes[4096 + 3..4096 + 7].fill(0x7f);
    std::fs::write(&path, bytes).unwrap();
    let refused = stage.run(["identities"]).fails(1, "damaged");
    assert!(
        refused.err().contains("claviger restore FILE"),
        "{}",
        refused.err()
    );
    let errors = found(&stage, "error");
    assert_eq!(errors[0][1], "registry-damaged");
    assert!(errors[0][2].contains("claviger restore"), "{:?}", errors[0]);
}
