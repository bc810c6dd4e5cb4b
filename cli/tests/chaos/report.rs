//! What chaos measures, what it promises, and its random choices.

use std::fmt::{Display, Write as _};
use std::time::Duration;

/// Figures by name, in order, and the promises that were broken.
#[derive(Default)]
pub(crate) struct Report {
    figures: Vec<(String, String)>,
    pub(crate) broken: Vec<String>,
}

impl Report {
    /// Adds a figure: a number as JSON wants it.
    pub(crate) fn figure(&mut self, name: impl Into<String>, value: impl Display) {
        self.figures.push((name.into(), value.to_string()));
    }

    /// Adds to a figure that several parts count.
    pub(crate) fn count(&mut self, name: &str, more: u64) {
        match self.figures.iter_mut().find(|(known, _)| known == name) {
            Some((_, value)) => *value = (value.parse::<u64>().unwrap() + more).to_string(),
            None => self.figure(name, more),
        }
    }

    /// Notes `promise` as broken where it does not hold.
    pub(crate) fn promise(&mut self, holds: bool, promise: impl Into<String>) {
        if !holds {
            self.broken.push(promise.into());
        }
    }

    pub(crate) fn json(&self) -> String {
        let fields: Vec<String> = { self.figures.iter() }
            .map(|(name, value)| format!("\"{name}\":{value}"))
            .collect();
        format!("{{{}}}", fields.join(","))
    }

    pub(crate) fn table(&self) -> String {
        let mut table = String::new();
        for (name, value) in &self.figures {
            writeln!(table, "{name:<28} {value:>12}").unwrap();
        }
        table
    }
}

/// Says how far it is.
pub(crate) fn progress(what: impl Display) {
    eprintln!("chaos: {what}");
}

pub(crate) fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}

/// The smallest of `samples` that `share` of them do not exceed (nearest rank).
pub(crate) fn percentile(samples: &mut [Duration], share: f64) -> Duration {
    samples.sort_unstable();
    let rank = (samples.len() as f64 * share).ceil() as usize;
    { samples.get(rank.max(1) - 1) }
        .copied()
        .unwrap_or_default()
}

/// Random choices that a seed repeats: SplitMix64, by Steele, Lea and Flood.
#[derive(Clone)]
pub(crate) struct Choices(u64);

impl Choices {
    /// Those of the part `number` of a run with `seed`.
    pub(crate) fn new(seed: u64, number: u64) -> Choices {
        let mut of_seed = Choices(seed);
        Choices(of_seed.next() ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Whether something happens that happens once in `times`.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// A time between these, to the microsecond.
    pub(crate) fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let range = (most - least).as_micros() as u64;
        least + Duration::from_micros(self.below(range.max(1)))
    }

    /// One of these.
    pub(crate) fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize].clone()
    }
}

/// A seed that no other run had: short enough to be typed.
pub(crate) fn fresh_seed() -> u64 {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    Choices(now.as_nanos() as u64).below(1_000_000_000)
}
