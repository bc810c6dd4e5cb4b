//! What one caller may make the daemon hold, and what it may name.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod common;

use claviger_client::wire::{self, Frame, engine_msg::Msg, frame::Content};
use claviger_service::audit::{Audit, AuditSettings};
use claviger_service::{Limits, Service};
use serde_json::Value;

use common::{
    Daemon, Peer, chunk, decrypt, encrypt, error_code, generate, is_asked_for, manage, node, reply,
    sign, sign_long,
};

/// Asks for a signature and sends the message in parts, as far as they are asked for.
fn sign_in_parts(peer: &mut Peer, name: &str, message: &[u8]) -> Frame {
    let mut parts: Vec<&[u8]> = message.chunks(256 << 10).collect();
    parts.reverse();
    peer.send(&sign_long(1, name));
    loop {
        let frame = peer.next();
        if !is_asked_for(&frame, 1) {
            return frame;
        }
        let part = parts.pop().unwrap();
        peer.send(&chunk(1, part, parts.is_empty()));
    }
}

#[test]
fn a_long_message_that_is_held_whole_is_bounded_and_one_that_is_hashed_is_not() {
    let gathered = 1_000_000;
    let daemon = Daemon::with(Limits {
        gathered,
        ..Limits::default()
    });
    let mut peer = daemon.peer();
    let generate = Msg::RequestGenerateIdentity(wire::RequestGenerateIdentity {
        backend: "memory:".into(),
        params: "ed25519".into(),
        capabilities: vec![1],
    });
    peer.send(&manage(1, "bob", generate));
    assert!(matches!(
        reply(&peer.next()),
        Msg::ReplyGenerateIdentity(wire::ReplyGenerateIdentity { err: None, .. })
    ));
    let message = vec![7; 2 * gathered];
    let fits = sign_in_parts(&mut peer, "bob", &message[..gathered]);
    let Msg::ReplyCommitment(fits) = reply(&fits) else {
        panic!("{fits:?}");
    };
    assert!(fits.err.is_none() && fits.commitment.is_some(), "{fits:?}");
    let too_long = sign_in_parts(&mut peer, "bob", &message);
    assert_eq!(error_code(&too_long), "data-too-long");
    let hashed = sign_in_parts(&mut peer, "alice", &message);
    daemon.check(&hashed, "alice", &message);
}

#[test]
fn the_log_names_the_key_that_was_used_and_its_token_and_no_request_names_another() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("audit.jsonl");
    let (runtime, node) = node();
    runtime.block_on(generate(&node, "bob", "memory:"));
    let audit = Audit::open(AuditSettings::of(&log)).unwrap();
    let daemon = Daemon::of(runtime, Service::builder(node).audit(audit).build());
    let mut peer = daemon.peer();
    peer.send(&encrypt(1, "bob", b"for bob".to_vec(), false));
    let file = match reply(&peer.next()) {
        Msg::ReplyEncrypt(reply) if reply.err.is_none() => reply.ciphertext.clone(),
        other => panic!("{other:?}"),
    };
    let naming = |mut frame: Frame, name: &str| {
        if let Some(Content::Engine(message)) = &mut frame.content {
            message.identity = name.to_owned();
        }
        frame
    };
    let open = |target| decrypt(2, target, file.clone(), false);
    for refused in [
        // Its file is for bob, and the log would name alice.
        naming(open("alice_decryptor_alice"), "bob"),
        naming(open("bob_decryptor_bob"), "alice"),
        naming(open(""), "alice"),
        naming(sign(2, "alice", b"message"), "bob"),
        naming(sign_long(2, "alice"), "bob"),
    ] {
        peer.send(&refused);
        assert_eq!(error_code(&peer.next()), "bad-request", "{refused:?}");
    }
    let used = [
        naming(open("bob_decryptor_bob"), "bob"),
        open("bob_decryptor_bob"),
        open(""),
    ];
    for request in &used {
        peer.send(request);
        let opened = peer.next();
        let Msg::ReplyDecryption(opened) = reply(&opened) else {
            panic!("{opened:?}");
        };
        assert_eq!(opened.data, b"for bob", "{opened:?}");
    }
    peer.send(&sign(3, "alice", b"message"));
    daemon.check(&peer.next(), "alice", b"message");
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of =
        |kind: &str| -> Vec<&Value> { lines.iter().filter(|line| line["kind"] == kind).collect() };
    let (begun, ended) = (of("begin"), of("end"));
    let names: Vec<_> = begun.iter().map(|line| line["identity"].as_str()).collect();
    assert_eq!(names, [Some("bob"), Some("bob"), None, Some("alice")]);
    assert_eq!(ended.len(), 4, "{text}");
    assert_eq!(ended[2]["identity"], "bob", "whoever could was bob");
    for line in &ended {
        assert_eq!(line["outcome"], "done");
        assert!(line["token"].is_string(), "{line}");
    }
}
