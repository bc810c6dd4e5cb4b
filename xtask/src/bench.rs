//! Figures, for people and for machines.

use std::ffi::{OsStr, OsString};
use std::process::Command;

use crate::against::{self, Other};
use crate::{Failure, Result, peers, process, scratch, setup};

/// Builds and runs the bench: a table, or with `--json` one JSON object, on standard output; all
/// else on standard error. With `--against REV` the figures of that revision stand beside them.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    let against = parse(args)?;
    setup::run(setup::What::Tests, setup::Voice::Quiet)?;
    peers::install()?;
    let other = against.map(Other::build).transpose()?;
    // The command itself is measured, too, and beside a bare process.
    process::run(process::cargo().args(["build", "--release", "--package", "claviger"]))?;
    let bare = ["--package", "claviger-tests", "--example", "bare_sign"];
    process::run(process::cargo().args(["build", "--release"]).args(bare))?;
    let mut bench = figures();
    let _net = scratch::keep_users_tokens_out(&mut bench)?;
    let Some(other) = other else {
        return process::run(bench.args(args));
    };
    other.name_to(&mut bench);
    let theirs = other.figures()?;
    let ours = against::figures_of(bench.arg("--json"))?;
    against::show(&ours, &theirs);
    Ok(())
}

fn figures() -> Command {
    let mut bench = process::cargo();
    let package = ["--package", "claviger-tests", "--bench", "figures", "--"];
    bench.arg("bench").args(package);
    bench
}

/// The revision to measure against, if one is named.
fn parse(args: &[OsString]) -> Result<Option<&OsStr>> {
    match args {
        [] => Ok(None),
        [json] if json == "--json" => Ok(None),
        [against, revision] if against == "--against" => Ok(Some(revision)),
        _ => Err(Failure::usage(
            "bench knows --json, and alone --against REV, which prints a table",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_bench_does_not_know_is_refused() {
        let parsed = |args: &[&str]| {
            let args: Vec<OsString> = args.iter().map(OsString::from).collect();
            parse(&args).map(|revision| revision.map(OsStr::to_owned))
        };
        assert_eq!(
            parsed(&["--against", "HEAD"]).ok(),
            Some(Some("HEAD".into()))
        );
        assert_eq!(parsed(&["--json"]).ok(), Some(None));
        for bad in [
            &["--against"][..],
            &["HEAD"],
            &["--against", "HEAD", "--json"],
        ] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }
}
