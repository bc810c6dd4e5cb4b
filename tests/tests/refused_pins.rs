//! What a PKCS#11 token shows after a process died while it was sending a PIN to it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use claviger_engine::Registry;
use claviger_engine::registry::refused_pins::RefusedPinRecords;
use claviger_pkcs11::Pkcs11Driver;
use claviger_tests::SoftHsm;
use claviger_token::{
    Access, Call, Driver, Error, FixedPin, Pin, PinTurn, PinVerdict, RefusedPins, TokenId,
    TriesLeft,
};

/// Does not come to write down what the token answered.
struct Dying(RefusedPinRecords);

impl RefusedPins for Dying {
    fn turn(&self, token: &TokenId, call: &Call) -> Result<Box<dyn PinTurn + '_>, Error> {
        Ok(Box::new(DyingTurn(self.0.turn(token, call)?)))
    }
}

struct DyingTurn<'a>(Box<dyn PinTurn + 'a>);

impl PinTurn for DyingTurn<'_> {
    fn begin(&mut self, pin: &Pin, tries: TriesLeft) -> Result<(), Error> {
        self.0.begin(pin, tries)
    }

    fn end(self: Box<Self>, _: &Pin, _: PinVerdict) {}
}

#[test]
fn softhsm_shows_whether_a_pin_whose_answer_was_lost_was_refused() {
    let (token, home) = (SoftHsm::new(), tempfile::tempdir().unwrap());
    let records = Registry::open(home.path()).unwrap().refused_pins().clone();
    let driver = Pkcs11Driver::new();
    let open = |pin: &str, refused_pins: Arc<dyn RefusedPins>| {
        let access = Access {
            refused_pins,
            ..Access::with(FixedPin::new(pin))
        };
        let opened = driver.open(&token.backend(), &Call::unlimited().using(access));
        opened.map(drop)
    };
    let dying = || Arc::new(Dying(records.clone()));
    let living = || Arc::new(records.clone());

    open(SoftHsm::PIN, dying()).unwrap();
    assert!(records.all().unwrap()[0].unsettled);
    open(SoftHsm::PIN, living()).unwrap();
    assert_eq!(records.all().unwrap(), []);

    let wrong = open("tr0mb0nes", dying());
    assert!(matches!(wrong, Err(Error::PinWrong { .. })), "{wrong:?}");
    for pin in ["tr0mb0nes", SoftHsm::PIN] {
        let again = open(pin, living());
        assert!(
            matches!(again, Err(Error::PinUnsettled { .. })),
            "{again:?}"
        );
    }
    let record = records.all().unwrap().remove(0);
    assert_eq!((record.refused, record.unsettled), (0, true));
    records.forget(&record.token).unwrap();
    open(SoftHsm::PIN, living()).unwrap();
}
