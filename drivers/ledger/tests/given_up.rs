//! Callers that give up while the device is at a command.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use claviger_ledger::LedgerDriver;
use claviger_ledger::transport::{Attached, Broken, Devices, Transport, Unreachable};
use claviger_ledger_emulator::Ethereum;
use claviger_token::{Call, Detail, Driver, Error};
use common::{Bus, answers, wait_until};

/// A bus whose devices other processes can reach, too.
struct Shared {
    bus: Bus,
    name: String,
}

impl Devices for Shared {
    fn list(&self) -> Result<Vec<Attached>, Unreachable> {
        self.bus.list()
    }

    fn shared_name(&self, path: &str) -> Option<String> {
        Some(format!("{} {path}", self.name))
    }

    fn connect(&self, path: &str) -> Result<Box<dyn Transport>, Broken> {
        self.bus.connect(path)
    }
}

/// A driver as one of several processes has it.
fn process(bus: &Bus) -> LedgerDriver {
    LedgerDriver::with_devices(Shared {
        bus: bus.clone(),
        name: format!("given up {}", std::process::id()),
    })
}

#[test]
fn a_listing_that_is_given_up_in_a_command_leaves_the_device_to_other_processes() {
    let (mute, answering, app) = (Bus::default(), Bus::default(), Ethereum::new());
    let silent = mute.plug("usb-1", |_| {
        loop {
            thread::park();
        }
    });
    answering.plug("usb-1", answers(&app));
    let (one, other) = (process(&mute), process(&answering));
    let given_up = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        let call = Call::unlimited().cancelled_by(Arc::clone(&given_up));
        let one = &one;
        let looks = scope.spawn(move || one.look("ledger:", Detail::Tokens, &call).map(drop));
        // It is at a command.
        wait_until(|| !silent.take_sent().is_empty());
        given_up.store(true, Ordering::SeqCst);
        refused!(looks.join().unwrap(), Error::Cancelled);
    });
    let listed = other.tokens("ledger:", &Call::unlimited()).unwrap();
    assert_ne!(listed[0].id.serial, "", "{:?}", listed[0].notes);
}
