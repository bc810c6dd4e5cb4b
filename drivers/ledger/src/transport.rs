//! Transports: complete commands out, complete replies back.

use std::time::Duration;

use claviger_token::{Interval, Watch};
use zeroize::Zeroizing;

/// An open way to a device. Two commands are never under way at once.
pub trait Transport: Send {
    /// Sends one command.
    ///
    /// # Errors
    /// [`Broken`]; then the device has not seen the whole command.
    fn send(&mut self, apdu: &[u8]) -> Result<(), Broken>;

    /// The next reply, status word included, if there is one within `wait`.
    ///
    /// It may take long: a person may have to look at the device first. So whoever waits
    /// asks again and again, and looks at the clock in between.
    ///
    /// # Errors
    /// [`Broken`].
    fn receive(&mut self, wait: Duration) -> Result<Option<Zeroizing<Vec<u8>>>, Broken>;
}

/// The way to a device is of no further use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The device was unplugged, or what stands for it ended.
    #[error("{0}")]
    Lost(String),
    /// What came is not a reply.
    #[error("{0}")]
    Malformed(String),
}

/// Where devices are. There is one implementation for USB, one for TCP, and others in
/// tests.
pub trait Devices: Send + Sync {
    /// The devices that are attached.
    ///
    /// # Errors
    /// Why that cannot be found out.
    fn list(&self) -> Result<Vec<Attached>, Unreachable>;

    /// What waits for devices to come and go.
    fn watch(&self) -> Box<dyn Watch> {
        Box::new(Interval)
    }

    /// How processes that can reach the device at `path` call it among each other, so that
    /// they take turns: the same name for the same device. None where no other process can.
    fn shared_name(&self, path: &str) -> Option<String> {
        let _ = path;
        None
    }

    /// Opens the device at `path`. Nobody else speaks to it from then on: no path is
    /// opened twice.
    ///
    /// # Errors
    /// [`Broken`] where it is not there or not to be had.
    fn connect(&self, path: &str) -> Result<Box<dyn Transport>, Broken>;
}

/// A device that is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Where. It changes when an app is opened or closed.
    pub path: String,
    /// The model, such as `Nano X`.
    pub model: String,
}

/// It cannot be found out which devices there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreachable {
    /// What was tried.
    pub what: String,
    /// What came of it.
    pub reason: String,
}
