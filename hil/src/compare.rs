//! What changed between two runs, with a verdict that accounts for noise.
//!
//! Each figure is measured in rounds, and each round measures all figures of the device. A figure
//! counts as changed if it differs by more than a tenth *and* all rounds of one run lie above all
//! rounds of the other, by more than the machine itself changed. If a run has fewer than five
//! rounds, there is no verdict. No single run can show a change that affects none of this, such as
//! another core.

use std::fmt;

use claviger_token::KeySpec;

use crate::measure::{FEWEST_ROUNDS, median};
use crate::results::{Finding, Operation, Outcome, Record};

/// What changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// One line for each difference, the bad ones first.
    pub changes: Vec<Change>,
    /// How many things were compared and found to be the same, within noise.
    pub same: usize,
    /// How many figures have too few rounds to tell.
    pub too_few: usize,
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
/// The least difference of times that is one, in microseconds: clocks tell no less.
const LEAST_TIME: f64 = 5.0;

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
    let (mut same, mut too_few) = (0, 0);
    for old in before {
        let fits =
            |new: &&Record| new.device() == old.device() && is_same(&old.finding, &new.finding);
        let change = match after.iter().find(fits) {
            Some(new) if !are_enough(&old.finding) || !are_enough(&new.finding) => {
                too_few += 1;
                None
            }
            Some(new) => {
                let noise = Noise {
                    before: &of_device(before, old.device()),
                    after: &of_device(after, new.device()),
                };
                let change = difference(old, new, &noise);
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
        too_few,
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

fn of_device<'a>(records: &'a [Record], device: &str) -> Vec<&'a Finding> {
    let records = records.iter().filter(|record| record.device() == device);
    records.map(|record| &record.finding).collect()
}

/// Whether a figure has as many rounds as it takes to say how much it varies.
fn are_enough(finding: &Finding) -> bool {
    match finding {
        Finding::Latency { rounds, .. } | Finding::Throughput { rounds, .. } => {
            rounds.len() >= FEWEST_ROUNDS
        }
        _ => true,
    }
}

fn difference(before: &Record, after: &Record, noise: &Noise<'_>) -> Option<(Verdict, String)> {
    match (&before.finding, &after.finding) {
        (
            Finding::Device {
                makes: a, uses: x, ..
            },
            Finding::Device {
                makes: b, uses: y, ..
            },
        ) => {
            let firmware = |record: &Record| {
                let subject = record.device.as_ref();
                subject.map_or(String::new(), |subject| subject.firmware.clone())
            };
            let (old, new) = (firmware(before), firmware(after));
            if old != new {
                return Some((Verdict::Different, format!("firmware: {old} → {new}")));
            }
            // Reports of the first version do not say what a device works with.
            let is_said = !x.is_empty() && !y.is_empty();
            kinds_of_key("makes", a, b)
                .or_else(|| is_said.then(|| kinds_of_key("works with", x, y)).flatten())
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
                rounds: x,
                ..
            },
            Finding::Latency {
                p50: b, rounds: y, ..
            },
        ) => {
            if (a - b).abs() < LEAST_TIME {
                return None;
            }
            let by = noise.exceeded((*a, *b), (x, y), (*keys > 1).then_some(of))?;
            let verdict = if by > 0.0 {
                Verdict::Worse
            } else {
                Verdict::Better
            };
            let what = latency_of(of, *keys);
            let (a, b) = (
                crate::report::units::time(*a),
                crate::report::units::time(*b),
            );
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
            let by = noise.exceeded((*a, *b), (x, y), None)?;
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

/// A difference between the kinds of key that a device makes, or works with.
fn kinds_of_key(does: &str, before: &[KeySpec], after: &[KeySpec]) -> Option<(Verdict, String)> {
    let more = after.iter().filter(|spec| !before.contains(spec)).count();
    let less = before.iter().filter(|spec| !after.contains(spec)).count();
    match (less, more) {
        (0, 0) => None,
        (0, more) => Some((Verdict::Better, format!("{does} {more} more kinds of key"))),
        (less, _) => Some((Verdict::Worse, format!("{does} {less} kinds of key less"))),
    }
}

/// What else the runs say of a device, which tells how much its figures vary.
struct Noise<'a> {
    before: &'a [&'a Finding],
    after: &'a [&'a Finding],
}

impl Noise<'_> {
    /// The relative change from `a` to `b`, if it is more than noise. `x` and `y` are
    /// their rounds. With several keys the rounds follow each other closely, and vary at
    /// least as much as those with one key, of the same operation.
    fn exceeded(
        &self,
        (a, b): (f64, f64),
        (x, y): (&[f64], &[f64]),
        one_key: Option<&Operation>,
    ) -> Option<f64> {
        if a <= 0.0 || b <= 0.0 || (b / a - 1.0).abs() <= LEAST {
            return None;
        }
        let spread = |rounds, findings| {
            let own = Spread::of(rounds);
            let with_one = one_key.and_then(|of| rounds_of(findings, of));
            with_one.map_or(own, |rounds| own.or(Spread::of(rounds)))
        };
        let (x, y) = (spread(x, self.before), spread(y, self.after));
        let apart = match b > a {
            true => x.up + y.down,
            false => x.down + y.up,
        };
        let noise = apart + machine(self.before, self.after).abs();
        ((b / a).ln().abs() > noise).then_some(b / a - 1.0)
    }
}

/// How far rounds lie from their median, as logarithms.
#[derive(Clone, Copy)]
struct Spread {
    up: f64,
    down: f64,
}

impl Spread {
    fn of(rounds: &[f64]) -> Spread {
        // Below a tenth of a microsecond there is nothing.
        let log = |value: f64| value.max(0.1).ln();
        let middle = log(median(rounds));
        let furthest = |far: fn(f64, f64) -> f64| rounds.iter().copied().map(log).fold(middle, far);
        Spread {
            up: furthest(f64::max) - middle,
            down: middle - furthest(f64::min),
        }
    }

    fn or(self, other: Spread) -> Spread {
        Spread {
            up: self.up.max(other.up),
            down: self.down.max(other.down),
        }
    }
}

/// The rounds of an operation with one key.
fn rounds_of<'a>(findings: &[&'a Finding], wanted: &Operation) -> Option<&'a [f64]> {
    findings.iter().find_map(|finding| match finding {
        Finding::Latency {
            of,
            keys: 1,
            rounds,
            ..
        } if of == wanted => Some(&rounds[..]),
        _ => None,
    })
}

/// How much more the machine itself did in the second run, as a logarithm.
fn machine(before: &[&Finding], after: &[&Finding]) -> f64 {
    let speed = |findings: &[&Finding]| {
        let rounds = findings.iter().filter_map(|finding| match finding {
            Finding::Machine { rounds } => Some(&rounds[..]),
            _ => None,
        });
        median(&rounds.collect::<Vec<_>>().concat())
    };
    match (speed(before), speed(after)) {
        (a, b) if a > 0.0 && b > 0.0 => (b / a).ln(),
        _ => 0.0,
    }
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
    for device in before.iter().filter(|record| is_device(&record.finding)) {
        let device = device.device();
        let by = machine(&of_device(before, device), &of_device(after, device));
        let percent = (by.exp() - 1.0) * 100.0;
        if by.abs() > LEAST.ln_1p() {
            cautions.push(format!(
                "{device}: the machine itself did {percent:+.0} % in the second run: other \
                 programs were at work, and what they changed is not told"
            ));
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
        if self.too_few > 0 {
            writeln!(f, "measured too few times to tell: {}", self.too_few)?;
        }
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
        let rounds = (0..10).map(|i| p50 * (1.0 + spread * (f64::from(i) - 4.5)));
        measured(1, p50, rounds.collect())
    }

    fn measured(keys: usize, p50: f64, rounds: Vec<f64>) -> Record {
        record(Finding::Latency {
            of: Operation {
                operation: Verb::Sign,
                algorithm: Algorithm::P256,
            },
            keys,
            samples: 100,
            mean: p50,
            p50,
            p95: p50,
            p99: p50,
            quantiles: vec![p50; 21],
            rounds,
        })
    }

    fn machine(speed: f64) -> Record {
        record(Finding::Machine {
            rounds: vec![speed; 10],
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
        // Less than a clock tells.
        assert_eq!(verdicts(latency(2.0, 0.0), latency(4.0, 0.0)), []);
    }

    #[test]
    fn few_rounds_tell_nothing() {
        for few in [vec![], vec![200.0], vec![200.0; FEWEST_ROUNDS - 1]] {
            let before = [latency(100.0, 0.0)];
            let after = [measured(1, 200.0, few)];
            let comparison = compare(&before, &after);
            assert!(comparison.changes.is_empty(), "{comparison}");
            assert_eq!((comparison.same, comparison.too_few), (0, 1));
            assert!(!compare(&after, &before).is_worse());
        }
        let enough = measured(1, 200.0, vec![200.0; FEWEST_ROUNDS]);
        assert_eq!(verdicts(latency(100.0, 0.0), enough), [Verdict::Worse]);
    }

    #[test]
    fn what_the_machine_itself_did_less_is_not_told_of_the_device() {
        let before = [machine(1000.0), latency(100.0, 0.01)];
        let after = |speed, p50| [machine(speed), latency(p50, 0.01)];
        assert!(compare(&before, &after(1000.0, 200.0)).is_worse());
        assert!(!compare(&before, &after(450.0, 200.0)).is_worse());
        assert!(compare(&before, &after(450.0, 400.0)).is_worse());
    }

    #[test]
    fn with_several_keys_a_figure_varies_as_much_as_with_one() {
        let several = |p50| measured(10, p50, vec![p50; 10]);
        let run = |one, p50| [one, several(p50)];
        let steady = || latency(100.0, 0.0);
        assert!(compare(&run(steady(), 100.0), &run(steady(), 150.0)).is_worse());
        let shaky = || latency(100.0, 0.1);
        assert!(!compare(&run(shaky(), 100.0), &run(shaky(), 150.0)).is_worse());
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

    fn device(makes: &[KeySpec], uses: &[KeySpec]) -> Record {
        record(Finding::Device {
            makes: makes.to_vec(),
            uses: uses.to_vec(),
            notes: Vec::new(),
        })
    }

    #[test]
    fn kinds_of_key_that_a_device_no_longer_makes_or_works_with_are_worse() {
        let (p256, ed25519) = (
            KeySpec::sign(Algorithm::P256),
            KeySpec::sign(Algorithm::Ed25519),
        );
        let both = [p256, ed25519];
        let less = verdicts(device(&both, &both), device(&[p256], &both));
        assert_eq!(less, [Verdict::Worse]);
        let less = verdicts(device(&[p256], &both), device(&[p256], &[p256]));
        assert_eq!(less, [Verdict::Worse]);
        let more = verdicts(device(&[p256], &[p256]), device(&[p256], &both));
        assert_eq!(more, [Verdict::Better]);
        // A report that does not say what it works with says nothing of it.
        assert_eq!(verdicts(device(&both, &[]), device(&both, &both)), []);
    }

    #[test]
    fn a_device_that_is_in_one_run_only_is_said_once() {
        let device = device(&[], &[]);
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
