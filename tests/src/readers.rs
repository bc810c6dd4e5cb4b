//! The readers of PC/SC, with a count of what was begun on their cards.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use claviger_piv::apdu::{Lost, Transport};
use claviger_piv::reader::{Link, PcscReaders, Readers, Unreachable};

/// The readers of PC/SC. Clones count together.
#[derive(Clone, Default)]
pub struct CountedReaders(Arc<Begun>);

#[derive(Default)]
struct Begun {
    transactions: AtomicUsize,
    single_commands: AtomicUsize,
}

impl CountedReaders {
    /// How many transactions were begun so far (`SCardBeginTransaction`).
    pub fn transactions(&self) -> usize {
        self.0.transactions.load(Ordering::Relaxed)
    }

    /// How many commands were sent without one.
    pub fn single_commands(&self) -> usize {
        self.0.single_commands.load(Ordering::Relaxed)
    }
}

impl Readers for CountedReaders {
    fn list(&self) -> Result<Vec<String>, Unreachable> {
        PcscReaders.list()
    }

    fn connect(&self, reader: &str) -> Result<Box<dyn Link>, Lost> {
        Ok(Box::new(Counted {
            link: PcscReaders.connect(reader)?,
            begun: Arc::clone(&self.0),
        }))
    }
}

struct Counted {
    link: Box<dyn Link>,
    begun: Arc<Begun>,
}

impl Link for Counted {
    fn begin(&mut self) -> Result<Box<dyn Transport + '_>, Lost> {
        self.begun.transactions.fetch_add(1, Ordering::Relaxed);
        self.link.begin()
    }

    fn alone(&mut self) -> Result<Box<dyn Transport + '_>, Lost> {
        self.begun.single_commands.fetch_add(1, Ordering::Relaxed);
        self.link.alone()
    }
}
