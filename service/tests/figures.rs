//! Figures of a daemon, at a socket.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use claviger_engine::{Node, Registry};
use claviger_service::Service;
use claviger_service::metrics::Metrics;
use claviger_service::settings::MetricsSettings;

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
