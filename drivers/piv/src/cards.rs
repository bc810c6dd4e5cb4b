//! The cards in the readers, and those of them that are open.

use std::sync::{Arc, Mutex, Weak};

use claviger_token::shelf::{Places, Shelf};
use claviger_token::sync::lock;
use claviger_token::{Call, Error, TokenId, Unreadable};

use crate::apdu::Lost;
use crate::card::Card;
use crate::connection::{Connection, How};
use crate::error::Fault;
use crate::field::Field;
use crate::identity::{Answer, Identity, identify};
use crate::reader::{Link, Unreachable};
use crate::token::PivToken;

/// The cards of a field.
pub(crate) struct Cards {
    pub(crate) field: Arc<Field>,
    places: Places<TokenId, Place>,
}

/// The place of one card: it is opened once, and shared.
#[derive(Default)]
pub(crate) struct Place {
    /// Locked through the login, so that a PIN is given once.
    pub(crate) connection: Mutex<Weak<Connection>>,
    /// One for each set of policies that was asked for.
    pub(crate) tokens: Shelf<PivToken>,
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

impl Cards {
    pub(crate) fn new(field: Field) -> Arc<Self> {
        Arc::new(Cards {
            field: Arc::new(field),
            places: Places::default(),
        })
    }

    pub(crate) fn place(&self, id: &TokenId) -> Arc<Place> {
        self.places.of(id)
    }

    /// The card in `reader`, if it is open. Selecting on another way to the same card
    /// would take its PIN away.
    pub(crate) fn open_in(&self, reader: &str) -> Option<Arc<Connection>> {
        let places = self.places.all();
        places
            .iter()
            // Who is just opening it has not shown it yet.
            .filter_map(|place| place.connection.try_lock().ok()?.upgrade())
            .find(|connection| *lock(&connection.reader) == reader)
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
        for reader in self.field.readers.list()? {
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
                    tracing::debug!(reader, reason, "the card cannot be used");
                    visit.unreadable.push(unreadable(reader, reason));
                }
            }
        }
        Ok(visit)
    }

    /// `None`: there is no card, or one of another kind. An error says why there is one that
    /// cannot be read.
    fn look<T>(
        &self,
        reader: &str,
        call: &Call,
        work: &mut impl FnMut(&mut Card<'_>, &Identity) -> Result<T, Fault>,
    ) -> Result<Option<VisitedCard<T>>, String> {
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
                Err(format!("its reply to {call} is malformed: {reason}"))
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
        let (seen, link) = (self.field).in_transaction(reader, call, |card| {
            let identity = match identify(card)? {
                Answer::Card(identity) => identity,
                Answer::Another => return Ok(None),
                Answer::Nameless => return Err(Fault::Lost(Lost::unusable(NAMELESS))),
            };
            let done = work(card, &identity)?;
            Ok(Some((identity, done)))
        })?;
        Ok(seen.map(|(identity, done)| VisitedCard {
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
