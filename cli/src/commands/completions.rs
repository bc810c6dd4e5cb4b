//! Completions and man pages, made from the command's own definition.

use std::mem::take;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;

use super::{Answer, FINE};
use crate::failure::Failure;
use crate::{command_line, output};

/// What the command is called.
const NAME: &str = "claviger";

/// The command that explains others.
const HELP: &str = "help";

/// What `shell` needs to complete the command's words, on standard output.
pub(crate) fn write(shell: Shell) -> Answer {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut whole(), NAME, &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(FINE)
}

/// The man pages, as `claviger.1`, `claviger-sign.1`, ….
pub(crate) fn write_man_pages(folder: &Path) -> Answer {
    clap_mangen::generate_to(command_line::definition(), folder)
        .map_err(|e| Failure::io(format!("`{}`", folder.display()), &e))?;
    Ok(FINE)
}

/// The command with all that belongs to it. `help` has copies of the commands, which clap makes
/// before it knows the commands within them: these are added.
fn whole() -> Command {
    let mut whole = command_line::definition().bin_name(NAME);
    whole.build();
    let commands: Vec<Command> = whole.get_subcommands().cloned().collect();
    if let Some(help) = whole.find_subcommand_mut(HELP) {
        for command in commands.iter().filter(|command| command.get_name() != HELP) {
            if let Some(copy) = help.find_subcommand_mut(command.get_name()) {
                let place = format!("{NAME} {HELP} {}", command.get_name());
                *copy = take(copy).subcommands(names_within(command, &place));
            }
        }
    }
    whole
}

/// The commands within `command` by name alone, as `help` takes them. `place` is what stands
/// before them on the command line.
fn names_within(command: &Command, place: &str) -> Vec<Command> {
    let within = command.get_subcommands();
    let within = within.filter(|command| command.get_name() != HELP);
    let names = within.map(|command| {
        let place = format!("{place} {}", command.get_name());
        // Some bytes of a process that is about to end.
        let name: &'static str = Box::leak(Box::from(command.get_name()));
        let mut copy = Command::new(name)
            .hide(command.is_hide_set())
            .disable_help_flag(true)
            .disable_help_subcommand(true)
            .disable_version_flag(true)
            .subcommands(names_within(command, &place))
            .bin_name(place);
        if let Some(about) = command.get_about() {
            copy = copy.about(about.clone());
        }
        copy
    });
    names.collect()
}
