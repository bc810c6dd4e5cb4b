//! What a request may use to open a token: its own access or the node's, and whose login that
//! makes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use claviger_engine::message::{RequestDeleteIdentity, RequestGenerateIdentity};
use claviger_engine::opener::Opener;
use claviger_engine::policy::{OwnersOnly, Permission};
use claviger_engine::{Backend, EngineError, EngineId, Node, Policy};
use claviger_formats::envelope::{self, Sealed};
use claviger_token::{
    About, Access, Call, Detail, Driver, Error, FixedPin, KeyUse, Listing, SlotId, Token, Unwrap,
};
use common::logins::{Private, Stage, is_not_allowed, with_pin};
use common::safes::{PINS, Safes};
use common::{call, id, until};

async fn sign(node: &Node, who: &str, call: &Call) -> Result<(), EngineError> {
    let engine = id(&format!("{who}_committer_{who}"));
    let signed = node.commit(&id(who), &engine, b"m".to_vec(), call).await;
    signed.map(drop)
}

#[tokio::test]
async fn a_request_opens_a_token_with_its_own_pin_and_one_without_with_the_nodes() {
    let stage = Stage::new().await;
    let node = stage.node(claviger_token::NoPin, OwnersOnly);
    let without = sign(&node, "alice", &call()).await;
    assert!(
        matches!(without, Err(EngineError::Token(Error::PinNeeded { .. }))),
        "{without:?}"
    );
    assert!(stage.came().is_empty());
    sign(&node, "alice", &with_pin()).await.unwrap();
    assert_eq!(stage.came(), [PINS[0]]);
    stage.safes.log_out();
    // A request with a PIN of its own does not get the node's.
    let node = stage.node(FixedPin::new(PINS[0]), OwnersOnly);
    let wrong = Call::unlimited().using(Access::with(FixedPin::new("999999")));
    let refused = sign(&node, "alice", &wrong).await;
    assert!(
        matches!(refused, Err(EngineError::Token(Error::PinWrong { .. }))),
        "{refused:?}"
    );
    assert_eq!(stage.came(), ["999999"]);
    sign(&node, "alice", &call()).await.unwrap();
    assert_eq!(stage.came(), [PINS[0]]);
}

#[tokio::test]
async fn in_one_process_a_token_that_one_request_opened_serves_the_others() {
    let stage = Stage::new().await;
    let node = stage.node(claviger_token::NoPin, OwnersOnly);
    sign(&node, "alice", &with_pin()).await.unwrap();
    for who in ["alice", "bob"] {
        sign(&node, who, &call()).await.unwrap();
    }
    assert_eq!(stage.came(), [PINS[0]]);
}

#[tokio::test]
async fn a_policy_keeps_a_login_for_whose_pin_made_it() {
    let stage = Stage::new().await;
    let node = stage.node(claviger_token::NoPin, Private);
    sign(&node, "alice", &with_pin()).await.unwrap();
    sign(&node, "alice", &call()).await.unwrap();
    // Somebody else's key on the token, and the key that was used.
    is_not_allowed(&sign(&node, "bob", &call()).await);
    let alices = id("alice_committer_alice");
    let data = b"m".to_vec();
    is_not_allowed(&node.commit(&id("bob"), &alices, data, &call()).await);
    let opens = id("bob_decryptor_bob");
    let decryptor = node.decryptor(&id("bob"), &opens, &call()).await;
    is_not_allowed(&decryptor.map(drop));
    is_not_allowed(&node.generate(&id("carol"), stage.request(), &call()).await);
    let deleted = RequestDeleteIdentity {
        external_identity: id("bob"),
        backend: Backend::LocalMemory,
    };
    is_not_allowed(&node.delete(&id("bob"), deleted, &call()).await);
    assert_eq!(node.registry().identities().unwrap().len(), 2);
    assert_eq!(stage.safes.0[0].device.keys(), 4);
    sign(&node, "alice", &call()).await.unwrap();
    assert_eq!(stage.came(), [PINS[0]]);
}

#[tokio::test]
async fn a_decryptor_that_was_handed_out_does_not_use_a_login_that_somebody_else_made_since() {
    let stage = Stage::new().await;
    let node = stage.node(FixedPin::new(PINS[0]), Private);
    let opens = id("bob_decryptor_bob");
    let key = node.decryptor(&id("bob"), &opens, &call()).await.unwrap();
    let peer = key.public_key().clone();
    let unwrap = || key.unwrap(Unwrap::Agree { peer: &peer }, &call()).map(drop);
    key.confirm(&call()).unwrap();
    unwrap().unwrap();
    stage.safes.log_out();
    let (carol, hers) = (id("carol"), with_pin());
    let made = node.generate(&carol, stage.request(), &hers).await;
    made.unwrap();
    assert_eq!(stage.came(), [PINS[0]]);
    for refused in [key.confirm(&call()), unwrap()] {
        assert!(
            matches!(refused, Err(Error::PinNeeded { .. })),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn the_nodes_own_login_is_everybodys_whatever_the_policy_says_of_sharing() {
    let stage = Stage::new().await;
    let node = stage.node(FixedPin::new(PINS[0]), Private);
    for who in ["alice", "bob"] {
        sign(&node, who, &call()).await.unwrap();
    }
    // Nor does it become somebody's who has the PIN, too.
    sign(&node, "alice", &with_pin()).await.unwrap();
    sign(&node, "bob", &call()).await.unwrap();
    assert_eq!(stage.came(), [PINS[0]]);
}

#[tokio::test]
async fn what_was_interrupted_is_not_resolved_with_the_login_of_one_sender() {
    let stage = Stage::new().await;
    let device = &stage.safes.0[0].device;
    let node = stage.node(claviger_token::NoPin, Private);
    device.detach_after(1);
    let (dave, his) = (id("dave"), with_pin());
    let made = node.generate(&dave, stage.request(), &his).await;
    assert!(made.is_err());
    device.attach();
    let intents = || node.registry().open_intents().unwrap();
    let keys = device.keys();
    assert_eq!(intents().len(), 1);
    stage.safes.log_out();
    sign(&node, "alice", &with_pin()).await.unwrap();

    let left = node.resolve_intents(&Call::unlimited()).await.unwrap();
    let [(_, error)] = &left[..] else {
        panic!("{left:?}");
    };
    assert_eq!(error.code(), "not-allowed");
    assert_eq!((intents().len(), device.keys()), (1, keys));
    // By a PIN of its own it is.
    drop(node);
    stage.safes.log_out();
    let node = stage.node(FixedPin::new(PINS[0]), Private);
    let left = node.resolve_intents(&Call::unlimited()).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(device.keys(), keys - 1);
}

#[tokio::test]
async fn a_pin_that_the_token_refuses_makes_nobodys_login() {
    let stage = Stage::new().await;
    let node = stage.node(FixedPin::new(PINS[0]), Private);
    let wrong = Call::unlimited().using(Access::with(FixedPin::new("999999")));
    assert!(sign(&node, "alice", &wrong).await.is_err());
    sign(&node, "bob", &call()).await.unwrap();
}

#[tokio::test]
async fn a_login_that_one_node_made_serves_another_one_in_this_process_as_the_policy_has_it() {
    let stage = Stage::new().await;
    let node = || stage.node(claviger_token::NoPin, Private);
    // It was open in the second one before, by nobody's PIN.
    let (first, second, third) = (node(), node(), node());
    stage.safes.0[0].logged_in.store(true, SeqCst);
    sign(&second, "bob", &call()).await.unwrap();
    stage.safes.log_out();
    sign(&first, "alice", &with_pin()).await.unwrap();
    assert_eq!(stage.came(), [PINS[0]]);
    for other in [&second, &third] {
        is_not_allowed(&sign(other, "bob", &call()).await);
        // Another node's `alice` is another one.
        is_not_allowed(&sign(other, "alice", &call()).await);
    }
    sign(&first, "alice", &call()).await.unwrap();
    // Also when the node is gone that made it, as long as the token stays open.
    drop((first, third));
    is_not_allowed(&sign(&second, "bob", &call()).await);
    drop(second);
    // Of a token that nobody has open any more nothing is left.
    let node = node();
    sign(&node, "bob", &call()).await.unwrap();
    assert!(stage.came().is_empty());
}

/// Lets everybody use every login, and notes whose they were.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<EngineId>>>);

impl Policy for Notes {
    fn check(&self, _: &EngineId, access: Permission<'_>) -> Result<(), EngineError> {
        if let Permission::UseLogin { of, .. } = access {
            self.0.lock().unwrap().push(of.clone());
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_login_by_a_nodes_own_pin_serves_another_node_as_the_policy_has_it() {
    let stage = Stage::new().await;
    let notes = Notes::default();
    let first = stage.node(FixedPin::new(PINS[0]), Private);
    let second = stage.node(claviger_token::NoPin, Private);
    let third = stage.node(claviger_token::NoPin, notes.clone());
    sign(&first, "alice", &call()).await.unwrap();
    is_not_allowed(&sign(&second, "bob", &call()).await);
    sign(&third, "bob", &call()).await.unwrap();
    let asked = std::mem::take(&mut *notes.0.lock().unwrap());
    assert!(!asked.is_empty());
    assert!(asked.iter().all(|of| *of == EngineId::program()));
    sign(&first, "bob", &call()).await.unwrap();
    assert_eq!(stage.came(), [PINS[0]]);
}

#[tokio::test]
async fn a_login_is_whose_pin_made_it_as_long_as_a_signature_that_nobody_awaits_keeps_it() {
    let stage = Stage::with(Safes::slow()).await;
    let device = &stage.safes.0[0].device;
    let node = || stage.node(claviger_token::NoPin, Private);
    let first = node();
    device.wants_touch(true);
    let pin = with_pin();
    tokio::select! {
        signed = sign(&first, "alice", &pin) => panic!("{signed:?}"),
        () = until(|| device.waits_for_touch()) => {}
    }
    drop(first);
    assert_eq!(stage.came(), [PINS[0]]);
    let second = node();
    let opens = id("bob_decryptor_bob");
    let decryptor = second.decryptor(&id("bob"), &opens, &call()).await;
    device.wants_touch(false);
    is_not_allowed(&decryptor.map(drop));
}

/// The driver of the safes, which goes on after a login as it is told.
struct After(Safes, Arc<AtomicBool>);

impl Driver for After {
    fn about(&self) -> About {
        self.0.about()
    }

    fn look(&self, backend: &str, detail: Detail, call: &Call) -> Result<Listing, Error> {
        self.0.look(backend, detail, call)
    }

    fn named_slot(&self, backend: &str) -> Result<Option<SlotId>, Error> {
        self.0.named_slot(backend)
    }

    fn open(&self, backend: &str, call: &Call) -> Result<Arc<dyn Token>, Error> {
        let token = self.0.open(backend, call)?;
        match self.1.load(SeqCst) {
            true => Err(claviger_token::backend::bad(backend, "it has no policies")),
            false => Ok(token),
        }
    }
}

#[tokio::test]
async fn a_login_is_whose_pin_made_it_also_where_the_opening_fails_after_it() {
    let stage = Stage::new().await;
    let fails = Arc::new(AtomicBool::new(true));
    let driver = After(stage.safes.clone(), Arc::clone(&fails));
    let node = stage.node_with(driver, claviger_token::NoPin, Private);
    let failed = sign(&node, "alice", &with_pin()).await;
    assert!(
        matches!(failed, Err(EngineError::Token(Error::BadBackend { .. }))),
        "{failed:?}"
    );
    assert_eq!(stage.came(), [PINS[0]]);
    fails.store(false, SeqCst);
    is_not_allowed(&sign(&node, "bob", &call()).await);
    sign(&node, "alice", &call()).await.unwrap();
    assert!(stage.came().is_empty());
}

#[tokio::test]
async fn one_pin_that_a_request_carries_for_whichever_token_asks_goes_to_none_of_several() {
    let stage = Stage::new().await;
    let node = stage.node(stage.safes.person(), OwnersOnly);
    let second = RequestGenerateIdentity {
        backend: Backend::from(stage.safes.0[1].device.info().backend.clone()),
        ..stage.request()
    };
    node.generate(&id("dave"), second, &call()).await.unwrap();
    let keys = ["alice", "dave"].map(|name| {
        let info = node.registry().identity(&id(name)).unwrap().unwrap();
        info.key(KeyUse::Decrypt).unwrap().public_key.clone()
    });
    let file = envelope::encrypt(&[&keys[0], &keys[1]], b"text").unwrap();
    stage.safes.log_out();

    let node = stage.node(stage.safes.person(), OwnersOnly);
    let sealed = Sealed::read(file.as_slice()).unwrap();
    let call = with_pin();
    let asker = EngineId::program();
    let opener = Opener::anybody(&node, &asker, sealed.stanzas(), &call);
    let not = opener.await.unwrap().open(&call).await;
    let Err(not) = not else {
        panic!("one PIN opened it");
    };
    assert!(
        matches!(not.error, EngineError::PinForSeveralTokens { .. }),
        "{not}"
    );
    assert!(stage.came().is_empty());
}
