//! Figures, for people and for machines.

use std::ffi::OsString;

use crate::{Failure, Result, peers, process, scratch, setup};

/// Builds and runs the bench: a table, or with `--json` one JSON object, on standard
/// output; all else on standard error.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    if let Some(arg) = args.iter().find(|arg| *arg != "--json") {
        return Err(Failure::usage(format!(
            "bench knows --json, not {:?}",
            arg.to_string_lossy()
        )));
    }
    setup::run(setup::What::Tests, setup::Voice::Quiet)?;
    peers::install()?;
    // The command itself is measured, too.
    process::run(process::cargo().args(["build", "--release", "--package", "claviger"]))?;
    let mut bench = process::cargo();
    bench.args([
        "bench",
        "--package",
        "claviger-tests",
        "--bench",
        "figures",
        "--",
    ]);
    bench.args(args);
    let _net = scratch::keep_users_tokens_out(&mut bench)?;
    process::run(&mut bench)
}
