//! The conformance suite on one device.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;

use claviger_conformance::{CHECKS, Check, Outcome as Passed};

use crate::bench::Bench;
use crate::failure_of;
use crate::results::{Finding, Outcome};
use crate::transcript::Line;
use claviger_token::sync::lock;

/// All checks, skipped for the same reason.
pub(crate) fn skipped(reason: &str) -> impl Iterator<Item = Finding> {
    CHECKS.iter().map(move |check| Finding::Check {
        check: check.name.into(),
        capability: check.theme.name().into(),
        outcome: Outcome::Skipped,
        reason: reason.into(),
        seconds: 0.0,
    })
}

/// Makes one check on a device, and records it if that is wanted: then what crossed the
/// wire comes along, unless several threads were at work.
pub(crate) fn check(check: &Check, bench: &Bench, record: bool) -> (Finding, Option<Vec<Line>>) {
    bench.renew();
    let start = Instant::now();
    if record {
        bench.guard.tap.start();
    }
    let outcome = quietly(|| check.run(bench));
    bench.renew();
    let lines = bench.guard.tap.stop().filter(|lines| !lines.is_empty());
    let (outcome, reason) = match outcome {
        Ok(Passed::Passed) => (Outcome::Passed, String::new()),
        Ok(Passed::Skipped(why)) => (Outcome::Skipped, why.into()),
        Err(_) if bench.guard.interrupt.came() => (Outcome::Skipped, "interrupted".into()),
        Err(why) => (Outcome::Failed, why),
    };
    let finding = Finding::Check {
        check: check.name.into(),
        capability: check.theme.name().into(),
        outcome,
        reason,
        seconds: start.elapsed().as_millis() as f64 / 1000.0,
    };
    (finding, lines)
}

/// Runs what may panic; what the panics of all its threads say is the error, and not
/// written to the terminal.
pub(crate) fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static TURN: Mutex<()> = Mutex::new(());
    static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let _turn = lock(&TURN);
    lock(&SAID).clear();
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|place| {
            let file = place.file();
            let file = file.rsplit_once("/src/").map_or(file, |(_, file)| file);
            format!(" ({file}:{})", place.line())
        });
        let text = failure_of(info.payload());
        lock(&SAID).push(format!("{text}{}", place.unwrap_or_default()));
    }));
    let outcome = catch_unwind(AssertUnwindSafe(work));
    std::panic::set_hook(before);
    outcome.map_err(|panic| {
        let said = std::mem::take(&mut *lock(&SAID));
        // The last is of the thread that waited for the others.
        said.into_iter()
            .next()
            .unwrap_or_else(|| failure_of(&*panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_with_its_place() {
        assert_eq!(quietly(|| 5), Ok(5));
        let said = quietly(|| panic!("no {}", "luck")).unwrap_err();
        assert!(said.starts_with("no luck (conformance.rs:"), "{said}");
    }
}
