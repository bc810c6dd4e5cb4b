//! The readers, and what is known of the cards in them.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use claviger_token::shelf::Places;
use claviger_token::sync::lock;
use claviger_token::{Call, PublicKey, SlotId, TokenId, Watch};

use crate::apdu::Lost;
use crate::attestation::Makers;
use crate::card::Card;
use crate::error::Fault;
use crate::firmware::{Make, Version};
use crate::held::{Held, Pending, begin_in_time};
use crate::identity::Identity;
use crate::marker;
use crate::reader::{Link, Readers};
use crate::slot::Slot;

/// The readers, and what is known of the cards in them.
pub(crate) struct Field {
    pub(crate) readers: Arc<dyn Readers>,
    /// Whose cards are believed to do what their firmware does. Their certificates are parsed
    /// for the first card that is looked at, since most processes look at none.
    makers: LazyLock<Makers, ReadMakers>,
    /// Of which cards it is known whether one of the makers made them.
    proven: Mutex<HashMap<(TokenId, Version), bool>>,
    /// The public halves of keys that failed generations left, by token and name of the slot.
    unfinished: Mutex<HashMap<(TokenId, String), PublicKey>>,
    /// One for each reader, held while its card is looked at: who finds another's
    /// transaction there is made to wait for 100 ms by libpcsclite, however short it is.
    looking: Places<String, Mutex<Pending>>,
}

/// Reads the certificates of makers.
type ReadMakers = Box<dyn FnOnce() -> Makers + Send>;

impl Field {
    pub(crate) fn new(
        readers: impl Readers + 'static,
        makers: impl FnOnce() -> Makers + Send + 'static,
    ) -> Self {
        Field {
            readers: Arc::new(readers),
            makers: LazyLock::new(Box::new(makers)),
            proven: Mutex::default(),
            unfinished: Mutex::default(),
            looking: Places::default(),
        }
    }

    pub(crate) fn watch(&self) -> Box<dyn Watch> {
        self.readers.watch()
    }

    /// Finds out who made the card, as far as that shows: the certificate of its attestation
    /// key leads to a maker that is known. Read once, and remembered as long as the process
    /// lives.
    pub(crate) fn prove(&self, card: &mut Card<'_>, identity: &Identity) -> Result<Make, Fault> {
        let make = self.known(identity);
        let Make::Stated { version, .. } = make else {
            return Ok(make);
        };
        let key = (identity.id.clone(), version);
        if lock(&self.proven).contains_key(&key) {
            return Ok(make);
        }
        let made = match card.object(Slot::ATTESTATION.certificate()) {
            Ok(Some(object)) => {
                // Yubico's is a bare 70, without CertInfo.
                let certificate = marker::certificate(&object);
                certificate.is_some_and(|certificate| self.makers.made(&certificate))
            }
            Ok(None) | Err(Fault::Status { .. } | Fault::Malformed { .. }) => false,
            Err(fault) => return Err(fault),
        };
        lock(&self.proven).insert(key, made);
        Ok(self.known(identity))
    }

    /// What a card is, with what was found out about it before.
    pub(crate) fn known(&self, identity: &Identity) -> Make {
        let make = identity.make.clone();
        let Some(version) = make.version() else {
            return make;
        };
        let proven = lock(&self.proven);
        match proven.get(&(identity.id.clone(), version)) {
            Some(true) => make.proven(),
            _ => make,
        }
    }

    /// Notes the public half of a key that a failed generation left, by the name of its slot:
    /// whoever is to remove it got no answer.
    pub(crate) fn remember_unfinished(&self, token: &TokenId, slot: &SlotId, key: PublicKey) {
        let name = (token.clone(), slot.as_str().to_owned());
        lock(&self.unfinished).insert(name, key);
    }

    /// See [`Field::remember_unfinished`].
    pub(crate) fn unfinished(&self, token: &TokenId, slot: &SlotId) -> Option<PublicKey> {
        let name = (token.clone(), slot.as_str().to_owned());
        lock(&self.unfinished).get(&name).cloned()
    }

    /// What was left is gone.
    pub(crate) fn forget_unfinished(&self, token: &TokenId, slot: &SlotId) {
        let name = (token.clone(), slot.as_str().to_owned());
        lock(&self.unfinished).remove(&name);
    }

    /// To be locked by who looks at the card in `reader`.
    pub(crate) fn looking_at(&self, reader: &str) -> Arc<Mutex<Pending>> {
        self.looking.of(reader)
    }

    /// Begins a transaction with the card in `reader`, as [`begin_in_time`].
    ///
    /// # Errors
    /// Those of [`begin_in_time`].
    pub(crate) fn begin(
        &self,
        reader: &str,
        pending: &mut Pending,
        call: &Call,
    ) -> Result<Held, Fault> {
        let (readers, name) = (Arc::clone(&self.readers), reader.to_owned());
        begin_in_time(pending, move || readers.connect(&name), call)
    }

    /// Does `work` with the card in `reader`, in a transaction that is waited for as long as
    /// `call` lasts and ends with the work. With what comes of it, the way to the card.
    pub(crate) fn in_transaction<T>(
        &self,
        reader: &str,
        call: &Call,
        work: impl FnOnce(&mut Card<'_>) -> Result<T, Fault>,
    ) -> Result<(T, Box<dyn Link>), Fault> {
        let looking = self.looking_at(reader);
        let mut pending = call.lock(&looking)?;
        if call.is_endless() && pending.is_none() {
            let mut link = self.readers.connect(reader).map_err(Fault::Lost)?;
            let mut transport = link.begin().map_err(Fault::Lost)?;
            let done = work(&mut Card::new(&mut *transport, call))?;
            drop(transport);
            return Ok((done, link));
        }
        let mut held = self.begin(reader, &mut pending, call)?;
        let done = work(&mut Card::new(&mut held.turn(), call))?;
        let link = held.end();
        Ok((
            done,
            link.ok_or_else(|| Fault::Lost(Lost::new("it is let go")))?,
        ))
    }
}
