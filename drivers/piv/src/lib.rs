//! Claviger's driver for PIV smartcards, YubiKeys above all.
//!
//! ```no_run
//! use claviger_piv::PivDriver;
//! use claviger_token::{Access, Call, Driver, StoredPin};
//!
//! let access = Access::with(StoredPin::Env("PIN".into()));
//! let call = Call::unlimited().using(access);
//! let token = PivDriver::new().open("piv:", &call)?;
//! for slot in token.slots(&call)? {
//!     println!("{}: {:?}", slot.slot, slot.fingerprint);
//! }
//! # Ok::<(), claviger_token::Error>(())
//! ```
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
//! | [`apdu`], `exchange`, `tlv` | the way to a card, commands, replies, status words; the encoding of data |
//! | `card`, `block` | the commands of a PIV card; what it is given to be signed |
//! | `firmware` | the abilities of cards, as data |
//! | `management`, `administrator` | the management key, and whose it is |
//! | `identity`, `field`, `notes` | whose card it is, its maker, and what it reports |
//! | `connection`, `state`, `held`, `session`, `login`, `asking` | an open card: transactions, the PIN, recovery |
//! | `cards`, `opening` | which card is in which reader; opening one |
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
//! listed as [untried](claviger_token::TokenInfo::untried), and its free retired slots as *not tried*. Only a
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
//! included, runs to its end. A request that has a deadline, or can be cancelled, stops waiting
//! for another program's transaction, and a thread goes on waiting for the next request. Such a
//! request uses transactions only; others send a single command without one.
//!
//! # Why not the crate `yubikey`
//! Release 0.8 resets the card when it is dropped, indexes into replies that may be empty, maps
//! most status words to the same error, and logs PINs at level trace. It refuses other PIV cards
//! and firmware from 6 on, knows no management keys other than triple DES, cannot delete keys, and
//! takes the card exclusively. Its types for slots lack the object ids that the driver needs,
//! nothing reads its `CertInfo`, and its policies lack those for fingerprints. So this crate does
//! not use it. A test reads one virtual card through both and compares.
#![forbid(unsafe_code)]

use std::sync::{Arc, LazyLock};

use claviger_token::{About, Call, Detail, Driver, Error, Listed, Listing, SlotId, Token, Watch};

use crate::attestation::Makers;
use crate::backend::Backend;
use crate::cards::{Cards, Visit};
use crate::content::visible;
use crate::field::Field;
use crate::identity::info;
use crate::notes::notes;
use crate::opening::fits;
use crate::reader::{PcscReaders, Readers, Unreachable};
use crate::slot::new_name;

mod about;
mod administrator;
pub mod apdu;
mod asking;
pub mod attestation;
mod backend;
mod block;
mod card;
mod cards;
mod connection;
mod content;
mod destroying;
mod error;
mod exchange;
mod field;
mod firmware;
mod held;
mod identity;
mod key;
mod login;
mod making;
mod management;
mod marker;
mod needs;
mod notes;
mod opening;
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
mod usb;

pub use attestation::{BadAttestation, check_roots, verify_chain};
pub use key::LONGEST_ED25519_MESSAGE;

/// The environment variable that names a file with certificates (PEM) of makers whose cards
/// are believed to do what their firmware does, beside Yubico's. Read by [`PivDriver::new`].
pub const ROOTS_VARIABLE: &str = "CLAVIGER_PIV_ROOTS";

/// Lists and opens PIV cards.
#[derive(Clone)]
pub struct PivDriver {
    cards: Arc<Cards>,
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
        static SYSTEM: LazyLock<Arc<Cards>> =
            LazyLock::new(|| Cards::new(Field::new(PcscReaders, makers_of_this_system)));
        PivDriver {
            cards: Arc::clone(&SYSTEM),
        }
    }

    /// A driver for other readers, which trusts Yubico's roots.
    pub fn with_readers(readers: impl Readers + 'static) -> Self {
        PivDriver {
            cards: Cards::new(Field::new(readers, yubico)),
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
            cards: Cards::new(Field::new(readers, move || makers)),
        })
    }
}

/// Yubico's own certificates, which a test reads.
fn yubico() -> Makers {
    static YUBICO: LazyLock<Makers> =
        LazyLock::new(|| Makers::parse(attestation::YUBICO).unwrap_or_default());
    YUBICO.clone()
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

    fn needs(&self, _: &Call) -> Vec<claviger_token::needs::Need> {
        needs::of(&*self.cards.field.readers)
    }

    fn look(&self, backend: &str, detail: Detail, call: &Call) -> Result<Listing, Error> {
        let backend = Backend::parse(backend)?;
        let visit = self.cards.visit(call, |card, identity| {
            let make = self.cards.field.prove(card, identity)?;
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
            let info = info(
                &card.identity,
                &self.cards.field.known(&card.identity),
                notes,
            );
            tokens.push(Listed::with_slots(info, detail, |_| Ok(slots)));
        }
        Ok(Listing::new(tokens, unreadable))
    }

    fn watch(&self) -> Box<dyn Watch> {
        self.cards.field.watch()
    }

    fn named_slot(&self, backend: &str) -> Result<Option<SlotId>, Error> {
        let slot = Backend::parse(backend)?.slot;
        Ok(slot.map(|slot| new_name(slot, None)))
    }

    fn names_more(&self, backend: &str) -> Result<Option<&'static str>, Error> {
        Backend::parse(backend).map(|_| None)
    }

    fn open(&self, backend: &str, call: &Call) -> Result<Arc<dyn Token>, Error> {
        Ok(self.cards.open(backend, call)?)
    }
}

/// Fails to compile where tokens and keys could not be shared by threads.
#[allow(dead_code)]
fn tokens_are_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<PivDriver>();
    shared::<Arc<dyn Token>>();
    shared::<Arc<dyn claviger_token::Signer>>();
    shared::<Arc<dyn claviger_token::Decryptor>>();
}
