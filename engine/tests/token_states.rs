//! What a request gets while its token is away, locked, blocked, or waits for a person;
//! and who is told of it.
#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

mod common;

use std::time::{Duration, Instant};

use claviger_engine::{EngineError, EngineId, Node, TokenChanges, TokenState};
use claviger_token::{Call, Error, Event, Pace, TriesLeft};
use common::*;
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(60);

struct Bench {
    device: Device,
    node: Node,
    engine: EngineId,
    _home: tempfile::TempDir,
}

async fn bench(pace: Pace) -> Bench {
    let (device, home) = (Device::paced(pace), tempfile::tempdir().unwrap());
    let node = node(home.path(), &device);
    let made = make(&node, "alice", &device.backend()).await;
    Bench {
        device,
        node,
        engine: made.commitment_engine.unwrap(),
        _home: home,
    }
}

impl Bench {
    async fn sign(&self, call: &Call) -> Result<(), EngineError> {
        let data = b"data".to_vec();
        let alice = id("alice");
        let done = self.node.commit(&alice, &self.engine, data, call).await;
        done.map(drop)
    }

    fn state(&self) -> TokenState {
        let states = self.node.token_states();
        let its = states.iter().find(|(token, _)| *token == self.device.id());
        its.unwrap().1
    }
}

async fn next(changes: &mut TokenChanges) -> (TokenState, TokenState) {
    let change = timeout(LONG, changes.next()).await.unwrap();
    (change.before, change.state)
}

const PACES: [Pace; 2] = [Pace::Quick, Pace::Slow { workers: 1 }];

#[tokio::test]
async fn a_request_made_while_the_token_is_out_is_served_when_it_is_back() {
    for pace in PACES {
        let bench = bench(pace).await;
        bench.sign(&call()).await.unwrap();
        bench.device.detach();
        let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let listener = std::sync::Arc::clone(&told);
        let patient = Call::within(LONG).watched_by(std::sync::Arc::new(move |e| {
            listener.lock().unwrap().push(e.clone());
        }));
        let back = async {
            until(|| bench.state() == TokenState::Absent).await;
            bench.device.attach();
        };
        let (served, ()) = tokio::join!(bench.sign(&patient), back);
        served.unwrap();
        assert_eq!(bench.state(), TokenState::Ready);
        let token = bench.device.id();
        assert_eq!(*told.lock().unwrap(), [Event::TokenNeeded { token }]);
    }
}

#[tokio::test]
async fn many_who_wait_are_all_served() {
    let bench = bench(Pace::Slow { workers: 1 }).await;
    bench.device.detach();
    let patient = Call::within(LONG);
    let waiting = async {
        let all = (0..64).map(|_| bench.sign(&patient));
        let mut served = 0;
        for done in futures(all).await {
            done.unwrap();
            served += 1;
        }
        served
    };
    let back = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        bench.device.attach();
    };
    let (served, ()) = tokio::join!(waiting, back);
    assert_eq!(served, 64);
}

/// Drives all of them at once.
async fn futures<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut left: Vec<_> = all.map(Box::pin).collect();
    let mut done = Vec::new();
    std::future::poll_fn(|context| {
        left.retain_mut(|one| match one.as_mut().poll(context) {
            std::task::Poll::Ready(result) => {
                done.push(result);
                false
            }
            std::task::Poll::Pending => true,
        });
        match left.is_empty() {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    done
}

#[tokio::test]
async fn whoever_cannot_wait_is_told_that_the_token_is_not_available() {
    for pace in PACES {
        let bench = bench(pace).await;
        bench.sign(&call()).await.unwrap();
        bench.device.detach();
        let begun = Instant::now();
        let unavailable = |done: Result<(), EngineError>| {
            let Err(EngineError::Token(error)) = done else {
                panic!("{done:?}")
            };
            assert_eq!(
                error.advice(),
                claviger_token::Advice::InsertToken,
                "{error}"
            );
        };
        unavailable(bench.sign(&call()).await);
        assert!(begun.elapsed() < LONG);
        let limit = Duration::from_millis(300);
        let begun = Instant::now();
        unavailable(bench.sign(&Call::within(limit)).await);
        assert!(begun.elapsed() >= limit);
        assert!(begun.elapsed() < LONG);
        bench.device.attach();
        bench.sign(&call()).await.unwrap();
    }
}

#[tokio::test]
async fn every_request_ends_at_its_deadline_where_the_token_does_not_answer() {
    let bench = bench(Pace::Quick).await;
    bench.device.detach();
    bench.sign(&call()).await.unwrap_err();
    let opened = bench.device.opened();
    let limit = Duration::from_millis(100);
    bench.device.falls_silent(true);
    let patient = {
        let (node, engine) = (bench.node.clone(), bench.engine.clone());
        let data = b"data".to_vec();
        tokio::spawn(async move { node.commit(&id("alice"), &engine, data, &call()).await })
    };
    until(|| bench.device.opened() > opened).await;
    let begun = Instant::now();
    let soon = Call::within(limit);
    // Those that sign look for the token, one after the other.
    let signing = (0..20).map(|_| bench.sign(&soon));
    for done in futures(signing).await {
        assert!(done.is_err());
    }
    // Those that make keys wait for it to be opened.
    for name in ["bob", "carol"] {
        let request = claviger_engine::message::RequestGenerateIdentity {
            backend: bench.device.backend(),
            params: claviger_engine::IdParams::P256,
            capabilities: claviger_engine::Capabilities::Commit,
        };
        let (who, soon) = (id(name), Call::within(limit));
        let late = bench.node.generate(&who, request, &soon);
        let late = timeout(LONG, late).await.unwrap();
        assert!(
            matches!(late, Err(EngineError::Token(Error::DeadlineExceeded))),
            "{late:?}"
        );
    }
    assert!(begun.elapsed() < LONG);
    // However many gave up, one thread waits for the token.
    assert_eq!(bench.device.opened() - opened, 1);
    bench.device.attach();
    bench.device.falls_silent(false);
    patient.await.unwrap().unwrap();
    bench.sign(&call()).await.unwrap();
    assert_eq!(bench.node.registry().identities().unwrap().len(), 1);
}

#[tokio::test]
async fn who_gives_up_does_not_wait_on() {
    let bench = bench(Pace::Quick).await;
    bench.device.detach();
    bench.sign(&call()).await.unwrap_err();
    let given_up = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let call = Call::within(LONG).cancelled_by(std::sync::Arc::clone(&given_up));
    let give_up = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        given_up.store(true, std::sync::atomic::Ordering::SeqCst);
    };
    let begun = Instant::now();
    let (done, ()) = tokio::join!(bench.sign(&call), give_up);
    assert!(
        matches!(done, Err(EngineError::Token(Error::Cancelled))),
        "{done:?}"
    );
    assert!(begun.elapsed() < LONG / 2);
}

#[tokio::test]
async fn subscribers_see_a_token_come_work_and_go() {
    use TokenState::*;
    let device = Device::new();
    let home = tempfile::tempdir().unwrap();
    let node = node(home.path(), &device);
    let mut changes = node.token_changes(Some("device:"), &call()).await.unwrap();
    assert_eq!(next(&mut changes).await, (Absent, Present));
    make(&node, "alice", &device.backend()).await;
    assert_eq!(next(&mut changes).await, (Present, Ready));
    device.detach();
    assert_eq!(next(&mut changes).await, (Ready, Absent));
    device.attach();
    assert_eq!(next(&mut changes).await, (Absent, Present));
    drop(node);
    assert!(changes.states().contains(&(device.id(), Present)));
}

#[tokio::test]
async fn what_keeps_a_token_from_working_is_its_state_until_it_works_again() {
    let bench = bench(Pace::Slow { workers: 1 }).await;
    let token = bench.device.id();
    let refused = Error::PinWrong {
        token: token.clone(),
        tries: TriesLeft::Unknown,
    };
    let broken = Error::Device {
        token: token.clone(),
        call: "C_Sign".into(),
        status: "CKR_GENERAL_ERROR".into(),
    };
    for (trouble, state) in [
        (refused, TokenState::Locked),
        (Error::PinLocked { token }, TokenState::Blocked),
        (broken, TokenState::Failed),
    ] {
        bench.device.fails_with(Some(trouble.clone()));
        let done = bench.sign(&Call::within(LONG)).await.unwrap_err();
        assert_eq!(done.to_string(), EngineError::Token(trouble).to_string());
        assert_eq!(bench.state(), state);
        bench.device.fails_with(None);
        bench.sign(&call()).await.unwrap();
        assert_eq!(bench.state(), TokenState::Ready);
    }
}

#[tokio::test]
async fn a_token_that_waits_for_a_person_shows_it() {
    let bench = bench(Pace::Slow { workers: 1 }).await;
    let mut changes = bench
        .node
        .token_changes(Some("device:"), &call())
        .await
        .unwrap();
    bench.device.wants_touch(true);
    let touch = async {
        assert_eq!(
            next(&mut changes).await,
            (TokenState::Ready, TokenState::Person)
        );
        bench.device.wants_touch(false);
        assert_eq!(
            next(&mut changes).await,
            (TokenState::Person, TokenState::Ready)
        );
    };
    let call = call();
    let (done, ()) = tokio::join!(bench.sign(&call), touch);
    done.unwrap();
}
