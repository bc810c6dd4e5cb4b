//! The daemon is killed under its clients.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use claviger_client::Error;
use claviger_client::blocking::{Call, Client};
use claviger_client::request::{Delete, Generate, committer, raw};
use claviger_client::wire::KeyUse;
use claviger_token::{PublicKey, Signature};

use super::common::{Daemon, Stage};
use super::{Ends, Pin, options, wait_until};

/// How often it is killed here; `cargo xtask chaos` does so more often.
const KILLS: usize = 10;

/// How many programs sign meanwhile.
const PROGRAMS: usize = 4;

/// Whether a request that failed was in the way of a kill, or of the start after it.
fn is_of_kill(error: &Error) -> bool {
    matches!(
        error,
        Error::Lost { .. } | Error::Gone { .. } | Error::NoDaemon { .. } | Error::Connect { .. }
    )
}

#[test]
fn a_daemon_that_is_killed_under_its_clients_leaves_registry_and_token_whole() {
    let stage = Stage::with_alice();
    let key = stage.json(&["show", "alice"])["keys"][0]["public_key"].clone();
    let key = PublicKey::from_text(key.as_str().unwrap()).unwrap();
    let backend = stage.token.backend();
    let (ends, signed) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let mut daemon = Daemon::start(&stage);
        let _ends = Ends(&ends);
        for number in 0..PROGRAMS {
            let (stage, key, ends, signed) = (&stage, &key, &ends, &signed);
            scope.spawn(move || sign_until(stage, key, number, (ends, signed)));
        }
        let (stage, ends, backend) = (&stage, &ends, &backend);
        scope.spawn(move || make_and_delete_until(stage, backend, ends));
        for _ in 0..KILLS {
            let enough = signed.load(Ordering::Relaxed) + PROGRAMS;
            wait_until("a signature", || signed.load(Ordering::Relaxed) >= enough);
            daemon.kill();
            stage.heal();
            daemon = Daemon::start(stage);
        }
        daemon
    })
    .stop();
    stage.heal();
    // What was begun on the token is resolved, and then there is a key for each that is known.
    stage
        .run_with_pin(&["--no-daemon", "doctor", "--repair"])
        .succeeds();
    let identities = stage.json(&["--no-daemon", "identities"]);
    let identities = identities.as_array().unwrap();
    let known: usize = identities
        .iter()
        .map(|one| one["keys"].as_array().unwrap().len())
        .sum();
    assert_eq!(stage.private_keys(), known);
    stage.write("letter", "Meet me\n");
    stage
        .run_with_pin(&["sign", "alice", "letter", "-o", "sig"])
        .succeeds();
}

/// Signs until it ends; each answer is a signature of this message.
fn sign_until(
    stage: &Stage,
    key: &PublicKey,
    number: usize,
    (ends, signed): (&AtomicBool, &AtomicUsize),
) {
    let client = Client::connect(options(stage)).unwrap();
    let call = Call {
        listener: &Pin,
        ..Call::default()
    };
    let mut turn = 0;
    while !ends.load(Ordering::Relaxed) {
        let message = format!("program {number}, turn {turn}");
        turn += 1;
        match client.commit(&committer("alice"), message.as_bytes(), &raw(), &call) {
            Ok(answer) => {
                let scheme = answer.scheme.parse().unwrap();
                let signature = Signature::new(scheme, answer.bytes).unwrap();
                key.verify(message.as_bytes(), &signature).unwrap();
                signed.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => assert!(is_of_kill(&error), "{message}: {error}"),
        }
    }
}

/// Makes an identity and deletes it, again and again.
fn make_and_delete_until(stage: &Stage, backend: &str, ends: &AtomicBool) {
    let client = Client::connect(options(stage)).unwrap();
    let call = Call {
        listener: &Pin,
        ..Call::default()
    };
    let mut turn = 0;
    while !ends.load(Ordering::Relaxed) {
        let identity = &format!("turn{turn}");
        turn += 1;
        let generate = Generate {
            identity,
            backend,
            params: "p256",
            capabilities: &[KeyUse::Sign],
        };
        let made = client.ask(&generate, &call).map(drop);
        let made = made.and_then(|()| client.ask(&Delete { identity }, &call).map(drop));
        if let Err(error) = made {
            assert!(is_of_kill(&error), "{identity}: {error}");
        }
    }
}
