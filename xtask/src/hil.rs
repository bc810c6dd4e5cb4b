//! The bench for devices.

use std::env;
use std::ffi::OsString;
use std::process::Command;

use crate::test::{FEATURES, QUICK};
use crate::{Result, kryoptic, peers, process, setup};

/// Builds and runs the bench; `args` are its own, but for `--quick`.
///
/// It is built for speed where it measures, else as the tests build it. The process becomes the
/// bench, so that a Ctrl-C reaches nobody else while the bench tidies up on a device.
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
    let mut bench = match args.iter().any(|arg| arg == "--no-measure") {
        true => {
            process::run(&mut build(quick))?;
            Command::new(process::target()?.join("debug").join(NAME))
        }
        false => for_speed(quick),
    };
    bench.args(&args).current_dir(process::workspace());
    bench.env(QUICK, if quick { "1" } else { "" });
    become_it(bench)
}

/// The bench's file, on any system.
const NAME: &str = if cfg!(windows) {
    "claviger-hil.exe"
} else {
    "claviger-hil"
};

/// Builds it in the way, and with the features, of `cargo xtask test`, after which there is
/// nothing left to build: one of its tests has it built.
fn build(quick: bool) -> Command {
    let mut cargo = process::cargo();
    cargo.args(["test", "--quiet", "--no-run", "--workspace"]);
    if !quick {
        cargo.args(["--features", FEATURES]);
    }
    cargo.args(["--test", "transcripts"]);
    cargo
}

/// Builds it with optimisation, and runs it.
fn for_speed(quick: bool) -> Command {
    let mut cargo = process::cargo();
    cargo.args(["run", "--quiet", "--package", "claviger-hil", "--release"]);
    if !quick {
        // A card that takes minutes to compile.
        cargo.args(["--features", "independent-card"]);
    }
    cargo.arg("--");
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
    fn the_bench_is_built_for_speed_where_it_measures_and_else_as_the_tests_build_it() {
        assert_eq!(
            process::display(&for_speed(true)),
            "cargo run --quiet --package claviger-hil --release --"
        );
        assert_eq!(
            process::display(&build(false)),
            format!(
                "cargo test --quiet --no-run --workspace --features {FEATURES} --test transcripts"
            )
        );
        // The test that has it built.
        let tests = process::workspace().join("hil/tests/transcripts.rs");
        assert!(tests.is_file());
    }
}
