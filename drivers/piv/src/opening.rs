//! Opening a card: once in this process, whoever asks for it.

use std::sync::{Arc, MutexGuard, OnceLock};

use claviger_token::backend::{bad, the_one};
use claviger_token::sync::lock;
use claviger_token::{Call, Error};

use crate::apdu::Transport;
use crate::backend::Backend;
use crate::card::Card;
use crate::cards::{Cards, Visit, VisitedCard};
use crate::connection::{Connection, answers};
use crate::error::Fault;
use crate::firmware::Make;
use crate::held::{Held, Pending};
use crate::identity::{Answer, Identity, identify, info};
use crate::login::Asked;
use crate::policy::Policies;
use crate::reader::Unreachable;
use crate::session::Session;
use crate::state::State;
use crate::token::PivToken;

impl Cards {
    /// Opens the card that `backend` names.
    ///
    /// # Errors
    /// As `open` of `claviger_token::Driver`.
    pub(crate) fn open(&self, backend: &str, call: &Call) -> Result<Arc<PivToken>, Error> {
        let wanted = Backend::parse(backend)?;
        if let Some(connection) = self.open_at_once(&wanted, call)? {
            return Ok(self.token(&connection, wanted.policies));
        }
        let visit = self.visit(call, |_, _| Ok(()));
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
        let is_open = |reader: &String| self.open_in(reader).is_some();
        if readers.iter().any(is_open) {
            return Ok(None);
        }
        let looking: Vec<_> = (readers.iter())
            .map(|reader| (reader, self.field.looking_at(reader)))
            .collect();
        let mut found: Option<(&str, Held, MutexGuard<'_, Pending>)> = None;
        for (reader, looking) in &looking {
            let mut pending = match found {
                None => call.lock(looking)?,
                // Whoever looks there may wait for the card that is held here.
                Some(_) => match looking.try_lock() {
                    Ok(pending) => pending,
                    Err(_) => return Ok(None),
                },
            };
            match self.field.begin(reader, &mut pending, call) {
                Ok(held) if found.is_none() => found = Some((reader.as_str(), held, pending)),
                Ok(_) => return Ok(None),
                Err(Fault::Ours(over)) => return Err(over),
                // There is no card, or none to be used.
                Err(_) => {}
            }
        }
        match found {
            None => Ok(None),
            Some((reader, held, alone)) => {
                self.open_the_only_one(reader, (held, alone), wanted, call)
            }
        }
    }

    /// Opens the card in `reader` if it is `wanted`, and logs in, all in one transaction
    /// where the PIN is there at once, which goes on. `None`: it is not the one, or not to be
    /// read.
    ///
    /// Only where it is known that no other card can be meant.
    fn open_the_only_one(
        &self,
        reader: &str,
        (mut held, alone): (Held, MutexGuard<'_, Pending>),
        wanted: &Backend,
        call: &Call,
    ) -> Result<Option<Arc<Connection>>, Error> {
        let (access, field) = (call.access(), &self.field);
        held.stays = true;
        let mut turn = held.turn();
        let mut card = Card::new(&mut turn, call);
        let Ok(Answer::Card(identity)) = identify(&mut card) else {
            return Ok(None);
        };
        let place = self.place(&identity.id);
        // Who holds it may wait for this card's reader, so it is not waited for.
        let Ok(mut shared) = place.connection.try_lock() else {
            return Ok(None);
        };
        let fits = fits(wanted, &identity) && has_policies(wanted, &identity);
        if !fits || shared.strong_count() > 0 {
            return Ok(None);
        }
        let refused = &access.refused_pins;
        let connection = Connection::new(field, &identity, reader, (State::default(), refused));
        let (mut verified, mut pin) = (false, None);
        let mut asked = Asked::default();
        let logged_in = connection.begin_login(
            &mut Session {
                card,
                identity: &identity,
                field,
                verified: &mut verified,
                pin: &mut pin,
                changes: &mut 0,
                administered: &mut false,
                fresh: true,
                tries: None,
                turns: &**refused,
                turn: None,
            },
            call,
            &mut asked,
        );
        if matches!(&logged_in, Err(Fault::Lost(_))) && answers(&mut turn, call) {
            // The PIN may count all the same. Where there is no card, nothing does.
            let _ = Box::new(turn).reset();
        } else {
            drop(turn);
        }
        drop(alone);
        *lock(&connection.state) = State::opened(held, verified, pin);
        let logged_in = logged_in.map_err(|fault| fault.into_error(connection.id()));
        connection.end_login(logged_in, call, asked)?;
        let connection = Arc::new(connection);
        *shared = Arc::downgrade(&connection);
        Ok(Some(connection))
    }

    /// Opens a card that was found, or gives the one that is open.
    fn connect(&self, seen: VisitedCard<()>, call: &Call) -> Result<Arc<Connection>, Error> {
        let VisitedCard {
            reader,
            identity,
            link,
            ..
        } = seen;
        let place = self.place(&identity.id);
        let mut shared = call.lock(&place.connection)?;
        if let Some(connection) = shared.upgrade() {
            if !connection.is_logged_in(call)? {
                connection.log_in(call)?;
            }
            return Ok(connection);
        }
        let known = (State::found(link), &call.access().refused_pins);
        let connection = Connection::new(&self.field, &identity, &reader, known);
        connection.log_in(call)?;
        let connection = Arc::new(connection);
        *shared = Arc::downgrade(&connection);
        Ok(connection)
    }

    fn token(&self, connection: &Arc<Connection>, policies: Policies) -> Arc<PivToken> {
        let is_wanted = |token: &PivToken| {
            Arc::ptr_eq(&token.connection, connection) && token.policies == policies
        };
        let place = self.place(connection.id());
        place.tokens.find_or_make(is_wanted, || {
            Arc::new(PivToken {
                info: info(&connection.identity, &connection.make(), Vec::new()),
                proven: OnceLock::new(),
                connection: Arc::clone(connection),
                policies,
            })
        })
    }
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

/// Whether the card is one that `backend` names.
pub(crate) fn fits(backend: &Backend, identity: &Identity) -> bool {
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
