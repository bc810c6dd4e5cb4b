//! A program in a container and a daemon outside of it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::env;
use std::process::Command;

use claviger_client::Options;
use claviger_client::blocking::Client;

use common::{Daemon, HOME, Place, script};

const SOCKET: &str = "CLAVIGER_TEST_SOCKET";

#[test]
fn a_daemon_of_another_process_namespace_is_known() {
    const NAME: &str = "a_daemon_of_another_process_namespace_is_known";
    if let Some(socket) = env::var_os(SOCKET) {
        // For this process that of the daemon has the id 0.
        let client = Client::connect(Options::new(socket)).unwrap();
        assert_eq!(client.home_id(), HOME);
        return;
    }
    let unshare = || {
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork"]);
        unshare
    };
    if !unshare()
        .arg("true")
        .output()
        .is_ok_and(|run| run.status.success())
    {
        eprintln!("SKIPPED {NAME}: no process namespace can be made here");
        return;
    }
    let place = Place::new();
    let greets = script(|side| side.greet().wait_for_the_end());
    let daemon = Daemon::new(&place.socket(), vec![greets]);
    let output = unshare()
        .arg(env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(SOCKET, place.socket())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    daemon.end();
}
