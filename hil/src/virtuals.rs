//! The virtual devices of a run.

use std::sync::{Arc, Mutex};

use claviger_conformance::Subject as _;
use claviger_ledger::transport::{Attached, Broken, Devices, Transport, Unreachable};
use claviger_ledger::{LedgerDriver, Tcp};
use claviger_ledger_emulator::{App, Approver, Ethereum};
use claviger_piv::apdu::{Lost, Transport as CardTransport};
use claviger_piv::reader::{Link, Readers, Unreachable as NoReaders};
use claviger_piv::{LONGEST_ED25519_MESSAGE, PivDriver};
use claviger_pkcs11::Pkcs11Driver;
use claviger_tests::{
    Kryoptic, Neighbour, Nss, OpenCryptoki, OpenSc, P11KitClient, P11KitProxy, SoftHsm, Tpm,
    private,
};
use claviger_token::sync::lock;
use claviger_token::{Access, Driver, FixedPin, Protection};
use claviger_virtual_yubikey::{
    Answer, Card, Device as CardDevice, Firmware, Neighbour as CardNeighbour, Smartcard,
};

use crate::bench::{
    Bench, BoxedGeneratesNone, BoxedOthers, BoxedPlug, BoxedRestart, MakeDriver, Possible, Switch,
};
use crate::conformance::quietly;
use crate::devices::{Common, Device, TappedDevices, elsewhere, subject};
use crate::readers::{Gate, Tapped};
use crate::results::Standing;
use crate::transcript::Tap;

/// A device that can be started.
#[derive(Clone, Copy)]
pub struct Virtual {
    /// What reports call it.
    pub name: &'static str,
    /// Why it is not there, if it is not.
    missing: fn() -> Option<&'static str>,
    start: fn(&Parts<'_>) -> Device,
}

/// What the start of a device is given.
struct Parts<'a> {
    name: &'static str,
    common: &'a Common,
}

/// Every device that can be started, in the order of the table in `docs/tokens.md`.
pub const VIRTUALS: &[Virtual] = &[
    Virtual {
        name: "softhsm",
        missing: || None,
        start: softhsm,
    },
    Virtual {
        name: "kryoptic",
        missing: Kryoptic::skipped,
        start: kryoptic,
    },
    Virtual {
        name: "tpm2-pkcs11",
        missing: Tpm::skipped,
        start: tpm,
    },
    Virtual {
        name: "nss",
        missing: Nss::skipped,
        start: nss,
    },
    Virtual {
        name: "opencryptoki",
        missing: || inside().or_else(OpenCryptoki::skipped),
        start: opencryptoki,
    },
    Virtual {
        name: "p11-kit-client",
        missing: P11KitClient::skipped,
        start: p11_kit_client,
    },
    Virtual {
        name: "p11-kit-proxy",
        missing: || inside().or_else(P11KitProxy::skipped),
        start: p11_kit_proxy,
    },
    Virtual {
        name: "opensc",
        missing: || inside().or_else(OpenSc::skipped),
        start: opensc,
    },
    Virtual {
        name: "yubikey-4.3.5",
        missing: || None,
        start: |parts| yubikey(parts, Firmware::V4_3_5, 4_350_001),
    },
    Virtual {
        name: "yubikey-5.4.3",
        missing: || None,
        start: |parts| yubikey(parts, Firmware::V5_4_3, 54_300_001),
    },
    Virtual {
        name: "yubikey-5.7.1",
        missing: || None,
        start: |parts| yubikey(parts, Firmware::V5_7_1, 57_100_001),
    },
    #[cfg(feature = "independent-card")]
    Virtual {
        name: "piv-authenticator",
        missing: || None,
        start: independent,
    },
    Virtual {
        name: "ledger-model",
        missing: || None,
        start: ledger_model,
    },
    Virtual {
        name: "ledger-emulator",
        // Where it panics, that is said when the device is started.
        missing: || quietly(App::ethereum).ok().and_then(Result::err),
        start: ledger_emulator,
    },
];

/// The names of those that every machine can start, also of those that this build does not
/// have.
pub const ORDER: [&str; 13] = [
    "softhsm",
    "kryoptic",
    "tpm2-pkcs11",
    "nss",
    "opencryptoki",
    "p11-kit-client",
    "p11-kit-proxy",
    "opensc",
    "yubikey-4.3.5",
    "yubikey-5.4.3",
    "yubikey-5.7.1",
    "piv-authenticator",
    "ledger-model",
];

impl Virtual {
    /// Why this machine or this build does without it, if it does.
    pub(crate) fn missing(&self) -> Option<&'static str> {
        (self.missing)()
    }

    /// Starts it.
    ///
    /// # Errors
    /// Why it cannot be had, though it is not missing.
    pub(crate) fn start(&self, common: &Common) -> Result<Device, String> {
        let parts = Parts {
            name: self.name,
            common,
        };
        // Fixtures are made for tests: where something is wrong they panic, and say what.
        quietly(|| (self.start)(&parts))
    }
}

/// Those that want a view of the system that only this process has.
const INSIDE: [&str; 3] = ["opencryptoki", "p11-kit-proxy", "opensc"];

/// Starts the program anew with a view of the system of its own, where one of `virtuals` wants
/// that. It hides devices that are attached: where these are wanted, too, such devices are
/// left out.
pub fn enter(virtuals: &[Virtual]) {
    if virtuals.iter().any(|one| INSIDE.contains(&one.name)) {
        // What is wrong is said when the device is started.
        let _ = quietly(private::enter);
    }
}

fn inside() -> Option<&'static str> {
    let why = "it hides what is attached: `--virtual` starts it";
    (!private::is_inside() && private::skipped().is_none()).then_some(why)
}

/// Starts what sets variables of the environment. To be called before threads are started.
pub fn prepare(virtuals: &[Virtual]) {
    for one in virtuals.iter().filter(|one| one.missing().is_none()) {
        // What is wrong is said when the device is started.
        let _ = quietly(|| match one.name {
            "softhsm" => SoftHsm::prepare(),
            "kryoptic" => Kryoptic::prepare(),
            "tpm2-pkcs11" => Tpm::prepare(),
            "opencryptoki" => OpenCryptoki::prepare(),
            "p11-kit-client" => P11KitClient::prepare(),
            "p11-kit-proxy" => P11KitProxy::prepare(),
            // Its service takes the place of the system's in this process.
            "opensc" => OpenSc::prepare(),
            _ => {}
        });
    }
}

/// What a kind of virtual device has of its own.
struct Kind {
    make: MakeDriver,
    backend: String,
    access: Access,
    wrong: Possible<Access>,
    absent: String,
    plug: Possible<BoxedPlug>,
    others: Possible<BoxedOthers>,
    restart: Possible<BoxedRestart>,
    generates_none: Possible<BoxedGeneratesNone>,
    tap: Arc<Tap>,
    max_keys: Option<usize>,
    longest_message: usize,
    home: Box<dyn Send>,
}

#[expect(
    clippy::panic,
    reason = "what panics here is caught: see `Virtual::start`"
)]
fn device(parts: &Parts<'_>, kind: Kind) -> Device {
    let reader = (kind.make)();
    let found = reader.tokens(&kind.backend, &claviger_token::Call::unlimited());
    let info = match found.map(|mut found| found.pop()) {
        Ok(Some(info)) if info.id.serial.is_empty() => {
            let mut notes = info.notes.into_iter();
            let state = notes.find_map(|(name, state)| (name == "state").then_some(state));
            panic!("{}", state.unwrap_or("it does not say who it is".into()));
        }
        Ok(Some(info)) => info,
        Ok(None) => panic!("the device was started, and is not there"),
        Err(error) => panic!("{error}"),
    };
    let scheme = &*info.id.kind;
    let bench = Bench {
        guard: parts.common.guard(parts.name, &kind.tap),
        make: kind.make,
        driver: Mutex::default(),
        access: kind.access,
        wrong: kind.wrong,
        absent: Ok(kind.absent),
        plug: kind.plug,
        others: kind.others,
        restart: kind.restart,
        generates_none: kind.generates_none,
        protection: match parts.name {
            // It says of no key that it was made there.
            "nss" => Protection {
                local: false,
                ..Protection::FULL
            },
            _ => Protection::FULL,
        },
        room: Mutex::new(Err(match scheme {
            "ledger" => "a Ledger has two thousand million accounts",
            _ => "the token has no bound that a test could reach",
        })),
        longest_message: kind.longest_message,
        longest_ed25519_message: match parts.name {
            "yubikey-5.7.1" => LONGEST_ED25519_MESSAGE,
            _ => usize::MAX,
        },
        max_keys: kind.max_keys,
        counts_commands: scheme != "pkcs11",
        is_approved: false,
        wipe: true,
        elsewhere: match parts.name {
            // A TPM without a resource manager serves one process.
            "tpm2-pkcs11" => None,
            _ => elsewhere(&kind.backend),
        },
        backend: kind.backend,
    };
    Device {
        subject: subject(parts.name, &info, Standing::Virtual),
        info,
        reader,
        bench: Ok(bench),
        fault: None,
        _home: Some(kind.home),
    }
}

/// What restarts behind a token.
const ALL_THERE_IS: &str = "nothing stands behind the token that could restart";
/// What generates none.
const GENERATES_ALWAYS: &str = "a token of this kind that generates no keys cannot be had";

/// A PKCS#11 token in software, from the parts that the fixtures have in common.
macro_rules! pkcs11 {
    ($parts:expr, $fixture:ty, $max_keys:expr, $plug:expr) => {{
        let token = Arc::new(<$fixture>::new());
        let others = Neighbour::with_label(<$fixture>::module(), token.label(), <$fixture>::PIN);
        let plug = $plug(&token);
        let make = Box::new(|| Arc::new(Pkcs11Driver::new()) as Arc<dyn Driver>);
        device(
            $parts,
            pkcs11!(kind, $fixture, token, $max_keys, make, plug, others),
        )
    }};
    (kind, $fixture:ty, $token:ident, $max_keys:expr, $make:expr, $plug:expr, $others:expr) => {
        Kind {
            make: $make,
            backend: $token.backend(),
            access: $token.access(),
            wrong: Ok(Access::with(FixedPin::new("tr0mb0ni"))),
            absent: <$fixture>::backend_for("nowhere"),
            plug: $plug,
            others: Ok(Box::new($others)),
            restart: Err(ALL_THERE_IS),
            generates_none: Err(GENERATES_ALWAYS),
            tap: Arc::default(),
            max_keys: $max_keys,
            longest_message: usize::MAX,
            home: Box::new($token),
        }
    };
}

fn softhsm(parts: &Parts<'_>) -> Device {
    let plug = |token: &Arc<SoftHsm>| {
        let (off, on) = (Arc::clone(token), Arc::clone(token));
        switch(move || off.remove(), move || on.insert())
    };
    pkcs11!(parts, SoftHsm, Some(100), plug)
}

fn kryoptic(parts: &Parts<'_>) -> Device {
    let plug = |token: &Arc<Kryoptic>| {
        let (off, on) = (Arc::clone(token), Arc::clone(token));
        switch(move || off.remove(), move || on.insert())
    };
    pkcs11!(parts, Kryoptic, Some(100), plug)
}

fn tpm(parts: &Parts<'_>) -> Device {
    let plug = |_: &Arc<Tpm>| Err("a TPM cannot be pulled out");
    pkcs11!(parts, Tpm, Some(20), plug)
}

fn nss(parts: &Parts<'_>) -> Device {
    let token = Arc::new(Nss::new());
    let others = Neighbour::with_label(Nss::module(), token.label(), Nss::PIN);
    let make = Box::new(|| Arc::new(Pkcs11Driver::with_places(Nss::places())) as Arc<dyn Driver>);
    let plug = Err("it keeps its databases open, and does not notice that one is away");
    device(
        parts,
        pkcs11!(kind, Nss, token, Some(100), make, plug, others),
    )
}

fn opencryptoki(parts: &Parts<'_>) -> Device {
    let token = Arc::new(OpenCryptoki::new());
    let (module, pin) = (OpenCryptoki::module(), OpenCryptoki::PIN);
    let others = Neighbour::in_slot(module, token.slot(), pin);
    let make = Box::new(|| Arc::new(Pkcs11Driver::new()) as Arc<dyn Driver>);
    let plug = Err("it keeps its objects in memory, and does not notice that they are away");
    let kind = pkcs11!(kind, OpenCryptoki, token, Some(100), make, plug, others);
    let restart: BoxedRestart = Box::new(OpenCryptoki::restart_daemon);
    let restart = Ok(restart);
    device(parts, Kind { restart, ..kind })
}

fn p11_kit_client(parts: &Parts<'_>) -> Device {
    let token = Arc::new(P11KitClient::new());
    let (module, pin) = (P11KitClient::module(), P11KitClient::PIN);
    let others = Neighbour::with_label(module, token.label(), pin);
    let make = Box::new(|| Arc::new(Pkcs11Driver::new()) as Arc<dyn Driver>);
    let (off, on, again) = (Arc::clone(&token), Arc::clone(&token), Arc::clone(&token));
    let plug = switch(move || off.remove(), move || on.insert());
    let kind = pkcs11!(kind, P11KitClient, token, Some(100), make, plug, others);
    let restart: BoxedRestart = Box::new(move || {
        again.remove();
        again.insert();
    });
    let restart = Ok(restart);
    device(parts, Kind { restart, ..kind })
}

fn p11_kit_proxy(parts: &Parts<'_>) -> Device {
    let plug = |_: &Arc<P11KitProxy>| Err("what is behind the proxy is pulled out without it");
    pkcs11!(parts, P11KitProxy, Some(100), plug)
}

/// OpenSC's module over a virtual YubiKey behind a pcscd: it uses keys and generates none.
fn opensc(parts: &Parts<'_>) -> Device {
    let module = OpenSc::default();
    let same = module.clone();
    let generates_none: BoxedGeneratesNone = Box::new(move || same.generates_none());
    let kind = Kind {
        make: Box::new(|| Arc::new(Pkcs11Driver::new())),
        backend: module.backend(),
        access: module.access(),
        wrong: module.wrong_access(),
        absent: module.absent_backend().unwrap_or_default(),
        plug: Err("it makes no key that could work again after that"),
        others: Err("OpenSC's tools make no keys on this card"),
        restart: Err(ALL_THERE_IS),
        generates_none: Ok(generates_none),
        tap: Arc::default(),
        max_keys: None,
        longest_message: usize::MAX,
        home: Box::new(module),
    };
    device(parts, kind)
}

fn switch(
    off: impl Fn() + Send + Sync + 'static,
    on: impl Fn() + Send + Sync + 'static,
) -> Possible<BoxedPlug> {
    Ok(Box::new(Switch {
        off: Box::new(off),
        on: Box::new(on),
    }))
}

fn yubikey(parts: &Parts<'_>, firmware: Firmware, serial: u32) -> Device {
    let card = Card::builder().firmware(firmware).serial(serial);
    let card = CardDevice::new(card.pin("246802").build());
    let others = Box::new(CardNeighbour::on(card.clone()));
    let (tray, serial) = (Tray::with(card), serial.to_string());
    self::card(parts, tray, &serial, "246802", Ok(others))
}

#[cfg(feature = "independent-card")]
fn independent(parts: &Parts<'_>) -> Device {
    let card = claviger_independent_card::Card::new();
    let serial = claviger_token::key::to_hex(&card.guid());
    let tray = Tray::with(CardDevice::new(card));
    let others = Err("no other program works on this card here");
    self::card(parts, tray, &serial, "123456", others)
}

/// The management key with which cards are delivered. Public knowledge.
pub(crate) const MANAGEMENT_KEY: &str = "010203040506070801020304050607080102030405060708";

fn card<C: Smartcard>(
    parts: &Parts<'_>,
    tray: Tray<C>,
    serial: &str,
    pin: &str,
    others: Possible<BoxedOthers>,
) -> Device {
    let tap = Arc::<Tap>::default();
    let tapped = Tapped {
        inner: Arc::new(tray.clone()),
        hidden: Arc::new([]),
        gate: Gate::Open,
        tap: Arc::clone(&tap),
    };
    let (off, on) = (tray.clone(), tray.clone());
    let kind = Kind {
        make: Box::new(move || Arc::new(PivDriver::with_readers(tapped.clone()))),
        backend: format!("piv:serial={serial}"),
        access: Access {
            management_keys: Arc::new(FixedPin::new(MANAGEMENT_KEY)),
            ..Access::with(FixedPin::new(pin))
        },
        wrong: Ok(Access::with(FixedPin::new("135791"))),
        absent: "piv:serial=4294967295".into(),
        plug: switch(move || off.take_out(), move || on.put_in()),
        others,
        restart: Err(ALL_THERE_IS),
        generates_none: Err(GENERATES_ALWAYS),
        tap,
        max_keys: None,
        longest_message: usize::MAX,
        home: Box::new(tray),
    };
    device(parts, kind)
}

fn ledger_model(parts: &Parts<'_>) -> Device {
    let model = Model::default();
    let (off, on) = (model.clone(), model.clone());
    let plug = switch(
        move || *lock(&off.out) = true,
        move || *lock(&on.out) = false,
    );
    let longest_message = model.app.configuration().longest_message;
    ledger(parts, model.clone(), plug, longest_message, Box::new(model))
}

#[expect(
    clippy::panic,
    reason = "what panics here is caught: see `Virtual::start`"
)]
fn ledger_emulator(parts: &Parts<'_>) -> Device {
    let app = App::ethereum().unwrap_or_else(|why| panic!("{why}"));
    let approver = Approver::start(app);
    let way = Tcp {
        address: approver.apdu_address().to_string(),
    };
    let plug = Err("an emulator cannot be pulled out");
    let longest_message = approver.longest_message();
    ledger(parts, way, plug, longest_message, Box::new(approver))
}

fn ledger(
    parts: &Parts<'_>,
    way: impl Devices + 'static,
    plug: Possible<BoxedPlug>,
    longest_message: usize,
    home: Box<dyn Send>,
) -> Device {
    let tap = Arc::<Tap>::default();
    let driver = LedgerDriver::with_devices(TappedDevices {
        inner: Arc::new(way),
        tap: Arc::clone(&tap),
    });
    let kind = Kind {
        make: Box::new(move || Arc::new(driver.clone())),
        backend: "ledger:".into(),
        access: Access::without_pin(),
        wrong: Err("a Ledger's PIN is given on the device"),
        absent: "ledger:serial=0123456789abcdef".into(),
        plug,
        others: Err("a Ledger derives its keys: no other program makes any"),
        restart: Err(ALL_THERE_IS),
        generates_none: Err(GENERATES_ALWAYS),
        tap,
        max_keys: Some(10),
        longest_message,
        home,
    };
    device(parts, kind)
}

/// A reader in this process with one card in it, or none. Clones are the same.
pub struct Tray<C = Card>(Arc<Inside<C>>);

struct Inside<C> {
    name: String,
    card: CardDevice<C>,
    /// None while it is out; counts resets and removals, after each of which one has to
    /// connect again.
    epoch: Mutex<(bool, u64)>,
    /// Held by who has a transaction.
    turn: Mutex<()>,
}

impl<C> Clone for Tray<C> {
    fn clone(&self) -> Self {
        Tray(Arc::clone(&self.0))
    }
}

impl<C: Smartcard> Tray<C> {
    /// A reader with this card in it.
    pub fn with(card: CardDevice<C>) -> Self {
        Tray::named("Virtual reader", card)
    }

    /// A reader with a name, with this card in it.
    pub fn named(name: &str, card: CardDevice<C>) -> Self {
        Tray(Arc::new(Inside {
            name: name.into(),
            card,
            epoch: Mutex::new((true, 0)),
            turn: Mutex::default(),
        }))
    }

    /// Takes the card out.
    pub fn take_out(&self) {
        self.0.card.card().reset();
        let mut epoch = lock(&self.0.epoch);
        *epoch = (false, epoch.1 + 1);
    }

    /// Puts it in again.
    pub fn put_in(&self) {
        lock(&self.0.epoch).0 = true;
    }

    fn epoch(&self) -> Result<u64, Lost> {
        match *lock(&self.0.epoch) {
            (true, epoch) => Ok(epoch),
            (false, _) => Err(Lost::new("the card was removed")),
        }
    }
}

impl<C: Smartcard> Readers for Tray<C> {
    fn list(&self) -> Result<Vec<String>, NoReaders> {
        Ok(vec![self.0.name.clone()])
    }

    fn connect(&self, reader: &str) -> Result<Box<dyn Link>, Lost> {
        match self.epoch()? {
            epoch if reader == self.0.name => Ok(Box::new(Slot {
                tray: self.clone(),
                epoch,
            })),
            _ => Err(Lost::new("there is no such reader")),
        }
    }
}

/// Several readers.
#[derive(Clone, Default)]
pub struct Trays(pub Vec<Tray>);

impl Readers for Trays {
    fn list(&self) -> Result<Vec<String>, NoReaders> {
        Ok(self.0.iter().map(|tray| tray.0.name.clone()).collect())
    }

    fn connect(&self, reader: &str) -> Result<Box<dyn Link>, Lost> {
        let tray = self.0.iter().find(|tray| tray.0.name == reader);
        tray.ok_or_else(|| Lost::new("there is no such reader"))?
            .connect(reader)
    }
}

struct Slot<C> {
    tray: Tray<C>,
    epoch: u64,
}

impl<C: Smartcard> Slot<C> {
    fn check(&self) -> Result<(), Lost> {
        match self.tray.epoch()? {
            epoch if epoch == self.epoch => Ok(()),
            _ => Err(Lost::new("the card was reset")),
        }
    }
}

impl<C: Smartcard> Link for Slot<C> {
    fn begin(&mut self) -> Result<Box<dyn CardTransport + '_>, Lost> {
        let turn = lock(&self.tray.0.turn);
        self.check()?;
        Ok(Box::new(Transaction {
            slot: self,
            _turn: turn,
        }))
    }
}

struct Transaction<'a, C> {
    slot: &'a Slot<C>,
    _turn: std::sync::MutexGuard<'a, ()>,
}

impl<C: Smartcard> CardTransport for Transaction<'_, C> {
    fn transmit(&mut self, apdu: &[u8]) -> Result<Vec<u8>, Lost> {
        self.slot.check()?;
        match self.slot.tray.0.card.transmit(apdu) {
            Answer::Reply(reply, wait) => {
                std::thread::sleep(wait);
                Ok(reply)
            }
            Answer::Removed(_) => {
                self.slot.tray.take_out();
                Err(Lost::new("the card was removed"))
            }
        }
    }

    fn reset(self: Box<Self>) -> Result<(), Lost> {
        self.slot.check()?;
        self.slot.tray.take_out();
        self.slot.tray.put_in();
        Ok(())
    }
}

/// A Ledger in this process, plugged in or not. Clones are the same.
#[derive(Clone)]
struct Model {
    app: Ethereum,
    out: Arc<Mutex<bool>>,
}

impl Default for Model {
    fn default() -> Self {
        Model {
            app: Ethereum::new(),
            out: Arc::default(),
        }
    }
}

impl Model {
    fn check(&self) -> Result<(), Broken> {
        match *lock(&self.out) {
            true => Err(Broken::Lost("it was unplugged".into())),
            false => Ok(()),
        }
    }
}

impl Devices for Model {
    fn list(&self) -> Result<Vec<Attached>, Unreachable> {
        let attached = Attached {
            path: "model".into(),
            model: "model".into(),
        };
        Ok(self.check().map(|()| attached).into_iter().collect())
    }

    fn connect(&self, _: &str) -> Result<Box<dyn Transport>, Broken> {
        self.check()?;
        Ok(Box::new(Wire {
            model: self.clone(),
            reply: None,
        }))
    }
}

struct Wire {
    model: Model,
    reply: Option<Vec<u8>>,
}

impl Transport for Wire {
    fn send(&mut self, apdu: &[u8]) -> Result<(), Broken> {
        self.model.check()?;
        self.reply = Some(self.model.app.answer(apdu));
        Ok(())
    }

    fn receive(
        &mut self,
        _: std::time::Duration,
    ) -> Result<Option<zeroize::Zeroizing<Vec<u8>>>, Broken> {
        self.model.check()?;
        Ok(self.reply.take().map(Into::into))
    }
}
