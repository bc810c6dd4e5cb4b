//! The bench of another revision, beside that of this tree.
//!
//! The revision is unpacked and built in `target/against`, with a target folder of its own, and
//! kept there: a second run with the same revision builds nothing. Each figure of both benches is
//! a ratio to something that was measured in turn with it, so the two runs can be compared;
//! whole processes of both builds are measured in turn.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::process::{self, could_not_start};
use crate::{Failure, Result};

/// The environment variable that names the command of the other build to the bench.
const COMMAND: &str = "CLAVIGER_BENCH_AGAINST";

/// A revision, unpacked.
pub(crate) struct Other {
    folder: PathBuf,
}

impl Other {
    /// Unpacks and builds what git knows as `revision`.
    pub(crate) fn build(revision: &OsStr) -> Result<Self> {
        let other = Other::unpack(revision)?;
        process::run(other.cargo().args([
            "build",
            "--release",
            "--locked",
            "--package",
            "claviger",
        ]))?;
        Ok(other)
    }

    /// Unpacks what git knows as `revision`.
    pub(crate) fn unpack(revision: &OsStr) -> Result<Self> {
        let mut wanted = revision.to_owned();
        wanted.push("^{commit}");
        let commit = said(
            git()
                .args(["rev-parse", "--verify", "--quiet", "--end-of-options"])
                .arg(&wanted),
        )
        .map_err(|_| Failure::usage(format!("git knows no revision {}", revision.display())))?;
        let folder = process::workspace()
            .join("target/against")
            .join(commit.trim());
        let unpacked = Other {
            folder: folder.clone(),
        };
        if folder.is_dir() {
            return Ok(unpacked);
        }
        // Under its own name it is never seen half done.
        let fresh = folder.with_extension("new");
        let _ = fs::remove_dir_all(&fresh);
        let failed =
            |what: &Path, e: &std::io::Error| Failure::new(format!("{}: {e}", what.display()));
        fs::create_dir_all(&fresh).map_err(|e| failed(&fresh, &e))?;
        let archive = fresh.join("archive.tar");
        let mut command = git();
        command
            .args(["archive", "--output"])
            .arg(&archive)
            .arg(commit.trim());
        process::run(&mut command)?;
        let mut command = Command::new("tar");
        process::run(command.arg("-xf").arg(&archive).arg("-C").arg(&fresh))?;
        fs::remove_file(&archive).map_err(|e| failed(&archive, &e))?;
        fs::rename(&fresh, &folder).map_err(|e| failed(&folder, &e))?;
        Ok(unpacked)
    }

    /// A cargo that works on it.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = process::cargo();
        cargo.current_dir(&self.folder);
        cargo.env("CARGO_TARGET_DIR", self.folder.join("target"));
        cargo
    }

    /// Has the bench of this tree measure the command of the revision, too.
    pub(crate) fn name_to(&self, bench: &mut Command) {
        bench.env(COMMAND, self.folder.join("target/release/claviger"));
    }

    /// The figures of the revision's own bench.
    pub(crate) fn figures(&self) -> Result<Figures> {
        let mut bench = self.cargo();
        figures_of(bench.args(["xtask", "bench", "--json"]))
    }
}

/// Figures by their names.
pub(crate) type Figures = BTreeMap<String, f64>;

/// Runs a bench that prints one JSON object.
pub(crate) fn figures_of(bench: &mut Command) -> Result<Figures> {
    process::show(bench);
    let text = said(bench)?;
    let line = text.lines().last().unwrap_or_default();
    parse(line).ok_or_else(|| Failure::new(format!("these are no figures: {line}")))
}

/// An object of names and numbers, and nothing else.
fn parse(object: &str) -> Option<Figures> {
    let fields = object.trim().strip_prefix('{')?.strip_suffix('}')?;
    let field = |field: &str| {
        let (name, value) = field.split_once(':')?;
        let name = name.trim().strip_prefix('"')?.strip_suffix('"')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    fields.split(',').map(field).collect()
}

/// Each figure of this tree with that of the other revision and their ratio, where it has one.
pub(crate) fn table(ours: &Figures, theirs: &Figures) -> String {
    let mut table = format!(
        "{:<26} {:>10} {:>10} {:>8}\n",
        "figure", "this tree", "other", "ratio"
    );
    for (name, ours) in ours {
        table.push_str(&match theirs.get(name) {
            Some(theirs) => format!(
                "{name:<26} {ours:>10.3} {theirs:>10.3} {:>8.3}\n",
                ours / theirs
            ),
            None => format!("{name:<26} {ours:>10.3}\n"),
        });
    }
    table
}

fn git() -> Command {
    let mut git = Command::new("git");
    git.current_dir(process::workspace());
    git
}

/// What a command prints that succeeds.
fn said(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| could_not_start(command, &error))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(Failure::new(format!(
            "`{}` failed ({})",
            process::display(command),
            output.status
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_as_the_bench_prints_them() {
        let figures = parse(r#"{"commit_p256_ratio":1.0300,"reads_for_100k_us":25.2000}"#).unwrap();
        let figures: Vec<_> = figures
            .iter()
            .map(|(name, value)| (&**name, *value))
            .collect();
        assert_eq!(
            figures,
            [("commit_p256_ratio", 1.03), ("reads_for_100k_us", 25.2)]
        );
        assert_eq!(parse("bench: commitments"), None);
        assert_eq!(parse(r#"{"a":b}"#), None);
    }

    #[test]
    fn a_figure_stands_beside_that_of_the_other_revision_where_it_has_one() {
        let ours = parse(r#"{"commit_p256_ratio":1.5,"sign_process_against":0.5}"#).unwrap();
        let theirs = parse(r#"{"commit_p256_ratio":3.0,"gone":1.0}"#).unwrap();
        let table = table(&ours, &theirs);
        let words = |line: &str| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let rows: Vec<_> = table.lines().skip(1).map(words).collect();
        assert_eq!(
            rows,
            [
                vec!["commit_p256_ratio", "1.500", "3.000", "0.500"],
                vec!["sign_process_against", "0.500"],
            ]
        );
    }

    #[test]
    fn a_revision_that_git_does_not_know_is_said_to_be_none() {
        for unknown in ["no-such-revision", "--help", ""] {
            assert!(Other::unpack(OsStr::new(unknown)).is_err(), "{unknown}");
        }
    }
}
