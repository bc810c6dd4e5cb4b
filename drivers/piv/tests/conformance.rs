//! The conformance suite on a virtual YubiKey in this process. On one behind PC/SC it
//! runs in the workspace's tests.

mod common;

use std::sync::{Arc, OnceLock};

use claviger_piv::{LONGEST_ED25519_MESSAGE, PivDriver};
use claviger_token::conformance::{CHECKS, Outcome, Plug, Subject};
use claviger_token::{Access, Driver, FixedPin};
use claviger_virtual_yubikey::{Card, Device};
use common::{Desk, PIN, access};

struct Virtual {
    desk: Desk,
    device: Device,
    driver: OnceLock<Arc<PivDriver>>,
}

impl Virtual {
    fn new() -> Self {
        let device = Device::new(Card::builder().pin(PIN).build());
        Virtual {
            desk: Desk::with(&[&device]),
            device,
            driver: OnceLock::new(),
        }
    }
}

impl Subject for Virtual {
    fn driver(&self) -> Arc<dyn Driver> {
        self.driver
            .get_or_init(|| Arc::new(self.desk.driver()))
            .clone()
    }

    fn backend(&self) -> String {
        format!("piv:serial={}", self.device.card().serial())
    }

    fn access(&self) -> Access {
        access()
    }

    fn wrong_access(&self) -> Result<Access, &'static str> {
        Ok(Access::with(FixedPin::new("135791")))
    }

    fn absent_backend(&self) -> Result<String, &'static str> {
        Ok("piv:serial=4294967295".into())
    }

    fn capacity(&self) -> Result<usize, &'static str> {
        Ok(20)
    }

    fn longest_ed25519_message(&self) -> usize {
        LONGEST_ED25519_MESSAGE
    }

    fn plug(&self) -> Result<&dyn Plug, &'static str> {
        Ok(self)
    }
}

impl Plug for Virtual {
    fn remove(&self) {
        self.desk.remove(&self.device);
    }

    fn insert(&self) {
        self.desk.insert(&self.device);
    }
}

#[test]
fn a_virtual_yubikey_does_all_that_a_token_has_to() {
    for check in CHECKS {
        println!("{}", check.name);
        assert_eq!(
            check.run(&Virtual::new()),
            Outcome::Passed,
            "{}",
            check.name
        );
    }
}
