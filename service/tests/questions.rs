//! A caller that does not answer a request for a PIN, on a real SoftHSM2: whom that keeps waiting.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod stage;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use claviger_service::{AskPin, SecretBytes, SecretKind};
use claviger_tests::SoftHsm;
use claviger_token::{Call, TokenId};
use stage::{OPERATOR, OTHER, Person, Stage};

/// Says when it is asked, and answers when it is let.
struct Silent {
    asked: Sender<()>,
    answers: Mutex<Receiver<()>>,
}

impl AskPin for Silent {
    fn ask(
        &self,
        _: SecretKind,
        _: &TokenId,
        _: &str,
        _: Option<u32>,
        _: &Call,
    ) -> Option<SecretBytes> {
        self.asked.send(()).unwrap();
        // Nobody is there to let it where the test has failed.
        self.answers.lock().unwrap().recv().ok()?;
        Some(SecretBytes::new(SoftHsm::PIN.as_bytes().to_vec()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_answer_keeps_nobody_from_the_token_nor_from_unlocking_it() {
    let stage = Arc::new(Stage::new().await);
    let ((asked, is_asked), (answer, answers)) = (channel(), channel());
    let answers = Mutex::new(answers);
    let silent = Arc::new(Silent { asked, answers });
    let its_stage = Arc::clone(&stage);
    let waits = tokio::spawn(async move { its_stage.sign_with(OTHER, silent).await });
    tokio::task::spawn_blocking(move || is_asked.recv().unwrap())
        .await
        .unwrap();
    let _here = stage.keeper.connected(&stage.caller(OPERATOR));
    let person = Person::types(&[SoftHsm::PIN]);
    stage.sign(OPERATOR, person.clone()).await.unwrap();
    let unlocks = Person::types(&[SoftHsm::PIN]);
    stage.unlock(unlocks.clone(), None).await.unwrap();
    assert_eq!((person.asked(), unlocks.asked(), stage.logins()), (1, 1, 1));
    assert!(!waits.is_finished());
    answer.send(()).unwrap();
    waits.await.unwrap().unwrap();
    // It was compared, and not sent.
    assert_eq!(stage.logins(), 1);
}
