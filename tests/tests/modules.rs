//! What modules of others do that a driver has to live with, found without a driver: over
//! the module itself.
//!
//! Where one of these fails, a module has changed, and what was built on it is to be
//! looked at again.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::ffi::CString;
use std::process::ExitCode;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use claviger_pkcs11::with_module;
use claviger_tests::{Nss, OpenCryptoki, P11KitClient, P11KitProxy, private};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

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
    if is_asked_for("p11_kit_proxy") && P11KitProxy::skipped().is_none() {
        P11KitProxy::prepare();
    }
    if is_asked_for("p11_kit_client") && P11KitClient::skipped().is_none() {
        P11KitClient::prepare();
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
        a_freed_handle_is_handed_out_again_at_once,
        tokens_have_one_serial,
        signatures_go_on_while_the_daemon_restarts;
    nss unless Nss:
        it_wants_an_argument,
        a_key_that_it_generated_is_not_local,
        tokens_have_one_serial_of_zeros;
    p11_kit_client unless P11KitClient:
        a_restarted_server_is_reached_after_a_new_initialisation,
        it_hides_key_agreement;
    p11_kit_proxy unless P11KitProxy:
        it_shows_key_agreement;
}

/// The slot whose token has the label.
fn slot(module: &Pkcs11, label: &str) -> Slot {
    let slots = module.get_slots_with_token().unwrap();
    let has_label = |slot: &Slot| module.get_token_info(*slot).unwrap().label() == label;
    slots.into_iter().find(has_label).unwrap()
}

fn session(module: &Pkcs11, slot: Slot, pin: &str) -> Session {
    let session = module.open_rw_session(slot).unwrap();
    let pin = AuthPin::new(pin.into());
    match session.login(UserType::User, Some(&pin)) {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => session,
        Err(error) => panic!("{error}"),
    }
}

/// An object that every token keeps.
fn object(session: &Session, label: &str) -> ObjectHandle {
    let template = [
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Label(label.into()),
    ];
    session.create_object(&template).unwrap()
}

fn rsa_pair(session: &Session) -> (ObjectHandle, ObjectHandle) {
    let public = [
        Attribute::Token(true),
        Attribute::Verify(true),
        Attribute::ModulusBits(2048.into()),
        Attribute::PublicExponent(vec![1, 0, 1]),
    ];
    let private = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
    ];
    let mechanism = Mechanism::RsaPkcsKeyPairGen;
    session
        .generate_key_pair(&mechanism, &public, &private)
        .unwrap()
}

mod opencryptoki {
    use super::*;

    /// Works in a session of a token of ours.
    fn with_token<T>(work: impl FnOnce(&Session) -> T) -> T {
        let token = OpenCryptoki::new();
        with_module(&OpenCryptoki::module(), |module| {
            let slots = module.get_all_slots().unwrap();
            let slot = slots.into_iter().find(|slot| slot.id() == token.slot());
            work(&session(module, slot.unwrap(), OpenCryptoki::PIN))
        })
        .unwrap()
    }

    pub(super) fn a_freed_handle_is_handed_out_again_at_once() {
        with_token(|session| {
            let old = object(session, "old");
            session.destroy_object(old).unwrap();
            let new = object(session, "new");
            assert_eq!(old, new);
        });
    }

    pub(super) fn tokens_have_one_serial() {
        let two = [OpenCryptoki::new(), OpenCryptoki::new()];
        let output = std::process::Command::new("pkcs11-tool")
            .arg("--module")
            .arg(OpenCryptoki::module())
            .arg("--list-token-slots")
            .output()
            .unwrap();
        let shown = String::from_utf8(output.stdout).unwrap();
        for label in two.iter().map(OpenCryptoki::label) {
            assert_eq!(shown.matches(label).count(), 1, "{shown}");
        }
        let serials = shown.lines().filter(|line| line.contains("serial num"));
        let serials: Vec<_> = serials.collect();
        assert!(serials.len() >= 2, "{shown}");
        let is_the_one = |serial: &&str| serial.ends_with(": 123");
        assert!(serials.iter().all(is_the_one), "{shown}");
    }

    pub(super) fn signatures_go_on_while_the_daemon_restarts() {
        with_token(|session| {
            let (_, private) = rsa_pair(session);
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for _ in 0..5 {
                        OpenCryptoki::restart_daemon();
                    }
                    done.store(true, Ordering::Relaxed);
                });
                let mut signed = 0;
                while !done.load(Ordering::Relaxed) {
                    session
                        .sign(&Mechanism::RsaPkcs, private, b"message")
                        .unwrap();
                    signed += 1;
                }
                println!("signed {signed} times");
                assert!(signed > 0);
            });
        });
    }
}

mod nss {
    use super::*;

    /// The module with its argument, once for the process.
    fn module() -> Pkcs11 {
        let module = Pkcs11::new(Nss::module()).unwrap();
        let argument = CString::new(Nss::init_argument()).unwrap();
        let pointer = NonNull::new(argument.as_ptr().cast_mut().cast()).unwrap();
        let flags = CInitializeFlags::OS_LOCKING_OK;
        // SAFETY: NSS reads a C string there, in C_Initialize, and the string outlives it.
        let arguments = unsafe { CInitializeArgs::new_with_reserved(flags, pointer) };
        match module.initialize(arguments) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => module,
            Err(error) => panic!("{error}"),
        }
    }

    pub(super) fn it_wants_an_argument() {
        // In a process of its own: in this one it may be initialised.
        let output = std::process::Command::new("pkcs11-tool")
            .arg("--module")
            .arg(Nss::module())
            .arg("--list-slots")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(said.contains("CKR_ARGUMENTS_BAD"), "{said}");
    }

    pub(super) fn a_key_that_it_generated_is_not_local() {
        let token = Nss::new();
        let module = module();
        let session = session(&module, slot(&module, token.label()), Nss::PIN);
        let (_, private) = rsa_pair(&session);
        let asked = [
            AttributeType::Local,
            AttributeType::Sensitive,
            AttributeType::Extractable,
        ];
        let said = session.get_attributes(private, &asked).unwrap();
        let expected = [
            Attribute::Local(false),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
        ];
        assert_eq!(said, expected);
    }

    pub(super) fn tokens_have_one_serial_of_zeros() {
        let module = module();
        for token in [Nss::new(), Nss::new()] {
            let info = module.get_token_info(slot(&module, token.label()));
            assert_eq!(info.unwrap().serial_number(), "0000000000000000");
        }
    }
}

mod p11_kit_client {
    use super::*;

    pub(super) fn a_restarted_server_is_reached_after_a_new_initialisation() {
        let token = P11KitClient::new();
        let (file, pin) = (P11KitClient::module(), P11KitClient::PIN);
        with_module(&file, |module| {
            let before = session(module, slot(module, token.label()), pin);
            object(&before, "kept");
            token.remove();
            token.insert();
            let until = Instant::now() + Duration::from_millis(300);
            while Instant::now() < until {
                let refused = module.get_slots_with_token();
                assert!(
                    matches!(refused, Err(Error::Pkcs11(RvError::DeviceError, _))),
                    "{refused:?}"
                );
            }
            module.clone().finalize().unwrap();
            let flags = CInitializeFlags::OS_LOCKING_OK;
            module.initialize(CInitializeArgs::new(flags)).unwrap();
            let after = session(module, slot(module, token.label()), pin);
            let kept = [Attribute::Label("kept".into())];
            assert_eq!(after.find_objects(&kept).unwrap().len(), 1);
        })
        .unwrap();
    }

    pub(super) fn it_hides_key_agreement() {
        let token = P11KitClient::new();
        let offers = offers_key_agreement(&P11KitClient::module(), token.label());
        assert!(!offers);
    }
}

mod p11_kit_proxy {
    use super::*;

    pub(super) fn it_shows_key_agreement() {
        let token = P11KitProxy::new();
        let offers = offers_key_agreement(&P11KitProxy::module(), token.label());
        assert!(offers);
    }
}

/// Whether the token in SoftHSM2, which offers ECDH, does so behind this module.
fn offers_key_agreement(module: &std::path::Path, label: &str) -> bool {
    with_module(module, |module| {
        let mechanisms = module.get_mechanism_list(slot(module, label)).unwrap();
        assert!(mechanisms.contains(&MechanismType::ECDSA));
        mechanisms.contains(&MechanismType::ECDH1_DERIVE)
    })
    .unwrap()
}
