//! One caller's deadline or cancellation is no other caller's.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use claviger_altered_module::AlteredModule;
use claviger_pkcs11::Pkcs11Driver;
use claviger_tests::SoftHsm;
use claviger_token::{
    Access, Algorithm, Call, Detail, Driver, Error, KeyRef, KeySpec, Listing, NewKey, Pin, PinTurn,
    PinVerdict, RefusedPins, Signer, Token, TokenId, TriesLeft,
};

const SPEC: KeySpec = KeySpec::sign(Algorithm::P256);

struct Stage {
    hsm: SoftHsm,
    module: AlteredModule,
}

impl Stage {
    fn new() -> Self {
        let (hsm, module) = (
            SoftHsm::new(),
            AlteredModule::of(SoftHsm::module().as_ref()),
        );
        let stage = Stage { hsm, module };
        stage.alter(&[]);
        stage
    }

    fn alter(&self, lines: &[&str]) {
        let only = format!("only {}", self.hsm.label());
        self.module.alter(&[&[&*only], lines].concat());
    }

    fn backend(&self) -> String {
        format!("pkcs11:?module-path={}", self.module.path().display())
    }

    fn open(&self, call: &Call) -> Result<Arc<dyn Token>, Error> {
        Pkcs11Driver::new().open(&self.backend(), call)
    }

    fn list(&self, call: &Call) -> Result<Listing, Error> {
        Pkcs11Driver::new().look(&self.backend(), Detail::Slots, call)
    }
}

fn signer(token: &Arc<dyn Token>) -> Arc<dyn Signer> {
    let call = Call::unlimited();
    let slot = token.free_slots(&[SPEC], &[], &call).unwrap().remove(0);
    let new = NewKey {
        slot: &slot,
        spec: SPEC,
        mark: "",
    };
    let public_key = token.generate(&new, &call).unwrap().public_key;
    token.signer(&KeyRef { slot, public_key }, &call).unwrap()
}

fn wait_until(is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it never is so");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Somebody else has the turn while `taken`.
#[derive(Default)]
struct Elsewhere {
    taken: AtomicBool,
    waiting: AtomicUsize,
}

struct Turn;

impl RefusedPins for Elsewhere {
    fn turn(&self, _: &TokenId, call: &Call) -> Result<Box<dyn PinTurn + '_>, Error> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while self.taken.load(Ordering::SeqCst) {
            call.check()?;
            thread::sleep(Duration::from_millis(5));
        }
        Ok(Box::new(Turn))
    }

    fn turn_at_once(&self, _: &TokenId) -> Result<Option<Box<dyn PinTurn + '_>>, Error> {
        let is_taken = self.taken.load(Ordering::SeqCst);
        Ok((!is_taken).then(|| Box::new(Turn) as _))
    }
}

impl PinTurn for Turn {
    fn begin(&mut self, _: &Pin, _: TriesLeft) -> Result<(), Error> {
        Ok(())
    }

    fn end(self: Box<Self>, _: &Pin, _: PinVerdict) {}
}

#[test]
fn who_waits_for_a_recovery_that_its_caller_gave_up_recovers_itself() {
    let stage = Stage::new();
    let turns = Arc::new(Elsewhere::default());
    let access = Access {
        refused_pins: turns.clone(),
        ..stage.hsm.access()
    };
    let token = stage.open(&Call::unlimited().using(access)).unwrap();
    let signer = signer(&token);
    stage.alter(&["dead"]);
    signer.sign(b"message", &Call::unlimited()).unwrap_err();
    stage.alter(&[]);
    turns.taken.store(true, Ordering::SeqCst);
    turns.waiting.store(0, Ordering::SeqCst);
    let given_up = Arc::new(AtomicBool::new(false));
    let impatient = Call::unlimited().cancelled_by(given_up.clone());
    thread::scope(|scope| {
        let first = scope.spawn(|| signer.sign(b"message", &impatient));
        wait_until(|| turns.waiting.load(Ordering::SeqCst) > 0);
        let second = scope.spawn(|| signer.sign(b"message", &Call::unlimited()));
        thread::sleep(Duration::from_millis(300));
        given_up.store(true, Ordering::SeqCst);
        let first = first.join().unwrap();
        turns.taken.store(false, Ordering::SeqCst);
        assert!(matches!(first, Err(Error::Cancelled)), "{first:?}");
        second.join().unwrap().unwrap();
    });
}

#[test]
fn who_waits_until_a_token_is_closed_waits_as_long_as_its_call_lasts() {
    let stage = Stage::new();
    let call = Call::unlimited().using(stage.hsm.access());
    let token = stage.open(&call).unwrap();
    stage.module.forget_calls();
    stage.alter(&["wait C_CloseSession"]);
    thread::scope(|scope| {
        scope.spawn(move || drop(token));
        wait_until(|| stage.module.calls("C_CloseSession") > 0);
        let late = stage.open(&call.clone().no_longer_than(Duration::from_millis(300)));
        let given_up = Arc::new(AtomicBool::new(false));
        let begun = Instant::now();
        let cancelled = call.clone().cancelled_by(given_up.clone());
        let opening = scope.spawn({
            let stage = &stage;
            move || stage.open(&cancelled)
        });
        thread::sleep(Duration::from_millis(300));
        given_up.store(true, Ordering::SeqCst);
        let cancelled = opening.join().unwrap();
        let took = begun.elapsed();
        let opened = stage.module.calls("C_OpenSession");
        stage.alter(&[]);
        assert!(
            matches!(late, Err(Error::DeadlineExceeded)),
            "{:?}",
            late.err()
        );
        assert!(
            matches!(cancelled, Err(Error::Cancelled)),
            "{:?}",
            cancelled.err()
        );
        assert!(took < Duration::from_secs(3), "{took:?}");
        assert_eq!(opened, 0);
    });
    stage.open(&call).unwrap();
}

/// A module without locks is called by one thread at a time. Whoever waits until another call
/// is done waits no longer than its own lasts.
#[test]
fn a_module_that_takes_one_call_at_a_time_is_waited_for_until_the_deadline() {
    let stage = Stage::new();
    stage.alter(&["cannot lock"]);
    let call = Call::unlimited().using(stage.hsm.access());
    let token = stage.open(&call).unwrap();
    let signer = signer(&token);
    stage.module.forget_calls();
    stage.alter(&["wait C_SignInit"]);
    let soon = || call.clone().no_longer_than(Duration::from_millis(200));
    let (told, heard) = mpsc::channel();
    thread::scope(|scope| {
        let slow = scope.spawn(|| signer.sign(b"message", &Call::unlimited()));
        wait_until(|| stage.module.calls("C_SignInit") > 0);
        for attempt in 0..4 {
            let (stage, signer, token, told) = (&stage, &signer, &token, told.clone());
            scope.spawn(move || {
                let ended = match attempt {
                    0 => signer.sign(b"message", &soon()).map(drop),
                    1 => token.slots(&soon()).map(drop),
                    2 => stage.open(&soon()).map(drop),
                    _ => stage.list(&soon()).map(drop),
                };
                told.send((attempt, ended)).unwrap();
            });
        }
        let limit = Duration::from_secs(20);
        let ended: Vec<_> = (0..4).map(|_| heard.recv_timeout(limit)).collect();
        stage.alter(&[]);
        for ended in ended {
            let (attempt, ended) = ended.expect("a call outlasts its deadline");
            assert!(
                matches!(ended, Err(Error::DeadlineExceeded)),
                "{attempt}: {ended:?}"
            );
        }
        slow.join().unwrap().unwrap();
    });
}
