//! What must be clean before a change goes in.

use std::fs;
use std::process::Command;

use crate::advisories::{self, Wanted};
use crate::screen::{self, Style};
use crate::{Failure, Result, process, setup};

/// Runs every check, also after one has failed, and says at the end which did and which were
/// not made.
pub(crate) fn run(advisories: &Wanted) -> Result<()> {
    setup::run(setup::What::Build, setup::Voice::Quiet)?;
    let has_deny = process::succeeds(process::cargo().args(["deny", "--version"]));
    let mut report = Report::default();
    for (name, mut command) in checks() {
        report.run(name, &mut command);
    }
    match has_deny {
        true => report.run("cargo-deny", &mut deny()),
        false => report.skip(
            "cargo-deny",
            "licences, duplicate crates and sources were not checked, because cargo-deny is \
             not installed (cargo install --locked cargo-deny)",
        ),
    }
    if *advisories != Wanted::No {
        match advisories::check(advisories, has_deny)? {
            Ok(mut command) => report.run("advisories", &mut command),
            Err(why) => report.skip("advisories", &why),
        }
    }
    report.end()
}

/// What became of the checks.
#[derive(Default)]
struct Report {
    failed: Vec<&'static str>,
    skipped: Vec<&'static str>,
}

impl Report {
    fn run(&mut self, name: &'static str, command: &mut Command) {
        if let Err(failure) = process::run(command) {
            screen::note(Style::Bad, failure);
            self.failed.push(name);
        }
    }

    fn skip(&mut self, name: &'static str, why: &str) {
        screen::note(Style::Bad, format!("SKIPPED: {name}: {why}."));
        self.skipped.push(name);
    }

    fn end(&self) -> Result<()> {
        let verdict = self.verdict()?;
        screen::note(Style::Good, verdict);
        Ok(())
    }

    fn verdict(&self) -> Result<String> {
        let skipped = match self.skipped.as_slice() {
            [] => String::new(),
            names => format!(", {} SKIPPED ({})", names.len(), names.join(", ")),
        };
        match self.failed.as_slice() {
            [] if skipped.is_empty() => Ok("lint: clean.".into()),
            [] => Ok(format!("lint: clean, as far as it was checked{skipped}.")),
            names => Err(
                Failure::new(format!("not clean: {}{skipped}", names.join(", ")))
                    .hint("`cargo fmt --all` and `cargo clippy --fix` repair what can be repaired"),
            ),
        }
    }
}

fn deny() -> Command {
    let mut deny = process::cargo();
    deny.args(["deny", "check", "--hide-inclusion-graph"]);
    deny.args(["licenses", "bans", "sources"]);
    deny
}

/// The command's drivers, each of which is a feature of it.
fn drivers() -> Vec<String> {
    let manifest = process::workspace().join("cli/Cargo.toml");
    let text = fs::read_to_string(manifest).unwrap_or_default();
    let default = text.lines().find(|line| line.starts_with("default = ["));
    let names = default.unwrap_or_default().split('"').skip(1).step_by(2);
    names.map(str::to_owned).collect()
}

fn checks() -> Vec<(&'static str, Command)> {
    let mut format = process::cargo();
    format.args(["fmt", "--all", "--check"]);

    let mut clippy = process::cargo();
    clippy.args(["clippy", "--workspace", "--all-targets"]);
    clippy.args(["--", "-D", "warnings"]);

    let mut documentation = process::cargo();
    documentation.args(["doc", "--workspace", "--no-deps"]);
    documentation.env("RUSTDOCFLAGS", "-D warnings");

    let alone = drivers().into_iter().map(|driver| {
        let mut alone = process::cargo();
        alone.args(["clippy", "--package", "claviger", "--bin", "claviger"]);
        alone.args(["--no-default-features", "--features", &driver]);
        alone.args(["--", "-D", "warnings"]);
        ("a driver alone", alone)
    });
    let mut checks = vec![
        ("formatting", format),
        ("clippy", clippy),
        ("documentation", documentation),
    ];
    checks.extend(alone);
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_links_only_what_it_needs() {
        let drivers = drivers();
        assert!(drivers.len() >= 3, "{drivers:?}");
        for driver in drivers {
            // What a driver links of others; one that is not here links none of these.
            let library = match &*driver {
                "piv" => "pcsc",
                "ledger" => "udev",
                _ => "",
            };
            let mut tree = process::cargo();
            tree.args(["tree", "--package", "claviger", "--edges", "normal"]);
            tree.args(["--prefix", "none", "--no-default-features", "--features"]);
            let tree = tree.arg(&driver).output().unwrap().stdout;
            let tree = String::from_utf8(tree).unwrap();
            assert!(tree.contains(&format!("claviger-{driver} v")), "{tree}");
            for system in ["pcsc", "udev"] {
                let is_linked = tree
                    .lines()
                    .any(|line| line.starts_with(&format!("{system} v")));
                assert_eq!(is_linked, system == library, "{driver} and {system}");
            }
        }
    }

    #[test]
    fn what_is_skipped_is_counted_and_named() {
        let mut report = Report::default();
        assert_eq!(report.verdict().unwrap(), "lint: clean.");
        report.skip("cargo-deny", "it is not installed");
        report.skip("advisories", "they are not here");
        let verdict = report.verdict().unwrap();
        assert!(
            verdict.contains("2 SKIPPED (cargo-deny, advisories)"),
            "{verdict}"
        );
        report.run("clippy", &mut Command::new("false"));
        let failure = report.verdict().unwrap_err().to_string();
        assert!(
            failure.contains("not clean: clippy, 2 SKIPPED"),
            "{failure}"
        );
    }
}
