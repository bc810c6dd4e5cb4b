//! Claviger's driver for Ledger hardware wallets.
//!
//! ```no_run
//! use claviger_ledger::LedgerDriver;
//! use claviger_token::{Call, Driver};
//!
//! let call = Call::unlimited();
//! let token = LedgerDriver::new().open("ledger:", &call)?;
//! for slot in token.slots(&call)? {
//!     println!("{}: {:?}", slot.slot, slot.fingerprint);
//! }
//! # Ok::<(), claviger_token::Error>(())
//! ```
//!
//! [`LedgerDriver`] lists and opens them by backend strings
//! `ledger:[serial=HEX][;account=N][;tcp=HOST:PORT]`; the account is for keys that are
//! generated, and `tcp` reaches an emulator instead of USB. The driver uses Ledger's own
//! *Ethereum* app. Of the apps that most devices have, only this one both signs and, from version
//! 1.9.18 on, offers key agreement. Older versions only sign.
//!
//! | module | idea |
//! | --- | --- |
//! | `backend`, `slot` | backend strings; accounts and their keys |
//! | [`transport`] | complete commands and replies; finding devices |
//! | [`frame`], `hid` | devices on USB |
//! | `udev` | devices that are plugged in and unplugged |
//! | `tcp` | emulators |
//! | `apdu`, `ethereum` | commands, replies, status words; the abilities of the app |
//! | `port`, `wait` | an open device; waiting for an approval |
//! | `claim` | turns of several processes that use one device |
//! | `listener` | the end of a review that its caller gave up |
//! | `field` | the attached devices, and the choice among them |
//! | `wallet`, `token` | a seed, on whichever device; the keys of the token |
//! | `way` | what is open of the tokens behind one transport |
//! | `error` | errors from status words |
//!
//! # Tokens
//! A Ledger shows no serial. Its serial here is derived from its seed: the first 16 hexadecimal
//! digits of SHA-256 over the SubjectPublicKeyInfo (DER) of the signing key of account 0. So two
//! devices with the same seed are one token, and a device with another passphrase is another
//! token. A device that is locked, or whose app is not open, is listed without a serial and with
//! a note that says what to do. It gets no further commands.
//!
//! # Keys
//! An account *n* is the path m/44'/60'/n'/0/0 (BIP 44). It has two slots:
//!
//! | slot | key | what for |
//! | --- | --- | --- |
//! | `n/secp256k1` | secp256k1 | signs Ethereum personal messages (EIP-191) |
//! | `n/x25519` | X25519 | opens age files (EIP-1024) |
//!
//! **Both keys come from one secret.** The app uses the scalar of the path with either curve. A
//! key for each use would be better, and every other token here has one; this app offers none.
//! Whoever can sign with an account can, in principle, decrypt with it. What separates the two is
//! the approval on the screen of the device, where they look different.
//!
//! Nothing is stored on the device, and nothing can be destroyed there. A key is made by reading
//! its public key. A deleted key is no longer used, but can be derived again from the seed
//! ([`Deletion::Derivable`](claviger_token::Deletion)). Callers that record its slots give them to
//! no other identity. Only this process and the caller's records know which keys are in use.
//!
//! Every signature is verified with the public key before it is returned.
//!
//! # Approvals
//! The person approves every signature and every decryption on the device, and also types the PIN
//! there: this driver never asks for one. Reading public keys needs no approval. If the device is
//! locked or the app is not open, the caller gets an [`Event`](claviger_token::Event), and the
//! device is polled every half second until the deadline, or for a minute if there is none. The
//! driver waits for an approval until the deadline, or until the device times out.
//!
//! Generating and adopting keys needs one approval for each key, since each key is used once
//! before it is entered ([`possession`](claviger_token::possession)). The screen of the device
//! shows the text that is signed.
//!
//! # Messages
//! A message takes twice its length of the device's memory: see [`longest_message`]. The app
//! refuses a message that is too long only after it has received all of it.
//!
//! # Plugging in and unplugging
//! udev, where it runs, announces devices, and nothing is polled. Nothing announces events on the
//! device itself, such as locking, so a watched device is polled once a second.
//!
//! # Deadlines and late answers
//! A request on the screen of the device cannot be withdrawn. After its caller has given up, the
//! device still shows it and may answer later, and an answer does not name its request. A command
//! that arrives meanwhile is answered in place of the request, and may change what the person
//! approves. So a device that shows a review gets no command. It is listed as *busy with a
//! review*. The next operation first waits for the late answer and discards it; its caller is
//! told that there is something to approve or reject.
//!
//! Processes of the same user share this state. A process that gave up a request listens for the
//! late answer, so others can use the device as soon as the review is over. If a process ends
//! meanwhile, the next one assumes that the review is on the screen for 30 seconds, or until the
//! answer arrives. Other programs do not share it: when a device is opened, answers are discarded
//! until one arrives that can only belong to the current request. A mistaken answer does no harm
//! even then, since signatures are verified and a wrong secret opens nothing.
//!
//! If a device is unplugged after a person may have approved, the request is not repeated, and the
//! caller gets [`Error::TokenUnavailable`]. Everything else is repeated once, on the device with
//! the same seed, wherever it is plugged in.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use claviger_token::sync::lock;
use claviger_token::{
    About, Call, Detail, Driver, Error, Interval, KeySpec, Listed, Listing, SlotId, SlotInfo,
    Token, TokenInfo, Unreadable, Watch,
};

use crate::app::{APP, App, OLDEST};
use crate::backend::Backend;
use crate::error::Fault;
use crate::ethereum::Known;
use crate::field::{Attached, Field};
use crate::port::{Port, Shown, nobody};
use crate::slot::{Accounts, Kind};
use crate::transport::Devices;
use crate::way::Way;

mod about;
mod apdu;
mod app;
mod backend;
mod claim;
mod error;
mod ethereum;
mod field;
pub mod frame;
mod hid;
mod listener;
mod port;
mod slot;
mod status;
mod tcp;
mod token;
pub mod transport;
#[cfg(target_os = "linux")]
mod udev;
mod wait;
mod wallet;
mod way;

pub use ethereum::{LONGEST_MESSAGE, longest_message};
pub use hid::Usb;
pub use tcp::Tcp;

/// The time in which all devices together have to identify themselves.
const LISTING: Duration = Duration::from_secs(10);

/// `call`, which ends by itself: a device that is busy does not say so.
fn listing(call: &Call) -> Call {
    call.clone().no_longer_than(LISTING)
}

/// How often a device that is attached is asked how it is, by those who watch it.
const ASKED_EVERY: Duration = Duration::from_secs(1);

/// Lists and opens Ledgers.
#[derive(Clone)]
pub struct LedgerDriver {
    ways: Arc<Ways>,
}

/// The ways to devices.
struct Ways {
    local: Arc<Way>,
    tcp: Mutex<HashMap<String, Arc<Way>>>,
}

impl LedgerDriver {
    /// What the driver says of itself to people.
    pub const ABOUT: About = about::ABOUT;

    /// A driver for the devices on this system's USB. All of these in one process are the same
    /// driver.
    pub fn new() -> Self {
        static SYSTEM: LazyLock<LedgerDriver> = LazyLock::new(|| LedgerDriver::with_devices(Usb));
        SYSTEM.clone()
    }

    /// A driver for other devices.
    pub fn with_devices(devices: impl Devices + 'static) -> Self {
        LedgerDriver {
            ways: Arc::new(Ways {
                local: Way::new(Box::new(devices), None),
                tcp: Mutex::default(),
            }),
        }
    }

    fn way(&self, backend: &Backend) -> Arc<Way> {
        let Some(address) = &backend.tcp else {
            return Arc::clone(&self.ways.local);
        };
        let mut ways = lock(&self.ways.tcp);
        let way = ways.entry(address.clone()).or_insert_with(|| {
            let address = address.clone();
            let devices = Box::new(Tcp {
                address: address.clone(),
            });
            Way::new(devices, Some(address))
        });
        Arc::clone(way)
    }
}

impl Default for LedgerDriver {
    fn default() -> Self {
        LedgerDriver::new()
    }
}

impl Driver for LedgerDriver {
    fn about(&self) -> About {
        LedgerDriver::ABOUT
    }

    fn watch(&self) -> Box<dyn Watch> {
        Box::new(LedgerWatch {
            devices: self.ways.local.field.devices.watch(),
            ways: Arc::clone(&self.ways),
            looked: Instant::now(),
        })
    }

    /// A token that shows a review is asked for nothing: its slots are those that are known.
    fn look(&self, backend: &str, detail: Detail, call: &Call) -> Result<Listing, Error> {
        let backend = Backend::parse(backend)?;
        let way = self.way(&backend);
        let field = &way.field;
        let brief = listing(call);
        let seen = field.look(&brief);
        call.check()?;
        let seen = match seen {
            Ok(seen) => seen,
            Err(unreachable) => {
                let error = field::unreachable(unreachable);
                return Ok(Listing::new([], [Unreadable::new("USB", error)]));
            }
        };
        let mut found: Vec<Listed> = Vec::new();
        for Attached { port, shown } in seen {
            let (info, shown) = match shown {
                Ok(shown) => {
                    let state = ("state".into(), what_to_do(Fault::Occupied));
                    let state = shown.reviewing.then_some(state).into_iter().collect();
                    (info(field, &port, Some(&shown.known), state), Some(shown))
                }
                Err(Fault::Lost { .. }) if field.tcp.is_some() => continue,
                Err(fault) => {
                    let state = ("state".into(), what_to_do(fault));
                    (info(field, &port, None, vec![state]), None)
                }
            };
            let is_known = |other: &Listed| !info.id.serial.is_empty() && other.info.id == info.id;
            if backend.fits(&info.id.serial) && !found.iter().any(is_known) {
                let slots = |_: &TokenInfo| match shown {
                    Some(shown) => visible(&way, &shown, &brief),
                    None => Ok(Vec::new()),
                };
                found.push(Listed::with_slots(info, detail, slots));
            }
        }
        // What ended while slots were read is over as a whole.
        call.check()?;
        Ok(Listing::new(found, []))
    }

    fn named_slot(&self, backend: &str) -> Result<Option<SlotId>, Error> {
        Backend::parse(backend)?;
        Ok(None)
    }

    fn names_more(&self, backend: &str) -> Result<Option<&'static str>, Error> {
        Ok(Backend::parse(backend)?.names_more())
    }

    fn open(&self, backend: &str, call: &Call) -> Result<Arc<dyn Token>, Error> {
        let wanted = Backend::parse(backend)?;
        let way = self.way(&wanted);
        let (port, known) = way.field.find(backend, &wanted, call)?;
        let info = info(&way.field, &port, Some(&known), Vec::new());
        let accounts = Accounts::of(wanted.account, call.access());
        Ok(way.token((port, known), &info, accounts))
    }
}

/// The slots of a token that showed itself.
fn visible(way: &Way, shown: &Shown, call: &Call) -> Result<Vec<SlotInfo>, Error> {
    let wallet = way.wallet(&shown.known);
    match shown.reviewing {
        true => Ok(wallet.known_slots(&shown.known)),
        false => wallet.slots(&shown.known, None, call),
    }
}

/// Waits for devices to come and go, and for what happens to those that are there: that
/// one is locked or unlocked it tells nobody, so it has to be asked.
struct LedgerWatch {
    devices: Box<dyn Watch>,
    ways: Arc<Ways>,
    /// When it was worth looking last.
    looked: Instant,
}

impl Watch for LedgerWatch {
    fn wait(&mut self, limit: Duration) -> bool {
        if !lock(&self.ways.tcp).is_empty() {
            // Nothing tells when an emulator is started.
            return Interval.wait(limit);
        }
        let mut due = None;
        if self.ways.local.field.is_inhabited() {
            due = Some(ASKED_EVERY.saturating_sub(self.looked.elapsed()));
        }
        let told = self.devices.wait(due.map_or(limit, |due| due.min(limit)));
        let asked = due.is_some() && self.looked.elapsed() >= ASKED_EVERY;
        if told || asked {
            self.looked = Instant::now();
        }
        told || asked
    }
}

fn info(
    field: &Field,
    port: &Port,
    known: Option<&Known>,
    mut notes: Vec<(String, String)>,
) -> TokenInfo {
    let mut kinds = Kind::ALL.to_vec();
    if let Some(known) = known {
        let app = &known.app;
        notes.push(("app".into(), format!("{} {}", app.name, app.version)));
        kinds = known.kinds();
        if known.peer.is_none() {
            notes.push(("decryption".into(), why_it_does_not_decrypt(app)));
        }
    }
    let id = known.map_or_else(nobody, |known| known.id.clone());
    let specs: Vec<KeySpec> = kinds.into_iter().map(Kind::spec).collect();
    let backend = Backend::of(&id.serial, field.tcp.as_deref());
    let mut info = TokenInfo::new(id, backend);
    info.model.clone_from(&port.model);
    info.makes.clone_from(&specs);
    info.uses = specs;
    info.derives = true;
    info.notes = notes;
    info
}

fn why_it_does_not_decrypt(app: &App) -> String {
    let (major, minor, patch) = OLDEST;
    match app.is_too_old() {
        true => format!("update the app to {major}.{minor}.{patch} or newer"),
        false => "the app does not agree on keys (EIP-1024)".into(),
    }
}

/// Why a device does not show who it is, and what to do about it.
fn what_to_do(fault: Fault) -> String {
    match fault {
        Fault::Locked { .. } => "locked: unlock it".into(),
        Fault::NoApp { running: None, .. } => format!("open the app {APP} on it"),
        Fault::NoApp {
            running: Some(app), ..
        } => format!("the app {app} is open: open the app {APP}"),
        Fault::Occupied => "busy with a review: approve or reject it on the device".into(),
        Fault::Unknown { app, call, .. } => {
            format!("{app} does not know {call}: install Ledger's own app {APP}")
        }
        Fault::Lost { reason, .. } => format!("it cannot be used: {reason}"),
        fault => fault.into_error(&nobody()).to_string(),
    }
}

/// Fails to compile where tokens and keys could not be shared by threads.
#[allow(dead_code)]
fn tokens_are_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<LedgerDriver>();
    shared::<token::LedgerToken>();
    shared::<Arc<dyn Token>>();
    shared::<Arc<dyn claviger_token::Signer>>();
    shared::<Arc<dyn claviger_token::Decryptor>>();
}
