//! The command's definition, from which help, completions and man pages are made, and the parser
//! of the command line.

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches};

use crate::args::Args;

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

/// The command. What belongs to a subcommand is added when that is asked for, or by
/// [`clap::Command::build`]: nobody needs all of it to run one.
pub(crate) fn definition() -> clap::Command {
    Args::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        definition().debug_assert();
    }

    #[test]
    fn who_shows_the_command_has_all_that_belongs_to_it() {
        let (bare, mut whole) = (definition(), definition());
        whole.build();
        for path in [&["sign"][..], &["delete"], &["reads-for", "grant"]] {
            let find = |of: &clap::Command, name: &&str| of.find_subcommand(name).cloned();
            let found = path
                .iter()
                .try_fold(whole.clone(), |of, name| find(&of, name));
            let found = found.unwrap();
            assert!(
                found
                    .get_arguments()
                    .any(|arg| arg.get_id() == "pin_source")
            );
        }
        for command in bare.get_subcommands() {
            let found = whole.find_subcommand(command.get_name()).unwrap();
            // What it does, and not what its options are for.
            let about = |of: &clap::Command| of.get_about().map(ToString::to_string);
            assert_eq!(about(found), about(command), "{}", command.get_name());
            let long = |of: &clap::Command| of.get_long_about().map(ToString::to_string);
            assert_eq!(long(found), long(command), "{}", command.get_name());
        }
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
