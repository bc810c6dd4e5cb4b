//! What a lock ends, on a real SoftHSM2: also what is under way, and what nobody waits for any more.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod stage;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use claviger_engine::{EngineError, TokenState};
use claviger_service::pins::{Keeper, Present};
use claviger_service::{AskPin, Caller, SecretBytes, SecretKind};
use claviger_tests::SoftHsm;
use claviger_token::{Call, TokenId};
use stage::{OPERATOR, OTHER, Person, Stage, until};
use tokio::runtime::Handle;

/// Types the PIN after something has happened.
struct After<F>(F);

impl<F: Fn() + Send + Sync> AskPin for After<F> {
    fn ask(
        &self,
        _: SecretKind,
        _: &TokenId,
        _: &str,
        _: Option<u32>,
        _: &Call,
    ) -> Option<SecretBytes> {
        (self.0)();
        Some(SecretBytes::new(SoftHsm::PIN.as_bytes().to_vec()))
    }
}

/// Locks everything, from a thread that opens a token.
fn lock_all(keeper: &Arc<Keeper>, operator: &Caller, runtime: &Handle) {
    let call = Call::within(Duration::from_secs(60));
    runtime.block_on(keeper.lock(operator, None, &call));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_also_ends_what_is_being_opened() {
    let stage = Stage::new().await;
    let (operator, runtime) = (stage.caller(OPERATOR), Handle::current());
    let keeper = Arc::clone(&stage.keeper);
    let person = Arc::new(After(move || lock_all(&keeper, &operator, &runtime)));
    let operator = stage.caller(OPERATOR);
    let call = Call::within(Duration::from_secs(60));
    let backend = stage.backend();
    let unlocked = stage
        .keeper
        .unlock(&operator, &backend, None, person, &call);
    let refused = unlocked.await.unwrap_err();
    // It is asked for before the token is opened, and so not even sent.
    assert_eq!((refused.code(), stage.logins()), ("pin-needed", 0));
    stage.is_locked().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_of_another_token_does_not_end_an_unlock() {
    let stage = Stage::new().await;
    let other = TokenId {
        serial: "another".into(),
        ..stage.id.clone()
    };
    let (operator, runtime) = (stage.caller(OPERATOR), Handle::current());
    let keeper = Arc::clone(&stage.keeper);
    let person = Arc::new(After(move || {
        let call = Call::within(Duration::from_secs(60));
        runtime.block_on(keeper.lock(&operator, Some(&other), &call));
    }));
    let operator = stage.caller(OPERATOR);
    let (call, backend) = (Call::within(Duration::from_secs(60)), stage.backend());
    let unlocked = (stage.keeper).unlock(&operator, &backend, None, person, &call);
    assert_eq!(unlocked.await.unwrap().id, stage.id);
    assert_eq!(stage.keeper.status().len(), 1);
}

/// Says when it is asked, and answers when it is let.
struct Slow {
    asked: Sender<()>,
    answers: Mutex<Receiver<()>>,
}

impl AskPin for Slow {
    fn ask(
        &self,
        _: SecretKind,
        _: &TokenId,
        _: &str,
        _: Option<u32>,
        _: &Call,
    ) -> Option<SecretBytes> {
        self.asked.send(()).unwrap();
        self.answers.lock().unwrap().recv().unwrap();
        Some(SecretBytes::new(SoftHsm::PIN.as_bytes().to_vec()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlock_that_nobody_waits_for_any_more_unlocks_nothing() {
    let stage = Stage::new().await;
    let ((asked, is_asked), (answer, answers)) = (channel(), channel());
    let answers = Mutex::new(answers);
    let person = Arc::new(Slow { asked, answers });
    let (keeper, backend) = (Arc::clone(&stage.keeper), stage.backend());
    let (operator, asker) = (stage.caller(OPERATOR), Arc::clone(&person));
    let unlocking = tokio::spawn(async move {
        let call = Call::unlimited();
        let unlocked = keeper.unlock(&operator, &backend, None, asker, &call).await;
        unlocked.map(drop)
    });
    tokio::task::spawn_blocking(move || is_asked.recv().unwrap())
        .await
        .unwrap();
    unlocking.abort();
    assert!(unlocking.await.unwrap_err().is_cancelled());
    answer.send(()).unwrap();
    // Its thread has ended.
    until(|| Arc::strong_count(&person) == 1).await;
    assert_eq!(stage.logins(), 0);
    stage.is_locked().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_comes_after_its_connection_closed_opens_the_token_for_that_request_alone() {
    let stage = Stage::new().await;
    let connection: Mutex<Option<Present>> =
        Mutex::new(Some(stage.keeper.connected(&stage.caller(OTHER))));
    let person = Arc::new(After(move || drop(connection.lock().unwrap().take())));
    let _signed: Result<(), EngineError> = stage.sign_with(OTHER, person.clone()).await;
    until(|| Arc::strong_count(&person) == 1).await;
    assert_eq!(stage.logins(), 1);
    let absent = stage.sign(OTHER, Person::absent()).await;
    assert_eq!(absent.unwrap_err().code(), "pin-needed");
    stage.is_locked().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_went_before_anybody_watched_takes_its_pin_along_too() {
    let stage = Stage::new().await;
    stage
        .unlock(Person::types(&[SoftHsm::PIN]), None)
        .await
        .unwrap();
    let watched = stage.node().known_token_changes();
    stage.token.remove();
    let gone = (stage.id.clone(), TokenState::Absent);
    until(|| watched.states().contains(&gone)).await;
    assert_eq!(stage.keeper.status().len(), 1);
    let watching = tokio::spawn(stage.keeper.clone().watch());
    until(|| stage.keeper.status().is_empty()).await;
    watching.abort();
}
