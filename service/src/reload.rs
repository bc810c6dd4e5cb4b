//! Settings that change while a daemon serves, and those that wait until it starts again.

use std::sync::Arc;

use crate::pins::PinSettings;
use crate::settings::{AuditMode, Settings};
use crate::{Limits, Service};

/// What of a daemon can change while it serves.
#[derive(Clone, Default)]
pub struct Changes {
    /// What callers may take. A connection that has more already keeps it.
    pub limits: Limits,
    /// How PINs are handled. What is unlocked for longer than the new
    /// [`longest_unlock`](PinSettings::longest_unlock) is locked when that is over, from now on.
    pub pins: PinSettings,
    /// Whether figures name tokens.
    pub names_tokens: bool,
    /// Whether keys are used even if the log of who used them cannot be written.
    pub is_best_effort: bool,
    /// The identities of which a person confirms each use.
    pub confirmed: Vec<String>,
}

impl Service {
    /// Goes on by other settings. Requests in flight go on, and nothing is closed.
    ///
    /// To be called in the runtime that serves.
    pub fn change(&self, changes: Changes) {
        let shared = &self.shared;
        shared.limits.store(Arc::new(changes.limits));
        shared.audit.as_far_as_possible(changes.is_best_effort);
        shared.keeper().change(changes.pins);
        shared.rules.read_again();
        shared.rules.confirm(&changes.confirmed);
        if let Some(metrics) = &shared.metrics {
            metrics.name_tokens(changes.names_tokens);
        }
    }
}

impl Settings {
    /// The settings of a daemon that runs by `former` once it has read these, and the names of
    /// those that differ and wait until it starts again.
    pub fn after(self, former: &Settings) -> (Self, Vec<&'static str>) {
        let places = |settings: &Settings| {
            let metrics = settings.metrics.as_ref();
            (
                metrics.and_then(|metrics| metrics.socket.clone()),
                metrics.and_then(|metrics| metrics.port),
            )
        };
        let is_off = |settings: &Settings| settings.audit.mode == Some(AuditMode::Off);
        let (audit, new) = (&former.audit, &self.audit);
        let (shown, wanted) = (places(former), places(&self));
        let waiting = [
            ("serve.socket", former.sockets != self.sockets),
            ("serve.log", former.log != self.log),
            ("serve.audit.file", audit.file != new.file),
            ("serve.audit.seal", audit.seal != new.seal),
            ("serve.audit.journal", audit.journal != new.journal),
            ("serve.audit.mode", is_off(former) != is_off(&self)),
            ("serve.metrics.socket", shown.0 != wanted.0),
            ("serve.metrics.port", shown.1 != wanted.1),
        ];
        let waiting = waiting.into_iter().filter(|(_, differs)| *differs);
        let names = waiting.map(|(name, _)| name).collect();
        (self.keeping(former), names)
    }

    /// These, but for what a daemon keeps that runs by `former`.
    fn keeping(mut self, former: &Settings) -> Self {
        let mode = match [&former.audit, &self.audit].map(|audit| audit.mode) {
            [was, is] if [was, is].contains(&Some(AuditMode::Off)) => was,
            [_, is] => is,
        };
        let names = self.metrics.as_ref().is_some_and(|metrics| metrics.names);
        self.sockets.clone_from(&former.sockets);
        self.log = former.log;
        self.audit.clone_from(&former.audit);
        self.audit.mode = mode;
        self.metrics.clone_from(&former.metrics);
        if let Some(metrics) = &mut self.metrics {
            metrics.names = names;
        }
        self
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn settings(text: &str) -> Settings {
        Settings::of_table(text.parse().unwrap()).unwrap()
    }

    #[test]
    fn what_can_change_does_and_what_waits_is_named_and_stays() {
        let former = settings(
            "drain = '1s'\n[[socket]]\nname = 'api'\npath = '/s'\n[audit]\nfile = '/a'\n\
             [metrics]\nsocket = '/m'\n",
        );
        let same = settings(
            "drain = '2s'\nlog-level = 'debug'\n[[socket]]\nname = 'api'\npath = '/s'\n\
             [audit]\nfile = '/a'\nmode = 'best-effort'\n[metrics]\nsocket = '/m'\nnames = true\n\
             [limits]\nconnections = 7\n[pins]\nlongest-unlock = '1h'\n",
        );
        let (now, waiting) = same.after(&former);
        assert!(waiting.is_empty(), "{waiting:?}");
        assert_eq!((now.drain.as_secs(), now.limits.connections), (2, 7));
        assert_eq!(now.audit.mode, Some(AuditMode::BestEffort));
        assert_eq!(now.log_level.name(), "debug");
        assert!(now.metrics.unwrap().names);
        assert_eq!(now.pins.longest_unlock.unwrap().as_secs(), 3600);

        let other = settings(
            "log = 'json'\n[audit]\nfile = '/b'\nseal = 'x'\njournal = false\nmode = 'off'\n\
             [metrics]\nport = 1\nnames = true\n",
        );
        let (now, waiting) = other.after(&former);
        let all = [
            "serve.socket",
            "serve.log",
            "serve.audit.file",
            "serve.audit.seal",
            "serve.audit.journal",
            "serve.audit.mode",
            "serve.metrics.socket",
            "serve.metrics.port",
        ];
        assert_eq!(waiting, all);
        // They wait for as long as they differ, and are not taken for what is used.
        assert_eq!(now.audit, former.audit);
        assert_eq!((&now.sockets, now.log), (&former.sockets, former.log));
        let (mut shown, was) = (now.metrics.clone().unwrap(), former.metrics.unwrap());
        assert!(std::mem::take(&mut shown.names));
        assert_eq!(shown, was);
        let (_, again) = settings("[audit]\nmode = 'off'\n").after(&now);
        assert!(again.contains(&"serve.audit.mode"), "{again:?}");
    }
}
