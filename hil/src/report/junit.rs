//! JUnit XML, for CI: a suite for each device, a case for each check.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use crate::report::{brief, devices};
use crate::results::{Finding, Outcome, Record};

/// The report as XML.
///
/// # Errors
/// Why it could not be encoded.
pub fn xml(records: &[Record]) -> Result<String, String> {
    let mut report = Report::new("claviger-hil");
    for subject in devices(records) {
        let mut suite = TestSuite::new(text(&subject.device));
        suite.add_property(("model", &*text(&subject.model)));
        suite.add_property(("serial", &*text(&subject.serial)));
        suite.add_property(("firmware", &*text(&subject.firmware)));
        for record in records
            .iter()
            .filter(|record| record.device() == subject.device)
        {
            if let Finding::Check {
                check,
                capability,
                outcome,
                reason,
                seconds,
            } = &record.finding
            {
                let mut status = match outcome {
                    Outcome::Passed => TestCaseStatus::success(),
                    Outcome::Skipped => TestCaseStatus::skipped(),
                    Outcome::Failed => TestCaseStatus::non_success(NonSuccessKind::Failure),
                };
                if *outcome != Outcome::Passed {
                    status.set_message(text(&brief(reason)));
                }
                let mut case = TestCase::new(text(check), status);
                case.set_classname(text(&format!("{}.{capability}", subject.device)));
                case.set_time(Duration::from_secs_f64(seconds.max(0.0)));
                suite.add_test_case(case);
            }
        }
        report.add_test_suite(suite);
    }
    report.to_string().map_err(|e| e.to_string())
}

/// Text without the two characters that XML cannot have and the encoder lets pass. It
/// leaves out the control characters itself.
fn text(text: &str) -> String {
    text.replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Run, Standing, Subject};

    #[test]
    fn what_a_device_says_is_xml_and_not_endless() {
        let record = Record {
            run: Run {
                schema: 1,
                run: "2026-01-01T00:00:00Z".into(),
                host: "h".into(),
                claviger: "0".into(),
                build: "release".into(),
            },
            device: Some(Subject {
                device: "d\u{ffff}".into(),
                kind: "piv".into(),
                model: "m\u{fffe}\u{1b}\u{0}".into(),
                serial: "1".into(),
                firmware: "5".into(),
                standing: Standing::Listed,
            }),
            finding: Finding::Check {
                check: "it_works".into(),
                capability: "keys".into(),
                outcome: Outcome::Failed,
                reason: "\u{ffff}<".repeat(50_000),
                seconds: 0.0,
            },
        };
        let xml = xml(&[record]).unwrap();
        assert!(xml.len() < 10_000, "{}", xml.len());
        for never in ['\u{fffe}', '\u{ffff}', '\u{1b}', '\u{0}'] {
            assert!(!xml.contains(never), "{never:?}");
        }
    }
}
