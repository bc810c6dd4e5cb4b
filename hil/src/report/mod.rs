//! Reports for people and machines, made from the records of a run.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use claviger_conformance::Theme;

use crate::error::HilError;
use crate::results::{Finding, Outcome, RESULTS, Record, Subject};

pub mod html;
pub mod junit;
pub mod readme;
mod svg;
pub(crate) mod units;

const JUNIT: &str = "junit.xml";
const HTML: &str = "report.html";

/// Writes `junit.xml` and `report.html` into `folder`.
///
/// # Errors
/// [`HilError::Unwritable`].
pub fn write(folder: &Path, records: &[Record]) -> Result<PathBuf, HilError> {
    let junit = junit::xml(records).map_err(|reason| HilError::Unwritable {
        path: folder.join(JUNIT),
        reason,
    })?;
    put(&folder.join(JUNIT), &junit)?;
    let html_file = folder.join(HTML);
    put(&html_file, &html::page(records))?;
    Ok(html_file)
}

/// Sees that the reports can be written into `folder`, which is made if it is not there.
/// Those of an earlier run stay as they are.
///
/// # Errors
/// [`HilError::Unwritable`].
pub(crate) fn check_writable(folder: &Path) -> Result<(), HilError> {
    for name in [RESULTS, JUNIT, HTML] {
        let path = folder.join(name);
        let was_there = path.exists();
        let writable = || -> std::io::Result<()> {
            fs::create_dir_all(folder)?;
            fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(&path)?;
            match was_there {
                true => Ok(()),
                false => fs::remove_file(&path),
            }
        };
        writable().map_err(|e| HilError::Unwritable {
            path: path.clone(),
            reason: e.to_string(),
        })?;
    }
    Ok(())
}

fn put(path: &Path, text: &str) -> Result<(), HilError> {
    fs::write(path, text).map_err(|e| HilError::Unwritable {
        path: path.into(),
        reason: e.to_string(),
    })
}

/// How many checks had which outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) skipped: usize,
    pub(crate) failed: usize,
}

impl Counts {
    fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Skipped => self.skipped += 1,
            Outcome::Failed => self.failed += 1,
        }
    }
}

/// Counts the checks that fit.
pub(crate) fn counts<'a>(
    records: impl IntoIterator<Item = &'a Record>,
    fits: impl Fn(&Record, &str) -> bool,
) -> Counts {
    let mut counts = Counts::default();
    for record in records {
        if let Finding::Check {
            capability,
            outcome,
            ..
        } = &record.finding
            && fits(record, capability)
        {
            counts.add(*outcome);
        }
    }
    counts
}

/// The counts of a device, one for each of [`Theme::ALL`].
pub(crate) fn row(records: &[Record], device: &str) -> [Counts; Theme::ALL.len()] {
    Theme::ALL.map(|wanted| {
        counts(records, |record, capability| {
            record.device() == device && capability == wanted.name()
        })
    })
}

/// The devices, in the order of the run.
pub(crate) fn devices(records: &[Record]) -> Vec<&Subject> {
    let mut devices: Vec<&Subject> = Vec::new();
    for subject in records.iter().filter_map(|record| record.device.as_ref()) {
        if !devices.iter().any(|known| known.device == subject.device) {
            devices.push(subject);
        }
    }
    devices
}

/// Whether anything failed.
pub fn failed(records: &[Record]) -> usize {
    counts(records, |_, _| true).failed
}

/// The outcome of a run in a line.
pub fn verdict(records: &[Record]) -> String {
    let Counts {
        passed,
        skipped,
        failed,
    } = counts(records, |_, _| true);
    let devices = devices(records).len();
    let plural = if devices == 1 { "" } else { "s" };
    let failed = match failed {
        0 => "none failed".to_owned(),
        failed => format!("{failed} failed"),
    };
    format!("{devices} device{plural}: {passed} checks passed, {skipped} skipped, {failed}")
}

/// As much of a reason as a person reads; all of it is in the records.
pub(crate) fn brief(reason: &str) -> Cow<'_, str> {
    const MOST: usize = 2000;
    match reason.len() > MOST {
        false => Cow::Borrowed(reason),
        true => {
            let ends = reason.char_indices().map(|(at, _)| at);
            let end = ends.take_while(|at| *at <= MOST).last().unwrap_or(0);
            let (kept, left) = (&reason[..end], reason.len() - end);
            Cow::Owned(format!("{kept}… ({left} bytes more in {RESULTS})"))
        }
    }
}

/// A check's name as a sentence.
pub(crate) fn sentence(check: &str) -> String {
    let text = check.replace('_', " ");
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string());
    format!("{}{}", first.unwrap_or_default(), chars.as_str()).replace(" pin", " PIN")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_and_says_so() {
        assert_eq!(brief("why"), "why");
        let long = "ä".repeat(5000);
        let brief = brief(&long);
        assert!(brief.starts_with("ää") && brief.len() < 2100);
        assert!(
            brief.ends_with("… (8000 bytes more in results.jsonl)"),
            "{brief}"
        );
    }
}
