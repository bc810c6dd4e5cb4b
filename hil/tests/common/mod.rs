//! Virtual cards in readers that the bench takes for the machine's own.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::PathBuf;
use std::sync::Arc;

use claviger_hil::HilError;
use claviger_hil::config::Config;
use claviger_hil::devices::Sources;
use claviger_hil::results::{Finding, Outcome, Results};
use claviger_hil::run::{Options, Times, run};
use claviger_hil::screen::Interrupt;
use claviger_hil::virtuals::{Tray, Trays};
use claviger_ledger::transport::{Attached, Broken, Devices, Transport, Unreachable};
use claviger_token::{Access, FixedPin};
use claviger_virtual_yubikey::{Device, Slot, object};

pub(crate) const PIN: &str = "246802";
/// The management key of cards as they are delivered.
const MANAGEMENT_KEY: &str = "010203040506070801020304050607080102030405060708";

/// Readers with cards, and a folder for reports.
pub(crate) struct Desk {
    pub(crate) trays: Trays,
    pub(crate) only: Vec<String>,
    pub(crate) record: bool,
    pub(crate) measure: bool,
    pub(crate) times: Times,
    pub(crate) checks: Vec<String>,
    folder: tempfile::TempDir,
}

impl Desk {
    pub(crate) fn with(devices: &[&Device]) -> Desk {
        let trays = devices.iter().enumerate();
        let trays = trays
            .map(|(number, device)| Tray::named(&format!("Reader {number}"), (*device).clone()));
        Desk {
            trays: Trays(trays.collect()),
            only: Vec::new(),
            record: false,
            measure: false,
            times: Times {
                each: 0.05,
                endurance: 0.1,
            },
            checks: Vec::new(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// Only these checks.
    pub(crate) fn only_checks(mut self, checks: &[&str]) -> Desk {
        self.checks = checks.iter().map(|check| (*check).to_owned()).collect();
        self
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// How somebody opens one of the cards.
    pub(crate) fn access(&self) -> Access {
        Access {
            management_keys: Arc::new(FixedPin::new(MANAGEMENT_KEY)),
            ..Access::with(FixedPin::new(PIN))
        }
    }

    /// Runs with this configuration; each device gets the PIN and the management key.
    pub(crate) fn run(&self, config: &str) -> Results {
        self.try_run(config).unwrap()
    }

    pub(crate) fn try_run(&self, config: &str) -> Result<Results, HilError> {
        self.attempt(config, &Interrupt::default())
    }

    pub(crate) fn run_with(&self, config: &str, interrupt: &Interrupt) -> Results {
        self.attempt(config, interrupt).unwrap()
    }

    fn attempt(&self, config: &str, interrupt: &Interrupt) -> Result<Results, HilError> {
        let secret = |name: &str, value: &str| {
            let path = self.folder.path().join(name);
            std::fs::write(&path, value).unwrap();
            path.display().to_string()
        };
        let secrets = format!(
            "[[device]]\npin = \"file:{}\"\nmanagement-key = \"file:{}\"\n",
            secret("pin", PIN),
            secret("key", MANAGEMENT_KEY)
        );
        let config = Config::parse(&config.replace("[[device]]\n", &secrets)).unwrap();
        let sources = Sources {
            cards: Arc::new(self.trays.clone()),
            ledgers: Arc::new(NoLedgers),
            pkcs11: Vec::new(),
        };
        let options = Options {
            out: self.out(),
            measure: self.measure.then_some(self.times),
            record: self.record,
            only: self.only.clone(),
            checks: self.checks.clone(),
            left_out: Vec::new(),
            program: None,
        };
        run(&config, Some(&sources), &[], &options, interrupt)
    }
}

struct NoLedgers;

impl Devices for NoLedgers {
    fn list(&self) -> Result<Vec<Attached>, Unreachable> {
        Ok(Vec::new())
    }

    fn connect(&self, _: &str) -> Result<Box<dyn Transport>, Broken> {
        Err(Broken::Lost("there is none".into()))
    }
}

/// The checks of a device: name, outcome, reason.
pub(crate) fn outcomes(results: &Results, device: &str) -> Vec<(String, Outcome, String)> {
    let records = results.records().iter();
    let of_device = records.filter(|record| record.device() == device);
    of_device
        .filter_map(|record| match &record.finding {
            Finding::Check {
                check,
                outcome,
                reason,
                ..
            } => Some((check.clone(), *outcome, reason.clone())),
            _ => None,
        })
        .collect()
}

#[track_caller]
pub(crate) fn outcome(results: &Results, device: &str, check: &str) -> Outcome {
    let all = outcomes(results, device);
    let found = all.iter().find(|(name, ..)| name == check);
    found.unwrap_or_else(|| panic!("{device}: no {check}")).1
}

/// Why checks failed.
pub(crate) fn failures(results: &Results) -> Vec<String> {
    let records = results.records().iter();
    let failed = records.filter_map(|record| match &record.finding {
        Finding::Check {
            check,
            outcome: Outcome::Failed,
            reason,
            ..
        } => Some(format!("{check}: {reason}")),
        _ => None,
    });
    failed.collect()
}

/// Everything about a card that somebody could miss.
pub(crate) fn state(device: &Device) -> String {
    let card = device.card();
    let mut text = format!("{} {} tries\n", card.pin_tries(), card.puk_tries());
    for slot in card.occupied() {
        text += &format!("{slot:?} {:?}\n", card.object(object::certificate(slot)));
    }
    for id in [
        object::CHUID,
        object::PRINTED,
        object::ADMIN_DATA,
        object::ATTESTATION,
    ] {
        text += &format!("{id:x} {:?}\n", card.object(id));
    }
    text
}

/// The public half of the key in a slot, as far as two of them can be told apart.
pub(crate) fn public(device: &Device, slot: Slot) -> Vec<u8> {
    let card = device.card();
    let key = card.key(slot).unwrap();
    key.spki()
}
