//! What tokens kept by a TPM show: all of them have one manufacturer and one serial.
#![allow(clippy::unwrap_used, reason = "tests")]
#![cfg(unix)]

use std::sync::Arc;

use claviger_pkcs11::Pkcs11Driver;
use claviger_tests::Tpm;
use claviger_token::{Access, Call, Driver, Error, FixedPin, RefusedInProcess, RefusedPins};

#[test]
fn two_tokens_with_one_serial_are_two() {
    if let Some(why) = Tpm::skipped() {
        eprintln!("SKIPPED two_tokens_with_one_serial_are_two: {why}");
        return;
    }
    Tpm::prepare();
    let (one, other) = (Tpm::new(), Tpm::new());
    let driver = Pkcs11Driver::new();
    let info = |token: &Tpm| {
        driver
            .tokens(&token.backend(), &Call::unlimited())
            .unwrap()
            .remove(0)
    };
    let (first, second) = (info(&one), info(&other));
    assert_ne!(first.id, second.id);
    for info in [&first, &second] {
        assert!(info.id.serial.ends_with(&info.label), "{}", info.id);
        // Its own backend names just it.
        assert_eq!(
            driver.tokens(&info.backend, &Call::unlimited()).unwrap(),
            std::slice::from_ref(info)
        );
    }

    let memory: Arc<dyn RefusedPins> = Arc::new(RefusedInProcess::default());
    let open = |token: &Tpm, pin: &str| {
        let access = Access {
            refused_pins: memory.clone(),
            ..Access::with(FixedPin::new(pin))
        };
        let opened = driver.open(&token.backend(), &Call::unlimited().using(access));
        opened.map(drop)
    };
    let wrong = open(&one, "wrong-pin");
    assert!(matches!(wrong, Err(Error::PinWrong { .. })), "{wrong:?}");
    // A right PIN makes those forgotten that this token refused, and no others.
    open(&other, Tpm::PIN).unwrap();
    let again = open(&one, "wrong-pin");
    assert!(
        matches!(again, Err(Error::PinRefusedBefore { .. })),
        "{again:?}"
    );
}
