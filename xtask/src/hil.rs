//! The bench for devices.

use std::env;
use std::ffi::OsString;
use std::process::Command;

use crate::test::QUICK;
use crate::{Result, kryoptic, peers, process, setup};

/// Builds and runs the bench; `args` are its own, but for `--quick`.
///
/// It is built for speed where it measures. The process becomes the bench, so that a
/// Ctrl-C reaches nobody else while the bench tidies up on a device.
pub(crate) fn run(args: Vec<OsString>) -> Result<()> {
    let (flags, args): (Vec<_>, Vec<_>) = args.into_iter().partition(|arg| arg == "--quick");
    let quick = !flags.is_empty();
    setup::run(setup::What::Tests, setup::Voice::Quiet)?;
    if !quick {
        kryoptic::build()?;
        // It names the app that Ledger's emulator runs.
        if env::var_os("LEDGER_ETH_ELF").is_some() {
            peers::install_speculos()?;
        }
    }
    let mut bench = command(quick, &args);
    bench.env(QUICK, if quick { "1" } else { "" });
    become_it(bench)
}

fn command(quick: bool, args: &[OsString]) -> Command {
    let mut cargo = process::cargo();
    cargo.args(["run", "--quiet", "--package", "claviger-hil"]);
    if !args.iter().any(|arg| arg == "--no-measure") {
        cargo.arg("--release");
    }
    if !quick {
        // A card that takes minutes to compile.
        cargo.args(["--features", "independent-card"]);
    }
    cargo.arg("--").args(args);
    cargo
}

#[cfg(unix)]
fn become_it(mut command: Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    process::show(&command);
    let error = command.exec();
    Err(process::could_not_start(&command, &error))
}

#[cfg(not(unix))]
fn become_it(mut command: Command) -> Result<()> {
    process::run(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bench_gets_its_arguments_and_is_built_for_speed_where_it_measures() {
        let shown = |quick, args: &[&str]| {
            let args: Vec<_> = args.iter().map(OsString::from).collect();
            process::display(&command(quick, &args))
        };
        assert_eq!(
            shown(true, &["--record"]),
            "cargo run --quiet --package claviger-hil --release -- --record"
        );
        assert_eq!(
            shown(false, &["--no-measure"]),
            "cargo run --quiet --package claviger-hil --features independent-card -- --no-measure"
        );
    }
}
