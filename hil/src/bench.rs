//! A device that may be written to, for the conformance suite and the measurements.

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use claviger_conformance::{Others, Plug, Subject};
use claviger_token::sync::lock;
use claviger_token::{Access, Call, Driver, KeyRef, KeyUse, Protection, SlotInfo, SlotState};

use crate::config::Removal;
use crate::guard::Guard;
use crate::screen;
use crate::screen::Interrupt;

/// Makes a driver that knows the device. One for each check: what a driver remembers of a
/// device must not help the next.
pub(crate) type MakeDriver = Box<dyn Fn() -> Arc<dyn Driver> + Send + Sync>;

/// What takes a device away and brings it back.
pub(crate) type BoxedPlug = Box<dyn Plug + Send + Sync>;

/// Another program that works on a device.
pub(crate) type BoxedOthers = Box<dyn Others + Send + Sync>;

/// What restarts what stands behind a device.
pub(crate) type BoxedRestart = Box<dyn Fn() + Send + Sync>;

/// The token as it is where it generates no keys, with one of its keys.
pub(crate) type GeneratesNone = (Box<dyn Subject>, KeyRef, KeyUse);

/// What makes one of these.
pub(crate) type BoxedGeneratesNone = Box<dyn Fn() -> Possible<GeneratesNone> + Send + Sync>;

/// Whether something can be done to a device, or why not.
pub(crate) type Possible<T> = Result<T, &'static str>;

/// A device that may be written to. There is none for a device that may not.
pub(crate) struct Bench {
    pub(crate) guard: Guard,
    pub(crate) make: MakeDriver,
    pub(crate) driver: Mutex<Option<Arc<dyn Driver>>>,
    pub(crate) backend: String,
    pub(crate) access: Access,
    pub(crate) wrong: Possible<Access>,
    pub(crate) absent: Possible<String>,
    pub(crate) plug: Possible<BoxedPlug>,
    /// Another program that works on it, where nobody loses anything by that.
    pub(crate) others: Possible<BoxedOthers>,
    pub(crate) restart: Possible<BoxedRestart>,
    pub(crate) generates_none: Possible<BoxedGeneratesNone>,
    pub(crate) protection: Protection,
    /// How many more keys fill it; found when it is opened.
    pub(crate) room: Mutex<Possible<usize>>,
    pub(crate) longest_message: usize,
    pub(crate) longest_ed25519_message: usize,
    /// The most keys that are made at a time.
    pub(crate) max_keys: Option<usize>,
    /// Whether the tap sees its commands.
    pub(crate) counts_commands: bool,
    /// Whether a person approves each operation.
    pub(crate) is_approved: bool,
    /// Whether the keys that are on it may be deleted.
    pub(crate) wipe: bool,
    /// What another process has to be told to use it, PIN included; none if it cannot.
    pub(crate) elsewhere: Option<Elsewhere>,
}

/// How another process uses a PKCS#11 token.
pub(crate) struct Elsewhere {
    /// The module's file.
    pub(crate) module: std::path::PathBuf,
    /// The backend string, without the module.
    pub(crate) backend: String,
}

impl Bench {
    /// A call with the secrets of the device.
    pub(crate) fn call(&self) -> Call {
        Call::unlimited().using(self.access.clone())
    }

    /// Forgets the driver, so that the next check gets a new one.
    pub(crate) fn renew(&self) {
        *lock(&self.driver) = None;
    }

    /// Finds out how much room there is, from the slots of an open token.
    pub(crate) fn survey(&self, slots: &[SlotInfo]) {
        // New keys go into the retired slots of a card; other tokens have no bound that
        // could be seen.
        let missing = lock(&self.guard.missing);
        let free = slots.iter().filter(|slot| {
            let number = u8::from_str_radix(slot.slot.as_str(), 16);
            slot.state == SlotState::Free
                && number.is_ok_and(|n| (0x82..=0x95).contains(&n))
                && !missing.iter().any(|missing| missing.is_in(&slot.slot))
        });
        if self.backend.starts_with("piv:") {
            *lock(&self.room) = Ok(free.count());
        }
    }

    /// How many keys fill it.
    pub(crate) fn room(&self) -> Possible<usize> {
        *lock(&self.room)
    }

    /// Whether the device can still be found.
    pub(crate) fn is_there(&self) -> bool {
        (self.make)()
            .tokens(&self.backend, &claviger_token::Call::unlimited())
            .is_ok_and(|found| !found.is_empty())
    }
}

impl Subject for Bench {
    fn driver(&self) -> Arc<dyn Driver> {
        let mut driver = lock(&self.driver);
        Arc::clone(driver.get_or_insert_with(|| self.guard.driver((self.make)())))
    }

    fn backend(&self) -> String {
        self.backend.clone()
    }

    fn access(&self) -> Access {
        self.access.clone()
    }

    fn protection(&self) -> Protection {
        self.protection
    }

    fn wrong_access(&self) -> Result<Access, &'static str> {
        self.wrong.clone()
    }

    fn absent_backend(&self) -> Result<String, &'static str> {
        self.absent.clone()
    }

    fn capacity(&self) -> Result<usize, &'static str> {
        self.room()
    }

    fn longest_ed25519_message(&self) -> usize {
        self.longest_ed25519_message
    }

    fn longest_message(&self) -> usize {
        self.longest_message
    }

    fn others(&self) -> Result<&dyn Others, &'static str> {
        match &self.others {
            Ok(others) => Ok(&**others),
            Err(why) => Err(why),
        }
    }

    fn can_restart(&self) -> Result<(), &'static str> {
        self.restart.as_ref().map(drop).map_err(|why| *why)
    }

    fn restart(&self) -> Result<(), &'static str> {
        let restart = self.restart.as_ref();
        restart.map(|restart| restart()).map_err(|why| *why)
    }

    fn can_generate_none(&self) -> Result<(), &'static str> {
        self.generates_none.as_ref().map(drop).map_err(|why| *why)
    }

    fn generates_none(&self) -> Result<GeneratesNone, &'static str> {
        self.generates_none.as_ref().map_err(|why| *why)?()
    }

    fn plug(&self) -> Result<&dyn Plug, &'static str> {
        match &self.plug {
            Ok(plug) => Ok(&**plug),
            Err(why) => Err(why),
        }
    }
}

/// A plug of two functions.
pub(crate) struct Switch {
    pub(crate) off: Box<dyn Fn() + Send + Sync>,
    pub(crate) on: Box<dyn Fn() + Send + Sync>,
}

impl Plug for Switch {
    fn remove(&self) {
        (self.off)();
    }

    fn insert(&self) {
        (self.on)();
    }
}

/// How a real device is taken out and put back.
pub(crate) fn plug(
    removal: &Removal,
    name: &str,
    interrupt: &Interrupt,
    is_there: impl Fn() -> bool + Send + Sync + 'static,
) -> Possible<BoxedPlug> {
    let act: Box<dyn Fn(bool) + Send + Sync> = match removal {
        Removal::Never => return Err("hil.toml names no way to remove it"),
        Removal::Ask if !screen::someone_is_there() => {
            return Err("nobody is at the terminal to remove it");
        }
        Removal::Ask => {
            let name = name.to_owned();
            Box::new(move |on| match on {
                true => screen::line(format_args!("put {name} in again")),
                false => screen::line(format_args!("take {name} out")),
            })
        }
        Removal::Uhubctl { hub, port } => {
            let (hub, port) = (hub.clone(), port.to_string());
            Box::new(move |on| switch(&hub, &port, on))
        }
    };
    let (act, is_there) = (Arc::new(act), Arc::new(is_there));
    let to = |on: bool| -> Box<dyn Fn() + Send + Sync> {
        let (act, is_there) = (Arc::clone(&act), Arc::clone(&is_there));
        let interrupt = interrupt.clone();
        Box::new(move || {
            act(on);
            wait_until(on, &*is_there, &interrupt);
        })
    };
    Ok(Box::new(Switch {
        off: to(false),
        on: to(true),
    }))
}

/// How long a person may take to do what they are asked for.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a device may take to be back once somebody pressed Ctrl-C. Nobody waits for it
/// to go then.
const LEAST_PATIENCE: Duration = Duration::from_secs(10);

#[expect(clippy::panic, reason = "a check that fails panics")]
fn wait_until(there: bool, is_there: &dyn Fn() -> bool, interrupt: &Interrupt) {
    let start = Instant::now();
    while is_there() != there {
        let waited = start.elapsed();
        let is_over = interrupt.came() && (!there || waited > LEAST_PATIENCE);
        if is_over {
            panic!("interrupted");
        }
        if waited > PATIENCE {
            panic!("nobody did so within {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[expect(clippy::panic, reason = "a check that fails panics")]
fn switch(hub: &str, port: &str, on: bool) {
    match uhubctl(hub, port, on).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!(
            "uhubctl: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ),
        Err(error) => panic!("uhubctl cannot be started: {error}"),
    }
}

fn uhubctl(hub: &str, port: &str, on: bool) -> Command {
    let mut command = Command::new("uhubctl");
    let action = if on { "on" } else { "off" };
    command.args(["-l", hub, "-p", port, "-a", action]);
    command
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_port_is_switched_as_uhubctl_wants_it() {
        let command = uhubctl("1-1.2", "3", false);
        let words: Vec<_> = command
            .get_args()
            .map(|word| word.to_string_lossy())
            .collect();
        assert_eq!(words, ["-l", "1-1.2", "-p", "3", "-a", "off"]);
    }

    #[test]
    fn a_device_is_waited_for_until_it_has_come_or_gone() {
        let there = Arc::new(AtomicBool::new(true));
        let later = Arc::clone(&there);
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            later.store(false, Ordering::Relaxed);
        });
        let interrupt = Interrupt::default();
        wait_until(false, &|| there.load(Ordering::Relaxed), &interrupt);
        assert!(!there.load(Ordering::Relaxed));
        thread.join().unwrap();
    }

    #[test]
    fn nobody_waits_for_a_device_to_go_once_ctrl_c_was_pressed() {
        let interrupt = Interrupt::default();
        interrupt.set();
        let said = crate::conformance::quietly(|| wait_until(false, &|| true, &interrupt));
        assert!(said.unwrap_err().starts_with("interrupted"));
        // It is still waited for until it is back.
        let looks = std::sync::atomic::AtomicUsize::new(0);
        let is_there = || looks.fetch_add(1, Ordering::Relaxed) > 1;
        wait_until(true, &is_there, &interrupt);
    }

    #[test]
    fn a_device_that_nobody_can_remove_says_why() {
        let why = plug(&Removal::Never, "x", &Interrupt::default(), || true).err();
        assert_eq!(why, Some("hil.toml names no way to remove it"));
    }
}
