//! Figures of a daemon, at a socket, on a page and on a dashboard.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use claviger_engine::{Node, Registry, TokenState};
use claviger_service::Service;
use claviger_service::metrics::{Metrics, Moment};
use claviger_service::settings::MetricsSettings;
use claviger_token::TokenId;
use serde_json::Value;

#[tokio::test(flavor = "multi_thread")]
async fn the_figures_are_at_a_socket_that_only_the_daemons_user_can_connect_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.sock");
    let node = Node::builder(Registry::in_memory().unwrap()).build();
    let service = Service::builder(node).metrics(Metrics::new(false)).build();
    let wanted = MetricsSettings {
        socket: Some(path.clone()),
        port: None,
        names: false,
    };
    service.show_metrics(&wanted).unwrap();
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let asked = tokio::task::spawn_blocking(move || {
        let mut stream = UnixStream::connect(path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = asked.await.unwrap();
    assert!(answer.contains("\nclaviger_connections 0\n"), "{answer}");
    // Another daemon does not take it.
    assert_eq!(
        service.show_metrics(&wanted).unwrap_err().code(),
        "socket-taken"
    );
}

/// A metric as the daemon exports it: its name and its type, and the labels of its samples.
type Exported = (String, String, BTreeSet<String>);

/// What a daemon exports that has something to say of everything.
fn exported() -> (Vec<Exported>, String) {
    let token = TokenId {
        kind: "piv".into(),
        manufacturer: "m".into(),
        serial: "1".into(),
    };
    let metrics = Metrics::new(false);
    metrics.answered("sign", "ok", Some(&token), Duration::from_millis(1));
    let text = metrics.text(&Moment {
        tokens: vec![(token.clone(), TokenState::Ready)],
        queues: vec![(token, 1)],
        ..Moment::default()
    });
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let metrics = types.map(|line| {
        let (name, kind) = line.split_once(' ').unwrap();
        let name = match kind {
            "counter" => format!("{name}_total"),
            _ => name.to_owned(),
        };
        let is_sample = |line: &&str| {
            let rest = line.strip_prefix(&name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ', '_']))
        };
        let samples = text.lines().filter(is_sample);
        let labels = samples.flat_map(|line| {
            let labels = line.split_once('{').map(|(_, rest)| rest);
            let labels = labels.and_then(|rest| rest.split_once('}'));
            let labels = labels.map_or("", |(labels, _)| labels);
            let names = labels.split(',').filter_map(|label| label.split_once('='));
            names.map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
        });
        let labels = labels.filter(|label| label != "le").collect();
        (name, kind.to_owned(), labels)
    });
    (metrics.collect(), text)
}

/// What stands in backticks.
fn quoted(cell: &str) -> BTreeSet<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_page_and_the_dashboard_have_the_metrics_that_a_daemon_exports() {
    let (exported, text) = exported();
    assert!(exported.len() >= 9, "{text}");
    let page = include_str!("../../docs/metrics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `claviger_"));
    let documented: Vec<Exported> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let name = quoted(cells[1]).pop_first().unwrap();
            (name, cells[2].to_owned(), quoted(cells[3]))
        })
        .collect();
    let sorted = |mut all: Vec<Exported>| {
        all.sort();
        all
    };
    assert_eq!(sorted(documented), sorted(exported.clone()));

    let dashboard: Value = serde_json::from_str(include_str!("../../docs/grafana.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries: Vec<&str> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap())
        .map(|target| target["expr"].as_str().unwrap())
        .collect();
    assert!(
        queries.len() >= panels.len(),
        "each panel asks for something"
    );
    let mut shown = BTreeSet::new();
    for name in queries.iter().flat_map(|query| names(query)) {
        let is_exported = text.lines().any(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        assert!(is_exported, "no daemon exports `{name}`");
        let plain = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end));
        shown.insert(plain.unwrap_or(name));
    }
    let all: BTreeSet<&str> = exported.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(shown, all, "the dashboard shows each metric");
    // It would find one that there is not.
    assert_eq!(
        names("rate(claviger_x_total{a=\"b\"}[5m])"),
        ["claviger_x_total"]
    );
}

/// The metrics in a query.
fn names(query: &str) -> Vec<&str> {
    query
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("claviger_"))
        .collect()
}

/// A daemon that shows its figures at a port, and that port. One that another process takes first is
/// not this daemon's; then another one is tried.
async fn at_a_port() -> (u16, String) {
    for _ in 0..10 {
        let node = Node::builder(Registry::in_memory().unwrap()).build();
        let service = Service::builder(node).metrics(Metrics::new(false)).build();
        let port = {
            let any = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            any.local_addr().unwrap().port()
        };
        let wanted = MetricsSettings {
            socket: None,
            port: Some(port),
            names: false,
        };
        service.show_metrics(&wanted).unwrap();
        let asked = tokio::task::spawn_blocking(move || ask_port(port));
        if let Some(answer) = asked.await.unwrap() {
            return (port, answer);
        }
    }
    panic!("it never shows them");
}

fn ask_port(port: u16) -> Option<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let late = Instant::now() + Duration::from_secs(20);
    let mut stream = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break stream,
            Err(_) if Instant::now() > late => return None,
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let limit = Some(Duration::from_secs(20));
    stream.set_read_timeout(limit).unwrap();
    let mut answer = String::new();
    let asked = stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
    let read = asked.and_then(|()| stream.read_to_string(&mut answer));
    read.is_ok_and(|_| answer.contains("claviger_"))
        .then_some(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_one_of_the_loopback_interface() {
    let (port, answer) = at_a_port().await;
    assert!(answer.contains("\nclaviger_connections 0\n"), "{answer}");
    let listening = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let end = format!(":{port:04X}");
    let sockets = listening.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
        (state == "0A" && local.ends_with(&end)).then_some(local)
    });
    let local = u32::from_ne_bytes([127, 0, 0, 1]);
    let expected = format!("{local:08X}{end}");
    assert_eq!(sockets.collect::<Vec<_>>(), [expected]);
}
