//! Attached Ledgers.

use std::sync::Arc;

use claviger_ledger::LedgerDriver;
use claviger_ledger::transport::{Attached, Broken, Devices, Transport, Unreachable};
use claviger_token::key::to_hex;
use claviger_token::{TokenInfo, Watch};

use super::{AttachedToken, Way, found, not_looked_into};
use crate::transcript::{Line, Tap};

/// A Ledger is opened once in a process, so there is one driver for reading and writing;
/// nothing can be written to a Ledger, and what it is asked to do its owner approves.
pub(super) fn attached(devices: &Arc<dyn Devices>) -> Vec<AttachedToken> {
    let tap = Arc::<Tap>::default();
    let driver = LedgerDriver::with_devices(TappedDevices {
        inner: Arc::clone(devices),
        tap: Arc::clone(&tap),
    });
    if let Err(error) = devices.list() {
        not_looked_into(format_args!("{}: {}", error.what, error.reason));
        return Vec::new();
    }
    let found = found(&driver, "ledger:");
    let seen = |info: TokenInfo| {
        let (driver, tap) = (driver.clone(), Arc::clone(&tap));
        let longest_message = claviger_ledger::longest_message(&info.model);
        AttachedToken {
            info,
            reader: Arc::new(driver.clone()),
            in_reader: None,
            way: Box::new(move |_| way(driver, tap, longest_message)),
        }
    };
    found.into_iter().map(seen).collect()
}

fn way(driver: LedgerDriver, tap: Arc<Tap>, longest_message: usize) -> Way {
    Way {
        look: Arc::new(driver.clone()),
        make: Box::new(move || Arc::new(driver.clone())),
        tap,
        absent: "ledger:serial=0000000000000000".into(),
        longest_message,
        longest_ed25519_message: usize::MAX,
        counts_commands: true,
        is_approved: true,
    }
}

/// Ledgers, past a tap.
pub(crate) struct TappedDevices {
    pub(crate) inner: Arc<dyn Devices>,
    pub(crate) tap: Arc<Tap>,
}

impl Devices for TappedDevices {
    fn list(&self) -> Result<Vec<Attached>, Unreachable> {
        self.inner.list()
    }

    fn watch(&self) -> Box<dyn Watch> {
        self.inner.watch()
    }

    fn shared_name(&self, path: &str) -> Option<String> {
        self.inner.shared_name(path)
    }

    fn connect(&self, path: &str) -> Result<Box<dyn Transport>, Broken> {
        Ok(Box::new(TappedTransport {
            inner: self.inner.connect(path)?,
            tap: Arc::clone(&self.tap),
            sent: Vec::new(),
        }))
    }
}

struct TappedTransport {
    inner: Box<dyn Transport>,
    tap: Arc<Tap>,
    sent: Vec<u8>,
}

impl Transport for TappedTransport {
    fn send(&mut self, apdu: &[u8]) -> Result<(), Broken> {
        self.tap.count();
        self.sent = apdu.to_vec();
        self.inner.send(apdu)
    }

    fn receive(
        &mut self,
        wait: std::time::Duration,
    ) -> Result<Option<zeroize::Zeroizing<Vec<u8>>>, Broken> {
        let reply = self.inner.receive(wait)?;
        if let Some(reply) = &reply {
            // A shared secret (INS 18 with P2 01).
            let hidden = matches!(self.sent[..], [0xe0, 0x18, _, 0x01, ..]) && reply.len() > 2;
            let mut shown = reply.to_vec();
            if hidden {
                let data = shown.len() - 2;
                shown[..data].fill(crate::transcript::HIDDEN);
            }
            self.tap.write(|| Line::Command {
                command: to_hex(&self.sent),
                reply: Some(to_hex(&shown)),
                lost: None,
                present: false,
                command_hidden: false,
                reply_hidden: hidden,
            });
        }
        Ok(reply)
    }
}
