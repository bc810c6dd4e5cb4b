//! Tokens in software, behind PKCS#11 modules.

use std::sync::Arc;

#[cfg(feature = "piv")]
use claviger_conformance::Subject as _;
use claviger_pkcs11::Pkcs11Driver;
#[cfg(feature = "piv")]
use claviger_tests::OpenSc;
use claviger_tests::{
    Kryoptic, Neighbour, Nss, OpenCryptoki, P11KitClient, P11KitProxy, SoftHsm, Tpm, private,
};
use claviger_token::{Access, Driver, FixedPin, Protection};

use super::{ALL_THERE_IS, GENERATES_ALWAYS, Kind, Parts, Virtual, device, switch};
use crate::bench::BoxedRestart;
use crate::conformance::quietly;
use crate::devices::Device;

pub(super) const VIRTUALS: &[Virtual] = &[
    Virtual {
        name: "softhsm",
        missing: || None,
        start: softhsm,
    },
    Virtual {
        name: "kryoptic",
        missing: Kryoptic::skipped,
        start: kryoptic,
    },
    Virtual {
        name: "tpm2-pkcs11",
        missing: Tpm::skipped,
        start: tpm,
    },
    Virtual {
        name: "nss",
        missing: Nss::skipped,
        start: nss,
    },
    Virtual {
        name: "opencryptoki",
        missing: || inside().or_else(OpenCryptoki::skipped),
        start: opencryptoki,
    },
    Virtual {
        name: "p11-kit-client",
        missing: P11KitClient::skipped,
        start: p11_kit_client,
    },
    Virtual {
        name: "p11-kit-proxy",
        missing: || inside().or_else(P11KitProxy::skipped),
        start: p11_kit_proxy,
    },
    // The card behind it is one of the other driver's fixtures.
    #[cfg(feature = "piv")]
    Virtual {
        name: "opensc",
        missing: || inside().or_else(OpenSc::skipped),
        start: opensc,
    },
];

/// Those that want a view of the system that only this process has.
const INSIDE: [&str; 3] = ["opencryptoki", "p11-kit-proxy", "opensc"];

/// Starts the program anew with a view of the system of its own, where one of `virtuals` wants
/// that. It hides devices that are attached: where these are wanted, too, such devices are
/// left out.
pub fn enter(virtuals: &[Virtual]) {
    if virtuals.iter().any(|one| INSIDE.contains(&one.name)) {
        // What is wrong is said when the device is started.
        let _ = quietly(private::enter);
    }
}

fn inside() -> Option<&'static str> {
    let why = "it hides what is attached: `--virtual` starts it";
    (!private::is_inside() && private::skipped().is_none()).then_some(why)
}

/// Starts what sets variables of the environment. To be called before threads are started.
pub fn prepare(virtuals: &[Virtual]) {
    for one in virtuals.iter().filter(|one| one.missing().is_none()) {
        // What is wrong is said when the device is started.
        let _ = quietly(|| match one.name {
            "softhsm" => SoftHsm::prepare(),
            "kryoptic" => Kryoptic::prepare(),
            "tpm2-pkcs11" => Tpm::prepare(),
            "opencryptoki" => OpenCryptoki::prepare(),
            "p11-kit-client" => P11KitClient::prepare(),
            "p11-kit-proxy" => P11KitProxy::prepare(),
            // Its service takes the place of the system's in this process.
            #[cfg(feature = "piv")]
            "opensc" => OpenSc::prepare(),
            _ => {}
        });
    }
}

/// A PKCS#11 token in software, from the parts that the fixtures have in common.
macro_rules! pkcs11 {
    ($parts:expr, $fixture:ty, $max_keys:expr, $plug:expr) => {{
        let token = Arc::new(<$fixture>::new());
        let others = Neighbour::with_label(<$fixture>::module(), token.label(), <$fixture>::PIN);
        let plug = $plug(&token);
        let make = Box::new(|| Arc::new(Pkcs11Driver::new()) as Arc<dyn Driver>);
        device(
            $parts,
            pkcs11!(kind, $fixture, token, $max_keys, make, plug, others),
        )
    }};
    (kind, $fixture:ty, $token:ident, $max_keys:expr, $make:expr, $plug:expr, $others:expr) => {
        Kind {
            make: $make,
            backend: $token.backend(),
            access: $token.access(),
            wrong: Ok(Access::with(FixedPin::new("tr0mb0ni"))),
            absent: <$fixture>::backend_for("nowhere"),
            plug: $plug,
            others: Ok(Box::new($others)),
            restart: Err(ALL_THERE_IS),
            generates_none: Err(GENERATES_ALWAYS),
            protection: Protection::FULL,
            tap: Arc::default(),
            max_keys: $max_keys,
            longest_message: usize::MAX,
            longest_ed25519_message: usize::MAX,
            home: Box::new($token),
        }
    };
}

fn softhsm(parts: &Parts<'_>) -> Device {
    let plug = |token: &Arc<SoftHsm>| {
        let (off, on) = (Arc::clone(token), Arc::clone(token));
        switch(move || off.remove(), move || on.insert())
    };
    pkcs11!(parts, SoftHsm, Some(100), plug)
}

fn kryoptic(parts: &Parts<'_>) -> Device {
    let plug = |token: &Arc<Kryoptic>| {
        let (off, on) = (Arc::clone(token), Arc::clone(token));
        switch(move || off.remove(), move || on.insert())
    };
    pkcs11!(parts, Kryoptic, Some(100), plug)
}

fn tpm(parts: &Parts<'_>) -> Device {
    let plug = |_: &Arc<Tpm>| Err("a TPM cannot be pulled out");
    pkcs11!(parts, Tpm, Some(20), plug)
}

fn nss(parts: &Parts<'_>) -> Device {
    let token = Arc::new(Nss::new());
    let others = Neighbour::with_label(Nss::module(), token.label(), Nss::PIN);
    let make =
        Box::new(|| Arc::new(Pkcs11Driver::with_locations(Nss::places())) as Arc<dyn Driver>);
    let plug = Err("it keeps its databases open, and does not notice that one is away");
    let kind = pkcs11!(kind, Nss, token, Some(100), make, plug, others);
    // It says of no key that it was made there.
    let protection = Protection {
        local: false,
        ..Protection::FULL
    };
    device(parts, Kind { protection, ..kind })
}

fn opencryptoki(parts: &Parts<'_>) -> Device {
    let token = Arc::new(OpenCryptoki::new());
    let (module, pin) = (OpenCryptoki::module(), OpenCryptoki::PIN);
    let others = Neighbour::in_slot(module, token.slot(), pin);
    let make = Box::new(|| Arc::new(Pkcs11Driver::new()) as Arc<dyn Driver>);
    let plug = Err("it keeps its objects in memory, and does not notice that they are away");
    let kind = pkcs11!(kind, OpenCryptoki, token, Some(100), make, plug, others);
    let restart: BoxedRestart = Box::new(OpenCryptoki::restart_daemon);
    let restart = Ok(restart);
    device(parts, Kind { restart, ..kind })
}

fn p11_kit_client(parts: &Parts<'_>) -> Device {
    let token = Arc::new(P11KitClient::new());
    let (module, pin) = (P11KitClient::module(), P11KitClient::PIN);
    let others = Neighbour::with_label(module, token.label(), pin);
    let make = Box::new(|| Arc::new(Pkcs11Driver::new()) as Arc<dyn Driver>);
    let (off, on, again) = (Arc::clone(&token), Arc::clone(&token), Arc::clone(&token));
    let plug = switch(move || off.remove(), move || on.insert());
    let kind = pkcs11!(kind, P11KitClient, token, Some(100), make, plug, others);
    let restart: BoxedRestart = Box::new(move || {
        again.remove();
        again.insert();
    });
    let restart = Ok(restart);
    device(parts, Kind { restart, ..kind })
}

fn p11_kit_proxy(parts: &Parts<'_>) -> Device {
    let plug = |_: &Arc<P11KitProxy>| Err("what is behind the proxy is pulled out without it");
    pkcs11!(parts, P11KitProxy, Some(100), plug)
}

/// OpenSC's module over a virtual YubiKey behind a pcscd: it uses keys and generates none.
#[cfg(feature = "piv")]
fn opensc(parts: &Parts<'_>) -> Device {
    let module = OpenSc::default();
    let same = module.clone();
    let generates_none: crate::bench::BoxedGeneratesNone = Box::new(move || same.generates_none());
    let kind = Kind {
        make: Box::new(|| Arc::new(Pkcs11Driver::new())),
        backend: module.backend(),
        access: module.access(),
        wrong: module.wrong_access(),
        absent: module.absent_backend().unwrap_or_default(),
        plug: Err("it makes no key that could work again after that"),
        others: Err("OpenSC's tools make no keys on this card"),
        restart: Err(ALL_THERE_IS),
        generates_none: Ok(generates_none),
        protection: Protection::FULL,
        tap: Arc::default(),
        max_keys: None,
        longest_message: usize::MAX,
        longest_ed25519_message: usize::MAX,
        home: Box::new(module),
    };
    device(parts, kind)
}
