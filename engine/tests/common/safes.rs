//! Tokens with a PIN each.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use claviger_token::{
    About, Call, Detail, Driver, Error, FixedPin, Listed, Listing, Pace, Pin, PinSource,
    PinVerdict, SlotId, Token, TokenId,
};
use secrecy::ExposeSecret;

use super::{Device, hang_while};

/// A token with a PIN of its own.
#[derive(Clone)]
pub struct Safe {
    pub device: Device,
    pub pin: &'static str,
    pub logged_in: Arc<AtomicBool>,
    /// The PINs that it was sent.
    pub came: Arc<Mutex<Vec<String>>>,
}

impl Safe {
    pub fn new(pin: &'static str) -> Self {
        Safe::of(Device::new(), pin)
    }

    pub fn of(device: Device, pin: &'static str) -> Self {
        Safe {
            device,
            pin,
            logged_in: Arc::default(),
            came: Arc::default(),
        }
    }

    pub fn is_there(&self) -> bool {
        let seen = self.device.tokens("device:", &Call::unlimited()).unwrap();
        !seen.is_empty()
    }

    fn log_in(&self, pins: &dyn PinSource, call: &Call) -> Result<(), Error> {
        if self.logged_in.load(SeqCst) {
            return Ok(());
        }
        let pin = pins.pin(&self.device.id(), "safe", call)?;
        self.came.lock().unwrap().push(pin.expose_secret().into());
        let is_right = pin.expose_secret() == self.pin;
        self.logged_in.store(is_right, SeqCst);
        match is_right {
            true => {
                let memory = Arc::clone(&call.access().refused_pins);
                let turn = memory.turn(&self.device.id(), call)?;
                turn.end(&pin, PinVerdict::Accepted);
                Ok(())
            }
            false => Err(Error::PinWrong {
                token: self.device.id(),
                tries: claviger_token::TriesLeft::Unknown,
            }),
        }
    }

    /// The PINs that came since this was asked last.
    pub fn came(&self) -> Vec<String> {
        std::mem::take(&mut *self.came.lock().unwrap())
    }
}

/// Two tokens; the backend `device:any` fits both.
#[derive(Clone)]
pub struct Safes(pub [Safe; 2]);

impl Driver for Safes {
    fn about(&self) -> About {
        About::new("device", "a device of this test")
    }

    fn look(&self, backend: &str, detail: Detail, call: &Call) -> Result<Listing, Error> {
        let there = self.0.iter().filter(|safe| safe.is_there());
        let there = there.map(|safe| {
            let mut info = safe.device.info().clone();
            info.login_required = true;
            Listed::with_slots(info, detail, |_| safe.device.slots(call))
        });
        let fits = |found: &Listed| {
            ["device:", "device:any"].contains(&backend)
                || backend.split('?').next() == Some(&found.info.backend)
        };
        Ok(Listing::new(there.filter(fits), []))
    }

    fn named_slot(&self, _: &str) -> Result<Option<SlotId>, Error> {
        Ok(None)
    }

    fn names_more(&self, backend: &str) -> Result<Option<&'static str>, Error> {
        Ok(backend.contains("?pin=").then_some("pin"))
    }

    fn open(&self, backend: &str, call: &Call) -> Result<Arc<dyn Token>, Error> {
        let found = self.tokens(backend, call)?;
        let [token] = found.as_slice() else {
            return Err(Error::NoToken {
                wanted: backend.into(),
                present: Vec::new(),
            });
        };
        let safe = self.0.iter().find(|safe| safe.device.id() == token.id);
        let safe = safe.unwrap();
        match backend.split_once("?pin=") {
            Some((_, pin)) => safe.log_in(&FixedPin::new(pin), call)?,
            None => safe.log_in(&*call.access().pins, call)?,
        }
        safe.device.open(&token.backend, call)
    }
}

/// Knows the PIN of each token.
pub struct Person(pub [(TokenId, &'static str); 2]);

impl PinSource for Person {
    fn pin(&self, token: &TokenId, _: &str, _: &Call) -> Result<Pin, Error> {
        let known = self.0.iter().find(|(of, _)| of == token);
        Ok(Pin::from(known.unwrap().1))
    }

    fn is_one_for_all(&self) -> bool {
        false
    }
}

pub const PINS: [&str; 2] = ["111111", "222222"];

impl Safes {
    pub fn new() -> Self {
        Safes(PINS.map(Safe::new))
    }

    /// Two that are worked by threads.
    pub fn slow() -> Self {
        let device = || Device::paced(Pace::Slow { workers: 1 });
        Safes(PINS.map(|pin| Safe::of(device(), pin)))
    }

    pub fn person(&self) -> Person {
        let [a, b] = &self.0;
        Person([(a.device.id(), a.pin), (b.device.id(), b.pin)])
    }

    /// Nobody is logged in any more, and no PIN has come.
    pub fn log_out(&self) {
        for safe in &self.0 {
            safe.logged_in.store(false, SeqCst);
            safe.came();
        }
    }
}

/// A person who is asked for the PIN of one token and does not answer until they are let; of
/// other tokens they know the PIN.
pub struct Hesitant {
    pub knows: Person,
    pub of: TokenId,
    pub asked: Arc<AtomicBool>,
    pub answers: Arc<AtomicBool>,
}

impl PinSource for Hesitant {
    fn pin(&self, token: &TokenId, label: &str, call: &Call) -> Result<Pin, Error> {
        if *token == self.of {
            self.asked.store(true, SeqCst);
            hang_while(|| !self.answers.load(SeqCst) && call.check().is_ok());
            call.check()?;
        }
        self.knows.pin(token, label, call)
    }

    fn is_one_for_all(&self) -> bool {
        false
    }
}
