//! Readers and the cards in them, over PC/SC.
//!
//! A card is opened shared, and left unchanged when it is released, since other programs may be
//! using it. It is reset only on request, at the end of a transaction.

use std::ffi::CString;
use std::ops::Deref;
use std::time::Duration;

use claviger_token::{Interval, Watch};

use crate::apdu::{Lost, Transport};

/// A source of cards. There is one implementation for PC/SC, and one in tests.
pub trait Readers: Send + Sync {
    /// The names of the readers that have, or may have, a card.
    ///
    /// # Errors
    /// If no cards can be reached.
    fn list(&self) -> Result<Vec<String>, Unreachable>;

    /// Opens the card in the reader, shared with other programs. Blocks while another program
    /// has a transaction with it (pcscd).
    ///
    /// # Errors
    /// [`Lost`] if there is none.
    fn connect(&self, reader: &str) -> Result<Box<dyn Link>, Lost>;

    /// Waits until cards are inserted or removed.
    fn watch(&self) -> Box<dyn Watch> {
        Box::new(Interval)
    }
}

/// The service through which cards are reached cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreachable {
    /// What was attempted.
    pub what: String,
    /// The error.
    pub reason: String,
}

/// An open card.
pub trait Link: Send {
    /// Begins a transaction, which ends when the transport is dropped. No other program can use the
    /// card meanwhile. Blocks while another program has one.
    ///
    /// # Errors
    /// [`Lost`], also if the card was reset since the last transaction.
    fn begin(&mut self) -> Result<Box<dyn Transport + '_>, Lost>;

    /// A transport for a single command. It needs no transaction, since no other program can come
    /// in between, and so saves two round trips to the service.
    ///
    /// # Errors
    /// As [`Link::begin`]. If another program has a transaction, sending waits for its end
    /// (libpcsclite), or fails and sends nothing (Windows).
    fn alone(&mut self) -> Result<Box<dyn Transport + '_>, Lost> {
        self.begin()
    }
}

/// The readers of this system's PC/SC service (`pcscd`).
#[derive(Debug, Clone, Copy, Default)]
pub struct PcscReaders;

impl Readers for PcscReaders {
    fn list(&self) -> Result<Vec<String>, Unreachable> {
        let unreachable = |error: pcsc::Error| Unreachable {
            what: "the smartcard service cannot be reached".into(),
            reason: match error {
                pcsc::Error::NoService | pcsc::Error::ServiceStopped => {
                    "pcscd is not running".into()
                }
                other => other.to_string(),
            },
        };
        // For each listing anew: a context does not outlive its service.
        let context = pcsc::Context::establish(pcsc::Scope::User).map_err(unreachable)?;
        let names = context.list_readers_owned().map_err(unreachable)?;
        let names = names.into_iter().filter_map(|name| name.into_string().ok());
        Ok(names.collect())
    }

    fn watch(&self) -> Box<dyn Watch> {
        Box::new(PcscWatch::default())
    }

    fn connect(&self, reader: &str) -> Result<Box<dyn Link>, Lost> {
        let name = CString::new(reader).map_err(Lost::new)?;
        let context = pcsc::Context::establish(pcsc::Scope::User).map_err(Lost::new)?;
        let card = context
            .connect(&name, pcsc::ShareMode::Shared, pcsc::Protocols::ANY)
            .map_err(not_connected)?;
        let protocol = card.status2_owned().map_err(Lost::new)?.protocol2();
        Ok(Box::new(PcscLink {
            card: Some(card),
            without_le: protocol == Some(pcsc::Protocol::T0),
        }))
    }
}

/// Whether there is no card, or one that cannot be used.
fn not_connected(error: pcsc::Error) -> Lost {
    match error {
        pcsc::Error::UnresponsiveCard
        | pcsc::Error::UnpoweredCard
        | pcsc::Error::UnsupportedCard
        | pcsc::Error::SharingViolation
        | pcsc::Error::ProtoMismatch
        | pcsc::Error::CommError
        | pcsc::Error::CardUnsupported => Lost::unusable(error),
        other => Lost::new(other),
    }
}

/// Waits for what the service tells of readers and cards.
#[derive(Default)]
struct PcscWatch {
    context: Option<pcsc::Context>,
    readers: Vec<pcsc::ReaderState>,
}

impl PcscWatch {
    /// Whether something changed; an error where the service does not answer.
    fn next(&mut self, limit: Duration) -> Result<bool, pcsc::Error> {
        let context = match &self.context {
            Some(context) => context,
            None => {
                let context = pcsc::Context::establish(pcsc::Scope::User)?;
                self.context.insert(context)
            }
        };
        let names = context.list_readers_owned()?;
        let readers = &mut self.readers;
        let before = readers.len();
        readers.retain(|known| {
            known.name() == pcsc::PNP_NOTIFICATION() || names.iter().any(|n| **n == *known.name())
        });
        let mut changed = readers.len() < before;
        let pnp = std::iter::once(pcsc::PNP_NOTIFICATION().to_owned());
        for name in pnp.chain(names) {
            if !readers.iter().any(|known| *known.name() == *name) {
                changed |= *name != *pcsc::PNP_NOTIFICATION();
                readers.push(pcsc::ReaderState::new(name, pcsc::State::UNAWARE));
            }
        }
        // A new reader's state is told at once.
        let limit = if changed { Duration::ZERO } else { limit };
        match context.get_status_change(limit, readers) {
            Ok(()) => {}
            Err(pcsc::Error::Timeout) => return Ok(changed),
            Err(error) => return Err(error),
        }
        for reader in readers.iter_mut() {
            changed |= reader.event_state().contains(pcsc::State::CHANGED);
            reader.sync_current_state();
        }
        Ok(changed)
    }
}

impl Watch for PcscWatch {
    fn wait(&mut self, limit: Duration) -> bool {
        self.next(limit).unwrap_or_else(|error| {
            tracing::debug!(%error, "cards are not watched");
            // The service may have ended; what it told before is not true any more.
            *self = PcscWatch::default();
            Interval.wait(limit)
        })
    }
}

struct PcscLink {
    /// Always there, except while it is being dropped.
    card: Option<pcsc::Card>,
    /// With T=0 a command has data or expects some, not both (ISO/IEC 7816-3 §12.2).
    without_le: bool,
}

impl Drop for PcscLink {
    fn drop(&mut self) {
        // A `pcsc::Card` that is merely dropped is reset. Better to leak a handle of a
        // card that cannot be let go, than to reset it under another program.
        let card = self.card.take();
        let left = card.map(|card| card.disconnect(pcsc::Disposition::LeaveCard));
        if let Some(Err((card, error))) = left {
            tracing::debug!(%error, "a card could not be let go");
            std::mem::forget(card);
        }
    }
}

impl Link for PcscLink {
    fn begin(&mut self) -> Result<Box<dyn Transport + '_>, Lost> {
        let card = self.card.as_mut();
        let card = card.ok_or_else(|| Lost::new("it is let go"))?;
        Ok(Box::new(PcscTransport {
            card: card.transaction().map_err(Lost::new)?,
            without_le: self.without_le,
        }))
    }

    fn alone(&mut self) -> Result<Box<dyn Transport + '_>, Lost> {
        let card = self.card.as_ref();
        Ok(Box::new(PcscTransport {
            card: card.ok_or_else(|| Lost::new("it is let go"))?,
            without_le: self.without_le,
        }))
    }
}

/// A transaction, which ends when it is dropped and leaves the card as it is, or the
/// card itself.
struct PcscTransport<C> {
    card: C,
    without_le: bool,
}

trait Way: Deref<Target = pcsc::Card> {
    fn reset(self) -> Result<(), pcsc::Error>;
}

impl Way for pcsc::Transaction<'_> {
    fn reset(self) -> Result<(), pcsc::Error> {
        self.end(pcsc::Disposition::ResetCard)
            .map_err(|(_, error)| error)
    }
}

impl Way for &pcsc::Card {
    /// There is no transaction to end.
    fn reset(self) -> Result<(), pcsc::Error> {
        Err(pcsc::Error::NotTransacted)
    }
}

impl<C: Way> Transport for PcscTransport<C> {
    fn transmit(&mut self, apdu: &[u8]) -> Result<Vec<u8>, Lost> {
        let both = apdu.len() > 5 && apdu.len() == 6 + usize::from(apdu[4]);
        let sent = match apdu.split_last() {
            Some((_, without)) if both && self.without_le => without,
            _ => apdu,
        };
        let mut buffer = zeroize::Zeroizing::new([0; pcsc::MAX_BUFFER_SIZE]);
        let reply = self.card.transmit(sent, buffer.as_mut_slice());
        Ok(reply.map_err(Lost::new)?.to_vec())
    }

    fn reset(self: Box<Self>) -> Result<(), Lost> {
        self.card.reset().map_err(Lost::new)
    }
}
