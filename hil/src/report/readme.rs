//! The table in `docs/tokens.md`: virtual devices and how many checks of which kind they pass.
//! Nothing in it varies from run to run.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use claviger_conformance::Theme;

use crate::error::HilError;
use crate::report::{Counts, devices, row};
use crate::results::{Record, Standing, Subject};
use crate::virtuals::ORDER;

const BEGIN: &str = "<!-- hil: what follows is written by `cargo xtask hil --write-readme` -->";
const END: &str = "<!-- hil: end -->";

/// Puts the rows of the virtual devices that ran into the table; the others stay.
///
/// # Errors
/// [`HilError::Unwritable`], [`HilError::BadReport`] where there is no place for it.
pub fn write(path: &Path, records: &[Record]) -> Result<(), HilError> {
    let text = read(path)?;
    let fresh = updated(path, &text, records)?;
    fs::write(path, fresh).map_err(|e| HilError::Unwritable {
        path: path.into(),
        reason: e.to_string(),
    })
}

/// Sees whether the rows of the virtual devices that ran are as in the table, and whether all ran
/// that have a row there and are `wanted`.
///
/// # Errors
/// [`HilError::NotRun`], [`HilError::StaleReadme`], [`HilError::BadReport`].
pub fn check(
    path: &Path,
    records: &[Record],
    wanted: impl Fn(&str) -> bool,
) -> Result<(), HilError> {
    let text = read(path)?;
    let ran = ran(records);
    let has_row = |name: &str| text.contains(&format!("\n| `{name}` |"));
    let missing: Vec<String> = (ORDER.into_iter())
        .filter(|name| wanted(name) && has_row(name))
        .filter(|name| !ran.iter().any(|subject| subject.device == *name))
        .map(Into::into)
        .collect();
    if !missing.is_empty() {
        let path = path.into();
        return Err(HilError::NotRun { path, missing });
    }
    match updated(path, &text, records)? == text {
        true => Ok(()),
        false => Err(HilError::StaleReadme(path.into())),
    }
}

fn read(path: &Path) -> Result<String, HilError> {
    fs::read_to_string(path).map_err(|e| HilError::BadReport {
        path: path.into(),
        reason: e.to_string(),
    })
}

fn updated(path: &Path, text: &str, records: &[Record]) -> Result<String, HilError> {
    let parts = text.split_once(BEGIN);
    let parts = parts.and_then(|(before, rest)| Some((before, rest.split_once(END)?)));
    let (before, (table, after)) = parts.ok_or_else(|| HilError::BadReport {
        path: path.into(),
        reason: format!("it has no place for the table: {BEGIN} … {END}"),
    })?;
    let ran: Vec<(&str, String)> = (ran(records).into_iter())
        .map(|subject| (&*subject.device, cells(&row(records, &subject.device))))
        .collect();
    let mut fresh = heading();
    for name in ORDER {
        let known = || {
            let mut rows = table.lines();
            let row = rows.find_map(|line| line.strip_prefix(&format!("| `{name}` |")))?;
            Some(row.to_owned())
        };
        let now = ran.iter().find(|(device, _)| *device == name);
        if let Some(cells) = now.map(|(_, cells)| cells.clone()).or_else(known) {
            let _ = writeln!(fresh, "| `{name}` |{cells}");
        }
    }
    Ok(format!("{before}{BEGIN}\n{fresh}{END}{after}"))
}

/// The virtual devices that ran. One that could not be started has no serial.
fn ran(records: &[Record]) -> Vec<&Subject> {
    let is_one =
        |subject: &&Subject| subject.standing == Standing::Virtual && !subject.serial.is_empty();
    devices(records).into_iter().filter(is_one).collect()
}

fn heading() -> String {
    let mut text = String::from("| |");
    for capability in Theme::ALL {
        let _ = write!(text, " {capability} |");
    }
    text.push_str("\n| --- |");
    text.push_str(&" --- |".repeat(Theme::ALL.len()));
    text.push('\n');
    text
}

fn cells(row: &[Counts]) -> String {
    row.iter()
        .map(|counts| format!(" {} |", cell(*counts)))
        .collect()
}

fn cell(counts: Counts) -> String {
    let mut parts = Vec::new();
    if counts.passed > 0 {
        parts.push(counts.passed.to_string());
    }
    if counts.skipped > 0 {
        parts.push(format!("{} skipped", counts.skipped));
    }
    if counts.failed > 0 {
        parts.push(format!("**{} failed**", counts.failed));
    }
    parts.join(", ")
}
