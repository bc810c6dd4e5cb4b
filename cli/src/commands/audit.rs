//! `audit verify`: finds what was changed in the daemon's log.

use std::io::BufReader;
use std::path::PathBuf;

use claviger_service::audit::verify::{Report, Verifier};
use serde::Serialize;

use super::{Answer, FINE, sign};
use crate::failure::{FAILED, Failure};
use crate::input::Input;
use crate::output;
use crate::session::Session;

/// What was found, in JSON.
#[derive(Serialize)]
struct View {
    /// Whether nothing is wrong with the lines.
    whole: bool,
    lines: u64,
    /// Whether the first line is the first of the log.
    beginning: bool,
    /// Whether the last line says that the daemon ended.
    closed: bool,
    seals: u64,
    unchecked_seals: u64,
    /// The lines after the last valid seal.
    unsealed: u64,
    /// What began and has no end.
    without_end: u64,
    faults: Vec<FaultView>,
    fault_count: u64,
}

#[derive(Serialize)]
struct FaultView {
    line: u64,
    what: String,
}

impl From<&Report> for View {
    fn from(report: &Report) -> Self {
        let fault = |fault: &claviger_service::audit::verify::Fault| FaultView {
            line: fault.line,
            what: fault.what.to_string(),
        };
        View {
            whole: report.is_whole(),
            lines: report.lines,
            beginning: report.has_beginning,
            closed: report.is_closed,
            seals: report.seals,
            unchecked_seals: report.unchecked_seals,
            unsealed: report.unsealed,
            without_end: report.without_end_count,
            faults: report.faults.iter().map(fault).collect(),
            fault_count: report.fault_count,
        }
    }
}

pub(crate) fn verify(session: &Session, files: &[PathBuf], sealed_by: Option<&str>) -> Answer {
    let key = match sealed_by {
        Some(name) => Some(sign::known(session, name)?.1),
        None => None,
    };
    let mut verifier = Verifier::new(key.as_ref());
    for file in files {
        let mut input = Input::open(Some(file), &session.screen)?;
        let read = verifier.read(BufReader::new(&mut input));
        read.map_err(|e| input.failed(&e))?;
    }
    let report = verifier.report();
    if report.lines == 0 {
        return Err(Failure::new("there is no line in the audit log").coded("audit-empty"));
    }
    let view = View::from(&report);
    match session.json {
        true => output::print_json(&view)?,
        false => output::print(&text(&view))?,
    }
    Ok(if view.whole { FINE } else { FAILED })
}

fn text(view: &View) -> String {
    let mut text = String::new();
    for fault in &view.faults {
        text.push_str(&format!("line {}: {}\n", fault.line, fault.what));
    }
    if !view.beginning {
        text.push_str("the first line goes on from a file that was not read\n");
    }
    if view.unchecked_seals > 0 {
        text.push_str("the seals were not checked: name who made them, --sealed-by NAME\n");
    }
    let end = match view.closed {
        true => "the daemon ended after the last line",
        false => "the daemon runs, or was killed",
    };
    text.push_str(&format!(
        "{} lines, {} valid seals, {} lines after the last one; {} uses without an end; {end}\n",
        view.lines, view.seals, view.unsealed, view.without_end
    ));
    if !view.whole {
        return text + "the log was changed\n";
    }
    text.push_str("no change was found\n");
    text.push_str(match (view.seals, view.unsealed) {
        (0, _) => {
            "without a checked seal this cannot find a change by anybody who made all hashes anew, \
             nor an end that was cut off\n"
        }
        (_, 0) => "this cannot find an end that was cut off\n",
        _ => {
            "after the last valid seal this cannot find a change by anybody who made the hashes \
             anew, nor an end that was cut off\n"
        }
    });
    text
}
