//! The age plugin of Claviger: see the library of this crate.
#![forbid(unsafe_code)]

mod reader;

use std::io::{self, Write};
use std::process::ExitCode;

use age_plugin_claviger::daemon::Daemon;
use age_plugin_claviger::peer::{Broken, Peer};
use age_plugin_claviger::{identity, recipient};
use claviger_client::Options;
use claviger_client::blocking::Cancel;

const ABOUT: &str = "\
age-plugin-claviger opens age files with the identities of a running `claviger serve`.

age programs start it by themselves if it is in PATH:

  claviger age-identity alice > alice.txt
  age -r age1claviger1… -o letter.age letter.txt    # the recipient is in alice.txt
  age -d -i alice.txt letter.age
  age -d -j claviger letter.age    # any identity that is unlocked and needs no person

It uses the daemon of CLAVIGER_DAEMON, or else the user's own.
";

fn main() -> ExitCode {
    let given = std::env::args_os().skip(1);
    let given: Vec<String> = given
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let words: Vec<&str> = given.iter().map(String::as_str).collect();
    let peer = || Peer::new(io::stdin().lock(), io::stdout().lock());
    let talked = match words.as_slice() {
        ["--age-plugin=recipient-v1"] => recipient::run(&mut peer()),
        ["--age-plugin=identity-v1"] => {
            let cancel = Cancel::new();
            reader::watch(cancel.clone());
            let mut daemon = Daemon::new(Options::from_environment(), cancel);
            identity::run(&mut peer(), &mut daemon)
        }
        ["--version" | "-V"] => print(concat!(
            "age-plugin-claviger ",
            env!("CARGO_PKG_VERSION"),
            "\n"
        )),
        ["--help" | "-h"] => print(ABOUT),
        [] => return usage("age programs start it; `--help` shows how to use it"),
        [machine] if machine.starts_with("--age-plugin=") => {
            return usage("it speaks recipient-v1 and identity-v1 only");
        }
        _ => return usage("it takes one of --age-plugin=recipient-v1, --age-plugin=identity-v1"),
    };
    match talked {
        Ok(()) => ExitCode::SUCCESS,
        Err(broken) => {
            complain(&broken.to_string());
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) -> Result<(), Broken> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn usage(what: &str) -> ExitCode {
    complain(what);
    ExitCode::from(2)
}

/// Standard error may be closed.
fn complain(what: &str) {
    let _ = writeln!(io::stderr(), "age-plugin-claviger: {what}");
}
