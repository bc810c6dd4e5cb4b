//! The bench for devices: see `claviger-hil --help`.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use claviger_hil::compare::compare;
use claviger_hil::config::Config;
use claviger_hil::devices::Sources;
use claviger_hil::run::{Options, Times, run};
use claviger_hil::screen::{Interrupt, line};
use claviger_hil::virtuals::{VIRTUALS, Virtual};
use claviger_hil::{HilError, report, results};

/// Run the conformance suite and measure, on attached devices and on virtual ones
///
/// A device whose serial is not in hil.toml is only read.
#[derive(Parser)]
#[command(name = "claviger-hil", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Compare two runs; exit with 1 if something got worse
    Compare {
        /// The results.jsonl of the first run
        before: PathBuf,
        /// The results.jsonl of the second run
        after: PathBuf,
    },
    /// Write the reports of a run again
    Report {
        /// The results.jsonl of the run
        results: PathBuf,
        /// The folder for the reports
        #[arg(long, value_name = "DIR", default_value = "hil-report")]
        out: PathBuf,
    },
    /// Replay transcripts of PIV cards; exit with 1 if a result differs
    #[cfg(feature = "piv")]
    Replay {
        /// The transcripts
        #[arg(required = true)]
        transcripts: Vec<PathBuf>,
    },
    /// Count PKCS#11 calls: the bench starts this itself
    #[cfg(feature = "pkcs11")]
    #[command(hide = true)]
    Spied {
        #[arg(long)]
        backend: String,
        #[arg(long = "slot")]
        slots: Vec<String>,
        #[arg(long = "mark")]
        marks: Vec<String>,
    },
    /// Show which PKCS#11 tokens there are: the bench starts this itself
    #[cfg(feature = "pkcs11")]
    #[command(hide = true)]
    Pkcs11Tokens { backends: Vec<String> },
}

#[derive(Args)]
struct RunArgs {
    /// The list of devices that may be written to [default: hil.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The folder for the reports
    #[arg(long, value_name = "DIR", default_value = "hil-report")]
    out: PathBuf,
    /// Run only the devices with these names
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Run only the checks with these names
    #[arg(long = "check", value_name = "NAME", value_delimiter = ',', conflicts_with_all = ["write_readme", "check_readme"])]
    checks: Vec<String>,
    /// Run only virtual devices
    #[arg(long = "virtual", conflicts_with = "attached")]
    only_virtual: bool,
    /// Run only attached devices
    #[arg(long)]
    attached: bool,
    /// Run only the Ith of N parts of the virtual devices: processes can share them
    #[arg(long, value_name = "I/N", requires = "only_virtual")]
    part: Option<Part>,
    /// The time for each figure, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "0.3", value_parser = seconds)]
    seconds: f64,
    /// The time that one key signs without a pause, in seconds; 0 for none
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds)]
    endurance: f64,
    /// Run the checks and measure nothing
    #[arg(long)]
    no_measure: bool,
    /// Write transcripts of the wire, without secrets
    #[arg(long)]
    record: bool,
    /// Write the virtual devices' rows into the table of docs/tokens.md
    #[arg(long, conflicts_with = "check_readme")]
    write_readme: bool,
    /// Fail unless the table of docs/tokens.md has the virtual devices' rows
    #[arg(long)]
    check_readme: bool,
    /// The document with the table
    #[arg(
        long,
        value_name = "FILE",
        default_value = "docs/tokens.md",
        hide = true
    )]
    readme: PathBuf,
}

/// One of several parts of a list.
#[derive(Clone, Copy)]
struct Part {
    number: usize,
    of: usize,
}

impl FromStr for Part {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers = text.split_once('/');
        let numbers = numbers.and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((number, of)) if (1..=of).contains(&number) => Ok(Part { number, of }),
            _ => Err("not two numbers as in 1/2"),
        }
    }
}

impl Part {
    fn take<T>(self, all: Vec<T>) -> Vec<T> {
        all.into_iter()
            .skip(self.number - 1)
            .step_by(self.of)
            .collect()
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=1e7).contains(&seconds) => Ok(seconds),
        _ => Err("not a number of seconds".into()),
    }
}

/// 128 and the number of the signal, as shells have it.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    claviger_token::keep_memory_private();
    let Cli { command, run } = Cli::parse();
    let done = match command {
        None => benched(&run),
        Some(Command::Compare { before, after }) => compared(&before, &after),
        Some(Command::Report { results, out }) => reported(&results, &out),
        #[cfg(feature = "piv")]
        Some(Command::Replay { transcripts }) => replayed(&transcripts),
        #[cfg(feature = "pkcs11")]
        Some(Command::Spied {
            backend,
            slots,
            marks,
        }) => spied(&backend, slots.into_iter().zip(marks)),
        #[cfg(feature = "pkcs11")]
        Some(Command::Pkcs11Tokens { backends }) => {
            say(claviger_hil::devices::pkcs11_tokens(&backends).trim_end());
            Ok(0)
        }
    };
    let code = done.unwrap_or_else(|error| {
        line(format_args!("error: {error}"));
        match error.hint() {
            hint if hint.is_empty() => {}
            hint => line(format_args!("  hint: {hint}")),
        }
        1
    });
    end(code)
}

/// Ends the process without the clean-up of C libraries: vendors' modules have their own
/// ideas about its order.
#[cfg(unix)]
fn end(code: u8) -> ExitCode {
    let _ = std::io::stdout().flush();
    signal_hook::low_level::exit(i32::from(code))
}

#[cfg(not(unix))]
fn end(code: u8) -> ExitCode {
    ExitCode::from(code)
}

fn benched(args: &RunArgs) -> Result<u8, HilError> {
    let default = Path::new("hil.toml");
    let config = match &args.config {
        Some(path) => Config::read(path)?,
        None if default.exists() => Config::read(default)?,
        None => {
            if !args.only_virtual {
                line("there is no hil.toml: attached devices are only read");
            }
            Config::default()
        }
    };
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    let virtuals = match args.attached {
        true => Vec::new(),
        false => VIRTUALS.concat(),
    };
    let virtuals = match args.part {
        Some(part) => part.take(virtuals),
        None => virtuals,
    };
    let sources = (!args.only_virtual).then(|| Sources::of_this_system(&config));
    let left_out = match &sources {
        Some(sources) if !config.devices.is_empty() && !virtuals.is_empty() => {
            in_the_way(sources, &config, &args.only)
        }
        _ => Vec::new(),
    };
    let is_left_out = |name: &str| left_out.iter().any(|(known, _)| known == name);
    let started: Vec<_> = (virtuals.iter().copied())
        .filter(|one| wanted(one.name) && !is_left_out(one.name))
        .collect();
    prepare(&started, args.only_virtual);
    let interrupt = Interrupt::listen();
    let options = Options {
        out: args.out.clone(),
        measure: (!args.no_measure).then_some(Times {
            each: args.seconds,
            endurance: args.endurance,
        }),
        record: args.record,
        only: args.only.clone(),
        checks: args.checks.clone(),
        left_out,
        program: std::env::current_exe().ok(),
    };
    let results = run(&config, sources.as_ref(), &virtuals, &options, &interrupt)?;
    let page = report::write(&args.out, results.records())?;
    say(report::verdict(results.records()));
    say(page.display());
    if args.write_readme {
        report::readme::write(&args.readme, results.records())?;
    }
    if args.check_readme {
        let shared =
            |name: &str| args.part.is_none() || virtuals.iter().any(|one| one.name == name);
        let wanted = |name: &str| wanted(name) && shared(name);
        report::readme::check(&args.readme, results.records(), wanted)?;
    }
    Ok(
        match (interrupt.came(), report::failed(results.records())) {
            (true, _) => INTERRUPTED,
            (_, 0) => 0,
            _ => 1,
        },
    )
}

/// Prepares the process for these devices; they may change its view of the system where no other
/// devices are wanted.
fn prepare(started: &[Virtual], alone: bool) {
    #[cfg(feature = "pkcs11")]
    {
        use claviger_hil::virtuals;
        if alone {
            virtuals::enter(started);
        }
        virtuals::prepare(started);
    }
    #[cfg(not(feature = "pkcs11"))]
    let _ = (started, alone);
}

/// The virtual devices that cannot be beside listed ones, and why.
fn in_the_way(sources: &Sources, config: &Config, only: &[String]) -> Vec<(String, String)> {
    #[cfg(feature = "pkcs11")]
    return claviger_hil::devices::in_the_way(&pkcs11_tokens(&sources.pkcs11), config, only);
    #[cfg(not(feature = "pkcs11"))]
    {
        let _ = (sources, config, only);
        Vec::new()
    }
}

/// The PKCS#11 tokens as another process sees them: this one is going to have some modules
/// look elsewhere.
#[cfg(feature = "pkcs11")]
fn pkcs11_tokens(backends: &[String]) -> String {
    let output = std::env::current_exe().and_then(|program| {
        let mut command = std::process::Command::new(program);
        command.arg("pkcs11-tokens").args(backends);
        let null = std::process::Stdio::null;
        command.stdin(null()).stderr(null()).output()
    });
    // What cannot be looked into is said where the devices are looked for.
    output.map_or(String::new(), |output| {
        String::from_utf8_lossy(&output.stdout).into_owned()
    })
}

fn compared(before: &Path, after: &Path) -> Result<u8, HilError> {
    let comparison = compare(&results::read(before)?, &results::read(after)?);
    say(&comparison);
    Ok(u8::from(comparison.is_worse()))
}

fn reported(from: &Path, out: &Path) -> Result<u8, HilError> {
    let records = results::read(from)?;
    std::fs::create_dir_all(out).map_err(|e| HilError::Unwritable {
        path: out.into(),
        reason: e.to_string(),
    })?;
    say(report::write(out, &records)?.display());
    Ok(0)
}

#[cfg(feature = "piv")]
fn replayed(transcripts: &[PathBuf]) -> Result<u8, HilError> {
    let mut worst = 0;
    for path in transcripts {
        match claviger_hil::replay::replay(path) {
            Ok(done) => say(format_args!(
                "{}: the same, in {} calls{}",
                path.display(),
                done.calls,
                match done.to_the_end {
                    true => "",
                    false => "; then the card proves something that only it can",
                }
            )),
            Err(error @ HilError::Deviation { .. }) => {
                say(&error);
                worst = 1;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(worst)
}

#[cfg(feature = "pkcs11")]
fn spied(backend: &str, places: impl Iterator<Item = (String, String)>) -> Result<u8, HilError> {
    match claviger_hil::spied(backend, places, &Interrupt::listen()) {
        Ok(()) => Ok(0),
        Err(why) => {
            // The standard error is the spy's.
            say(why);
            Ok(1)
        }
    }
}

/// A line on standard output; whoever no longer listens misses it.
fn say(text: impl Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_list_are_all_of_it() {
        let taken = |part: &str| {
            part.parse()
                .map(|part: Part| part.take(vec![1, 2, 3, 4, 5]))
        };
        assert_eq!(taken("1/2"), Ok(vec![1, 3, 5]));
        assert_eq!(taken("2/2"), Ok(vec![2, 4]));
        assert_eq!(taken("1/1"), Ok(vec![1, 2, 3, 4, 5]));
        for bad in ["0/2", "3/2", "1", "1/0", "a/2", "-1/2"] {
            assert!(taken(bad).is_err(), "{bad}");
        }
    }
}
