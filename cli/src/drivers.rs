//! The drivers of this build; no other module names one. Each is a feature of the package.

use std::sync::Arc;

use claviger_token::needs::Need;
use claviger_token::{About, Attestation, Call, Driver, PublicKey};

/// What the drivers say of themselves.
pub(crate) const ABOUT: &[About] = &[
    #[cfg(feature = "pkcs11")]
    claviger_pkcs11::Pkcs11Driver::ABOUT,
    #[cfg(feature = "piv")]
    claviger_piv::PivDriver::ABOUT,
    #[cfg(feature = "ledger")]
    claviger_ledger::LedgerDriver::ABOUT,
];

/// The drivers.
pub(crate) fn all() -> Vec<Arc<dyn Driver>> {
    let drivers: &[Arc<dyn Driver>] = &[
        #[cfg(feature = "pkcs11")]
        Arc::new(claviger_pkcs11::Pkcs11Driver::new()),
        #[cfg(feature = "piv")]
        Arc::new(claviger_piv::PivDriver::new()),
        #[cfg(feature = "ledger")]
        Arc::new(claviger_ledger::LedgerDriver::new()),
    ];
    drivers.to_vec()
}

/// What the drivers need on this machine. Blocks.
pub(crate) fn needs(call: &Call) -> Vec<Need> {
    all().iter().flat_map(|driver| driver.needs(call)).collect()
}

/// What the driver that serves a backend says of itself.
pub(crate) fn of(backend: &str) -> Option<&'static About> {
    ABOUT.iter().find(|about| about.serves(backend))
}

/// Whether these are certificates (PEM), and at least one.
pub(crate) fn are_certificates(roots: &[String]) -> bool {
    #[cfg(feature = "piv")]
    return !roots.is_empty() && claviger_piv::check_roots(roots).is_ok();
    #[cfg(not(feature = "piv"))]
    return !roots.is_empty();
}

/// Whether a key's attestation leads to one of the certificates. Without the driver that makes
/// attestations none does.
pub(crate) fn leads_to(attestation: &Attestation, key: &PublicKey, roots: &[String]) -> bool {
    #[cfg(feature = "piv")]
    return claviger_piv::verify_chain(attestation, key, roots).unwrap_or(false);
    #[cfg(not(feature = "piv"))]
    {
        let _ = (attestation, key, roots);
        false
    }
}
