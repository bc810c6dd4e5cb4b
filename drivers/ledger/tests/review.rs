//! A device that shows a review is left alone until the review is over, by this process and
//! by others.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use claviger_ledger::{LedgerDriver, Tcp};
use claviger_ledger_emulator::{Approval, Ethereum, Server};
use claviger_token::{Call, Driver, Error, Event, Signer, Token, TokenInfo};
use common::{Bus, DECRYPT, SIGN, Told, answers, key, open, open_within, visible, wait_until};

const MESSAGE: &[u8] = b"a message";

fn signer(token: &dyn Token) -> Arc<dyn Signer> {
    token
        .signer(&key(token, "0/secp256k1", SIGN), &Call::unlimited())
        .unwrap()
}

fn state(info: &TokenInfo) -> Option<&str> {
    let mut notes = info.notes.iter();
    notes.find_map(|(name, value)| (name == "state").then_some(&**value))
}

/// The one token that is listed.
fn listed(driver: &LedgerDriver) -> TokenInfo {
    let mut tokens = driver.tokens("ledger:", &Call::unlimited()).unwrap();
    assert_eq!(tokens.len(), 1, "{tokens:?}");
    tokens.remove(0)
}

fn is_busy(info: &TokenInfo) -> bool {
    state(info).is_some_and(|state| state.starts_with("busy with a review"))
}

#[test]
fn while_a_person_is_asked_the_device_gets_no_command_and_is_listed_as_busy() {
    let (bus, app) = (Bus::default(), Ethereum::new());
    bus.plug("usb-1", answers(&app));
    let driver = bus.driver();
    let token = open(&driver, "ledger:").unwrap();
    let signer = signer(&*token);
    let before = visible(&driver, token.info()).unwrap();
    app.set_approval(Approval::Hang);
    thread::scope(|scope| {
        let signed = scope.spawn(|| signer.sign(MESSAGE, &Call::unlimited()).map(drop));
        wait_until(|| app.prompts() == 1);
        let info = listed(&driver);
        assert!(is_busy(&info), "{:?}", info.notes);
        assert_eq!(info.id, token.info().id);
        assert_eq!(visible(&driver, &info).unwrap(), before);
        assert_eq!(app.interruptions(), 0);
        app.set_approval(Approval::Approve);
        signed.join().unwrap().unwrap();
    });
    assert_eq!(state(&listed(&driver)), None);
}

#[test]
fn a_review_that_nobody_waits_for_is_still_a_review() {
    let (bus, app) = (Bus::default(), Ethereum::new());
    bus.plug("usb-1", answers(&app));
    let driver = bus.driver();
    let token = open(&driver, "ledger:").unwrap();
    let signer = signer(&*token);
    app.set_approval(Approval::Hang);
    let sign =
        |milliseconds| signer.sign(MESSAGE, &Call::within(Duration::from_millis(milliseconds)));
    refused!(sign(100), Error::DeadlineExceeded);
    let begun = Instant::now();
    let info = listed(&driver);
    assert!(is_busy(&info), "{:?}", info.notes);
    assert_eq!(info.id, token.info().id);
    // What is known is shown; a key that was never read is not asked for.
    let slots = visible(&driver, &info).unwrap();
    assert!(slots.iter().all(|slot| slot.public_key.is_some()));
    assert!((1..10).contains(&slots.len()), "{slots:?}");
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!((app.interruptions(), app.prompts()), (0, 1));

    app.set_approval(Approval::Reject);
    assert_eq!(state(&listed(&driver)), None);
    assert_eq!(visible(&driver, &info).unwrap().len(), 10);
    app.set_approval(Approval::Approve);
    sign(5000).unwrap();
    assert_eq!(app.interruptions(), 0);
}

/// A driver as another process has it.
fn process(server: &Server) -> LedgerDriver {
    LedgerDriver::with_devices(Tcp {
        address: server.address().to_string(),
    })
}

#[test]
fn other_processes_leave_a_device_alone_that_shows_a_review() {
    let app = Ethereum::new();
    let server = app.serve();
    let (one, other) = (process(&server), process(&server));
    let token = open(&one, "ledger:").unwrap();
    let signer = signer(&*token);
    app.set_approval(Approval::Hang);
    thread::scope(|scope| {
        let signed = scope.spawn(|| signer.sign(MESSAGE, &Call::unlimited()).map(drop));
        wait_until(|| app.prompts() == 1);
        let info = listed(&other);
        assert!(is_busy(&info), "{:?}", info.notes);
        assert_eq!(info.id.serial, "");
        let told = Told::default();
        refused!(
            open_within(&other, "ledger:", &told.within(1000)),
            Error::Busy { .. }
        );
        assert!(matches!(told.events()[..], [Event::ApprovalNeeded { .. }]));
        assert_eq!(app.interruptions(), 0);
        app.set_approval(Approval::Approve);
        signed.join().unwrap().unwrap();
    });
    assert_eq!(listed(&other).id, token.info().id);
    assert_eq!(app.interruptions(), 0);
}

#[test]
fn a_review_that_a_living_process_gave_up_keeps_others_away_only_until_it_is_over() {
    for answer in [Approval::Approve, Approval::Reject] {
        let app = Ethereum::new();
        let server = app.serve();
        let (one, other) = (process(&server), process(&server));
        let token = open(&one, "ledger:").unwrap();
        let signer = signer(&*token);
        app.set_approval(Approval::Hang);
        let soon = Call::within(Duration::from_millis(100));
        refused!(signer.sign(MESSAGE, &soon), Error::DeadlineExceeded);
        assert!(is_busy(&listed(&other)));
        app.set_approval(answer);
        // The first process asks for nothing any more.
        wait_until(|| state(&listed(&other)).is_none());
        assert_eq!(listed(&other).id, token.info().id);
        assert_eq!((app.interruptions(), app.prompts()), (0, 1));
    }
}

#[test]
fn a_device_that_is_unplugged_during_a_review_that_was_given_up_is_free_when_it_is_back() {
    let app = Ethereum::new();
    let server = app.serve();
    let (one, other) = (process(&server), process(&server));
    let token = open(&one, "ledger:").unwrap();
    let signer = signer(&*token);
    app.set_approval(Approval::Hang);
    let soon = Call::within(Duration::from_millis(100));
    refused!(signer.sign(MESSAGE, &soon), Error::DeadlineExceeded);
    server.remove();
    server.insert();
    app.set_approval(Approval::Approve);
    wait_until(|| {
        let tokens = other.tokens("ledger:", &Call::unlimited()).unwrap();
        tokens.iter().any(|found| found.id == token.info().id)
    });
}

#[test]
fn a_process_that_ends_leaves_its_review_to_the_next_one() {
    let app = Ethereum::new();
    let server = app.serve();
    let first = process(&server);
    let token = open(&first, "ledger:").unwrap();
    let signer = signer(&*token);
    app.set_approval(Approval::Hang);
    let soon = || Call::within(Duration::from_millis(100));
    refused!(signer.sign(MESSAGE, &soon()), Error::DeadlineExceeded);
    drop((signer, token, first));

    let next = process(&server);
    assert!(is_busy(&listed(&next)));
    let told = Told::default();
    refused!(
        open_within(&next, "ledger:", &told.within(1000)),
        Error::Busy { .. }
    );
    assert!(matches!(told.events()[..], [Event::ApprovalNeeded { .. }]));
    assert_eq!((app.interruptions(), app.prompts()), (0, 1));
    // Whoever listens when it ends knows that it has.
    app.set_approval(Approval::Approve);
    assert_eq!(state(&listed(&next)), None);
    let token = open(&next, "ledger:").unwrap();
    let decryptor = token.decryptor(&key(&*token, "0/x25519", DECRYPT), &Call::unlimited());
    decryptor.unwrap().confirm(&Call::unlimited()).unwrap();
    assert_eq!(app.interruptions(), 0);
}
