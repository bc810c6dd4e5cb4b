//! What changed between two runs, with a verdict that accounts for noise.
//!
//! A figure is called changed when it differs by more than a tenth *and* by more than
//! three times what both runs vary within themselves: the median absolute deviation of
//! the tenths of a latency, or of the rounds of a throughput, relative to their median.
//! What varies from run to run and not within one, such as another program that was at
//! work, no single run can show.

use std::fmt;

use crate::measure::median;
use crate::results::{Finding, Operation, Outcome, Record};

/// What changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// One line for each difference, the bad ones first.
    pub changes: Vec<Change>,
    /// How many things were compared and found to be the same, within noise.
    pub same: usize,
    /// What makes the two runs hard to compare.
    pub cautions: Vec<String>,
}

/// A difference.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Better or worse.
    pub verdict: Verdict,
    /// The device.
    pub device: String,
    /// What is different, and by how much.
    pub what: String,
}

/// Whether a difference is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Something failed that did not, or got slower.
    Worse,
    /// Neither.
    Different,
    /// Something passes that did not, or got faster.
    Better,
}

/// The least relative difference that is one.
const LEAST: f64 = 0.10;
/// How many times the noise a difference must be.
const TIMES_NOISE: f64 = 3.0;

impl Comparison {
    /// Whether anything got worse.
    pub fn is_worse(&self) -> bool {
        self.changes
            .iter()
            .any(|change| change.verdict == Verdict::Worse)
    }
}

/// Compares two runs.
pub fn compare(before: &[Record], after: &[Record]) -> Comparison {
    let mut changes = Vec::new();
    let mut same = 0;
    for old in before {
        let fits =
            |new: &&Record| new.device() == old.device() && is_same(&old.finding, &new.finding);
        let change = match after.iter().find(fits) {
            Some(new) => {
                let change = difference(old, new);
                same += usize::from(change.is_none() && named(&old.finding).is_some());
                change
            }
            // A device that is not in the other run is said once.
            None if !after.iter().any(|new| new.device() == old.device()) => {
                let missing = (Verdict::Different, "it is not in the second run".into());
                is_device(&old.finding).then_some(missing)
            }
            None => named(&old.finding)
                .map(|what| (Verdict::Different, format!("{what}: not in the second run"))),
        };
        changes.extend(change.map(|(verdict, what)| Change {
            verdict,
            device: old.device().into(),
            what,
        }));
    }
    for new in after.iter().filter(|new| is_device(&new.finding)) {
        if !before.iter().any(|old| old.device() == new.device()) {
            changes.push(Change {
                verdict: Verdict::Different,
                device: new.device().into(),
                what: "it is not in the first run".into(),
            });
        }
    }
    // What fails now and was not looked at before: the bench's own checks are there only
    // where something came to them.
    for new in after {
        let fits =
            |old: &Record| old.device() == new.device() && is_same(&old.finding, &new.finding);
        if let Finding::Check {
            check,
            outcome: Outcome::Failed,
            reason,
            ..
        } = &new.finding
            && !before.iter().any(fits)
        {
            changes.push(Change {
                verdict: Verdict::Worse,
                device: new.device().into(),
                what: format!("{}: failed ({reason})", check.replace('_', " ")),
            });
        }
    }
    changes.sort_by_key(|change| change.verdict);
    Comparison {
        changes,
        same,
        cautions: cautions(before, after),
    }
}

fn is_device(finding: &Finding) -> bool {
    matches!(finding, Finding::Device { .. })
}

/// What a finding is about, where that is compared.
fn named(finding: &Finding) -> Option<String> {
    match finding {
        Finding::Check { check, .. } => Some(check.replace('_', " ")),
        Finding::Latency { of, keys, .. } => Some(latency_of(of, *keys)),
        Finding::Throughput { of, callers, .. } => Some(throughput_of(of, *callers)),
        Finding::Calls { of, unit, .. } => Some(format!("{of}, {unit} calls")),
        _ => None,
    }
}

fn latency_of(of: &Operation, keys: usize) -> String {
    format!("{of} with {keys} key{}", if keys == 1 { "" } else { "s" })
}

fn throughput_of(of: &Operation, callers: usize) -> String {
    format!(
        "{of}, {callers} caller{}",
        if callers == 1 { "" } else { "s" }
    )
}

/// Whether two findings are about the same.
fn is_same(one: &Finding, other: &Finding) -> bool {
    match (one, other) {
        (Finding::Device { .. }, Finding::Device { .. }) => true,
        (Finding::Check { check: a, .. }, Finding::Check { check: b, .. }) => a == b,
        (Finding::Latency { .. }, Finding::Latency { .. })
        | (Finding::Throughput { .. }, Finding::Throughput { .. })
        | (Finding::Calls { .. }, Finding::Calls { .. }) => named(one) == named(other),
        _ => false,
    }
}

fn difference(before: &Record, after: &Record) -> Option<(Verdict, String)> {
    match (&before.finding, &after.finding) {
        (Finding::Device { supports: a, .. }, Finding::Device { supports: b, .. }) => {
            let firmware = |record: &Record| {
                let subject = record.device.as_ref();
                subject.map_or(String::new(), |subject| subject.firmware.clone())
            };
            let (old, new) = (firmware(before), firmware(after));
            if old != new {
                return Some((Verdict::Different, format!("firmware: {old} → {new}")));
            }
            let more = b.iter().filter(|spec| !a.contains(spec)).count();
            let less = a.iter().filter(|spec| !b.contains(spec)).count();
            match (less, more) {
                (0, 0) => None,
                (0, more) => Some((Verdict::Better, format!("offers {more} more kinds of key"))),
                (less, _) => Some((Verdict::Worse, format!("offers {less} kinds of key less"))),
            }
        }
        (
            Finding::Check {
                check, outcome: a, ..
            },
            Finding::Check {
                outcome: b, reason, ..
            },
        ) => {
            let verdict = match (a, b) {
                (a, b) if a == b => return None,
                (_, Outcome::Failed) => Verdict::Worse,
                (Outcome::Failed, _) | (_, Outcome::Passed) => Verdict::Better,
                (_, Outcome::Skipped) => Verdict::Different,
            };
            let name = |outcome: &Outcome| format!("{outcome:?}").to_lowercase();
            let why = if reason.is_empty() {
                String::new()
            } else {
                format!(" ({reason})")
            };
            let check = check.replace('_', " ");
            Some((verdict, format!("{check}: {} → {}{why}", name(a), name(b))))
        }
        (
            Finding::Latency {
                of,
                keys,
                p50: a,
                tenths: x,
                ..
            },
            Finding::Latency {
                p50: b, tenths: y, ..
            },
        ) => {
            let by = beyond_noise(*a, *b, x, y)?;
            let verdict = if by > 0.0 {
                Verdict::Worse
            } else {
                Verdict::Better
            };
            let what = latency_of(of, *keys);
            let (a, b) = (crate::report::html::time(*a), crate::report::html::time(*b));
            Some((verdict, format!("{what}: {a} → {b} ({:+.0} %)", by * 100.0)))
        }
        (
            Finding::Throughput {
                of,
                callers,
                per_second: a,
                rounds: x,
            },
            Finding::Throughput {
                per_second: b,
                rounds: y,
                ..
            },
        ) => {
            let by = beyond_noise(*a, *b, x, y)?;
            let verdict = if by < 0.0 {
                Verdict::Worse
            } else {
                Verdict::Better
            };
            let what = throughput_of(of, *callers);
            Some((
                verdict,
                format!("{what}: {a:.0}/s → {b:.0}/s ({:+.0} %)", by * 100.0),
            ))
        }
        (Finding::Calls { of, unit, calls: a }, Finding::Calls { calls: b, .. }) => {
            let verdict = match a.total_cmp(b) {
                std::cmp::Ordering::Equal => return None,
                std::cmp::Ordering::Less => Verdict::Worse,
                std::cmp::Ordering::Greater => Verdict::Better,
            };
            Some((verdict, format!("{of}: {a} → {b} {unit} calls")))
        }
        _ => None,
    }
}

/// The relative change, if it is more than noise.
fn beyond_noise(a: f64, b: f64, x: &[f64], y: &[f64]) -> Option<f64> {
    if a <= 0.0 {
        return None;
    }
    let noise = noise(x).hypot(noise(y));
    let by = b / a - 1.0;
    (by.abs() > LEAST && by.abs() > TIMES_NOISE * noise).then_some(by)
}

/// How much values vary, relative to their median: the median absolute deviation, scaled
/// to be the standard deviation of what is normally distributed. One value tells nothing,
/// and counts as a third.
fn noise(values: &[f64]) -> f64 {
    let middle = median(values);
    if values.len() < 2 || middle <= 0.0 {
        return 1.0 / 3.0;
    }
    let deviations: Vec<f64> = values.iter().map(|value| (value - middle).abs()).collect();
    1.4826 * median(&deviations) / middle
}

fn cautions(before: &[Record], after: &[Record]) -> Vec<String> {
    let (Some(a), Some(b)) = (before.first(), after.first()) else {
        return Vec::new();
    };
    let mut cautions = Vec::new();
    if a.run.host != b.run.host {
        cautions.push(format!("other machines: {} / {}", a.run.host, b.run.host));
    }
    if a.run.build != b.run.build {
        cautions.push(format!("other builds: {} / {}", a.run.build, b.run.build));
    }
    if a.run.claviger != b.run.claviger {
        cautions.push(format!(
            "other versions: {} / {}",
            a.run.claviger, b.run.claviger
        ));
    }
    for (which, records) in [("first", before), ("second", after)] {
        let is_complete =
            |record: &Record| matches!(record.finding, Finding::End { complete: true, .. });
        if !records.iter().any(is_complete) {
            cautions.push(format!("the {which} run was interrupted"));
        }
    }
    cautions
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for caution in &self.cautions {
            writeln!(f, "caution: {caution}")?;
        }
        let mut last = None;
        for change in &self.changes {
            if last.replace(change.verdict) != Some(change.verdict) {
                writeln!(
                    f,
                    "{}",
                    match change.verdict {
                        Verdict::Worse => "worse:",
                        Verdict::Different => "different:",
                        Verdict::Better => "better:",
                    }
                )?;
            }
            writeln!(f, "  {}: {}", change.device, change.what)?;
        }
        writeln!(f, "the same, within noise: {}", self.same)?;
        f.write_str(match (self.is_worse(), self.changes.is_empty()) {
            (true, _) => "verdict: worse",
            (false, true) => "verdict: nothing changed",
            (false, false) => "verdict: nothing got worse",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Run, Standing, Subject, Verb};
    use claviger_token::Algorithm;

    fn record(finding: Finding) -> Record {
        Record {
            run: Run {
                schema: 1,
                run: "2026-01-01T00:00:00Z".into(),
                host: "h".into(),
                claviger: "0".into(),
                build: "release".into(),
            },
            device: Some(Subject {
                device: "d".into(),
                kind: "piv".into(),
                model: "m".into(),
                serial: "1".into(),
                firmware: "5".into(),
                standing: Standing::Listed,
            }),
            finding,
        }
    }

    fn latency(p50: f64, spread: f64) -> Record {
        record(Finding::Latency {
            of: Operation {
                operation: Verb::Sign,
                algorithm: Algorithm::P256,
            },
            keys: 1,
            samples: 100,
            mean: p50,
            p50,
            p95: p50,
            p99: p50,
            quantiles: vec![p50; 21],
            tenths: (0..10)
                .map(|i| p50 * (1.0 + spread * (f64::from(i) - 4.5)))
                .collect(),
        })
    }

    fn check(outcome: Outcome) -> Record {
        record(Finding::Check {
            check: "it_works".into(),
            capability: "keys".into(),
            outcome,
            reason: String::new(),
            seconds: 0.0,
        })
    }

    fn verdicts(before: Record, after: Record) -> Vec<Verdict> {
        let comparison = compare(&[before], &[after]);
        comparison
            .changes
            .iter()
            .map(|change| change.verdict)
            .collect()
    }

    #[test]
    fn a_change_is_one_only_where_it_is_more_than_noise() {
        assert_eq!(verdicts(latency(100.0, 0.0), latency(109.0, 0.0)), []);
        assert_eq!(
            verdicts(latency(100.0, 0.0), latency(120.0, 0.0)),
            [Verdict::Worse]
        );
        assert_eq!(
            verdicts(latency(100.0, 0.0), latency(80.0, 0.0)),
            [Verdict::Better]
        );
        // The same change among figures that vary by as much.
        assert_eq!(verdicts(latency(100.0, 0.05), latency(120.0, 0.05)), []);
        assert_eq!(
            verdicts(latency(100.0, 0.05), latency(300.0, 0.05)),
            [Verdict::Worse]
        );
    }

    #[test]
    fn a_check_that_fails_now_is_worse_whatever_it_was() {
        use Outcome::{Failed, Passed, Skipped};
        assert_eq!(verdicts(check(Passed), check(Failed)), [Verdict::Worse]);
        assert_eq!(verdicts(check(Skipped), check(Failed)), [Verdict::Worse]);
        assert_eq!(verdicts(check(Failed), check(Passed)), [Verdict::Better]);
        assert_eq!(
            verdicts(check(Passed), check(Skipped)),
            [Verdict::Different]
        );
        assert_eq!(verdicts(check(Passed), check(Passed)), []);
    }

    #[test]
    fn a_check_that_fails_and_was_not_there_before_is_worse() {
        for before in [&[latency(5.0, 0.0)][..], &[]] {
            let comparison = compare(before, &[check(Outcome::Failed)]);
            assert!(comparison.is_worse(), "{comparison}");
            assert!(!compare(before, &[check(Outcome::Passed)]).is_worse());
        }
    }

    #[test]
    fn a_device_that_is_in_one_run_only_is_said_once() {
        let device = record(Finding::Device {
            supports: Vec::new(),
            notes: Vec::new(),
        });
        let run = [device, latency(5.0, 0.0), check(Outcome::Passed)];
        for (before, after) in [(&run[..], &[][..]), (&[], &run)] {
            let comparison = compare(before, after);
            assert_eq!((comparison.changes.len(), comparison.same), (1, 0));
        }
    }

    #[test]
    fn a_run_compared_with_itself_has_not_changed() {
        let run = [latency(5.0, 0.3), check(Outcome::Failed)];
        let comparison = compare(&run, &run);
        assert!(comparison.changes.is_empty() && !comparison.is_worse());
        assert_eq!(comparison.same, 2);
        // Neither says that it came to its end.
        assert_eq!(comparison.cautions.len(), 2);
        assert!(comparison.to_string().ends_with("nothing changed"));
    }
}
