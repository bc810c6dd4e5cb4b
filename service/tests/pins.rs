//! PINs in the daemon, on a real SoftHSM2 behind a module that counts what reaches it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod stage;

use std::time::Duration;

use claviger_engine::{EngineError, TokenState};
use claviger_service::pins::{PinSettings, credential};
use claviger_tests::SoftHsm;
use claviger_token::{Call, Error};
use stage::{GRANTED, OPERATOR, OTHER, Person, Stage, until};

const PIN: &str = SoftHsm::PIN;
const WRONG: &str = "13579246";

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_pin_at_unlock_is_sent_once_and_never_again() {
    let stage = Stage::new().await;
    let wrong = stage.unlock(Person::types(&[WRONG]), None).await;
    let wrong = wrong.unwrap_err();
    assert!(
        matches!(wrong, EngineError::Token(Error::PinWrong { .. })),
        "{wrong:?}"
    );
    assert_eq!(stage.logins(), 1);
    let again = stage.unlock(Person::types(&[WRONG]), None).await;
    let again = again.unwrap_err();
    assert!(
        matches!(again, EngineError::Token(Error::PinRefusedBefore { .. })),
        "{again:?}"
    );
    assert_eq!((stage.logins(), stage.keeper.status().len()), (1, 0));
    stage.unlock(Person::types(&[PIN]), None).await.unwrap();
    assert_eq!((stage.logins(), stage.keeper.status().len()), (2, 1));
    // Who uses it is not asked.
    stage.sign(OPERATOR, Person::absent()).await.unwrap();
    assert_eq!(stage.logins(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_token_is_unlocked_no_further_pin_reaches_it_and_guesses_get_slow() {
    let stage = Stage::new().await;
    stage.unlock(Person::types(&[PIN]), None).await.unwrap();
    // Unlocked by a wrong PIN it is not, nor is that sent.
    let wrong = stage.unlock(Person::types(&[WRONG]), None).await;
    assert!(
        matches!(wrong, Err(EngineError::PinDiffers { .. })),
        "{wrong:?}"
    );
    let absent = stage.sign(OTHER, Person::absent()).await;
    assert_eq!(absent.unwrap_err().code(), "locked");
    for guess in ["000000", "111111", "222222"] {
        let differs = stage.sign(OTHER, Person::types(&[guess])).await;
        assert_eq!(differs.unwrap_err().code(), "pin-differs");
    }
    let _here = stage.keeper.connected(&stage.caller(OTHER));
    // Not even the right one, and on no other connection.
    for waits in [60, 1] {
        let person = Person::types(&[PIN]);
        let wait = stage.sign(OTHER, person.clone()).await.unwrap_err();
        assert!(
            matches!(wait, EngineError::Token(Error::PinWait { seconds, .. }) if seconds == waits),
            "{wait:?}"
        );
        assert_eq!(person.asked(), 0);
        stage.clock.goes_on(Duration::from_secs(59));
    }
    stage.sign(OTHER, Person::types(&[PIN])).await.unwrap();
    assert_eq!(stage.keeper.wrong_pins(), (0, 4));
    // It showed that it has the PIN.
    let person = Person::absent();
    stage.sign(OTHER, person.clone()).await.unwrap();
    assert_eq!((person.asked(), stage.logins()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_that_are_made_at_once_are_as_few_as_those_one_after_the_other() {
    let stage = Stage::new().await;
    stage.unlock(Person::types(&[PIN]), None).await.unwrap();
    let guesses: Vec<String> = (0..20).map(|guess| format!("{guess:06}")).collect();
    let signed = guesses
        .iter()
        .map(|guess| stage.sign(OTHER, Person::types(&[guess])));
    let refused = futures_util::future::join_all(signed).await;
    let code = |done: Result<(), EngineError>| done.unwrap_err().code();
    let codes: Vec<&str> = refused.into_iter().map(code).collect();
    let count = |wanted: &str| codes.iter().filter(|code| **code == wanted).count();
    assert_eq!(
        (count("pin-differs"), count("pin-wait")),
        (3, 17),
        "{codes:?}"
    );
    assert_eq!(stage.logins(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_lets_a_caller_use_the_pin_of_the_daemon_and_only_as_long_as_it_lasts() {
    let stage = Stage::new().await;
    let absent = stage.sign(GRANTED, Person::absent()).await;
    assert_eq!(absent.unwrap_err().code(), "pin-needed");
    stage.unlock(Person::types(&[PIN]), None).await.unwrap();
    let person = Person::types(&[PIN]);
    stage.sign(GRANTED, person.clone()).await.unwrap();
    assert_eq!((person.asked(), stage.logins()), (0, 1));
    stage.take_the_grant_back();
    let refused = stage.sign(GRANTED, Person::absent()).await;
    assert_eq!(refused.unwrap_err().code(), "locked");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlocked_token_is_logged_out_when_its_time_is_over() {
    let stage = Stage::new().await;
    let eight_hours = Duration::from_secs(8 * 3600);
    stage
        .unlock(Person::types(&[PIN]), Some(eight_hours))
        .await
        .unwrap();
    stage.clock.goes_on(eight_hours - Duration::from_secs(1));
    stage.sign(OPERATOR, Person::absent()).await.unwrap();
    assert_eq!(stage.keeper.status().len(), 1);
    stage.clock.goes_on(Duration::from_secs(1));
    stage.is_locked().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_sleep_every_token_is_locked_whoever_unlocked_it() {
    let stage = Stage::new().await;
    stage.unlock(Person::types(&[PIN]), None).await.unwrap();
    stage.clock.sleeps(Duration::from_secs(30));
    stage.is_locked().await;
    let here = stage.keeper.connected(&stage.caller(OTHER));
    stage.sign(OTHER, Person::types(&[PIN])).await.unwrap();
    stage.sign(OTHER, Person::absent()).await.unwrap();
    stage.clock.sleeps(Duration::from_secs(30));
    let absent = stage.sign(OTHER, Person::absent()).await;
    assert_eq!(absent.unwrap_err().code(), "pin-needed");
    drop(here);
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_logs_out_and_the_next_request_needs_the_pin() {
    let stage = Stage::new().await;
    let token = stage.unlock(Person::types(&[PIN]), None).await.unwrap();
    // Whom it is not for does not lock it for the others.
    let (other, call) = (stage.caller(OTHER), Call::within(Duration::from_secs(60)));
    assert!(stage.keeper.lock(&other, None, &call).await.is_empty());
    assert_eq!(stage.keeper.status().len(), 1);
    let operator = stage.caller(OPERATOR);
    let locked = stage.keeper.lock(&operator, Some(&token), &call).await;
    assert_eq!(locked, [token]);
    stage.is_locked().await;
    // It is the token that judges now.
    let before = stage.logins();
    let wrong = stage.sign(OTHER, Person::types(&[WRONG])).await;
    assert_eq!(wrong.unwrap_err().code(), "pin-wrong");
    assert_eq!(stage.logins(), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_goes_takes_its_pin_along() {
    let stage = Stage::new().await;
    let watching = tokio::spawn(stage.keeper.clone().watch());
    stage.unlock(Person::types(&[PIN]), None).await.unwrap();
    stage.token.remove();
    until(|| stage.keeper.status().is_empty()).await;
    stage.token.insert();
    stage.is_locked().await;
    watching.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_connection_gave_serves_its_caller_until_its_last_connection_closes() {
    let stage = Stage::new().await;
    let other = stage.caller(OTHER);
    let connections = [0; 2].map(|_| stage.keeper.connected(&other));
    stage.sign(OTHER, Person::types(&[PIN])).await.unwrap();
    assert_eq!(stage.logins(), 1);
    let [first, last] = connections;
    drop(first);
    stage.sign(OTHER, Person::absent()).await.unwrap();
    // Others have no part in it, and giving the PIN does not send it.
    let _third_is_here = stage.keeper.connected(&stage.caller(GRANTED + 1));
    let third = stage.sign(GRANTED + 1, Person::absent()).await;
    assert_eq!(third.unwrap_err().code(), "locked");
    stage
        .sign(GRANTED + 1, Person::types(&[PIN]))
        .await
        .unwrap();
    assert_eq!(stage.logins(), 1);
    drop(last);
    let absent = stage.sign(OTHER, Person::absent()).await;
    assert_eq!(absent.unwrap_err().code(), "locked");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_its_last_holder_gone_a_token_is_logged_out() {
    let stage = Stage::new().await;
    for logins in [1, 2] {
        let here = stage.keeper.connected(&stage.caller(OTHER));
        stage.sign(OTHER, Person::types(&[PIN])).await.unwrap();
        assert_eq!(stage.logins(), logins);
        drop(here);
    }
    // Who held it needs the PIN, too, and a wrong one is the token's to judge.
    let wrong = stage.sign(OTHER, Person::types(&[WRONG])).await;
    assert_eq!(wrong.unwrap_err().code(), "pin-wrong");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_serves_whom_a_grant_lets_until_the_token_is_locked() {
    let stage = Stage::new().await;
    let file = stage.credentials.path().join(credential::name(&stage.id));
    std::fs::write(&file, format!("{PIN}\n")).unwrap();
    let person = Person::absent();
    stage.sign(GRANTED, person.clone()).await.unwrap();
    assert_eq!((person.asked(), stage.logins()), (0, 1));
    let refused = stage.sign(OTHER, Person::absent()).await;
    assert_eq!(refused.unwrap_err().code(), "locked");
    let (operator, call) = (
        stage.caller(OPERATOR),
        Call::within(Duration::from_secs(60)),
    );
    assert_eq!(stage.keeper.lock(&operator, None, &call).await.len(), 1);
    let locked = stage.sign(GRANTED, Person::absent()).await;
    assert_eq!(locked.unwrap_err().code(), "pin-needed");
    stage.unlock(Person::types(&[PIN]), None).await.unwrap();
    stage.sign(GRANTED, Person::absent()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_stays_unlocked_for_longer_than_the_longest_time() {
    let stage = Stage::new().await;
    let hours = |hours: u64| Duration::from_secs(3600 * hours);
    let longest = |longest| {
        let longest_unlock = Some(longest);
        stage.keeper.change(PinSettings {
            longest_unlock,
            ..PinSettings::default()
        });
    };
    let left = || stage.keeper.status()[0].1.left;
    longest(hours(10));
    for (wanted, given) in [
        (Some(hours(8)), hours(8)),
        (Some(hours(11)), hours(10)),
        (None, hours(10)),
    ] {
        stage.unlock(Person::types(&[PIN]), wanted).await.unwrap();
        assert_eq!(left(), Some(given), "{wanted:?}");
    }
    // A shorter one counts for what is unlocked already, a longer one does not.
    longest(hours(1));
    assert_eq!(left(), Some(hours(1)));
    longest(hours(2));
    assert_eq!(left(), Some(hours(1)));
    stage.clock.goes_on(hours(1) - Duration::from_secs(1));
    stage.sign(OPERATOR, Person::absent()).await.unwrap();
    stage.clock.goes_on(Duration::from_secs(1));
    stage.is_locked().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleep_is_noticed_if_nobody_asks_for_anything() {
    let stage = Stage::new().await;
    stage.unlock(Person::types(&[PIN]), None).await.unwrap();
    let watching = tokio::spawn(stage.keeper.clone().watch());
    let is_open = || {
        let states = stage.node().token_states();
        states.contains(&(stage.id.clone(), TokenState::Ready))
    };
    assert!(is_open());
    stage.clock.sleeps(Duration::from_secs(30));
    until(|| !is_open()).await;
    watching.abort();
    stage.is_locked().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_operator_unlocks() {
    let stage = Stage::new().await;
    let person = Person::types(&[PIN]);
    let call = Call::within(Duration::from_secs(60));
    let (other, backend) = (stage.caller(OTHER), stage.backend());
    let refused = (stage.keeper)
        .unlock(&other, &backend, None, person.clone(), &call)
        .await;
    assert_eq!(refused.unwrap_err().code(), "not-allowed");
    assert_eq!((person.asked(), stage.logins()), (0, 0));
}
