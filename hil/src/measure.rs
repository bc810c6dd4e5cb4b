//! How fast a device is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use claviger_conformance::Subject as _;
use claviger_token::possession::Challenge;
use claviger_token::{
    Call, Decryptor, Error, KeyRef, KeySpec, KeyUse, NewKey, PublicKey, Signer, Token, TokenInfo,
    unfinished_mark,
};

use crate::bench::Bench;
use crate::error::sentence;
use crate::machine;
use crate::results::{Finding, Operation, Verb};
use crate::screen::Progress;

/// How long is measured.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// For each figure, in seconds.
    pub each: f64,
    /// For endurance, in seconds; none if zero.
    pub endurance: f64,
}

/// How many callers there are at once.
pub(crate) const CALLERS: [usize; 3] = [1, 2, 8];

/// Every figure of a device is measured in so many rounds, each of which measures them all:
/// so the rounds of one figure lie apart, and show how much it varies while nothing changes.
const ROUNDS: usize = 10;
/// A slow device has fewer, but these. Fewer tell nothing about how much a figure varies.
pub(crate) const FEWEST_ROUNDS: usize = 5;
/// Fewer measurements have no ninety-fifth percentile to speak of.
const FEWEST: usize = 20;
/// More show nothing more.
const MOST: usize = 200_000;
/// So many of each where a person approves each.
const APPROVED: usize = 3;
/// The message that is signed.
const MESSAGE: &[u8] = b"claviger-hil";

/// Measures everything, and hands over each figure as it is found.
///
/// # Errors
/// What the caller makes of a figure.
pub(crate) fn measure<E>(
    bench: &Bench,
    info: &TokenInfo,
    times: Times,
    (progress, step): (&Progress, u64),
    found: &mut dyn FnMut(Finding) -> Result<(), E>,
) -> Result<(), E> {
    bench.renew();
    let token = match bench.driver().open(&bench.backend, &bench.call()) {
        Ok(token) => token,
        Err(error) => return found(not_measured("everything", &error)),
    };
    let meter = Meter {
        bench,
        token,
        times,
    };
    // Of each kind one key is there at a time, unless that is too many.
    let at_once = bench.room().unwrap_or(usize::MAX);
    let at_once = at_once.min(bench.max_keys.unwrap_or(usize::MAX)).max(1);
    for specs in info.makes.chunks(at_once) {
        meter.kinds(specs, (progress, step), found)?;
        if bench.guard.interrupt.came() || !bench.is_there() {
            return Ok(());
        }
    }
    if bench.is_approved {
        let why = "each operation has to be approved by a person";
        for what in ["throughput", "with several keys", "endurance"] {
            found(Finding::NotMeasured {
                what: what.into(),
                reason: why.into(),
            })?;
        }
        return Ok(());
    }
    // The first that signs: P-256, where there is one.
    let Some(&spec) = info.makes.iter().find(|spec| spec.usage == KeyUse::Sign) else {
        return Ok(());
    };
    progress.doing(format_args!("{}: with several keys", bench.guard.name));
    if let Err(error) = meter.with_several(spec, found)? {
        found(not_measured("with several keys", &error))?;
    }
    if times.endurance > 0.0 && !bench.guard.interrupt.came() {
        progress.doing(format_args!("{}: endurance", bench.guard.name));
        if let Err(error) = meter.endurance(spec, found)? {
            found(not_measured("endurance", &error))?;
        }
    }
    progress.advance(step);
    Ok(())
}

fn not_measured(what: &str, error: &Error) -> Finding {
    Finding::NotMeasured {
        what: what.into(),
        reason: sentence(error),
    }
}

struct Meter<'a> {
    bench: &'a Bench,
    token: Arc<dyn Token>,
    times: Times,
}

/// A key of the bench, deleted when it is no longer needed.
struct Made<'a> {
    token: &'a dyn Token,
    call: Call,
    key: KeyRef,
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.token.delete(&self.key, &self.call) {
            // It stays in the journal, and is named at the end.
            crate::screen::line(format_args!(
                "not deleted: the key in slot {}: {}",
                self.key.slot,
                sentence(&error)
            ));
        }
    }
}

/// One thing to be done again and again.
enum Work {
    Sign(Arc<dyn Signer>),
    Open(Arc<dyn Decryptor>, Box<Challenge>),
}

impl Work {
    fn once(&self) -> Result<(), Error> {
        let call = Call::unlimited();
        match self {
            Work::Sign(signer) => signer.sign(MESSAGE, &call).map(drop),
            Work::Open(decryptor, challenge) => {
                decryptor.unwrap(challenge.request(), &call).map(drop)
            }
        }
    }
}

/// What is measured of a kind of key.
struct Kind<'a> {
    spec: KeySpec,
    /// The key of this round, and what is done with it.
    at_work: Option<(Work, Made<'a>)>,
    /// Round by round, how long it took to make keys.
    generated: Vec<Vec<Duration>>,
    /// What the last one asked of the device.
    generation_calls: f64,
    /// What an operation asks of it.
    calls: Option<f64>,
    /// Round by round, how long operations took.
    times: Vec<Vec<Duration>>,
    /// Round by round, how many were done in a second, by each of [`CALLERS`].
    rates: [Vec<f64>; CALLERS.len()],
    failed: Option<Error>,
}

impl Kind<'_> {
    fn of(spec: KeySpec) -> Self {
        Kind {
            spec,
            at_work: None,
            generated: Vec::new(),
            generation_calls: 0.0,
            calls: None,
            times: Vec::new(),
            rates: CALLERS.map(|_| Vec::new()),
            failed: None,
        }
    }

    /// What was found, complete or not.
    fn findings(&self, info: &TokenInfo, unit: Option<&str>) -> Vec<Finding> {
        let of = |operation| Operation {
            operation,
            algorithm: self.spec.algorithm,
        };
        let used = of(match self.spec.usage {
            KeyUse::Sign => Verb::Sign,
            KeyUse::Decrypt => Verb::Decrypt,
        });
        let calls = |of, calls| {
            let unit = unit?.into();
            Some(Finding::Calls { of, unit, calls })
        };
        let mut findings = Vec::new();
        if tells_generation(info, self.spec) && !self.generated.is_empty() {
            findings.push(latency(of(Verb::Generate), 1, &self.generated));
            findings.extend(calls(of(Verb::Generate), self.generation_calls));
        }
        findings.extend(self.calls.and_then(|found| calls(used, found)));
        if !self.times.is_empty() {
            findings.push(latency(used, 1, &self.times));
        }
        for (callers, rounds) in CALLERS.into_iter().zip(&self.rates) {
            if !rounds.is_empty() {
                findings.push(Finding::Throughput {
                    of: used,
                    callers,
                    per_second: median(rounds),
                    rounds: rounds.clone(),
                });
            }
        }
        findings
    }
}

impl<'a> Meter<'a> {
    /// A new key, how long it took to make it, and what it asked of the device: without the
    /// search for a free place, unless that is what derives the key.
    fn make(&self, spec: KeySpec) -> Result<(Made<'_>, Duration, f64), Error> {
        let call = self.bench.call();
        let commands = || self.bench.guard.tap.commands();
        let (mut start, mut before) = (Instant::now(), commands());
        let slot = self.token.free_slots(&[spec], &[], &call)?;
        let slot = slot.into_iter().next().ok_or_else(|| Error::TokenFull {
            token: self.token.info().id.clone(),
        })?;
        if !self.token.info().derives {
            (start, before) = (Instant::now(), commands());
        }
        let mark = unfinished_mark();
        let new = NewKey {
            slot: &slot,
            spec,
            mark: &mark,
        };
        let key = self.token.generate(&new, &call)?;
        let took = start.elapsed();
        let calls = commands() - before;
        let made = Made {
            token: &*self.token,
            call,
            key: KeyRef {
                slot,
                public_key: key.public_key,
            },
        };
        Ok((made, took, calls as f64))
    }

    fn work(&self, made: &Made<'_>, usage: KeyUse) -> Result<Work, Error> {
        let work = match usage {
            KeyUse::Sign => Work::Sign(self.token.signer(&made.key, &Call::unlimited())?),
            KeyUse::Decrypt => {
                let challenge = challenge(self.token.info(), &made.key.public_key)?;
                Work::Open(
                    self.token.decryptor(&made.key, &Call::unlimited())?,
                    Box::new(challenge),
                )
            }
        };
        // What is done only once is not measured.
        work.once()?;
        Ok(work)
    }

    /// Everything about some kinds of key, in rounds.
    fn kinds<E>(
        &self,
        specs: &[KeySpec],
        (progress, step): (&Progress, u64),
        found: &mut dyn FnMut(Finding) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut kinds: Vec<Kind<'_>> = specs.iter().copied().map(Kind::of).collect();
        let rounds = if self.bench.is_approved { 1 } else { ROUNDS };
        let steps = step * specs.len() as u64;
        // Generating, one after the other, and each of the callers.
        let figures = (specs.len() * (2 + CALLERS.len())) as f64;
        let (start, mut shown) = (Instant::now(), 0);
        let mut machine = Vec::new();
        'rounds: for round in 1..=rounds {
            let mut speeds = Vec::new();
            for kind in &mut kinds {
                speeds.push(machine::speed());
                progress.doing(format_args!(
                    "{}: {}, round {round} of {rounds}",
                    self.bench.guard.name, kind.spec
                ));
                if kind.failed.is_none()
                    && let Err(error) = self.round_of(kind)
                {
                    kind.at_work = None;
                    kind.failed = Some(error);
                    if self.bench.guard.interrupt.came() || !self.bench.is_there() {
                        break 'rounds;
                    }
                }
            }
            machine.push(speeds.iter().sum::<f64>() / speeds.len().max(1) as f64);
            let done = steps * round as u64 / rounds as u64;
            progress.advance(done - shown);
            shown = done;
            let is_slow = start.elapsed().as_secs_f64() > 2.0 * figures * self.times.each;
            if is_slow && round >= FEWEST_ROUNDS {
                break;
            }
        }
        progress.advance(steps - shown);
        found(Finding::Machine {
            rounds: machine.into_iter().map(f64::round).collect(),
        })?;
        let unit = self.bench.counts_commands.then_some("apdu");
        for kind in &kinds {
            match &kind.failed {
                Some(error) if !self.bench.guard.interrupt.came() => {
                    found(not_measured(&kind.spec.to_string(), error))?;
                }
                _ => {
                    for finding in kind.findings(self.token.info(), unit) {
                        found(finding)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// One round of everything about a kind of key.
    fn round_of<'m>(&'m self, kind: &mut Kind<'m>) -> Result<(), Error> {
        let spent: Duration = kind.generated.iter().flatten().sum();
        if kind.at_work.is_none()
            || (!self.bench.is_approved && spent.as_secs_f64() < self.times.each)
        {
            let mut times = Vec::new();
            let made = loop {
                // Its place may be the only one.
                kind.at_work = None;
                let (made, took, calls) = self.make(kind.spec)?;
                times.push(took);
                kind.generation_calls = calls;
                let is_enough = times.len() >= FEWEST / ROUNDS || took > self.slice();
                if is_enough || self.bench.is_approved {
                    break made;
                }
            };
            kind.generated.push(times);
            kind.at_work = Some((self.work(&made, kind.spec.usage)?, made));
        }
        let Some((work, _)) = &kind.at_work else {
            return Ok(());
        };
        if self.bench.counts_commands && kind.calls.is_none() {
            const TIMES: u32 = 3;
            let before = self.bench.guard.tap.commands();
            for _ in 0..TIMES {
                work.once()?;
            }
            let calls = (self.bench.guard.tap.commands() - before) as f64;
            kind.calls = Some(rounded(calls / f64::from(TIMES)));
        }
        kind.times.push(self.time(work)?);
        if !self.bench.is_approved {
            for (callers, rates) in CALLERS.into_iter().zip(&mut kind.rates) {
                rates.push(self.rate(work, callers)?);
            }
        }
        Ok(())
    }

    /// How long a figure is measured in one round.
    fn slice(&self) -> Duration {
        Duration::from_secs_f64(self.times.each / ROUNDS as f64)
    }

    /// How long each took in one round, one after the other.
    fn time(&self, work: &Work) -> Result<Vec<Duration>, Error> {
        let slice = self.slice();
        let start = Instant::now();
        let mut times = Vec::new();
        loop {
            let one = Instant::now();
            work.once()?;
            times.push(one.elapsed());
            let elapsed = start.elapsed();
            let enough = match self.bench.is_approved {
                true => times.len() >= APPROVED,
                // A slow device gets ten times as long.
                false => {
                    elapsed > slice && (times.len() >= FEWEST / ROUNDS || elapsed > slice * 10)
                }
            };
            if enough || times.len() >= MOST / ROUNDS {
                return Ok(times);
            }
        }
    }

    /// Operations per second of several threads at once.
    fn rate(&self, work: &Work, callers: usize) -> Result<f64, Error> {
        let (done, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let start = Instant::now();
        let end = start + self.slice();
        let caller = || -> Result<(), Error> {
            loop {
                // Each does one at least.
                if let Err(error) = work.once() {
                    stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
                done.fetch_add(1, Ordering::Relaxed);
                if stop.load(Ordering::Relaxed) || Instant::now() > end {
                    return Ok(());
                }
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..callers).map(|_| scope.spawn(caller)).collect();
            for thread in threads {
                // A driver that panics fails the run's own check of that.
                if let Ok(outcome) = thread.join() {
                    outcome?;
                }
            }
            Ok(())
        })?;
        let rate = done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
        // A slow device does less than one.
        Ok((rate * 1000.0).round() / 1000.0)
    }

    /// Signatures with ten keys on the device, and with as many as it holds.
    fn with_several<E>(
        &self,
        spec: KeySpec,
        found: &mut dyn FnMut(Finding) -> Result<(), E>,
    ) -> Result<Result<(), Error>, E> {
        let room = self.bench.room().ok();
        let most = match (room, self.bench.max_keys) {
            (Some(room), Some(most)) => room.min(most),
            (Some(most), None) | (None, Some(most)) => most,
            (None, None) => 10,
        };
        let of = Operation {
            operation: Verb::Sign,
            algorithm: spec.algorithm,
        };
        let mut keys: Vec<Made<'_>> = Vec::new();
        let mut goals = vec![10.min(most), most];
        goals.dedup();
        for goal in goals {
            let before = keys.len();
            let mut stopped = None;
            while keys.len() < goal && stopped.is_none() {
                match self.make(spec) {
                    Ok((made, ..)) => keys.push(made),
                    Err(error) => stopped = Some(error),
                }
            }
            let measured = |made: &Made<'_>| -> Result<Finding, Error> {
                let work = self.work(made, KeyUse::Sign)?;
                let times: Result<Vec<_>, _> = (0..ROUNDS).map(|_| self.time(&work)).collect();
                Ok(latency(of, keys.len(), &times?))
            };
            // Where it was full before, as many as it holds.
            if let Some(made) = keys.last().filter(|_| keys.len() > before) {
                match measured(made) {
                    Ok(finding) => found(finding)?,
                    Err(error) => return Ok(Err(error)),
                }
            }
            match stopped {
                None => {}
                Some(Error::TokenFull { .. } | Error::OnlyNamedSlots { .. })
                    if !keys.is_empty() =>
                {
                    break;
                }
                Some(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(()))
    }

    /// Signs for a long time; an error is counted, and ends nothing unless the device is
    /// gone.
    fn endurance<E>(
        &self,
        spec: KeySpec,
        found: &mut dyn FnMut(Finding) -> Result<(), E>,
    ) -> Result<Result<(), Error>, E> {
        let prepared = || -> Result<_, Error> {
            let (made, ..) = self.make(spec)?;
            let work = self.work(&made, KeyUse::Sign)?;
            Ok((work, made))
        };
        let (work, _made) = match prepared() {
            Ok(prepared) => prepared,
            Err(error) => return Ok(Err(error)),
        };
        let mut parts: Vec<Part> = vec![Part::default(); PARTS];
        let mut errors: Vec<(String, usize)> = Vec::new();
        let (start, whole) = (Instant::now(), self.times.endurance);
        let mut operations = 0;
        loop {
            let begun = start.elapsed().as_secs_f64();
            if begun >= whole || self.bench.guard.interrupt.came() {
                break;
            }
            let one = Instant::now();
            match work.once() {
                Ok(()) => {
                    operations += 1;
                    let part = (begun / whole * PARTS as f64) as usize;
                    if let Some(part) = parts.get_mut(part) {
                        part.add(micros(one.elapsed()));
                    }
                }
                Err(Error::Cancelled) => break,
                Err(error) => {
                    count(&mut errors, error.to_string());
                    if !self.bench.is_there() {
                        count(&mut errors, "the device is gone".into());
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
        parts.retain(|part| !part.kept.is_empty());
        found(Finding::Endurance {
            of: Operation {
                operation: Verb::Sign,
                algorithm: spec.algorithm,
            },
            seconds: rounded(start.elapsed().as_secs_f64()),
            operations,
            errors,
            medians: parts
                .iter()
                .map(|part| rounded(median(&part.kept)))
                .collect(),
            slowest: parts.iter().map(|part| rounded(part.slowest)).collect(),
        })?;
        Ok(Ok(()))
    }
}

/// In so many parts endurance is told.
const PARTS: usize = 60;

/// A part of a long time. It keeps as many of its values as a median needs.
#[derive(Clone, Default)]
struct Part {
    kept: Vec<f64>,
    /// One of so many is kept; a power of two.
    every: usize,
    seen: usize,
    slowest: f64,
}

impl Part {
    const MOST: usize = 10_000;

    fn add(&mut self, value: f64) {
        self.every = self.every.max(1);
        if self.seen.is_multiple_of(self.every) {
            self.kept.push(value);
        }
        self.seen += 1;
        self.slowest = self.slowest.max(value);
        if self.kept.len() >= Self::MOST {
            let mut index = 0;
            self.kept.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.every *= 2;
        }
    }
}

/// Counts an error; after some different ones they are all the same.
fn count(errors: &mut Vec<(String, usize)>, text: String) {
    const DIFFERENT: usize = 20;
    let text = match errors.iter().any(|(known, _)| *known == text) {
        false if errors.len() >= DIFFERENT => "others".into(),
        _ => text,
    };
    match errors.iter_mut().find(|(known, _)| *known == text) {
        Some((_, count)) => *count += 1,
        None => errors.push((text, 1)),
    }
}

/// Whether making a key of this kind is told: one that decrypts is made as one that signs
/// is, and told once.
pub(crate) fn tells_generation(info: &TokenInfo, spec: KeySpec) -> bool {
    let signs = KeySpec::sign(spec.algorithm);
    spec == signs || !info.makes.contains(&signs)
}

/// Something for the key to open.
pub(crate) fn challenge(token: &TokenInfo, key: &PublicKey) -> Result<Challenge, Error> {
    Challenge::new(key).ok_or_else(|| Error::NoPossession {
        token: token.id.clone(),
        key: key.fingerprint().to_string(),
        reason: "a key of this kind does not decrypt".into(),
    })
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The finding that the times of some rounds make.
fn latency(of: Operation, keys: usize, rounds: &[Vec<Duration>]) -> Finding {
    let micros = |times: &Vec<Duration>| times.iter().copied().map(micros).collect();
    let rounds: Vec<Vec<f64>> = rounds.iter().map(micros).collect();
    let times = rounds.concat();
    let mean = times.iter().sum::<f64>() / times.len().max(1) as f64;
    let mut sorted = times;
    sorted.sort_by(f64::total_cmp);
    let at = |part: f64| rounded(quantile(&sorted, part));
    Finding::Latency {
        of,
        keys,
        samples: sorted.len(),
        mean: rounded(mean),
        p50: at(0.50),
        p95: at(0.95),
        p99: at(0.99),
        quantiles: (0..=20)
            .map(|twentieth| at(f64::from(twentieth) / 20.0))
            .collect(),
        rounds: rounds.iter().map(|times| rounded(median(times))).collect(),
    }
}

/// A tenth, of a microsecond say, is as much as there is to be known.
fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// The value that this part of them does not exceed (nearest rank); zero of none.
pub(crate) fn quantile(sorted: &[f64], part: f64) -> f64 {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// The middle one, or the lower of the two in the middle; zero of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile(&sorted, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        for (part, expected) in [
            (0.0, 1.0),
            (0.5, 50.0),
            (0.95, 95.0),
            (0.99, 99.0),
            (1.0, 100.0),
        ] {
            assert_eq!(quantile(&values, part), expected);
        }
        assert_eq!(quantile(&[], 0.5), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn a_latency_is_of_all_rounds_and_tells_each() {
        let of = Operation {
            operation: Verb::Sign,
            algorithm: claviger_token::Algorithm::P256,
        };
        let round = |from: u64| (from..from + 9).map(Duration::from_micros).collect();
        let times: Vec<Vec<Duration>> = (0..10).map(|n| round(n * 10 + 1)).collect();
        let Finding::Latency {
            rounds,
            samples,
            quantiles,
            p50,
            ..
        } = latency(of, 1, &times)
        else {
            panic!("not a latency");
        };
        assert_eq!((samples, rounds.len(), quantiles.len()), (90, 10, 21));
        assert_eq!(rounds[..2], [5.0, 15.0]);
        assert_eq!(p50, 49.0);
    }

    #[test]
    fn a_long_time_keeps_a_bounded_number_of_values() {
        let mut part = Part::default();
        for value in 0..100_000 {
            part.add(f64::from(value));
        }
        assert!(part.kept.len() < Part::MOST && part.kept.len() > Part::MOST / 4);
        assert!((median(&part.kept) - 50_000.0).abs() < 100.0);
        assert_eq!((part.slowest, part.seen), (99_999.0, 100_000));
        let mut errors = Vec::new();
        for number in 0..100 {
            count(&mut errors, format!("error {number}"));
        }
        assert_eq!(errors.len(), 21);
        assert_eq!(errors.last(), Some(&("others".to_owned(), 80)));
    }
}
