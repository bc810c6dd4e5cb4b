//! Modules that are not SoftHSM's: what keys do there.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![cfg(unix)]

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use claviger_pkcs11::{Pkcs11Driver, with_module};
use claviger_tests::{Kryoptic, Nss, OpenCryptoki, P11KitClient, P11KitProxy, Tpm, private};
use claviger_token::{
    Algorithm, Call, Deletion, Detail, Driver, Error, KeyRef, KeySpec, KeyUse, NewKey, Protection,
    Token, Unfinished, possession, unfinished_mark,
};
use cryptoki::context::Pkcs11;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::Session;
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
    if is_asked_for("tpm") && Tpm::skipped().is_none() {
        Tpm::prepare();
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
            <$fixture>::skipped,
            $module::$test,
        )),*),*];
    };
}

tests! {
    nss unless Nss: keys_live_from_generate_to_delete, an_unfinished_key_is_discarded;
    opencryptoki unless OpenCryptoki:
        keys_live_from_generate_to_delete, a_handle_that_became_another_keys_signs_nothing;
    kryoptic unless Kryoptic:
        keys_live_from_generate_to_delete, an_unfinished_key_is_discarded,
        a_key_that_wants_the_pin_each_time_gets_it,
        the_handle_of_a_destroyed_object_is_never_given_to_another;
    p11_kit_client unless P11KitClient: keys_live_from_generate_to_delete;
    p11_kit_proxy unless P11KitProxy: keys_live_from_generate_to_delete;
    tpm unless Tpm:
        keys_live_from_generate_to_delete, an_unfinished_key_is_discarded,
        what_is_not_said_of_a_public_key_is_inferred_from_the_mechanisms;
}

/// Makes a key that carries a mark.
fn unfinished(token: &dyn Token, spec: KeySpec) -> (KeyRef, Protection, Unfinished) {
    let call = Call::unlimited();
    let slot = token.free_slots(&[spec], &[], &call).unwrap().remove(0);
    let mark = unfinished_mark();
    let new = NewKey {
        slot: &slot,
        spec,
        mark: &mark,
    };
    let made = token.generate(&new, &call).unwrap();
    let key = KeyRef {
        slot: slot.clone(),
        public_key: made.public_key,
    };
    let left = Unfinished {
        slot,
        mark,
        public_key: None,
    };
    (key, made.protection, left)
}

fn proves(token: &dyn Token, key: &KeyRef, usage: KeyUse) -> Result<(), Error> {
    let (id, call) = (&token.info().id, Call::unlimited());
    match usage {
        KeyUse::Sign => possession::of_signer(&*token.signer(key, &Call::unlimited())?, id, &call),
        KeyUse::Decrypt => {
            let decryptor = token.decryptor(key, &Call::unlimited())?;
            possession::of_decryptor(&*decryptor, id, &call)?;
            decryptor.confirm(&call)
        }
    }
}

/// What a key of each kind goes through.
fn live_and_die(token: &dyn Token, kinds: &[KeySpec], is_local: bool) {
    let call = Call::unlimited();
    assert_eq!(token.info().makes, kinds);
    for spec in kinds {
        let (key, protection, left) = unfinished(token, *spec);
        let said = Protection {
            local: is_local,
            ..Protection::FULL
        };
        assert_eq!(protection, said, "{spec}");
        proves(token, &key, spec.usage).unwrap();
        token.name(&key, "ours", &call).unwrap();
        assert_eq!(token.discard(&left, &call).unwrap(), Deletion::Foreign);
        proves(token, &key, spec.usage).unwrap();
        let shown = token.slots(&call).unwrap();
        assert_eq!(shown.len(), 1);
        assert_eq!(shown[0].public_key.as_ref(), Some(&key.public_key));
        assert_eq!(
            (&*shown[0].label, &shown[0].uses[..]),
            ("ours", &[spec.usage][..])
        );
        assert_eq!(token.delete(&key, &call).unwrap(), Deletion::Destroyed);
        assert_eq!(token.delete(&key, &call).unwrap(), Deletion::NothingThere);
        assert_eq!(token.slots(&call).unwrap(), []);
    }
}

fn discards(token: &dyn Token, spec: KeySpec) {
    let call = Call::unlimited();
    let (_, _, left) = unfinished(token, spec);
    assert_eq!(token.discard(&left, &call).unwrap(), Deletion::Destroyed);
    assert_eq!(token.discard(&left, &call).unwrap(), Deletion::NothingThere);
    assert_eq!(token.slots(&call).unwrap(), []);
}

/// Does something on the token in this slot that the driver does not know of.
fn others<T>(module: &Path, slot: u64, work: impl FnOnce(&Session) -> T) -> T {
    with_module(module, |module: &Pkcs11| {
        let slots = module.get_all_slots().unwrap();
        let slot = slots.iter().find(|found| found.id() == slot).unwrap();
        work(&module.open_rw_session(*slot).unwrap())
    })
    .unwrap()
}

const RSA: [KeySpec; 6] = [
    KeySpec::sign(Algorithm::Rsa2048),
    KeySpec::decrypt(Algorithm::Rsa2048),
    KeySpec::sign(Algorithm::Rsa3072),
    KeySpec::decrypt(Algorithm::Rsa3072),
    KeySpec::sign(Algorithm::Rsa4096),
    KeySpec::decrypt(Algorithm::Rsa4096),
];
const EC: [KeySpec; 3] = [
    KeySpec::sign(Algorithm::P256),
    KeySpec::decrypt(Algorithm::P256),
    KeySpec::sign(Algorithm::P384),
];

mod nss {
    use super::*;

    fn open(nss: &Nss) -> Arc<dyn Token> {
        let driver = Pkcs11Driver::with_locations(Nss::places());
        driver
            .open(&nss.backend(), &Call::unlimited().using(nss.access()))
            .unwrap()
    }

    pub(super) fn keys_live_from_generate_to_delete() {
        let nss = Nss::new();
        live_and_die(&*open(&nss), &[&EC[..], &RSA].concat(), false);
    }

    pub(super) fn an_unfinished_key_is_discarded() {
        discards(&*open(&Nss::new()), EC[0]);
    }
}

mod kryoptic {
    use super::*;

    fn open(kryoptic: &Kryoptic) -> Arc<dyn Token> {
        let driver = Pkcs11Driver::new();
        let (backend, access) = (kryoptic.backend(), kryoptic.access());
        driver
            .open(&backend, &Call::unlimited().using(access))
            .unwrap()
    }

    pub(super) fn keys_live_from_generate_to_delete() {
        let kryoptic = Kryoptic::new();
        live_and_die(&*open(&kryoptic), &[&EC[..], &RSA].concat(), true);
    }

    pub(super) fn an_unfinished_key_is_discarded() {
        discards(&*open(&Kryoptic::new()), EC[0]);
    }

    pub(super) fn a_key_that_wants_the_pin_each_time_gets_it() {
        let kryoptic = Kryoptic::new();
        let token = open(&kryoptic);
        let backend = kryoptic.backend();
        let (_, module) = backend.split_once("module-path=").unwrap();
        for usage in [KeyUse::Sign, KeyUse::Decrypt] {
            others(Path::new(module), kryoptic.slot(), |session| {
                let common = [Attribute::Token(true), Attribute::Id(vec![1])];
                let kind = [
                    Attribute::ModulusBits(2048.into()),
                    Attribute::PublicExponent(vec![1, 0, 1]),
                ];
                let private = [
                    Attribute::Private(true),
                    Attribute::AlwaysAuthenticate(true),
                    Attribute::Sign(usage == KeyUse::Sign),
                    Attribute::Decrypt(usage == KeyUse::Decrypt),
                ];
                let public = [&common[..], &kind].concat();
                let private = [&common[..], &private].concat();
                session
                    .generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private)
                    .unwrap();
            });
            let call = Call::unlimited();
            let shown = token.slots(&call).unwrap().remove(0);
            let key = shown.key_ref().unwrap();
            for _ in 0..2 {
                proves(&*token, &key, usage).unwrap();
            }
            assert_eq!(token.delete(&key, &call).unwrap(), Deletion::Destroyed);
        }
    }

    pub(super) fn the_handle_of_a_destroyed_object_is_never_given_to_another() {
        let kryoptic = Kryoptic::new();
        let token = open(&kryoptic);
        let backend = kryoptic.backend();
        let (_, module) = backend.split_once("module-path=").unwrap();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..20 {
            let (key, ..) = unfinished(&*token, EC[0]);
            others(Path::new(module), kryoptic.slot(), |session| {
                let objects = session.find_objects(&[Attribute::Token(true)]).unwrap();
                assert_eq!(objects.len(), 2);
                for object in objects {
                    assert!(seen.insert(object.handle()), "a handle came again");
                }
            });
            token.delete(&key, &Call::unlimited()).unwrap();
        }
    }
}

mod opencryptoki {
    use super::*;

    fn open(opencryptoki: &OpenCryptoki) -> Arc<dyn Token> {
        let driver = Pkcs11Driver::new();
        let (backend, access) = (opencryptoki.backend(), opencryptoki.access());
        driver
            .open(&backend, &Call::unlimited().using(access))
            .unwrap()
    }

    pub(super) fn keys_live_from_generate_to_delete() {
        let opencryptoki = OpenCryptoki::new();
        live_and_die(&*open(&opencryptoki), &RSA, true);
    }

    /// An RSA key pair of others.
    fn theirs(session: &Session) -> [ObjectHandle; 2] {
        let common = [Attribute::Token(true), Attribute::Id(vec![1])];
        let kind = [
            Attribute::ModulusBits(2048.into()),
            Attribute::PublicExponent(vec![1, 0, 1]),
        ];
        let public = [&common[..], &kind].concat();
        let private = [
            &common[..],
            &[Attribute::Private(true), Attribute::Sign(true)],
        ]
        .concat();
        let pair = session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private);
        let (public, private) = pair.unwrap();
        [public, private]
    }

    pub(super) fn a_handle_that_became_another_keys_signs_nothing() {
        let opencryptoki = OpenCryptoki::new();
        let token = open(&opencryptoki);
        let call = Call::unlimited();
        let (key, ..) = unfinished(&*token, RSA[0]);
        let signer = token.signer(&key, &Call::unlimited()).unwrap();
        signer.sign(b"message", &call).unwrap();
        let reused = others(&OpenCryptoki::module(), opencryptoki.slot(), |session| {
            let ours = session.find_objects(&[Attribute::Token(true)]).unwrap();
            for object in &ours {
                session.destroy_object(*object).unwrap();
            }
            let theirs = theirs(session);
            ours.iter().filter(|handle| theirs.contains(handle)).count()
        });
        // Else this shows nothing.
        assert!(reused > 0, "no handle came again");
        for _ in 0..2 {
            let signed = signer.sign(b"message", &call);
            assert!(
                matches!(signed, Err(Error::KeyNotFound { .. })),
                "{signed:?}"
            );
        }
        assert_eq!(token.delete(&key, &call).unwrap(), Deletion::NothingThere);
        assert_eq!(token.slots(&call).unwrap().len(), 1);
    }
}

mod p11_kit_client {
    use super::*;

    pub(super) fn keys_live_from_generate_to_delete() {
        let client = P11KitClient::new();
        let driver = Pkcs11Driver::new();
        let (backend, access) = (client.backend(), client.access());
        let token = driver
            .open(&backend, &Call::unlimited().using(access))
            .unwrap();
        let makes = token.info().makes.clone();
        live_and_die(&*token, &makes, true);
    }
}

mod p11_kit_proxy {
    use super::*;

    pub(super) fn keys_live_from_generate_to_delete() {
        let proxy = P11KitProxy::new();
        let driver = Pkcs11Driver::new();
        let (backend, access) = (proxy.backend(), proxy.access());
        let token = driver
            .open(&backend, &Call::unlimited().using(access))
            .unwrap();
        let makes = token.info().makes.clone();
        live_and_die(&*token, &makes, true);
    }
}

mod tpm {
    use super::*;

    fn open(tpm: &Tpm) -> Arc<dyn Token> {
        let driver = Pkcs11Driver::new();
        driver
            .open(&tpm.backend(), &Call::unlimited().using(tpm.access()))
            .unwrap()
    }

    pub(super) fn keys_live_from_generate_to_delete() {
        let tpm = Tpm::new();
        let kinds = [
            KeySpec::sign(Algorithm::P256),
            KeySpec::sign(Algorithm::P384),
            KeySpec::sign(Algorithm::Rsa2048),
            KeySpec::sign(Algorithm::Rsa3072),
        ];
        live_and_die(&*open(&tpm), &kinds, true);
    }

    pub(super) fn an_unfinished_key_is_discarded() {
        discards(&*open(&Tpm::new()), EC[0]);
    }

    pub(super) fn what_is_not_said_of_a_public_key_is_inferred_from_the_mechanisms() {
        let tpm = Tpm::new();
        let token = open(&tpm);
        let (key, ..) = unfinished(&*token, KeySpec::sign(Algorithm::P256));
        // Without a PIN.
        let found =
            Pkcs11Driver::new().look(&token.info().backend, Detail::Slots, &Call::unlimited());
        let seen = found.unwrap().slots_of(&token.info().id).unwrap();
        assert_eq!(seen[0].public_key.as_ref(), Some(&key.public_key));
        assert_eq!(seen[0].uses, [KeyUse::Sign]);
    }
}
