//! Certificates that end, or have ended.

use claviger_engine::evidence::now;
use claviger_engine::{EngineError, EngineId, IdentityInfo, Registry};
use claviger_token::{KeyUse, shell};

use super::Findings;

/// So long before its end a certificate is to be renewed, in seconds.
const SOON: u64 = 30 * 24 * 60 * 60;

/// Looks at the certificate of each identity's own key.
pub(super) fn check(registry: &Registry, findings: &mut Findings) -> Result<(), EngineError> {
    for (name, info) in registry.identities()? {
        check_one(registry, &name, &info, findings)?;
    }
    Ok(())
}

fn check_one(
    registry: &Registry,
    name: &EngineId,
    info: &IdentityInfo,
    findings: &mut Findings,
) -> Result<(), EngineError> {
    // One that others are connected to is said once.
    let key = info.key(KeyUse::Sign).filter(|key| key.owner == *name);
    let Some(key) = key else {
        return Ok(());
    };
    let Some(chain) = registry.certificate(&key.public_key)? else {
        return Ok(());
    };
    let [_, end] = chain.shown_times();
    let renew = format!(
        "have it renewed: claviger certificate request {} --subject {}",
        shell::quoted(&name.name),
        shell::quoted(&chain.subject()),
    );
    let now = now();
    match chain.not_after() {
        past if past < now => findings.error(
            format!("the certificate of `{name}` expired on {end}"),
            renew,
        ),
        soon if soon < now.saturating_add(SOON) => findings.warning(
            format!("the certificate of `{name}` expires on {end}"),
            renew,
        ),
        _ if chain.not_before() > now => {
            let [begin, _] = chain.shown_times();
            findings.note(
                format!("the certificate of `{name}` is not valid before {begin}"),
                "check the clock of this machine",
            );
        }
        _ => findings.info(format!("the certificate of `{name}` is valid until {end}")),
    }
    Ok(())
}
