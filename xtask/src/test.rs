//! Every test of the workspace.
//!
//! The whole workspace is built at once, so `claviger-token` comes with its feature
//! `conformance`, which the crate `claviger-tests` asks for.

use std::ffi::{OsStr, OsString};
use std::process::Command;

use crate::screen::{self, Style};
use crate::{Result, kryoptic, peers, process, scratch, setup};

/// Set to `1` for the tests of a quick run; a test that needs an emulator skips then,
/// and says so.
pub(crate) const QUICK: &str = "CLAVIGER_TEST_QUICK";

/// How many tests cargo-nextest runs at once.
const THREADS: &str = "NEXTEST_TEST_THREADS";

/// Runs the tests, with cargo-nextest where it is installed.
pub(crate) fn run(args: Vec<OsString>) -> Result<()> {
    let (flags, args): (Vec<_>, Vec<_>) = args.into_iter().partition(|arg| arg == "--quick");
    let quick = !flags.is_empty();
    setup::run(setup::What::Tests, setup::Voice::Quiet)?;
    if quick {
        screen::note(
            Style::Plain,
            "--quick: without Ledger's emulator, a TPM, the clients from PyPI, and the PIV card \
             and Kryoptic, which take minutes to compile.",
        );
    } else if !args.iter().any(|arg| chooses_packages(arg)) {
        kryoptic::build()?;
    }
    if !quick {
        peers::install()?;
    }

    let nextest = process::succeeds(process::cargo().args(["nextest", "--version"]));
    if !nextest {
        screen::note(
            Style::Quiet,
            "cargo-nextest is not installed; cargo test does the same, slower.",
        );
    }
    for mut command in commands(nextest, quick, &args) {
        let _net = scratch::keep_users_tokens_out(&mut command)?;
        command.env(QUICK, if quick { "1" } else { "" });
        if std::env::var_os(THREADS).is_none() {
            command.env(THREADS, threads().to_string());
        }
        process::run(&mut command)?;
    }
    if nextest && !args.is_empty() {
        screen::note(
            Style::Plain,
            "The examples in the documentation were left out, because tests were chosen by \
             arguments (they run with: cargo test --doc --workspace).",
        );
    }
    Ok(())
}

/// Three tests at once on two processors: a third of their time they wait for a card, for a
/// daemon or for the disk.
fn threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    processors + processors / 2
}

/// With the PIV card of others, where it takes the suite. What is built with other features is
/// built anew, with most of what it depends on.
pub(crate) const FEATURES: &str = "claviger-tests/independent-card,claviger-hil/independent-card";

fn commands(nextest: bool, quick: bool, args: &[OsString]) -> Vec<Command> {
    let mut tests = process::cargo();
    tests.args(if nextest {
        &["nextest", "run"][..]
    } else {
        &["test"]
    });
    if !args.iter().any(|arg| chooses_packages(arg)) {
        tests.arg("--workspace");
        if !quick {
            // A card that takes minutes to compile.
            tests.args(["--features", FEATURES]);
        }
    }
    if args.is_empty() {
        // Who runs everything wants to know everything that fails.
        tests.arg("--no-fail-fast");
    }
    tests.args(args);
    let mut commands = vec![tests];
    // nextest leaves the documentation's examples to cargo, which does not understand
    // nextest's arguments.
    if nextest && args.is_empty() {
        let mut examples = process::cargo();
        examples.args(["test", "--doc", "--workspace"]);
        if !quick {
            examples.args(["--features", FEATURES]);
        }
        examples.arg("--no-fail-fast");
        commands.push(examples);
    }
    commands
}

/// `--workspace` would win over these.
fn chooses_packages(arg: &OsStr) -> bool {
    let arg = arg.to_string_lossy();
    arg.starts_with("--package") || (arg.starts_with("-p") && !arg.starts_with("--"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(nextest: bool, args: &[&str]) -> Vec<String> {
        let args: Vec<_> = args.iter().map(OsString::from).collect();
        // Quick, for short lines; `a_quick_run_leaves_the_slow_card_out` has the other.
        commands(nextest, true, &args)
            .iter()
            .map(process::display)
            .collect()
    }

    #[test]
    fn without_arguments_everything_runs() {
        assert_eq!(
            shown(true, &[]),
            [
                "cargo nextest run --workspace --no-fail-fast",
                "cargo test --doc --workspace --no-fail-fast"
            ]
        );
        assert_eq!(shown(false, &[]), ["cargo test --workspace --no-fail-fast"]);
    }

    #[test]
    fn a_quick_run_leaves_the_slow_card_out() {
        let all = commands(false, false, &[]);
        assert_eq!(
            process::display(&all[0]),
            format!("cargo test --workspace --features {FEATURES} --no-fail-fast")
        );
        // With the same features nothing is built twice.
        let all = commands(true, false, &[]);
        assert_eq!(
            process::display(&all[1]),
            format!("cargo test --doc --workspace --features {FEATURES} --no-fail-fast")
        );
    }

    #[test]
    fn arguments_are_passed_on() {
        assert_eq!(
            shown(true, &["sign", "--no-fail-fast"]),
            ["cargo nextest run --workspace sign --no-fail-fast"]
        );
        assert_eq!(shown(false, &["sign"]), ["cargo test --workspace sign"]);
    }

    #[test]
    fn a_chosen_package_is_not_drowned_in_the_workspace() {
        assert_eq!(
            shown(true, &["-p", "claviger-token"]),
            ["cargo nextest run -p claviger-token"]
        );
        assert_eq!(
            shown(false, &["--package=xtask"]),
            ["cargo test --package=xtask"]
        );
    }
}
