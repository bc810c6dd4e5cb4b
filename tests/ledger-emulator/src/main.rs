//! Runs a command beside a simulated Ledger with the Ethereum app:
//! `claviger-ledger-emulator [--approval approve|reject|hang] [COMMAND [ARGUMENT…]]`.
//!
//! The device's backend string is printed, and the command finds its address in the
//! variable `CLAVIGER_LEDGER_ADDRESS`. Without a command it waits until it is killed. Its
//! seed is published: it is for trying things out.

use std::ffi::OsString;
use std::process::{Command, ExitCode};
use std::thread;

use claviger_ledger_emulator::{Approval, Ethereum};

const USAGE: &str = "usage: claviger-ledger-emulator [--approval approve|reject|hang] \
                     [COMMAND [ARGUMENT…]]";

/// Tells the command where the device is.
const ADDRESS: &str = "CLAVIGER_LEDGER_ADDRESS";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    let app = Ethereum::new();
    while let Some(option) =
        arguments.next_if(|argument| argument.as_encoded_bytes().starts_with(b"-"))
    {
        let value = arguments.next().and_then(|value| value.into_string().ok());
        let approval = match (option.to_str(), value.as_deref()) {
            (Some("--approval"), Some("approve")) => Approval::Approve,
            (Some("--approval"), Some("reject")) => Approval::Reject,
            (Some("--approval"), Some("hang")) => Approval::Hang,
            _ => {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            }
        };
        app.set_approval(approval);
    }
    run(&app, arguments)
}

fn run(app: &Ethereum, mut command: impl Iterator<Item = OsString>) -> ExitCode {
    let server = app.serve();
    eprintln!("the simulated Ledger is ledger:tcp={}", server.address());
    let Some(program) = command.next() else {
        loop {
            thread::park();
        }
    };
    let status = Command::new(&program)
        .args(command)
        .env(ADDRESS, server.address().to_string())
        .status();
    match status {
        Ok(status) => ExitCode::from(
            status
                .code()
                .and_then(|code| code.try_into().ok())
                .unwrap_or(1),
        ),
        Err(error) => {
            eprintln!("{}: {error}", program.display());
            ExitCode::FAILURE
        }
    }
}
