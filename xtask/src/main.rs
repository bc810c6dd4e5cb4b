//! Tasks of this repository: `cargo xtask setup | demo | test | bench | chaos | hil | lint | man`.
//!
//! | module | idea |
//! | --- | --- |
//! | [`demo`] | Claviger's main job, shown on a throw-away token |
//! | [`mod@test`] | every test |
//! | [`mod@bench`] | figures, for people and for machines |
//! | [`builds`] | what builds of the command cost and weigh |
//! | [`against`] | the bench of another revision beside that of this tree |
//! | [`chaos`] | tries to break the promises: kills processes, removes tokens |
//! | [`hil`] | the bench for devices' conformance and speed |
//! | [`lint`] | checks that a change must pass |
//! | [`advisories`] | known weaknesses of dependencies |
//! | [`setup`] | installs what the others need |
//! | [`kryoptic`] | builds a token in software |
//! | [`peers`] | other people's programs, pinned |
//! | [`scratch`] | folders that go away again, and SoftHSM2 kept inside them |
//! | [`process`] | running commands, and reporting them |
//! | [`screen`] | text for people, on a terminal or not |
//!
//! No subcommand touches the user's own tokens or configuration.
#![forbid(unsafe_code)]

mod advisories;
mod against;
mod bench;
mod builds;
mod chaos;
mod demo;
#[cfg(test)]
mod documents;
mod hil;
#[cfg(test)]
mod imports;
mod kryoptic;
mod lint;
mod peers;
mod process;
mod scratch;
mod screen;
mod setup;
mod test;

use std::ffi::OsString;
use std::fmt;
use std::process::ExitCode;

const USAGE: &str = "\
Usage: cargo xtask COMMAND

  setup                      install what the other commands need, after listing it
  demo                       show the main job on a throw-away SoftHSM2 token
  test [--quick] [ARGS...]   run the tests; --quick leaves out those that need an emulator,
                             ARGS go to cargo nextest, or to cargo test if there is none
  bench [--daemon] [--long] [--json]
                             measure; --json prints one JSON object on standard output, --daemon
                             measures only the daemon, --long its memory over a million requests
  bench --against REV        build another git revision and print its figures beside these
  bench --builds [--against REV]
                             measure clean builds of the command, alone and beside another revision,
                             and print how large it is and what each crate weighs in it
  chaos [--json] [--kills N] [--daemon-kills N] [--removals N] [--seconds N] [--seed N]
                             try to break the promises: kill processes and daemons, unplug and
                             overload tokens; --json as above
  hil [--quick] [ARGS...]    run the suite and measure, on attached devices and on virtual ones;
                             --quick as above, ARGS go to the bench (--help lists them)
  lint [--advisories [DB]]   check formatting, clippy, documentation, licences; and RustSec's
                             advisories, from a clone of its database or from the network
  man                        write the command's man pages to target/man

Your own tokens and configuration are not touched.
";

fn main() -> ExitCode {
    match dispatch(std::env::args_os().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            screen::error(&failure);
            ExitCode::from(failure.exit_code)
        }
    }
}

fn dispatch(mut args: Vec<OsString>) -> Result<()> {
    if args.is_empty() {
        return Err(Failure::usage("no command was given"));
    }
    let command = args.remove(0);
    let wants_help = |arg: &OsString| arg == "--help" || arg == "-h";
    // What follows `test` belongs to the test runner, and so does its `--help`; and what
    // follows `hil` to the bench.
    if wants_help(&command)
        || command == "help"
        || (command != "test" && command != "hil" && args.iter().any(wants_help))
    {
        screen::print(USAGE);
        return Ok(());
    }
    match command.to_str() {
        Some("setup") => no_more(&args)
            .and_then(|()| setup::run(setup::What::Tests, setup::Voice::Talkative))
            .and_then(|()| kryoptic::build())
            .and_then(|()| peers::install()),
        Some("demo") => no_more(&args).and_then(|()| demo::run()),
        Some("test") => test::run(args),
        Some("bench") => bench::run(&args),
        Some("chaos") => chaos::run(&args),
        Some("hil") => hil::run(args),
        Some("man") => no_more(&args).and_then(|()| man()),
        Some("lint") => advisories::parse(&args).and_then(|wanted| lint::run(&wanted)),
        _ => Err(Failure::usage(format!(
            "there is no command {:?}",
            command.to_string_lossy()
        ))),
    }
}

/// Writes the man pages, which the command makes from its own definition.
fn man() -> Result<()> {
    let folder = process::workspace().join("target/man");
    std::fs::create_dir_all(&folder)
        .map_err(|e| Failure::new(format!("`{}`: {e}", folder.display())))?;
    let mut command = process::cargo();
    command.args(["run", "--quiet", "--package", "claviger", "--", "man-pages"]);
    process::run(command.arg(&folder))?;
    screen::note(
        screen::Style::Plain,
        format!("Read one with: man -l {}/claviger.1", folder.display()),
    );
    Ok(())
}

/// Refuses arguments to a command that takes none.
fn no_more(args: &[OsString]) -> Result<()> {
    match args.first() {
        None => Ok(()),
        Some(arg) => Err(Failure::usage(format!(
            "{:?} was not expected here",
            arg.to_string_lossy()
        ))),
    }
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Why a command stopped: one cause and, where there is one, the thing to do next.
#[derive(Debug)]
pub(crate) struct Failure {
    cause: String,
    hint: Option<String>,
    exit_code: u8,
}

impl Failure {
    pub(crate) fn new(cause: impl Into<String>) -> Self {
        Self {
            cause: cause.into(),
            hint: None,
            exit_code: 1,
        }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn usage(cause: impl Into<String>) -> Self {
        Self {
            exit_code: 2,
            ..Self::new(cause).hint("`cargo xtask help` lists the commands")
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_command_is_a_usage_error_that_says_where_the_list_is() {
        let failure = dispatch(vec!["dmeo".into()]).unwrap_err();
        assert_eq!(failure.exit_code, 2);
        assert!(failure.to_string().contains("dmeo"));
        assert!(failure.to_string().contains("cargo xtask help"));
    }

    /// The sources below `folder`, except for what is built.
    pub(crate) fn sources(folder: &std::path::Path) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("target") && !path.ends_with(".git") {
                text.push_str(&sources(&path));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&std::fs::read_to_string(&path).unwrap());
            }
        }
        text
    }

    #[test]
    fn each_promise_about_security_names_tests_that_there_are() {
        let root = process::workspace();
        let sources = sources(&root);
        let promises = std::fs::read_to_string(root.join("SECURITY.md")).unwrap();
        let mut named = 0;
        for row in promises.lines().filter(|line| line.starts_with("| ")) {
            let tests = row.trim_end_matches(['|', ' ']).rsplit('|').next().unwrap();
            for name in tests.split('`').skip(1).step_by(2) {
                // Names of figures are shorter.
                let is_test = name.matches('_').count() > 2 && !name.contains(['.', ' ']);
                let function = format!("fn {name}(");
                assert!(!is_test || sources.contains(&function), "{name}");
                named += usize::from(is_test);
            }
        }
        assert!(named > 50, "{named}");
    }

    #[test]
    fn each_package_brings_its_readme_and_its_licences() {
        let root = process::workspace();
        let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
        let members = manifest.split_once("members = [").unwrap().1;
        let members = members.split_once(']').unwrap().0.lines();
        let members: Vec<_> = members
            .map(|line| line.trim().trim_matches([',', '"']))
            .filter(|member| !member.is_empty())
            .collect();
        assert!(members.contains(&"drivers/token"), "{members:?}");
        let mut packages = 0;
        for member in members {
            let manifest = root.join(member).join("Cargo.toml");
            let text = std::fs::read_to_string(&manifest).unwrap();
            if text.contains("\npublish = false\n") {
                continue;
            }
            packages += 1;
            let mut list = process::cargo();
            list.args([
                "package",
                "--list",
                "--allow-dirty",
                "--quiet",
                "--manifest-path",
            ]);
            let listed = list.arg(&manifest).output().unwrap();
            let listed = String::from_utf8(listed.stdout).unwrap();
            for file in ["README.md", "LICENSE-APACHE", "LICENSE-MIT"] {
                assert!(
                    listed.lines().any(|line| line == file),
                    "{member}: {listed}"
                );
            }
        }
        assert!(packages >= 9, "{packages}");
    }

    #[test]
    fn a_command_that_takes_no_arguments_refuses_them() {
        for command in ["setup", "demo", "lint"] {
            let failure = dispatch(vec![command.into(), "--fast".into()]).unwrap_err();
            assert_eq!(failure.exit_code, 2, "{command}");
        }
    }
}
