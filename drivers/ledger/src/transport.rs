//! Transports: complete commands out, complete replies back.

use std::time::Duration;

use claviger_token::{Interval, Watch};
use zeroize::Zeroizing;

/// An open connection to a device. It carries one command at a time.
pub trait Transport: Send {
    /// Sends one command.
    ///
    /// # Errors
    /// [`Broken`]; then the device has not received the whole command.
    fn send(&mut self, apdu: &[u8]) -> Result<(), Broken>;

    /// The next reply with its status word, if it arrives within `wait`.
    ///
    /// A reply may take long, since a person may have to act. So the caller polls, and checks the
    /// time in between.
    ///
    /// # Errors
    /// [`Broken`].
    fn receive(&mut self, wait: Duration) -> Result<Option<Zeroizing<Vec<u8>>>, Broken>;
}

/// The connection to a device is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The device was unplugged, or its emulator ended.
    #[error("{0}")]
    Lost(String),
    /// The received data is not a reply.
    #[error("{0}")]
    Malformed(String),
}

/// A source of devices. There is one implementation for USB, one for TCP, and others in tests.
pub trait Devices: Send + Sync {
    /// The attached devices.
    ///
    /// # Errors
    /// If they cannot be listed.
    fn list(&self) -> Result<Vec<Attached>, Unreachable>;

    /// Waits until devices are plugged in or unplugged.
    fn watch(&self) -> Box<dyn Watch> {
        Box::new(Interval)
    }

    /// The name of the device at `path` that all processes which can reach it share, so that they
    /// take turns. None if no other process can.
    fn shared_name(&self, path: &str) -> Option<String> {
        let _ = path;
        None
    }

    /// Opens the device at `path` for exclusive use: no path is opened twice.
    ///
    /// # Errors
    /// [`Broken`] if it is absent or in use.
    fn connect(&self, path: &str) -> Result<Box<dyn Transport>, Broken>;
}

/// An attached device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The path. It changes when an app is opened or closed.
    pub path: String,
    /// The model, such as `Nano X`.
    pub model: String,
}

/// Devices cannot be listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreachable {
    /// What was attempted.
    pub what: String,
    /// The error.
    pub reason: String,
}
