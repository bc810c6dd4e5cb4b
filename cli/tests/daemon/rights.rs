//! Who may do what, and the log of who did.

use std::fs;

use super::common::{Daemon, Stage};

/// Configures the log of the daemon.
fn configure(stage: &Stage, settings: &str) {
    let folder = stage.path("config/claviger");
    fs::create_dir_all(&folder).unwrap();
    let settings = format!("[serve.audit]\n{settings}");
    fs::write(folder.join("config.toml"), settings).unwrap();
}

/// A stage whose daemon writes down what is done.
fn audited() -> (Stage, Daemon) {
    let stage = Stage::with_alice();
    let log = stage.path("audit.jsonl");
    configure(&stage, &format!("file = '{}'\n", log.display()));
    let daemon = Daemon::start(&stage);
    (stage, daemon)
}

#[test]
fn what_is_done_is_in_the_audit_log_and_a_change_of_it_is_found() {
    let (stage, daemon) = audited();
    stage.write("letter", "Meet me\n");
    assert_eq!(stage.json(&["status"])["audit"], "required");
    let sign = ["sign", "alice", "letter", "-o", "sig"];
    stage.run_with_pin(&sign).succeeds();
    daemon.stop();
    let log = String::from_utf8(stage.read("audit.jsonl")).unwrap();
    for word in ["\"sign\"", "\"alice\"", "begin", "end"] {
        assert!(log.contains(word), "no {word} in {log}");
    }
    let verify = ["--json", "audit", "verify", "audit.jsonl"];
    let report = stage.run(verify).succeeds().json();
    assert_eq!(report["whole"], true, "{report}");
    // It does not promise what it cannot know.
    let said = stage.run(&verify[1..]).succeeds().out();
    assert!(said.contains("no change was found"), "{said}");
    assert!(
        said.contains("without a checked seal this cannot find"),
        "{said}"
    );
    assert_eq!(report["closed"], true, "{report}");

    let altered = log.replacen("\"alice\"", "\"alicf\"", 1);
    stage.write("audit.jsonl", altered);
    let report = stage.run(verify);
    assert_eq!(report.code(), Some(1), "{}", report.out());
    let report = report.json();
    assert_eq!(report["whole"], false, "{report}");
    assert!(report["fault_count"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn a_log_that_cannot_be_written_lets_nothing_be_signed() {
    let stage = Stage::with_alice();
    configure(&stage, "file = '/nowhere/audit.jsonl'\n");
    stage
        .run(["--json", "serve"])
        .fails(1, "\"code\":\"audit-unavailable\"");
}

#[test]
fn a_log_that_has_no_place_is_off_and_one_that_is_required_lets_no_daemon_start() {
    let stage = Stage::with_alice();
    configure(&stage, "mode = 'required'\njournal = false\n");
    stage
        .run(["--json", "serve"])
        .fails(1, "\"code\":\"audit-no-place\"");
    configure(&stage, "journal = false\n");
    let daemon = Daemon::start(&stage);
    assert_eq!(stage.json(&["status"])["audit"], "off");
    daemon.stop();
}

#[test]
fn a_log_that_cannot_be_sealed_has_its_end_nevertheless() {
    let stage = Stage::with_alice();
    let log = stage.path("audit.jsonl");
    configure(
        &stage,
        &format!("file = '{}'\nseal = 'alice'\n", log.display()),
    );
    // Nothing gives it the PIN of the seal.
    let daemon = Daemon::start(&stage);
    daemon.stop();
    let report = stage.json(&["audit", "verify", "audit.jsonl"]);
    assert_eq!(report["seals"], 0, "{report}");
    assert_eq!(report["closed"], true, "{report}");
}

#[test]
fn a_seal_takes_the_pin_that_the_service_manager_hands_over() {
    let stage = Stage::with_alice();
    let log = stage.path("audit.jsonl");
    configure(
        &stage,
        &format!("file = '{}'\nseal = 'alice'\n", log.display()),
    );
    let tokens = stage.json(&["tokens", "--backend", &stage.token.backend()]);
    let serial = &tokens[0]["serial"];
    fs::create_dir(stage.path("credentials")).unwrap();
    let credential = format!("credentials/claviger.pin.{}", serial.as_str().unwrap());
    stage.write(&credential, claviger_tests::SoftHsm::PIN);
    let mut serve = stage.claviger(["--json", "serve"]);
    serve.env("CREDENTIALS_DIRECTORY", stage.path("credentials"));
    let daemon = Daemon::run(&stage, serve);
    stage.write("letter", "Meet me\n");
    stage
        .run(["sign", "alice", "letter", "-o", "sig"])
        .succeeds();
    let status = daemon.stop();
    assert_eq!(status.code(), Some(0));
    let verify = ["audit", "verify", "audit.jsonl", "--sealed-by", "alice"];
    let report = stage.json(&verify);
    assert_eq!(report["seals"], 1, "{report}");
    assert_eq!(report["closed"], true, "{report}");
}

#[test]
fn grants_are_added_listed_and_removed() {
    let stage = Stage::with_alice();
    let _daemon = Daemon::start(&stage);
    let add = [
        "--json",
        "grant",
        "add",
        "--uid",
        "1001",
        "--identity",
        "alice",
        "--may",
        "sign",
        "--purpose",
        "sshsig:file",
    ];
    let added = stage.run(add).succeeds().json();
    assert_eq!(added[0]["uid"], 1001, "{added}");
    let listed = stage.json(&["grant", "list"]);
    assert_eq!(listed, added);
    let id = listed[0]["id"].to_string();
    let removed = stage.run(["--json", "grant", "remove", &id]).succeeds();
    assert_eq!(removed.json(), added);
    assert_eq!(stage.run(["grant", "list"]).succeeds().out(), "no grants\n");
    let nobody = [
        "grant",
        "add",
        "--uid",
        "1001",
        "--identity",
        "nobody",
        "--may",
        "sign",
    ];
    stage.run(nobody).fails(1, "nobody");
    stage
        .run(["--json", "grant", "remove", "77"])
        .fails(1, "\"code\":\"no-grant\"");
}

#[test]
fn commands_about_a_daemon_say_how_to_start_one() {
    let stage = Stage::with_alice();
    for words in [
        &["status"][..],
        &["lock"],
        &["grant", "list"],
        &["unlock", "x"],
    ] {
        stage.run(words).fails(1, "start it: claviger serve");
    }
}

#[test]
fn doctor_knows_whether_a_daemon_serves_the_home() {
    let stage = Stage::with_alice();
    let said = stage.run(["doctor"]).succeeds().out();
    assert!(said.contains("no daemon serves this home"), "{said}");
    let daemon = Daemon::start(&stage);
    let said = stage.run(["doctor"]).succeeds().out();
    let process = format!("process {}", daemon.id());
    assert!(said.contains(&process), "{said}");
}
