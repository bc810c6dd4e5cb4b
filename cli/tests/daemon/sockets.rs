//! Where a daemon does not start.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use super::common::{Daemon, Stage};

#[test]
fn a_second_daemon_on_one_home_is_refused_and_harms_nothing() {
    let stage = Stage::with_alice();
    let daemon = Daemon::start(&stage);
    let other = stage.path("other.sock");
    let words = ["--json", "serve", "--socket", other.to_str().unwrap()];
    let refused = stage.run(words).fails(1, "\"code\":\"daemon-running\"");
    let process = format!("process {}", daemon.id());
    assert!(refused.err().contains(&process), "{}", refused.err());
    assert!(!other.exists());
    stage.run(["status"]).succeeds();
    // Its death leaves the home free.
    daemon.kill();
    let daemon = Daemon::start(&stage);
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(!stage.runtime().join("claviger/api.sock").exists());
}

#[test]
fn a_socket_that_cannot_be_made_is_told_and_what_is_in_its_way_is_left() {
    let stage = Stage::new();
    let refused = |path: &std::path::Path, code: &str| {
        let words = ["--json", "serve", "--socket", path.to_str().unwrap()];
        let said = format!("\"code\":\"{code}\"");
        let refused = stage.run(words).fails(1, &said);
        assert!(
            !refused.err().contains("\"hint\":\"\""),
            "{}",
            refused.err()
        );
    };
    let file = stage.write("file", "a letter");
    refused(&file, "socket-in-the-way");
    assert_eq!(stage.read("file"), b"a letter");

    let live = stage.path("live.sock");
    let _listener = UnixListener::bind(&live).unwrap();
    refused(&live, "socket-taken");

    refused(&stage.path(&"x".repeat(120)), "socket-path-too-long");

    let open = stage.path("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    refused(&open.join("api.sock"), "socket-folder");
}

#[test]
fn the_socket_of_a_daemon_that_was_killed_is_replaced() {
    let stage = Stage::with_alice();
    Daemon::start(&stage).kill();
    let daemon = Daemon::start(&stage);
    let status = stage.json(&["status"]);
    assert_eq!(status["pid"], daemon.id());
}

#[test]
fn without_a_place_for_a_socket_the_daemon_says_how_to_name_one() {
    if claviger_tests::is_user() {
        let stage = Stage::new();
        let mut command = stage.claviger(["serve"]);
        let refused = super::common::Outcome::of(command.env_remove("XDG_RUNTIME_DIR"));
        refused.fails(1, "claviger serve --socket PATH");
    } else {
        eprintln!("SKIPPED: root has a place for the socket of the system's daemon");
    }
}
