//! One signature: beside the least that a server does, beside p11-kit, and as a process.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use claviger_tests::{P11KitClient, SoftHsm};

use super::stage::{
    AUDIT, Beside, Home, MESSAGE, NO_AUDIT, beside, commit, middle, on_one_processor,
};
use crate::processes::side_by_side;
use crate::{Figure, median, micros};

const ROUNDS: usize = 101;

/// Signatures of a round.
const EACH: usize = 100;

/// Processes of each kind.
const PROCESSES: usize = 101;

pub(super) fn figures() -> Vec<Figure> {
    eprintln!("SKIPPED serve_vs_parsec: parsec is not built here");
    on_one_processor(|| {
        let token = SoftHsm::new();
        let mut figures = signatures(&token);
        figures.push(processes(&token));
        figures
    })
}

/// The median time of the signatures of one round, in µs.
fn round(mut sign: impl FnMut()) -> f64 {
    let mut took: Vec<Duration> = (0..EACH)
        .map(|_| {
            let begun = Instant::now();
            sign();
            begun.elapsed()
        })
        .collect();
    micros(median(&mut took))
}

/// A client of the rawest server.
fn rawest(mut stream: &UnixStream) {
    let mut signature = [0; 64];
    stream.write_all(&MESSAGE).unwrap();
    stream.read_exact(&mut signature).unwrap();
}

fn signatures(token: &SoftHsm) -> Vec<Figure> {
    let (plain, audited) = (Home::new(token, NO_AUDIT), Home::new(token, AUDIT));
    let _processes = [plain.serve(), audited.serve(), plain.rawest("rawest.sock")];
    let (ours, noted) = (plain.connect(), audited.connect());
    let stream = UnixStream::connect(plain.path("rawest.sock")).unwrap();
    let mut p11_kit = P11Kit::start(&plain);
    let mut rounds = Vec::new();
    // The first one warms up.
    for _ in 0..=ROUNDS {
        rounds.push(Round {
            rawest: round(|| rawest(&stream)),
            ours: round(|| commit(&ours)),
            noted: round(|| commit(&noted)),
            p11_kit: p11_kit.as_mut().map(P11Kit::sign),
        });
    }
    rounds.remove(0);
    let of = |time: fn(&Round) -> Option<f64>| -> Option<f64> {
        rounds
            .iter()
            .map(time)
            .collect::<Option<Vec<f64>>>()
            .map(middle)
    };
    let [bare, quiet, noted] = [
        of(|round| Some(round.rawest)),
        of(|round| Some(round.ours)),
        of(|round| Some(round.noted)),
    ]
    .map(Option::unwrap);
    let figure = |name, ratio: fn(&Round) -> Option<f64>, wanted, what| {
        of(ratio).map(|value| Figure {
            name,
            value,
            wanted,
            what,
        })
    };
    let beside_p11_kit = of(|round| round.p11_kit).unwrap_or_default();
    [
        figure(
            "serve_commit_ratio",
            |round| Some(round.ours / round.rawest),
            "≤ 1.10",
            format!("a commitment over the socket {quiet:.1} µs / the rawest server {bare:.1} µs"),
        ),
        figure(
            "serve_commit_audit_ratio",
            |round| Some(round.noted / round.rawest),
            "≤ 1.20",
            format!("the same with an audit log in a file {noted:.1} µs / {bare:.1} µs"),
        ),
        figure(
            "serve_vs_p11kit",
            |round| round.p11_kit.map(|theirs| round.ours / theirs),
            "≤ 0.65",
            format!(
                "a commitment over the socket {quiet:.1} µs / over p11-kit {beside_p11_kit:.1} µs"
            ),
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What a signature took in one round, in µs.
struct Round {
    rawest: f64,
    ours: f64,
    noted: f64,
    p11_kit: Option<f64>,
}

/// A process that signs over p11-kit's client and server.
struct P11Kit {
    caller: Beside,
    _server: Beside,
}

impl P11Kit {
    fn start(home: &Home<'_>) -> Option<Self> {
        if let Some(why) = P11KitClient::skipped() {
            eprintln!("SKIPPED serve_vs_p11kit: {why}");
            return None;
        }
        let socket = home.path("p11-kit.sock");
        let (variable, conf) = home.token.environment();
        let mut server = P11KitClient::server(&socket);
        server.env(variable, conf);
        let server = Beside::start(server);
        let mut caller = beside("sign");
        caller.arg(P11KitClient::module()).arg(home.token.label());
        caller.arg(home.path("pin"));
        let (variable, address) = P11KitClient::address(&socket);
        caller.env(variable, address);
        Some(P11Kit {
            caller: Beside::start(caller),
            _server: server,
        })
    }

    /// The median time of a round. Of the three calls of `cryptoki` one only asks for a length,
    /// which a caller can do without: it is taken off.
    fn sign(&mut self) -> f64 {
        let answer = self.caller.ask(&EACH.to_string());
        let mut times = answer.split_whitespace().map(|time| time.parse::<f64>());
        let mut next = || times.next().unwrap().unwrap();
        next() - next()
    }
}

/// `claviger sign` as a process that has the daemon sign.
fn processes(token: &SoftHsm) -> Figure {
    let home = Home::new(token, NO_AUDIT);
    let _daemon = home.serve();
    let words = [
        "sign",
        "me",
        "message",
        "--format",
        "raw",
        "-o",
        "signature",
    ];
    let signs = || home.command(&words);
    let says = || home.command(&["--version"]);
    let (ratios, first) = side_by_side(PROCESSES, &[&signs, &says]);
    Figure {
        name: "serve_oneshot_ratio",
        value: ratios[0],
        wanted: "≤ 1.50",
        what: format!("`claviger sign` over the daemon {first:.1} ms / `claviger --version`"),
    }
}
