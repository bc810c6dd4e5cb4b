//! Every check of the conformance suite on a device that a program attaches over a socket.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod common;
#[path = "../../client/examples/device.rs"]
#[allow(dead_code, unreachable_pub, reason = "it is an example of its own")]
mod example;
#[path = "devices/stage.rs"]
#[allow(dead_code, reason = "each test program uses its part")]
mod stage;

use std::sync::{Arc, Mutex};

use claviger_client::device::{Device, LONGEST_MESSAGE};
use claviger_conformance::{CHECKS, Outcome, Plug, Subject};
use claviger_token::{Access, Driver};

use example::MemoryDevice;
use stage::{Program, Stage};

/// How many keys the example of a device holds.
const CAPACITY: usize = 12;

/// The longest message of the device that is given no digests.
const LONGEST: usize = 100_000;

/// The example of a device, which a program serves.
struct Attached {
    stage: Stage,
    takes_digests: bool,
    backend: String,
    program: Mutex<Option<Program>>,
    device: Mutex<Option<MemoryDevice>>,
}

impl Attached {
    fn new(takes_digests: bool) -> Self {
        let stage = Stage::new();
        let attached = Attached {
            stage,
            takes_digests,
            backend: String::new(),
            program: Mutex::default(),
            device: Mutex::new(Some(MemoryDevice::new())),
        };
        attached.insert();
        let backend = attached.program.lock().unwrap().as_ref().unwrap().backend();
        Attached {
            backend,
            ..attached
        }
    }

    fn change(&self, device: &mut Device) {
        if !self.takes_digests {
            device.takes_digests = false;
            device.longest_message = LONGEST as u32;
        }
    }
}

impl Plug for Attached {
    fn remove(&self) {
        let program = self.program.lock().unwrap().take().unwrap();
        *self.device.lock().unwrap() = Some(program.stop(&self.stage));
    }

    fn insert(&self) {
        let device = self.device.lock().unwrap().take().unwrap();
        let program = self.stage.attach_as(device, |it| self.change(it));
        *self.program.lock().unwrap() = Some(program);
    }
}

impl Subject for Attached {
    fn driver(&self) -> Arc<dyn Driver> {
        self.stage.driver.clone()
    }

    fn backend(&self) -> String {
        self.backend.clone()
    }

    fn access(&self) -> Access {
        Access::without_pin()
    }

    fn wrong_access(&self) -> Result<Access, &'static str> {
        Err("a program asks for a PIN by itself, if at all")
    }

    fn absent_backend(&self) -> Result<String, &'static str> {
        Ok(format!("attached:serial={}", "0".repeat(64)))
    }

    fn capacity(&self) -> Result<usize, &'static str> {
        Ok(CAPACITY)
    }

    fn longest_ed25519_message(&self) -> usize {
        LONGEST_MESSAGE
    }

    fn longest_message(&self) -> usize {
        match self.takes_digests {
            true => usize::MAX,
            false => LONGEST,
        }
    }

    fn can_restart(&self) -> Result<(), &'static str> {
        Ok(())
    }

    /// The program restarts.
    fn restart(&self) -> Result<(), &'static str> {
        self.remove();
        self.insert();
        Ok(())
    }

    fn plug(&self) -> Result<&dyn Plug, &'static str> {
        Ok(self)
    }
}

fn conforms(takes_digests: bool) {
    let mut skipped = Vec::new();
    for check in CHECKS {
        println!("{}", check.name);
        match check.run(&Attached::new(takes_digests)) {
            Outcome::Passed => {}
            Outcome::Skipped(why) => skipped.push((check.name, why)),
        }
    }
    // Of PINs and of other programs' keys; and a token that generates none.
    assert_eq!(skipped.len(), 9, "{skipped:?}");
}

#[test]
fn a_device_that_takes_digests_conforms() {
    conforms(true);
}

#[test]
fn a_device_that_is_given_whole_messages_conforms() {
    conforms(false);
}
