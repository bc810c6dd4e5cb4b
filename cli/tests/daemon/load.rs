//! A restart under load.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use claviger_client::blocking::Call;
use claviger_client::request::{committer, raw};
use claviger_token::Signature;

use super::common::{Daemon, Stage};
use super::{Ends, Pin, program, wait_until};

/// How many programs sign, and how often the daemon is restarted under them.
const PROGRAMS: usize = 8;
const RESTARTS: usize = 3;

#[test]
fn a_restart_under_load_loses_no_request() {
    let stage = Stage::with_alice();
    let key = stage.json(&["show", "alice"])["keys"][0]["public_key"].clone();
    let key = claviger_token::PublicKey::from_text(key.as_str().unwrap()).unwrap();
    let (ends, signed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let daemon = thread::scope(|scope| {
        let mut daemon = Daemon::start(&stage);
        for number in 0..PROGRAMS {
            let (stage, key, ends, signed) = (&stage, &key, &ends, &signed);
            scope.spawn(move || {
                let client = program(stage);
                let call = Call {
                    listener: &Pin,
                    ..Call::default()
                };
                let mut turn = 0;
                while !ends.load(Ordering::Relaxed) {
                    let message = format!("program {number}, turn {turn}");
                    turn += 1;
                    let answer =
                        client.commit(&committer("alice"), message.as_bytes(), &raw(), &call);
                    let log = || std::fs::read_to_string(stage.runtime().join("log"));
                    let answer =
                        answer.unwrap_or_else(|e| panic!("{message}: {e}\n{}", log().unwrap()));
                    let scheme = answer.scheme.parse().unwrap();
                    let signature = Signature::new(scheme, answer.bytes).unwrap();
                    key.verify(message.as_bytes(), &signature).unwrap();
                    signed.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _ends = Ends(&ends);
        // Each daemon signs before the next one takes over.
        let wait_for_more = || {
            let enough = signed.load(Ordering::Relaxed) + 2 * PROGRAMS;
            wait_until("a signature", || signed.load(Ordering::Relaxed) >= enough);
        };
        for _ in 0..RESTARTS {
            wait_for_more();
            assert_eq!(daemon.stop().code(), Some(0));
            daemon = Daemon::start(&stage);
        }
        wait_for_more();
        // It lives until the programs have ended.
        daemon
    });
    assert_eq!(daemon.stop().code(), Some(0));
}
