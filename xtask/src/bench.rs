//! Figures, for people and for machines.

use std::ffi::{OsStr, OsString};
use std::process::Command;

use crate::against::{self, Figures, Other};
use crate::{Failure, Result, builds, peers, process, scratch, screen, setup};

/// Builds and runs the bench: a table, or with `--json` one JSON object, on standard output; all
/// else on standard error. With `--daemon` only the daemon is measured, with `--long` its memory
/// over a million requests. With `--against REV` the figures of that revision stand beside them.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    match parse(args)? {
        Wanted::Figures => {
            prepare()?;
            let mut bench = figures();
            let _net = scratch::keep_users_tokens_out(&mut bench)?;
            process::run(bench.args(args))
        }
        Wanted::Ratios(revision) => ratios(revision),
        Wanted::Builds(revision) => {
            setup::run(setup::What::Build, setup::Voice::Quiet)?;
            builds::run(revision.map(Other::unpack).transpose()?.as_ref())
        }
    }
}

/// Builds what is measured: the command itself, and the processes to measure it beside.
fn prepare() -> Result<()> {
    setup::run(setup::What::Tests, setup::Voice::Quiet)?;
    peers::install_measured()?;
    process::run(process::cargo().args(["build", "--release", "--package", "claviger"]))?;
    let mut beside = process::cargo();
    beside.args(["build", "--release", "--package", "claviger-tests"]);
    process::run(beside.args(["--example", "bare_sign", "--example", "beside_daemon"]))
}

fn ratios(revision: &OsStr) -> Result<()> {
    let other = Other::build(revision)?;
    prepare()?;
    let mut bench = figures();
    let _net = scratch::keep_users_tokens_out(&mut bench)?;
    other.name_to(&mut bench);
    let theirs = other.figures();
    let ours = against::figures_of(bench.arg("--json"))?;
    match theirs {
        Ok(theirs) => {
            screen::print(&against::table(&ours, &theirs));
            Ok(())
        }
        // Its command was measured all the same.
        Err(failure) => {
            screen::print(&against::table(&ours, &Figures::new()));
            Err(failure.hint("of the other revision, only whole processes were measured"))
        }
    }
}

fn figures() -> Command {
    let mut bench = process::cargo();
    let package = ["--package", "claviger-tests", "--bench", "figures", "--"];
    bench.arg("bench").args(package);
    bench
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted<'a> {
    /// The figures of this tree.
    Figures,
    /// These, beside those of another revision.
    Ratios(&'a OsStr),
    /// What builds cost, beside one of another revision where one is named.
    Builds(Option<&'a OsStr>),
}

fn parse(args: &[OsString]) -> Result<Wanted<'_>> {
    match args {
        options if is_of_bench(options) => Ok(Wanted::Figures),
        [builds] if builds == "--builds" => Ok(Wanted::Builds(None)),
        [against, revision] if against == "--against" => Ok(Wanted::Ratios(revision)),
        [builds, against, revision] if builds == "--builds" && against == "--against" => {
            Ok(Wanted::Builds(Some(revision)))
        }
        _ => Err(Failure::usage(
            "bench knows --json, --daemon, --long, --against REV and --builds [--against REV]",
        )),
    }
}

/// Whether the bench itself knows all of them, each said once.
fn is_of_bench(options: &[OsString]) -> bool {
    let known = ["--json", "--daemon", "--long"];
    (options.iter()).all(|option| known.iter().any(|known| option == known))
        && (1..options.len()).all(|at| !options[..at].contains(&options[at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_bench_does_not_know_is_refused() {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let revision = OsStr::new("HEAD");
        for (args, wanted) in [
            (&[][..], Wanted::Figures),
            (&["--json"], Wanted::Figures),
            (&["--daemon", "--long", "--json"], Wanted::Figures),
            (&["--against", "HEAD"], Wanted::Ratios(revision)),
            (&["--builds"], Wanted::Builds(None)),
            (
                &["--builds", "--against", "HEAD"],
                Wanted::Builds(Some(revision)),
            ),
        ] {
            assert_eq!(parse(&words(args)).unwrap(), wanted);
        }
        for bad in [
            &["--against"][..],
            &["HEAD"],
            &["--against", "HEAD", "--json"],
            &["--builds", "--json"],
            &["--daemon", "--daemon"],
        ] {
            assert!(parse(&words(bad)).is_err(), "{bad:?}");
        }
    }
}
