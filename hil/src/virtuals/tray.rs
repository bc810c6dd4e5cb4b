//! Readers in this process, with virtual cards.

use std::sync::{Arc, Mutex};

use claviger_piv::apdu::{Lost, Transport};
use claviger_piv::reader::{Link, Readers, Unreachable};
use claviger_token::sync::lock;
use claviger_virtual_yubikey::{Answer, Card, Device, Smartcard};

/// A reader in this process with one card in it, or none. Clones are the same.
pub struct Tray<C = Card>(Arc<Inside<C>>);

struct Inside<C> {
    name: String,
    card: Device<C>,
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
    pub fn with(card: Device<C>) -> Self {
        Tray::named("Virtual reader", card)
    }

    /// A reader with a name, with this card in it.
    pub fn named(name: &str, card: Device<C>) -> Self {
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
    fn list(&self) -> Result<Vec<String>, Unreachable> {
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
    fn list(&self) -> Result<Vec<String>, Unreachable> {
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
    fn begin(&mut self) -> Result<Box<dyn Transport + '_>, Lost> {
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

impl<C: Smartcard> Transport for Transaction<'_, C> {
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
