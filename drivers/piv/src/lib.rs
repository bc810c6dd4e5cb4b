//! Claviger's driver for PIV smartcards, first of all YubiKeys.
//!
//! [`PivDriver`] lists and opens cards by backend strings
//! `piv:[serial=N][;slot=9c][;pin-policy=never|once|always][;touch-policy=never|always|cached]`;
//! the policies are for keys that are generated. It speaks NIST SP 800-73-4 and Yubico's
//! extensions itself, over PC/SC.
//!
//! | module | idea |
//! | --- | --- |
//! | `backend`, `policy` | backend strings, and when a key wants PIN and touch |
//! | [`reader`] | readers, and the cards in them, over PC/SC |
//! | [`apdu`], `tlv` | commands, replies, status words; how data is packed |
//! | `card` | the commands of a PIV card |
//! | `firmware` | what cards can do, as data |
//! | `management` | the management key |
//! | `connection` | an open card: transactions, the PIN, recovery |
//! | `slot`, `marker`, `content` | slots, what is in them, and which keys are ours |
//! | `token` | the token's keys |
//! | [`attestation`] | a card's certificate that it made a key |
//! | `error` | from status words to errors |
//!
//! # Keys and slots
//! New keys go into free retired slots (82 to 95), unless the backend names a slot. A slot
//! that holds anything is never overwritten. Each key that is made gets a certificate in
//! the slot's certificate object that names the generation; by it a key is recognised as
//! ours when it is to be deleted. What happens when the process dies:
//!
//! | it dies | the slot holds | deleting later |
//! | --- | --- | --- |
//! | before the certificate is written | what it held | changes nothing |
//! | before the key is made | our certificate | removes the certificate |
//! | before the certificate is final | our key and certificate | removes both |
//! | while a key is deleted | our certificate, perhaps our key | removes what is left |
//!
//! If somebody else makes a key in the slot after that and leaves our unfinished
//! certificate there, their key cannot be told from ours; other tools show the slot as
//! used, and whoever writes a certificate for the new key replaces ours.
//!
//! Others may delete our certificate, or put another in its place, such as one that an
//! authority issued for the key. The key is still deleted then, and whatever certificate
//! is in its slot, if its public half is given as well ([`Token::delete`]) and is that
//! of the key in the slot. If it is not given, a key that may be ours or somebody else's is
//! left as it is, with [`Error::KeyMismatch`] for an answer. To get out of that, remove it
//! with the vendor's tool, such as `ykman piv keys delete 82`, or, where the card shows the
//! origin of its keys, import another in its place: there is nothing of ours in a slot that
//! is empty or whose key was imported.
//!
//! Before firmware 5.7, and on cards of others, there is no command that deletes a key.
//! There it is destroyed by a new one in its place, the *filler*: a P-256 key, where the
//! card has them, that is nobody's. The slot's certificate then says that the slot is
//! empty and names the filler. As long as the filler is in it, the slot counts as free:
//! it is shown as such, and the next key overwrites the filler.
//!
//! | it dies | the slot holds | deleting later |
//! | --- | --- | --- |
//! | before the key is made in an emptied slot | our unfinished certificate, the filler | makes a new filler |
//! | while a key is deleted, before it is overwritten | our unfinished certificate, our key | overwrites it |
//! | before the slot is said to be empty | our unfinished certificate, a filler | makes a new filler |
//! | after that | the certificate of an empty slot, the filler | changes nothing |
//!
//! Whether a key is ours, or the filler, is seen by its public key where the card shows
//! it (metadata, attestation), and else by a signature that it makes.
//!
//! A card that refuses to overwrite as well has [`Error::CannotDestroy`] for an answer,
//! and the key is as it was.
//!
//! # What is protected
//! SP 800-73-4 and Yubico's extensions have no command that gives a private key away, so
//! every generated key is sensitive and never extractable; that it was made on the card
//! is stated by the card (metadata, attestation) or known because we asked for it.
//!
//! # PINs
//! The PIN is given once after a card was selected, and for each operation of a key whose
//! policy says so. It is checked first that a wrong PIN would not lock the card, and that
//! the card did not refuse this one before ([`claviger_token::refused`]). When a
//! token is closed the rights that the PIN gave are taken back, and those of the management
//! key as soon as a key is made or deleted. A YubiKey is never reset for that: other
//! programs may use it, and between our transactions they may. A card of others, where
//! only that takes the management key's rights away, is reset after a key was made or
//! deleted, and when it is closed if it has no other way to forget a PIN; programs that
//! share it have to connect again and to give the PIN again.
//!
//! # Deadlines
//! PC/SC cannot cancel a command, nor the wait for another program's transaction. A
//! deadline or a cancellation counts before each command; one that the card has
//! begun, a touch included, comes to its end.
//!
//! # Why not the crate `yubikey`
//! It resets the card when it is dropped, writes PINs to the log at the level trace,
//! panics on malformed replies, gives most status words the same error, refuses other
//! PIV cards and firmware from 6 on, does not delete keys, and takes a card for itself
//! where here several programs share it. What is left of it, encodings of a dozen
//! commands, is shorter written than guarded.
#![forbid(unsafe_code)]

use std::sync::{Arc, LazyLock};

use claviger_token::{
    Access, Call, Driver, Error, Listing, Pace, SlotId, SlotInfo, Token, TokenId, TokenInfo, Watch,
};

use crate::backend::Backend;
use crate::connection::{Connection, Field, Identity, Place, lock, notes};
use crate::content::inspect;
use crate::firmware::Feature;
use crate::policy::Policies;
use crate::reader::{PcscReaders, Readers, Unreachable};
use crate::slot::{Slot, new_name};
use crate::token::PivToken;

pub mod apdu;
pub mod attestation;
mod backend;
mod card;
mod connection;
mod content;
mod error;
mod firmware;
mod management;
mod marker;
mod policy;
pub mod reader;
#[cfg(test)]
mod script;
mod slot;
mod tlv;
mod token;

pub use attestation::{check_roots, verify_chain};
pub use token::LONGEST_ED25519_MESSAGE;

/// Lists and opens PIV cards.
#[derive(Clone)]
pub struct PivDriver {
    field: Arc<Field>,
}

impl PivDriver {
    /// A driver for the readers of this system's PC/SC service. In one process all of
    /// these are one: a card is opened once.
    pub fn new() -> Self {
        static SYSTEM: LazyLock<Arc<Field>> = LazyLock::new(|| Field::new(PcscReaders));
        PivDriver {
            field: Arc::clone(&SYSTEM),
        }
    }

    /// A driver for other readers.
    pub fn with_readers(readers: impl Readers + 'static) -> Self {
        PivDriver {
            field: Field::new(readers),
        }
    }
}

impl Default for PivDriver {
    fn default() -> Self {
        PivDriver::new()
    }
}

impl Driver for PivDriver {
    fn scheme(&self) -> &'static str {
        backend::SCHEME
    }

    fn look(&self, backend: &str) -> Result<Listing, Error> {
        let backend = Backend::parse(backend)?;
        let found = self
            .field
            .visit(|card, identity| notes(card, &identity.make));
        match found {
            Ok(found) => Ok(Listing {
                tokens: found
                    .into_iter()
                    .filter(|(identity, _)| fits(&backend, identity))
                    .map(|(identity, notes)| info(&identity, notes))
                    .collect(),
                unreadable: Vec::new(),
            }),
            Err(Unreachable { what, reason }) => {
                tracing::debug!(what, reason, "no cards");
                Ok(Listing::default())
            }
        }
    }

    fn slots(&self, token: &TokenInfo) -> Result<Vec<SlotInfo>, Error> {
        let unavailable = |reason: String| Error::TokenUnavailable {
            token: token.id.clone(),
            reason,
        };
        let found = self.field.visit(|card, identity| {
            if identity.id != token.id {
                return Ok(None);
            }
            let slots = Slot::all();
            let slots = slots.map(|slot| Ok(inspect(card, &identity.make, slot)?.info(slot)));
            slots.collect::<Result<Vec<_>, error::Fault>>().map(Some)
        });
        found
            .map_err(|e| unavailable(format!("{}: {}", e.what, e.reason)))?
            .into_iter()
            .find_map(|(_, slots)| slots)
            .ok_or_else(|| unavailable("it is not in any reader".into()))
    }

    fn watch(&self) -> Box<dyn Watch> {
        self.field.watch()
    }

    fn named_slot(&self, backend: &str) -> Result<Option<SlotId>, Error> {
        Ok(Backend::parse(backend)?.slot.map(new_name))
    }

    fn open(&self, backend: &str, access: &Access, _: &Call) -> Result<Arc<dyn Token>, Error> {
        let wanted = Backend::parse(backend)?;
        let present = self
            .field
            .visit(|card, identity| notes(card, &identity.make))
            .map_err(|Unreachable { what, reason }| Error::System { what, reason })?;
        let name = |(identity, _): &(Identity, _)| Backend::for_serial(&identity.id.serial);
        let all: Vec<String> = present.iter().map(name).collect();
        let mut fitting = present;
        fitting.retain(|(identity, _)| fits(&wanted, identity));
        match &fitting[..] {
            [(identity, notes)] => {
                if wanted.policies != Policies::default() && !identity.make.has(Feature::Policies) {
                    return Err(Error::BadBackend {
                        backend: backend.chars().take(80).collect(),
                        reason: "this card has no policies for PIN and touch".into(),
                    });
                }
                Ok(self.open_card(identity, notes, wanted.policies, access)?)
            }
            [] => Err(Error::NoToken {
                wanted: backend.into(),
                present: all,
            }),
            several => Err(Error::AmbiguousToken {
                wanted: backend.into(),
                candidates: several.iter().map(name).collect(),
            }),
        }
    }
}

impl PivDriver {
    fn open_card(
        &self,
        identity: &Identity,
        notes: &[(String, String)],
        policies: Policies,
        access: &Access,
    ) -> Result<Arc<PivToken>, Error> {
        let place = self.field.place(&identity.id);
        // Held through the login, so that a PIN is given once.
        let mut place = lock(&place);
        let connection = match place.connection.upgrade() {
            Some(connection) => {
                if !connection.is_logged_in() {
                    connection.log_in(access)?;
                }
                connection.remember(access);
                connection
            }
            None => Connection::open(&self.field, identity, access)?,
        };
        let Place { tokens, .. } = &mut *place;
        tokens.retain(|token| token.strong_count() > 0);
        let known = tokens.iter().filter_map(std::sync::Weak::upgrade);
        let known = known.into_iter().find(|token| token.policies == policies);
        let token = known.unwrap_or_else(|| {
            let token = Arc::new_cyclic(|me| PivToken {
                me: me.clone(),
                info: info(identity, notes.to_vec()),
                connection: Arc::clone(&connection),
                policies,
            });
            tokens.push(Arc::downgrade(&token));
            token
        });
        place.connection = Arc::downgrade(&connection);
        Ok(token)
    }
}

fn fits(backend: &Backend, identity: &Identity) -> bool {
    backend
        .serial
        .as_ref()
        .is_none_or(|serial| *serial == identity.id.serial)
}

fn info(identity: &Identity, notes: Vec<(String, String)>) -> TokenInfo {
    let TokenId { serial, .. } = &identity.id;
    TokenInfo {
        id: identity.id.clone(),
        model: identity.make.model(),
        label: String::new(),
        backend: Backend::for_serial(serial),
        makes: identity.make.supports(),
        uses: identity.make.supports(),
        untried: Vec::new(),
        remembered_as: String::new(),
        formerly: Vec::new(),
        durable: true,
        derives: false,
        pace: Pace::Slow { workers: 1 },
        login_required: true,
        notes,
    }
}

/// Fails to compile where tokens and keys could not be shared by threads.
#[allow(dead_code)]
fn tokens_are_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<PivDriver>();
    shared::<PivToken>();
    shared::<Arc<dyn Token>>();
    shared::<Arc<dyn claviger_token::Signer>>();
    shared::<Arc<dyn claviger_token::Decryptor>>();
}
