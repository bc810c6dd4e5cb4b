//! Questions for PINs that nobody answers: whom they keep waiting, and whom not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use claviger_engine::policy::{OwnersOnly, Permission, Policy, Subject};
use claviger_engine::{EngineError, EngineId, Node};
use claviger_token::{Access, Call, Error, NoPin, Pin, PinSource, TokenId, TriesLeft};
use common::id;
use common::logins::{Private, Stage};
use common::safes::{PINS, Safes};

/// How long is waited for what must come.
const LONG: Duration = Duration::from_secs(60);

/// One caller, who uses no login of others.
struct Caller(&'static str);

impl Policy for Caller {
    fn check(&self, sender: &EngineId, wanted: Permission<'_>) -> Result<(), EngineError> {
        Private.check(sender, wanted)
    }

    fn subject(&self) -> Option<Subject> {
        Some(Subject {
            name: self.0.into(),
            uid: 7,
        })
    }
}

/// Somebody at the other end of a connection, who answers when they are let.
#[derive(Clone, Default)]
struct Somebody {
    answers: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl Somebody {
    fn call(&self) -> Call {
        Call::within(LONG).using(Access::with(self.clone()))
    }

    fn answers(&self) {
        self.answers.store(true, SeqCst);
    }

    async fn is_asked(&self) {
        common::until(|| self.asked.load(SeqCst) > 0).await;
    }
}

impl PinSource for Somebody {
    fn pin(&self, _: &TokenId, _: &str, call: &Call) -> Result<Pin, Error> {
        self.asked.fetch_add(1, SeqCst);
        while !self.answers.load(SeqCst) {
            call.check()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Pin::from(PINS[0]))
    }

    fn pin_at_once(
        &self,
        _: &TokenId,
        _: &str,
        _: TriesLeft,
        _: &Call,
    ) -> Result<Option<Pin>, Error> {
        Ok(None)
    }

    fn is_one_for_all(&self) -> bool {
        false
    }

    fn may_be_compared(&self) -> bool {
        true
    }
}

async fn sign(node: &Node, identity: &str, call: &Call) -> Result<(), EngineError> {
    let (who, engine) = (
        id(identity),
        id(&format!("{identity}_committer_{identity}")),
    );
    let signed = node.commit(&who, &engine, b"m".to_vec(), call);
    signed.await.map(drop)
}

/// Two callers of one node.
fn two_callers(stage: &Stage) -> [Node; 2] {
    let node = stage.node(NoPin, OwnersOnly);
    ["one", "other"].map(|name| node.seen_by(Arc::new(Caller(name))))
}

/// The request of the node's caller `who`, which goes on by itself.
fn signs(
    node: &Node,
    identity: &'static str,
    who: &Somebody,
) -> tokio::task::JoinHandle<Result<(), EngineError>> {
    let (node, call) = (node.clone(), who.call());
    tokio::spawn(async move { sign(&node, identity, &call).await })
}

#[tokio::test]
async fn a_caller_who_does_not_answer_keeps_a_locked_token_from_nobody() {
    for stage in [Stage::new().await, Stage::with(Safes::slow()).await] {
        let [one, other] = two_callers(&stage);
        let (silent, answering) = (Somebody::default(), Somebody::default());
        answering.answers();
        let waits = signs(&one, "alice", &silent);
        silent.is_asked().await;
        // The same key, and another one of the token.
        sign(&other, "alice", &answering.call()).await.unwrap();
        sign(&other, "bob", &answering.call()).await.unwrap();
        assert!(!waits.is_finished());
        silent.answers();
        waits.await.unwrap().unwrap();
        assert_eq!(stage.came(), [PINS[0]]);
    }
}

#[tokio::test]
async fn a_caller_who_does_not_answer_keeps_nobody_from_unlocking_the_token() {
    let stage = Stage::new().await;
    let [one, other] = two_callers(&stage);
    let (silent, answering) = (Somebody::default(), Somebody::default());
    answering.answers();
    let backend = stage.request().backend.to_string();
    let (its_backend, call) = (backend.clone(), silent.call());
    let waits = tokio::spawn(async move { one.log_in(&id("x"), &its_backend, &call).await });
    silent.is_asked().await;
    let unlocked = other.log_in(&id("x"), &backend, &answering.call()).await;
    unlocked.unwrap();
    assert!(!waits.is_finished());
    silent.answers();
    waits.await.unwrap().unwrap();
    assert_eq!(stage.came(), [PINS[0]]);
}

#[tokio::test]
async fn a_caller_who_does_not_show_the_pin_of_an_open_token_keeps_no_other_from_showing_it() {
    let stage = Stage::new().await;
    let node = stage.node(NoPin, OwnersOnly);
    let callers = ["opens", "one", "other"].map(|name| node.seen_by(Arc::new(Caller(name))));
    let [opens, one, other] = callers;
    let (silent, answering) = (Somebody::default(), Somebody::default());
    answering.answers();
    sign(&opens, "alice", &answering.call()).await.unwrap();
    let waits = signs(&one, "alice", &silent);
    silent.is_asked().await;
    sign(&other, "alice", &answering.call()).await.unwrap();
    assert!(!waits.is_finished());
    silent.answers();
    waits.await.unwrap().unwrap();
    assert_eq!(stage.came(), [PINS[0]]);
}

#[tokio::test]
async fn one_caller_is_asked_once_for_many_requests() {
    let stage = Stage::new().await;
    let [one, _] = two_callers(&stage);
    let person = Somebody::default();
    let all = ["alice", "bob", "alice", "bob", "alice"];
    let all = all.map(|identity| signs(&one, identity, &person));
    person.is_asked().await;
    person.answers();
    for signed in all {
        signed.await.unwrap().unwrap();
    }
    assert_eq!(person.asked.load(SeqCst), 1);
    assert_eq!(stage.came(), [PINS[0]]);
}

#[tokio::test]
async fn a_pin_that_was_asked_for_before_a_lock_is_not_sent_after_it() {
    let stage = Stage::new().await;
    let [one, _] = two_callers(&stage);
    let person = Somebody::default();
    let signed = signs(&one, "alice", &person);
    person.is_asked().await;
    drop(one.lock_tokens(None));
    person.answers();
    let refused = signed.await.unwrap();
    assert!(
        matches!(refused, Err(EngineError::Token(Error::PinNeeded { .. }))),
        "{refused:?}"
    );
    assert_eq!(stage.came(), [""; 0]);
    sign(&one, "alice", &person.call()).await.unwrap();
    assert_eq!(stage.came(), [PINS[0]]);
}
