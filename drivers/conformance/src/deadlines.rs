//! A call ends at its deadline and on cancellation.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use claviger_token::{Call, Error, KeyUse};

use crate::bench::{Bench, OpenKey, refused};
use crate::check::{Skip, Theme};
use crate::subject::Subject;

/// What these checks are about.
pub(crate) const THEME: Theme = Theme::Deadlines;

pub(crate) fn a_call_that_is_late_or_given_up_changes_nothing(
    subject: &dyn Subject,
) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    let spec = bench.any_spec()?;
    let made = bench.make(spec);
    let handle = OpenKey::of(&*bench.token, &made.key, spec.usage).unwrap();
    let free = bench.free_slot(spec);
    let before = bench.slots();

    let attempts = |call: &Call| {
        [
            bench.token.slots(call).map(drop),
            bench.token.free_slots(&[spec], &[], call).map(drop),
            bench.generate(&free, spec, "", call).map(drop),
            bench.token.delete(&made.key, call).map(drop),
            match spec.usage {
                KeyUse::Sign => bench.token.signer(&made.key, call).map(drop),
                KeyUse::Decrypt => bench.token.decryptor(&made.key, call).map(drop),
            },
            handle.work(call),
        ]
    };
    for attempt in attempts(&Call::within(Duration::ZERO)) {
        refused!(attempt, Error::DeadlineExceeded);
    }
    let given_up = Call::unlimited().cancelled_by(Arc::new(AtomicBool::new(true)));
    for attempt in attempts(&given_up) {
        refused!(attempt, Error::Cancelled);
    }

    assert_eq!(bench.slots(), before);
    handle.work(&bench.call).unwrap();
    Ok(())
}
