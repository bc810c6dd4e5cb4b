//! The async client against a daemon that does what each test says.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::sync::Mutex;
use std::time::Duration;

use claviger_client::Error;
use claviger_client::asynchronous::{Call, Client, Listener, PinFuture};
use claviger_client::frame::CHUNK;
use claviger_client::request;
use claviger_client::wire::{
    Chunk, EngineMsg, Event, PinRequest, ReplyDecryption, Signature, engine_msg::Msg, event,
    frame::Content, pin_request,
};
use zeroize::Zeroizing;

use common::{Daemon, HOME, LIMIT, Place, Script, Side, encoded, error, script, signed};

/// Runs a test on one thread; it ends long before the limit.
fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { tokio::time::timeout(2 * LIMIT, test).await.unwrap() })
}

async fn connected(
    first: impl FnOnce(Side) + Send + 'static,
    then: Vec<Script>,
) -> (Client, Daemon, Place) {
    let place = Place::new();
    let mut scripts = vec![script(|side| first(side.greet()))];
    scripts.extend(then);
    let daemon = Daemon::new(&place.socket(), scripts);
    (
        Client::connect(place.options()).await.unwrap(),
        daemon,
        place,
    )
}

async fn sign(client: &Client, data: &[u8]) -> Result<Signature, Error> {
    sign_with(client, data, &Call::within(LIMIT)).await
}

async fn sign_with(client: &Client, data: &[u8], call: &Call<'_>) -> Result<Signature, Error> {
    let engine = request::committer("alice");
    client.commit(&engine, data, &request::raw(), call).await
}

/// Waits for the daemon on a thread of its own: the client's tasks have to go on.
async fn end(daemon: Daemon) {
    tokio::task::spawn_blocking(|| daemon.end()).await.unwrap();
}

fn code<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => "none".into(),
        Err(error) => error.code().to_owned(),
    }
}

#[test]
fn replies_in_any_order_find_the_tasks_that_asked() {
    run(async {
        let (client, daemon, _place) = connected(
            |mut side| {
                let mut asked: Vec<_> = (0..3).map(|_| side.request()).collect();
                asked.sort();
                for (id, data) in asked.iter().rev() {
                    side.sign(*id, data);
                }
            },
            vec![],
        )
        .await;
        assert_eq!(client.home_id(), HOME);
        let (a, b, c) = tokio::join!(
            sign(&client, b"a"),
            sign(&client, b"b"),
            sign(&client, b"c")
        );
        assert_eq!(a.unwrap().bytes, b"a");
        assert_eq!(b.unwrap().bytes, b"b");
        assert_eq!(c.unwrap().bytes, b"c");
        drop(client);
        end(daemon).await;
    });
}

#[test]
fn a_daemon_that_vanishes_at_any_byte_is_an_error() {
    run(async {
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
            let client = Client::connect(place.options()).await.unwrap();
            assert_eq!(
                code(sign(&client, b"letter").await),
                "request-lost",
                "{cut}"
            );
        }
        end(daemon).await;
        assert_eq!(code(Client::connect(place.options()).await), "no-daemon");
    });
}

#[test]
fn versions_and_refusals_are_told() {
    run(async {
        let place = Place::new();
        let daemon = Daemon::new(
            &place.socket(),
            vec![
                script(|mut side: Side| {
                    side.greet_as(2, HOME);
                    let (id, Content::Error(objection)) = side.take() else {
                        panic!("no objection");
                    };
                    assert_eq!((id, &*objection.code), (0, "protocol-version"));
                }),
                script(|mut side: Side| side.send(0, error("busy"))),
                script(|mut side: Side| {
                    side.take();
                }),
            ],
        );
        for wanted in ["protocol-version", "busy", "daemon-gone"] {
            assert_eq!(code(Client::connect(place.options()).await), wanted);
        }
        end(daemon).await;
    });
}

#[test]
fn what_was_not_begun_is_made_again_and_nothing_else() {
    run(async {
        let (client, daemon, _place) = connected(
            |mut side| {
                let (id, _) = side.request();
                side.refuse(id, "draining");
            },
            vec![script(|side: Side| {
                let mut side = side.greet();
                let (id, data) = side.request();
                side.sign(id, &data);
                side.request();
            })],
        )
        .await;
        assert_eq!(sign(&client, b"letter").await.unwrap().bytes, b"letter");
        assert_eq!(code(sign(&client, b"letter").await), "request-lost");
        end(daemon).await;
    });
}

#[test]
fn a_request_whose_future_is_dropped_is_cancelled() {
    run(async {
        let (asked, is_asked) = tokio::sync::oneshot::channel();
        let (client, daemon, _place) = connected(
            |mut side| {
                let (id, _) = side.request();
                asked.send(()).unwrap();
                let (cancelled, Content::Cancel(_)) = side.take() else {
                    panic!("it is not cancelled");
                };
                assert_eq!(cancelled, id);
                side.sign(id, b"late");
                let (id, data) = side.request();
                side.sign(id, &data);
            },
            vec![],
        )
        .await;
        tokio::select! {
            _ = sign(&client, b"letter") => panic!("it has no reply"),
            asked = is_asked => asked.unwrap(),
        }
        assert_eq!(sign(&client, b"next").await.unwrap().bytes, b"next");
        drop(client);
        end(daemon).await;
    });
}

#[test]
fn a_request_ends_at_its_deadline() {
    run(async {
        let (client, daemon, _place) = connected(
            |mut side| {
                let frame = side.next().unwrap();
                assert!((1..=50).contains(&frame.deadline_ms), "{frame:?}");
                assert!(matches!(side.take(), (_, Content::Cancel(_))));
            },
            vec![],
        )
        .await;
        let call = Call::within(Duration::from_millis(50));
        let late = sign_with(&client, b"letter", &call).await;
        assert_eq!(code(late), "deadline-exceeded");
        end(daemon).await;
    });
}

/// Has a PIN, and keeps what it hears.
#[derive(Default)]
struct Person(Mutex<Vec<String>>);

impl Listener for Person {
    fn event(&self, event: &Event) {
        self.0.lock().unwrap().push(format!("{:?}", event.kind()));
    }

    fn pin<'a>(&'a self, _: &'a PinRequest) -> PinFuture<'a> {
        Box::pin(async { Some(Zeroizing::new(b"1234".to_vec())) })
    }
}

#[test]
fn events_are_told_and_pins_are_asked_for() {
    run(async {
        let (client, daemon, _place) = connected(
            |mut side| {
                let (id, data) = side.request();
                let kind = event::Kind::TouchNeeded as i32;
                side.send(
                    id,
                    Content::Event(Event {
                        kind,
                        ..Event::default()
                    }),
                );
                let kind = pin_request::Kind::Pin as i32;
                side.send(
                    id,
                    Content::PinRequest(PinRequest {
                        kind,
                        ..PinRequest::default()
                    }),
                );
                let (to, Content::PinAnswer(answer)) = side.take() else {
                    panic!("no answer");
                };
                assert_eq!((to, answer.pin.as_deref()), (id, Some(&b"1234"[..])));
                side.sign(id, &data);
            },
            vec![],
        )
        .await;
        let person = Person::default();
        let call = Call {
            listener: &person,
            ..Call::within(LIMIT)
        };
        sign_with(&client, b"letter", &call).await.unwrap();
        assert_eq!(*person.0.lock().unwrap(), ["TouchNeeded"]);
        drop(client);
        end(daemon).await;
    });
}

fn long() -> Vec<u8> {
    (0..2 * CHUNK + 5)
        .map(|place| (place % 251) as u8)
        .collect()
}

#[test]
fn long_data_goes_and_comes_in_chunks() {
    run(async {
        let (client, daemon, _place) = connected(
            |mut side| {
                let take = |side: &mut Side| {
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
                    assert!(data == long());
                    id
                };
                for _ in 0..2 {
                    let id = take(&mut side);
                    side.sign(id, b"signed");
                }
                let id = take(&mut side);
                let reply = ReplyDecryption {
                    data: Vec::new(),
                    err: None,
                    data_follows: true,
                };
                let msg = Some(Msg::ReplyDecryption(reply));
                side.send(
                    id,
                    Content::Engine(EngineMsg {
                        msg,
                        ..EngineMsg::default()
                    }),
                );
                for (last, part) in [(false, &long()[..CHUNK]), (true, &long()[CHUNK..2 * CHUNK])] {
                    side.send(
                        id,
                        Content::Chunk(Chunk {
                            data: part.into(),
                            last,
                        }),
                    );
                }
                // What is refused is not sent to its end.
                let (id, _) = side.take();
                side.chunk(id);
                side.refuse(id, "not-allowed");
                side.wait_for_the_end();
            },
            vec![],
        )
        .await;
        let (engine, purpose) = (request::committer("alice"), request::raw());
        let call = Call::within(LIMIT);
        sign(&client, &long()).await.unwrap();
        let data = long();
        let mut reader = &data[..];
        let streamed = client.commit_stream(&engine, &mut reader, &purpose, &call);
        streamed.await.unwrap();
        let request = request::Decrypt {
            engine: &request::decryptor("alice"),
            data: &long(),
            header_only: false,
        };
        let opened = client.ask(&request, &call).await.unwrap();
        assert!(*opened.data == long()[..2 * CHUNK]);
        let mut zeros = tokio::io::repeat(0);
        let endless = client.commit_stream(&engine, &mut zeros, &purpose, &call);
        assert_eq!(code(endless.await), "not-allowed");
        drop(client);
        end(daemon).await;
    });
}
