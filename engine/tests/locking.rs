//! Openings of one token that are under way at once, and a lock meanwhile.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use claviger_engine::policy::{OwnersOnly, Permission, Subject};
use claviger_engine::{EngineError, EngineId, Node, Policy};
use claviger_token::{
    About, Access, Call, Detail, Driver, Error, FixedPin, Listing, NoPin, PinVerdict, SlotId,
    Token, TriesLeft, refused,
};
use common::logins::{Private, Stage, is_not_allowed};
use common::safes::{PINS, Safes};
use common::{call, id};
use secrecy::ExposeSecret;

/// Says that somebody came, and hears when they go on.
type Turnstile = (Sender<()>, Receiver<()>);

/// The first safe, as a PKCS#11 module is: a login while somebody is logged in judges no PIN.
struct Desk {
    safes: Safes,
    /// Who has this PIN says that it got it, and waits.
    gates: Mutex<HashMap<&'static str, Turnstile>>,
}

impl Desk {
    fn wait(&self, pin: &str) {
        let gate = self.gates.lock().unwrap().remove(pin);
        if let Some((came, goes_on)) = gate {
            came.send(()).unwrap();
            goes_on.recv().unwrap();
        }
    }
}

impl Driver for Desk {
    fn about(&self) -> About {
        self.safes.about()
    }

    fn look(&self, backend: &str, detail: Detail, call: &Call) -> Result<Listing, Error> {
        self.safes.look(backend, detail, call)
    }

    fn named_slot(&self, backend: &str) -> Result<Option<SlotId>, Error> {
        self.safes.named_slot(backend)
    }

    fn open(&self, _: &str, call: &Call) -> Result<Arc<dyn Token>, Error> {
        let (safe, access) = (&self.safes.0[0], call.access());
        let token = safe.device.id();
        if !safe.logged_in.load(SeqCst) {
            let pin = access.pins.pin(&token, "", call)?;
            self.wait(pin.expose_secret());
            let asked = refused::PinAttempt {
                token: &token,
                pin: &pin,
                pins: &*access.pins,
                label: "",
                call,
            };
            let memory = &*access.refused_pins;
            let turn = refused::begin(memory, &token, &asked, || Ok(TriesLeft::Unknown))?;
            if safe.logged_in.load(SeqCst) {
                turn.end(&pin, PinVerdict::NotJudged);
            } else {
                assert_eq!(pin.expose_secret(), safe.pin);
                safe.logged_in.store(true, SeqCst);
                turn.end(&pin, PinVerdict::Accepted);
            }
        }
        safe.device.open(&safe.device.info().backend, call)
    }
}

/// A view of one caller, who uses no login of others.
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

const WRONG: &str = "999999";

/// One end of a gate of a [`Desk`].
struct Gate {
    came: Receiver<()>,
    go_on: Sender<()>,
}

/// A stage with a node whose openings wait at a gate for each of these PINs.
async fn stage<const N: usize>(pins: [&'static str; N]) -> (Stage, Node, [Gate; N]) {
    let stage = Stage::new().await;
    let mut gates = HashMap::new();
    let ends = pins.map(|pin| {
        let ((tell, came), (go_on, goes_on)) = (channel(), channel());
        gates.insert(pin, (tell, goes_on));
        Gate { came, go_on }
    });
    let desk = Desk {
        safes: stage.safes.clone(),
        gates: Mutex::new(gates),
    };
    let node = stage.node_with(desk, NoPin, OwnersOnly);
    (stage, node, ends)
}

type LoggedIn = tokio::task::JoinHandle<Result<(), EngineError>>;

fn log_in(view: &Node, backend: &str, pin: &str) -> LoggedIn {
    let (view, backend) = (view.clone(), backend.to_owned());
    let call = call().using(Access::with(FixedPin::new(pin)));
    tokio::spawn(async move {
        let logged_in = view.log_in(&id("alice"), &backend, &call).await;
        logged_in.map(drop)
    })
}

async fn sign(view: &Node) -> Result<(), EngineError> {
    let (alice, engine, call) = (id("alice"), id("alice_committer_alice"), call());
    let signed = view.commit(&alice, &engine, b"m".to_vec(), &call);
    signed.await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_nobody_judged_since_another_login_came_first_makes_no_owner() {
    let (stage, node, gates) = stage([PINS[0], WRONG]).await;
    let [right, wrong] = gates;
    let [one, other] = ["one", "other"].map(|name| node.seen_by(Arc::new(Caller(name))));
    let backend = &stage.safes.0[0].device.info().backend;
    let has = log_in(&one, backend, PINS[0]);
    right.came.recv().unwrap();
    let has_not = log_in(&other, &format!("{backend}?x"), WRONG);
    wrong.came.recv().unwrap();
    right.go_on.send(()).unwrap();
    has.await.unwrap().unwrap();
    wrong.go_on.send(()).unwrap();
    has_not.await.unwrap().unwrap_err();
    is_not_allowed(&sign(&other).await);
    sign(&one).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opening_that_was_under_way_when_all_was_locked_does_not_get_the_token() {
    for is_one in [true, false] {
        let (stage, node, [gate]) = stage([PINS[0]]).await;
        let (token, backend) = {
            let device = &stage.safes.0[0].device;
            (device.id(), device.info().backend.clone())
        };
        let logged_in = log_in(&node, &backend, PINS[0]);
        gate.came.recv().unwrap();
        // Another token's lock is none of this one's.
        let other = stage.safes.0[1].device.id();
        assert!(node.lock_tokens(Some(&other)).is_empty());
        assert!(node.lock_tokens(is_one.then_some(&token)).is_empty());
        gate.go_on.send(()).unwrap();
        let refused = logged_in.await.unwrap().unwrap_err();
        assert_eq!(refused.code(), "pin-needed");
        assert!(node.close_token(&token).is_none());
        stage.safes.log_out();
        // What begins now is opened.
        let again = log_in(&node, &backend, PINS[0]).await.unwrap();
        again.unwrap();
        let locked = node.lock_tokens(None);
        assert_eq!(locked.len(), 1);
        for closing in locked {
            assert_eq!(*closing.token(), token);
        }
    }
}
