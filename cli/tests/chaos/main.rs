//! Chaos: tries to break the promises. It kills processes and daemons, removes tokens, and sends more
//! requests than a token can serve.
//!
//! `cargo xtask chaos` runs all of it and prints figures; the tests run a part of it. A broken
//! promise ends both with an error.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "chaos is a test, and what cannot be set up ends it"
)]

#[cfg(target_os = "linux")]
mod clients;
#[cfg(target_os = "linux")]
#[path = "../common/mod.rs"]
mod common;
#[cfg(target_os = "linux")]
mod copies;
#[cfg(target_os = "linux")]
mod corruption;
#[cfg(target_os = "linux")]
mod daemons;
#[cfg(target_os = "linux")]
#[path = "../../../engine/tests/common/mod.rs"]
mod device;
#[cfg(target_os = "linux")]
mod grounds;
#[cfg(target_os = "linux")]
mod kills;
#[cfg(target_os = "linux")]
mod load;
#[cfg(target_os = "linux")]
mod removals;
#[cfg(target_os = "linux")]
mod report;

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("SKIPPED chaos: it takes Linux");
}

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    if std::env::args().nth(1).as_deref() == Some("--full") {
        return full::run();
    }
    short::run()
}

/// All of it, for `cargo xtask chaos`.
#[cfg(target_os = "linux")]
mod full {
    use std::process::ExitCode;

    use claviger_tests::{Kryoptic, SoftHsm};
    use claviger_virtual_yubikey::Pcscd;

    use crate::report::{Report, fresh_seed};
    use crate::{copies, corruption, daemons, kills, load, removals};

    struct Options {
        json: bool,
        copies: u64,
        corruptions: u64,
        daemon_kills: u64,
        kills: u64,
        removals: u64,
        seconds: u64,
        seed: u64,
    }

    impl Options {
        fn parse() -> Option<Options> {
            let mut options = Options {
                json: false,
                copies: 100,
                corruptions: 1000,
                daemon_kills: 200,
                kills: 1000,
                removals: 500,
                seconds: 60,
                seed: fresh_seed(),
            };
            let mut words = std::env::args().skip(2);
            while let Some(word) = words.next() {
                let number = match word.as_str() {
                    "--json" => {
                        options.json = true;
                        continue;
                    }
                    "--copies" => &mut options.copies,
                    "--corruptions" => &mut options.corruptions,
                    "--daemon-kills" => &mut options.daemon_kills,
                    "--kills" => &mut options.kills,
                    "--removals" => &mut options.removals,
                    "--seconds" => &mut options.seconds,
                    "--seed" => &mut options.seed,
                    _ => return None,
                };
                *number = words.next()?.parse().ok()?;
            }
            Some(options)
        }
    }

    pub(super) fn run() -> ExitCode {
        let Some(options) = Options::parse() else {
            eprintln!(
                "usage: [--json] [--copies N] [--corruptions N] [--daemon-kills N] [--kills N] [--removals N] [--seconds N] [--seed N]"
            );
            return ExitCode::from(2);
        };
        let seed = options.seed;
        eprintln!("chaos: the random choices are those of --seed {seed}");
        // Before there are threads that read the environment.
        SoftHsm::prepare();
        Pcscd::prepare();
        if Kryoptic::skipped().is_none() {
            Kryoptic::prepare();
        }
        let mut report = Report::default();
        corruption::run(&mut report, options.corruptions, seed);
        copies::run(&mut report, options.copies, seed);
        kills::run(&mut report, options.kills, seed);
        daemons::run(&mut report, options.daemon_kills, seed);
        removals::run(&mut report, options.removals, seed);
        load::run(&mut report, options.seconds, seed);
        match options.json {
            true => println!("{}", report.json()),
            false => print!("{}", report.table()),
        }
        report.broken.iter().for_each(|promise| {
            eprintln!("chaos: BROKEN (--seed {seed}): {promise}");
        });
        ExitCode::from(u8::from(!report.broken.is_empty()))
    }
}

/// A little of it, among the tests.
#[cfg(target_os = "linux")]
mod short {
    use std::process::ExitCode;

    use libtest_mimic::{Arguments, Failed, Trial};

    use crate::report::{Report, fresh_seed};
    use crate::{copies, corruption, daemons, kills, load, removals};

    pub(super) fn run() -> ExitCode {
        let trial = |name: &str, run: fn(&mut Report, u64)| {
            Trial::test(name, move || {
                let (mut report, seed) = (Report::default(), fresh_seed());
                run(&mut report, seed);
                eprint!("{}", report.table());
                match report.broken.is_empty() {
                    true => Ok(()),
                    false => Err(Failed::from(format!(
                        "with --seed {seed}: {}",
                        report.broken.join("; ")
                    ))),
                }
            })
        };
        let trials = vec![
            trial(
                "a_registry_with_a_damaged_page_is_never_called_sound_and_uses_no_wrong_key",
                |report, seed| corruption::run(report, 80, seed),
            ),
            trial(
                "a_copy_of_a_home_and_one_that_is_restored_destroy_no_key_of_others",
                |report, seed| copies::run(report, 8, seed),
            ),
            trial(
                "wherever_a_process_is_killed_keys_and_identities_stay_one_to_one",
                |report, seed| kills::run(report, 40, seed),
            ),
            trial(
                "a_daemon_that_is_killed_under_its_clients_leaves_registry_token_and_log_whole",
                |report, seed| daemons::run(report, 5, seed),
            ),
            trial(
                "while_tokens_come_and_go_each_request_is_answered_once_and_in_time",
                |report, seed| removals::run(report, 15, seed),
            ),
            trial(
                "under_load_nothing_fails_that_was_not_asked_to_and_memory_stays_flat",
                |report, seed| load::run(report, 4, seed),
            ),
        ];
        // Each of them wants the machine for itself.
        let mut arguments = Arguments::from_args();
        arguments.test_threads = Some(1);
        libtest_mimic::run(&arguments, trials).exit_code()
    }
}
