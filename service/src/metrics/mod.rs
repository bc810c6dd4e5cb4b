//! Figures for Prometheus, in OpenMetrics text: on a socket that only the daemon's user can connect
//! to, and on a port of the loopback interface if that is configured.
//!
//! They name operations, error codes and kinds of tokens. Tokens are named only if that is
//! configured; callers, identities and files never are. `docs/metrics.md` has them all.

mod http;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use claviger_engine::TokenState;
use claviger_token::TokenId;
use claviger_token::sync::lock;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

pub use self::http::{serve_port, serve_socket};

/// The figures of a daemon.
pub struct Metrics {
    registry: Registry,
    names_tokens: AtomicBool,
    /// Of two who ask at once the second waits: what is counted anew is counted once.
    showing: Mutex<()>,
    requests: Family<Outcome, Counter>,
    latencies: Family<Work, Histogram>,
    pins: Family<Rejection, Counter>,
    connections: Gauge,
    in_flight: Gauge,
    unlocked: Gauge,
    tokens: Family<Standing, Gauge>,
    queues: Family<On, Gauge>,
    audit_fails: Gauge,
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
    /// How many operations wait for each open token.
    pub queues: Vec<(TokenId, usize)>,
    /// Whether the log of who used which key cannot be written.
    pub audit_fails: bool,
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
    /// Empty unless tokens are named.
    token: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct On {
    kind: String,
    /// Empty unless tokens are named.
    token: String,
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
            queues: Family::default(),
            audit_fails: Gauge::default(),
            names_tokens: AtomicBool::new(names_tokens),
            showing: Mutex::default(),
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
            (
                "audit_failing",
                "Whether the audit log cannot be written",
                &metrics.audit_fails,
            ),
        ] {
            registry.register(name, help, gauge.clone());
        }
        registry.register("tokens", "Tokens by their state", metrics.tokens.clone());
        registry.register(
            "token_queue",
            "Operations that wait for a token",
            metrics.queues.clone(),
        );
        metrics.registry = registry;
        Arc::new(metrics)
    }

    /// Names tokens from now on, or does not: then what was said of named ones is forgotten.
    pub fn name_tokens(&self, names_tokens: bool) {
        if self.names_tokens.swap(names_tokens, Relaxed) != names_tokens {
            self.latencies.clear();
        }
    }

    /// A request was answered, with `ok` or the code of an error; `token` did it, if one did.
    pub fn answered(
        &self,
        operation: &'static str,
        outcome: &str,
        token: Option<&TokenId>,
        took: Duration,
    ) {
        let outcome = Outcome {
            operation,
            outcome: outcome.into(),
        };
        self.requests.get_or_create(&outcome).inc();
        let On { kind, token } = token.map(|token| self.called(token)).unwrap_or_default();
        let work = Work {
            operation,
            kind,
            token,
        };
        self.latencies
            .get_or_create(&work)
            .observe(took.as_secs_f64());
    }

    /// All figures as OpenMetrics text.
    pub fn text(&self, moment: &Moment) -> String {
        let _showing = lock(&self.showing);
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.connections.set(count(moment.connections));
        self.in_flight.set(count(moment.in_flight));
        self.unlocked.set(count(moment.unlocked));
        self.audit_fails.set(moment.audit_fails.into());
        for (by, total) in [
            ("token", moment.pins_rejected),
            ("daemon", moment.pins_differed),
        ] {
            let counter = self.pins.get_or_create(&Rejection { by });
            counter.inc_by(total.saturating_sub(counter.get()));
        }
        self.tokens.clear();
        for (token, state) in &moment.tokens {
            let On { kind, token } = self.called(token);
            let standing = Standing {
                kind,
                state: state.name(),
                token,
            };
            self.tokens.get_or_create(&standing).inc();
        }
        self.queues.clear();
        for (token, length) in &moment.queues {
            let on = self.called(token);
            self.queues.get_or_create(&on).inc_by(count(*length));
        }
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(_) => String::new(),
        }
    }

    fn called(&self, token: &TokenId) -> On {
        let name = self.names_tokens.load(Relaxed).then(|| token.to_string());
        On {
            kind: token.kind.clone(),
            token: name.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
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
            queues: vec![(token("12345678"), 3), (token("87654321"), 4)],
            audit_fails: true,
            pins_rejected: 4,
            pins_differed: 5,
        }
    }

    #[test]
    fn figures_name_no_token_unless_that_is_wanted() {
        let took = Duration::from_micros(300);
        for names in [false, true] {
            let (metrics, piv) = (Metrics::new(names), token("12345678"));
            metrics.answered("sign", "ok", Some(&piv), took);
            metrics.answered("sign", "ok", Some(&piv), took);
            metrics.answered("sign", "pin-wrong", Some(&piv), took);
            metrics.answered("status", "ok", None, took);
            // What is counted elsewhere is not counted twice.
            metrics.text(&moment());
            let text = metrics.text(&moment());
            for line in [
                r#"claviger_requests_total{operation="sign",outcome="ok"} 2"#,
                r#"claviger_requests_total{operation="sign",outcome="pin-wrong"} 1"#,
                r#"claviger_request_duration_seconds_count{operation="status",kind="",token=""} 1"#,
                "claviger_audit_failing 1",
                r#"claviger_pins_rejected_total{by="token"} 4"#,
                r#"claviger_pins_rejected_total{by="daemon"} 5"#,
                "claviger_connections 3",
                "claviger_requests_in_flight 2",
                "claviger_tokens_unlocked 1",
            ] {
                assert!(text.lines().any(|found| found == line), "{line}\n{text}");
            }
            for line in [
                r#"claviger_tokens{kind="piv",state="ready",token=""} 2"#,
                r#"claviger_token_queue{kind="piv",token=""} 7"#,
                r#"claviger_request_duration_seconds_count{operation="sign",kind="piv",token=""} 3"#,
            ] {
                assert_eq!(text.contains(line), !names, "{line}\n{text}");
            }
            for line in [
                r#"claviger_token_queue{kind="piv",token="piv:m/87654321"} 4"#,
                r#"_count{operation="sign",kind="piv",token="piv:m/12345678"} 3"#,
            ] {
                assert_eq!(text.contains(line), names, "{line}\n{text}");
            }
            assert_eq!(text.contains("12345678"), names, "{text}");
            assert!(text.ends_with("# EOF\n"), "{text}");
            // It can change.
            metrics.name_tokens(!names);
            metrics.answered("sign", "ok", Some(&piv), took);
            let text = metrics.text(&moment());
            assert_eq!(text.contains("12345678"), !names, "{text}");
        }
    }

    #[test]
    fn who_asks_at_once_gets_the_same_figures() {
        let metrics = Metrics::new(false);
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    for _ in 0..200 {
                        let text = metrics.text(&moment());
                        assert!(text.contains("state=\"ready\",token=\"\"} 2\n"), "{text}");
                    }
                });
            }
        });
    }
}
