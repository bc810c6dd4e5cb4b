//! Attached tokens behind PKCS#11 modules.

use std::sync::Arc;

use claviger_pkcs11::Pkcs11Driver;
use claviger_token::{Call, Driver};

use super::{AttachedToken, Way, found};
use crate::config::Config;

/// Says which PKCS#11 tokens there are: their serials and backend strings, a line each.
pub fn pkcs11_tokens(backends: &[String]) -> String {
    let all = backends.iter();
    let all = all.flat_map(|backend| {
        Pkcs11Driver::new()
            .tokens(backend, &Call::unlimited())
            .unwrap_or_default()
    });
    all.map(|info| format!("{}\t{}\n", info.id.serial, info.backend))
        .collect()
}

/// The virtual devices that cannot be beside listed ones, and why: a module is in a process
/// once, and a virtual device has it look elsewhere. `tokens` are those of
/// [`pkcs11_tokens`], said by a process that has no virtual devices.
pub fn in_the_way(tokens: &str, config: &Config, only: &[String]) -> Vec<(String, String)> {
    const MODULES: [(&str, &str); 3] = [
        ("softhsm", "softhsm"),
        ("kryoptic", "kryoptic"),
        ("tpm2-pkcs11", "tpm2"),
    ];
    let mut found = Vec::new();
    for (serial, backend) in tokens.lines().filter_map(|line| line.split_once('\t')) {
        let Some(listed) = config.listed(serial) else {
            continue;
        };
        let name = listed.name.as_ref().unwrap_or(&listed.serial);
        if !only.is_empty() && !only.contains(name) {
            continue;
        }
        let module = backend.rsplit_once("module-path=").map_or("", |(_, m)| m);
        for (virtual_device, part) in MODULES {
            if module.contains(part) && found.iter().all(|(known, _)| known != virtual_device) {
                let why = format!(
                    "{name} is listed and in the same PKCS#11 module, which cannot look at \
                     both: run it with --virtual"
                );
                found.push((virtual_device.to_owned(), why));
            }
        }
    }
    found
}

/// The tokens that these backend strings fit.
pub(super) fn attached(backends: &[String]) -> Vec<AttachedToken> {
    let mut seen: Vec<AttachedToken> = Vec::new();
    for backend in backends {
        let driver: Arc<dyn Driver> = Arc::new(Pkcs11Driver::new());
        // A module may be named, and known to p11-kit as well; but two tokens of one listing
        // are two.
        let before = seen.len();
        for info in found(&*driver, backend) {
            if seen[..before].iter().all(|seen| seen.info.id != info.id) {
                let absent = absent(&info.backend);
                seen.push(AttachedToken {
                    info,
                    reader: Arc::clone(&driver),
                    in_reader: None,
                    way: Box::new(move |_| way(absent)),
                });
            }
        }
    }
    seen
}

fn way(absent: String) -> Way {
    Way {
        make: Box::new(|| Arc::new(Pkcs11Driver::new())),
        look: Arc::new(Pkcs11Driver::new()),
        tap: Arc::default(),
        absent,
        longest_message: usize::MAX,
        longest_ed25519_message: usize::MAX,
        counts_commands: false,
        is_approved: false,
    }
}

/// The backend string of a token that is not there, in the same module.
fn absent(backend: &str) -> String {
    let module = backend.split_once('?').map_or("", |(_, query)| query);
    format!("pkcs11:token=no-such-token?{module}")
}
