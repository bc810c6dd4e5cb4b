//! The blocking client against a daemon that does what each test says.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::cell::RefCell;
use std::io::{self, Read};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use claviger_client::blocking::{Call, Cancel, Client, Listener};
use claviger_client::daemon::{Identities, Tokens};
use claviger_client::frame::CHUNK;
use claviger_client::peer::Expected;
use claviger_client::request::{self, Decrypt};
use claviger_client::wire::{
    self, Chunk, DaemonReply, EngineMsg, Event, Frame, IdentitiesReply, Identity, PinRequest,
    ReplyDecryption, Signature, TokensReply, daemon_reply::Reply, engine_msg::Msg, event,
    frame::Content, pin_request,
};
use claviger_client::{Error, Refusal};
use zeroize::Zeroizing;

use common::{Daemon, HOME, LIMIT, Place, Script, Side, encoded, error, gate, script, signed};

fn sign(client: &Client, data: &[u8]) -> Result<Signature, Error> {
    sign_with(client, data, &Call::within(LIMIT))
}

fn sign_with(client: &Client, data: &[u8], call: &Call<'_>) -> Result<Signature, Error> {
    client.commit(&request::committer("alice"), data, &request::raw(), call)
}

/// A client of a daemon with these scripts, of which the first begins after the greeting.
fn connected(
    first: impl FnOnce(Side) + Send + 'static,
    then: Vec<Script>,
) -> (Client, Daemon, Place) {
    let place = Place::new();
    let mut scripts = vec![script(|side| first(side.greet()))];
    scripts.extend(then);
    let daemon = Daemon::new(&place.socket(), scripts);
    (Client::connect(place.options()).unwrap(), daemon, place)
}

fn code<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => "none".into(),
        Err(error) => error.code().to_owned(),
    }
}

#[test]
fn a_request_is_answered_and_the_daemon_is_known() {
    let (client, daemon, _place) = connected(
        |mut side| {
            let (id, data) = side.request();
            assert_ne!(id, 0);
            side.sign(id, &data);
        },
        vec![],
    );
    assert_eq!(client.home_id(), HOME);
    assert!(client.hello().is_own);
    assert!(Expected::Own.includes(client.peer()));
    assert_eq!(sign(&client, b"letter").unwrap().bytes, b"letter");
    daemon.end();
}

#[test]
fn replies_in_any_order_find_the_threads_that_asked() {
    const THREADS: usize = 8;
    let (client, daemon, _place) = connected(
        |mut side| {
            for _ in 0..20 {
                let mut asked: Vec<_> = (0..THREADS).map(|_| side.request()).collect();
                asked.sort();
                for (id, data) in asked.iter().rev() {
                    side.sign(*id, data);
                }
            }
        },
        vec![],
    );
    let client = Arc::new(client);
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let client = client.clone();
            thread::spawn(move || {
                for round in 0..20 {
                    let data = [number as u8, round];
                    assert_eq!(sign(&client, &data).unwrap().bytes, data);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    daemon.end();
}

#[test]
fn a_reply_that_arrives_byte_by_byte_is_whole() {
    let (client, daemon, _place) = connected(
        |mut side| {
            let (id, data) = side.request();
            for byte in encoded(id, signed(&data)) {
                side.bytes(&[byte]);
            }
        },
        vec![],
    );
    assert_eq!(sign(&client, b"letter").unwrap().bytes, b"letter");
    daemon.end();
}

#[test]
fn a_daemon_that_vanishes_at_any_byte_of_its_reply_is_an_error() {
    let length = encoded(1, signed(b"letter")).len();
    let place = Place::new();
    let scripts = (0..length).map(|cut| {
        script(move |side: Side| {
            let mut side = side.greet();
            let (id, data) = side.request();
            side.bytes(&encoded(id, signed(&data))[..cut]);
        })
    });
    let daemon = Daemon::new(&place.socket(), scripts.collect());
    for cut in 0..length {
        let client = Client::connect(place.options()).unwrap();
        let lost = sign(&client, b"letter").unwrap_err();
        assert!(matches!(lost, Error::Lost { .. }), "{cut}: {lost}");
    }
    daemon.end();
}

#[test]
fn a_daemon_that_vanishes_at_any_byte_of_its_greeting_is_an_error() {
    let greeting = encoded(
        0,
        Content::Hello(wire::Hello {
            version: 1,
            ..wire::Hello::default()
        }),
    );
    let length = greeting.len();
    let place = Place::new();
    let scripts = (0..length).map(|cut| {
        let greeting = greeting.clone();
        script(move |mut side: Side| {
            side.take();
            side.bytes(&greeting[..cut]);
        })
    });
    let daemon = Daemon::new(&place.socket(), scripts.collect());
    for cut in 0..length {
        let told = code(Client::connect(place.options()));
        let wanted = if cut == 0 {
            "daemon-gone"
        } else {
            "frame-truncated"
        };
        assert_eq!(told, wanted, "{cut}");
    }
    daemon.end();
}

#[test]
fn what_is_no_frame_ends_the_connection_and_not_the_program() {
    let cases: [&'static [u8]; 3] = [&[0xff; 4], &[0, 0, 0, 1, 0xff], &[0, 0x10, 0, 1]];
    let place = Place::new();
    let scripts = cases.into_iter().map(|bytes| {
        script(move |side: Side| {
            let mut side = side.greet();
            side.request();
            side.bytes(bytes);
            side.wait_for_the_end();
        })
    });
    let daemon = Daemon::new(&place.socket(), scripts.collect());
    for bytes in cases {
        let client = Client::connect(place.options()).unwrap();
        assert_eq!(code(sign(&client, b"letter")), "request-lost", "{bytes:?}");
    }
    daemon.end();
}

#[test]
fn a_reply_to_nobody_ends_the_connection() {
    let (client, daemon, _place) = connected(
        |mut side| {
            let (id, data) = side.request();
            side.sign(id + 1, &data);
            side.wait_for_the_end();
        },
        vec![],
    );
    let lost = sign(&client, b"letter").unwrap_err();
    assert!(lost.to_string().contains("was not made"), "{lost}");
    daemon.end();
}

#[test]
fn a_message_of_a_newer_daemon_is_skipped() {
    let (client, daemon, _place) = connected(
        |mut side| {
            let (id, data) = side.request();
            // Field 90 has two bytes; once about the request and once about the connection.
            side.bytes(&[0, 0, 0, 7, 0x08, id as u8, 0xd2, 0x05, 2, 1, 2]);
            side.bytes(&[0, 0, 0, 5, 0xd2, 0x05, 2, 1, 2]);
            side.sign(id, &data);
        },
        vec![],
    );
    assert_eq!(sign(&client, b"letter").unwrap().bytes, b"letter");
    daemon.end();
}

#[test]
fn a_reply_of_another_kind_is_an_error() {
    let (client, daemon, _place) = connected(
        |mut side| {
            let (id, _) = side.request();
            side.send(id, identities(&["alice"], false));
        },
        vec![],
    );
    assert_eq!(code(sign(&client, b"letter")), "daemon-protocol");
    daemon.end();
}

#[test]
fn the_daemons_errors_keep_their_code_hint_and_fields() {
    let (client, daemon, _place) = connected(
        |mut side| {
            let (id, _) = side.request();
            side.refuse(id, "pin-wrong");
        },
        vec![],
    );
    let told = sign(&client, b"letter").unwrap_err();
    assert_eq!(told.code(), "pin-wrong");
    let refusal: &Refusal = told.refusal().unwrap();
    assert_eq!(refusal.message, "it is `pin-wrong`");
    assert_eq!(refusal.hint, "do something");
    assert_eq!(refusal.fields["token"], "pkcs11:");
    daemon.end();
}

#[test]
fn versions_that_do_not_fit_are_told_by_either_side() {
    let place = Place::new();
    let daemon = Daemon::new(
        &place.socket(),
        vec![
            // A newer daemon, to which this side objects.
            script(|mut side| {
                side.greet_as(2, HOME);
                let (id, content) = side.take();
                let Content::Error(objection) = content else {
                    panic!("{content:?}");
                };
                assert_eq!((id, &*objection.code), (0, "protocol-version"));
                assert_eq!(objection.fields["speaks"], "1");
            }),
            // An older daemon, which objects.
            script(|mut side| {
                side.take();
                let mut objection = match error("protocol-version") {
                    Content::Error(error) => error,
                    other => panic!("{other:?}"),
                };
                objection.fields.insert("speaks".into(), "0".into());
                side.send(0, Content::Error(objection));
            }),
        ],
    );
    for theirs in [2, 0] {
        let told = Client::connect(place.options()).err().unwrap();
        assert_eq!(told.code(), "protocol-version");
        let text = format!("the daemon speaks version {theirs} of the protocol");
        assert!(told.to_string().starts_with(&text), "{told}");
    }
    daemon.end();
}

#[test]
fn another_home_another_user_and_nobody_are_told_apart() {
    let place = Place::new();
    assert_eq!(code(Client::connect(place.options())), "no-daemon");
    let greets = || script(|mut side: Side| drop(side.greet_as(1, HOME)));
    let daemon = Daemon::new(
        &place.socket(),
        vec![greets(), script(|mut side| assert!(side.next().is_none()))],
    );
    let mut options = place.options();
    options.home_id = Some("44556677".into());
    assert_eq!(code(Client::connect(options)), "daemon-other-home");
    // It is not told anything, not even who we are.
    let mut options = place.options();
    options.expected = Expected::OneOf(vec![4_000_000_000]);
    assert_eq!(code(Client::connect(options)), "daemon-not-trusted");
    daemon.end();
    // The socket file is still there.
    assert_eq!(code(Client::connect(place.options())), "no-daemon");
    let mut options = place.options();
    options.socket = "/".to_owned().repeat(200).into();
    assert_eq!(code(Client::connect(options)), "socket-path-too-long");
}

#[test]
fn a_daemon_that_refuses_the_connection_is_quoted() {
    let place = Place::new();
    let refuses = |mut side: Side| side.send(0, error("busy"));
    let daemon = Daemon::new(&place.socket(), vec![script(refuses)]);
    assert_eq!(code(Client::connect(place.options())), "busy");
    daemon.end();
}

/// Has a PIN, and keeps what it hears.
#[derive(Default)]
struct Person {
    heard: RefCell<Vec<String>>,
}

impl Listener for Person {
    fn event(&self, event: &Event) {
        self.heard.borrow_mut().push(format!("{:?}", event.kind()));
    }

    fn pin(&self, request: &PinRequest) -> Option<Zeroizing<Vec<u8>>> {
        let text = format!("{:?} {:?}", request.kind(), request.tries_left);
        self.heard.borrow_mut().push(text);
        Some(Zeroizing::new(b"1234".to_vec()))
    }
}

fn pin_request() -> Content {
    Content::PinRequest(PinRequest {
        kind: pin_request::Kind::Pin as i32,
        token: None,
        label: "bench".into(),
        tries_left: Some(3),
    })
}

#[test]
fn a_pin_is_asked_of_the_thread_that_made_the_request() {
    let (client, daemon, _place) = connected(
        |mut side| {
            let (id, data) = side.request();
            let event = Event {
                kind: event::Kind::TouchNeeded as i32,
                ..Event::default()
            };
            side.send(id, Content::Event(event));
            side.send(id, pin_request());
            let (to, Content::PinAnswer(answer)) = side.take() else {
                panic!("no answer");
            };
            assert_eq!(to, id);
            assert_eq!(answer.pin.as_deref(), Some(&b"1234"[..]));
            side.sign(id, &data);
            // Who has none says so.
            let (id, _) = side.request();
            side.send(id, pin_request());
            let (_, Content::PinAnswer(answer)) = side.take() else {
                panic!("no answer");
            };
            assert_eq!(answer.pin, None);
            side.refuse(id, "pin-needed");
        },
        vec![],
    );
    let person = Person::default();
    let call = Call {
        listener: &person,
        ..Call::within(LIMIT)
    };
    sign_with(&client, b"letter", &call).unwrap();
    assert_eq!(*person.heard.borrow(), ["TouchNeeded", "Pin Some(3)"]);
    assert_eq!(code(sign(&client, b"letter")), "pin-needed");
    daemon.end();
}

/// Whoever asks it for a PIN waits until another request is answered.
struct Slow<'a>(&'a Client);

impl Listener for Slow<'_> {
    fn pin(&self, _: &PinRequest) -> Option<Zeroizing<Vec<u8>>> {
        thread::scope(|scope| {
            let other = scope.spawn(|| sign(self.0, b"other").unwrap());
            assert_eq!(other.join().unwrap().bytes, b"other");
        });
        None
    }
}

#[test]
fn a_person_who_looks_for_a_pin_holds_up_nobody_else() {
    let (client, daemon, _place) = connected(
        |mut side| {
            let (first, data) = side.request();
            side.send(first, pin_request());
            let (second, other) = side.request();
            side.sign(second, &other);
            side.take();
            side.sign(first, &data);
        },
        vec![],
    );
    let call = Call {
        listener: &Slow(&client),
        ..Call::within(LIMIT)
    };
    assert_eq!(
        sign_with(&client, b"letter", &call).unwrap().bytes,
        b"letter"
    );
    daemon.end();
}

#[test]
fn a_request_that_is_cancelled_is_told_to_the_daemon_and_answered() {
    let (asked, is_asked) = gate();
    let (client, daemon, _place) = connected(
        |mut side| {
            let (id, _) = side.request();
            asked();
            let (cancelled, Content::Cancel(_)) = side.take() else {
                panic!("it is not cancelled");
            };
            assert_eq!(cancelled, id);
            side.refuse(id, "cancelled");
        },
        vec![],
    );
    let cancel = Cancel::new();
    let call = Call {
        cancel: Some(&cancel),
        ..Call::within(LIMIT)
    };
    let told = thread::scope(|scope| {
        scope.spawn(|| {
            is_asked();
            cancel.cancel();
        });
        sign_with(&client, b"letter", &call).unwrap_err()
    });
    // It is the daemon's answer.
    assert_eq!(told.refusal().unwrap().code, "cancelled");
    // What is cancelled before it begins is not sent.
    assert_eq!(code(sign_with(&client, b"letter", &call)), "cancelled");
    daemon.end();
}

#[test]
fn a_daemon_that_does_not_answer_a_cancelled_request_is_not_waited_for() {
    let (asked, is_asked) = gate();
    let (client, daemon, _place) = connected(
        |mut side| {
            side.request();
            asked();
            side.wait_for_the_end();
        },
        vec![],
    );
    let cancel = Cancel::new();
    let call = Call {
        cancel: Some(&cancel),
        ..Call::default()
    };
    let told = thread::scope(|scope| {
        scope.spawn(|| {
            is_asked();
            cancel.cancel();
        });
        sign_with(&client, b"letter", &call).unwrap_err()
    });
    assert!(matches!(told, Error::Cancelled), "{told}");
    drop(client);
    daemon.end();
}

#[test]
fn a_request_ends_at_its_deadline_and_its_late_reply_disturbs_nobody() {
    let (client, daemon, _place) = connected(
        |mut side| {
            let frame = side.next().unwrap();
            assert!((1..=50).contains(&frame.deadline_ms), "{frame:?}");
            let (cancelled, Content::Cancel(_)) = side.take() else {
                panic!("it is not given up");
            };
            let (id, data) = side.request();
            side.sign(cancelled, b"late");
            side.sign(id, &data);
        },
        vec![],
    );
    let began = Instant::now();
    let late = Call::within(Duration::from_millis(50));
    let told = sign_with(&client, b"letter", &late).unwrap_err();
    assert!(matches!(told, Error::Deadline), "{told}");
    assert!(began.elapsed() < LIMIT);
    assert_eq!(sign(&client, b"next").unwrap().bytes, b"next");
    daemon.end();
}

#[test]
fn what_was_not_begun_is_made_again_on_a_new_connection() {
    let (client, daemon, _place) = connected(
        |mut side| {
            let (id, _) = side.request();
            side.refuse(id, "draining");
        },
        vec![
            // The next daemon is not ready either.
            script(|mut side: Side| side.send(0, error("draining"))),
            script(|side: Side| {
                let mut side = side.greet();
                let (id, data) = side.request();
                side.sign(id, &data);
            }),
        ],
    );
    assert_eq!(sign(&client, b"letter").unwrap().bytes, b"letter");
    daemon.end();
}

#[test]
fn a_daemon_that_was_restarted_is_found_again() {
    let (ended, has_ended) = gate();
    let (client, daemon, _place) = connected(
        |mut side| {
            let (id, data) = side.request();
            side.sign(id, &data);
            drop(side);
            ended();
        },
        vec![script(|side: Side| {
            let mut side = side.greet();
            let (id, data) = side.request();
            side.sign(id, &data);
        })],
    );
    sign(&client, b"letter").unwrap();
    has_ended();
    assert_eq!(sign(&client, b"second").unwrap().bytes, b"second");
    daemon.end();
}

#[test]
fn a_daemon_that_comes_back_with_another_home_is_refused() {
    let (ended, has_ended) = gate();
    let (client, daemon, _place) = connected(
        |side| {
            drop(side);
            ended();
        },
        vec![script(|mut side: Side| drop(side.greet_as(1, "44556677")))],
    );
    has_ended();
    assert_eq!(code(sign(&client, b"letter")), "daemon-other-home");
    daemon.end();
}

#[test]
fn what_may_have_been_carried_out_is_not_made_again() {
    let place = Place::new();
    let daemon = Daemon::new(
        &place.socket(),
        vec![script(|side: Side| {
            side.greet().request();
        })],
    );
    let client = Client::connect(place.options()).unwrap();
    let lost = sign(&client, b"letter").unwrap_err();
    assert!(matches!(lost, Error::Lost { .. }), "{lost}");
    daemon.end();
}

#[test]
fn a_daemon_that_does_not_come_back_is_waited_for_a_while() {
    let place = Place::new();
    let daemon = Daemon::new(&place.socket(), vec![script(|side| drop(side.greet()))]);
    let mut options = place.options();
    options.patience = Duration::from_millis(20);
    let client = Client::connect(options).unwrap();
    daemon.end();
    let told = code(sign(&client, b"letter"));
    assert!(["daemon-gone", "no-daemon"].contains(&&*told), "{told}");
}

fn long() -> Vec<u8> {
    (0..3 * CHUNK + 5)
        .map(|place| (place % 251) as u8)
        .collect()
}

/// The request with its chunks put together.
fn chunked(side: &mut Side) -> (u64, Vec<u8>) {
    let (
        id,
        Content::Engine(EngineMsg {
            data_follows: true, ..
        }),
    ) = side.take()
    else {
        panic!("no chunks are announced");
    };
    let data = side.data(id);
    (id, data)
}

#[test]
fn long_data_goes_in_chunks_whether_it_is_in_memory_or_read() {
    let (client, daemon, _place) = connected(
        |mut side| {
            for wanted in [long(), long(), long()[..2 * CHUNK].to_vec()] {
                let (id, data) = chunked(&mut side);
                assert!(data == wanted);
                side.sign(id, b"signed");
            }
            let (id, data) = side.request();
            side.sign(id, &data);
        },
        vec![],
    );
    let engine = request::committer("alice");
    let call = Call::within(LIMIT);
    sign(&client, &long()).unwrap();
    for length in [long().len(), 2 * CHUNK] {
        let mut reader = &long()[..length];
        client
            .commit_stream(&engine, &mut reader, &request::raw(), &call)
            .unwrap();
    }
    let short = client.commit_stream(&engine, &mut &b"short"[..], &request::raw(), &call);
    assert_eq!(short.unwrap().bytes, b"short");
    daemon.end();
}

#[test]
fn what_a_daemon_that_drains_has_not_answered_is_made_again() {
    let (client, daemon, _place) = connected(
        |mut side| {
            side.request();
            side.send(0, error("draining"));
        },
        vec![script(|side| {
            let mut side = side.greet();
            let (id, data) = side.request();
            side.sign(id, &data);
        })],
    );
    assert_eq!(sign(&client, b"letter").unwrap().bytes, b"letter");
    daemon.end();
}

#[test]
fn data_that_a_daemon_refuses_is_not_sent_to_its_end() {
    let (client, daemon, _place) = connected(
        |mut side| {
            let (id, _) = side.take();
            side.chunk(id);
            side.refuse(id, "not-allowed");
            side.wait_for_the_end();
        },
        vec![],
    );
    let engine = request::committer("alice");
    let call = Call::within(LIMIT);
    let told = client.commit_stream(&engine, &mut io::repeat(0), &request::raw(), &call);
    assert_eq!(code(told), "not-allowed");
    drop(client);
    daemon.end();
}

#[test]
fn data_without_an_end_ends_at_the_deadline() {
    let (client, daemon, _place) = connected(
        |mut side| {
            let (id, _) = side.take();
            let ask = |side: &mut Side| side.send(id, Content::Chunk(Chunk::default()));
            ask(&mut side);
            while let (_, Content::Chunk(_)) = side.take() {
                ask(&mut side);
            }
        },
        vec![],
    );
    let engine = request::committer("alice");
    let call = Call::within(Duration::from_millis(50));
    let told = client.commit_stream(&engine, &mut io::repeat(0), &request::raw(), &call);
    assert_eq!(code(told), "deadline-exceeded");
    drop(client);
    daemon.end();
}

#[test]
fn a_reader_that_fails_is_told_and_the_request_is_given_up() {
    struct Broken(usize);
    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let left = self.0.checked_sub(buffer.len());
            self.0 = left.ok_or(io::Error::other("broken"))?;
            Ok(buffer.len())
        }
    }
    let (client, daemon, _place) = connected(
        |mut side| {
            let (id, _) = side.take();
            let given_up = loop {
                side.send(id, Content::Chunk(Chunk::default()));
                match side.take().1 {
                    Content::Chunk(chunk) => assert!(!chunk.last),
                    other => break other,
                }
            };
            assert_eq!(given_up, Content::Cancel(wire::Cancel {}));
        },
        vec![],
    );
    let engine = request::committer("alice");
    let call = Call::within(LIMIT);
    let told = client.commit_stream(&engine, &mut Broken(3 * CHUNK), &request::raw(), &call);
    assert_eq!(code(told), "io");
    daemon.end();
}

#[test]
fn a_daemon_that_vanishes_before_it_has_all_data_is_asked_again() {
    let (client, daemon, _place) = connected(
        |mut side| {
            let (id, _) = side.take();
            side.chunk(id);
        },
        vec![script(|side: Side| {
            let mut side = side.greet();
            let (id, data) = chunked(&mut side);
            assert!(data == long());
            side.sign(id, b"signed");
            // What is read goes once.
            let (id, _) = side.take();
            side.chunk(id);
        })],
    );
    assert_eq!(sign(&client, &long()).unwrap().bytes, b"signed");
    let engine = request::committer("alice");
    let call = Call::within(LIMIT);
    let streamed = client.commit_stream(&engine, &mut &long()[..], &request::raw(), &call);
    assert_eq!(code(streamed), "daemon-gone");
    daemon.end();
}

fn decrypted(data_follows: bool, data: &[u8]) -> Content {
    Content::Engine(EngineMsg {
        identity: "alice".into(),
        msg: Some(Msg::ReplyDecryption(ReplyDecryption {
            data: data.into(),
            err: None,
            data_follows,
        })),
        ..EngineMsg::default()
    })
}

#[test]
fn a_long_answer_comes_in_chunks_up_to_the_callers_limit() {
    let send = |side: &mut Side| {
        let (id, _) = side.take();
        side.send(id, decrypted(true, b""));
        let data = long();
        let mut parts = data.chunks(CHUNK).peekable();
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            side.send(
                id,
                Content::Chunk(Chunk {
                    data: part.into(),
                    last,
                }),
            );
        }
    };
    let (client, daemon, _place) = connected(
        move |mut side| {
            send(&mut side);
            send(&mut side);
            side.wait_for_the_end();
        },
        vec![],
    );
    let engine = request::decryptor("alice");
    let whole = client
        .decrypt(&engine, b"age", &Call::within(LIMIT))
        .unwrap();
    assert!(*whole == long());
    let call = Call {
        longest_reply: 2 * CHUNK,
        ..Call::within(LIMIT)
    };
    assert_eq!(
        code(client.decrypt(&engine, b"age", &call)),
        "reply-too-long"
    );
    drop(client);
    daemon.end();
}

#[test]
fn the_key_of_a_header_says_whose_it_was() {
    let (client, daemon, _place) = connected(
        |mut side| {
            let (id, Content::Engine(asked)) = side.take() else {
                panic!("no request");
            };
            let Some(Msg::RequestDecryption(asked)) = asked.msg else {
                panic!("{asked:?}");
            };
            assert!(asked.header_only);
            side.send(id, decrypted(false, &[7; 16]));
        },
        vec![],
    );
    let request = Decrypt {
        engine: &request::local(""),
        data: b"header",
        header_only: true,
    };
    let opened = client.ask(&request, &Call::within(LIMIT)).unwrap();
    assert_eq!((&**opened.data, &*opened.identity), (&[7; 16][..], "alice"));
    daemon.end();
}

fn identities(names: &[&str], more: bool) -> Content {
    let identity = |name: &&str| Identity {
        id: Some(request::local(*name)),
        ..Identity::default()
    };
    Content::DaemonReply(DaemonReply {
        reply: Some(Reply::Identities(IdentitiesReply {
            identities: names.iter().map(identity).collect(),
            more,
        })),
    })
}

#[test]
fn a_list_that_is_too_long_for_a_frame_comes_in_several() {
    let (client, daemon, _place) = connected(
        |mut side| {
            let (id, _) = side.take();
            side.send(id, identities(&["alice", "bob"], true));
            side.send(id, identities(&["carol"], false));
            let (id, _) = side.take();
            let tokens = TokensReply {
                json: String::new(),
                data_follows: true,
                unreadable: Vec::new(),
            };
            let reply = DaemonReply {
                reply: Some(Reply::Tokens(tokens)),
            };
            side.send(id, Content::DaemonReply(reply));
            side.send(
                id,
                Content::Chunk(Chunk {
                    data: b"[".to_vec(),
                    last: false,
                }),
            );
            side.send(
                id,
                Content::Chunk(Chunk {
                    data: b"]".to_vec(),
                    last: true,
                }),
            );
        },
        vec![],
    );
    let call = Call::within(LIMIT);
    let found = client.ask(&Identities { name: "" }, &call).unwrap();
    let names: Vec<_> = found
        .into_iter()
        .map(|each| each.id.unwrap().name)
        .collect();
    assert_eq!(names, ["alice", "bob", "carol"]);
    let tokens = client.ask(&Tokens { backend: "" }, &call).unwrap();
    assert_eq!((&*tokens.json, tokens.unreadable.len()), ("[]", 0));
    daemon.end();
}

#[test]
fn threads_that_wait_take_turns_at_reading() {
    // Each reply is for the one that asked first, so whoever reads leaves before the others.
    const THREADS: usize = 6;
    let (client, daemon, _place) = connected(
        |mut side| {
            let mut asked: Vec<(u64, Vec<u8>)> = (0..THREADS).map(|_| side.request()).collect();
            asked.sort();
            for (id, data) in asked {
                side.sign(id, &data);
            }
        },
        vec![],
    );
    thread::scope(|scope| {
        for number in 0..THREADS {
            let client = &client;
            scope.spawn(move || {
                // Without a deadline nothing wakes a thread but its reply.
                let data = [number as u8];
                let signed = sign_with(client, &data, &Call::default()).unwrap();
                assert_eq!(signed.bytes, data);
            });
        }
    });
    daemon.end();
}

#[test]
fn a_frame_of_the_clients_own_is_what_the_page_says() {
    let place = Place::new();
    let daemon = Daemon::new(
        &place.socket(),
        vec![script(|side: Side| {
            let mut side = side.greet();
            let Some(Frame {
                id,
                deadline_ms,
                content: Some(Content::Engine(asked)),
            }) = side.next()
            else {
                panic!("no request");
            };
            assert_eq!(deadline_ms, 0);
            assert_eq!(asked.target.unwrap().name, "alice_committer_alice");
            assert!(!asked.data_follows && asked.mailbox.is_none());
            side.sign(id, b"signed");
        })],
    );
    let client = Client::connect(place.options()).unwrap();
    sign_with(&client, b"letter", &Call::default()).unwrap();
    daemon.end();
}
