//! The conformance suite on one device.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;

use claviger_token::conformance::{CHECKS, Check, Outcome as Passed};

use crate::bench::Bench;
use crate::results::{Finding, Outcome};
use crate::transcript::Line;
use crate::{failure_of, lock};

/// What the checks are about, in the order in which reports show it.
pub const CAPABILITIES: [&str; 9] = [
    "finding",
    "PIN",
    "keys",
    "signing",
    "decryption",
    "deadlines",
    "full",
    "removal",
    "other tools",
];

/// What a check is about. One that is new here is about keys, as most are.
pub fn capability(check: &str) -> &'static str {
    match check {
        "a_token_is_found_by_the_name_that_it_gives"
        | "a_backend_that_fits_nothing_finds_no_token"
        | "a_malformed_backend_is_refused" => "finding",
        "a_token_that_needs_a_pin_says_so"
        | "a_refused_pin_is_not_sent_twice"
        | "a_token_that_is_open_opens_again_without_a_pin" => "PIN",
        "a_signature_verifies_and_an_altered_message_does_not"
        | "a_handle_is_a_key_of_the_signature_crate"
        | "eight_threads_sign_at_once" => "signing",
        "a_decryptor_agrees_with_what_its_peer_computes"
        | "what_does_not_open_says_only_that"
        | "an_envelope_opens_for_its_recipient_alone" => "decryption",
        "a_call_that_is_late_or_given_up_changes_nothing" => "deadlines",
        "a_full_token_says_so" => "full",
        "a_token_that_went_away_works_again_when_it_is_back"
        | "what_stands_behind_the_token_may_restart" => "removal",
        "a_deletion_leaves_a_foreign_key_in_the_same_place"
        | "what_replaced_a_key_is_neither_used_nor_deleted"
        | "an_unfinished_key_is_discarded_and_a_foreign_one_beside_it_is_not"
        | "a_pair_that_is_no_pair_proves_nothing"
        | "a_key_that_was_moved_is_found_and_deleted"
        | "a_key_without_a_name_is_found_and_deleted"
        | "a_key_is_used_on_a_token_that_generates_none" => "other tools",
        _ => "keys",
    }
}

/// All checks, skipped for the same reason.
pub(crate) fn skipped(reason: &str) -> impl Iterator<Item = Finding> {
    CHECKS.iter().map(move |check| Finding::Check {
        check: check.name.into(),
        capability: capability(check.name).into(),
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
        capability: capability(check.name).into(),
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
    fn every_capability_has_its_checks() {
        for wanted in CAPABILITIES {
            assert!(
                CHECKS.iter().any(|check| capability(check.name) == wanted),
                "{wanted}"
            );
        }
        for check in CHECKS {
            assert!(CAPABILITIES.contains(&capability(check.name)));
        }
        // Names that are written down here are names of checks.
        let keys = CHECKS
            .iter()
            .filter(|check| capability(check.name) == "keys");
        assert_eq!(keys.count(), CHECKS.len() - 23);
    }

    #[test]
    fn a_panic_is_told_with_its_place() {
        assert_eq!(quietly(|| 5), Ok(5));
        let said = quietly(|| panic!("no {}", "luck")).unwrap_err();
        assert!(said.starts_with("no luck (conformance.rs:"), "{said}");
    }
}
