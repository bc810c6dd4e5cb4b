//! Requests and their answers.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod common;

use std::io::Read;
use std::thread;

use claviger_client::wire::{self, Frame, daemon_request, engine_msg::Msg, frame::Content};
use claviger_engine::{EngineId, Node, Registry};
use claviger_formats::envelope::{Sealed, UnwrappedKey};
use claviger_pkcs11::Pkcs11Driver;
use claviger_service::{Limits, Service};
use claviger_tests::SoftHsm;
use claviger_token::Call;

use common::{
    Daemon, Peer, ask_daemon, chunk, decrypt, encrypt, error_code, is_asked_for, manage, reply,
    runtime, sign, sign_long,
};

/// Each client has 10 requests in flight, and each answer is that of its own request.
fn many_clients(daemon: &Daemon, clients: u64, requests: u64) {
    thread::scope(|scope| {
        for client in 0..clients {
            scope.spawn(move || {
                let mut peer = daemon.peer();
                let message = |id: u64| format!("{client}: {id}").into_bytes();
                let ids: Vec<u64> = (1..=requests).collect();
                for batch in ids.chunks(10) {
                    for id in batch {
                        peer.send(&sign(*id, "alice", &message(*id)));
                    }
                    let mut left: Vec<u64> = batch.to_vec();
                    while !left.is_empty() {
                        let answer = peer.next();
                        let at = left.iter().position(|id| *id == answer.id).unwrap();
                        left.swap_remove(at);
                        daemon.check(&answer, "alice", &message(answer.id));
                    }
                }
            });
        }
    });
}

#[test]
fn many_clients_at_once_get_their_own_answers() {
    let daemon = Daemon::new();
    many_clients(&daemon, 10, 100);
    daemon.settles_at(0, 0);
    assert_eq!(daemon.service.status().requests_served, 1000);
}

#[test]
fn many_clients_share_one_login_of_a_real_token() {
    SoftHsm::prepare();
    let token = SoftHsm::new();
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(Pkcs11Driver::new())
        .build();
    let daemon = Daemon::of(runtime(), Service::builder(node).build());
    let generate = || {
        Msg::RequestGenerateIdentity(wire::RequestGenerateIdentity {
            backend: token.backend(),
            params: "p256".into(),
            capabilities: vec![1],
        })
    };
    // Without a PIN nothing is done.
    let mut without = daemon.peer();
    without.send(&manage(1, "alice", generate()));
    assert_eq!(error_code(&without.next()), "pin-needed");
    let mut first = daemon.peer_with(SoftHsm::PIN);
    first.send(&manage(1, "alice", generate()));
    let made = first.next();
    let Msg::ReplyGenerateIdentity(made) = reply(&made) else {
        panic!("{made:?}");
    };
    assert!(made.err.is_none(), "{made:?}");
    assert_eq!(first.asked, 1);
    drop(without);
    many_clients(&daemon, 10, 40);
    drop(first);
    daemon.settles_at(0, 0);
}

#[test]
fn who_is_asked_for_a_pin_is_told_the_tokens_label_and_the_daemon_ends_logged_out() {
    SoftHsm::prepare();
    let token = SoftHsm::new();
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(Pkcs11Driver::new())
        .build();
    let daemon = Daemon::of(runtime(), Service::builder(node).build());
    let mut peer = daemon.peer_with(SoftHsm::PIN);
    let unlock = daemon_request::Request::Unlock(wire::Unlock {
        backend: token.backend(),
        for_s: 0,
    });
    peer.send(&ask_daemon(1, unlock));
    let unlocked = peer.next();
    let Some(Content::DaemonReply(_)) = unlocked.content else {
        panic!("{unlocked:?}");
    };
    assert_eq!((peer.asked, &*peer.label), (1, token.label()));
    let opened: Vec<_> = daemon.service.node().token_states();
    let id = opened[0].0.clone();
    assert!(daemon.service.status().tokens[0].is_unlocked);
    drop(peer);
    assert!(daemon.drain(common::LONG).join().unwrap());
    daemon.has_ended();
    let status = daemon.service.status();
    assert!(status.tokens.iter().all(|token| !token.is_unlocked));
    assert!(daemon.service.node().close_token(&id).is_none());
}

#[test]
fn a_quick_request_does_not_wait_for_a_slow_one() {
    let daemon = Daemon::new();
    let mut peer = daemon.peer();
    peer.send(&sign_long(1, "alice"));
    assert!(is_asked_for(&peer.next(), 1));
    for id in 2..10 {
        peer.send(&sign(id, "alice", b"quick"));
        let answer = peer.next();
        assert_eq!(answer.id, id);
        daemon.check(&answer, "alice", b"quick");
    }
    peer.send(&chunk(1, b"slow", true));
    daemon.check(&peer.next(), "alice", b"slow");
}

#[test]
fn a_message_of_any_length_is_signed_as_it_comes() {
    let daemon = Daemon::new();
    let mut peer = daemon.peer();
    let message: Vec<u8> = (0..5_000_000u32).map(|n| n as u8).collect();
    let mut parts: Vec<&[u8]> = message.chunks(256 << 10).collect();
    parts.reverse();
    peer.send(&sign_long(1, "alice"));
    let answer = loop {
        let frame = peer.next();
        if !is_asked_for(&frame, 1) {
            break frame;
        }
        let part = parts.pop().unwrap();
        peer.send(&chunk(1, part, parts.is_empty()));
    };
    daemon.check(&answer, "alice", &message);
}

#[test]
fn a_request_that_is_given_up_or_late_is_answered_so() {
    let daemon = Daemon::new();
    let mut peer = daemon.peer();
    peer.send(&sign_long(1, "alice"));
    assert!(is_asked_for(&peer.next(), 1));
    peer.send(&Frame::new(1, Content::Cancel(wire::Cancel {})));
    let answer = peer.next();
    assert_eq!((answer.id, error_code(&answer).as_str()), (1, "cancelled"));
    peer.send(&Frame {
        deadline_ms: 30,
        ..sign_long(2, "alice")
    });
    let mut answer = peer.next();
    if is_asked_for(&answer, 2) {
        answer = peer.next();
    }
    assert_eq!(
        (answer.id, error_code(&answer).as_str()),
        (2, "deadline-exceeded")
    );
    // Its chunks may have been on their way.
    peer.send(&chunk(2, b"late", true));
    peer.send(&Frame::new(2, Content::Cancel(wire::Cancel {})));
    peer.send(&sign(3, "alice", b"next"));
    daemon.check(&peer.next(), "alice", b"next");
}

#[test]
fn an_identity_lives_in_the_daemon_from_its_making_to_its_end() {
    let daemon = Daemon::new();
    let mut peer = daemon.peer();
    let generate = wire::RequestGenerateIdentity {
        backend: "memory:".into(),
        params: "p256".into(),
        capabilities: vec![1, 2],
    };
    let generate = || Msg::RequestGenerateIdentity(generate.clone());
    peer.send(&manage(1, "bob", generate()));
    let made = peer.next();
    let Msg::ReplyGenerateIdentity(made) = reply(&made) else {
        panic!("{made:?}");
    };
    assert!(made.err.is_none(), "{made:?}");
    assert_eq!(
        made.commitment_engine.as_ref().unwrap().name,
        "bob_committer_bob"
    );
    peer.send(&manage(2, "bob", generate()));
    assert_eq!(error_code(&peer.next()), "identity-exists");
    peer.send(&sign(3, "bob", b"mine"));
    daemon.check(&peer.next(), "bob", b"mine");

    let bob = wire::EngineId {
        name: "bob".into(),
        ..wire::EngineId::default()
    };
    let connect = wire::RequestConnectIdentity {
        external_identity: Some(bob.clone()),
        backend: String::new(),
        capabilities: vec![1],
    };
    peer.send(&manage(4, "robert", Msg::RequestConnectIdentity(connect)));
    let connected = peer.next();
    let Msg::ReplyConnectIdentity(connected) = reply(&connected) else {
        panic!("{connected:?}");
    };
    assert_eq!(
        connected.commitment_engine.as_ref().unwrap().name,
        "bob_committer_bob"
    );

    let list = daemon_request::Request::ListIdentities(wire::ListIdentities::default());
    peer.send(&ask_daemon(5, list));
    let listed = peer.next();
    let Some(Content::DaemonReply(listed)) = listed.content else {
        panic!("{listed:?}");
    };
    let Some(wire::daemon_reply::Reply::Identities(listed)) = listed.reply else {
        panic!("{listed:?}");
    };
    let names: Vec<&str> = listed
        .identities
        .iter()
        .map(|one| &*one.id.as_ref().unwrap().name)
        .collect();
    assert_eq!(names, ["alice", "bob", "robert"]);

    let delete = wire::RequestDeleteIdentity {
        external_identity: Some(bob),
        backend: String::new(),
    };
    peer.send(&manage(6, "bob", Msg::RequestDeleteIdentity(delete)));
    let deleted = peer.next();
    let Msg::ReplyDeleteIdentity(deleted) = reply(&deleted) else {
        panic!("{deleted:?}");
    };
    assert_eq!(deleted.keys, [1, 1], "{deleted:?}");
    peer.send(&sign(7, "bob", b"mine"));
    assert_eq!(error_code(&peer.next()), "identity-deleted");
}

#[test]
fn a_file_is_opened_whole_and_by_its_header_and_by_whoever_can() {
    let daemon = Daemon::new();
    let mut peer = daemon.peer();
    let plaintext: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
    peer.send(&encrypt(1, "alice", plaintext.clone(), false));
    let file = match reply(&peer.next()) {
        Msg::ReplyEncrypt(reply) if reply.err.is_none() => reply.ciphertext.clone(),
        other => panic!("{other:?}"),
    };
    for target in ["alice_decryptor_alice", ""] {
        peer.send(&decrypt(2, target, file.clone(), false));
        let frame = peer.next();
        let Msg::ReplyDecryption(opened) = reply(&frame) else {
            panic!("{frame:?}");
        };
        assert!(opened.data == plaintext, "{opened:?}");

        let header = file.windows(4).position(|bytes| bytes == b"\n---").unwrap();
        let end = header
            + 6
            + file[header + 5..]
                .iter()
                .position(|byte| *byte == b'\n')
                .unwrap();
        peer.send(&decrypt(3, target, file[..end].to_vec(), true));
        let frame = peer.next();
        let Msg::ReplyDecryption(opened) = reply(&frame) else {
            panic!("{frame:?}");
        };
        assert!(opened.err.is_none(), "{opened:?}");
        let key: [u8; 16] = opened.data.as_slice().try_into().unwrap();
        let mut read = Vec::new();
        let sealed = Sealed::read(&file[..]).unwrap();
        let mut payload = sealed.open(UnwrappedKey::from_bytes(&key)).unwrap();
        payload.read_to_end(&mut read).unwrap();
        assert!(read == plaintext);
        if target.is_empty() {
            let Some(Content::Engine(message)) = &frame.content else {
                panic!("{frame:?}");
            };
            assert_eq!(message.identity, "alice");
        }
    }
    peer.send(&decrypt(
        4,
        "alice_decryptor_alice",
        b"no file".to_vec(),
        false,
    ));
    assert_eq!(error_code(&peer.next()), "decryption-failed");
}

#[test]
fn data_that_does_not_fit_into_a_frame_comes_and_goes_in_chunks() {
    let daemon = Daemon::with(Limits {
        gathered: 3_000_000,
        ..Limits::default()
    });
    let mut peer = daemon.peer();
    let plaintext: Vec<u8> = (0..2_500_000u32).map(|n| n as u8).collect();
    let seal = |peer: &mut Peer, data: &[u8]| {
        let mut parts: Vec<&[u8]> = data.chunks(256 << 10).collect();
        parts.reverse();
        peer.send(&encrypt(1, "alice", Vec::new(), true));
        loop {
            let frame = peer.next();
            if !is_asked_for(&frame, 1) {
                return frame;
            }
            let part = parts.pop().unwrap();
            peer.send(&chunk(1, part, parts.is_empty()));
        }
    };
    let sealed = seal(&mut peer, &plaintext);
    let Msg::ReplyEncrypt(sealed) = reply(&sealed) else {
        panic!("{sealed:?}");
    };
    assert!(sealed.data_follows && sealed.err.is_none());
    let mut file = Vec::new();
    loop {
        let frame = peer.next();
        let Some(Content::Chunk(part)) = &frame.content else {
            panic!("{frame:?}");
        };
        file.extend_from_slice(&part.data);
        if part.last {
            break;
        }
    }
    let runtime = runtime();
    let (who, engine) = (
        EngineId::local("alice"),
        EngineId::local("alice_decryptor_alice"),
    );
    let node = daemon.service.node();
    let opened = runtime.block_on(node.decrypt(&who, &engine, file, &Call::unlimited()));
    assert!(*opened.unwrap() == plaintext);
    assert_eq!(
        error_code(&seal(&mut peer, &[0; 3_000_001])),
        "data-too-long"
    );
    daemon.serves();
}

#[test]
fn what_is_no_request_is_refused_and_the_connection_goes_on() {
    let daemon = Daemon::new();
    let mut peer = daemon.peer();
    let mut refused = |frame: Frame, code: &str| {
        peer.send(&frame);
        let answer = peer.next();
        assert_eq!(
            (answer.id, error_code(&answer).as_str()),
            (frame.id, code),
            "{frame:?}"
        );
    };
    // A message of a later version.
    let unknown = |id| Frame {
        id,
        ..Frame::default()
    };
    refused(unknown(1), "bad-request");
    refused(
        Frame::new(2, Content::Engine(wire::EngineMsg::default())),
        "bad-request",
    );
    refused(
        Frame::new(3, Content::DaemonRequest(wire::DaemonRequest::default())),
        "bad-request",
    );
    refused(
        manage(
            4,
            "x",
            Msg::ReplyCommitment(wire::ReplyCommitment::default()),
        ),
        "bad-request",
    );
    refused(sign(5, "nobody", b"message"), "no-such-engine");
    let generate = Msg::RequestGenerateIdentity(wire::RequestGenerateIdentity {
        params: "p255".into(),
        ..wire::RequestGenerateIdentity::default()
    });
    refused(manage(6, "x", generate), "bad-request");
    let submit = Msg::SubmitReadsForEvidence(wire::SubmitReadsForEvidence::default());
    refused(manage(7, "x", submit), "bad-request");
    let mut long = sign_long(8, "alice");
    if let Some(Content::Engine(message)) = &mut long.content {
        message.msg = Some(Msg::RequestReadsFor(wire::RequestReadsFor::default()));
    }
    refused(long, "bad-request");
    daemon.serves();
}
