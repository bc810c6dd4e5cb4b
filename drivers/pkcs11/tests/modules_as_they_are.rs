//! Modules of others, each with what it does differently.
//!
//! Some have paths compiled in, so that this program needs a view of the system of its own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use claviger_altered_module::AlteredModule;
use claviger_pkcs11::Pkcs11Driver;
use claviger_tests::{Kryoptic, Nss, OpenCryptoki, P11KitClient, P11KitProxy, Tpm, private};
use claviger_token::{
    Access, Algorithm, Call, Detail, Driver, Error, KeyRef, KeySpec, Listed, NewKey, Signer, Token,
    TokenId,
};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

const P256: KeySpec = KeySpec::sign(Algorithm::P256);
const RSA: KeySpec = KeySpec::sign(Algorithm::Rsa2048);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    // cargo-nextest starts this program for each test.
    let is_asked_for = |module: &str| {
        let filter = arguments.filter.as_ref().filter(|_| arguments.exact);
        !arguments.list && filter.is_none_or(|name| name.starts_with(module))
    };
    if is_asked_for("opencryptoki") || is_asked_for("p11_kit_proxy") {
        private::enter();
    }
    let prepared: [Test; 4] = [
        ("p11_kit_proxy", P11KitProxy::skipped, P11KitProxy::prepare),
        (
            "p11_kit_client",
            P11KitClient::skipped,
            P11KitClient::prepare,
        ),
        ("tpm", Tpm::skipped, Tpm::prepare),
        ("kryoptic", Kryoptic::skipped, Kryoptic::prepare),
    ];
    for (module, skipped, prepare) in prepared {
        if is_asked_for(module) && skipped().is_none() {
            prepare();
        }
    }
    let trials = TESTS.iter().map(|(name, skipped, test)| {
        let why = skipped();
        if let Some(why) = why {
            eprintln!("SKIPPED {name}: {why}");
        }
        let run = move || -> Result<Completion, Failed> {
            test();
            Ok(Completion::Completed)
        };
        Trial::ignorable_test(*name, run).with_ignored_flag(why.is_some())
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

type Test = (&'static str, fn() -> Option<&'static str>, fn());

macro_rules! tests {
    ($($module:ident unless $fixture:ident: $($test:ident),*;)*) => {
        const TESTS: &[Test] = &[$($((
            concat!(stringify!($module), "::", stringify!($test)),
            $fixture::skipped,
            $module::$test,
        )),*),*];
    };
}

tests! {
    opencryptoki unless OpenCryptoki:
        tokens_with_one_serial_and_a_malformed_clock_are_listed_by_their_labels_and_sign,
        a_restart_of_the_daemon_under_load_fails_no_signature;
    nss unless Nss:
        a_database_named_by_p11_kit_or_by_the_backend_is_reached;
    p11_kit_client unless P11KitClient:
        a_server_that_restarts_is_reached_by_the_running_process,
        a_server_that_starts_later_is_reached_by_the_running_process,
        a_server_that_hangs_up_is_listed_with_the_reason;
    p11_kit_proxy unless P11KitProxy:
        a_token_behind_it_is_known_for_what_it_is;
    tpm unless Tpm:
        it_is_known_behind_another_library;
    kryoptic unless Kryoptic:
        it_is_known_behind_another_library;
}

fn open(backend: &str, access: &Access) -> Result<Arc<dyn Token>, Error> {
    Pkcs11Driver::new().open(backend, &Call::unlimited().using(access.clone()))
}

fn signer(token: &Arc<dyn Token>, spec: KeySpec) -> Arc<dyn Signer> {
    let call = Call::unlimited();
    let slot = token.free_slots(&[spec], &[], &call).unwrap().remove(0);
    let new = NewKey {
        slot: &slot,
        spec,
        mark: "mark",
    };
    let public_key = token.generate(&new, &call).unwrap().public_key;
    token
        .signer(&KeyRef { slot, public_key }, &Call::unlimited())
        .unwrap()
}

fn sign(signer: &Arc<dyn Signer>) -> Result<(), Error> {
    let signature = signer.sign(b"message", &Call::unlimited())?;
    signer.public_key().verify(b"message", &signature).unwrap();
    Ok(())
}

/// The file of the module that a backend names.
fn module_of(backend: &str) -> &Path {
    Path::new(backend.split_once("module-path=").unwrap().1)
}

/// The same module with another library in front, as far as the driver can tell.
fn behind_p11_kit(backend: &str) -> (AlteredModule, String) {
    let module = AlteredModule::of(module_of(backend));
    module.alter(&["library PKCS#11 Kit"]);
    let (token, _) = backend.split_once('?').unwrap();
    let backend = format!("{token}?module-path={}", module.path().display());
    (module, backend)
}

mod opencryptoki {
    use super::*;

    pub(super) fn tokens_with_one_serial_and_a_malformed_clock_are_listed_by_their_labels_and_sign()
    {
        let two = [OpenCryptoki::new(), OpenCryptoki::new()];
        let module = OpenCryptoki::module();
        let all = format!("pkcs11:?module-path={}", module.display());
        let listed = Pkcs11Driver::new()
            .look(&all, Detail::Tokens, &Call::unlimited())
            .unwrap();
        assert!(listed.unreadable.is_empty(), "{listed:?}");
        for token in &two {
            let is_it = |found: &&Listed| found.info.label == token.label();
            let found = listed.tokens.iter().find(is_it);
            let found = &found.unwrap_or_else(|| panic!("{listed:?}")).info;
            assert_eq!(found.id.serial, format!("123/{}", token.label()));
            let former = TokenId {
                serial: "123".into(),
                ..found.id.clone()
            };
            assert_eq!(found.formerly, [former]);
            sign(&signer(
                &open(&found.backend, &token.access()).unwrap(),
                RSA,
            ))
            .unwrap();
        }
    }

    pub(super) fn a_restart_of_the_daemon_under_load_fails_no_signature() {
        let token = OpenCryptoki::new();
        let signer = signer(&open(&token.backend(), &token.access()).unwrap(), RSA);
        let done = AtomicBool::new(false);
        let signed = std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..5 {
                    OpenCryptoki::restart_daemon();
                }
                done.store(true, Ordering::Relaxed);
            });
            let mut signed = 0;
            while !done.load(Ordering::Relaxed) {
                sign(&signer).unwrap();
                signed += 1;
            }
            signed
        });
        println!("signed {signed} times");
        assert!(signed > 0);
    }
}

mod nss {
    use super::*;

    pub(super) fn a_database_named_by_p11_kit_or_by_the_backend_is_reached() {
        let token = Nss::new();
        let driver = Pkcs11Driver::with_locations(Nss::places());
        let opened = driver.open(&token.backend(), &Call::unlimited().using(token.access()));
        let opened = opened.unwrap();
        sign(&signer(&opened, P256)).unwrap();
        let backend = opened.info().backend.clone();
        assert!(backend.ends_with("?module-name=nss"), "{backend}");
        assert!(opened.info().id.serial.ends_with(token.label()));
        // The backend says it all where there is no p11-kit.
        let argument: String = (Nss::init_argument().bytes())
            .map(|byte| format!("%{byte:02X}"))
            .collect();
        let module = Nss::module();
        let backend = format!(
            "pkcs11:token={}?module-path={}&x-init-reserved={argument}",
            token.label(),
            module.display()
        );
        drop(opened);
        sign(&signer(&open(&backend, &token.access()).unwrap(), P256)).unwrap();
    }
}

mod p11_kit_client {
    use super::*;

    fn wait_for(what: impl Fn() -> bool) {
        let give_up = Instant::now() + Duration::from_secs(20);
        while !what() {
            assert!(Instant::now() < give_up);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(super) fn a_server_that_restarts_is_reached_by_the_running_process() {
        let token = P11KitClient::new();
        let opened = open(&token.backend(), &token.access()).unwrap();
        let signer = signer(&opened, P256);
        for _ in 0..3 {
            sign(&signer).unwrap();
            token.remove();
            let gone = sign(&signer);
            assert!(
                matches!(gone, Err(Error::TokenUnavailable { .. })),
                "{gone:?}"
            );
            token.insert();
            sign(&signer).unwrap();
        }
    }

    pub(super) fn a_server_that_starts_later_is_reached_by_the_running_process() {
        let token = P11KitClient::new();
        let other = AlteredModule::of(&P11KitClient::module());
        // Its name is what it is known by.
        let module = other.folder().join("p11-kit-client.so");
        std::fs::copy(P11KitClient::module(), &module).unwrap();
        let backend = format!(
            "pkcs11:token={}?module-path={}",
            token.label(),
            module.display()
        );
        token.remove();
        let driver = Pkcs11Driver::new();
        let listed = driver
            .look(&backend, Detail::Tokens, &Call::unlimited())
            .unwrap();
        let [unreadable] = &listed.unreadable[..] else {
            panic!("{listed:?}");
        };
        assert!(
            matches!(unreadable.error, Error::NotReady { .. }),
            "{listed:?}"
        );
        let away = open(&backend, &token.access()).map(drop).unwrap_err();
        let Error::NotReady { cure, .. } = away else {
            panic!("{away:?}");
        };
        assert!(cure.contains("p11-kit server"), "{cure}");
        token.insert();
        // Also by who only looks.
        wait_for(|| {
            !driver
                .tokens(&backend, &Call::unlimited())
                .unwrap()
                .is_empty()
        });
        sign(&signer(&open(&backend, &token.access()).unwrap(), P256)).unwrap();
    }

    pub(super) fn a_server_that_hangs_up_is_listed_with_the_reason() {
        let token = P11KitClient::new();
        let other = AlteredModule::of(&P11KitClient::module());
        let module = other.folder().join("p11-kit-client.so");
        std::fs::copy(P11KitClient::module(), &module).unwrap();
        token.remove();
        let socket = P11KitClient::socket();
        let _ = std::fs::remove_file(&socket);
        let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
        std::thread::spawn(move || listener.incoming().for_each(drop));
        let backend = format!("pkcs11:?module-path={}", module.display());
        let listed = Pkcs11Driver::new()
            .look(&backend, Detail::Tokens, &Call::unlimited())
            .unwrap();
        let [unreadable] = &listed.unreadable[..] else {
            panic!("{listed:?}");
        };
        let error = &unreadable.error;
        assert!(matches!(error, Error::NotReady { .. }), "{error:?}");
        assert_eq!(unreadable.place, module.display().to_string());
    }
}

mod p11_kit_proxy {
    use super::*;

    pub(super) fn a_token_behind_it_is_known_for_what_it_is() {
        let token = P11KitProxy::new();
        let opened = open(&token.backend(), &token.access()).unwrap();
        let secp256k1 = KeySpec::sign(Algorithm::Secp256k1);
        assert!(opened.info().makes.contains(&secp256k1));
        sign(&signer(&opened, secp256k1)).unwrap();
    }
}

mod tpm {
    use super::*;

    pub(super) fn it_is_known_behind_another_library() {
        let token = Tpm::new();
        let (_module, backend) = behind_p11_kit(&token.backend());
        let opened = open(&backend, &token.access()).unwrap();
        // Were it not known, a key that only signs would be asked to decrypt.
        sign(&signer(&opened, RSA)).unwrap();
        let oaep = KeySpec::decrypt(Algorithm::Rsa2048);
        assert!(!opened.info().uses.contains(&oaep));
    }
}

mod kryoptic {
    use super::*;

    pub(super) fn it_is_known_behind_another_library() {
        let token = Kryoptic::new();
        let (_module, backend) = behind_p11_kit(&token.backend());
        let found = Pkcs11Driver::new()
            .tokens(&backend, &Call::unlimited())
            .unwrap()
            .remove(0);
        let oaep = KeySpec::decrypt(Algorithm::Rsa2048);
        assert!(found.makes.contains(&oaep));
        assert!(!found.untried.contains(&oaep));
    }
}
