//! A PIN is asked for when it is needed, and a rejected one is not sent twice.

use claviger_token::{Call, Error};

use crate::bench::{Bench, OpenKey, refused};
use crate::check::{Skip, Theme};
use crate::subject::Subject;

/// What these checks are about.
pub(crate) const THEME: Theme = Theme::Pin;

pub(crate) fn a_token_that_needs_a_pin_says_so(subject: &dyn Subject) -> Result<(), Skip> {
    let driver = subject.driver();
    let found = driver
        .tokens(&subject.backend(), &Call::unlimited())
        .unwrap();
    assert!(found.iter().all(|token| token.login_required));
    refused!(
        driver.open(&subject.backend(), &Call::unlimited()),
        Error::PinNeeded { .. }
    );
    Bench::open(subject).slots();
    Ok(())
}

pub(crate) fn a_refused_pin_is_not_sent_twice(subject: &dyn Subject) -> Result<(), Skip> {
    let driver = subject.driver();
    let wrong = subject.wrong_access().map_err(Skip)?;
    refused!(
        driver.open(&subject.backend(), &Call::unlimited().using(wrong.clone())),
        Error::PinWrong { .. }
    );
    for _ in 0..3 {
        refused!(
            driver.open(&subject.backend(), &Call::unlimited().using(wrong.clone())),
            Error::PinRefusedBefore { .. }
        );
    }

    let bench = Bench::open(subject);
    let spec = bench.any_spec()?;
    let made = bench.make(spec);
    let handle = OpenKey::of(&*bench.token, &made.key, spec.usage).unwrap();
    handle.work(&bench.call).unwrap();
    Ok(())
}

pub(crate) fn a_token_that_is_open_opens_again_without_a_pin(
    subject: &dyn Subject,
) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    let spec = bench.any_spec()?;
    let made = bench.make(spec);
    let again = subject
        .driver()
        .open(&subject.backend(), &Call::unlimited())
        .unwrap();
    assert_eq!(again.info().id, bench.token.info().id);
    let handle = OpenKey::of(&*again, &made.key, spec.usage).unwrap();
    drop(again);
    handle.work(&bench.call).unwrap();
    let handle = OpenKey::of(&*bench.token, &made.key, spec.usage).unwrap();
    handle.work(&bench.call).unwrap();
    Ok(())
}
