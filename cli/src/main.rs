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

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

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
    start_log(&args.command);
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

/// Logs to standard error what `CLAVIGER_LOG` asks for (`debug`,
/// `claviger_engine=info`, …); without it nothing, but for a daemon.
fn start_log(command: &args::Command) {
    let wanted = match (std::env::var("CLAVIGER_LOG"), command) {
        (Ok(wanted), _) => wanted,
        (Err(_), args::Command::Serve { .. }) => "info".into(),
        (Err(_), _) => return,
    };
    match wanted.parse::<Targets>() {
        Ok(targets) => {
            let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
            tracing_subscriber::registry()
                .with(log.with_filter(targets))
                .init();
        }
        Err(error) => output::warn("CLAVIGER_LOG cannot be used", &error.to_string()),
    }
}
