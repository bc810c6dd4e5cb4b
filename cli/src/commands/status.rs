//! `status`: how the daemon and its tokens are.

use claviger_client::wire::{self, StatusReply};
use serde::Serialize;

use super::unlock::spoken;
use super::{Answer, FINE};
use crate::output;
use crate::session::Session;

/// The state of a daemon in JSON.
#[derive(Serialize)]
struct View<'a> {
    program: &'a str,
    home_id: &'a str,
    /// Whether it serves one user, and not the system.
    own: bool,
    pid: u32,
    uptime: u64,
    connections: u32,
    requests_in_flight: u32,
    requests_served: u64,
    audit: &'a str,
    audit_failure: Option<&'a str>,
    tokens: Vec<TokenView<'a>>,
}

#[derive(Serialize)]
struct TokenView<'a> {
    token: String,
    label: &'a str,
    state: &'a str,
    unlocked: bool,
    /// In seconds; `null` until it is locked or removed.
    unlocked_for: Option<u64>,
}

impl<'a> TokenView<'a> {
    fn of(status: &'a wire::TokenStatus) -> Self {
        let token = status.token.as_ref();
        let name =
            token.map(|token| format!("{}:{}/{}", token.kind, token.manufacturer, token.serial));
        let left = status.unlocked_for_s;
        TokenView {
            token: name.unwrap_or_default(),
            label: &status.label,
            state: &status.state,
            unlocked: status.is_unlocked,
            unlocked_for: Some(left).filter(|left| status.is_unlocked && *left > 0),
        }
    }

    fn row(&self) -> Vec<String> {
        let unlocked = match (self.unlocked, self.unlocked_for) {
            (false, _) => "locked".into(),
            (true, None) => "unlocked".into(),
            (true, Some(left)) => format!("unlocked for {}", spoken(left)),
        };
        vec![
            self.token.clone(),
            self.label.into(),
            self.state.into(),
            unlocked,
        ]
    }
}

pub(crate) fn run(session: &Session) -> Answer {
    let daemon = session.needed_daemon()?;
    let status = daemon.status()?;
    let is_own = daemon.hello().is_own;
    let tokens: Vec<TokenView<'_>> = status.tokens.iter().map(TokenView::of).collect();
    match session.json {
        true => output::print_json(&View {
            program: &status.program,
            home_id: &status.home_id,
            own: is_own,
            pid: status.pid,
            uptime: status.uptime_s,
            connections: status.connections,
            requests_in_flight: status.requests_in_flight,
            requests_served: status.requests_served,
            audit: &status.audit,
            audit_failure: Some(&*status.audit_failure).filter(|text| !text.is_empty()),
            tokens,
        })?,
        false => output::print(&text(&status, is_own, &tokens))?,
    }
    Ok(FINE)
}

fn text(status: &StatusReply, is_own: bool, tokens: &[TokenView<'_>]) -> String {
    let serves = match is_own {
        true => "you",
        false => "the system, by grants",
    };
    let audit = match status.audit_failure.as_str() {
        "" => status.audit.clone(),
        failure => format!("{}, which cannot be written: {failure}", status.audit),
    };
    let rows = [
        (
            "daemon",
            format!("{} (process {})", status.program, status.pid),
        ),
        ("serves", serves.into()),
        ("runs for", spoken(status.uptime_s)),
        ("connections", status.connections.to_string()),
        (
            "requests",
            format!(
                "{} served, {} in flight",
                status.requests_served, status.requests_in_flight
            ),
        ),
        ("audit", audit),
    ];
    let rows = rows.map(|(name, value)| vec![name.to_owned(), value]);
    let mut text = output::table("", &rows);
    let tokens: Vec<Vec<String>> = tokens.iter().map(TokenView::row).collect();
    match tokens.is_empty() {
        true => text.push_str("no token was used yet\n"),
        false => text.push_str(&format!("tokens\n{}", output::table("  ", &tokens))),
    }
    text
}
