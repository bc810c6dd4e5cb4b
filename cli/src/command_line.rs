//! The command's definition, from which help, completions and man pages are made, and the parser
//! of the command line.

use std::ffi::OsString;

use clap::{Args as _, CommandFactory, FromArgMatches};

use crate::args::Args;
use crate::options::TokenOptions;

/// Parses this process's command line.
pub(crate) fn read() -> Result<Args, clap::Error> {
    parse(std::env::args_os())
}

fn parse<W: Into<OsString> + Clone>(
    words: impl IntoIterator<Item = W>,
) -> Result<Args, clap::Error> {
    let mut definition = definition();
    let matches = definition.try_get_matches_from_mut(words)?;
    let mut args =
        Args::from_arg_matches(&matches).map_err(|error| error.format(&mut definition))?;
    if let Some(closer) = args.command.access() {
        args.access.take(closer);
    }
    Ok(args)
}

/// The command with all that belongs to it.
pub(crate) fn definition() -> clap::Command {
    let of_tokens = TokenOptions::augment_args(clap::Command::new(""));
    let is_of_tokens = |arg: &clap::Arg| {
        of_tokens
            .get_arguments()
            .any(|a| a.get_id() == arg.get_id())
    };
    // These are taken before the command that uses them, and shown with that.
    let hide = |arg: clap::Arg| match is_of_tokens(&arg) {
        true => arg.hide(true),
        false => arg,
    };
    Args::command()
        .mut_args(hide)
        .mut_subcommand("reads-for", |command| command.mut_args(hide))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        definition().debug_assert();
    }

    #[test]
    fn options_of_tokens_stand_before_or_behind_the_command_that_uses_them() {
        let commands = [
            "sign alice",
            "decrypt",
            "delete alice",
            "doctor",
            "generate alice --backend x",
            "connect alice --to bob",
            "reads-for grant a --by b",
            "reads-for revoke a --by b",
        ];
        let options = "--pin-source env:PIN --pin-verbatim --management-key env:KEY \
                       --factory-defaults --last-try --any-pin-length --no-pin-ledger --timeout 5";
        let given = |line: String| {
            let args = parse(line.split_whitespace());
            format!(
                "{:?}",
                args.unwrap_or_else(|e| panic!("{line}: {e}")).access
            )
        };
        let all = given(format!("claviger {options} identities"));
        assert!(!all.contains("None") && !all.contains("false"), "{all}");
        for command in commands {
            for line in [
                format!("claviger {options} {command}"),
                format!("claviger {command} {options}"),
            ] {
                assert_eq!(given(line.clone()), all, "{line}");
            }
        }
        let between = "claviger reads-for --pin-source env:PIN grant a --by b --timeout 5";
        let args = parse(between.split_whitespace()).unwrap().access;
        assert_eq!(args.pin_source, Some("env:PIN".into()));
        assert!(args.limit.timeout.is_some());
        let watched = "claviger tokens --watch --timeout 5";
        let args = parse(watched.split_whitespace()).unwrap().access;
        assert!(args.limit.timeout.is_some());
    }

    #[test]
    fn of_two_values_that_behind_the_command_wins() {
        let line = "claviger --pin-source env:A --timeout 1 sign alice --pin-source env:B";
        let args = parse(line.split_whitespace()).unwrap().access;
        assert_eq!(args.pin_source, Some("env:B".into()));
        assert!(args.limit.timeout.is_some());
    }
}
