//! One caller's deadline or cancellation is no other caller's.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use claviger_altered_module::AlteredModule;
use claviger_pkcs11::{Pkcs11Driver, with_module};
use claviger_tests::SoftHsm;
use claviger_token::{
    Access, Algorithm, Call, Deletion, Detail, Driver, Error, KeyRef, KeySpec, Listing, NewKey,
    Pin, PinTurn, PinVerdict, RefusedPins, Signer, Token, TokenId, TriesLeft,
};

const SPEC: KeySpec = KeySpec::sign(Algorithm::P256);

/// Nothing takes so long that ends by itself.
const LIMIT: Duration = Duration::from_secs(30);

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

/// Does `work` while somebody else is inside the module.
fn beside_another<T>(stage: &Stage, work: impl FnOnce() -> T) -> T {
    let (entered, is_inside) = mpsc::channel();
    let (leave, is_over) = mpsc::channel::<()>();
    let path = stage.module.path();
    thread::scope(|scope| {
        scope.spawn(move || {
            with_module(&path, |_| {
                entered.send(()).unwrap();
                // Until the other end is gone.
                let _ = is_over.recv();
            })
        });
        is_inside.recv_timeout(LIMIT).unwrap();
        let done = work();
        drop(leave);
        done
    })
}

/// What `work` comes to on a thread of its own, unless that takes too long.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(work()));
    told.recv_timeout(LIMIT).ok()
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

/// Whether p11-kit has lost its slots is asked where the login has entered already.
#[test]
fn a_login_that_fails_behind_p11_kit_does_not_wait_for_itself() {
    let stage = Stage::new();
    stage.alter(&["cannot lock", "library p11-kit", "answer C_Login 0x6"]);
    let call = Call::within(LIMIT).using(stage.hsm.access());
    let failed = stage.open(&call).map(drop);
    assert!(matches!(failed, Err(Error::Device { .. })), "{failed:?}");
    call.check().unwrap();
}

#[test]
fn a_call_that_ends_while_the_module_is_in_use_does_not_say_that_the_token_is_away() {
    let stage = Stage::new();
    let call = Call::unlimited().using(stage.hsm.access());
    let token = stage.open(&call).unwrap();
    let signer = signer(&token);
    let soon = || call.clone().no_longer_than(Duration::from_millis(500));
    stage
        .module
        .alter(&["only nobody", "answer C_SignInit 0x30"]);
    let named = stage.backend().replace('?', "token=nobody-else?");
    let (signed, opened) = beside_another(&stage, || {
        let opened = Pkcs11Driver::new().open(&named, &soon()).map(drop);
        (signer.sign(b"message", &soon()).map(drop), opened)
    });
    for ended in [signed, opened] {
        assert!(matches!(ended, Err(Error::DeadlineExceeded)), "{ended:?}");
    }
    stage.alter(&[]);
    signer.sign(b"message", &Call::unlimited()).unwrap();
}

#[test]
fn who_closes_a_token_whose_sessions_have_ended_waits_for_nobody() {
    let stage = Stage::new();
    stage.alter(&["cannot lock"]);
    let token = stage
        .open(&Call::unlimited().using(stage.hsm.access()))
        .unwrap();
    let signer = signer(&token);
    stage.alter(&["cannot lock", "dead"]);
    signer.sign(b"message", &Call::unlimited()).unwrap_err();
    let closed = beside_another(&stage, || in_time(move || drop((signer, token))));
    assert!(closed.is_some(), "it waits for who is inside the module");
}

#[test]
fn a_deletion_that_is_to_restart_the_module_leaves_that_to_the_next_while_others_are_inside() {
    let stage = Stage::new();
    stage.alter(&["token manufacturer TPM", "library tpm2-software"]);
    let token = stage
        .open(&Call::unlimited().using(stage.hsm.access()))
        .unwrap();
    let signer = signer(&token);
    let slots = token.slots(&Call::unlimited()).unwrap();
    let key = KeyRef {
        slot: slots[0].slot.clone().into(),
        public_key: signer.public_key().clone(),
    };
    stage.module.forget_calls();
    let deleting = token.clone();
    let deleted = beside_another(&stage, || {
        in_time(move || deleting.delete(&key, &Call::unlimited()))
    });
    let deleted = deleted.expect("it waits for who is inside the module");
    assert!(matches!(deleted, Ok(Deletion::Destroyed)), "{deleted:?}");
    assert_eq!(stage.module.calls("C_Finalize"), 0);
    assert_eq!(token.slots(&Call::unlimited()).unwrap(), []);
    assert_eq!(stage.module.calls("C_Finalize"), 1);
}
