//! The card while somebody else has the turn to send a PIN to it: they may need it.

use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::{Desk, MANAGEMENT_KEY, PIN, access, call};
use claviger_token::{
    Access, Algorithm, Call, Driver, Error, FixedPin, KeyRef, KeySpec, NewKey, Pin, PinSource,
    PinTurn, PinVerdict, RefusedPins, Token, TokenId, TriesLeft,
};
use claviger_virtual_yubikey::{Card, Device};

const P256: KeySpec = KeySpec::sign(Algorithm::P256);
/// Longer than a transaction stays that nobody uses, and than one thread waits for another on
/// a busy machine.
const LONG: Duration = Duration::from_secs(5);

/// Whose turn it is, as several processes share it.
#[derive(Default)]
struct Shared {
    turn: Mutex<()>,
    /// What is still to be said of a PIN that is to be sent.
    unsettled: Mutex<bool>,
    /// With how many tries PINs were sent.
    begun: Mutex<Vec<TriesLeft>>,
}

struct Turn<'a>(&'a Shared, #[allow(dead_code)] MutexGuard<'a, ()>);

impl RefusedPins for Shared {
    fn turn(&self, _: &TokenId, _: &Call) -> Result<Box<dyn PinTurn + '_>, Error> {
        Ok(Box::new(Turn(self, self.turn.lock().unwrap())))
    }

    fn turn_at_once(&self, _: &TokenId) -> Result<Option<Box<dyn PinTurn + '_>>, Error> {
        match self.turn.try_lock() {
            Ok(turn) => Ok(Some(Box::new(Turn(self, turn)))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(error) => panic!("{error}"),
        }
    }
}

impl PinTurn for Turn<'_> {
    fn begin(&mut self, pin: &Pin, tries: TriesLeft) -> Result<(), Error> {
        if *self.0.unsettled.lock().unwrap() {
            let (kind, manufacturer, serial) = ("piv".into(), "Yubico".into(), "1".into());
            return Err(Error::PinUnsettled {
                token: TokenId {
                    kind,
                    manufacturer,
                    serial,
                },
            });
        }
        self.begin_anyway(pin, tries)
    }

    fn begin_anyway(&mut self, _: &Pin, tries: TriesLeft) -> Result<(), Error> {
        self.0.begun.lock().unwrap().push(tries);
        Ok(())
    }

    fn end(self: Box<Self>, _: &Pin, _: PinVerdict) {}
}

/// A card, and who sends PINs to it.
struct Stage {
    device: Device,
    desk: Desk,
    shared: Arc<Shared>,
}

impl Stage {
    fn new() -> Stage {
        let device = Device::new(Card::builder().pin(PIN).build());
        let desk = Desk::with(&[&device]);
        let shared = Arc::default();
        Stage {
            device,
            desk,
            shared,
        }
    }

    fn access(&self) -> Access {
        Access {
            refused_pins: self.shared.clone(),
            ..access()
        }
    }

    fn open(&self, access: &Access) -> Result<Arc<dyn Token>, Error> {
        self.desk
            .driver()
            .open("piv:", &call().using(access.clone()))
    }

    /// Begins `work` while somebody else has the turn. They get the card meanwhile, as does
    /// everybody, do `what` with it, and end their turn.
    fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
        what: impl FnOnce(),
    ) -> JoinHandle<T> {
        let turn = self.shared.turn.lock().unwrap();
        self.device.faults().clear_log();
        let working = std::thread::spawn(work);
        self.wait("the card is not reached", || {
            !self.device.faults().log().is_empty()
        });
        let mut free_since = Instant::now();
        self.wait("the card is held while a turn is waited for", || {
            if self.desk.is_busy(&self.device) {
                free_since = Instant::now();
            }
            free_since.elapsed() > Duration::from_millis(300)
        });
        assert!(!working.is_finished(), "it did not wait for its turn");
        what();
        drop(turn);
        working
    }

    fn wait(&self, never: &str, mut until: impl FnMut() -> bool) {
        let end = Instant::now() + LONG;
        while !until() {
            assert!(Instant::now() < end, "{never}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Somebody else sends a wrong PIN.
    fn spend_a_try(&self) {
        self.device.transmit(&[0, 0xa4, 4, 0, 5, 0xa0, 0, 0, 3, 8]);
        let verify = [&[0, 0x20, 0, 0x80, 8][..], b"999999\xff\xff"].concat();
        self.device.transmit(&verify);
    }
}

/// A person who sends a PIN of which nobody knows what became of the last one.
struct Bold;

impl PinSource for Bold {
    fn pin(&self, _: &TokenId, _: &str, _: &Call) -> Result<Pin, Error> {
        Ok(Pin::from(PIN))
    }

    fn sends_unsettled(&self, _: &TokenId, _: &str, _: &Call) -> Result<bool, Error> {
        Ok(true)
    }
}

#[test]
fn who_opens_a_card_waits_for_the_turn_without_it_and_counts_the_tries_in_it() {
    let stage = Stage::new();
    let other = Device::new(Card::builder().pin(PIN).build());
    // The only card, and one of two.
    for cards in 1..=2 {
        let (driver, access) = (stage.desk.driver(), stage.access());
        let backend = format!("piv:serial={}", stage.device.card().serial());
        let work = move || {
            driver
                .open(&backend, &call().using(access.clone()))
                .map(drop)
        };
        let opening = stage.beside(work, || stage.spend_a_try());
        opening.join().unwrap().unwrap();
        assert_eq!(*stage.shared.begun.lock().unwrap(), [TriesLeft::Exactly(2)]);
        assert_eq!(stage.device.card().pin_tries(), 3);
        stage.shared.begun.lock().unwrap().clear();
        if cards == 1 {
            stage.desk.insert(&other);
        }
    }
}

#[test]
fn no_pin_is_sent_where_the_last_try_is_left_once_it_is_our_turn() {
    let stage = Stage::new();
    let (driver, access) = (stage.desk.driver(), stage.access());
    let work = move || driver.open("piv:", &call().using(access.clone())).map(drop);
    let opening = stage.beside(work, || (0..2).for_each(|_| stage.spend_a_try()));
    let opened = opening.join().unwrap();
    assert!(
        matches!(opened, Err(Error::PinFinalTry { .. })),
        "{opened:?}"
    );
    assert_eq!(stage.device.card().pin_tries(), 1);
}

#[test]
fn the_published_pin_and_one_that_a_person_decides_to_send_wait_as_well() {
    let default = Device::new(Card::builder().build());
    let stage = Stage {
        desk: Desk::with(&[&default]),
        device: default,
        shared: Arc::default(),
    };
    let factory = Access {
        factory_defaults: true,
        refused_pins: stage.shared.clone(),
        ..Access::without_pin()
    };
    let driver = stage.desk.driver();
    let work = move || {
        driver
            .open("piv:", &call().using(factory.clone()))
            .map(drop)
    };
    stage.beside(work, || {}).join().unwrap().unwrap();

    let stage = Stage::new();
    *stage.shared.unsettled.lock().unwrap() = true;
    let bold = Access {
        refused_pins: stage.shared.clone(),
        ..Access::with(Bold)
    };
    let driver = stage.desk.driver();
    let work = move || driver.open("piv:", &call().using(bold.clone())).map(drop);
    stage.beside(work, || {}).join().unwrap().unwrap();
}

#[test]
fn a_pin_that_is_given_again_waits_for_its_turn_without_the_card() {
    let stage = Stage::new();
    let token = stage.open(&stage.access()).unwrap();
    let make = |token: &Arc<dyn Token>| {
        let slot = token.free_slots(&[P256], &[], &call()).unwrap().remove(0);
        let mark = "claviger-unfinished-00112233445566778899aabbccddeeff";
        let new = NewKey {
            slot: &slot,
            spec: P256,
            mark,
        };
        let public_key = token.generate(&new, &call()).unwrap().public_key;
        KeyRef { slot, public_key }
    };
    let key = make(&token);
    let signer = token.signer(&key, &Call::unlimited()).unwrap();
    stage.desk.reset(&stage.device);
    let signing = stage.beside(move || signer.sign(b"message", &call()), || {});
    let signature = signing.join().unwrap().unwrap();
    assert!(key.public_key.verify(b"message", &signature).is_ok());
    drop(token);
}

#[test]
fn another_card_that_came_meanwhile_gets_no_pin() {
    let stage = Stage::new();
    let other = Device::new(Card::builder().pin(PIN).build());
    let access = Access {
        refused_pins: stage.shared.clone(),
        management_keys: Arc::new(FixedPin::new(MANAGEMENT_KEY)),
        ..Access::with(FixedPin::new(PIN))
    };
    let driver = stage.desk.driver();
    let work = move || driver.open("piv:", &call().using(access.clone())).map(drop);
    let opening = stage.beside(work, || stage.desk.swap(&stage.device, &other));
    let opened = opening.join().unwrap();
    assert!(
        matches!(opened, Err(Error::TokenUnavailable { .. })),
        "{opened:?}"
    );
    assert!(stage.shared.begun.lock().unwrap().is_empty());
}

/// A person who does not answer, and does not look at the clock either.
struct Away;

impl PinSource for Away {
    fn pin(&self, token: &TokenId, _: &str, _: &Call) -> Result<Pin, Error> {
        std::thread::sleep(2 * LONG);
        Err(Error::PinNeeded {
            token: token.clone(),
        })
    }
}

#[test]
fn a_person_who_does_not_answer_is_waited_for_until_the_deadline_and_without_the_card() {
    let stage = Stage::new();
    let given_up = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let begun = Instant::now();
    let cancel = {
        let given_up = Arc::clone(&given_up);
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(600));
            given_up.store(true, std::sync::atomic::Ordering::SeqCst);
        })
    };
    let late = Call::within(Duration::from_millis(300));
    let cancelled = call().cancelled_by(given_up);
    for (call, is_it) in [
        (late, matches_late as fn(&Error) -> bool),
        (cancelled, |error| matches!(error, Error::Cancelled)),
    ] {
        let call = call.using(stage.access().with_pins(Arc::new(Away)));
        let opened = stage.desk.driver().open("piv:", &call);
        let error = opened.map(drop).unwrap_err();
        assert!(is_it(&error), "{error:?}");
        assert!(!stage.desk.is_busy(&stage.device));
    }
    assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
    cancel.join().unwrap();
    // No PIN was sent, and the next one is.
    assert!(stage.shared.begun.lock().unwrap().is_empty());
    stage.open(&stage.access()).unwrap();
}

fn matches_late(error: &Error) -> bool {
    matches!(error, Error::DeadlineExceeded)
}
