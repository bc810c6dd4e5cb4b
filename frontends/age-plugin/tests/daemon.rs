//! The plugin as it is installed, an age program that the test plays, and a daemon.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod common;

use std::io::Read;
use std::path::Path;

use claviger_engine::{EngineId, IdParams};
use claviger_tests::{Kryoptic, SoftHsm};
use claviger_token::{Access, PublicKey};
use common::plugin::{Plugin, key_of};
use common::{ANY, Daemon, handed, identity, said, wrapped};

/// Asks the plugin for the files that are wrapped for these keys.
fn open(socket: &Path, identities: &[&str], files: &[&PublicKey], pins: &[&str]) -> Vec<String> {
    let mut plugin = Plugin::start(socket);
    for identity in identities {
        plugin.says(&said("add-identity", &[identity], &[]));
    }
    for (file, key) in files.iter().enumerate() {
        plugin.says(&handed(&file.to_string(), &wrapped(key)));
    }
    plugin.says(&said("done", &[], &[]));
    plugin.hears_out(pins)
}

#[test]
fn native_stanzas_of_both_curves_open_by_name_and_by_key() {
    let daemon = Daemon::new();
    let alice = daemon.in_memory("alice", IdParams::P256);
    let bob = daemon.in_memory("bob", IdParams::Ed25519);
    let heard = open(
        &daemon.socket,
        // The name of the second is not what it is called now.
        &[&identity(&alice, "alice"), &identity(&bob, "alice")],
        &[&alice, &bob, &alice],
        &[],
    );
    assert_eq!(heard, [key_of(0), key_of(1), key_of(2)]);
    // A key that the identity of this name does not have opens nothing.
    let heard = open(&daemon.socket, &[&identity(&alice, "bob")], &[&bob], &[]);
    assert_eq!(heard, [""; 0]);
}

#[test]
fn ssh_rsa_stanzas_open_on_a_token_that_does_oaep() {
    if let Some(reason) = Kryoptic::skipped() {
        eprintln!("SKIPPED ssh_rsa_stanzas_open_on_a_token_that_does_oaep: {reason}");
        return;
    }
    let (daemon, token) = (Daemon::new(), Kryoptic::new());
    let pin = || Access::with(claviger_token::FixedPin::new(Kryoptic::PIN));
    let key = daemon.generate("rsa", &token.backend(), IdParams::Rsa2048, pin());
    daemon.lock();
    let heard = open(
        &daemon.socket,
        &[&identity(&key, "rsa")],
        &[&key],
        &[Kryoptic::PIN],
    );
    assert_eq!((heard.len(), &heard[1]), (2, &key_of(0)), "{heard:?}");
}

#[test]
fn a_pin_is_asked_of_the_user_of_the_age_program_once_and_only_where_it_helps() {
    let (daemon, token) = (Daemon::new(), SoftHsm::new());
    let key = daemon.generate("hard", &token.backend(), IdParams::P256, token.access());
    let other = daemon.in_memory("other", IdParams::P256);
    daemon.lock();
    let hard = identity(&key, "hard");
    // Not for a file that is not for it, nor at the start.
    assert_eq!(
        open(&daemon.socket, &[&hard], &[&other], &["wrong"]),
        [""; 0]
    );

    let heard = open(&daemon.socket, &[&hard], &[&key, &key], &[SoftHsm::PIN]);
    assert_eq!(heard[1..], [key_of(0), key_of(1)]);
    assert!(
        heard[0].starts_with("request-secret: Enter the PIN of "),
        "{heard:?}"
    );
    assert!(heard[0].contains(token.label()), "{heard:?}");
}

#[test]
fn a_rejected_pin_is_followed_by_no_other() {
    let (daemon, token) = (Daemon::new(), SoftHsm::new());
    let key = daemon.generate("hard", &token.backend(), IdParams::P256, token.access());
    daemon.lock();
    let hard = identity(&key, "hard");
    let heard = open(
        &daemon.socket,
        &[&hard],
        &[&key, &key],
        &["654321", SoftHsm::PIN],
    );
    let asked = heard
        .iter()
        .filter(|line| line.starts_with("request-secret"));
    assert_eq!(asked.count(), 1, "{heard:?}");
    let failed = heard
        .iter()
        .filter(|line| line.starts_with("error identity 0:"));
    assert!(failed.count() >= 1, "{heard:?}");
    assert!(
        heard.iter().all(|line| !line.contains("654321")),
        "{heard:?}"
    );
}

#[test]
fn without_a_terminal_a_locked_token_is_named_and_the_others_are_used() {
    let (daemon, token) = (Daemon::new(), SoftHsm::new());
    let key = daemon.generate("hard", &token.backend(), IdParams::P256, token.access());
    let soft = daemon.in_memory("soft", IdParams::P256);
    daemon.lock();
    let (hard, soft_line) = (identity(&key, "hard"), identity(&soft, "soft"));
    let heard = open(
        &daemon.socket,
        &[&hard, &soft_line],
        &[&key, &key, &soft],
        &[],
    );
    assert_eq!(heard.len(), 3, "{heard:?}");
    assert!(heard[0].starts_with("request-secret:"), "{heard:?}");
    assert!(heard[1].starts_with("error identity 0:"), "{heard:?}");
    assert!(heard[1].contains("claviger unlock"), "{heard:?}");
    assert_eq!(heard[2], key_of(2));
}

#[test]
fn a_bare_identity_asks_nobody_and_opens_what_is_unlocked() {
    let (daemon, token) = (Daemon::new(), SoftHsm::new());
    let key = daemon.generate("hard", &token.backend(), IdParams::P256, token.access());
    let soft = daemon.in_memory("soft", IdParams::Ed25519);
    // It is unlocked by who made it.
    let strange = Daemon::new().in_memory("strange", IdParams::P256);
    daemon.lock();
    let heard = open(
        &daemon.socket,
        &[ANY],
        &[&key, &soft, &strange],
        &[SoftHsm::PIN],
    );
    assert_eq!(heard.len(), 2, "{heard:?}");
    assert!(heard[0].starts_with("msg: "), "{heard:?}");
    assert!(heard[0].contains("claviger age-identity"), "{heard:?}");
    assert_eq!(heard[1], key_of(1));
    // With the line of the identity it is asked for the PIN.
    let heard = open(
        &daemon.socket,
        &[ANY, &identity(&key, "hard")],
        &[&key],
        &[SoftHsm::PIN],
    );
    assert!(heard[0].starts_with("request-secret:"), "{heard:?}");
    assert_eq!(heard[1..], [key_of(0)]);
}

#[test]
fn an_identity_that_the_daemon_does_not_have_is_named() {
    let daemon = Daemon::new();
    let strange = Daemon::new().in_memory("strange", IdParams::P256);
    let heard = open(
        &daemon.socket,
        &[&identity(&strange, "carol")],
        &[&strange],
        &[],
    );
    let fingerprint = strange.fingerprint();
    let told = "error identity 0: the daemon has no identity with the key of `carol`";
    assert_eq!(heard, [format!("{told} ({fingerprint})")]);
}

#[test]
fn without_a_daemon_only_files_that_need_one_fail() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let alice = Daemon::new().in_memory("alice", IdParams::P256);
    let other = Daemon::new().in_memory("other", IdParams::P256);
    let line = identity(&alice, "alice");
    let heard = open(&socket, &[&line], &[&other, &alice], &[]);
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert!(
        heard[0].starts_with("error identity 0: no daemon listens"),
        "{heard:?}"
    );
    assert!(heard[0].contains("claviger serve"), "{heard:?}");
    assert_eq!(open(&socket, &[&line], &[&other], &[]), [""; 0]);
}

/// Where the plugin waits for a PIN, its program ends.
#[test]
fn a_program_that_ends_while_a_pin_is_asked_for_ends_the_plugin() {
    let (daemon, token) = (Daemon::new(), SoftHsm::new());
    let key = daemon.generate("hard", &token.backend(), IdParams::P256, token.access());
    daemon.lock();
    let mut plugin = Plugin::start(&daemon.socket);
    plugin.says(&said("add-identity", &[&identity(&key, "hard")], &[]));
    plugin.says(&handed("0", &wrapped(&key)));
    plugin.says(&said("done", &[], &[]));
    assert_eq!(plugin.next().tag, "request-secret");
    let Plugin {
        mut child,
        to,
        mut from,
    } = plugin;
    drop(to);
    let mut rest = String::new();
    from.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
    assert_eq!(child.wait().unwrap().code(), Some(1));
    // The daemon is none the worse for it.
    let heard = open(
        &daemon.socket,
        &[&identity(&key, "hard")],
        &[&key],
        &[SoftHsm::PIN],
    );
    assert_eq!(heard[1..], [key_of(0)]);
    let who = EngineId::local("hard");
    assert!(
        daemon
            .service
            .node()
            .registry()
            .identity(&who)
            .unwrap()
            .is_some()
    );
}
