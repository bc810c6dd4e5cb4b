//! A seed, and the device that has it.
//!
//! Only this process knows which keys it uses: a Ledger derives any key on request, and keeps no
//! list.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use claviger_token::sync::lock;
use claviger_token::{Call, Deletion, Error, PublicKey, SlotInfo, TokenId};

use crate::error::Fault;
use crate::ethereum::{self, Known};
use crate::field::{Field, unreachable};
use crate::port::{Port, Session};
use crate::slot::{Kind, Slot};
use crate::wait::Wait;

/// The accounts that are listed, besides those that are in use.
const LISTED: u32 = 5;

/// A seed, on whatever device it is.
pub(crate) struct Wallet {
    field: Arc<Field>,
    pub(crate) id: TokenId,
    /// Where it was seen last.
    port: Mutex<Option<Arc<Port>>>,
    /// Public keys never change: each is read once.
    pub(crate) keys: Mutex<BTreeMap<Slot, PublicKey>>,
    /// The slots of which something is known.
    pub(crate) used: Mutex<BTreeMap<Slot, Use>>,
}

/// What this process did with a slot.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Use {
    /// It made the key, or uses it, and did not delete it since.
    pub(crate) live: bool,
    /// How often it deleted the key: what was handed out before is of no use any more.
    pub(crate) deletions: u64,
}

impl Wallet {
    pub(crate) fn new(field: Arc<Field>, known: &Known) -> Self {
        Wallet {
            field,
            id: known.id.clone(),
            port: Mutex::default(),
            keys: Mutex::new(known.keys().collect()),
            used: Mutex::default(),
        }
    }

    /// Notes where it was seen last.
    pub(crate) fn was_seen_at(&self, port: Arc<Port>) {
        *lock(&self.port) = Some(port);
    }

    /// Does `work` on the device that has the seed, wherever it is plugged in.
    ///
    /// | what happens | what is done |
    /// | --- | --- |
    /// | it is locked, or the app is not open | a person is told, and waited for |
    /// | it is not done with an earlier request | the same |
    /// | it was unplugged, before a person was asked | it is looked for, once |
    /// | it was unplugged, when a person may have approved | the caller has to know |
    /// | another seed is there | the other devices are looked at |
    pub(crate) fn run<T>(
        &self,
        call: &Call,
        work: impl FnMut(&mut Session<'_>) -> Result<T, Fault>,
    ) -> Result<T, Error> {
        self.run_waiting(call, Wait::new(call), work)
    }

    fn run_waiting<T>(
        &self,
        call: &Call,
        mut wait: Wait<'_>,
        mut work: impl FnMut(&mut Session<'_>) -> Result<T, Fault>,
    ) -> Result<T, Error> {
        let mut recovered = false;
        loop {
            call.check()?;
            let fault = match self.attempt(call, &mut work) {
                Ok(done) => return Ok(done),
                Err(fault) => fault,
            };
            match fault {
                Fault::Locked { .. } | Fault::NoApp { .. } | Fault::Occupied => {
                    wait.for_person(fault, &self.id)?;
                }
                Fault::Lost { asked: false, .. } if !recovered => recovered = true,
                Fault::Lost { asked: false, .. } if wait.is_back_soon()? => {}
                fault => return Err(fault.into_error(&self.id)),
            }
        }
    }

    fn attempt<T>(
        &self,
        call: &Call,
        work: &mut impl FnMut(&mut Session<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let last = lock(&self.port).clone();
        let mut why = Fault::Lost {
            reason: "it is not attached".into(),
            asked: false,
        };
        let ports = match last {
            Some(last) if last.is_open() => vec![last],
            _ => self.field.ports().map_err(unreachable)?,
        };
        for port in ports {
            let mut began = false;
            let done = port.talk(&*self.field.devices, call, |session| {
                if session.known()?.id != self.id {
                    // Perhaps it was unlocked with another PIN since.
                    session.forget();
                    self.check_seed(session)?;
                }
                began = true;
                work(session)
            });
            match done {
                Ok(done) => {
                    *lock(&self.port) = Some(port);
                    return Ok(done);
                }
                Err(fault) if began => {
                    *lock(&self.port) = Some(port);
                    return Err(fault);
                }
                Err(Fault::Ours(error)) if ends(&error) => return Err(error.into()),
                // It may be on another device. What a person can mend is said first.
                Err(fault @ (Fault::Locked { .. } | Fault::NoApp { .. } | Fault::Occupied)) => {
                    why = fault;
                }
                Err(fault) if matches!(why, Fault::Lost { .. }) => why = fault,
                Err(_) => {}
            }
        }
        if !matches!(why, Fault::Occupied) {
            *lock(&self.port) = None;
        }
        Err(why)
    }

    pub(crate) fn check_seed(&self, session: &mut Session<'_>) -> Result<(), Fault> {
        match session.known()?.id == self.id {
            true => Ok(()),
            false => Err(Fault::OtherSeed),
        }
    }

    /// The public key of a slot; the device is asked once.
    pub(crate) fn public_key(&self, slot: Slot, call: &Call) -> Result<PublicKey, Error> {
        self.public_key_waiting(slot, call, Wait::new(call))
    }

    pub(crate) fn public_key_waiting(
        &self,
        slot: Slot,
        call: &Call,
        wait: Wait<'_>,
    ) -> Result<PublicKey, Error> {
        call.check()?;
        if let Some(key) = lock(&self.keys).get(&slot) {
            return Ok(key.clone());
        }
        let key = self.run_waiting(call, wait, |session| read(session, slot))?;
        lock(&self.keys).insert(slot, key.clone());
        Ok(key)
    }

    /// The first accounts, `named`, and those that are in use. A key that the app does not
    /// show hides no others.
    pub(crate) fn slots(
        &self,
        known: &Known,
        named: Option<u32>,
        call: &Call,
    ) -> Result<Vec<SlotInfo>, Error> {
        self.list(known, named, |slot| match self.public_key(slot, call) {
            Ok(key) => Ok(Some(Ok(key))),
            Err(error @ (Error::Device { .. } | Error::MalformedReply { .. })) => {
                Ok(Some(Err(error)))
            }
            Err(error) => Err(error),
        })
    }

    /// The same, as far as it is known without asking the device.
    pub(crate) fn known_slots(&self, known: &Known) -> Vec<SlotInfo> {
        let keys = lock(&self.keys).clone();
        let listed = self.list(known, None, |slot| Ok(keys.get(&slot).cloned().map(Ok)));
        listed.unwrap_or_default()
    }

    /// A line for each slot for which `read` has a key, or a reason why it has none.
    fn list(
        &self,
        known: &Known,
        named: Option<u32>,
        read: impl Fn(Slot) -> Result<Option<Result<PublicKey, Error>>, Error>,
    ) -> Result<Vec<SlotInfo>, Error> {
        let used = lock(&self.used).clone();
        let live = used.iter().filter(|(_, used)| used.live);
        let accounts: BTreeSet<u32> = (0..LISTED)
            .chain(named)
            .chain(live.map(|(slot, _)| slot.account))
            .collect();
        let kinds = known.kinds();
        let slots = accounts.into_iter().flat_map(Slot::of);
        let slots = slots.filter(|slot| kinds.contains(&slot.kind));
        let lines = slots.filter_map(|slot| {
            let key = read(slot).transpose()?;
            let live = used.get(&slot).is_some_and(|used| used.live);
            Some(key.map(|key| slot_info(slot, live, key)))
        });
        lines.collect()
    }

    /// The key is no longer used.
    pub(crate) fn give_up(&self, slot: Slot) -> Deletion {
        let mut used = lock(&self.used);
        let used = used.entry(slot).or_default();
        if !used.live && used.deletions > 0 {
            return Deletion::NothingThere;
        }
        used.live = false;
        used.deletions += 1;
        Deletion::Derivable
    }

    pub(crate) fn occupied(&self, slot: Slot) -> Error {
        Error::SlotOccupied {
            token: self.id.clone(),
            slot: slot.to_string(),
        }
    }

    pub(crate) fn check_live(
        &self,
        slot: Slot,
        deletions: u64,
        key: &PublicKey,
    ) -> Result<(), Error> {
        match lock(&self.used).get(&slot) {
            Some(used) if used.live && used.deletions == deletions => Ok(()),
            _ => Err(self.not_found(key)),
        }
    }

    pub(crate) fn not_found(&self, key: &PublicKey) -> Error {
        Error::KeyNotFound {
            token: self.id.clone(),
            key: key.fingerprint().to_string(),
        }
    }
}

fn slot_info(slot: Slot, live: bool, key: Result<PublicKey, Error>) -> SlotInfo {
    let mut info = match live {
        true => SlotInfo::occupied(slot.id()),
        false => SlotInfo::free(slot.id()),
    };
    info.algorithm = Some(slot.kind.spec().algorithm);
    info.uses = vec![slot.kind.spec().usage];
    match key {
        Ok(key) => info.with_key(key),
        Err(error) => {
            info.notes.push(("error".into(), error.to_string()));
            info
        }
    }
}

/// Whether it is of no use to look at another device.
fn ends(error: &Error) -> bool {
    matches!(error, Error::Cancelled | Error::DeadlineExceeded)
}

pub(crate) fn read(session: &mut Session<'_>, slot: Slot) -> Result<PublicKey, Fault> {
    match slot.kind {
        Kind::Signing => ethereum::signing_key(session, slot.account),
        Kind::Decryption => ethereum::decryption_key(session, slot.account),
    }
}
