//! The virtual devices of a run: a module for each driver that has some.

#[cfg(feature = "ledger")]
mod ledger;
#[cfg(feature = "piv")]
mod piv;
#[cfg(feature = "pkcs11")]
mod pkcs11;
#[cfg(feature = "piv")]
mod tray;

use std::sync::{Arc, Mutex};

use claviger_token::{Access, Protection};

#[cfg(feature = "pkcs11")]
pub use self::pkcs11::{enter, prepare};
#[cfg(feature = "piv")]
pub use self::tray::{Tray, Trays};

use crate::bench::{
    Bench, BoxedGeneratesNone, BoxedOthers, BoxedPlug, BoxedRestart, MakeDriver, Possible, Switch,
};
use crate::conformance::quietly;
use crate::devices::{Common, Device, elsewhere, subject};
use crate::results::Standing;
use crate::transcript::Tap;

/// A device that can be started.
#[derive(Clone, Copy)]
pub struct Virtual {
    /// What reports call it.
    pub name: &'static str,
    /// Why it is not there, if it is not.
    missing: fn() -> Option<&'static str>,
    start: fn(&Parts<'_>) -> Device,
}

/// What the start of a device is given.
struct Parts<'a> {
    name: &'static str,
    common: &'a Common,
}

/// Every device that this build can start, in the order of the table in `docs/tokens.md`.
pub const VIRTUALS: &[&[Virtual]] = &[
    #[cfg(feature = "pkcs11")]
    pkcs11::VIRTUALS,
    #[cfg(feature = "piv")]
    piv::VIRTUALS,
    #[cfg(feature = "ledger")]
    ledger::VIRTUALS,
];

/// The names of those that every machine can start, also of those that this build does not
/// have.
pub const ORDER: [&str; 13] = [
    "softhsm",
    "kryoptic",
    "tpm2-pkcs11",
    "nss",
    "opencryptoki",
    "p11-kit-client",
    "p11-kit-proxy",
    "opensc",
    "yubikey-4.3.5",
    "yubikey-5.4.3",
    "yubikey-5.7.1",
    "piv-authenticator",
    "ledger-model",
];

impl Virtual {
    /// Why this machine or this build does without it, if it does.
    pub(crate) fn missing(&self) -> Option<&'static str> {
        (self.missing)()
    }

    /// Starts it.
    ///
    /// # Errors
    /// Why it cannot be had, though it is not missing.
    pub(crate) fn start(&self, common: &Common) -> Result<Device, String> {
        let parts = Parts {
            name: self.name,
            common,
        };
        // Fixtures are made for tests: where something is wrong they panic, and say what.
        quietly(|| (self.start)(&parts))
    }
}

/// What a kind of virtual device has of its own.
struct Kind {
    make: MakeDriver,
    backend: String,
    access: Access,
    wrong: Possible<Access>,
    absent: String,
    plug: Possible<BoxedPlug>,
    others: Possible<BoxedOthers>,
    restart: Possible<BoxedRestart>,
    generates_none: Possible<BoxedGeneratesNone>,
    protection: Protection,
    tap: Arc<Tap>,
    max_keys: Option<usize>,
    longest_message: usize,
    longest_ed25519_message: usize,
    home: Box<dyn Send>,
}

#[expect(
    clippy::panic,
    reason = "what panics here is caught: see `Virtual::start`"
)]
fn device(parts: &Parts<'_>, kind: Kind) -> Device {
    let reader = (kind.make)();
    let found = reader.tokens(&kind.backend, &claviger_token::Call::unlimited());
    let info = match found.map(|mut found| found.pop()) {
        Ok(Some(info)) if info.id.serial.is_empty() => {
            let mut notes = info.notes.into_iter();
            let state = notes.find_map(|(name, state)| (name == "state").then_some(state));
            panic!("{}", state.unwrap_or("it does not say who it is".into()));
        }
        Ok(Some(info)) => info,
        Ok(None) => panic!("the device was started, and is not there"),
        Err(error) => panic!("{error}"),
    };
    let scheme = &*info.id.kind;
    let bench = Bench {
        guard: parts.common.guard(parts.name, &kind.tap),
        make: kind.make,
        driver: Mutex::default(),
        access: kind.access,
        wrong: kind.wrong,
        absent: Ok(kind.absent),
        plug: kind.plug,
        others: kind.others,
        restart: kind.restart,
        generates_none: kind.generates_none,
        protection: kind.protection,
        room: Mutex::new(Err(match scheme {
            "ledger" => "a Ledger has two thousand million accounts",
            _ => "the token has no bound that a test could reach",
        })),
        longest_message: kind.longest_message,
        longest_ed25519_message: kind.longest_ed25519_message,
        max_keys: kind.max_keys,
        counts_commands: scheme != "pkcs11",
        is_approved: false,
        wipe: true,
        elsewhere: match parts.name {
            // A TPM without a resource manager serves one process.
            "tpm2-pkcs11" => None,
            _ => elsewhere(&kind.backend),
        },
        backend: kind.backend,
    };
    Device {
        subject: subject(parts.name, &info, Standing::Virtual),
        info,
        reader,
        bench: Ok(bench),
        fault: None,
        _home: Some(kind.home),
    }
}

/// What restarts behind a token.
const ALL_THERE_IS: &str = "nothing stands behind the token that could restart";
/// What generates none.
const GENERATES_ALWAYS: &str = "a token of this kind that generates no keys cannot be had";

fn switch(
    off: impl Fn() + Send + Sync + 'static,
    on: impl Fn() + Send + Sync + 'static,
) -> Possible<BoxedPlug> {
    Ok(Box::new(Switch {
        off: Box::new(off),
        on: Box::new(on),
    }))
}
