//! Which commands use a daemon.

use std::fs;
use std::os::unix::net::UnixListener;

use super::common::{Daemon, Outcome, Stage};

/// A command that only a daemon can carry out; without one it says why.
const ONLY_THERE: [&str; 4] = ["generate", "m", "--backend", "memory:"];

fn is_here(outcome: Outcome) {
    outcome.fails(1, "the backend `memory:` cannot be used here");
}

#[test]
fn a_command_uses_the_daemon_of_its_home_and_no_other() {
    let stage = Stage::with_alice();
    is_here(stage.run(ONLY_THERE));
    let daemon = Daemon::start(&stage);
    stage.run(ONLY_THERE).succeeds();

    let other = stage.path("other");
    let other = other.to_str().unwrap();
    let mut elsewhere = vec!["--home", other];
    elsewhere.extend(ONLY_THERE);
    is_here(stage.run(&elsewhere));
    is_here(stage.run([&["--no-daemon"], &ONLY_THERE[..]].concat()));
    let mut without = stage.claviger(ONLY_THERE);
    is_here(Outcome::of(without.env("CLAVIGER_DAEMON", "")));
    let mut nowhere = stage.claviger(ONLY_THERE);
    is_here(Outcome::of(nowhere.env("XDG_RUNTIME_DIR", stage.folder())));
    // No daemon takes such an option.
    is_here(stage.run([&["--last-try"], &ONLY_THERE[..]].concat()));

    daemon.kill();
    let socket = stage.runtime().join("claviger/api.sock");
    assert!(socket.exists(), "it is dead and not removed");
    is_here(stage.run(ONLY_THERE));
}

#[test]
fn a_copy_of_a_home_is_not_served_by_the_daemon_of_the_original() {
    let stage = Stage::with_alice();
    let _daemon = Daemon::start(&stage);
    let copy = stage.path("copy");
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([stage.home(), copy.clone()])
        .status();
    assert!(copied.unwrap().success());
    let mut there = vec!["--home", copy.to_str().unwrap()];
    there.extend(ONLY_THERE);
    is_here(stage.run(&there));
    stage.run(ONLY_THERE).succeeds();
}

#[test]
fn without_the_mark_in_its_home_a_daemon_is_known_by_the_registry() {
    let stage = Stage::with_alice();
    let _daemon = Daemon::start(&stage);
    fs::remove_file(stage.home().join("run/daemon")).unwrap();
    stage.run(ONLY_THERE).succeeds();
}

#[test]
fn a_daemon_that_is_named_is_used_for_every_home_or_the_command_fails() {
    let stage = Stage::with_alice();
    let _daemon = Daemon::start(&stage);
    let socket = stage.runtime().join("claviger/api.sock");
    let socket = socket.to_str().unwrap();
    let other = stage.path("other");
    let there = ["--daemon", socket, "--home", other.to_str().unwrap()];
    let with = |words: &[&str]| stage.run([&there, words].concat());
    with(&ONLY_THERE).succeeds();
    let listed = with(&["--json", "identities"]).succeeds().json();
    let names = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].clone());
    assert_eq!(names.collect::<Vec<_>>(), ["alice", "m"]);
    let over = with(&["--json", "show", "alice"]).succeeds().json();
    assert_eq!(over, stage.json(&["--no-daemon", "show", "alice"]));
    assert!(
        !other.exists(),
        "nothing is made in a home that is not used"
    );

    let nobody = stage.path("nobody.sock");
    let mut command = stage.claviger(["--json", "identities"]);
    let failed = Outcome::of(command.env("CLAVIGER_DAEMON", &nobody));
    failed.fails(1, "\"code\":\"no-daemon\"");
    let words = ["--daemon", socket, "--last-try", "sign", "alice", "letter"];
    stage
        .run(words)
        .fails(2, "a daemon does not take --last-try");
}

#[test]
fn a_socket_of_somebody_who_is_no_daemon_is_told() {
    let stage = Stage::with_alice();
    fs::create_dir(stage.runtime().join("claviger")).unwrap();
    let path = stage.runtime().join("claviger/api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let imposter = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        // A web server, say.
        std::io::Write::write_all(&mut &stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        std::io::Read::read(&mut &stream, &mut [0; 64]).unwrap();
    });
    stage
        .run(["--json", "sign", "alice", "letter"])
        .fails(1, "\"code\":\"frame-too-long\"");
    imposter.join().unwrap();
}
