//! Tells the service manager how the daemon is (`sd_notify`). Without one, nothing happens.

use std::time::Duration;

use claviger_engine::{Node, TokenState};
use sd_notify::NotifyState;

/// So often the status is told, if it changed, where no watchdog wants it more often.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The daemon accepts connections.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The daemon reads its configuration again; [`ready`] says that it has.
pub fn reloading() {
    // systemd 253 and later want the time with it.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// The daemon ends: it answers what was begun, and begins nothing new.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("ending")]);
}

/// Tells the status when it changes, and the watchdog that the daemon lives, until it is dropped. To
/// be run as a task of the runtime that serves: where that hangs, the watchdog is told nothing.
pub async fn keep_telling(status: impl Fn() -> String) {
    // In time even if one of two is late.
    let pause = sd_notify::watchdog_enabled().map(|limit| limit / 2);
    let pause = pause.unwrap_or(LOOK_AGAIN).min(LOOK_AGAIN);
    let mut told = String::new();
    loop {
        let now = status();
        match now == told {
            true => tell(&[NotifyState::Watchdog]),
            false => tell(&[NotifyState::Watchdog, NotifyState::Status(&now)]),
        }
        told = now;
        tokio::time::sleep(pause).await;
    }
}

/// How the tokens are, in few words: `3 tokens, 1 locked`.
pub fn tokens(node: &Node) -> String {
    let mut states = node.token_states();
    states.retain(|(_, state)| *state != TokenState::Absent);
    let is_locked = |state: TokenState| {
        use TokenState::{Blocked, Locked, Present};
        matches!(state, Present | Locked | Blocked)
    };
    let locked = states.iter().filter(|(_, state)| is_locked(*state)).count();
    match states.len() {
        1 => format!("1 token, {locked} locked"),
        tokens => format!("{tokens} tokens, {locked} locked"),
    }
}

fn tell(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}
