//! Whose management key makes and destroys keys, and whose memory of refused PINs counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::{Desk, MANAGEMENT_KEY, PIN, access};
use crate::stage::{P256, generate_by, yubikey};
use claviger_token::{
    Access, Call, Deletion, Driver, Error, FixedPin, KeyRef, NewKey, Pin, PinSource,
    RefusedInProcess, Token, TokenId, Unfinished, unfinished_mark,
};
use claviger_virtual_yubikey::{Card, Device, Firmware, ManagementAlgorithm, object};

fn cards() -> [Device; 2] {
    // One that has a command to delete a key, and one that has not.
    [Firmware::V5_7_1, Firmware::V5_4_3].map(|firmware| {
        let card = Card::builder().firmware(firmware).pin(PIN);
        Device::new(card.build())
    })
}

fn using(access: Access) -> Call {
    Call::unlimited().using(access)
}

/// A request that carries the PIN, and no management key.
fn plain() -> Call {
    using(Access::with(FixedPin::new(PIN)))
}

/// One that may try the published management key.
fn trying_defaults() -> Call {
    let mut access = Access::with(FixedPin::new(PIN));
    access.factory_defaults = true;
    using(access)
}

/// A key that is not named yet.
fn begin(token: &dyn Token, call: &Call) -> Result<KeyRef, Error> {
    let slot = token.free_slots(&[P256], &[], call)?.remove(0);
    let new = NewKey {
        slot: &slot,
        spec: P256,
        mark: &unfinished_mark(),
    };
    let public_key = token.generate(&new, call)?.public_key;
    Ok(KeyRef { slot, public_key })
}

/// What needs the management key.
fn changes(token: &dyn Token, key: &KeyRef, call: &Call) -> [Result<(), Error>; 4] {
    let left = Unfinished {
        slot: key.slot.clone(),
        mark: String::new(),
        public_key: Some(key.public_key.clone()),
    };
    [
        begin(token, call).map(drop),
        token.name(key, "alice", call),
        token.discard(&left, call).map(drop),
        token.delete(key, call).map(drop),
    ]
}

fn nothing_is_changed(token: &dyn Token, key: &KeyRef, call: &Call) {
    let before = token.slots(call).unwrap();
    for (what, done) in changes(token, key, call).into_iter().enumerate() {
        let needed = matches!(done, Err(Error::ManagementKeyNeeded { .. }));
        assert!(needed, "{what}: {done:?}");
    }
    assert_eq!(token.slots(call).unwrap(), before);
}

#[test]
fn a_management_key_serves_the_request_that_carries_it_and_no_other() {
    for with_key in [using(access()), trying_defaults()] {
        for device in cards() {
            let driver = Desk::with(&[&device]).driver();
            let token = driver.open("piv:", &with_key).unwrap();
            // Nobody has shown the card a management key yet.
            let slot = token.free_slots(&[P256], &[], &plain()).unwrap().remove(0);
            let new = NewKey {
                slot: &slot,
                spec: P256,
                mark: &unfinished_mark(),
            };
            let made = token.generate(&new, &plain());
            assert!(matches!(made, Err(Error::ManagementKeyNeeded { .. })));
            let key = begin(&*token, &with_key).unwrap();
            // By now the card has accepted one.
            for call in [plain(), Call::unlimited()] {
                nothing_is_changed(&*token, &key, &call);
            }
            // Whoever opened it last.
            for call in [&plain(), &with_key] {
                drop(driver.open("piv:", call).unwrap());
                nothing_is_changed(&*token, &key, &plain());
            }
            token.name(&key, "alice", &with_key).unwrap();
            let deleted = token.delete(&key, &with_key).unwrap();
            assert_eq!(deleted, Deletion::Destroyed);
        }
    }
}

#[test]
fn a_request_that_carries_a_wrong_management_key_gets_no_other_one() {
    let device = Device::new(Card::builder().pin(PIN).build());
    let driver = Desk::with(&[&device]).driver();
    let token = driver.open("piv:", &using(access())).unwrap();
    let key = begin(&*token, &using(access())).unwrap();
    let mut wrong = Access::with(FixedPin::new(PIN));
    wrong.management_keys = Arc::new(FixedPin::new("11".repeat(24)));
    wrong.factory_defaults = true;
    let deleted = token.delete(&key, &using(wrong));
    assert!(
        matches!(deleted, Err(Error::ManagementKeyWrong { .. })),
        "{deleted:?}"
    );
    // It is not kept either.
    token.delete(&key, &using(access())).unwrap();
}

/// Counts how often it is asked, and gives another key each time.
struct Counted {
    keys: [&'static str; 2],
    asked: AtomicUsize,
}

impl PinSource for Counted {
    fn pin(&self, _: &TokenId, _: &str, _: &Call) -> Result<Pin, Error> {
        let number = self.asked.fetch_add(1, Ordering::SeqCst);
        Ok(self.keys[number.min(1)].into())
    }
}

#[test]
fn a_source_is_asked_once_for_the_key_that_the_card_accepts() {
    let device = Device::new(Card::builder().pin(PIN).build());
    let driver = Desk::with(&[&device]).driver();
    let source = Arc::new(Counted {
        keys: ["1111", MANAGEMENT_KEY],
        asked: AtomicUsize::new(0),
    });
    let mut access = Access::with(FixedPin::new(PIN));
    access.management_keys = source.clone();
    let call = using(access);
    let token = driver.open("piv:", &call).unwrap();
    assert_eq!(source.asked.load(Ordering::SeqCst), 0);
    let refused = begin(&*token, &call);
    assert!(matches!(refused, Err(Error::ManagementKeyWrong { .. })));
    // Asked again after a refusal, and then no more.
    let key = begin(&*token, &call).unwrap();
    token.name(&key, "alice", &call).unwrap();
    token.delete(&key, &call).unwrap();
    assert_eq!(source.asked.load(Ordering::SeqCst), 2);
}

#[test]
fn a_management_key_is_wiped_when_the_request_that_brought_it_ends() {
    let device = Device::new(Card::builder().pin(PIN).build());
    let driver = Desk::with(&[&device]).driver();
    let token = driver.open("piv:", &plain()).unwrap();
    let call = using(access());
    let key = begin(&*token, &call).unwrap();
    let Access {
        accepted_keys,
        management_keys: source,
        ..
    } = call.access();
    assert!(accepted_keys.find(&token.info().id, source).is_some());
    let accepted_keys = Arc::downgrade(accepted_keys);
    drop(call);
    // The token is open, and nobody has the key any more.
    assert!(accepted_keys.upgrade().is_none());
    nothing_is_changed(&*token, &key, &plain());
}

#[test]
fn that_a_pin_is_refused_when_it_is_sent_again_is_known_to_whose_pin_it_is() {
    let device = Device::new(Card::builder().pin(PIN).build());
    let desk = Desk::with(&[&device]);
    let driver = desk.driver();
    let memories = [(); 2].map(|()| Arc::new(RefusedInProcess::default()));
    let by = |memory: usize, pin: &str| {
        let mut access = Access::with(FixedPin::new(pin));
        access.management_keys = Arc::new(FixedPin::new(MANAGEMENT_KEY));
        access.refused_pins = memories[memory].clone();
        using(access)
    };
    let first = by(0, PIN);
    let token = driver.open("piv:", &first).unwrap();
    let key = begin(&*token, &first).unwrap();
    let signer = token.signer(&key, &first).unwrap();
    signer.sign(b"message", &first).unwrap();
    // Others change the PIN, and reset the card.
    let changed = |pin: &str| {
        device.card().change_pin(pin);
        desk.reset(&device);
        let signed = signer.sign(b"message", &first);
        assert!(matches!(signed, Err(Error::PinWrong { .. })), "{signed:?}");
        device.card().change_pin(pin);
    };
    changed("864209");
    drop(driver.open("piv:", &by(1, "864209")).unwrap());
    signer.sign(b"message", &first).unwrap();
    changed("975310");
    let tries = device.card().pin_tries();
    let again = driver.open("piv:", &by(1, "864209")).map(drop);
    assert!(
        matches!(again, Err(Error::PinRefusedBefore { .. })),
        "{again:?}"
    );
    assert_eq!(device.card().pin_tries(), tries);
    drop(driver.open("piv:", &by(1, "975310")).unwrap());
}

#[test]
fn management_keys_come_from_where_they_may() {
    let needed = |device: &Device, access: Access| {
        let call = Call::unlimited().using(access);
        let token = Desk::with(&[device]).driver().open("piv:", &call).unwrap();
        let slot = token.free_slots(&[P256], &[], &call).unwrap().remove(0);
        generate_by(&*token, &slot, P256, &call).map(drop)
    };
    let pin_only = || Access::with(FixedPin::new(PIN));
    let keyed = |key: &str| Access {
        management_keys: Arc::new(FixedPin::new(key)),
        ..pin_only()
    };
    let defaults = || Access {
        factory_defaults: true,
        ..pin_only()
    };
    let device = yubikey();
    assert!(matches!(
        needed(&device, pin_only()),
        Err(Error::ManagementKeyNeeded { .. })
    ));
    for key in ["", "zz", "0102", &"11".repeat(24)] {
        assert!(
            matches!(
                needed(&device, keyed(key)),
                Err(Error::ManagementKeyWrong { .. })
            ),
            "{key}"
        );
    }
    assert!(device.card().occupied().len() <= 1);
    needed(&device, defaults()).unwrap();
    needed(&device, keyed(&format!(" {MANAGEMENT_KEY}\n"))).unwrap();

    for algorithm in [
        ManagementAlgorithm::TripleDes,
        ManagementAlgorithm::Aes128,
        ManagementAlgorithm::Aes192,
        ManagementAlgorithm::Aes256,
    ] {
        let key: Vec<u8> = (1..).step_by(2).take(algorithm.key_size()).collect();
        let card = Card::builder().pin(PIN).management_key(algorithm, &key);
        let device = Device::new(card.build());
        needed(&device, keyed(&claviger_token::key::to_hex(&key))).unwrap();
        assert!(matches!(
            needed(&device, defaults()),
            Err(Error::ManagementKeyNeeded { .. })
        ));

        // The same key, behind the PIN.
        let printed = [
            &[0x88, key.len() as u8 + 2, 0x89, key.len() as u8][..],
            &key,
        ]
        .concat();
        let card = Card::builder()
            .pin(PIN)
            .management_key(algorithm, &key)
            .object(object::PRINTED, &printed)
            .object(object::ADMIN_DATA, &[0x80, 0x03, 0x81, 0x01, 0x02]);
        let device = Device::new(card.build());
        needed(&device, pin_only()).unwrap();
    }
}
