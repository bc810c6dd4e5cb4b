//! SIGHUP: the configuration is read again, and no request is dropped.

use std::path::PathBuf;

use claviger_service::notify;
use claviger_service::reload::Changes;
use claviger_service::settings::{AuditMode, Settings};

use super::{Running, pins};
use crate::config::Config;
use crate::failure::Failure;
use crate::log::DaemonLog;
use crate::session::Session;

/// What a daemon runs by.
pub(super) struct InForce {
    settings: Settings,
    /// The file as it was read last.
    config: Config,
    /// The home that the file named when the daemon started.
    home: Option<PathBuf>,
    log: DaemonLog,
}

impl InForce {
    pub(super) fn new(settings: Settings, config: Config, log: DaemonLog) -> Self {
        InForce {
            settings,
            home: config.settings.home.clone(),
            config,
            log,
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }
}

impl Running {
    /// Begins another file of the audit log, and goes on by the configuration as it is now. One
    /// that is wrong changes nothing.
    pub(super) fn reload(&mut self, session: &Session) {
        notify::reloading();
        // Also if the configuration is wrong: who moved the file aside waits for another one.
        if let Err(error) = self.audit.rotate() {
            tracing::error!(%error, "no other file of the audit log was begun");
        }
        match self.read_again(session) {
            Ok(()) => tracing::info!("the configuration was read again"),
            Err(failure) => {
                let error = failure.message();
                tracing::error!(
                    error,
                    "the configuration cannot be used; nothing was changed"
                );
            }
        }
        notify::ready(&notify::tokens(self.service.node()));
    }

    fn read_again(&mut self, session: &Session) -> Result<(), Failure> {
        let config = self.in_force.config.read_again()?;
        let (settings, mut waiting) = config.serve().after(&self.in_force.settings);
        let changes = Changes {
            limits: settings.limits.clone(),
            pins: pins(session, &settings)?,
            names_tokens: settings
                .metrics
                .as_ref()
                .is_some_and(|metrics| metrics.names),
            is_best_effort: settings.audit.mode == Some(AuditMode::BestEffort),
            confirmed: settings.confirm.clone(),
        };
        // Nothing fails from here on.
        self.service.change(changes);
        self.in_force.log.change(settings.log_level);
        let is_off = self.audit.status().0 == "off";
        if is_off && settings.audit.mode == Some(AuditMode::Required) {
            waiting.push("serve.audit.mode");
        }
        if config.settings.home != self.in_force.home {
            waiting.push("home");
        }
        for setting in waiting {
            tracing::warn!(setting, "this setting changes when the daemon starts again");
        }
        self.in_force.settings = settings;
        self.in_force.config = config;
        Ok(())
    }
}
