//! The devices of a run, and what the bench may do with each.
//!
//! An attached device is first only read, on a smartcard through a gate that passes only reading
//! commands. A bench is made only for a device whose serial is listed and unique; everything that
//! writes takes a bench.

use std::sync::{Arc, Mutex};

use claviger_ledger::LedgerDriver;
use claviger_ledger::transport::{Attached, Broken, Devices, Transport, Unreachable};
use claviger_piv::reader::{PcscReaders, Readers};
use claviger_piv::{LONGEST_ED25519_MESSAGE, PivDriver};
use claviger_pkcs11::Pkcs11Driver;
use claviger_token::key::to_hex;
use claviger_token::{
    Access, Detail, Driver, FixedPin, Listing, Protection, TokenInfo, Unreadable, Watch,
};

use crate::bench::{Bench, Elsewhere, MakeDriver, plug};
use crate::config::{Config, Listed};
use crate::guard::Guard;
use crate::journal::Journal;
use crate::readers::{Gate, Only, Tapped};
use crate::results::{Standing, Subject};
use crate::screen::Interrupt;
use crate::transcript::{Line, Tap};

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
    pub cards: Arc<dyn Readers>,
    /// Ledgers.
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
            cards: Arc::new(PcscReaders),
            ledgers: Arc::new(claviger_ledger::Usb),
            pkcs11,
        }
    }
}

/// Says which PKCS#11 tokens there are: their serials and backend strings, a line each.
pub fn pkcs11_tokens(backends: &[String]) -> String {
    let all = backends.iter();
    let all = all.flat_map(|backend| {
        Pkcs11Driver::new()
            .tokens(backend, &claviger_token::Call::unlimited())
            .unwrap_or_default()
    });
    all.map(|info| format!("{}\t{}\n", info.id.serial, info.backend))
        .collect()
}

/// The virtual devices that cannot be beside listed ones, and why: a module is in a process
/// once, and a virtual device has it look elsewhere. `tokens` are those of
/// [`pkcs11_tokens`], said by a process that has no virtual devices.
pub fn in_the_way(tokens: &str, config: &Config, only: &[String]) -> Vec<(String, String)> {
    const MODULES: [(&str, &str); 3] = [
        ("softhsm", "softhsm"),
        ("kryoptic", "kryoptic"),
        ("tpm2-pkcs11", "tpm2"),
    ];
    let mut found = Vec::new();
    for (serial, backend) in tokens.lines().filter_map(|line| line.split_once('\t')) {
        let Some(listed) = config.listed(serial) else {
            continue;
        };
        let name = listed.name.as_ref().unwrap_or(&listed.serial);
        if !only.is_empty() && !only.contains(name) {
            continue;
        }
        let module = backend.rsplit_once("module-path=").map_or("", |(_, m)| m);
        for (virtual_device, part) in MODULES {
            if module.contains(part) && found.iter().all(|(known, _)| known != virtual_device) {
                let why = format!(
                    "{name} is listed and in the same PKCS#11 module, which cannot look at \
                     both: run it with --virtual"
                );
                found.push((virtual_device.to_owned(), why));
            }
        }
    }
    found
}

/// A token that was seen, and the way to it.
struct AttachedToken {
    info: TokenInfo,
    reader: Arc<dyn Driver>,
    way: Way,
}

enum Way {
    /// The card in this reader.
    Card(String),
    Ledger(LedgerDriver, Arc<Tap>),
    Pkcs11,
}

/// Finds the attached devices; only reads. What cannot be looked into is said.
pub(crate) fn attached(sources: &Sources, config: &Config, common: &Common) -> Vec<Device> {
    let mut seen = cards(&sources.cards);
    seen.extend(ledgers(&sources.ledgers));
    for backend in &sources.pkcs11 {
        let driver: Arc<dyn Driver> = Arc::new(Pkcs11Driver::new());
        // A module may be named, and known to p11-kit as well; but two tokens of one listing
        // are two.
        let before = seen.len();
        for info in found(&*driver, backend) {
            if seen[..before].iter().all(|seen| seen.info.id != info.id) {
                seen.push(AttachedToken {
                    info,
                    reader: Arc::clone(&driver),
                    way: Way::Pkcs11,
                });
            }
        }
    }
    let ids: Vec<(String, String)> = (seen.iter())
        .map(|seen| (seen.info.id.kind.clone(), seen.info.id.serial.clone()))
        .collect();
    let readers: Vec<(String, String)> = (seen.iter())
        .filter_map(|seen| match &seen.way {
            Way::Card(reader) => Some((reader.clone(), seen.info.id.serial.clone())),
            _ => None,
        })
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
        seen.device(listed, refused, hidden, sources, common)
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

/// One driver for each reader, so that each sees one card.
fn cards(readers: &Arc<dyn Readers>) -> Vec<AttachedToken> {
    let names = readers.list().unwrap_or_else(|error| {
        not_looked_into(format_args!("{}: {}", error.what, error.reason));
        Vec::new()
    });
    let mut seen = Vec::new();
    for name in names {
        let only = Only {
            inner: Arc::clone(readers),
            reader: name.clone(),
        };
        let driver: Arc<dyn Driver> = Arc::new(PivDriver::with_readers(Tapped {
            inner: Arc::new(only),
            hidden: Arc::new([]),
            gate: Gate::ReadOnly,
            tap: Arc::default(),
        }));
        seen.extend(
            found(&*driver, "piv:")
                .into_iter()
                .map(|info| AttachedToken {
                    info,
                    reader: Arc::clone(&driver),
                    way: Way::Card(name.clone()),
                }),
        );
    }
    seen
}

/// A Ledger is opened once in a process, so there is one driver for reading and writing;
/// nothing can be written to a Ledger, and what it is asked to do its owner approves.
fn ledgers(devices: &Arc<dyn Devices>) -> Vec<AttachedToken> {
    let tap = Arc::<Tap>::default();
    let driver = LedgerDriver::with_devices(TappedDevices {
        inner: Arc::clone(devices),
        tap: Arc::clone(&tap),
    });
    if let Err(error) = devices.list() {
        not_looked_into(format_args!("{}: {}", error.what, error.reason));
        return Vec::new();
    }
    let found = found(&driver, "ledger:");
    let seen = |info| AttachedToken {
        info,
        reader: Arc::new(driver.clone()),
        way: Way::Ledger(driver.clone(), Arc::clone(&tap)),
    };
    found.into_iter().map(seen).collect()
}

impl AttachedToken {
    fn device(
        self,
        listed: Option<&Listed>,
        refused: Option<&'static str>,
        hidden: Arc<[String]>,
        sources: &Sources,
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
                let way = (self.way, hidden, &sources.cards);
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
fn bench(
    info: &TokenInfo,
    name: &str,
    listed: &Listed,
    (way, hidden, cards): (Way, Arc<[String]>, &Arc<dyn Readers>),
    common: &Common,
) -> Bench {
    let mut tap = Arc::<Tap>::default();
    let backend = info.backend.clone();
    let mut counts_commands = true;
    // What makes a driver, and another that looks whether the device is there: not through
    // the tap, since that is no part of a check.
    let (make, look): (MakeDriver, Arc<dyn Driver>) = match way {
        Way::Card(_) => {
            let tapped = |gate, tap: &Arc<Tap>| Tapped {
                inner: Arc::clone(cards),
                hidden: Arc::clone(&hidden),
                gate,
                tap: Arc::clone(tap),
            };
            let open = tapped(Gate::Open, &tap);
            let look = PivDriver::with_readers(tapped(Gate::ReadOnly, &Arc::default()));
            let make =
                move || -> Arc<dyn Driver> { Arc::new(PivDriver::with_readers(open.clone())) };
            (Box::new(make), Arc::new(look))
        }
        Way::Ledger(driver, of_all) => {
            tap = of_all;
            let look = Arc::new(driver.clone());
            (Box::new(move || Arc::new(driver.clone())), look)
        }
        Way::Pkcs11 => {
            counts_commands = false;
            let make = || -> Arc<dyn Driver> { Arc::new(Pkcs11Driver::new()) };
            (Box::new(make), Arc::new(Pkcs11Driver::new()))
        }
    };
    let is_there = {
        let backend = backend.clone();
        move || {
            look.tokens(&backend, &claviger_token::Call::unlimited())
                .is_ok_and(|found| !found.is_empty())
        }
    };
    let is_ledger = info.id.kind == "ledger";
    Bench {
        guard: common.guard(name, &tap),
        make,
        driver: Mutex::default(),
        wrong: match (info.login_required, listed.wrong_pin) {
            (false, _) => Err("its PIN is given on the device, or it has none"),
            (_, false) => Err("hil.toml does not say `wrong-pin = true`"),
            (true, true) => Ok(Access::with(FixedPin::new("73105428"))),
        },
        absent: Ok(match &*info.id.kind {
            "piv" => "piv:serial=4294967295".into(),
            "ledger" => "ledger:serial=0000000000000000".into(),
            _ => absent(&backend),
        }),
        plug: plug(&listed.removal, name, &common.interrupt, is_there),
        others: Err("no other program works on a device that is somebody's"),
        restart: Err("nothing behind a device is restarted that is somebody's"),
        generates_none: Err("a device is taken as it is"),
        protection: Protection::FULL,
        room: Mutex::new(Err("it has no bound that could be seen")),
        longest_message: match listed.longest_message {
            Some(length) => length,
            None if is_ledger => claviger_ledger::longest_message(&info.model),
            None => usize::MAX,
        },
        longest_ed25519_message: match &*info.id.kind {
            "piv" => LONGEST_ED25519_MESSAGE,
            _ => usize::MAX,
        },
        access: listed.access(),
        max_keys: listed.max_keys,
        counts_commands,
        is_approved: is_ledger,
        wipe: listed.wipe,
        elsewhere: elsewhere(&backend),
        backend,
    }
}

/// The backend string of a token that is not there, in the same module.
fn absent(backend: &str) -> String {
    let module = backend.split_once('?').map_or("", |(_, query)| query);
    format!("pkcs11:token=no-such-token?{module}")
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

/// Ledgers, past a tap.
pub(crate) struct TappedDevices {
    pub(crate) inner: Arc<dyn Devices>,
    pub(crate) tap: Arc<Tap>,
}

impl Devices for TappedDevices {
    fn list(&self) -> Result<Vec<Attached>, Unreachable> {
        self.inner.list()
    }

    fn watch(&self) -> Box<dyn Watch> {
        self.inner.watch()
    }

    fn shared_name(&self, path: &str) -> Option<String> {
        self.inner.shared_name(path)
    }

    fn connect(&self, path: &str) -> Result<Box<dyn Transport>, Broken> {
        Ok(Box::new(TappedTransport {
            inner: self.inner.connect(path)?,
            tap: Arc::clone(&self.tap),
            sent: Vec::new(),
        }))
    }
}

struct TappedTransport {
    inner: Box<dyn Transport>,
    tap: Arc<Tap>,
    sent: Vec<u8>,
}

impl Transport for TappedTransport {
    fn send(&mut self, apdu: &[u8]) -> Result<(), Broken> {
        self.tap.count();
        self.sent = apdu.to_vec();
        self.inner.send(apdu)
    }

    fn receive(
        &mut self,
        wait: std::time::Duration,
    ) -> Result<Option<zeroize::Zeroizing<Vec<u8>>>, Broken> {
        let reply = self.inner.receive(wait)?;
        if let Some(reply) = &reply {
            // A shared secret (INS 18 with P2 01).
            let hidden = matches!(self.sent[..], [0xe0, 0x18, _, 0x01, ..]) && reply.len() > 2;
            let mut shown = reply.to_vec();
            if hidden {
                let data = shown.len() - 2;
                shown[..data].fill(crate::transcript::HIDDEN);
            }
            self.tap.write(|| Line::Command {
                command: to_hex(&self.sent),
                reply: Some(to_hex(&shown)),
                lost: None,
                present: false,
                command_hidden: false,
                reply_hidden: hidden,
            });
        }
        Ok(reply)
    }
}
