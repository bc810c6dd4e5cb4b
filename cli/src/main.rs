//! The operator's command: see `claviger --help`.
#![forbid(unsafe_code)]

mod allowed_signers;
mod args;
mod certificate_args;
mod command_line;
mod commands;
mod config;
mod contact_file;
mod daemon;
mod daemon_args;
#[cfg(test)]
mod documents;
mod drivers;
mod engines;
mod failure;
mod help;
mod hints;
mod home;
mod input;
mod interrupt;
mod log;
mod names;
mod new_file;
mod options;
mod output;
mod output_file;
mod paths;
#[cfg(unix)]
mod pinentry;
mod pins;
mod prompt;
#[cfg(unix)]
mod questions;
mod screen;
mod session;
mod token_views;
mod views;

use std::process::ExitCode;

use crate::failure::Failure;

fn main() -> ExitCode {
    // Before anything of our own is open.
    claviger_token::pin::note_inherited_descriptors();
    claviger_token::keep_memory_private();
    claviger_streams::share_memory();
    let status = run().unwrap_or_else(|failure| {
        output::report(&failure);
        failure.status()
    });
    end(status)
}

/// Runs what the command line says; the result is the exit status.
fn run() -> Result<u8, Failure> {
    // What cannot be parsed may want its failure in JSON, too.
    if std::env::args_os()
        .skip(1)
        .take_while(|word| word != "--")
        .any(|word| word == "--json")
    {
        output::speak_json();
    }
    let args = match command_line::read() {
        Ok(args) => args,
        Err(error) => return misunderstood(&error),
    };
    // A daemon has its own log, which its configuration is about.
    if !matches!(args.command, args::Command::Serve { .. }) {
        log::start();
    }
    commands::run(args)
}

/// What clap has to say: help, the version, or what is wrong with the command line.
fn misunderstood(error: &clap::Error) -> Result<u8, Failure> {
    if !error.use_stderr() {
        output::check_stdout()?;
        error
            .print()
            .and_then(|()| std::io::Write::flush(&mut std::io::stdout()))
            .map_err(|e| Failure::writing("standard output", &e))?;
        return Ok(0);
    }
    if output::is_json() {
        let text = error.to_string();
        let what = text.trim().trim_start_matches("error: ");
        return Err(Failure::usage(what).hint("`claviger --help` shows what can be said"));
    }
    // Where nobody listens there is nobody to tell that nobody listens.
    let _ = error.print();
    Ok(failure::USAGE)
}

/// Ends the process without the clean-up of C libraries: vendors' modules have their own
/// ideas about its order, and some crash over it. Ours is done by now.
#[cfg(unix)]
fn end(code: u8) -> ExitCode {
    // Everything was flushed where a failure could still be told.
    let _ = std::io::Write::flush(&mut std::io::stdout());
    signal_hook::low_level::exit(i32::from(code))
}

#[cfg(not(unix))]
fn end(code: u8) -> ExitCode {
    ExitCode::from(code)
}
