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
//! | `field`, `notes` | which card is in which reader, who made it, and what it tells |
//! | `connection`, `state`, `held`, `session`, `asking` | an open card: transactions, the PIN, recovery |
//! | `slot`, `marker`, `content` | slots, what is in them, and which keys are ours |
//! | `token`, `seek`, `key` | finding the token's keys, and using them |
//! | `making`, `destroying` | making, naming and destroying them |
//! | [`attestation`] | a card's certificate that it made a key, and whose card it is |
//! | `error` | from status words to errors |
//!
//! # Whose card it is
//! Cards of several makers answer GET VERSION with a version of Yubico's firmware, and lack
//! slots, commands or algorithms that it has. A card is taken for Yubico's if the certificate
//! of its attestation key (slot F9) leads to Yubico's roots, or to others that are given:
//! [`PivDriver::with_readers_and_roots`], [`ROOTS_VARIABLE`]. That is read once per card and
//! process: when a card or its slots are listed, and before a key is made or destroyed. It is
//! not read when a key is used: nothing about using a key depends on it, and a process that is
//! started for one signature would take half as many commands again. What an open token
//! [says of itself](Token::info) is what is known by then.
//!
//! Of every other card nothing is known before it was tried. It is asked for metadata and for
//! attestations; what it answers counts, and what it does not know it does not have. What it
//! states that it makes is listed as [untried](TokenInfo::untried), and its free retired slots
//! as *not tried*. Only a generation shows more: a refused reference is
//! [`Error::NoSuchSlot`], a refused algorithm [`Error::Unsupported`]. Policies are asked for
//! only where the operator does. MOVE KEY that a card does not have is no error: the key is
//! overwritten.
//!
//! # Keys and slots
//! New keys go into free retired slots (82 to 95), unless the backend names a slot. A slot
//! that holds anything is never overwritten. A key is used and deleted by its public half. It
//! is looked for in its slot first and then in every other, since other tools move keys. On
//! cards with metadata, or by an attestation, the card itself says which key is where. On
//! others a certificate says where to look, and a signature or an agreement proves it: a
//! certificate may outlive its key.
//!
//! Each key that is made gets a certificate in the slot's certificate object that names the
//! generation. It is *unfinished* until the key is [named](Token::name). By an unfinished mark
//! alone a key is destroyed that nobody entered ([`Token::discard`]); a named key is destroyed
//! by its public half only ([`Token::delete`]). What happens when the process dies:
//!
//! | it dies | the slot holds | discarding later |
//! | --- | --- | --- |
//! | before the mark is written | what it held | changes nothing |
//! | before the key is made | the mark | removes the mark |
//! | before the key is named | the key and the mark | removes both |
//! | while a key is deleted | our certificate, perhaps our key | deleting again removes what is left |
//!
//! On cards that are not Yubico's the mark names the key as soon as there is one, so that a
//! key that somebody else makes in the slot after that is not taken for it. A YubiKey's mark
//! does not: if somebody makes a key there and leaves the unfinished mark, and the public half
//! of ours was not written down, their key cannot be told from ours; other tools show the slot
//! as used, and whoever writes a certificate for the new key replaces the mark.
//!
//! Some cards write a certificate of their own over the mark when they make a key. The mark is
//! written again with the next command. If the process dies in between, the key is destroyed
//! if its public half is known, and else left, with
//! [`Deletion::Foreign`](claviger_token::Deletion::Foreign) for an answer: nothing shows whose
//! it is, nor could anything that is written before (see ARCHITECTURE). To remove it use the
//! vendor's tool, such as `ykman piv keys delete 82`.
//!
//! Before firmware 5.7, and on cards of others, there is no command that deletes a key.
//! There it is destroyed by a new one in its place, the *filler*: a P-256 key, where the
//! card has them, that is nobody's. The slot's certificate then says that the slot is
//! empty and names the filler. As long as the filler is in it, the slot counts as free:
//! it is shown as such, and the next key overwrites the filler.
//!
//! | it dies | the slot holds | deleting later |
//! | --- | --- | --- |
//! | before the key is made in an emptied slot | our unfinished mark, the filler | makes a new filler |
//! | while a key is deleted, before it is overwritten | a certificate that says so, our key | overwrites it |
//! | before the slot is said to be empty | a certificate that says so, a filler | makes a new filler |
//! | after that | the certificate of an empty slot, the filler | changes nothing |
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
//! A card is opened without a PIN if none is to be had and one of its keys wants none. Else
//! the PIN is given once after a card was selected, and for each operation of a key whose
//! policy says so. It is checked first that a wrong PIN would not lock the card, and that
//! the card did not refuse this one before ([`claviger_token::refused`]). When a
//! token is closed the rights that the PIN gave are taken back, and those of the management
//! key as soon as a key is made or deleted. A YubiKey is never reset for that: other
//! programs may use it, and between our transactions they may. A card of others, where
//! only that takes the management key's rights away, is reset after a key was made or
//! deleted, and when it is closed if it has no other way to forget a PIN; programs that
//! share it have to connect again and to give the PIN again.
//!
//! # Other programs
//! They use the card between two of our transactions. The one in which a card is opened goes
//! on for what comes next: to find a key, to use it once, and to close the card. So a process
//! that is started for one signature sends nine commands in one transaction (measured by
//! `cargo xtask bench`); others wait for it 100 ms longer at most than it is at work. It ends
//! before a person is asked for a PIN.
//!
//! # Deadlines
//! PC/SC cannot cancel a command, nor the wait for another program's transaction. A
//! deadline or a cancellation counts before each command; one that the card has
//! begun, a touch included, comes to its end.
//!
//! # Why not the crate `yubikey`
//! Release 0.8 resets the card when it is dropped, indexes into replies that may be empty,
//! gives most status words the same error, writes PINs to the log at the level trace, refuses
//! other PIV cards and firmware from 6 on, knows no key management beyond triple DES, does not
//! delete keys, and takes a card for itself where here several programs share it. Its types
//! for slots do not give the object ids that the driver needs, its `CertInfo` is not read by
//! anything, and its policies lack those for fingerprints. So none of it is used here; a test
//! of the virtual card reads one card through both and compares.
#![forbid(unsafe_code)]

use std::sync::{Arc, LazyLock, OnceLock};

use claviger_token::{
    Access, Call, Driver, Error, Listing, Pace, SlotId, SlotInfo, Token, TokenId, TokenInfo, Watch,
};

use crate::attestation::Makers;
use crate::backend::Backend;
use crate::connection::{Connection, lock};
use crate::content::inspect;
use crate::error::Fault;
use crate::field::{Field, Identity, Place, Seen, Visit};
use crate::firmware::Make;
use crate::notes::notes;
use crate::policy::Policies;
use crate::reader::{PcscReaders, Readers, Unreachable};
use crate::slot::{Slot, new_name};
use crate::token::PivToken;

pub mod apdu;
mod asking;
pub mod attestation;
mod backend;
mod card;
mod connection;
mod content;
mod destroying;
mod error;
mod field;
mod firmware;
mod held;
mod key;
mod login;
mod making;
mod management;
mod marker;
mod notes;
mod policy;
pub mod reader;
#[cfg(test)]
mod script;
mod seek;
mod session;
mod slot;
mod state;
mod tlv;
mod token;

pub use attestation::{BadAttestation, check_roots, verify_chain};
pub use key::LONGEST_ED25519_MESSAGE;

/// The environment variable that names a file with certificates (PEM) of makers whose cards
/// are believed to do what their firmware does, beside Yubico's. Read by [`PivDriver::new`].
pub const ROOTS_VARIABLE: &str = "CLAVIGER_PIV_ROOTS";

/// Lists and opens PIV cards.
#[derive(Clone)]
pub struct PivDriver {
    field: Arc<Field>,
}

impl PivDriver {
    /// A driver for the readers of this system's PC/SC service. In one process all of
    /// these are one: a card is opened once.
    ///
    /// Trusts Yubico's roots, and those in the file that [`ROOTS_VARIABLE`] names, if it
    /// does. A file that cannot be read adds none, which the log says.
    pub fn new() -> Self {
        static SYSTEM: LazyLock<Arc<Field>> =
            LazyLock::new(|| Field::new(PcscReaders, makers_of_this_system()));
        PivDriver {
            field: Arc::clone(&SYSTEM),
        }
    }

    /// A driver for other readers, which trusts Yubico's roots.
    pub fn with_readers(readers: impl Readers + 'static) -> Self {
        PivDriver {
            field: Field::new(readers, yubico()),
        }
    }

    /// A driver for other readers that trusts `roots` (one or more certificates, PEM) beside
    /// Yubico's: what their makers' cards state of their firmware is believed.
    ///
    /// # Errors
    /// [`BadAttestation::NotACertificate`].
    pub fn with_readers_and_roots(
        readers: impl Readers + 'static,
        roots: &str,
    ) -> Result<Self, BadAttestation> {
        let mut makers = yubico();
        makers.also(Makers::parse(roots)?);
        Ok(PivDriver {
            field: Field::new(readers, makers),
        })
    }
}

/// Yubico's own certificates, which a test reads.
fn yubico() -> Makers {
    Makers::parse(attestation::YUBICO).unwrap_or_default()
}

fn makers_of_this_system() -> Makers {
    let mut makers = yubico();
    let Some(file) = std::env::var_os(ROOTS_VARIABLE) else {
        return makers;
    };
    let read = std::fs::read_to_string(&file).map_err(|error| error.to_string());
    match read.and_then(|text| Makers::parse(&text).map_err(|error| error.to_string())) {
        Ok(others) => makers.also(others),
        Err(reason) => tracing::warn!(?file, reason, "no roots of other makers"),
    }
    makers
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
        let visit = self.field.visit(|card, identity| {
            let make = self.field.prove(card, identity)?;
            notes(card, &make)
        });
        let Visit { seen, unreadable } = match visit {
            Ok(visit) => visit,
            Err(Unreachable { what, reason }) => {
                tracing::debug!(what, reason, "no cards");
                return Ok(Listing::default());
            }
        };
        let mut tokens = Vec::new();
        for card in seen.iter().filter(|card| fits(&backend, &card.identity)) {
            let mut notes = card.done.clone();
            let alike = seen
                .iter()
                .filter(|other| other.identity.id == card.identity.id);
            if alike.count() > 1 {
                // Nothing else tells them apart.
                notes.push(("reader".into(), card.reader.clone()));
            }
            tokens.push(info(
                &card.identity,
                &self.field.known(&card.identity),
                notes,
            ));
        }
        Ok(Listing { tokens, unreadable })
    }

    fn slots(&self, token: &TokenInfo) -> Result<Vec<SlotInfo>, Error> {
        let unavailable = |reason: String| Error::TokenUnavailable {
            token: token.id.clone(),
            reason,
        };
        let visit = self.field.visit(|card, identity| {
            if identity.id != token.id {
                return Ok(None);
            }
            let make = self.field.prove(card, identity)?;
            let slots = Slot::all();
            let slots = slots.map(|slot| Ok(inspect(card, &make, slot)?.info(slot)));
            slots.collect::<Result<Vec<_>, Fault>>().map(Some)
        });
        let visit = visit.map_err(|e| unavailable(format!("{}: {}", e.what, e.reason)))?;
        let mut found = visit.seen.into_iter().filter_map(|seen| seen.done);
        match (found.next(), found.next()) {
            (Some(slots), None) => Ok(slots),
            (None, _) => Err(unavailable("it is not in any reader".into())),
            (Some(_), Some(_)) => Err(unavailable("two cards have its serial".into())),
        }
    }

    fn watch(&self) -> Box<dyn Watch> {
        self.field.watch()
    }

    fn named_slot(&self, backend: &str) -> Result<Option<SlotId>, Error> {
        let slot = Backend::parse(backend)?.slot;
        Ok(slot.map(|slot| new_name(slot, None)))
    }

    fn open(&self, backend: &str, access: &Access, _: &Call) -> Result<Arc<dyn Token>, Error> {
        let wanted = Backend::parse(backend)?;
        if let Some(connection) = self.open_at_once(&wanted, access)? {
            return Ok(self.token(connection, wanted.policies, backend)?);
        }
        let visit = self.field.visit(|_, _| Ok(()));
        let Visit { seen, unreadable } =
            visit.map_err(|Unreachable { what, reason }| Error::System { what, reason })?;
        let name = |seen: &Seen<()>| Backend::for_serial(&seen.identity.id.serial);
        let all: Vec<String> = seen.iter().map(name).collect();
        let mut fitting = seen;
        fitting.retain(|seen| fits(&wanted, &seen.identity));
        match fitting.pop() {
            Some(seen) if fitting.is_empty() => {
                let connection = self.connect(seen, access)?;
                Ok(self.token(connection, wanted.policies, backend)?)
            }
            None => {
                let unreadable = unreadable.into_iter().map(|u| u.error.to_string());
                Err(Error::NoToken {
                    wanted: backend.into(),
                    present: all.into_iter().chain(unreadable).collect(),
                })
            }
            Some(last) => {
                fitting.push(last);
                Err(Error::AmbiguousToken {
                    wanted: backend.into(),
                    candidates: candidates(&fitting),
                })
            }
        }
    }
}

/// The names of cards that fit, with their readers where nothing else tells them apart.
fn candidates(fitting: &[Seen<()>]) -> Vec<String> {
    let named = |seen: &Seen<()>| {
        let Seen {
            identity, reader, ..
        } = seen;
        let alike = fitting
            .iter()
            .filter(|other| other.identity.id == identity.id);
        let name = Backend::for_serial(&identity.id.serial);
        match alike.count() {
            1 => name,
            _ => format!("{name} in {reader}"),
        }
    };
    fitting.iter().map(named).collect()
}

impl PivDriver {
    /// Opens the only card that there is, in one transaction. `None` where there is more than
    /// one, or something else is to be done first.
    fn open_at_once(
        &self,
        wanted: &Backend,
        access: &Access,
    ) -> Result<Option<Arc<Connection>>, Error> {
        let Ok(readers) = self.field.readers.list() else {
            return Ok(None);
        };
        let is_open = |reader: &String| self.field.open_in(reader).is_some();
        if readers.iter().any(is_open) {
            return Ok(None);
        }
        let mut cards = readers.iter().filter_map(|reader| {
            let link = self.field.readers.connect(reader).ok()?;
            Some((reader, link))
        });
        let (Some((reader, link)), None) = (cards.next(), cards.next()) else {
            return Ok(None);
        };
        let place = |id: &TokenId| self.field.place(id);
        Connection::open_the_only_one(&self.field, reader, link, access, place, |identity| {
            fits(wanted, identity)
        })
    }

    /// Opens a card that was found, or gives the one that is open.
    fn connect(&self, seen: Seen<()>, access: &Access) -> Result<Arc<Connection>, Error> {
        let Seen {
            reader,
            identity,
            link,
            ..
        } = seen;
        let place = self.field.place(&identity.id);
        // Held through the login, so that a PIN is given once.
        let mut place = lock(&place);
        if let Some(connection) = place.connection.upgrade() {
            if !connection.is_logged_in() {
                connection.log_in(access)?;
            }
            connection.remember(access);
            return Ok(connection);
        }
        let connection = Connection::open(&self.field, &identity, &reader, link, access)?;
        place.connection = Arc::downgrade(&connection);
        Ok(connection)
    }

    fn token(
        &self,
        connection: Arc<Connection>,
        policies: Policies,
        backend: &str,
    ) -> Result<Arc<PivToken>, Error> {
        let make = connection.make();
        if policies != Policies::default() && matches!(make, Make::Plain { .. }) {
            return Err(Error::BadBackend {
                backend: backend.chars().take(80).collect(),
                reason: "this card has no policies for PIN and touch".into(),
            });
        }
        let place = self.field.place(&connection.identity.id);
        let mut place = lock(&place);
        let Place { tokens, .. } = &mut *place;
        tokens.retain(|token| token.strong_count() > 0);
        let known = tokens.iter().filter_map(std::sync::Weak::upgrade);
        let mut known = known.filter(|token| Arc::ptr_eq(&token.connection, &connection));
        Ok(known
            .find(|token| token.policies == policies)
            .unwrap_or_else(|| {
                let token = Arc::new_cyclic(|me| PivToken {
                    me: me.clone(),
                    info: info(&connection.identity, &connection.make(), Vec::new()),
                    proven: OnceLock::new(),
                    connection,
                    policies,
                });
                tokens.push(Arc::downgrade(&token));
                token
            }))
    }
}

/// What is known of a card of this make.
pub(crate) fn info(identity: &Identity, make: &Make, notes: Vec<(String, String)>) -> TokenInfo {
    TokenInfo {
        id: identity.id.clone(),
        model: make.model(),
        label: String::new(),
        backend: Backend::for_serial(&identity.id.serial),
        makes: make.supports(),
        uses: make.supports(),
        untried: make.untried(),
        remembered_as: remembered_as(identity, make),
        formerly: Vec::new(),
        durable: true,
        derives: false,
        pace: Pace::Slow { workers: 1 },
        login_required: true,
        notes,
    }
}

/// The name under which it is remembered what was tried on a card: the card and the firmware
/// that it states. Of Yubico's nothing has to be.
fn remembered_as(identity: &Identity, make: &Make) -> String {
    match make {
        Make::Yubico(_) => String::new(),
        Make::Stated { version, .. } => format!("{} {version}", identity.id),
        Make::Plain { .. } => identity.id.to_string(),
    }
}

fn fits(backend: &Backend, identity: &Identity) -> bool {
    backend
        .serial
        .as_ref()
        .is_none_or(|serial| *serial == identity.id.serial)
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
