//! The speed of the machine itself: if it drops, other programs are running, and the measurements
//! say little.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// How long one look takes.
const LOOK: Duration = Duration::from_millis(4);

/// How much of the same arithmetic all processors get done in a second.
pub(crate) fn speed() -> f64 {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let start = Instant::now();
    let done: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..processors)
            .map(|_| scope.spawn(|| work(LOOK)))
            .collect();
        let done = threads.into_iter().map(|thread| thread.join());
        done.map(Result::unwrap_or_default).sum()
    });
    (done as f64 / start.elapsed().as_secs_f64()).round()
}

/// Works so long; the answer is how often.
fn work(time: Duration) -> u64 {
    let start = Instant::now();
    let (mut number, mut times) = (1_u64, 0);
    while start.elapsed() < time {
        for _ in 0..500 {
            number = black_box(
                number
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1),
            );
        }
        times += 1;
    }
    times
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_machine_does_something() {
        assert!(super::speed() > 0.0);
    }
}
