//! How fast a device is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use claviger_token::conformance::{Challenge, Subject as _};
use claviger_token::{Call, Decryptor, Error, KeyRef, KeySpec, KeyUse, Signer, Token, TokenInfo};

use crate::bench::Bench;
use crate::error::sentence;
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
    let token = match bench
        .driver()
        .open(&bench.backend, &bench.access, &Call::unlimited())
    {
        Ok(token) => token,
        Err(error) => return found(not_measured("everything", &error)),
    };
    let meter = Meter {
        bench,
        token,
        times,
    };
    for &spec in &info.supports {
        progress.doing(format_args!("{}: {spec}", bench.guard.name));
        if let Err(error) = meter.kind(spec, &mut |finding| found(finding))? {
            found(not_measured(&spec.to_string(), &error))?;
        }
        progress.advance(step);
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
    let Some(&spec) = info.supports.iter().find(|spec| spec.usage == KeyUse::Sign) else {
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
    key: KeyRef,
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.token.delete(&self.key.slot, &Call::unlimited()) {
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

impl Meter<'_> {
    fn make(&self, spec: KeySpec) -> Result<Made<'_>, Error> {
        let call = Call::unlimited();
        let slot = self.token.free_slots(&[spec], &[], &call)?;
        let slot = slot.into_iter().next().ok_or_else(|| Error::TokenFull {
            token: self.token.info().id.clone(),
        })?;
        let key = self.token.generate(&slot, spec, "claviger-hil", &call)?;
        Ok(Made {
            token: &*self.token,
            key: KeyRef {
                slot,
                public_key: key.public_key,
            },
        })
    }

    fn work(&self, made: &Made<'_>, usage: KeyUse) -> Result<Work, Error> {
        Ok(match usage {
            KeyUse::Sign => Work::Sign(self.token.signer(&made.key)?),
            KeyUse::Decrypt => {
                let challenge = Challenge::new(&made.key.public_key);
                Work::Open(self.token.decryptor(&made.key)?, Box::new(challenge))
            }
        })
    }

    /// Everything about one kind of key. The outer error is the caller's, the inner the
    /// device's.
    fn kind<E>(
        &self,
        spec: KeySpec,
        found: &mut dyn FnMut(Finding) -> Result<(), E>,
    ) -> Result<Result<(), Error>, E> {
        let operation = match spec.usage {
            KeyUse::Sign => Verb::Sign,
            KeyUse::Decrypt => Verb::Decrypt,
        };
        let of = |operation| Operation {
            operation,
            algorithm: spec.algorithm,
        };
        let unit = || self.unit();
        let measured = || -> Result<Vec<Finding>, Error> {
            let mut findings = Vec::new();
            let (made, generated, calls) = self.generate(spec)?;
            if tells_generation(self.token.info(), spec) {
                findings.push(latency(of(Verb::Generate), 1, &generated));
                findings.extend(calls.map(|calls| Finding::Calls {
                    of: of(Verb::Generate),
                    unit: unit(),
                    calls,
                }));
            }
            let work = self.work(&made, spec.usage)?;
            // What is done only once is not measured.
            work.once()?;
            if self.bench.counts_commands {
                const TIMES: u32 = 3;
                let before = self.bench.guard.tap.commands();
                for _ in 0..TIMES {
                    work.once()?;
                }
                let calls = (self.bench.guard.tap.commands() - before) as f64;
                findings.push(Finding::Calls {
                    of: of(operation),
                    unit: unit(),
                    calls: rounded(calls / f64::from(TIMES)),
                });
            }
            findings.push(latency(of(operation), 1, &self.time(&work)?));
            if !self.bench.is_approved {
                for callers in CALLERS {
                    findings.push(self.throughput(of(operation), &work, callers)?);
                }
            }
            Ok(findings)
        };
        match measured() {
            Ok(findings) => {
                for finding in findings {
                    found(finding)?;
                }
                Ok(Ok(()))
            }
            Err(error) => Ok(Err(error)),
        }
    }

    fn unit(&self) -> String {
        match self.bench.counts_commands {
            true => "apdu".into(),
            false => "pkcs11".into(),
        }
    }

    /// The last key that was made, how long each took, and what it asked of the device.
    fn generate(&self, spec: KeySpec) -> Result<(Made<'_>, Vec<Duration>, Option<f64>), Error> {
        let end = Instant::now() + Duration::from_secs_f64(self.times.each);
        let mut times = Vec::new();
        loop {
            let before = self.bench.guard.tap.commands();
            let start = Instant::now();
            let made = self.make(spec)?;
            times.push(start.elapsed());
            let calls = (self.bench.guard.tap.commands() - before) as f64;
            let most = if self.bench.is_approved { 1 } else { FEWEST };
            if Instant::now() > end || times.len() >= most {
                return Ok((made, times, self.bench.counts_commands.then_some(calls)));
            }
        }
    }

    /// How long each took, one after the other.
    fn time(&self, work: &Work) -> Result<Vec<Duration>, Error> {
        let each = Duration::from_secs_f64(self.times.each);
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
                false => elapsed > each && (times.len() >= FEWEST || elapsed > each * 10),
            };
            if enough || times.len() >= MOST {
                return Ok(times);
            }
        }
    }

    fn throughput(&self, of: Operation, work: &Work, callers: usize) -> Result<Finding, Error> {
        const ROUNDS: u32 = 5;
        let rounds: Vec<f64> = (0..ROUNDS)
            .map(|_| self.round(work, callers, self.times.each / f64::from(ROUNDS)))
            .collect::<Result<_, _>>()?;
        Ok(Finding::Throughput {
            of,
            callers,
            per_second: median(&rounds),
            rounds,
        })
    }

    /// Operations per second of several threads at once.
    fn round(&self, work: &Work, callers: usize, seconds: f64) -> Result<f64, Error> {
        let (done, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let start = Instant::now();
        let end = start + Duration::from_secs_f64(seconds);
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
            let measured = || -> Result<Finding, Error> {
                while keys.len() < goal {
                    keys.push(self.make(spec)?);
                }
                let Some(made) = keys.last() else {
                    return Err(Error::TokenFull {
                        token: self.token.info().id.clone(),
                    });
                };
                let work = self.work(made, KeyUse::Sign)?;
                work.once()?;
                Ok(latency(of, keys.len(), &self.time(&work)?))
            };
            match { measured }() {
                Ok(finding) => found(finding)?,
                Err(error) => return Ok(Err(error)),
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
        const PARTS: usize = 60;
        let prepared = || -> Result<_, Error> {
            let made = self.make(spec)?;
            let work = self.work(&made, KeyUse::Sign)?;
            Ok((made, work))
        };
        let (_made, work) = match prepared() {
            Ok(prepared) => prepared,
            Err(error) => return Ok(Err(error)),
        };
        let mut parts: Vec<Vec<f64>> = vec![Vec::new(); PARTS];
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
                        part.push(micros(one.elapsed()));
                    }
                }
                Err(Error::Cancelled) => break,
                Err(error) => {
                    let text = error.to_string();
                    match errors.iter_mut().find(|(known, _)| *known == text) {
                        Some((_, count)) => *count += 1,
                        None => errors.push((text, 1)),
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
        parts.retain(|part| !part.is_empty());
        found(Finding::Endurance {
            of: Operation {
                operation: Verb::Sign,
                algorithm: spec.algorithm,
            },
            seconds: rounded(start.elapsed().as_secs_f64()),
            operations,
            errors,
            medians: parts.iter().map(|part| rounded(median(part))).collect(),
            slowest: (parts.iter())
                .map(|part| rounded(part.iter().copied().fold(0.0, f64::max)))
                .collect(),
        })?;
        Ok(Ok(()))
    }
}

/// Whether making a key of this kind is told: one that decrypts is made as one that signs
/// is, and told once.
pub(crate) fn tells_generation(info: &TokenInfo, spec: KeySpec) -> bool {
    let signs = KeySpec::sign(spec.algorithm);
    spec == signs || !info.supports.contains(&signs)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The finding that some times make.
fn latency(of: Operation, keys: usize, times: &[Duration]) -> Finding {
    let times: Vec<f64> = times.iter().copied().map(micros).collect();
    let tenths: Vec<f64> = times
        .chunks(times.len().div_ceil(10).max(1))
        .map(median)
        .map(rounded)
        .collect();
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
        tenths,
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
    fn the_tenths_cover_everything_in_order() {
        let of = Operation {
            operation: Verb::Sign,
            algorithm: claviger_token::Algorithm::P256,
        };
        let times: Vec<Duration> = (1..=95).map(Duration::from_micros).collect();
        let Finding::Latency {
            tenths,
            samples,
            quantiles,
            ..
        } = latency(of, 1, &times)
        else {
            panic!("not a latency");
        };
        assert_eq!((samples, tenths.len(), quantiles.len()), (95, 10, 21));
        assert_eq!(tenths.first(), Some(&5.0));
        assert!(tenths.is_sorted());
        let Finding::Latency { tenths, .. } = latency(of, 1, &times[..3]) else {
            panic!("not a latency");
        };
        assert_eq!(tenths, [1.0, 2.0, 3.0]);
    }
}
