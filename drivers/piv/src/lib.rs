//! Claviger's driver for PIV smartcards, YubiKeys above all.
//!
//! [`PivDriver`] lists and opens cards by backend strings
//! `piv:[serial=N][;slot=9c][;pin-policy=never|once|always][;touch-policy=never|always|cached]`;
//! the policies are for keys that are generated. It implements NIST SP 800-73-4 and Yubico's
//! extensions, over PC/SC.
//!
//! | module | idea |
//! | --- | --- |
//! | `backend`, `policy` | backend strings; PIN and touch policies |
//! | [`reader`] | readers, and the cards in them, over PC/SC |
//! | [`apdu`], `tlv` | commands, replies, status words; the encoding of data |
//! | `card` | the commands of a PIV card |
//! | `firmware` | the abilities of cards, as data |
//! | `management` | the management key |
//! | `field`, `notes` | which card is in which reader, its maker, and what it reports |
//! | `connection`, `state`, `held`, `session`, `asking` | an open card: transactions, the PIN, recovery |
//! | `slot`, `marker`, `content` | slots, their content, and which keys are ours |
//! | `token`, `seek`, `key` | finding the token's keys, and using them |
//! | `making`, `destroying` | making, naming and destroying them |
//! | [`attestation`] | the card's certificate for a key that it made; the maker of a card |
//! | `error` | errors from status words |
//!
//! # The maker of a card
//! Cards of several makers answer GET VERSION with a version of Yubico's firmware, but lack
//! slots, commands or algorithms of it. A card counts as a YubiKey if the certificate of its
//! attestation key (slot F9) leads to Yubico's roots, or to others that are given:
//! [`PivDriver::with_readers_and_roots`], [`ROOTS_VARIABLE`]. The certificate is read once per
//! card and process: when a card or its slots are listed, and before a key is made or destroyed.
//! It is not read when a key is used, since using a key does not depend on it, and a process that
//! is started for one signature would send half as many commands again. [`Token::info`] of an
//! open token has what is known so far.
//!
//! Nothing is assumed of any other card. It is asked for metadata and for attestations; its
//! answers count, and what it does not know it does not have. Keys that it states to make are
//! listed as [untried](TokenInfo::untried), and its free retired slots as *not tried*. Only a
//! generation shows more: a refused reference is [`Error::NoSuchSlot`], a refused algorithm
//! [`Error::Unsupported`]. Policies are sent only if the operator asks for them. If a card lacks
//! MOVE KEY, the key is overwritten.
//!
//! # Keys and slots
//! New keys go into free retired slots (82 to 95), unless the backend names a slot. An occupied
//! slot is never overwritten. A key is used and deleted by its public key. The driver looks in the
//! key's slot first and then in every other, since other tools move keys. Metadata or an
//! attestation of the card say which key is where. On cards without them a certificate says where
//! to look, and a signature or a key agreement proves it: a certificate may outlive its key.
//!
//! Each new key gets a certificate in the slot's certificate object, the *mark*, which names the
//! generation. The mark is *unfinished* until the key is [named](Token::name). A key that was
//! never entered is destroyed by its unfinished mark ([`Token::discard`]); a named key is
//! destroyed by its public key only ([`Token::delete`]). If the process dies:
//!
//! | it dies | the slot holds | discarding later |
//! | --- | --- | --- |
//! | before the mark is written | what it held | changes nothing |
//! | before the key is made | the mark | removes the mark |
//! | before the key is named | the key and the mark | removes both |
//! | while a key is deleted | our certificate, perhaps our key | deleting again removes what is left |
//!
//! On cards of other makers the mark names the key as soon as there is one, so that a key that
//! another program makes in the slot later is not mistaken for it. The mark of a YubiKey does not.
//! If another program makes a key there, leaves the unfinished mark, and the public key of ours
//! was not recorded, the two keys cannot be told apart. Other tools show the slot as used, and a
//! program that writes a certificate for its key replaces the mark.
//!
//! Some cards write a certificate of their own over the mark when they make a key. The driver
//! writes the mark again with the next command. If the process dies in between, the key is
//! destroyed if its public key is known. Otherwise it is left, and the answer is
//! [`Deletion::Foreign`](claviger_token::Deletion::Foreign): nothing can show whose key it is (see
//! ARCHITECTURE). Remove it with the vendor's tool, such as `ykman piv keys delete 82`.
//!
//! Before firmware 5.7, and on cards of other makers, no command deletes a key. There a key is
//! destroyed by a new one in its place, the *filler*: a key that belongs to nobody, of P-256 if
//! the card has it. The slot's certificate then says that the slot is empty and names the filler.
//! While the filler is in it, the slot counts as free, and the next key overwrites the filler.
//!
//! | it dies | the slot holds | deleting later |
//! | --- | --- | --- |
//! | before the key is made in an emptied slot | our unfinished mark, the filler | makes a new filler |
//! | while a key is deleted, before it is overwritten | a certificate that says so, our key | overwrites it |
//! | before the slot is said to be empty | a certificate that says so, a filler | makes a new filler |
//! | after that | the certificate of an empty slot, the filler | changes nothing |
//!
//! If a card refuses to overwrite as well, the answer is [`Error::CannotDestroy`], and the key is
//! unchanged.
//!
//! # Protection
//! SP 800-73-4 and Yubico's extensions have no command that returns a private key, so every
//! generated key is sensitive and never extractable. The card states that it made the key
//! (metadata, attestation), or the driver knows because it asked for it.
//!
//! # PINs
//! A card is opened without a PIN if no source has one and one of its keys needs none. Otherwise
//! the PIN is sent once after the card is selected, and for each operation of a key whose policy
//! demands it. Before that the driver checks that a wrong PIN would not lock the card, and that
//! the card has not rejected this PIN before ([`claviger_token::refused`]). The card is logged out
//! when the token is closed, and the management key's rights end as soon as a key is made or
//! deleted. A YubiKey is never reset for that, since other programs may use it between our
//! transactions. A card of another maker is reset after a key was made or deleted if only that
//! ends the management key's rights, and when it is closed if it cannot log out otherwise;
//! programs that share it have to connect and send the PIN again.
//!
//! # Other programs
//! Other programs use the card between two of our transactions. The transaction in which a card
//! is opened continues to find a key, to use it once, and to close the card. So a process that is
//! started for one signature sends nine commands in one transaction (`cargo xtask bench` measures
//! it). Others wait for it at most 100 ms longer than it works. It ends before a PIN prompt.
//!
//! # Deadlines
//! PC/SC cannot cancel a command, nor the wait for another program's transaction. Deadlines and
//! cancellations are checked before each command. A command that the card has begun, a touch
//! included, runs to its end.
//!
//! # Why not the crate `yubikey`
//! Release 0.8 resets the card when it is dropped, indexes into replies that may be empty, maps
//! most status words to the same error, and logs PINs at level trace. It refuses other PIV cards
//! and firmware from 6 on, knows no management keys other than triple DES, cannot delete keys, and
//! takes the card exclusively. Its types for slots lack the object ids that the driver needs,
//! nothing reads its `CertInfo`, and its policies lack those for fingerprints. So this crate does
//! not use it. A test reads one virtual card through both and compares.
#![forbid(unsafe_code)]

use std::sync::{Arc, LazyLock, OnceLock};

use claviger_token::backend::{bad, the_one};
use claviger_token::sync::lock;
use claviger_token::{
    About, Call, Detail, Driver, Error, Listed, Listing, Pace, SlotId, SlotInfo, Token, TokenId,
    TokenInfo, Watch,
};

use crate::attestation::Makers;
use crate::backend::Backend;
use crate::card::Card;
use crate::connection::Connection;
use crate::content::inspect;
use crate::error::Fault;
use crate::field::{Field, Identity, Visit, VisitedCard};
use crate::firmware::Make;
use crate::notes::notes;
use crate::policy::Policies;
use crate::reader::{PcscReaders, Readers, Unreachable};
use crate::slot::{Slot, new_name};
use crate::token::PivToken;

mod about;
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
    /// What the driver says of itself to people.
    pub const ABOUT: About = about::ABOUT;

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
    fn about(&self) -> About {
        PivDriver::ABOUT
    }

    fn look(&self, backend: &str, detail: Detail, call: &Call) -> Result<Listing, Error> {
        let backend = Backend::parse(backend)?;
        let visit = self.field.visit(call, |card, identity| {
            let make = self.field.prove(card, identity)?;
            let notes = notes(card, &make)?;
            let slots = match detail {
                Detail::Slots if fits(&backend, identity) => visible(card, &make)?,
                _ => Vec::new(),
            };
            Ok((notes, slots))
        });
        call.check()?;
        let Visit { seen, unreadable } = match visit {
            Ok(visit) => visit,
            Err(Unreachable { what, reason }) => {
                tracing::debug!(what, reason, "no cards");
                return Ok(Listing::default());
            }
        };
        let mut tokens = Vec::new();
        for card in seen.iter().filter(|card| fits(&backend, &card.identity)) {
            let (mut notes, slots) = card.done.clone();
            let alike = seen
                .iter()
                .filter(|other| other.identity.id == card.identity.id);
            if alike.count() > 1 {
                // Nothing else tells them apart.
                notes.push(("reader".into(), card.reader.clone()));
            }
            let info = info(&card.identity, &self.field.known(&card.identity), notes);
            tokens.push(Listed::with_slots(info, detail, |_| Ok(slots)));
        }
        Ok(Listing::new(tokens, unreadable))
    }

    fn watch(&self) -> Box<dyn Watch> {
        self.field.watch()
    }

    fn named_slot(&self, backend: &str) -> Result<Option<SlotId>, Error> {
        let slot = Backend::parse(backend)?.slot;
        Ok(slot.map(|slot| new_name(slot, None)))
    }

    fn open(&self, backend: &str, call: &Call) -> Result<Arc<dyn Token>, Error> {
        let wanted = Backend::parse(backend)?;
        if let Some(connection) = self.open_at_once(&wanted, call)? {
            return Ok(self.token(&connection, wanted.policies));
        }
        let visit = self.field.visit(call, |_, _| Ok(()));
        call.check()?;
        let Visit { seen, unreadable } =
            visit.map_err(|Unreachable { what, reason }| Error::System { what, reason })?;
        let name = |seen: &VisitedCard<()>| Backend::for_serial(&seen.identity.id.serial);
        let all: Vec<String> = seen.iter().map(name).collect();
        let mut fitting = seen;
        fitting.retain(|seen| fits(&wanted, &seen.identity));
        let Some(seen) = the_one(backend, fitting, candidates)? else {
            let unreadable = unreadable.into_iter().map(|u| u.error.to_string());
            return Err(Error::NoToken {
                wanted: backend.into(),
                present: all.into_iter().chain(unreadable).collect(),
            });
        };
        // Before the login: what fails after it leaves a card that is logged in.
        if !has_policies(&wanted, &seen.identity) {
            return Err(bad(backend, NO_POLICIES));
        }
        let connection = self.connect(seen, call)?;
        Ok(self.token(&connection, wanted.policies))
    }
}

/// All slots, as far as they are visible without a PIN.
pub(crate) fn visible(card: &mut Card<'_>, make: &Make) -> Result<Vec<SlotInfo>, Fault> {
    let slots = Slot::all().map(|slot| Ok(inspect(card, make, slot)?.info(slot)));
    slots.collect()
}

/// The names of cards that fit, with their readers where nothing else tells them apart.
fn candidates(fitting: &[VisitedCard<()>]) -> Vec<String> {
    let named = |seen: &VisitedCard<()>| {
        let VisitedCard {
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
        call: &Call,
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
        Connection::open_the_only_one(&self.field, reader, link, call, place, |identity| {
            fits(wanted, identity) && has_policies(wanted, identity)
        })
    }

    /// Opens a card that was found, or gives the one that is open.
    fn connect(&self, seen: VisitedCard<()>, call: &Call) -> Result<Arc<Connection>, Error> {
        let VisitedCard {
            reader,
            identity,
            link,
            ..
        } = seen;
        let place = self.field.place(&identity.id);
        // Held through the login, so that a PIN is given once.
        let mut place = call.lock(&place)?;
        if let Some(connection) = place.connection.upgrade() {
            if !connection.is_logged_in() {
                connection.log_in(call)?;
            }
            connection.remember(call.access());
            return Ok(connection);
        }
        let connection = Connection::open(&self.field, &identity, &reader, link, call)?;
        place.connection = Arc::downgrade(&connection);
        Ok(connection)
    }

    fn token(&self, connection: &Arc<Connection>, policies: Policies) -> Arc<PivToken> {
        let tokens = Arc::clone(&lock(&self.field.place(&connection.identity.id)).tokens);
        let is_wanted = |token: &PivToken| {
            Arc::ptr_eq(&token.connection, connection) && token.policies == policies
        };
        tokens.find_or_make(is_wanted, || {
            Arc::new_cyclic(|me| PivToken {
                me: me.clone(),
                info: info(&connection.identity, &connection.make(), Vec::new()),
                proven: OnceLock::new(),
                connection: Arc::clone(connection),
                policies,
            })
        })
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

/// Whether the card has what `backend` wants of the keys that are made.
fn has_policies(backend: &Backend, identity: &Identity) -> bool {
    backend.policies == Policies::default() || !matches!(identity.make, Make::Plain { .. })
}

const NO_POLICIES: &str = "this card has no policies for PIN and touch";

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
