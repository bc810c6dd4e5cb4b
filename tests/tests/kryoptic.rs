//! What SoftHSM2 cannot show: a token that counts wrong PINs until it is locked, and
//! RSA-OAEP with SHA-256.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use claviger_engine::message::RequestGenerateIdentity;
use claviger_engine::{Backend, Capabilities, EngineId, IdParams, Node, Registry};
use claviger_formats::envelope;
use claviger_pkcs11::Pkcs11Driver;
use claviger_tests::Kryoptic;
use claviger_token::{
    Access, Call, Driver, Error, FixedPin, Pin, PinSource, Token, TokenId, TriesLeft,
};
use rand_core::{OsRng, RngCore as _};

/// A token, or nothing where there is no Kryoptic, which is said.
fn token() -> Option<Kryoptic> {
    match Kryoptic::skipped() {
        None => Some(Kryoptic::new()),
        Some(why) => {
            eprintln!(
                "SKIPPED {}: {why}",
                std::thread::current().name().unwrap_or("")
            );
            None
        }
    }
}

/// Gives a PIN, and counts how often it is asked.
#[derive(Clone)]
struct Asked {
    pin: FixedPin,
    times: Arc<AtomicUsize>,
}

impl Asked {
    fn of(pin: &str) -> Self {
        Asked {
            pin: FixedPin::new(pin),
            times: Arc::default(),
        }
    }

    fn times(&self) -> usize {
        self.times.load(Ordering::Relaxed)
    }
}

impl PinSource for Asked {
    fn pin(&self, token: &TokenId, label: &str, call: &Call) -> Result<Pin, Error> {
        self.times.fetch_add(1, Ordering::Relaxed);
        self.pin.pin(token, label, call)
    }
}

fn open(token: &Kryoptic, access: &Access) -> Result<Arc<dyn Token>, Error> {
    Pkcs11Driver::new().open(&token.backend(), &Call::unlimited().using(access.clone()))
}

fn at_any_price(pin: impl PinSource + 'static) -> Access {
    Access {
        last_try: true,
        ..Access::with(pin)
    }
}

/// What the token says of its PIN.
fn notes(token: &Kryoptic) -> Vec<(String, String)> {
    let found = Pkcs11Driver::new()
        .tokens(&token.backend(), &Call::unlimited())
        .unwrap();
    let notes = found[0].notes.iter();
    notes
        .filter(|(name, _)| name.starts_with("pin_"))
        .cloned()
        .collect()
}

fn note(name: &str, value: &str) -> Vec<(String, String)> {
    vec![(name.into(), value.into())]
}

/// Sends wrong PINs until the token says that one try is left.
fn spend_all_but_one(token: &Kryoptic) -> Vec<TriesLeft> {
    let mut left = Vec::new();
    while left.last() != Some(&TriesLeft::Final) {
        let wrong = Access::with(FixedPin::new(format!("wrong-pin-{}", left.len())));
        match open(token, &wrong) {
            Err(Error::PinWrong { tries, .. }) => left.push(tries),
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("a wrong PIN was accepted"),
        }
    }
    left
}

#[test]
fn the_last_try_is_not_spent_unless_somebody_says_so() {
    let Some(token) = token() else { return };
    assert_eq!(notes(&token), []);
    let left = spend_all_but_one(&token);
    let said = [
        [TriesLeft::Unknown; 6].as_slice(),
        &[TriesLeft::Low; 2],
        &[TriesLeft::Final],
    ];
    assert_eq!(left, said.concat());
    assert_eq!(notes(&token), note("pin_tries", "1"));

    let right = Asked::of(Kryoptic::PIN);
    for _ in 0..2 {
        let refused = open(&token, &Access::with(right.clone()));
        assert!(matches!(refused, Err(Error::PinFinalTry { .. })));
    }
    assert_eq!(right.times(), 0);
    assert_eq!(notes(&token), note("pin_tries", "1"));

    drop(open(&token, &at_any_price(right.clone())).unwrap());
    assert_eq!(right.times(), 1);
    assert_eq!(notes(&token), []);
    open(&token, &Access::with(right)).unwrap();
}

#[test]
fn a_locked_token_is_said_to_be_locked_and_asked_for_no_pin() {
    let Some(token) = token() else { return };
    spend_all_but_one(&token);
    let locked = open(&token, &at_any_price(FixedPin::new("wrong-in-the-end")));
    assert!(matches!(locked, Err(Error::PinLocked { .. })));
    assert_eq!(notes(&token), note("pin_locked", "true"));

    let right = Asked::of(Kryoptic::PIN);
    for access in [Access::with(right.clone()), at_any_price(right.clone())] {
        let refused = open(&token, &access);
        assert!(matches!(refused, Err(Error::PinLocked { .. })));
    }
    assert_eq!(right.times(), 0);
}

#[test]
fn the_right_pin_starts_the_count_again() {
    let Some(token) = token() else { return };
    for _ in 0..2 {
        for _ in 0..7 {
            let wrong = FixedPin::new(format!("wrong-{}", OsRng.next_u64()));
            let refused = open(&token, &Access::with(wrong));
            assert!(matches!(refused, Err(Error::PinWrong { .. })));
        }
        assert_eq!(notes(&token), note("pin_tries", "low"));
        open(&token, &token.access()).unwrap();
        assert_eq!(notes(&token), []);
    }
}

#[test]
fn a_pin_that_is_too_short_is_not_sent() {
    let Some(token) = token() else { return };
    for _ in 0..12 {
        let refused = open(&token, &Access::with(FixedPin::new("short")))
            .err()
            .unwrap();
        assert!(matches!(refused, Error::PinLength { .. }));
        assert!(
            refused.to_string().contains("at least 8 bytes"),
            "{refused}"
        );
    }
    open(&token, &token.access()).unwrap();
}

#[tokio::test]
async fn what_others_encrypt_to_an_rsa_key_opens() {
    let Some(token) = token() else { return };
    let home = tempfile::tempdir().unwrap();
    let node = Node::builder(Registry::open(home.path()).unwrap())
        .driver(Pkcs11Driver::new())
        .access(token.access())
        .build();
    let call = Call::unlimited();
    for params in [IdParams::Rsa2048, IdParams::Rsa3072, IdParams::Rsa4096] {
        let name = EngineId::local(params.name());
        let request = RequestGenerateIdentity {
            backend: Backend::from(token.backend()),
            params,
            capabilities: Capabilities::CommitAndDecrypt,
        };
        let made = node.generate(&name, request, &call).await.unwrap();
        let engine = made.decryption_engine.unwrap();

        let decryptor = node.decryptor(&name, &engine, &call).await.unwrap();
        let recipient = envelope::recipient_text(decryptor.public_key()).unwrap();
        assert!(recipient.starts_with("ssh-rsa "));
        let recipient: age::ssh::Recipient = recipient.parse().unwrap();
        let recipients = [&recipient as &dyn age::Recipient];
        let encryptor = age::Encryptor::with_recipients(recipients.into_iter()).unwrap();
        let mut file = Vec::new();
        let mut writer = encryptor.wrap_output(&mut file).unwrap();
        writer.write_all(b"from others").unwrap();
        writer.finish().unwrap();

        let opened = node.decrypt(&name, &engine, file.clone(), &call).await;
        assert_eq!(**opened.unwrap(), *b"from others");
        *file.last_mut().unwrap() ^= 1;
        assert!(node.decrypt(&name, &engine, file, &call).await.is_err());
    }
}
