//! What must be clean before a change goes in.

use std::fs;
use std::path::Path;
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
    match oldest_compiler() {
        Ok(mut check) => report.run("oldest compiler", &mut check),
        Err(why) => report.skip("oldest compiler", &why),
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

/// Builds with the oldest compiler that the packages promise, if it is here; why not, if it is
/// not.
fn oldest_compiler() -> std::result::Result<Command, String> {
    let manifest = fs::read_to_string(process::workspace().join("Cargo.toml"));
    let version = oldest_version(&manifest.unwrap_or_default());
    let mut toolchains = Command::new("rustup");
    let listed = toolchains.args(["toolchain", "list"]).output();
    let listed = listed.map_err(|e| format!("rustup did not start: {e}"))?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let toolchain = toolchain_of(&version, &listed).ok_or_else(|| {
        format!("Rust {version} is not installed (rustup toolchain install {version})")
    })?;
    let mut check = Command::new("rustup");
    check.args(["run", toolchain, "cargo", "check", "--locked"]);
    for package in published() {
        check.args(["--package", &package]);
    }
    // What it does not run needs no optimisation, and lies beside what the others build.
    check.args(["--config", r#"profile.dev.package."*".opt-level = 0"#]);
    check.args(["--target-dir", "target/oldest"]);
    check.current_dir(process::workspace());
    // They name the toolchain that runs this program.
    for variable in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN"] {
        check.env_remove(variable);
    }
    Ok(check)
}

/// The packages that others depend on or install. The others are only for those who work on them,
/// with any compiler.
fn published() -> Vec<String> {
    let root = process::workspace();
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let workspace = read(&root.join("Cargo.toml"));
    let members = workspace.split_once("members = [");
    let members = members.and_then(|(_, rest)| rest.split(']').next());
    let members = members.unwrap_or_default().split('"').skip(1).step_by(2);
    let manifests = members.map(|member| read(&root.join(member).join("Cargo.toml")));
    let published = manifests.filter(|manifest| !manifest.contains("\npublish = false\n"));
    let name = |manifest: String| {
        let mut lines = manifest.lines();
        let name = lines.find_map(|line| line.strip_prefix("name = "))?;
        Some(name.trim_matches('"').to_owned())
    };
    published.filter_map(name).collect()
}

/// The version in the manifest of the workspace.
fn oldest_version(manifest: &str) -> String {
    let mut lines = manifest.lines();
    let version = lines.find_map(|line| line.strip_prefix("rust-version = "));
    version.unwrap_or_default().trim_matches('"').into()
}

/// The toolchain of this version among those that rustup lists.
fn toolchain_of<'a>(version: &str, listed: &'a str) -> Option<&'a str> {
    let names = listed.lines().filter_map(|line| line.split(' ').next());
    names.into_iter().find(|name| {
        let rest = name.strip_prefix(version);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
    })
}

/// The packages of which each driver is a feature.
const FRONT_ENDS: [&str; 2] = ["claviger", "claviger-hil"];

/// The command's drivers.
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

    // A workspace of its own: what it shares with the other one is not checked again. The fuzzer
    // itself is not compiled: a check links nothing.
    let mut fuzz = process::cargo();
    fuzz.env("CUSTOM_LIBFUZZER_PATH", "/nowhere/libfuzzer.a");
    fuzz.args(["check", "--locked", "--manifest-path"]);
    fuzz.args(["tests/fuzz/Cargo.toml", "--target-dir", "target"]);

    let drivers = drivers();
    let alone = drivers.iter().flat_map(|driver| {
        FRONT_ENDS.map(|package| {
            let mut alone = process::cargo();
            alone.args(["clippy", "--package", package]);
            alone.args(["--no-default-features", "--features", driver]);
            alone.args(["--", "-D", "warnings"]);
            ("a driver alone", alone)
        })
    });
    let mut checks = vec![
        ("formatting", format),
        ("clippy", clippy),
        ("documentation", documentation),
        ("fuzz targets", fuzz),
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
        for (package, driver) in FRONT_ENDS
            .iter()
            .flat_map(|package| drivers.iter().map(move |driver| (package, driver)))
        {
            // What a driver links of others; one that is not here links none of these.
            let library = match &**driver {
                "piv" => "pcsc",
                "ledger" => "udev",
                _ => "",
            };
            let mut tree = process::cargo();
            tree.args(["tree", "--package", package, "--edges", "normal"]);
            tree.args(["--prefix", "none", "--no-default-features", "--features"]);
            let tree = tree.arg(driver).output().unwrap().stdout;
            let tree = String::from_utf8(tree).unwrap();
            assert!(tree.contains(&format!("claviger-{driver} v")), "{tree}");
            for system in ["pcsc", "udev"] {
                let is_linked = tree
                    .lines()
                    .any(|line| line.starts_with(&format!("{system} v")));
                let place = format!("{package}, {driver} and {system}");
                assert_eq!(is_linked, system == library, "{place}");
            }
        }
    }

    #[test]
    fn the_bench_has_the_drivers_of_the_command_as_features() {
        let manifest = process::workspace().join("hil/Cargo.toml");
        let manifest = fs::read_to_string(manifest).unwrap();
        for driver in drivers() {
            assert!(manifest.contains(&format!("\n{driver} = [")), "{driver}");
        }
    }

    #[test]
    fn the_oldest_compiler_is_for_what_others_depend_on_or_install() {
        let published = published();
        for package in ["claviger", "claviger-token", "claviger-engine"] {
            assert!(
                published.iter().any(|known| known == package),
                "{published:?}"
            );
        }
        for package in ["claviger-hil", "claviger-tests", "xtask"] {
            assert!(
                published.iter().all(|known| known != package),
                "{published:?}"
            );
        }
    }

    #[test]
    fn the_oldest_compiler_is_the_one_that_the_packages_promise() {
        let manifest = "[workspace.package]\nedition = \"2024\"\nrust-version = \"1.89\"\n";
        assert_eq!(oldest_version(manifest), "1.89");
        let listed = "stable-x86_64 (active, default)\n1.8-x86_64\n1.89.0-x86_64\n";
        assert_eq!(toolchain_of("1.89", listed), Some("1.89.0-x86_64"));
        assert_eq!(toolchain_of("1.8", listed), Some("1.8-x86_64"));
        assert_eq!(toolchain_of("1.89", "1.890-x86_64\n"), None);
        assert_eq!(toolchain_of("1.89", ""), None);
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
