//! Tokens of Kryoptic that say the same of themselves, or cannot be read.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::{Arc, Mutex};

use claviger_pkcs11::Pkcs11Driver;
use claviger_tests::Kryoptic;
use claviger_token::{
    Access, Algorithm, Call, Driver, Error, KeySpec, NewKey, Pin, PinTurn, PinVerdict, RefusedPins,
    SlotId, TokenId, TriesLeft, unfinished_mark,
};

/// What is done to the module is felt at all its tokens: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Whether there is no Kryoptic, which is said.
fn skipped() -> bool {
    let why = Kryoptic::skipped();
    if let Some(why) = why {
        let test = std::thread::current();
        eprintln!("SKIPPED {}: {why}", test.name().unwrap_or(""));
    }
    why.is_some()
}

/// Notes what becomes of the PINs that are sent.
#[derive(Clone, Default)]
struct Noted(Arc<Mutex<Vec<Option<PinVerdict>>>>);

impl Noted {
    fn all(&self) -> Vec<Option<PinVerdict>> {
        self.0.lock().unwrap().clone()
    }
}

impl RefusedPins for Noted {
    fn turn(&self, _: &TokenId, _: &Call) -> Result<Box<dyn PinTurn + '_>, Error> {
        Ok(Box::new(self.clone()))
    }
}

impl PinTurn for Noted {
    fn begin(&mut self, _: &Pin, _: TriesLeft) -> Result<(), Error> {
        self.0.lock().unwrap().push(None);
        Ok(())
    }

    fn end(self: Box<Self>, _: &Pin, verdict: PinVerdict) {
        *self.0.lock().unwrap().last_mut().unwrap() = Some(verdict);
    }
}

#[test]
fn two_tokens_that_say_the_same_are_told_apart_by_their_slots_or_not_used() {
    if skipped() {
        return;
    }
    let _alone = ALONE.lock().unwrap();
    let noted = Noted::default();
    let one = Kryoptic::new();
    let access = Access {
        refused_pins: Arc::new(noted.clone()),
        ..one.access()
    };
    let (driver, call) = (Pkcs11Driver::new(), Call::unlimited());
    let alone = driver
        .open(&one.backend(), &call.clone().using(access.clone()))
        .unwrap();
    let slots = alone.slots(&call).unwrap();
    assert_eq!(slots, []);

    // The sessions end, and then there are two.
    let other = one.twin();
    let lost = alone.slots(&call);
    assert!(
        matches!(lost, Err(Error::TokenUnavailable { .. })),
        "{lost:?}"
    );
    assert_eq!(noted.all(), [Some(PinVerdict::Accepted)]);
    let either = driver
        .open(&one.backend(), &call.clone().using(access.clone()))
        .map(drop);
    assert!(
        matches!(either, Err(Error::AmbiguousToken { .. })),
        "{either:?}"
    );

    let by_slot = |token: &Kryoptic| {
        let with_slot = format!(";slot-id={}?", token.slot());
        let backend = token.backend().replace('?', &with_slot);
        driver
            .open(&backend, &call.clone().using(access.clone()))
            .unwrap()
    };
    let (first, second) = (by_slot(&one), by_slot(&other));
    let new = NewKey {
        slot: &SlotId::new("01"),
        spec: KeySpec::sign(Algorithm::P256),
        mark: &unfinished_mark(),
    };
    first.generate(&new, &call).unwrap();
    assert_eq!(first.slots(&call).unwrap().len(), 1);
    assert_eq!(second.slots(&call).unwrap(), []);
}

#[test]
fn a_token_that_cannot_be_read_is_sent_no_pin() {
    if skipped() {
        return;
    }
    let _alone = ALONE.lock().unwrap();
    let noted = Noted::default();
    let token = Kryoptic::new();
    let access = Access {
        refused_pins: Arc::new(noted.clone()),
        ..token.access()
    };
    let (driver, call) = (Pkcs11Driver::new(), Call::unlimited());
    token.remove();
    let failed = driver
        .open(&token.backend(), &call.clone().using(access.clone()))
        .map(drop);
    token.insert();
    assert!(
        matches!(failed, Err(Error::TokenUnavailable { .. })),
        "{failed:?}"
    );
    assert_eq!(noted.all(), []);
    driver.open(&token.backend(), &call.using(access)).unwrap();
    assert_eq!(noted.all(), [Some(PinVerdict::Accepted)]);
}
