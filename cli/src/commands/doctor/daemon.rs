//! The daemon: whether one serves this home, of which version, and whether its audit is written.

use super::{Findings, Level};
use crate::session::Session;

/// This program, as its daemon calls itself.
const OURS: &str = concat!("claviger ", env!("CARGO_PKG_VERSION"));

pub(super) fn check(session: &Session, findings: &mut Findings) {
    let asked = session
        .daemon()
        .and_then(|daemon| daemon.map(|daemon| daemon.status()).transpose());
    let status = match asked {
        Ok(Some(status)) => status,
        Ok(None) => return findings.info("no daemon serves this home; commands work without one"),
        Err(failure) => {
            return findings.error(
                format!("the daemon cannot be used: {}", failure.message()),
                failure.advice(),
            );
        }
    };
    findings.info(format!(
        "a daemon serves this home ({}, process {})",
        status.program, status.pid
    ));
    if status.program != OURS {
        findings.warning(
            format!("the daemon is {}, and this command {OURS}", status.program),
            "restart it: systemctl --user restart claviger.service",
        );
    }
    if !status.audit_failure.is_empty() {
        let level = match status.audit != "best-effort" {
            true => Level::Error,
            false => Level::Warning,
        };
        findings.add(
            level,
            format!(
                "the daemon's audit cannot be written: {}",
                status.audit_failure
            ),
            "check the space and the permissions of its folder; nothing is signed meanwhile, \
             unless the audit is best-effort",
        );
    }
    let is_unlocked = |token: &&claviger_client::wire::TokenStatus| token.is_unlocked;
    match status.tokens.iter().filter(is_unlocked).count() {
        0 => {}
        1 => findings.info("the daemon keeps the PIN of one token"),
        count => findings.info(format!("the daemon keeps the PINs of {count} tokens")),
    }
}
