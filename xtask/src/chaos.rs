//! Whether the promises hold when processes are killed, tokens go away and callers are many.

use std::ffi::OsString;

use crate::{Failure, Result, process, scratch, setup};

/// The options with a number behind them.
const NUMBERS: [&str; 7] = [
    "--copies",
    "--corruptions",
    "--daemon-kills",
    "--kills",
    "--removals",
    "--seconds",
    "--seed",
];

/// Builds and runs chaos: a table, or with `--json` one JSON object, on standard output; all
/// else on standard error. It fails where a promise is broken.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    check(args)?;
    setup::run(setup::What::Tests, setup::Voice::Quiet)?;
    let mut chaos = process::cargo();
    // The command that is killed is built along with the tests of its package.
    chaos.args(["test", "--package", "claviger", "--test", "chaos", "--"]);
    chaos.arg("--full").args(args);
    let _net = scratch::keep_users_tokens_out(&mut chaos)?;
    process::run(&mut chaos)
}

fn check(args: &[OsString]) -> Result<()> {
    let mut args = args.iter().map(|arg| arg.to_string_lossy());
    while let Some(arg) = args.next() {
        let takes_number = NUMBERS.contains(&&*arg);
        let its_number = || args.next().is_some_and(|n| n.parse::<u64>().is_ok());
        if arg != "--json" && !(takes_number && { its_number }()) {
            return Err(Failure::usage(format!(
                "chaos knows --json, and {} with a number, not {arg:?}",
                NUMBERS.join(", ")
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked_before_anything_is_built() {
        let checked = |args: &[&str]| {
            let args: Vec<OsString> = args.iter().map(OsString::from).collect();
            check(&args).map_err(|failure| failure.exit_code)
        };
        assert_eq!(checked(&[]), Ok(()));
        assert_eq!(checked(&["--json", "--kills", "10", "--seed", "1"]), Ok(()));
        assert_eq!(checked(&["--kills"]), Err(2));
        assert_eq!(checked(&["--kills", "many"]), Err(2));
        assert_eq!(checked(&["--quick"]), Err(2));
    }
}
