//! The readers and their cards: where each card is, its maker, and the open ones.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use claviger_token::key::to_hex;
use claviger_token::shelf::{Places, Shelf};
use claviger_token::sync::lock;
use claviger_token::{Call, Error, PublicKey, TokenId, Unreadable, Watch};

use crate::apdu::Lost;
use crate::attestation::Makers;
use crate::backend::SCHEME;
use crate::card::Card;
use crate::connection::{Connection, How};
use crate::error::Fault;
use crate::firmware::{Make, Version};
use crate::marker;
use crate::reader::{Link, Readers, Unreachable};
use crate::slot::Slot;
use crate::token::PivToken;

/// What a card shows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: TokenId,
    /// As far as the card says, or more if that is known.
    pub(crate) make: Make,
    /// The serial that attestations name.
    pub(crate) serial: Option<u32>,
}

/// What answers when a card is selected.
pub(crate) enum Answer {
    /// A PIV card.
    Card(Identity),
    /// A PIV card that nothing tells from others.
    Nameless,
    /// A card without this application.
    Another,
}

/// Selects the PIV application and finds out whose it is.
///
/// The serial is asked for whatever the version is: cards that state an old one have it,
/// too.
pub(crate) fn identify(card: &mut Card<'_>) -> Result<Answer, Fault> {
    let Some(named) = card.select()? else {
        return Ok(Answer::Another);
    };
    let make = Make::new(card.version()?, named);
    let serial = match make.version() {
        Some(version) => match card.serial()? {
            None if version < Version(5, 0, 0) => {
                let serial = card.serial_of_otp()?;
                card.select()?;
                serial
            }
            serial => serial,
        },
        None => None,
    };
    let name = match serial {
        Some(serial) => Some(serial.to_string()),
        None => card.chuid_name()?.map(|name| to_hex(&name)),
    };
    Ok(match name {
        None => Answer::Nameless,
        Some(name) => Answer::Card(Identity {
            id: TokenId {
                kind: SCHEME.into(),
                manufacturer: make.manufacturer().into(),
                serial: name,
            },
            make,
            serial,
        }),
    })
}

/// The readers, and what is open in them.
pub(crate) struct Field {
    pub(crate) readers: Box<dyn Readers>,
    /// Whose cards are believed to do what their firmware does.
    makers: Makers,
    /// Of which cards it is known whether one of the makers made them.
    proven: Mutex<HashMap<(TokenId, Version), bool>>,
    /// The public halves of keys that failed generations left, by token and name of the slot.
    pub(crate) unfinished: Mutex<HashMap<(TokenId, String), PublicKey>>,
    places: Places<TokenId, Mutex<SharedCard>>,
    /// One for each reader, held while its card is looked at: who finds another's
    /// transaction there is made to wait for 100 ms by libpcsclite, however short it is.
    looking: Places<String, Mutex<()>>,
}

/// The place of one card: it is opened once, and shared.
#[derive(Default)]
pub(crate) struct SharedCard {
    pub(crate) connection: Weak<Connection>,
    /// One for each set of policies that was asked for.
    pub(crate) tokens: Arc<Shelf<PivToken>>,
}

/// A card that was visited.
pub(crate) struct VisitedCard<T> {
    pub(crate) reader: String,
    pub(crate) identity: Identity,
    /// The way to it, where it was not open already. PIV was selected on it.
    pub(crate) link: Option<Box<dyn Link>>,
    pub(crate) done: T,
}

/// What came of a visit to all readers.
pub(crate) struct Visit<T> {
    pub(crate) seen: Vec<VisitedCard<T>>,
    pub(crate) unreadable: Vec<Unreadable>,
}

impl Field {
    pub(crate) fn new(readers: impl Readers + 'static, makers: Makers) -> Arc<Self> {
        Arc::new(Field {
            readers: Box::new(readers),
            makers,
            proven: Mutex::default(),
            unfinished: Mutex::default(),
            places: Places::default(),
            looking: Places::default(),
        })
    }

    pub(crate) fn watch(&self) -> Box<dyn Watch> {
        self.readers.watch()
    }

    pub(crate) fn place(&self, id: &TokenId) -> Arc<Mutex<SharedCard>> {
        self.places.of(id)
    }

    /// The card in `reader`, if it is open. Selecting on another way to the same card
    /// would take its PIN away.
    pub(crate) fn open_in(&self, reader: &str) -> Option<Arc<Connection>> {
        let places = self.places.all();
        places
            .iter()
            // Who is just opening it has not shown it yet.
            .filter_map(|place| place.try_lock().ok()?.connection.upgrade())
            .find(|connection| *lock(&connection.reader) == reader)
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

    /// Does `work` with each card that can be reached, without a PIN.
    pub(crate) fn visit<T>(
        &self,
        call: &Call,
        mut work: impl FnMut(&mut Card<'_>, &Identity) -> Result<T, Fault>,
    ) -> Result<Visit<T>, Unreachable> {
        let mut visit = Visit {
            seen: Vec::new(),
            unreadable: Vec::new(),
        };
        for reader in self.readers.list()? {
            if call.check().is_err() {
                // Whoever asks is told that the call is over.
                break;
            }
            let open = self.open_in(&reader).and_then(|connection| {
                let identity = connection.identity.clone();
                let done = connection.run(call, How::REPEAT, |s| work(&mut s.card, &identity));
                Some(VisitedCard {
                    reader: reader.clone(),
                    identity,
                    link: None,
                    done: done.ok()?,
                })
            });
            let seen = match open {
                Some(seen) => Ok(Some(seen)),
                None => self.look(&reader, call, &mut work),
            };
            match seen {
                Ok(seen) => visit.seen.extend(seen),
                Err(reason) => {
                    tracing::debug!(reader, reason, "no card to be used");
                    visit.unreadable.push(unreadable(reader, reason));
                }
            }
        }
        Ok(visit)
    }

    pub(crate) fn looking_at(&self, reader: &str) -> Arc<Mutex<()>> {
        self.looking.of(reader)
    }

    /// `None`: there is no card, or one of another kind. An error says why there is one that
    /// cannot be read.
    fn look<T>(
        &self,
        reader: &str,
        call: &Call,
        work: &mut impl FnMut(&mut Card<'_>, &Identity) -> Result<T, Fault>,
    ) -> Result<Option<VisitedCard<T>>, String> {
        let looking = self.looking_at(reader);
        let _alone = lock(&looking);
        match self.try_look(reader, call, work) {
            Ok(seen) => Ok(seen),
            Err(Fault::Lost(lost)) if lost.present => Err(lost.reason),
            // Gone, or pulled out meanwhile.
            Err(Fault::Lost(Lost { reason, .. })) => {
                tracing::debug!(reader, reason, "no card");
                Ok(None)
            }
            Err(Fault::Status { call, status }) => Err(format!("{call} failed: {status}")),
            Err(Fault::Malformed { call, reason }) => {
                Err(format!("its reply to {call} makes no sense: {reason}"))
            }
            // Nobody sends a PIN to look at a card.
            Err(Fault::NotOurTurn) => Err("a PIN is being sent to it".into()),
            Err(Fault::Ours(error)) => Err(error.to_string()),
        }
    }

    fn try_look<T>(
        &self,
        reader: &str,
        call: &Call,
        work: &mut impl FnMut(&mut Card<'_>, &Identity) -> Result<T, Fault>,
    ) -> Result<Option<VisitedCard<T>>, Fault> {
        let mut link = self.readers.connect(reader).map_err(Fault::Lost)?;
        let mut transport = link.begin().map_err(Fault::Lost)?;
        let mut card = Card::new(&mut *transport, call);
        let identity = match identify(&mut card)? {
            Answer::Card(identity) => identity,
            Answer::Another => return Ok(None),
            Answer::Nameless => return Err(Fault::Lost(Lost::unusable(NAMELESS))),
        };
        let done = work(&mut card, &identity)?;
        drop(transport);
        Ok(Some(VisitedCard {
            reader: reader.into(),
            identity,
            link: Some(link),
            done,
        }))
    }
}

const NAMELESS: &str = "it has neither a serial nor a CHUID, so nothing tells it from others; \
                        write a CHUID with the vendor's tool";

fn unreadable(reader: String, reason: String) -> Unreadable {
    let error = Error::System {
        what: format!("the card in {reader} cannot be read"),
        reason,
    };
    Unreadable::new(reader, error)
}
