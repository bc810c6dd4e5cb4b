//! Virtual Ledgers: a model of the app, and Ledger's emulator.

use std::sync::{Arc, Mutex};

use claviger_ledger::transport::{Attached, Broken, Devices, Transport, Unreachable};
use claviger_ledger::{LedgerDriver, Tcp};
use claviger_ledger_emulator::{App, Approver, Ethereum};
use claviger_token::sync::lock;
use claviger_token::{Access, Protection};

use super::{ALL_THERE_IS, GENERATES_ALWAYS, Kind, Parts, Virtual, device, switch};
use crate::bench::{BoxedPlug, Possible};
use crate::conformance::quietly;
use crate::devices::{Device, TappedDevices};
use crate::transcript::Tap;

pub(super) const VIRTUALS: &[Virtual] = &[
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
        protection: Protection::FULL,
        tap,
        max_keys: Some(10),
        longest_message,
        longest_ed25519_message: usize::MAX,
        home,
    };
    device(parts, kind)
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
