//! JUnit XML, for CI: a suite for each device, a case for each check.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use crate::report::devices;
use crate::results::{Finding, Outcome, Record};

/// The report as XML.
///
/// # Errors
/// Why it could not be encoded.
pub fn xml(records: &[Record]) -> Result<String, String> {
    let mut report = Report::new("claviger-hil");
    for subject in devices(records) {
        let mut suite = TestSuite::new(&*subject.device);
        suite.add_property(("model", &*subject.model));
        suite.add_property(("serial", &*subject.serial));
        suite.add_property(("firmware", &*subject.firmware));
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
                    status.set_message(reason.clone());
                }
                let mut case = TestCase::new(check.clone(), status);
                case.set_classname(format!("{}.{capability}", subject.device));
                case.set_time(Duration::from_secs_f64(seconds.max(0.0)));
                suite.add_test_case(case);
            }
        }
        report.add_test_suite(suite);
    }
    report.to_string().map_err(|e| e.to_string())
}
