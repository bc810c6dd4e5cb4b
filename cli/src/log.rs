//! The log on standard error. Standard output is for answers.

use std::io::{self, IsTerminal, Write};

use claviger_service::settings::{LogFormat, LogLevel};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::output;

/// What the log has, by parts of the program: `debug`, `claviger_engine=info`, …
const VARIABLE: &str = "CLAVIGER_LOG";

/// Logs what the environment asks for; without that nothing.
pub(crate) fn start() {
    if let Some(wanted) = by_variable() {
        let log = fmt::layer()
            .with_ansi(io::stderr().is_terminal())
            .with_writer(io::stderr);
        tracing_subscriber::registry()
            .with(log.with_filter(wanted))
            .init();
    }
}

/// The log of a daemon, whose level can change.
pub(crate) struct DaemonLog {
    /// `None`: the environment says what it has.
    levels: Option<Handle<Targets, Registry>>,
}

impl DaemonLog {
    /// Logs what the environment asks for, or this.
    pub(crate) fn start(format: LogFormat, level: LogLevel) -> Self {
        let variable = by_variable();
        let is_by_variable = variable.is_some();
        let wanted = variable.unwrap_or_else(|| of_level(level));
        let (levels, handle) = reload::Layer::new(wanted);
        let log = tracing_subscriber::registry().with(levels);
        match format {
            LogFormat::Text => {
                // An event is a line, whatever a caller or a device calls something.
                let text = fmt::layer().with_ansi(false).with_writer(|| OneLine);
                log.with(text).init();
            }
            LogFormat::Json => {
                let json = fmt::layer().json().flatten_event(true);
                log.with(json.with_writer(io::stderr)).init();
            }
        }
        DaemonLog {
            levels: (!is_by_variable).then_some(handle),
        }
    }

    /// Logs this from now on, unless the environment says what.
    pub(crate) fn change(&self, level: LogLevel) {
        if let Some(levels) = &self.levels
            && let Err(error) = levels.reload(of_level(level))
        {
            tracing::warn!(%error, "the log has what it had");
        }
    }
}

fn of_level(level: LogLevel) -> Targets {
    // The names are those of this crate.
    level.name().parse().unwrap_or_default()
}

fn by_variable() -> Option<Targets> {
    let wanted = std::env::var(VARIABLE).ok()?;
    match wanted.parse() {
        Ok(targets) => Some(targets),
        Err(error) => {
            output::warn("CLAVIGER_LOG cannot be used", &format!("{error}"));
            None
        }
    }
}

/// Standard error, for events of one line.
struct OneLine;

impl Write for OneLine {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        io::stderr().write_all(one_line(event).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An event, which is written at once, as one line.
fn one_line(event: &[u8]) -> String {
    let text = String::from_utf8_lossy(event);
    format!("{}\n", output::one_line(text.trim_end_matches('\n')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        let event = "INFO name=a\n2026 INFO unlocked\u{1b}[2J\n";
        let line = one_line(event.as_bytes());
        assert_eq!(line, "INFO name=a\u{fffd}2026 INFO unlocked\u{fffd}[2J\n");
    }

    #[test]
    fn each_level_of_the_configuration_is_one_of_the_log() {
        let names = ["error", "warn", "info", "debug", "trace"];
        let levels = [
            LogLevel::Error,
            LogLevel::Warn,
            LogLevel::Info,
            LogLevel::Debug,
            LogLevel::Trace,
        ];
        for (level, name) in levels.into_iter().zip(names) {
            let wanted = of_level(level);
            let is_logged = |at: &tracing::Level| wanted.would_enable("claviger_service", at);
            let most = name.parse::<tracing::Level>().unwrap();
            assert!(is_logged(&most), "{name}");
            assert_eq!(
                is_logged(&tracing::Level::TRACE),
                level == LogLevel::Trace,
                "{name}"
            );
        }
    }
}
