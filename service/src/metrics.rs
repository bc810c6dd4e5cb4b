//! Figures for Prometheus, in OpenMetrics text: on a socket that only the daemon's user can connect
//! to, and on a port of the loopback interface if that is configured.
//!
//! They name operations, error codes and kinds of tokens. Tokens are named only if that is
//! configured; callers, identities and files never are.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use claviger_engine::TokenState;
use claviger_token::TokenId;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// A request is no longer.
const LONGEST_REQUEST: usize = 8 * 1024;
/// Who asks does so, and reads the answer, within this time.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many are answered at a time.
const AT_ONCE: usize = 4;
/// So long nothing is accepted after the system refused to accept.
const PAUSE: Duration = Duration::from_millis(100);

/// The figures of a daemon.
pub struct Metrics {
    registry: Registry,
    names_tokens: bool,
    requests: Family<Outcome, Counter>,
    latencies: Family<Work, Histogram>,
    pins: Family<Rejection, Counter>,
    connections: Gauge,
    in_flight: Gauge,
    unlocked: Gauge,
    tokens: Family<Standing, Gauge>,
}

/// How a daemon is at this moment.
#[derive(Debug, Clone, Default)]
pub struct Moment {
    /// Its connections.
    pub connections: usize,
    /// Requests that are not answered.
    pub in_flight: usize,
    /// The tokens that are unlocked.
    pub unlocked: usize,
    /// How the tokens stand.
    pub tokens: Vec<(TokenId, TokenState)>,
    /// The PINs of callers that tokens rejected so far.
    pub pins_rejected: u64,
    /// Those that were not the one that had opened the token; they were not sent.
    pub pins_differed: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    operation: &'static str,
    /// `ok`, or the code of an error.
    outcome: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Work {
    operation: &'static str,
    /// The kind of the token; empty where there is none.
    kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rejection {
    /// `token` or `daemon`.
    by: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Standing {
    kind: String,
    state: &'static str,
    /// Empty unless tokens are named.
    token: String,
}

impl Metrics {
    /// None so far.
    pub fn new(names_tokens: bool) -> Arc<Self> {
        let mut registry = Registry::with_prefix("claviger");
        // 50 µs to 52 s.
        let latency: fn() -> Histogram = || Histogram::new(exponential_buckets(50e-6, 4.0, 11));
        let mut metrics = Metrics {
            requests: Family::default(),
            latencies: Family::new_with_constructor(latency),
            pins: Family::default(),
            connections: Gauge::default(),
            in_flight: Gauge::default(),
            unlocked: Gauge::default(),
            tokens: Family::default(),
            names_tokens,
            registry: Registry::default(),
        };
        registry.register("requests", "Answered requests", metrics.requests.clone());
        registry.register(
            "request_duration_seconds",
            "Time from a request to its answer",
            metrics.latencies.clone(),
        );
        registry.register(
            "pins_rejected",
            "Wrong PINs: sent and rejected by a token, or compared and rejected by the daemon",
            metrics.pins.clone(),
        );
        for (name, help, gauge) in [
            ("connections", "Connections", &metrics.connections),
            (
                "requests_in_flight",
                "Requests that are not answered yet",
                &metrics.in_flight,
            ),
            (
                "tokens_unlocked",
                "Tokens whose PIN the daemon keeps",
                &metrics.unlocked,
            ),
        ] {
            registry.register(name, help, gauge.clone());
        }
        registry.register("tokens", "Tokens by their state", metrics.tokens.clone());
        metrics.registry = registry;
        Arc::new(metrics)
    }

    /// A request was answered: with `ok` or the code of an error.
    pub fn answered(&self, operation: &'static str, outcome: &str, kind: &str, took: Duration) {
        let outcome = Outcome {
            operation,
            outcome: outcome.into(),
        };
        self.requests.get_or_create(&outcome).inc();
        let work = Work {
            operation,
            kind: kind.into(),
        };
        self.latencies
            .get_or_create(&work)
            .observe(took.as_secs_f64());
    }

    /// All figures as OpenMetrics text.
    pub fn text(&self, moment: &Moment) -> String {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.connections.set(count(moment.connections));
        self.in_flight.set(count(moment.in_flight));
        self.unlocked.set(count(moment.unlocked));
        for (by, total) in [
            ("token", moment.pins_rejected),
            ("daemon", moment.pins_differed),
        ] {
            let counter = self.pins.get_or_create(&Rejection { by });
            counter.inc_by(total.saturating_sub(counter.get()));
        }
        self.tokens.clear();
        for (token, state) in &moment.tokens {
            let name = match self.names_tokens {
                true => token.to_string(),
                false => String::new(),
            };
            let standing = Standing {
                kind: token.kind.clone(),
                state: state.name(),
                token: name,
            };
            self.tokens.get_or_create(&standing).inc();
        }
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(_) => String::new(),
        }
    }
}

/// Answers whoever asks for the figures at the socket, until it is dropped.
///
/// # Errors
/// Those of a socket that cannot be made part of the runtime.
pub async fn serve_socket(
    metrics: Arc<Metrics>,
    listener: StdListener,
    moment: impl Fn() -> Moment + Clone + Send + 'static,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = Arc::new(UnixListener::from_std(listener)?);
    let accept = move || -> Accepted<UnixStream> {
        let listener = Arc::clone(&listener);
        Box::pin(async move { Ok(listener.accept().await?.0) })
    };
    serve(metrics, accept, moment).await;
    Ok(())
}

/// The same at a port of the loopback interface.
///
/// # Errors
/// Those of a port that cannot be listened on.
pub async fn serve_port(
    metrics: Arc<Metrics>,
    port: u16,
    moment: impl Fn() -> Moment + Clone + Send + 'static,
) -> io::Result<()> {
    let listener = Arc::new(TcpListener::bind(("127.0.0.1", port)).await?);
    let accept = move || -> Accepted<TcpStream> {
        let listener = Arc::clone(&listener);
        Box::pin(async move { Ok(listener.accept().await?.0) })
    };
    serve(metrics, accept, moment).await;
    Ok(())
}

/// A connection that will be accepted.
type Accepted<S> = Pin<Box<dyn Future<Output = io::Result<S>> + Send>>;

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    metrics: Arc<Metrics>,
    accept: impl Fn() -> Accepted<S>,
    moment: impl Fn() -> Moment + Clone + Send + 'static,
) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        // It is never closed.
        let place = Arc::clone(&places).acquire_owned().await;
        let Ok(stream) = accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let (metrics, moment) = (Arc::clone(&metrics), moment.clone());
        tokio::spawn(async move {
            let _place = place;
            let _ = timeout(PATIENCE, answer(stream, &metrics, moment)).await;
        });
    }
}

/// Answers one request of HTTP/1.0 or 1.1, and closes.
async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    metrics: &Metrics,
    moment: impl Fn() -> Moment,
) -> io::Result<()> {
    let asked = request(&mut stream).await?;
    let (status, kind, body) = match asked.as_deref() {
        Some("GET /metrics") => (
            "200 OK",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            metrics.text(&moment()),
        ),
        Some(_) => ("404 Not Found", "text/plain", "see /metrics\n".into()),
        None => (
            "400 Bad Request",
            "text/plain",
            "this is no request\n".into(),
        ),
    };
    let head = format!(
        "HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// The method and the path; `None` if it is no request.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    let ends = |head: &[u8]| head.windows(4).any(|end| end == b"\r\n\r\n");
    while !ends(&head) {
        let read = stream.read(&mut part).await?;
        if read == 0 || head.len() + read > LONGEST_REQUEST {
            return Ok(None);
        }
        head.extend_from_slice(&part[..read]);
    }
    let line = head.split(|byte| *byte == b'\r').next();
    let line = line.and_then(|line| std::str::from_utf8(line).ok());
    let asked = line.and_then(|line| {
        let (asked, version) = line.rsplit_once(' ')?;
        version.starts_with("HTTP/1.").then(|| asked.to_owned())
    });
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as Client;

    use super::*;

    fn token(serial: &str) -> TokenId {
        TokenId {
            kind: "piv".into(),
            manufacturer: "m".into(),
            serial: serial.into(),
        }
    }

    fn moment() -> Moment {
        Moment {
            connections: 3,
            in_flight: 2,
            unlocked: 1,
            tokens: vec![
                (token("12345678"), TokenState::Ready),
                (token("87654321"), TokenState::Ready),
                (token("11223344"), TokenState::Locked),
            ],
            pins_rejected: 4,
            pins_differed: 5,
        }
    }

    #[test]
    fn figures_name_no_token_unless_that_is_wanted() {
        let took = Duration::from_micros(300);
        for names in [false, true] {
            let metrics = Metrics::new(names);
            metrics.answered("sign", "ok", "piv", took);
            metrics.answered("sign", "ok", "piv", took);
            metrics.answered("sign", "pin-wrong", "piv", took);
            // What is counted elsewhere is not counted twice.
            metrics.text(&moment());
            let text = metrics.text(&moment());
            for line in [
                r#"claviger_requests_total{operation="sign",outcome="ok"} 2"#,
                r#"claviger_requests_total{operation="sign",outcome="pin-wrong"} 1"#,
                r#"claviger_request_duration_seconds_count{operation="sign",kind="piv"} 3"#,
                r#"claviger_pins_rejected_total{by="token"} 4"#,
                r#"claviger_pins_rejected_total{by="daemon"} 5"#,
                "claviger_connections 3",
                "claviger_requests_in_flight 2",
                "claviger_tokens_unlocked 1",
            ] {
                assert!(text.lines().any(|found| found == line), "{line}\n{text}");
            }
            let ready = r#"claviger_tokens{kind="piv",state="ready",token=""} 2"#;
            assert_eq!(text.contains(ready), !names, "{text}");
            assert_eq!(text.contains("12345678"), names, "{text}");
            assert!(text.ends_with("# EOF\n"), "{text}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_asks_at_the_socket_gets_the_figures_and_what_is_no_request_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.sock");
        let listener = StdListener::bind(&path).unwrap();
        let served = tokio::spawn(serve_socket(Metrics::new(false), listener, moment));
        let ask = move |request: Vec<u8>| {
            let mut stream = Client::connect(&path).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(60)))
                .unwrap();
            // It may have answered before it read all.
            let _ = stream.write_all(&request);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            String::from_utf8(answer).unwrap()
        };
        let asked = tokio::task::spawn_blocking(move || {
            for version in ["1.0", "1.1"] {
                let request = format!("GET /metrics HTTP/{version}\r\nHost: x\r\n\r\n");
                let answer = ask(request.into_bytes());
                assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
                assert!(answer.contains("claviger_connections 3\n"), "{answer}");
            }
            for other in ["GET / HTTP/1.1\r\n\r\n", "POST /metrics HTTP/1.1\r\n\r\n"] {
                let answer = ask(other.into());
                assert!(answer.starts_with("HTTP/1.0 404 "), "{answer}");
            }
            for bad in [
                &b""[..],
                b"GET /metrics\r\n\r\n",
                b"\xff\xff HTTP/1.1\r\n\r\n",
                b"GET",
            ] {
                let answer = ask(bad.into());
                assert!(answer.starts_with("HTTP/1.0 400 "), "{answer}");
            }
            // It ends before the end of what never ends; the reset may take the answer along.
            let answer = ask(vec![b'a'; 10 * LONGEST_REQUEST]);
            assert!(!answer.contains("200 OK"), "{answer}");
        });
        asked.await.unwrap();
        served.abort();
    }
}
