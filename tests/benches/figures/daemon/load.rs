//! Many callers at once, and one that asks for more than there is.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use claviger_client::blocking::Client;
use claviger_client::request::committer;
use claviger_tests::SoftHsm;

use super::stage::{Beside, Home, MESSAGE, NO_AUDIT, beside, commit, middle};
use crate::{Figure, micros};

const ROUNDS: usize = 15;
const ROUND: Duration = Duration::from_millis(200);

/// A 99th percentile needs many requests.
const LONG_ROUND: Duration = Duration::from_millis(700);
const LONG_ROUNDS: usize = 7;

pub(super) fn figures() -> Vec<Figure> {
    let token = SoftHsm::new();
    let home = Home::new(&token, NO_AUDIT);
    let daemon = home.serve();
    let _rawest = home.rawest("rawest.sock");
    vec![
        throughput(&home, 8, "serve_throughput_8"),
        throughput(&home, 64, "serve_throughput_64"),
        fairness(&home, &daemon),
    ]
}

fn throughput(home: &Home<'_>, callers: usize, name: &'static str) -> Figure {
    let clients: Vec<Client> = (0..callers).map(|_| home.connect()).collect();
    let connect = |_| UnixStream::connect(home.path("rawest.sock")).unwrap();
    let streams: Vec<UnixStream> = (0..callers).map(connect).collect();
    let (mut ratios, mut ours, mut rawest) = (Vec::new(), Vec::new(), Vec::new());
    // The first one warms up.
    for round in 0..=ROUNDS {
        let floor = rate(&streams, |mut stream| {
            let mut signature = [0; 64];
            stream.write_all(&MESSAGE).unwrap();
            stream.read_exact(&mut signature).unwrap();
        });
        let served = rate(&clients, commit);
        if round > 0 {
            ratios.push(served / floor);
            ours.push(served);
            rawest.push(floor);
        }
    }
    let (ours, rawest) = (middle(ours), middle(rawest));
    Figure {
        name,
        value: middle(ratios),
        wanted: "≥ 0.90",
        what: format!("{callers} callers {ours:.0}/s / over the rawest server {rawest:.0}/s"),
    }
}

/// How much callers get done in a second, each on a thread and a connection of its own.
fn rate<C: Sync>(connections: &[C], work: impl Fn(&C) + Sync) -> f64 {
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let start = Barrier::new(connections.len() + 1);
    std::thread::scope(|scope| {
        for connection in connections {
            let (stop, done, start, work) = (&stop, &done, &start, &work);
            scope.spawn(move || {
                start.wait();
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    work(connection);
                    count += 1;
                }
                done.fetch_add(count, Ordering::Relaxed);
            });
        }
        start.wait();
        std::thread::sleep(ROUND);
        stop.store(true, Ordering::Relaxed);
    });
    done.load(Ordering::Relaxed) as f64 / ROUND.as_secs_f64()
}

/// A caller that makes one request after the other: beside one that floods the daemon, and beside a
/// process that takes the same processor time from the machine.
fn fairness(home: &Home<'_>, daemon: &Beside) -> Figure {
    let polite = home.connect();
    let alone = Polite::runs(&polite, daemon, None);
    let own = alone.used / alone.requests;
    let (mut ratios, mut beside_flood, mut beside_burner) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..LONG_ROUNDS {
        let mut flood = beside("flood");
        flood.arg(home.socket()).arg(committer("me").name);
        let flood = Beside::start(flood);
        let flooded = Polite::runs(&polite, daemon, Some(&flood));
        drop(flood);
        // What the daemon did for the polite one it does beside the other, too.
        let used = (flooded.used - own * flooded.requests).max(0.1);
        let threads = used.ceil();
        let mut burner = beside("burn");
        burner.args([threads.to_string(), (used / threads).to_string()]);
        let burner = Beside::start(burner);
        let burned = Polite::runs(&polite, daemon, None);
        drop(burner);
        ratios.push(flooded.p99 / burned.p99);
        beside_flood.push(flooded.p99);
        beside_burner.push(burned.p99);
    }
    let (flooded, burned) = (middle(beside_flood), middle(beside_burner));
    Figure {
        name: "serve_fairness_p99",
        value: middle(ratios),
        wanted: "≤ 3.00",
        what: format!(
            "p99 beside a flooder {flooded:.0} µs / beside as busy a process {burned:.0} µs"
        ),
    }
}

/// What a polite caller got.
struct Polite {
    /// In µs.
    p99: f64,
    /// Requests a second.
    requests: f64,
    /// The processors that the daemon used, and the other process.
    used: f64,
}

impl Polite {
    fn runs(client: &Client, daemon: &Beside, other: Option<&Beside>) -> Self {
        let ticks = || daemon.ticks() + other.map_or(0.0, Beside::ticks);
        let (begun, before) = (Instant::now(), ticks());
        let mut took = Vec::new();
        while begun.elapsed() < LONG_ROUND {
            let begun = Instant::now();
            commit(client);
            took.push(begun.elapsed());
        }
        let seconds = begun.elapsed().as_secs_f64();
        let used = (ticks() - before) / 100.0 / seconds;
        took.sort_unstable();
        Polite {
            p99: micros(took[took.len() * 99 / 100]),
            requests: took.len() as f64 / seconds,
            used,
        }
    }
}
