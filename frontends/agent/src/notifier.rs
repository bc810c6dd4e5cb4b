//! Tells the person at the machine that a token waits: by the daemon's log, and by `notify-send` in
//! a graphical session.

use std::process::{Command, Stdio};

use claviger_token::Event;

/// How people are told.
pub(crate) struct Notifier {
    has_screen: bool,
}

impl Default for Notifier {
    fn default() -> Self {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        Notifier {
            has_screen: is_set("DISPLAY") || is_set("WAYLAND_DISPLAY"),
        }
    }
}

impl Notifier {
    /// Tells what a request waits for.
    pub(crate) fn tell(&self, event: &Event, identity: &str, about: &str) {
        let Some(text) = text(event) else {
            return;
        };
        tracing::info!(identity, about, "{text}");
        if self.has_screen {
            show(&text, &format!("{about}, by {identity}"));
        }
    }
}

fn text(event: &Event) -> Option<String> {
    Some(match event {
        Event::TouchNeeded { token } => format!("Touch {token}"),
        Event::ApprovalNeeded { token } => format!("Approve on {token}"),
        Event::UnlockNeeded { device } => format!("Unlock {device}"),
        Event::AppNeeded { device, app } => format!("Open the app {app} on {device}"),
        Event::TokenNeeded { token } => format!("Insert {token}"),
        _ => return None,
    })
}

fn show(title: &str, body: &str) {
    let started = Command::new("notify-send")
        .args(["--app-name=Claviger", "--", title, body])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match started {
        // Somebody must wait for it.
        Ok(mut child) => drop(std::thread::spawn(move || child.wait())),
        Err(error) => tracing::debug!(%error, "notify-send does not start"),
    }
}
