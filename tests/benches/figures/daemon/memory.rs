//! What the daemon holds in memory: for connections, for identities, and after many requests.

use claviger_client::blocking::{Call, Client};
use claviger_client::request::{committer, raw};
use claviger_tests::SoftHsm;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::stage::{Beside, Home, MESSAGE, NO_AUDIT, commit};
use crate::Figure;
use crate::processes::name;

const CONNECTIONS: usize = 1_000;
const IDENTITIES: u32 = 1_000;

/// Threads that make requests while its memory is watched.
const CALLERS: usize = 4;

/// Requests before its memory is looked at first, and from then on.
const BEFORE: usize = 10_000;
const REQUESTS: usize = 100_000;
const MANY_REQUESTS: usize = 1_000_000;

pub(super) fn figures(is_long: bool) -> Vec<Figure> {
    let token = SoftHsm::new();
    let home = Home::new(&token, NO_AUDIT);
    let mut figures = vec![idle(&home, &home.serve())];
    figures.extend(identities(&home, is_long));
    figures
}

fn idle(home: &Home<'_>, daemon: &Beside) -> Figure {
    raise_file_limit();
    let used = || {
        let client = home.connect();
        commit(&client);
        client
    };
    drop((0..16).map(|_| used()).collect::<Vec<Client>>());
    let before = daemon.memory();
    let clients: Vec<Client> = (0..CONNECTIONS).map(|_| used()).collect();
    let after = daemon.memory();
    drop(clients);
    Figure {
        name: "serve_idle_kib",
        value: (after - before) / CONNECTIONS as f64,
        wanted: "≤ 8",
        what: format!(
            "KiB for each of 1,000 connections that made a request: {:.1} MiB, before {:.1}",
            after / 1024.0,
            before / 1024.0
        ),
    }
}

fn identities(home: &Home<'_>, is_long: bool) -> [Figure; 2] {
    home.multiply(IDENTITIES);
    let daemon = home.serve();
    let client = home.connect();
    for number in 1..=IDENTITIES as usize {
        let engine = committer(&name(number));
        client
            .commit(&engine, &MESSAGE, &raw(), &Call::default())
            .unwrap();
    }
    let resident = daemon.memory();
    let rawest = home.rawest("rawest.sock").memory();
    ask(home, BEFORE);
    let before = daemon.memory();
    let requests = if is_long { MANY_REQUESTS } else { REQUESTS };
    ask(home, requests);
    let after = daemon.memory();
    [
        Figure {
            name: "serve_memory_mib",
            value: resident / 1024.0,
            wanted: "≤ 20",
            what: format!(
                "MiB with 1,000 identities that signed; the rawest server, with one key, {:.1}",
                rawest / 1024.0
            ),
        },
        Figure {
            name: "serve_growth_kib",
            value: after - before,
            wanted: "≤ 256",
            what: format!("KiB that it grows over {requests} requests"),
        },
    ]
}

/// Makes so many requests, on connections of their own.
fn ask(home: &Home<'_>, requests: usize) {
    std::thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                let client = home.connect();
                (0..requests / CALLERS).for_each(|_| commit(&client));
            });
        }
    });
}

fn raise_file_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}
