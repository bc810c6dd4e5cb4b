//! What waits for a card that another program keeps, or another request, ends at its deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::common::{Desk, PIN, access, call};
use claviger_piv::PivDriver;
use claviger_piv::reader::Readers;
use claviger_token::{
    Algorithm, Call, Driver, Error, KeyRef, KeySpec, NewKey, Signer, Token, unfinished_mark,
};
use claviger_virtual_yubikey::{Card, Device};

const P256: KeySpec = KeySpec::sign(Algorithm::P256);
/// Longer than a machine is busy.
const LONG: Duration = Duration::from_secs(60);

/// A card, and an open token with a key.
struct Stage {
    device: Device,
    desk: Desk,
    token: Arc<dyn Token>,
    key: KeyRef,
    signer: Arc<dyn Signer>,
}

impl Stage {
    fn new() -> Stage {
        let device = Device::new(Card::builder().pin(PIN).build());
        let desk = Desk::with(&[&device]);
        let token = desk.driver().open("piv:", &call()).unwrap();
        let slot = token.free_slots(&[P256], &[], &call()).unwrap().remove(0);
        let new = NewKey {
            slot: &slot,
            spec: P256,
            mark: &unfinished_mark(),
        };
        let public_key = token.generate(&new, &call()).unwrap().public_key;
        let key = KeyRef { slot, public_key };
        let signer = token.signer(&key, &call()).unwrap();
        signer.sign(b"message", &call()).unwrap();
        Stage {
            device,
            desk,
            token,
            key,
            signer,
        }
    }

    /// Does `work` while another program has a transaction with the card.
    fn held<T>(&self, work: impl FnOnce() -> T) -> T {
        let reader = self.desk.list().unwrap().remove(0);
        let mut link = self.desk.connect(&reader).unwrap();
        let transaction = link.begin().unwrap();
        let done = work();
        drop(transaction);
        done
    }

    /// All that a request may want of a card, on a token that is open or on none.
    fn requests(&self) -> Vec<(&'static str, Request)> {
        let driver = || -> PivDriver { self.desk.driver() };
        let (opening, listing) = (driver(), driver());
        let token = || Arc::clone(&self.token);
        let (slots, free, make, find, delete) = (token(), token(), token(), token(), token());
        let (key, doomed) = (self.key.clone(), self.key.clone());
        let (slot, signer) = (self.key.slot.clone(), Arc::clone(&self.signer));
        let requests: Vec<(&'static str, Request)> = vec![
            (
                "open",
                Box::new(move |call| opening.open("piv:", call).map(drop)),
            ),
            (
                "list",
                Box::new(move |call| listing.tokens("piv:", call).map(drop)),
            ),
            (
                "sign",
                Box::new(move |call| signer.sign(b"message", call).map(drop)),
            ),
            ("slots", Box::new(move |call| slots.slots(call).map(drop))),
            (
                "free",
                Box::new(move |call| free.free_slots(&[P256], &[], call).map(drop)),
            ),
            (
                "find",
                Box::new(move |call| find.signer(&key, call).map(drop)),
            ),
            (
                "delete",
                Box::new(move |call| delete.delete(&doomed, call).map(drop)),
            ),
            (
                "make",
                Box::new(move |call| {
                    let (slot, spec, mark) = (&slot, P256, &unfinished_mark());
                    make.generate(&NewKey { slot, spec, mark }, call).map(drop)
                }),
            ),
        ];
        requests
    }
}

type Request = Box<dyn FnOnce(&Call) -> Result<(), Error> + Send>;

/// What comes of a request, which must end.
fn ended(what: &str, request: Request, call: Call) -> Error {
    let (sender, done) = channel();
    std::thread::spawn(move || sender.send(request(&call)));
    let done = done.recv_timeout(LONG);
    let done = done.unwrap_or_else(|_| panic!("{what} waits past its end"));
    done.expect_err(what)
}

fn wait(never: &str, mut until: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !until() {
        assert!(Instant::now() < end, "{never}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn while_another_program_keeps_the_card_each_request_ends_at_its_deadline() {
    let stage = Stage::new();
    let sent = |stage: &Stage| stage.device.faults().log().len();
    stage.held(|| {
        let before = sent(&stage);
        for (what, request) in stage.requests() {
            let call = Call::within(Duration::from_millis(300)).using(access());
            let error = ended(what, request, call);
            assert!(
                matches!(error, Error::DeadlineExceeded),
                "{what}: {error:?}"
            );
        }
        for (what, request) in stage.requests() {
            let given_up = Arc::new(AtomicBool::new(false));
            let call = call().cancelled_by(Arc::clone(&given_up));
            let giving_up = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                given_up.store(true, Ordering::SeqCst);
            });
            let error = ended(what, request, call);
            assert!(matches!(error, Error::Cancelled), "{what}: {error:?}");
            giving_up.join().unwrap();
        }
        assert_eq!(sent(&stage), before, "the card was reached");
        // One for the open token, and one for each of those who look into the reader.
        let waiting = stage.desk.waiting();
        assert!(waiting <= 1 + 4, "{waiting} threads wait");
    });
    // Nothing that was given up keeps the card, and everything goes on.
    wait("a request that was given up waits", || {
        stage.desk.waiting() == 0
    });
    wait("a request that was given up has the card", || {
        !stage.desk.is_busy(&stage.device)
    });
    let call = Call::within(LONG).using(access());
    stage.signer.sign(b"message", &call).unwrap();
    drop(stage.desk.driver().open("piv:", &call).unwrap());
    stage.token.delete(&stage.key, &call).unwrap();
    assert_eq!(stage.device.card().pin_tries(), 3);
}

#[test]
fn however_many_requests_give_up_one_thread_waits_for_the_card() {
    let stage = Stage::new();
    let driver = stage.desk.driver();
    stage.held(|| {
        for _ in 0..5 {
            let call = Call::within(Duration::from_millis(20)).using(access());
            let signed = stage.signer.sign(b"message", &call).map(drop);
            let opened = driver.open("piv:", &call).map(drop);
            for done in [signed, opened] {
                assert!(matches!(done, Err(Error::DeadlineExceeded)), "{done:?}");
            }
        }
        // The open token's, and that of whoever wants to open it.
        assert!(stage.desk.waiting() <= 2, "{}", stage.desk.waiting());
    });
    let call = Call::within(LONG).using(access());
    stage.signer.sign(b"message", &call).unwrap();
    driver.open("piv:", &call).unwrap();
}

#[test]
fn who_waits_for_another_request_ends_at_its_deadline() {
    let stage = Stage::new();
    let signer = Arc::clone(&stage.signer);
    let first = stage.held(|| {
        let first = std::thread::spawn(move || signer.sign(b"message", &call()).map(drop));
        wait("nobody waits for the card", || stage.desk.waiting() > 0);
        for (what, request) in stage.requests() {
            let call = Call::within(Duration::from_millis(100)).using(access());
            let error = ended(what, request, call);
            assert!(
                matches!(error, Error::DeadlineExceeded),
                "{what}: {error:?}"
            );
        }
        first
    });
    first.join().unwrap().unwrap();
}
