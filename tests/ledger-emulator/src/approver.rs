//! Somebody who approves whatever the emulated device asks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::configuration::Hardware;
use crate::emulator::{App, Emulator};

/// How often the screen is looked at.
const GLANCE: Duration = Duration::from_millis(20);

/// An emulator whose user approves everything.
pub struct Approver {
    emulator: Arc<Emulator>,
    /// Closed when the user may go.
    stay: Option<Sender<()>>,
    user: Option<JoinHandle<()>>,
}

impl Approver {
    /// Starts an emulator with this app in it.
    ///
    /// # Panics
    /// As [`Emulator::start`] does.
    pub fn start(app: App) -> Self {
        let emulator = Arc::new(Emulator::start(app));
        emulator.learn_home();
        let (stay, go) = mpsc::channel();
        let user = thread::spawn({
            let emulator = Arc::clone(&emulator);
            move || {
                while go.recv_timeout(GLANCE) == Err(RecvTimeoutError::Timeout) {
                    if !emulator.is_idle() {
                        emulator.approve();
                    }
                }
            }
        });
        Approver {
            emulator,
            stay: Some(stay),
            user: Some(user),
        }
    }

    /// The emulator. Whatever it asks is approved.
    pub fn emulator(&self) -> &Emulator {
        &self.emulator
    }

    /// The longest personal message in bytes that the Ethereum app was seen to take on the
    /// device that it was built for; see [`Hardware::longest_message`].
    pub fn longest_message(&self) -> usize {
        let hardware = self.emulator.hardware();
        hardware.unwrap_or(Hardware::NanoSPlus).longest_message()
    }

    /// Where it takes APDUs: see [`Emulator::apdu_address`].
    pub fn apdu_address(&self) -> SocketAddr {
        self.emulator.apdu_address()
    }
}

impl Drop for Approver {
    fn drop(&mut self) {
        drop(self.stay.take());
        if let Some(user) = self.user.take() {
            // What went wrong there has failed the test already, or does not matter any more.
            let _ = user.join();
        }
    }
}
