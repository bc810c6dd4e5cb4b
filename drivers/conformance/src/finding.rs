//! Tokens are found by their names.

use claviger_token::{Call, Detail, Error, TokenInfo};

use crate::bench::refused;
use crate::check::{Skip, Theme};
use crate::subject::Subject;

/// What these checks are about.
pub(crate) const THEME: Theme = Theme::Finding;

pub(crate) fn a_token_is_found_by_the_name_that_it_gives(
    subject: &dyn Subject,
) -> Result<(), Skip> {
    let driver = subject.driver();
    let backend = subject.backend();
    assert!(backend.starts_with(&format!("{}:", driver.scheme())));

    let found = driver.tokens(&backend, &Call::unlimited()).unwrap();
    assert_eq!(found.len(), 1, "{backend} is to name one token: {found:?}");
    let TokenInfo {
        id,
        backend: own,
        makes,
        uses,
        untried,
        ..
    } = &found[0];
    assert_eq!(id.kind, driver.scheme());
    assert!(!id.serial.is_empty());
    for specs in [makes, uses, untried] {
        for spec in specs {
            assert!(spec.algorithm.can(spec.usage), "{spec} is impossible");
            assert_eq!(specs.iter().filter(|s| *s == spec).count(), 1);
        }
    }
    assert!(!uses.is_empty());
    assert!(makes.iter().all(|spec| uses.contains(spec)));
    assert!(untried.iter().all(|spec| uses.contains(spec)));

    assert_eq!(
        driver.tokens(own, &Call::unlimited()).unwrap(),
        found,
        "by its own name {own}"
    );
    let token = driver
        .open(own, &Call::unlimited().using(subject.access()))
        .unwrap();
    assert_eq!(token.info().id, *id);
    let seen = driver.look(own, Detail::Slots, &Call::unlimited()).unwrap();
    seen.slots_of(id).unwrap();
    Ok(())
}

pub(crate) fn a_backend_that_fits_nothing_finds_no_token(
    subject: &dyn Subject,
) -> Result<(), Skip> {
    let backend = subject.absent_backend().map_err(Skip)?;
    assert_eq!(
        subject
            .driver()
            .tokens(&backend, &Call::unlimited())
            .unwrap(),
        []
    );
    refused!(
        subject
            .driver()
            .open(&backend, &Call::unlimited().using(subject.access())),
        Error::NoToken { .. }
    );
    Ok(())
}

pub(crate) fn a_malformed_backend_is_refused(subject: &dyn Subject) -> Result<(), Skip> {
    let driver = subject.driver();
    let scheme = driver.scheme();
    for backend in [
        String::new(),
        ":".into(),
        scheme.into(),
        format!("{scheme}:%zz=1"),
        format!("{scheme}:serial=%"),
        format!("{scheme}x:"),
        format!(" {}", subject.backend()),
        "é".repeat(10_000),
    ] {
        refused!(
            driver.tokens(&backend, &Call::unlimited()),
            Error::BadBackend { .. }
        );
        refused!(driver.named_slot(&backend), Error::BadBackend { .. });
        refused!(
            driver.open(&backend, &Call::unlimited().using(subject.access())),
            Error::BadBackend { .. }
        );
    }
    Ok(())
}
