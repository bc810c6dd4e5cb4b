//! Runs a command with a virtual YubiKey plugged in:
//! `claviger-virtual-yubikey [--firmware 5.7.1] [--serial N] [--pin PIN] COMMAND [ARGUMENT…]`

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use claviger_virtual_yubikey::{Card, Firmware, Pcscd};

const USAGE: &str = "usage: claviger-virtual-yubikey [--firmware 4.3.5|5.2.4|5.4.3|5.7.1] \
                     [--serial N] [--pin PIN] COMMAND [ARGUMENT…]";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    let mut card = Card::builder();
    while let Some(option) =
        arguments.next_if(|argument| argument.as_encoded_bytes().starts_with(b"--"))
    {
        let value = arguments.next().and_then(|value| value.into_string().ok());
        let applied = match (option.to_str(), value) {
            (Some("--firmware"), Some(value)) => {
                firmware(&value).map(|firmware| card.clone().firmware(firmware))
            }
            (Some("--serial"), Some(value)) => {
                value.parse().ok().map(|serial| card.clone().serial(serial))
            }
            (Some("--pin"), Some(value)) if value.len() <= 8 => Some(card.clone().pin(&value)),
            _ => None,
        };
        let Some(applied) = applied else {
            return usage();
        };
        card = applied;
    }
    let Some(program) = arguments.next() else {
        return usage();
    };
    run(card.build(), &program, arguments.collect())
}

fn run(card: Card, program: &OsString, arguments: Vec<OsString>) -> ExitCode {
    let _inserted = Pcscd::insert(card);
    let (variable, socket) = Pcscd::environment();
    let status = Command::new(program)
        .args(arguments)
        .env(variable, socket)
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

fn firmware(version: &str) -> Option<Firmware> {
    Firmware::ALL.into_iter().find(|firmware| {
        let [major, minor, patch] = firmware.version;
        format!("{major}.{minor}.{patch}") == version
    })
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}
