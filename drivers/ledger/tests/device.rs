//! What can go wrong with a device: each a clear error, and nothing is lost.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use claviger_ledger::transport::{Attached, Broken, Devices, Transport, Unreachable};
use claviger_ledger::{LONGEST_MESSAGE, LedgerDriver};
use claviger_ledger_emulator::{Approval, Ethereum, Recording, Running};
use claviger_token::{
    Advice, Algorithm, Call, Decryptor, Deletion, Detail, Driver, Error, Event, KeyRef, NewKey,
    PublicKey, SignatureScheme, Signer, SlotId, SlotState, Token, Unwrap, Watch,
};
use common::{
    Bus, DECRYPT, Device, OTHER_SEED, SIGN, Told, answers, key, open, open_within, visible,
    wait_until,
};

/// A device with the app open, and its keys.
struct Bench {
    bus: Bus,
    app: Ethereum,
    device: Device,
    token: Arc<dyn Token>,
    key: KeyRef,
    signer: Arc<dyn Signer>,
    decryptor: Arc<dyn Decryptor>,
}

impl Bench {
    fn new() -> Bench {
        let (bus, app) = (Bus::default(), Ethereum::new());
        let device = bus.plug("usb-1", answers(&app));
        let token = open(&bus.driver(), "ledger:").unwrap();
        let key = key(&*token, "0/secp256k1", SIGN);
        let signer = token.signer(&key, &Call::unlimited()).unwrap();
        let decryptor = token.decryptor(
            &common::key(&*token, "0/x25519", DECRYPT),
            &Call::unlimited(),
        );
        let decryptor = decryptor.unwrap();
        device.take_sent();
        Bench {
            bus,
            app,
            device,
            token,
            key,
            signer,
            decryptor,
        }
    }

    fn sign(&self, call: &Call) -> Result<(), Error> {
        let message = b"a message";
        let signature = self.signer.sign(message, call)?;
        assert_eq!(signature.scheme(), SignatureScheme::Eip191Secp256k1);
        self.key.public_key.verify(message, &signature).unwrap();
        Ok(())
    }

    fn agree(&self, call: &Call) -> Result<(), Error> {
        let own = x25519_dalek::StaticSecret::from([7; 32]);
        let peer = x25519_dalek::PublicKey::from(&own).to_bytes();
        let peer = PublicKey::from_bytes(Algorithm::X25519, &peer).unwrap();
        let secret = self.decryptor.unwrap(Unwrap::Agree { peer: &peer }, call)?;
        let key = <[u8; 32]>::try_from(self.decryptor.public_key().as_bytes()).unwrap();
        assert!(*secret == own.diffie_hellman(&key.into()).to_bytes());
        Ok(())
    }

    fn works(&self) {
        self.sign(&Call::unlimited()).unwrap();
        self.agree(&Call::unlimited()).unwrap();
    }
}

fn elsewhere(name: &str, refusal: u16) -> Running {
    Running::Other {
        name: name.into(),
        refusal,
    }
}

#[test]
fn the_recorded_app_is_asked_what_was_recorded_and_nothing_else() {
    let (bus, recording) = (Bus::default(), Arc::new(Recording::ethereum()));
    bus.plug("usb-1", {
        let recording = Arc::clone(&recording);
        move |apdu| recording.answer(apdu)
    });
    let token = open(&bus.driver(), "ledger:").unwrap();
    let info = token.info();
    assert_eq!(info.id.to_string(), "ledger:Ledger/8374458579327a58");
    assert!(
        info.notes
            .contains(&("app".into(), "Ethereum 1.23.0-dev".into()))
    );
    let signer = key(&*token, "0/secp256k1", SIGN);
    let signer = token.signer(&signer, &Call::unlimited()).unwrap();
    let call = Call::unlimited();
    for message in [b"identity challenge".to_vec(), vec![b'a'; 400]] {
        let signature = signer.sign(&message, &call).unwrap();
        signer.public_key().verify(&message, &signature).unwrap();
    }
    let decryptor = token
        .decryptor(&key(&*token, "0/x25519", DECRYPT), &Call::unlimited())
        .unwrap();
    let peer = &PublicKey::from_bytes(Algorithm::X25519, &[9; 32]).unwrap();
    let secret = decryptor.unwrap(Unwrap::Agree { peer }, &call).unwrap();
    assert_eq!(secret[..3], [0xb4, 0x04, 0x58]);
    assert!(recording.take_unexpected().is_empty());
}

#[test]
fn in_the_steady_state_nothing_is_asked_but_the_operation() {
    let bench = Bench::new();
    bench.works();
    bench.device.take_sent();
    bench.sign(&Call::unlimited()).unwrap();
    assert_eq!(bench.device.take_sent().len(), 1);
    bench.agree(&Call::unlimited()).unwrap();
    let sent = bench.device.take_sent();
    assert_eq!(sent.len(), 1);
    // With an approval, always.
    assert_eq!(sent[0][..4], [0xe0, 0x18, 0x01, 0x01]);
    for (length, commands) in [(230, 1), (231, 2), (485, 2), (486, 3)] {
        let message = vec![b'x'; length];
        bench.signer.sign(&message, &Call::unlimited()).unwrap();
        assert_eq!(bench.device.take_sent().len(), commands, "{length} bytes");
    }
}

#[test]
fn without_a_device_there_is_no_token() {
    let driver = Bus::default().driver();
    assert!(
        driver
            .tokens("ledger:", &Call::unlimited())
            .unwrap()
            .is_empty()
    );
    let error = open(&driver, "ledger:").map(drop).unwrap_err();
    assert!(matches!(error, Error::NoToken { present, .. } if present.is_empty()));
}

#[test]
fn of_two_seeds_none_is_taken_and_each_is_found_by_its_serial() {
    let bus = Bus::default();
    bus.plug("usb-1", answers(&Ethereum::new()));
    bus.plug("usb-2", answers(&Ethereum::with_seed(OTHER_SEED)));
    let driver = bus.driver();
    let tokens = driver.tokens("ledger:", &Call::unlimited()).unwrap();
    assert_eq!(tokens.len(), 2);
    let names: Vec<String> = tokens.iter().map(|token| token.backend.clone()).collect();
    refused!(
        open(&driver, "ledger:"),
        Error::AmbiguousToken { candidates, .. } if candidates == names
    );
    for info in &tokens {
        assert_eq!(open(&driver, &info.backend).unwrap().info(), info);
        assert_eq!(visible(&driver, info).unwrap().len(), 10);
    }
    let absent = "ledger:serial=0123456789abcdef";
    refused!(
        open(&driver, absent),
        Error::NoToken { present, .. } if present == names
    );
}

#[test]
fn two_devices_with_one_seed_are_one_token() {
    let bus = Bus::default();
    let first = bus.plug("usb-1", answers(&Ethereum::new()));
    bus.plug("usb-2", answers(&Ethereum::new()));
    let driver = bus.driver();
    assert_eq!(
        driver.tokens("ledger:", &Call::unlimited()).unwrap().len(),
        1
    );
    let token = open(&driver, "ledger:").unwrap();
    let signer = token
        .signer(&key(&*token, "3/secp256k1", SIGN), &Call::unlimited())
        .unwrap();
    signer.sign(b"", &Call::unlimited()).unwrap();
    first.unplug();
    signer.sign(b"", &Call::unlimited()).unwrap();
}

#[test]
fn a_locked_device_is_listed_and_nothing_else_is_asked() {
    let (bus, app) = (Bus::default(), Ethereum::new());
    let device = bus.plug("usb-1", answers(&app));
    app.set_locked(true);
    let driver = bus.driver();
    let listed = driver.look("ledger:", Detail::Slots, &Call::unlimited());
    let listed = listed.unwrap().tokens;
    assert_eq!(listed.len(), 1);
    assert!(listed[0].slots.as_ref().unwrap().is_empty());
    assert_eq!(device.take_sent(), [[0xb0, 1, 0, 0, 0]]);
    let tokens = [listed[0].info.clone()];
    assert_eq!(
        (&*tokens[0].id.serial, &*tokens[0].backend),
        ("", "ledger:")
    );
    let state = ("state".into(), "locked: unlock it".into());
    assert_eq!(tokens[0].notes, [state]);
    let by_serial = "ledger:serial=8374458579327a58";
    assert!(
        driver
            .tokens(by_serial, &Call::unlimited())
            .unwrap()
            .is_empty()
    );

    // Also when it was not before.
    app.set_locked(false);
    let _token = open(&driver, "ledger:").unwrap();
    assert_eq!(
        driver.tokens(by_serial, &Call::unlimited()).unwrap().len(),
        1
    );
    app.set_locked(true);
    assert!(
        driver
            .tokens(by_serial, &Call::unlimited())
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        driver.tokens("ledger:", &Call::unlimited()).unwrap(),
        tokens
    );
}

#[test]
fn a_listing_that_is_late_or_given_up_says_so() {
    let (bus, app) = (Bus::default(), Ethereum::new());
    let _device = bus.plug("usb-1", answers(&app));
    let driver = bus.driver();
    let here = driver
        .look("ledger:", Detail::Tokens, &Call::unlimited())
        .unwrap()
        .tokens;
    let attempts = |call: &Call| {
        [
            driver.look("ledger:", Detail::Tokens, call).map(drop),
            driver.look("ledger:", Detail::Slots, call).map(drop),
        ]
    };
    for attempt in attempts(&Call::within(Duration::ZERO)) {
        refused!(attempt, Error::DeadlineExceeded);
    }
    let given_up = Call::unlimited().cancelled_by(Arc::new(AtomicBool::new(true)));
    for attempt in attempts(&given_up) {
        refused!(attempt, Error::Cancelled);
    }
    visible(&driver, &here[0].info).unwrap();
}

#[test]
fn a_person_who_unlocks_in_time_is_waited_for() {
    let (bus, app) = (Bus::default(), Ethereum::new());
    bus.plug("usb-1", answers(&app));
    app.set_locked(true);
    let driver = bus.driver();
    let needed = Event::UnlockNeeded {
        device: "Ledger Nano X".into(),
    };

    let told = Told::default();
    let refused = open_within(&driver, "ledger:", &told.within(900)).map(drop);
    let error = refused.unwrap_err();
    assert!(matches!(error, Error::DeviceLocked { .. }), "{error:?}");
    assert_eq!(error.to_string(), "the Ledger Nano X is locked");
    assert_eq!(error.advice(), Advice::Retry);
    assert_eq!(told.events(), std::slice::from_ref(&needed));

    let told = Told::default();
    let opened = thread::spawn({
        let call = told.call();
        move || open_within(&driver, "ledger:", &call).map(drop)
    });
    wait_until(|| told.events() == [needed.clone()]);
    app.set_locked(false);
    opened.join().unwrap().unwrap();
}

#[test]
fn a_device_that_locks_itself_goes_on_when_it_is_unlocked() {
    let bench = Bench::new();
    bench.app.set_locked(true);
    refused!(
        bench.sign(&Call::within(Duration::from_millis(700))),
        Error::DeviceLocked { .. }
    );
    let told = Told::default();
    thread::scope(|scope| {
        let signed = scope.spawn(|| bench.sign(&told.call()));
        wait_until(|| !told.events().is_empty());
        bench.app.set_locked(false);
        signed.join().unwrap().unwrap();
    });
    bench.works();
}

#[test]
fn a_locked_device_beside_one_that_is_not_makes_it_ambiguous() {
    let (bus, app) = (Bus::default(), Ethereum::with_seed(OTHER_SEED));
    bus.plug("usb-1", answers(&Ethereum::new()));
    bus.plug("usb-2", answers(&app));
    app.set_locked(true);
    let driver = bus.driver();
    refused!(
        open(&driver, "ledger:"),
        Error::AmbiguousToken { candidates, .. } if candidates.len() == 2
    );
    open(&driver, "ledger:serial=8374458579327a58").unwrap();
}

#[test]
fn the_wrong_app_and_no_app_are_told_apart_and_the_right_one_is_waited_for() {
    for (running, refusal, shown) in [
        (
            Some("Bitcoin"),
            0x6d00,
            "the app Bitcoin is open: open the app Ethereum",
        ),
        (None, 0x6e00, "open the app Ethereum on it"),
    ] {
        let (bus, app) = (Bus::default(), Ethereum::new());
        let device = bus.plug("usb-1", answers(&app));
        app.open(elsewhere(running.unwrap_or("BOLOS"), refusal));
        let driver = bus.driver();
        let tokens = driver.tokens("ledger:", &Call::unlimited()).unwrap();
        assert_eq!(tokens[0].notes, [("state".into(), shown.into())]);

        let told = Told::default();
        let wanted = running;
        refused!(
            open_within(&driver, "ledger:", &told.within(600)),
            Error::AppNotOpen { running, .. } if running.as_deref() == wanted
        );
        let needed = Event::AppNeeded {
            device: "Ledger Nano X".into(),
            app: "Ethereum".into(),
        };
        assert_eq!(told.events(), [needed]);

        let told = Told::default();
        thread::scope(|scope| {
            let opened = scope.spawn(|| open_within(&driver, "ledger:", &told.call()).map(drop));
            wait_until(|| !told.events().is_empty());
            // It comes back at another path.
            device.unplug();
            thread::sleep(Duration::from_millis(700));
            app.open(Running::Ethereum);
            device.plug("usb-7");
            opened.join().unwrap().unwrap();
        });
    }
}

#[test]
fn an_app_that_is_closed_meanwhile_is_asked_for() {
    let bench = Bench::new();
    bench.app.open(elsewhere("BOLOS", 0x6e00));
    refused!(
        bench.agree(&Call::within(Duration::from_millis(700))),
        Error::AppNotOpen { .. }
    );
    bench.app.open(Running::Ethereum);
    bench.works();
}

#[test]
fn a_rejection_is_an_error_of_its_own_and_the_next_request_works() {
    let bench = Bench::new();
    bench.app.approve_next(Approval::Reject);
    refused!(bench.sign(&Call::unlimited()), Error::Rejected { .. });
    bench.app.approve_next(Approval::Reject);
    refused!(bench.agree(&Call::unlimited()), Error::Rejected { .. });
    bench.works();
}

#[test]
fn the_caller_is_told_that_an_approval_is_waited_for_and_when_it_came() {
    let bench = Bench::new();
    let told = Told::default();
    bench.app.set_approval(Approval::Hang);
    thread::scope(|scope| {
        let signed = scope.spawn(|| bench.sign(&told.call()));
        wait_until(|| !told.events().is_empty());
        bench.app.set_approval(Approval::Approve);
        signed.join().unwrap().unwrap();
    });
    let token = || bench.token.info().id.clone();
    let expected = [
        Event::ApprovalNeeded { token: token() },
        Event::PersonDone { token: token() },
    ];
    assert_eq!(told.events(), expected);

    // What is approved at once is not worth a word.
    let told = Told::default();
    bench.sign(&told.call()).unwrap();
    assert_eq!(told.events(), []);
}

#[test]
fn unplugged_in_the_middle_of_an_approval_nothing_is_asked_again_by_itself() {
    let bench = Bench::new();
    bench.app.set_approval(Approval::Hang);
    thread::scope(|scope| {
        let signed = scope.spawn(|| bench.sign(&Call::unlimited()));
        wait_until(|| bench.app.prompts() == 1);
        bench.device.unplug();
        refused!(signed.join().unwrap(), Error::TokenUnavailable { .. });
    });
    refused!(
        bench.sign(&Call::unlimited()),
        Error::TokenUnavailable { .. }
    );
    bench.app.set_approval(Approval::Approve);
    thread::sleep(Duration::from_millis(50));
    bench.device.plug("usb-9");
    assert_eq!(bench.app.prompts(), 1);
    bench.works();
}

#[test]
fn unplugged_between_two_requests_it_is_found_at_another_path() {
    let bench = Bench::new();
    bench.works();
    bench.device.unplug();
    bench.device.plug("usb-2");
    bench.works();
    bench.device.unplug();
    refused!(
        bench.agree(&Call::unlimited()),
        Error::TokenUnavailable { .. }
    );
    bench.device.plug("usb-3");
    bench.works();
}

#[test]
fn what_was_unplugged_is_not_listed_and_is_when_it_is_back() {
    let bus = Bus::default();
    let device = bus.plug("usb-1", answers(&Ethereum::new()));
    let driver = bus.driver();
    let listed = || driver.tokens("ledger:", &Call::unlimited()).unwrap().len();
    assert_eq!(listed(), 1);
    device.answer_next(Err(Broken::Lost("unplugged".into())));
    assert_eq!(listed(), 1);
    device.unplug();
    assert_eq!(listed(), 0);
    device.plug("usb-1");
    assert_eq!(listed(), 1);
}

#[test]
fn another_seed_in_its_place_is_not_used() {
    let bench = Bench::new();
    bench.device.unplug();
    let other = Ethereum::with_seed(OTHER_SEED);
    let device = bench.bus.plug("usb-1", answers(&other));
    let refused = bench.sign(&Call::unlimited()).unwrap_err();
    assert!(refused.to_string().contains("another seed"), "{refused}");
    assert_eq!(other.prompts(), 0);
    device.unplug();
    bench.device.plug("usb-1");
    bench.works();
}

#[test]
fn a_signature_of_another_seed_is_not_handed_out() {
    let bench = Bench::new();
    // As when a device is unlocked with the PIN of a hidden wallet.
    let other = Ethereum::with_seed(OTHER_SEED);
    bench.device.swap(answers(&other));
    let refused = bench.sign(&Call::unlimited()).unwrap_err();
    assert!(matches!(refused, Error::TokenUnavailable { .. }));
    assert!(refused.to_string().contains("another seed"), "{refused}");
    bench.device.swap(answers(&bench.app));
    bench.works();
}

#[test]
fn a_late_answer_is_not_taken_for_the_answer_to_the_next_request() {
    let bench = Bench::new();
    let cancelled = Arc::new(AtomicBool::new(false));
    let given_up = Call::unlimited().cancelled_by(Arc::clone(&cancelled));
    bench.app.set_approval(Approval::Hang);
    refused!(
        bench.agree(&Call::within(Duration::from_millis(100))),
        Error::DeadlineExceeded
    );
    // The device still shows it: whoever comes next is told.
    let told = Told::default();
    refused!(bench.agree(&told.within(700)), Error::DeadlineExceeded);
    assert!(matches!(
        &told.events()[..],
        [Event::ApprovalNeeded { token }] if token.serial.is_empty()
    ));
    thread::scope(|scope| {
        let refused = scope.spawn(|| bench.sign(&given_up));
        thread::sleep(Duration::from_millis(100));
        cancelled.store(true, Ordering::Relaxed);
        refused!(refused.join().unwrap(), Error::Cancelled);
    });
    assert_eq!(bench.app.prompts(), 1);
    bench.app.set_approval(Approval::Approve);
    bench.works();
    assert_eq!(bench.app.prompts(), 3);
}

#[test]
fn a_cancellation_ends_the_waiting_for_an_approval_at_once() {
    let bench = Bench::new();
    bench.app.set_approval(Approval::Hang);
    let cancelled = Arc::new(AtomicBool::new(false));
    let call = Call::unlimited().cancelled_by(Arc::clone(&cancelled));
    thread::scope(|scope| {
        let signed = scope.spawn(|| bench.sign(&call));
        wait_until(|| bench.app.prompts() == 1);
        let begun = std::time::Instant::now();
        cancelled.store(true, Ordering::Relaxed);
        refused!(signed.join().unwrap(), Error::Cancelled);
        assert!(begun.elapsed() < Duration::from_millis(300));
    });
    bench.app.set_approval(Approval::Approve);
    bench.works();
}

#[test]
fn what_another_program_left_behind_is_thrown_away_when_a_device_is_opened() {
    let (bus, app) = (Bus::default(), Ethereum::new());
    let left = Ethereum::new();
    let signature = left.answer(&Recording::ethereum().exchanges()[6].apdu);
    let secret = [&[7; 32][..], &[0x90, 0]].concat();
    for late in [&signature[..], &secret, &[0x69, 0x85]] {
        let mut app = answers(&app);
        let late = late.to_vec();
        let (first, this) = (AtomicBool::new(true), Arc::new(OnceLock::new()));
        let itself: Arc<OnceLock<Device>> = Arc::clone(&this);
        let device = bus.plug("usb-1", move |apdu| {
            // The late answer comes first; then the one to the question.
            if first.swap(false, Ordering::Relaxed) {
                itself.get().unwrap().say(&late);
            }
            app(apdu)
        });
        assert!(this.set(device.clone()).is_ok());
        open(&bus.driver(), "ledger:").map(drop).unwrap();
        device.unplug();
    }
}

#[test]
fn a_message_that_is_too_long_is_refused_before_anybody_is_asked() {
    let bench = Bench::new();
    let message = vec![b'x'; LONGEST_MESSAGE + 1];
    let refused = bench.signer.sign(&message, &Call::unlimited()).unwrap_err();
    assert!(matches!(refused, Error::BadMessage { .. }));
    assert!(bench.device.take_sent().is_empty());
    // A device that has not the memory for it.
    for status in [[0x6a, 0x84], [0x6a, 0x80]] {
        bench.device.answer_next(Ok(&status));
        refused!(bench.sign(&Call::unlimited()), Error::BadMessage { .. });
    }
    bench.works();
}

#[test]
fn a_path_that_the_app_does_not_allow_is_said() {
    let bench = Bench::new();
    bench.device.answer_next(Ok(&[0x6a, 0x15]));
    let new = NewKey {
        slot: &SlotId::new("7/x25519"),
        spec: DECRYPT,
        mark: "",
    };
    let refused = bench.token.generate(&new, &Call::unlimited());
    let refused = refused.unwrap_err();
    assert!(matches!(refused, Error::Device { .. }));
    assert!(
        refused
            .to_string()
            .contains("does not allow this derivation path"),
        "{refused}"
    );
    bench.works();
}

#[test]
fn an_app_that_is_busy_with_something_else_is_waited_for() {
    let bench = Bench::new();
    bench.device.answer_next(Ok(&[0x69, 0x86]));
    bench.sign(&Call::unlimited()).unwrap();
    for _ in 0..3 {
        bench.device.answer_next(Ok(&[0x69, 0x86]));
    }
    refused!(
        bench.sign(&Call::within(Duration::from_millis(1200))),
        Error::Busy { .. }
    );
}

#[test]
fn malformed_replies_are_said_to_be_malformed_and_the_next_request_works() {
    let bench = Bench::new();
    let short = [&[27][..], &[1; 63], &[0x90, 0]].concat();
    let wrong = [&[27][..], &[1; 64], &[0x90, 0]].concat();
    for reply in [&[][..], &[0x90], &[0x90, 0], &short, &wrong] {
        bench.device.answer_next(Ok(reply));
        refused!(bench.sign(&Call::unlimited()), Error::MalformedReply { .. });
        bench.works();
    }
    for reply in [&[0x90, 0][..], &[1; 33], &wrong] {
        bench.device.answer_next(Ok(reply));
        let refused = bench.agree(&Call::unlimited()).unwrap_err();
        assert!(matches!(
            refused,
            Error::MalformedReply { .. } | Error::Device { .. }
        ));
        bench.works();
    }
    let frames = Err(Broken::Malformed("frame 2 instead of frame 1".into()));
    bench.device.answer_next(frames);
    refused!(bench.sign(&Call::unlimited()), Error::MalformedReply { .. });
    bench.works();
}

#[test]
fn no_secret_is_made_with_a_peer_of_another_kind() {
    let bench = Bench::new();
    let call = Call::unlimited();
    let peer = k256::SecretKey::from_slice(&[7; 32]).unwrap().public_key();
    let peer = &PublicKey::from_bytes(Algorithm::Secp256k1, &peer.to_sec1_bytes()).unwrap();
    let refused = bench.decryptor.unwrap(Unwrap::Agree { peer }, &call);
    refused!(refused, Error::DecryptionFailed);
    let (ciphertext, label) = (&[9; 32][..], &b""[..]);
    refused!(
        bench
            .decryptor
            .unwrap(Unwrap::Oaep { ciphertext, label }, &call),
        Error::DecryptionFailed
    );
    assert!(bench.device.take_sent().is_empty());
    let zero = [&[0; 32][..], &[0x90, 0]].concat();
    bench.device.answer_next(Ok(&zero));
    refused!(bench.agree(&call), Error::DecryptionFailed);
}

#[test]
fn keys_go_into_the_next_account_that_is_not_taken() {
    let (bus, call) = (Bus::default(), Call::unlimited());
    bus.plug("usb-1", answers(&Ethereum::new()));
    let driver = bus.driver();
    let token = open(&driver, "ledger:").unwrap();
    let slots = |token: &dyn Token, specs: &[_], taken: &[&str]| {
        let taken: Vec<SlotId> = taken.iter().map(|name| SlotId::new(*name)).collect();
        let slots = token.free_slots(specs, &taken, &call)?;
        Ok::<_, Error>(
            slots
                .iter()
                .map(SlotId::to_string)
                .collect::<Vec<_>>()
                .join(" "),
        )
    };
    let chosen = |specs: &[_], taken: &[&str]| slots(&*token, specs, taken).unwrap();
    assert_eq!(chosen(&[SIGN, DECRYPT], &[]), "0/secp256k1 0/x25519");
    assert_eq!(chosen(&[DECRYPT], &["0/secp256k1"]), "1/x25519");
    let taken = &["0/x25519", "1/x25519", "3/secp256k1"];
    assert_eq!(chosen(&[SIGN, DECRYPT], taken), "2/secp256k1 2/x25519");
    assert_eq!(
        chosen(&[SIGN, SIGN, DECRYPT, DECRYPT], taken),
        "2/secp256k1 4/secp256k1 2/x25519 4/x25519"
    );

    let seventh = open(&driver, "ledger:account=7").unwrap();
    let named = |specs: &[_], taken: &[&str]| slots(&*seventh, specs, taken);
    assert_eq!(
        named(&[SIGN, DECRYPT], &[]).unwrap(),
        "7/secp256k1 7/x25519"
    );
    refused!(named(&[SIGN], &["7/x25519"]), Error::SlotOccupied { .. });
    refused!(named(&[SIGN, SIGN], &[]), Error::SlotOccupied { .. });
    // Also when this process took it.
    key(&*seventh, "7/secp256k1", SIGN);
    refused!(named(&[DECRYPT], &[]), Error::SlotOccupied { .. });
    let listed = token.slots(&call).unwrap();
    let live = listed
        .iter()
        .filter(|slot| slot.state == SlotState::Occupied);
    assert_eq!(
        live.map(|slot| slot.slot.to_string()).collect::<Vec<_>>(),
        ["7/secp256k1"]
    );
    assert_eq!(listed.len(), 12);
}

#[test]
fn a_key_that_is_deleted_can_be_derived_again() {
    let bench = Bench::new();
    let call = Call::unlimited();
    assert_eq!(
        bench.token.delete(&bench.key, &call).unwrap(),
        Deletion::Derivable
    );
    assert_eq!(
        bench.token.delete(&bench.key, &call).unwrap(),
        Deletion::NothingThere
    );
    refused!(bench.sign(&call), Error::KeyNotFound { .. });
    // The other key of the account stays.
    bench.agree(&call).unwrap();
    assert_eq!(key(&*bench.token, "0/secp256k1", SIGN), bench.key);
    refused!(bench.sign(&call), Error::KeyNotFound { .. });
    let signer = bench.token.signer(&bench.key, &Call::unlimited()).unwrap();
    signer.sign(b"", &call).unwrap();
    // Nothing is known of it elsewhere.
    let elsewhere = open(&bench.bus.driver(), "ledger:").unwrap();
    let deleted = elsewhere.delete(&bench.key, &call).unwrap();
    assert_eq!(deleted, Deletion::Derivable);
}

#[test]
fn a_malformed_backend_is_refused_before_a_device_is_touched() {
    let (bus, app) = (Bus::default(), Ethereum::new());
    let device = bus.plug("usb-1", answers(&app));
    let driver = bus.driver();
    for backend in [
        "ledger:serial=1",
        "ledger:slot=0",
        "ledger:account=x",
        "ledger:;",
    ] {
        refused!(
            driver.tokens(backend, &Call::unlimited()),
            Error::BadBackend { .. }
        );
        refused!(open(&driver, backend), Error::BadBackend { .. });
    }
    assert!(device.take_sent().is_empty());
}

/// A USB that cannot be listed.
struct NoUsb;

impl Devices for NoUsb {
    fn list(&self) -> Result<Vec<Attached>, Unreachable> {
        Err(Unreachable {
            what: "USB devices cannot be listed".into(),
            reason: "no udev".into(),
        })
    }

    fn connect(&self, _: &str) -> Result<Box<dyn Transport>, Broken> {
        Err(Broken::Lost("there is nothing".into()))
    }
}

#[test]
fn that_devices_cannot_be_listed_is_said() {
    let driver = LedgerDriver::with_devices(NoUsb);
    let listing = driver
        .look("ledger:", Detail::Tokens, &Call::unlimited())
        .unwrap();
    assert!(listing.tokens.is_empty());
    let [unreadable] = &listing.unreadable[..] else {
        panic!("{listing:?}");
    };
    assert!(unreadable.error.to_string().contains("no udev"));
}

/// Devices whose coming and going nobody tells.
struct Untold(Bus);

impl Devices for Untold {
    fn list(&self) -> Result<Vec<Attached>, Unreachable> {
        self.0.list()
    }

    fn watch(&self) -> Box<dyn Watch> {
        Box::new(Silence)
    }

    fn connect(&self, path: &str) -> Result<Box<dyn Transport>, Broken> {
        self.0.connect(path)
    }
}

struct Silence;

impl Watch for Silence {
    fn wait(&mut self, limit: Duration) -> bool {
        thread::sleep(limit);
        false
    }
}

#[test]
fn a_device_that_is_there_is_asked_how_it_is_now_and_then() {
    let bus = Bus::default();
    let driver = LedgerDriver::with_devices(Untold(bus.clone()));
    let mut watch = driver.watch();
    let mut worth_a_look = || (0..30).any(|_| watch.wait(Duration::from_millis(50)));
    assert!(
        driver
            .tokens("ledger:", &Call::unlimited())
            .unwrap()
            .is_empty()
    );
    assert!(!worth_a_look(), "there is nothing");
    bus.plug("usb-1", answers(&Ethereum::new()));
    assert_eq!(
        driver.tokens("ledger:", &Call::unlimited()).unwrap().len(),
        1
    );
    assert!(worth_a_look(), "it may have been locked");
}
