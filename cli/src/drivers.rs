//! The drivers of this build; no other module names one. Each is a feature of the package.

use claviger_engine::node::NodeBuilder;
use claviger_token::{About, Attestation, Error, PublicKey};

/// What the drivers say of themselves.
pub(crate) const ABOUT: &[About] = &[
    #[cfg(feature = "pkcs11")]
    claviger_pkcs11::Pkcs11Driver::ABOUT,
    #[cfg(feature = "piv")]
    claviger_piv::PivDriver::ABOUT,
    #[cfg(feature = "ledger")]
    claviger_ledger::LedgerDriver::ABOUT,
];

/// Gives the drivers to a node.
pub(crate) fn add_to(node: NodeBuilder) -> NodeBuilder {
    #[cfg(feature = "pkcs11")]
    let node = node.driver(claviger_pkcs11::Pkcs11Driver::new());
    #[cfg(feature = "piv")]
    let node = node.driver(claviger_piv::PivDriver::new());
    #[cfg(feature = "ledger")]
    let node = node.driver(claviger_ledger::LedgerDriver::new());
    node
}

/// A PKCS#11 module that p11-kit is configured for.
pub(crate) struct Module {
    pub(crate) path: std::path::PathBuf,
    /// What every token of it fits.
    pub(crate) backend: String,
}

/// These modules, by the order of their configuration; `None` without the driver for them.
pub(crate) fn modules() -> Option<Vec<Module>> {
    #[cfg(feature = "pkcs11")]
    {
        let configured = claviger_pkcs11::modules::Places::of_this_system().configured();
        let modules = configured.into_iter().map(|module| Module {
            backend: module.backend(),
            path: module.path,
        });
        Some(modules.collect())
    }
    #[cfg(not(feature = "pkcs11"))]
    None
}

/// How many PIV cards there are; `None` without the driver for them. The error says why the
/// service does not answer through which smartcards are reached.
pub(crate) fn smartcards() -> Option<Result<usize, Error>> {
    #[cfg(feature = "piv")]
    {
        use claviger_token::{Access, Call, Driver, NoPin};
        // Longer than any card's: the driver looks for it, opens nothing, and says how it went.
        let of_no_card = format!("piv:serial={}", "0".repeat(64));
        let driver = claviger_piv::PivDriver::new();
        Some(
            match driver.open(&of_no_card, &Call::unlimited().using(Access::with(NoPin))) {
                Err(Error::NoToken { present, .. }) => Ok(present.len()),
                Err(error) => Err(error),
                Ok(_) => Ok(1),
            },
        )
    }
    #[cfg(not(feature = "piv"))]
    None
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
