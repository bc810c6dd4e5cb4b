//! What must be clean before a change goes in.

use std::process::Command;

use crate::screen::{self, Style};
use crate::{Failure, Result, process, setup};

/// Runs every check, also after one has failed, and says at the end which did.
pub(crate) fn run() -> Result<()> {
    setup::run(setup::What::Build, setup::Voice::Quiet)?;
    let mut failed = Vec::new();
    for (name, mut command) in checks() {
        if let Err(failure) = process::run(&mut command) {
            screen::note(Style::Bad, failure);
            failed.push(name);
        }
    }
    let deny_runs = process::succeeds(process::cargo().args(["deny", "--version"]));
    if deny_runs {
        let mut deny = process::cargo();
        deny.args(["deny", "check", "--hide-inclusion-graph"]);
        deny.args(["licenses", "bans", "sources"]);
        if let Err(failure) = process::run(&mut deny) {
            screen::note(Style::Bad, failure);
            failed.push("cargo-deny");
        }
    } else {
        screen::note(
            Style::Bad,
            "SKIPPED: licences, duplicate crates and sources were not checked, because \
             cargo-deny is not installed (cargo install --locked cargo-deny).",
        );
    }

    if !failed.is_empty() {
        return Err(Failure::new(format!("not clean: {}", failed.join(", ")))
            .hint("`cargo fmt --all` and `cargo clippy --fix` repair what can be repaired"));
    }
    let verdict = if deny_runs {
        "lint: clean."
    } else {
        "lint: clean, as far as it was checked (cargo-deny was SKIPPED)."
    };
    screen::note(Style::Good, verdict);
    Ok(())
}

fn checks() -> [(&'static str, Command); 3] {
    let mut format = process::cargo();
    format.args(["fmt", "--all", "--check"]);

    let mut clippy = process::cargo();
    clippy.args(["clippy", "--workspace", "--all-targets"]);
    clippy.args(["--", "-D", "warnings"]);

    let mut documentation = process::cargo();
    documentation.args(["doc", "--workspace", "--no-deps"]);
    documentation.env("RUSTDOCFLAGS", "-D warnings");

    [
        ("formatting", format),
        ("clippy", clippy),
        ("documentation", documentation),
    ]
}
