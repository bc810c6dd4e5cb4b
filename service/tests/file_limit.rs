//! The process has no file descriptors left: it goes on when it has some again. Alone in its
//! program, since the limit is that of the process.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod common;

use std::fs::File;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use common::{Daemon, sign};

#[test]
fn a_daemon_without_file_descriptors_serves_again_once_it_has_some() {
    let daemon = Daemon::new();
    // It has accepted once, and so has raised its limit.
    let mut first = daemon.peer();
    let waiting = daemon.stranger();
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let limit = Rlimit {
        current: Some(open + 20),
        ..getrlimit(Resource::Nofile)
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let mut all = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        all.push(file);
    }
    // One for the peer's end: there is none for the daemon's.
    all.pop();
    let mut late = daemon.stranger();
    first.send(&sign(1, "alice", b"message"));
    daemon.check(&first.next(), "alice", b"message");
    drop(all);
    late.send(&common::hello(1, false));
    assert_eq!(late.next().kind(), "hello");
    late.send(&sign(1, "alice", b"message"));
    daemon.check(&late.next(), "alice", b"message");
    drop(waiting);
}
