//! Peers that lie, flood, stall and vanish, and the end of the daemon: nobody else is harmed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod common;

use std::io::Write;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use claviger_client::frame;
use claviger_client::wire::{self, Frame, engine_msg::Msg, frame::Content};
use claviger_service::Limits;

use common::{
    Daemon, LONG, Peer, chunk, error_code, hello, is_asked_for, manage, reply, sign, sign_long,
};

const MOMENT: Duration = Duration::from_millis(100);

#[test]
fn frames_that_lie_end_their_connection_and_no_other_one() {
    let daemon = Daemon::new();
    let mut other = daemon.peer();
    other.send(&sign_long(1, "alice"));
    assert!(is_asked_for(&other.next(), 1));
    let mut bytes = Vec::new();
    frame::encode(&sign(1, "alice", b"message"), &mut bytes).unwrap();
    let announced = |length: u32, bytes: &[u8]| [&length.to_be_bytes()[..], bytes].concat();
    for (lie, code) in [
        (announced((1 << 20) + 1, b""), "frame-too-long"),
        (announced(u32::MAX, &[0xff; 100]), "frame-too-long"),
        (announced(4, &[0xff; 4]), "frame-malformed"),
        (announced(3, &[0x0a, 0x7f, 0x00]), "frame-malformed"),
    ] {
        let mut peer = daemon.peer();
        peer.send_raw(&lie);
        peer.ends_with(code);
        let mut stranger = daemon.stranger();
        stranger.send_raw(&lie);
        stranger.ends_with(code);
    }
    other.send(&chunk(1, b"unharmed", true));
    daemon.check(&other.next(), "alice", b"unharmed");
}

#[test]
fn frames_that_cannot_stand_where_they_are_end_the_connection() {
    let daemon = Daemon::new();
    let chunked = || chunk(1, b"unasked", false);
    let said = [
        vec![sign(0, "alice", b"message")],
        vec![hello(1, false)],
        vec![Frame::default()],
        vec![Frame::new(1, Content::Event(wire::Event::default()))],
        vec![Frame::new(
            1,
            Content::PinRequest(wire::PinRequest::default()),
        )],
        vec![Frame::new(1, Content::Error(wire::Error::default()))],
        vec![Frame::new(
            1,
            Content::DaemonReply(wire::DaemonReply::default()),
        )],
        // One id for two requests in flight.
        vec![sign_long(1, "alice"), sign_long(1, "alice")],
        // More chunks than were asked for.
        [sign_long(1, "alice")]
            .into_iter()
            .chain([(); 40].map(|()| chunked()))
            .collect(),
    ];
    for frames in said {
        let mut peer = daemon.peer();
        let mut bytes = Vec::new();
        frames
            .iter()
            .for_each(|one| frame::encode(one, &mut bytes).unwrap());
        // The daemon may have ended it in the middle.
        let _ = peer.stream.write_all(&bytes);
        let last = loop {
            match peer.next() {
                asked if asked.id == 1 && asked.kind() == "chunk" => {}
                frame => break frame,
            }
        };
        assert_eq!(
            (last.id, error_code(&last).as_str()),
            (0, "bad-request"),
            "{frames:?}"
        );
        peer.is_cut_off();
    }
    // What answers nothing is dropped.
    let mut peer = daemon.peer();
    peer.send(&Frame::new(
        9,
        Content::PinAnswer(wire::PinAnswer::default()),
    ));
    peer.send(&Frame::new(9, Content::Cancel(wire::Cancel {})));
    peer.send(&chunk(9, b"for nobody", true));
    peer.send(&sign(1, "alice", b"message"));
    daemon.check(&peer.next(), "alice", b"message");
    drop(peer);
    daemon.settles_at(0, 0);
}

#[test]
fn who_speaks_another_version_or_does_not_say_hello_is_told_so() {
    let daemon = Daemon::new();
    for version in [0, 2, u32::MAX] {
        let mut peer = daemon.stranger();
        peer.send(&hello(version, false));
        assert_eq!(peer.next().kind(), "hello");
        let frame = peer.next();
        let Some(Content::Error(error)) = frame.content else {
            panic!("{frame:?}");
        };
        assert_eq!(
            (error.code.as_str(), error.fields["speaks"].as_str()),
            ("protocol-version", "1")
        );
        assert!(peer.next_or_end().is_none());
    }
    let mut peer = daemon.stranger();
    peer.send(&sign(1, "alice", b"message"));
    peer.ends_with("bad-request");
    // Hello and request may come in one write, and in single bytes.
    let mut bytes = Vec::new();
    for frame in [hello(1, false), sign(1, "alice", b"message")] {
        frame::encode(&frame, &mut bytes).unwrap();
    }
    let mut whole = daemon.stranger();
    whole.send_raw(&bytes);
    let mut slow = daemon.stranger();
    bytes.iter().for_each(|byte| slow.send_raw(&[*byte]));
    for peer in [&mut whole, &mut slow] {
        assert_eq!(peer.next().kind(), "hello");
        daemon.check(&peer.next(), "alice", b"message");
    }
}

#[test]
fn a_peer_that_vanishes_leaves_nothing_behind_at_whichever_step() {
    let daemon = Daemon::new();
    let mut bytes = Vec::new();
    for frame in [
        hello(1, true),
        sign(1, "alice", b"message"),
        sign_long(2, "alice"),
    ] {
        frame::encode(&frame, &mut bytes).unwrap();
    }
    for end in 0..=bytes.len() {
        let mut peer = daemon.stranger();
        peer.send_raw(&bytes[..end]);
        match end % 3 {
            0 => drop(peer),
            1 => peer.stream.shutdown(Shutdown::Write).unwrap(),
            _ => {
                peer.stream.shutdown(Shutdown::Both).unwrap();
            }
        }
    }
    daemon.settles_at(0, 0);
    // In the middle of its data.
    let mut peer = daemon.peer();
    peer.send(&sign_long(1, "alice"));
    assert!(is_asked_for(&peer.next(), 1));
    peer.send(&chunk(1, b"half", false));
    drop(peer);
    daemon.settles_at(0, 0);
    daemon.serves();
}

#[test]
fn who_sends_everything_at_once_and_closes_that_direction_still_reads_what_was_ready() {
    let daemon = Daemon::new();
    let mut peer = daemon.stranger();
    let mut bytes = Vec::new();
    for frame in [hello(1, false), sign(1, "nobody", b"message")] {
        frame::encode(&frame, &mut bytes).unwrap();
    }
    let list = wire::daemon_request::Request::Status(wire::Status {});
    frame::encode(&common::ask_daemon(2, list), &mut bytes).unwrap();
    peer.send_raw(&bytes);
    peer.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(peer.next().kind(), "hello");
    // The first needs the registry, and is given up; the second was ready at once.
    let ready = peer.next();
    assert!([1, 2].contains(&ready.id), "{ready:?}");
    drop(peer);
    daemon.settles_at(0, 0);
}

#[test]
fn who_has_too_much_in_flight_is_told_so_and_the_others_go_on() {
    let daemon = Daemon::with(Limits {
        requests_of_connection: 3,
        long_requests_of_caller: 5,
        ..Limits::default()
    });
    let mut first = daemon.peer();
    for id in 1..=3 {
        first.send(&sign_long(id, "alice"));
        assert!(is_asked_for(&first.next(), id));
    }
    first.send(&sign_long(4, "alice"));
    first.send(&sign(5, "alice", b"message"));
    for id in [4, 5] {
        let answer = first.next();
        assert_eq!((answer.id, error_code(&answer).as_str()), (id, "busy"));
    }
    let mut second = daemon.peer();
    for id in 1..=2 {
        second.send(&sign_long(id, "alice"));
        assert!(is_asked_for(&second.next(), id));
    }
    // The caller has no threads left, on whichever connection.
    second.send(&sign_long(3, "alice"));
    let answer = second.next();
    assert_eq!((answer.id, error_code(&answer).as_str()), (3, "busy"));
    second.send(&sign(4, "alice", b"message"));
    daemon.check(&second.next(), "alice", b"message");
    // What is answered makes room.
    first.send(&chunk(1, b"message", true));
    daemon.check(&first.next(), "alice", b"message");
    first.send(&sign(6, "alice", b"message"));
    daemon.check(&first.next(), "alice", b"message");
    drop((first, second));
    daemon.settles_at(0, 0);
}

#[test]
fn a_flooder_does_not_keep_others_from_being_served() {
    let daemon = Daemon::new();
    let mut flood = Vec::new();
    for id in 1..=500 {
        frame::encode(&sign(id, "alice", b"flood"), &mut flood).unwrap();
    }
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            let mut peer = daemon.peer();
            let mut writer = peer.stream.try_clone().unwrap();
            let (is_over, flood) = (&is_over, &flood);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) && writer.write_all(flood).is_ok() {}
                let _ = writer.shutdown(Shutdown::Both);
            });
            scope.spawn(move || while peer.next_or_end().is_some() {});
        }
        let mut polite = daemon.peer();
        for id in 1..=50 {
            polite.send(&sign(id, "alice", b"polite"));
            daemon.check(&polite.next(), "alice", b"polite");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    daemon.settles_at(0, 0);
}

#[test]
fn who_does_not_read_is_cut_off_and_what_waits_for_it_is_bounded() {
    let daemon = Daemon::with(Limits {
        unread: 64 << 10,
        stalled: MOMENT,
        ..Limits::default()
    });
    let mut peer = daemon.peer();
    let mut flood = Vec::new();
    for id in 1..=1000 {
        frame::encode(&sign(id, "nobody", b"message"), &mut flood).unwrap();
    }
    // Nothing is taken from it any more, and then the connection ends.
    let end = Instant::now() + LONG;
    while peer.stream.write_all(&flood).is_ok() {
        assert!(Instant::now() < end);
    }
    peer.is_cut_off();
    daemon.settles_at(0, 0);
    daemon.serves();
}

#[test]
fn who_says_nothing_or_half_a_frame_is_cut_off() {
    let strict = Daemon::with(Limits {
        first_frame: MOMENT,
        ..Limits::default()
    });
    let mut silent = strict.stranger();
    let mut half = strict.stranger();
    // It may be over already.
    let _ = half.stream.write_all(&[0, 0]);
    silent.ends_with("caller-too-slow");
    half.ends_with("caller-too-slow");

    let daemon = Daemon::with(Limits {
        stalled: MOMENT,
        ..Limits::default()
    });
    let mut open = daemon.peer();
    open.send_raw(&[0, 0, 1, 0, 7]);
    open.ends_with("caller-too-slow");
    // Who has nothing to say may stay.
    let mut idle = daemon.peer();
    thread::sleep(3 * MOMENT);
    idle.send(&sign(1, "alice", b"message"));
    daemon.check(&idle.next(), "alice", b"message");
}

#[test]
fn connections_beyond_the_limit_are_told_so() {
    let daemon = Daemon::with(Limits {
        connections_of_caller: 3,
        ..Limits::default()
    });
    let mut kept = [(); 3].map(|()| daemon.peer());
    daemon.stranger().ends_with("busy");
    for peer in &mut kept {
        peer.send(&sign(1, "alice", b"message"));
        daemon.check(&peer.next(), "alice", b"message");
    }
    drop(kept);
    daemon.settles_at(0, 0);
    daemon.serves();
}

#[test]
fn a_daemon_that_drains_answers_what_it_began_and_begins_nothing() {
    let daemon = Daemon::new();
    let (mut idle, mut busy) = (daemon.peer(), daemon.peer());
    busy.send(&sign_long(1, "alice"));
    assert!(is_asked_for(&busy.next(), 1));
    let draining = daemon.drain(LONG);
    idle.ends_with("draining");
    busy.send(&sign(2, "alice", b"too late"));
    let answer = busy.next();
    assert_eq!((answer.id, error_code(&answer).as_str()), (2, "draining"));
    busy.send(&chunk(1, b"begun", true));
    let answer = busy.next();
    assert_eq!(answer.id, 1);
    daemon.check(&answer, "alice", b"begun");
    busy.ends_with("draining");
    assert!(draining.join().unwrap(), "all ended by themselves");
    daemon.has_ended();
    assert!(!daemon.path().exists());
}

#[test]
fn a_drain_that_takes_too_long_gives_the_requests_up_and_says_so() {
    let daemon = Daemon::new();
    let mut peer = daemon.peer();
    peer.send(&sign_long(1, "alice"));
    assert!(is_asked_for(&peer.next(), 1));
    let draining = daemon.drain(MOMENT);
    let answer = peer.next();
    assert_eq!((answer.id, error_code(&answer).as_str()), (1, "cancelled"));
    peer.ends_with("draining");
    assert!(!draining.join().unwrap());
    daemon.has_ended();
}

/// Each client counts what was answered: what has no answer was not begun, and is asked for again
/// at the next daemon. Generate is a request that shows whether it was carried out.
#[test]
fn a_restart_under_load_loses_no_answer_and_begins_nothing_unanswered() {
    let daemon = Daemon::new();
    let go_on = AtomicBool::new(true);
    let answered: Vec<(Vec<String>, Vec<String>)> = thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|client| {
                let mut peer = daemon.peer();
                let go_on = &go_on;
                scope.spawn(move || made_until_the_end(&mut peer, client, go_on))
            })
            .collect();
        let end = Instant::now() + LONG;
        while daemon.service.status().requests_served < 60 && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(daemon.drain(LONG).join().unwrap());
        go_on.store(false, Ordering::Relaxed);
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect()
    });
    let registry = daemon.service.node().registry();
    let is_there = |name: &String| {
        registry
            .identity(&claviger_engine::EngineId::local(name.as_str()))
            .unwrap()
            .is_some()
    };
    for (made, unanswered) in &answered {
        assert!(made.iter().all(is_there));
        assert!(!unanswered.iter().any(is_there), "{unanswered:?}");
    }
}

/// The names that were answered, and those that were not.
fn made_until_the_end(
    peer: &mut Peer,
    client: u32,
    go_on: &AtomicBool,
) -> (Vec<String>, Vec<String>) {
    let mut made = Vec::new();
    let mut id = 0;
    while go_on.load(Ordering::Relaxed) {
        let names: Vec<String> = (0..4).map(|n| format!("c{client}-{}", id + n)).collect();
        let mut bytes = Vec::new();
        for (n, name) in names.iter().enumerate() {
            let request = wire::RequestGenerateIdentity {
                backend: "memory:".into(),
                params: "ed25519".into(),
                capabilities: vec![1],
            };
            let request = Msg::RequestGenerateIdentity(request);
            let frame = manage(1 + id + n as u64, name, request);
            frame::encode(&frame, &mut bytes).unwrap();
        }
        let mut open = names.clone();
        // The daemon may have ended the connection meanwhile.
        let _ = peer.stream.write_all(&bytes);
        while !open.is_empty() {
            let Some(frame) = peer.next_or_end() else {
                return (made, open);
            };
            match frame.id {
                0 => assert_eq!(error_code(&frame), "draining"),
                answered => {
                    let name = names[(answered - 1 - id) as usize].clone();
                    if let Some(Content::Error(error)) = &frame.content {
                        assert_eq!(error.code, "draining");
                        continue;
                    }
                    let Msg::ReplyGenerateIdentity(reply) = reply(&frame) else {
                        panic!("{frame:?}");
                    };
                    assert!(reply.err.is_none(), "{reply:?}");
                    open.retain(|one| *one != name);
                    made.push(name);
                }
            }
        }
        id += 4;
    }
    (made, Vec::new())
}
