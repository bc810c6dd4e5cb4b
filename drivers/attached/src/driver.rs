//! Lists and opens devices of one kind.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use claviger_token::{
    About, Call, Detail, Driver, Error, Example, Listed, Listing, SlotId, Token, Watch, backend,
};

use crate::device::Device;
use crate::devices::{Attached, Devices};
use crate::token::AttachedToken;

const SCHEME: &str = "attached";

/// The digits of a serial.
const SERIAL: usize = 64;

/// So long a device may take to show its keys in a list of tokens: others are in it, too.
const LONGEST_LOOK: Duration = Duration::from_secs(5);

/// Serves the attached devices of one kind.
pub struct AttachedDriver {
    about: About,
    devices: Devices,
}

impl AttachedDriver {
    /// What the driver says of itself to people.
    pub const ABOUT: About = About::new(SCHEME, "a device that a program attaches")
        .written(
            "attached:[serial=HEX]",
            &[
                Example::new("attached:", "the only device that is attached"),
                Example::new(
                    "attached:serial=5d41…",
                    "the device with this serial, of 64 hexadecimal digits",
                ),
            ],
        )
        .when_none(&["Start the program that attaches the device"]);

    /// Serves the devices of the kind `attached`.
    pub fn new(devices: Devices) -> Self {
        AttachedDriver::of(AttachedDriver::ABOUT, devices)
    }

    /// Serves the devices of a kind that has a scheme and a name of its own.
    pub fn of(about: About, devices: Devices) -> Self {
        devices.serve(about.scheme);
        AttachedDriver { about, devices }
    }

    /// The serial that a backend names, if it names one.
    fn serial<'a>(&self, text: &'a str) -> Result<Option<&'a str>, Error> {
        let mut serial = None;
        for attribute in backend::attributes(self.about.scheme, text)? {
            let is_digit = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f');
            match attribute? {
                ("serial", value) if value.len() == SERIAL && value.bytes().all(is_digit) => {
                    serial = Some(value);
                }
                ("serial", _) => {
                    let reason = "a serial has 64 hexadecimal digits";
                    return Err(backend::bad(text, reason));
                }
                _ => return Err(backend::bad(text, "it has no attribute but `serial`")),
            }
        }
        Ok(serial)
    }

    fn fitting(&self, text: &str) -> Result<Vec<Attached>, Error> {
        let serial = self.serial(text)?;
        Ok(self.devices.fitting(self.about.scheme, serial))
    }

    fn token(&self, attached: &Attached) -> AttachedToken {
        AttachedToken::new(Device::new(self.devices.clone(), &attached.description))
    }

    fn listed(&self, attached: &Attached, detail: Detail, call: &Call) -> Listed {
        let token = self.token(attached);
        Listed::with_slots(token.info().clone(), detail, |_| token.slots(call))
    }
}

impl Driver for AttachedDriver {
    fn about(&self) -> About {
        self.about
    }

    fn look(&self, backend: &str, detail: Detail, call: &Call) -> Result<Listing, Error> {
        let fitting = self.fitting(backend)?;
        call.check()?;
        let call = &call.clone().no_longer_than(LONGEST_LOOK);
        let found: Vec<Listed> = match (&*fitting, detail) {
            ([], _) | ([_], _) | (_, Detail::Tokens) => {
                let listed = fitting.iter().map(|one| self.listed(one, detail, call));
                listed.collect()
            }
            // At once: one that does not answer keeps no other one from the list.
            (several, Detail::Slots) => thread::scope(|scope| {
                let looks: Vec<_> = several
                    .iter()
                    .map(|one| scope.spawn(move || self.listed(one, detail, call)))
                    .collect();
                let joined = looks.into_iter().map(thread::ScopedJoinHandle::join);
                joined.filter_map(Result::ok).collect()
            }),
        };
        Ok(Listing::new(found, []))
    }

    fn watch(&self) -> Box<dyn Watch> {
        self.devices.watch()
    }

    fn named_slot(&self, backend: &str) -> Result<Option<SlotId>, Error> {
        self.serial(backend).map(|_| None)
    }

    fn names_more(&self, backend: &str) -> Result<Option<&'static str>, Error> {
        self.serial(backend).map(|_| None)
    }

    fn open(&self, backend: &str, call: &Call) -> Result<Arc<dyn Token>, Error> {
        let fitting = self.fitting(backend)?;
        call.check()?;
        let names = |all: &[Attached]| all.iter().map(|one| one.description.backend()).collect();
        match backend::the_one(backend, fitting, names)? {
            Some(attached) => Ok(Arc::new(self.token(&attached))),
            None => Err(Error::NoToken {
                wanted: backend.into(),
                present: names(&self.devices.fitting(self.about.scheme, None)),
            }),
        }
    }
}
