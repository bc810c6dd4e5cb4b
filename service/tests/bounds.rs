//! What one caller may make the daemon hold, and what it may name.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod common;

use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use claviger_client::wire::{self, Frame, engine_msg::Msg, frame::Content};
use claviger_service::audit::{Audit, AuditSettings};
use claviger_service::{Limits, Service};
use serde_json::Value;

use common::{
    Daemon, LONG, Peer, ask_daemon, chunk, decrypt, encrypt, error_code, generate, is_asked_for,
    manage, node, reply, sign, sign_long,
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

#[test]
fn many_connections_of_one_caller_do_not_take_every_place_with_one_request_each() {
    let daemon = Daemon::with(Limits {
        requests_of_caller: 2,
        long_requests_of_caller: usize::MAX,
        ..Limits::default()
    });
    let mut peers: Vec<Peer> = (0..34).map(|_| daemon.peer()).collect();
    for peer in &mut peers {
        peer.send(&sign_long(1, "alice"));
        assert!(is_asked_for(&peer.next(), 1));
    }
    let mut late = daemon.peer();
    late.send(&sign(1, "alice", b"message"));
    assert_eq!(error_code(&late.next()), "busy");
    // What is answered makes room.
    peers[0].send(&chunk(1, b"message", true));
    daemon.check(&peers[0].next(), "alice", b"message");
    late.send(&sign(2, "alice", b"message"));
    daemon.check(&late.next(), "alice", b"message");
    drop((peers, late));
    daemon.settles_at(0, 0);
}

#[test]
fn what_one_caller_has_the_daemon_hold_is_bounded_and_its_small_requests_go_on() {
    let daemon = Daemon::with(Limits {
        buffered_of_caller: 100 << 10,
        ..Limits::default()
    });
    let begins = |peer: &mut Peer, length: usize| {
        let frame = [&(1u32 << 20).to_be_bytes()[..], &vec![0; length]].concat();
        // The daemon may end it before all is written.
        let _ = std::io::Write::write_all(&mut peer.stream, &frame);
    };
    let mut small = daemon.peer();
    begins(&mut small, 10);
    let mut large = daemon.peer();
    begins(&mut large, 500 << 10);
    let last = large.next();
    assert_eq!((last.id, error_code(&last).as_str()), (0, "busy"));
    large.is_cut_off();
    daemon.settles_at(1, 0);
    for _ in 0..100 {
        daemon.serves();
    }
    drop((small, large));
    daemon.settles_at(0, 0);
}

#[test]
fn a_caller_that_reads_too_little_of_its_answers_is_cut_off_although_it_reads() {
    let daemon = Daemon::with(Limits {
        stalled: Duration::from_secs(1),
        ..Limits::default()
    });
    let mut peer = daemon.peer();
    for id in 1..=2 {
        peer.send(&encrypt(id, "alice", vec![0; 900_000], false));
    }
    // At this pace it would take 20 s.
    let (end, mut read) = (Instant::now() + LONG, [0; 4096]);
    while daemon.service.status().connections > 0 {
        assert!(Instant::now() < end);
        let _ = peer.stream.read(&mut read);
        thread::sleep(Duration::from_millis(50));
    }
    daemon.serves();
}

#[test]
fn a_frame_that_would_take_many_times_its_length_ends_its_connection() {
    let daemon = Daemon::new();
    let via = vec![wire::EngineId::default(); 500_000];
    let mut request = wire::RequestEncrypt::default();
    request.preference = Some(wire::Preference {
        via,
        ..wire::Preference::default()
    });
    let mut peer = daemon.peer();
    peer.send(&manage(1, "alice", Msg::RequestEncrypt(request)));
    peer.ends_with("frame-too-many-elements");
    daemon.serves();
}

#[test]
fn the_request_for_its_state_is_not_part_of_it() {
    let daemon = Daemon::new();
    let mut peer = daemon.peer();
    let in_flight = |peer: &mut Peer| {
        let status = wire::daemon_request::Request::Status(wire::Status {});
        peer.send(&ask_daemon(9, status));
        let answer = peer.next();
        match answer.content {
            Some(Content::DaemonReply(wire::DaemonReply {
                reply: Some(wire::daemon_reply::Reply::Status(status)),
            })) => status.requests_in_flight,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(in_flight(&mut peer), 0);
    peer.send(&sign_long(1, "alice"));
    assert!(is_asked_for(&peer.next(), 1));
    assert_eq!(in_flight(&mut peer), 1);
}
