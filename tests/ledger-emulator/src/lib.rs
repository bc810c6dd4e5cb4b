//! Ledger devices, for tests only.
//!
//! | device | what it is | what it can |
//! | --- | --- | --- |
//! | [`Emulator`] | a real app in Speculos, Ledger's emulator | what the app can; you have to supply the Ethereum app |
//! | [`Recording`] | recorded replies of the real Ethereum app, byte by byte | only the recorded exchanges |
//! | [`Ethereum`] | a model of the Ethereum app, checked against the recording | everything that Claviger needs, and faults |
//!
//! All three answer APDUs. The emulator listens on a TCP port; the others do, in the same
//! protocol, behind a [`Server`]. An emulator's user is the test, or an [`Approver`].
//! [`Usb`] makes any of them a USB device, which programs
//! that it is shown to find with an unmodified hidapi, and which can misbehave
//! ([`Fault`]).
//!
//! ```no_run
//! use claviger_ledger_emulator::{Approval, Ethereum, Usb};
//!
//! let app = Ethereum::new();
//! let server = app.serve();
//! println!("the device is at {}", server.address());
//!
//! app.set_approval(Approval::Reject);
//! let usb = Usb::new();
//! let device = usb.plug(app.answerer());
//! let mut command = std::process::Command::new("claviger");
//! usb.show_to(&mut command).arg("tokens").status();
//! ```
//!
//! The program `claviger-ledger-emulator` runs any command beside a simulated device.
//!
//! A fixture that is not available panics and says how to get it. Tests that need the emulator
//! first ask whether they are skipped ([`Emulator::skipped`], [`App::ethereum`]), and report it.
#![forbid(unsafe_code)]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a fixture that fails is a test that fails"
)]

mod approver;
mod configuration;
mod device;
mod emulator;
mod ethereum;
mod frames;
mod install;
mod recording;
mod review;
mod scratch;
mod serve;
mod sysfs;
mod usb;

pub use approver::Approver;
pub use configuration::{Configuration, Hardware};
pub use device::{Device, Reply};
pub use emulator::{App, Emulator};
pub use ethereum::{Approval, Ethereum, Running};
pub use recording::{Exchange, Recording};
pub use review::Button;
pub use serve::{Server, exchange};
pub use usb::{Fault, HidDevice, Usb};

/// The seed phrase that Speculos starts with where none is given. It is published: all
/// that it protects is tests.
pub const SEED: &str = "glory promote mansion idle axis finger extra february uncover one trip \
                        resource lawn turtle enact monster seven myth punch hobby comfort wild \
                        raise skin";

/// A reply: data and status word.
fn reply(data: &[u8], status: u16) -> Vec<u8> {
    [data, &status.to_be_bytes()].concat()
}

/// What a mutex holds, also after a test that held it has failed.
fn lock<T: ?Sized>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
