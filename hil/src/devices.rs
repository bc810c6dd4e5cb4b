//! The devices of a run, and what the bench may do with each.
//!
//! An attached device is first only read, on a smartcard through a gate that passes only reading
//! commands. A bench is made only for a device whose serial is listed and unique; everything that
//! writes takes a bench.

#[cfg(feature = "ledger")]
mod ledger;
#[cfg(feature = "piv")]
mod piv;
#[cfg(feature = "pkcs11")]
mod pkcs11;

use std::sync::{Arc, Mutex};

#[cfg(feature = "ledger")]
use claviger_ledger::transport::Devices;
#[cfg(feature = "piv")]
use claviger_piv::reader::Readers;
use claviger_token::{
    Access, Detail, Driver, FixedPin, Listing, Protection, TokenInfo, Unreadable,
};

#[cfg(feature = "ledger")]
pub(crate) use self::ledger::TappedDevices;
#[cfg(feature = "pkcs11")]
pub use self::pkcs11::{in_the_way, pkcs11_tokens};

use crate::bench::{Bench, Elsewhere, MakeDriver, plug};
use crate::config::{Config, Listed};
use crate::guard::Guard;
use crate::journal::Journal;
use crate::results::{Standing, Subject};
use crate::screen::Interrupt;
use crate::transcript::Tap;

/// A device, found or started.
pub(crate) struct Device {
    pub(crate) subject: Subject,
    pub(crate) info: TokenInfo,
    /// What reads it, and does nothing else to it.
    pub(crate) reader: Arc<dyn Driver>,
    /// What it takes to write to it, or why that may not be.
    pub(crate) bench: Result<Bench, String>,
    /// What is wrong with it from the start.
    pub(crate) fault: Option<String>,
    /// What a virtual device lives in.
    pub(crate) _home: Option<Box<dyn Send>>,
}

/// What the devices of one run share.
#[derive(Clone)]
pub(crate) struct Common {
    pub(crate) journal: Arc<Journal>,
    pub(crate) interrupt: Interrupt,
}

impl Common {
    pub(crate) fn guard(&self, name: &str, tap: &Arc<Tap>) -> Guard {
        Guard {
            name: name.into(),
            tap: Arc::clone(tap),
            journal: Arc::clone(&self.journal),
            interrupt: self.interrupt.clone(),
            missing: Arc::default(),
        }
    }
}

/// Where attached devices are looked for.
pub struct Sources {
    /// Readers of smartcards.
    #[cfg(feature = "piv")]
    pub cards: Arc<dyn Readers>,
    /// Ledgers.
    #[cfg(feature = "ledger")]
    pub ledgers: Arc<dyn Devices>,
    /// Backend strings of PKCS#11 tokens, none for those that are not to be looked for.
    pub pkcs11: Vec<String>,
}

impl Sources {
    /// The devices of this machine.
    pub fn of_this_system(config: &Config) -> Sources {
        let named = config.modules.iter();
        let mut pkcs11: Vec<String> = named
            .map(|module| format!("pkcs11:?module-path={module}"))
            .collect();
        pkcs11.push("pkcs11:".into());
        Sources {
            #[cfg(feature = "piv")]
            cards: Arc::new(claviger_piv::reader::PcscReaders),
            #[cfg(feature = "ledger")]
            ledgers: Arc::new(claviger_ledger::Usb),
            pkcs11,
        }
    }
}

/// A token that was seen, and the way to it.
struct AttachedToken {
    info: TokenInfo,
    reader: Arc<dyn Driver>,
    /// The reader that a card is in.
    in_reader: Option<String>,
    way: MakeWay,
}

/// Makes the way to a device that may be written to, past these readers of other devices.
type MakeWay = Box<dyn FnOnce(Arc<[String]>) -> Way>;

/// The way to a device that may be written to, and what its driver says of such devices.
struct Way {
    make: MakeDriver,
    /// Looks whether the device is there: not through the tap, since that is no part of a check.
    look: Arc<dyn Driver>,
    tap: Arc<Tap>,
    absent: String,
    longest_message: usize,
    longest_ed25519_message: usize,
    counts_commands: bool,
    is_approved: bool,
}

/// Finds the attached devices; only reads. What cannot be looked into is said.
pub(crate) fn attached(sources: &Sources, config: &Config, common: &Common) -> Vec<Device> {
    let mut seen: Vec<AttachedToken> = Vec::new();
    #[cfg(feature = "piv")]
    seen.extend(piv::attached(&sources.cards));
    #[cfg(feature = "ledger")]
    seen.extend(ledger::attached(&sources.ledgers));
    #[cfg(feature = "pkcs11")]
    seen.extend(pkcs11::attached(&sources.pkcs11));
    let ids: Vec<(String, String)> = (seen.iter())
        .map(|seen| (seen.info.id.kind.clone(), seen.info.id.serial.clone()))
        .collect();
    let readers: Vec<(String, String)> = (seen.iter())
        .filter_map(|seen| Some((seen.in_reader.clone()?, seen.info.id.serial.clone())))
        .collect();
    let device = |seen: AttachedToken| {
        let serial = &seen.info.id.serial;
        let listed = config.listed(serial);
        let kind = &*seen.info.id.kind;
        let alike = |same_kind: bool| {
            let alike =
                |(of, other): &&(String, String)| other == serial && (of == kind) == same_kind;
            ids.iter().filter(alike).count()
        };
        let refused = if alike(true) > 1 {
            Some("another device has this serial: none of them is written to")
        } else if kind == "pkcs11" && alike(false) > 0 {
            // A smartcard is seen through a PKCS#11 module as well.
            Some("it is another view of a device that is there already: it was only read")
        } else {
            None
        };
        let hidden = readers.iter().filter(|(_, other)| other != serial);
        let hidden = hidden.map(|(reader, _)| reader.clone()).collect();
        seen.device(listed, refused, hidden, common)
    };
    let mut devices: Vec<Device> = Vec::new();
    for mut device in seen.into_iter().map(device) {
        let name = device.subject.device.clone();
        let same = |other: &&Device| other.subject.device.split(" (").next() == Some(&name);
        let before = devices.iter().filter(same).count();
        if before > 0 {
            device.subject.device = format!("{name} ({})", before + 1);
        }
        devices.push(device);
    }
    devices
}

fn not_looked_into(why: impl std::fmt::Display) {
    crate::screen::line(format_args!("not looked into: {why}"));
}

/// What a driver finds; what it cannot look into is said.
fn found(driver: &dyn Driver, backend: &str) -> Vec<TokenInfo> {
    let listing = driver
        .look(backend, Detail::Tokens, &claviger_token::Call::unlimited())
        .unwrap_or_else(|error| {
            let advice = driver.about().when_none.join("; ");
            not_looked_into(format_args!("{error}; {advice}"));
            Listing::default()
        });
    for Unreadable { place, error, .. } in &listing.unreadable {
        not_looked_into(format_args!("{place}: {}", crate::error::sentence(error)));
    }
    let tokens = listing.tokens.into_iter();
    tokens.map(|found| found.info).collect()
}

impl AttachedToken {
    fn device(
        self,
        listed: Option<&Listed>,
        refused: Option<&'static str>,
        hidden: Arc<[String]>,
        common: &Common,
    ) -> Device {
        let info = self.info;
        let name = (listed.and_then(|listed| listed.name.clone())).unwrap_or_else(|| match &*info
            .id
            .serial
        {
            "" => format!("{} without a serial", info.id.kind),
            serial => format!("{}-{serial}", info.id.kind),
        });
        let (bench, fault) = match listed {
            None => (
                Err("its serial is not listed: it was only read".to_owned()),
                None,
            ),
            Some(listed) if refused.is_none() => {
                let way = (self.way)(hidden);
                (Ok(bench(&info, &name, listed, way, common)), None)
            }
            Some(_) => {
                let why = refused.unwrap_or_default().to_owned();
                let fault = why.starts_with("another device").then(|| why.clone());
                (Err(why), fault)
            }
        };
        let standing = match bench {
            Ok(_) => Standing::Listed,
            Err(_) => Standing::ReadOnly,
        };
        Device {
            subject: subject(&name, &info, standing),
            info,
            reader: self.reader,
            bench,
            fault,
            _home: None,
        }
    }
}

/// A device whose owner lists it, ready to be written to.
fn bench(info: &TokenInfo, name: &str, listed: &Listed, way: Way, common: &Common) -> Bench {
    let backend = info.backend.clone();
    let look = way.look;
    let is_there = {
        let backend = backend.clone();
        move || {
            look.tokens(&backend, &claviger_token::Call::unlimited())
                .is_ok_and(|found| !found.is_empty())
        }
    };
    Bench {
        guard: common.guard(name, &way.tap),
        make: way.make,
        driver: Mutex::default(),
        wrong: match (info.login_required, listed.wrong_pin) {
            (false, _) => Err("its PIN is given on the device, or it has none"),
            (_, false) => Err("hil.toml does not say `wrong-pin = true`"),
            (true, true) => Ok(Access::with(FixedPin::new("73105428"))),
        },
        absent: Ok(way.absent),
        plug: plug(&listed.removal, name, &common.interrupt, is_there),
        others: Err("no other program works on a device that is somebody's"),
        restart: Err("nothing behind a device is restarted that is somebody's"),
        generates_none: Err("a device is taken as it is"),
        protection: Protection::FULL,
        room: Mutex::new(Err("it has no bound that could be seen")),
        longest_message: listed.longest_message.unwrap_or(way.longest_message),
        longest_ed25519_message: way.longest_ed25519_message,
        access: listed.access(),
        max_keys: listed.max_keys,
        counts_commands: way.counts_commands,
        is_approved: way.is_approved,
        wipe: listed.wipe,
        elsewhere: elsewhere(&backend),
        backend,
    }
}

/// How another process uses the token; none for one that is no PKCS#11 token, or whose
/// module is not named.
pub(crate) fn elsewhere(backend: &str) -> Option<Elsewhere> {
    let (token, query) = backend.split_once('?')?;
    let mut attributes = query.split('&');
    let module = attributes.find_map(|one| one.strip_prefix("module-path="))?;
    Some(Elsewhere {
        module: module.into(),
        backend: token.into(),
    })
}

/// What reports say of a token.
pub(crate) fn subject(name: &str, info: &TokenInfo, standing: Standing) -> Subject {
    let note = |wanted: &str| {
        let mut notes = info.notes.iter();
        let found = notes.find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.clone())
    };
    Subject {
        device: name.into(),
        kind: info.id.kind.clone(),
        // Modules fill up with spaces, and some with zeros.
        model: info.model.trim_matches(['\0', ' ']).into(),
        serial: info.id.serial.clone(),
        firmware: note("firmware").or_else(|| note("app")).unwrap_or_default(),
        standing,
    }
}
