//! `unlock` and `lock`: the PINs that a daemon keeps.

use std::time::Duration;

use claviger_token::{TokenId, TokenInfo};
use serde::Serialize;

use super::{Answer, FINE};
use crate::daemon::Daemon;
use crate::failure::Failure;
use crate::output;
use crate::session::Session;
use crate::token_views;

#[derive(Serialize)]
struct Unlocked {
    token: String,
    /// In seconds; `null` until the token is locked or removed.
    r#for: Option<u64>,
}

#[derive(Serialize)]
struct Locked {
    tokens: Vec<String>,
}

pub(crate) fn unlock(session: &Session, token: &str, time: Option<Duration>) -> Answer {
    let daemon = session.needed_daemon()?;
    let backend = backend_of(daemon, token)?;
    let unlocked = {
        let _busy = session.screen.spin("unlocking");
        daemon.unlock(&backend, time)
    };
    let token = unlocked?.to_string();
    let seconds = time.map(|time| time.as_secs());
    if session.json {
        output::print_json(&Unlocked {
            token,
            r#for: seconds,
        })?;
    } else {
        let until = match seconds {
            Some(seconds) => format!(" for {}", spoken(seconds)),
            None => String::new(),
        };
        output::print(&format!("unlocked {}{until}\n", output::one_line(&token)))?;
    }
    Ok(FINE)
}

pub(crate) fn lock(session: &Session, token: Option<&str>) -> Answer {
    let daemon = session.needed_daemon()?;
    let backend = token.map(|token| backend_of(daemon, token)).transpose()?;
    let locked = daemon.lock(&backend.unwrap_or_default())?;
    let tokens: Vec<String> = locked.iter().map(TokenId::to_string).collect();
    if session.json {
        output::print_json(&Locked { tokens })?;
    } else if tokens.is_empty() {
        output::print("no token was unlocked\n")?;
    } else {
        let lines = tokens
            .iter()
            .map(|token| format!("locked {}\n", output::one_line(token)));
        output::print(&lines.collect::<String>())?;
    }
    Ok(FINE)
}

/// The backend of a token that is named by it, by its serial number, or as kind:manufacturer/serial.
fn backend_of(daemon: &Daemon, name: &str) -> Result<String, Failure> {
    let is_whole = name.contains('/') && !name.contains(['=', '?', ';']);
    if name.contains(':') && !is_whole {
        return Ok(name.into());
    }
    let listed = token_views::from_json(&daemon.tokens(None)?.json)?;
    let is_named = |token: &TokenInfo| token.id.serial == name || token.id.to_string() == name;
    let mut named = listed
        .iter()
        .map(|(token, _)| token)
        .filter(|token| is_named(token));
    match (named.next(), named.next()) {
        (Some(token), None) => Ok(token.backend.clone()),
        (Some(_), Some(_)) => Err(Failure::new(format!("several tokens are called `{name}`"))
            .coded("ambiguous-token")
            .hint(crate::hints::by_code("ambiguous-token"))),
        (None, _) => Err(
            Failure::new(format!("no attached token is called `{name}`"))
                .coded("no-token")
                .hint("`claviger tokens` lists the tokens"),
        ),
    }
}

/// A time, in the largest unit that it has without a rest.
pub(super) fn spoken(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "min")];
    match units
        .iter()
        .find(|(unit, _)| seconds >= *unit && seconds.is_multiple_of(*unit))
    {
        Some((unit, name)) => format!("{} {name}", seconds / unit),
        None => format!("{seconds} s"),
    }
}
