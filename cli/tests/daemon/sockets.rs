//! Where a daemon does not start.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};

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

/// `claviger serve`, started by systemd's helper for tests of socket activation.
fn activated(stage: &Stage, options: &[&str]) -> Command {
    let mut command = claviger_tests::as_user("systemd-socket-activate");
    let (variable, value) = stage.token.environment();
    let value = value.to_str().unwrap().to_owned();
    let variables = [
        (variable, value),
        ("CLAVIGER_HOME", stage.home().display().to_string()),
        (
            "XDG_CONFIG_HOME",
            stage.path("config").display().to_string(),
        ),
        ("XDG_RUNTIME_DIR", stage.runtime().display().to_string()),
    ];
    command.args(options);
    for (name, value) in variables {
        command.arg(format!("--setenv={name}={value}"));
    }
    command
        .args([env!("CARGO_BIN_EXE_claviger"), "--json", "serve"])
        .current_dir(stage.folder())
        .stdin(Stdio::null());
    command
}

#[test]
fn sockets_that_systemd_hands_over_are_served_by_their_names() {
    let stage = Stage::with_alice();
    let log = stage.path("audit.jsonl");
    let config = format!(
        "[serve.audit]\nfile = '{}'\njournal = false\n",
        log.display()
    );
    fs::create_dir_all(stage.path("config/claviger")).unwrap();
    fs::write(stage.path("config/claviger/config.toml"), config).unwrap();
    let paths = ["one.sock", "two.sock"].map(|name| stage.runtime().join(name));
    let shown = paths.each_ref().map(|path| path.to_str().unwrap());
    let options = ["-l", shown[0], "-l", shown[1], "--fdname=one:two"];
    let command = activated(&stage, &options);
    // Whoever connects starts the daemon.
    let first = paths[0].clone();
    let connecting = std::thread::spawn(move || {
        super::wait_until("a socket", || UnixStream::connect(&first).is_ok());
    });
    let daemon = Daemon::run(&stage, command);
    connecting.join().unwrap();
    stage.write("letter", "Meet me\n");
    for path in shown {
        let words = ["--daemon", path, "sign", "alice", "letter", "-o", "sig"];
        stage.run_with_pin(&words).succeeds();
        fs::remove_file(stage.path("sig")).unwrap();
    }
    assert_eq!(daemon.stop().code(), Some(0));
    let text = fs::read_to_string(&log).unwrap();
    let lines = text.lines().filter(|line| line.contains("\"begin\""));
    let names: Vec<String> = lines
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["caller"]["socket"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(names, ["one", "two"], "{text}");
    // They are systemd's to remove.
    assert!(paths.iter().all(|path| path.exists()));
}

#[test]
fn what_is_handed_over_and_is_no_socket_to_listen_on_is_refused() {
    let stage = Stage::with_alice();
    let path = stage.runtime().join("datagrams.sock");
    let options = ["--datagram", "-l", path.to_str().unwrap(), "--fdname=bad"];
    let mut command = activated(&stage, &options);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = child.spawn().unwrap();
    // The first datagram starts the daemon.
    let sender = UnixDatagram::unbound().unwrap();
    super::wait_until("a socket", || sender.send_to(b"x", &path).is_ok());
    let done = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains("\"code\":\"socket-inherited\""), "{said}");
    assert!(said.contains("`bad`"), "{said}");
}

#[test]
fn a_home_that_another_user_owns_is_refused() {
    let stage = Stage::with_alice();
    let folder = stage.home();
    if let Err(error) = std::os::unix::fs::chown(&folder, Some(12345), None) {
        eprintln!("SKIPPED: only root gives a folder away: {error}");
        return;
    }
    // Also one that everybody can write to.
    for mode in [0o700, 0o755, 0o777] {
        fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
        let refused = stage.run(["--json", "serve"]);
        let said = refused.err();
        assert_eq!(refused.code(), Some(1), "{mode:o}: {said}");
        let is_named = said.contains("\"code\":\"registry-not-private\"");
        // Who may not look into it does not learn whose it is.
        assert!(
            is_named || (mode == 0o700 && said.contains("ermission denied")),
            "{mode:o}: {said}"
        );
        assert!(!folder.join("daemon.lock").exists());
    }
    assert!(!stage.runtime().join("claviger/api.sock").exists());
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
