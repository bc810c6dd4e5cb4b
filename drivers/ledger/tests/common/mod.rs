//! Devices that are plugged in and out by a test.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    dead_code,
    reason = "the helpers of tests are tests, and not every test needs all of them"
)]

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use claviger_ledger::LedgerDriver;
use claviger_ledger::transport::{Attached, Broken, Devices, Transport, Unreachable};
use claviger_ledger_emulator::Ethereum;
use claviger_token::sync::lock;
use claviger_token::{
    Algorithm, Call, Detail, Driver, Error, Event, KeyRef, KeySpec, NewKey, SlotId, SlotInfo,
    Token, TokenInfo,
};

/// Another seed than the emulator's.
pub(crate) const OTHER_SEED: &str = "abandon abandon abandon abandon abandon abandon abandon abandon \
                              abandon abandon abandon abandon abandon abandon abandon abandon \
                              abandon abandon abandon abandon abandon abandon abandon art";

pub(crate) const SIGN: KeySpec = KeySpec::sign(Algorithm::Secp256k1);
pub(crate) const DECRYPT: KeySpec = KeySpec::decrypt(Algorithm::X25519);

pub(crate) type Answer = Box<dyn FnMut(&[u8]) -> Vec<u8> + Send>;

/// What a simulated device answers.
pub(crate) fn answers(app: &Ethereum) -> impl FnMut(&[u8]) -> Vec<u8> + Send + use<> {
    let app = app.clone();
    move |apdu| app.answer(apdu)
}

/// Where devices are plugged in. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Bus(Arc<Mutex<Vec<Device>>>);

/// A device. What it answers late is read by whoever has it open then. Clones are the
/// same.
#[derive(Clone)]
pub(crate) struct Device(Arc<Inner>);

struct Inner {
    path: Mutex<Option<String>>,
    commands: Mutex<Sender<Vec<u8>>>,
    late: Mutex<Sender<Vec<u8>>>,
    replies: Mutex<Receiver<Vec<u8>>>,
    answer: Arc<Mutex<Answer>>,
    sent: Mutex<Vec<Vec<u8>>>,
    instead: Mutex<VecDeque<Result<Vec<u8>, Broken>>>,
}

impl Bus {
    pub(crate) fn driver(&self) -> LedgerDriver {
        LedgerDriver::with_devices(self.clone())
    }

    /// Plugs in a device that answers like this.
    pub(crate) fn plug(
        &self,
        path: &str,
        answer: impl FnMut(&[u8]) -> Vec<u8> + Send + 'static,
    ) -> Device {
        let (commands, asked) = channel::<Vec<u8>>();
        let (late, replies) = channel();
        let answer: Arc<Mutex<Answer>> = Arc::new(Mutex::new(Box::new(answer)));
        let device = Device(Arc::new(Inner {
            path: Mutex::new(Some(path.into())),
            commands: Mutex::new(commands),
            late: Mutex::new(late.clone()),
            replies: Mutex::new(replies),
            answer: Arc::clone(&answer),
            sent: Mutex::default(),
            instead: Mutex::default(),
        }));
        thread::spawn(move || {
            for command in asked {
                let reply = (lock(&answer))(&command);
                if late.send(reply).is_err() {
                    return;
                }
            }
        });
        lock(&self.0).push(device.clone());
        device
    }
}

impl Device {
    /// Takes it away, with all that it was about to say.
    pub(crate) fn unplug(&self) {
        *lock(&self.0.path) = None;
    }

    pub(crate) fn plug(&self, path: &str) {
        while lock(&self.0.replies).try_recv().is_ok() {}
        *lock(&self.0.path) = Some(path.into());
    }

    /// It is another device from now on, and nobody notices.
    pub(crate) fn swap(&self, answer: impl FnMut(&[u8]) -> Vec<u8> + Send + 'static) {
        *lock(&self.0.answer) = Box::new(answer);
    }

    /// What it gives for the next command, which it does not look at.
    pub(crate) fn answer_next(&self, reply: Result<&[u8], Broken>) {
        lock(&self.0.instead).push_back(reply.map(Into::into));
    }

    /// Says something that nobody asked for.
    pub(crate) fn say(&self, reply: &[u8]) {
        lock(&self.0.late).send(reply.into()).unwrap();
    }

    /// The commands since this was asked last.
    pub(crate) fn take_sent(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut lock(&self.0.sent))
    }
}

impl Devices for Bus {
    fn list(&self) -> Result<Vec<Attached>, Unreachable> {
        let devices = lock(&self.0);
        let attached = devices.iter().filter_map(|device| {
            Some(Attached {
                path: lock(&device.0.path).clone()?,
                model: "Nano X".into(),
            })
        });
        Ok(attached.collect())
    }

    fn connect(&self, path: &str) -> Result<Box<dyn Transport>, Broken> {
        let devices = lock(&self.0);
        let mut here = devices.iter();
        let device = here.find(|device| lock(&device.0.path).as_deref() == Some(path));
        let device = device.ok_or_else(|| Broken::Lost("there is nothing".into()))?;
        Ok(Box::new(Open {
            device: device.clone(),
            path: path.into(),
        }))
    }
}

struct Open {
    device: Device,
    path: String,
}

impl Open {
    fn check(&self) -> Result<(), Broken> {
        match lock(&self.device.0.path).as_deref() == Some(&self.path) {
            true => Ok(()),
            false => Err(Broken::Lost("unplugged".into())),
        }
    }
}

impl Transport for Open {
    fn send(&mut self, apdu: &[u8]) -> Result<(), Broken> {
        self.check()?;
        let inner = &self.device.0;
        lock(&inner.sent).push(apdu.into());
        let instead = lock(&inner.instead).front().cloned();
        match instead {
            Some(Ok(reply)) => lock(&inner.late).send(reply).unwrap(),
            Some(Err(_)) => return Ok(()),
            None => lock(&inner.commands).send(apdu.into()).unwrap(),
        }
        lock(&inner.instead).pop_front();
        Ok(())
    }

    fn receive(&mut self, wait: Duration) -> Result<Option<zeroize::Zeroizing<Vec<u8>>>, Broken> {
        let inner = &self.device.0;
        let until = Instant::now() + wait;
        loop {
            self.check()?;
            // With no time to wait nobody has sent anything yet.
            let breaks = !wait.is_zero() && {
                let instead = lock(&inner.instead);
                instead.front().is_some_and(Result::is_err)
            };
            if breaks && let Some(Err(broken)) = lock(&inner.instead).pop_front() {
                return Err(broken);
            }
            if let Ok(reply) = lock(&inner.replies).try_recv() {
                return Ok(Some(reply.into()));
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What a caller is told.
#[derive(Clone, Default)]
pub(crate) struct Told(Arc<Mutex<Vec<Event>>>);

impl Told {
    pub(crate) fn call(&self) -> Call {
        self.watch(Call::unlimited())
    }

    pub(crate) fn within(&self, milliseconds: u64) -> Call {
        self.watch(Call::within(Duration::from_millis(milliseconds)))
    }

    pub(crate) fn watch(&self, call: Call) -> Call {
        let events = Arc::clone(&self.0);
        call.watched_by(Arc::new(move |event| lock(&events).push(event.clone())))
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        lock(&self.0).clone()
    }
}

pub(crate) fn open(driver: &LedgerDriver, backend: &str) -> Result<Arc<dyn Token>, Error> {
    open_within(driver, backend, &Call::within(Duration::from_secs(20)))
}

pub(crate) fn open_within(
    driver: &LedgerDriver,
    backend: &str,
    call: &Call,
) -> Result<Arc<dyn Token>, Error> {
    driver.open(backend, call)
}

/// The key of a slot.
pub(crate) fn key(token: &dyn Token, slot: &str, spec: KeySpec) -> KeyRef {
    let slot = SlotId::new(slot);
    let new = NewKey {
        slot: &slot,
        spec,
        mark: "claviger-unfinished-0",
    };
    let made = token.generate(&new, &Call::unlimited()).unwrap();
    KeyRef {
        slot,
        public_key: made.public_key,
    }
}

pub(crate) fn wait_until(what: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !what() {
        assert!(Instant::now() < end, "it does not happen");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Asserts that a call fails like this.
#[macro_export]
macro_rules! refused {
    ($call:expr, $error:pat $(if $guard:expr)?) => {
        match $call {
            Err($error) $(if $guard)? => {}
            Err(other) => panic!("{} gave {other:?}", stringify!($call)),
            Ok(_) => panic!("{} was not refused", stringify!($call)),
        }
    };
}

/// The slots of a token that are visible without a PIN.
pub(crate) fn visible(driver: &dyn Driver, token: &TokenInfo) -> Result<Vec<SlotInfo>, Error> {
    let found = driver.look(&token.backend, Detail::Slots, &Call::unlimited())?;
    found.slots_of(&token.id)
}
