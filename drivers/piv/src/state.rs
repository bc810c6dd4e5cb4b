//! The state of an open card, and its connection.

use claviger_token::{Call, Pin};

use crate::apdu::{Lost, Transport};
use crate::error::Fault;
use crate::held::Held;
use crate::reader::Link;

/// What is known of an open card, as far as we know.
#[derive(Default)]
pub(crate) struct State {
    /// The way to it, while no transaction goes on.
    link: Option<Box<dyn Link>>,
    /// The way to it, while one does.
    held: Option<Held>,
    /// Whether the PIV application is selected, as far as we know.
    pub(crate) ready: bool,
    /// Whether the PIN counts, as far as we know.
    pub(crate) verified: bool,
    /// The PIN that the card accepted.
    pub(crate) pin: Option<Pin>,
    /// How often keys may have changed.
    pub(crate) changes: u64,
    /// Rights that were given to the card may still be there, and it could not be reset.
    pub(crate) keeps_rights: bool,
}

/// The way to a card for one operation, and what is known of the card.
pub(crate) struct Way<'a> {
    pub(crate) transport: Box<dyn Transport + 'a>,
    pub(crate) ready: &'a mut bool,
    pub(crate) verified: &'a mut bool,
    pub(crate) pin: &'a mut Option<Pin>,
    pub(crate) changes: &'a mut u64,
}

impl State {
    /// A card that was opened in a transaction that goes on, and the PIN that it accepted.
    pub(crate) fn opened(held: Held, verified: bool, pin: Option<Pin>) -> Self {
        State {
            held: Some(held),
            ready: true,
            verified,
            pin,
            ..State::default()
        }
    }

    /// A card that was found by looking for it, or none.
    pub(crate) fn found(link: Option<Box<dyn Link>>) -> Self {
        State {
            link,
            ..State::default()
        }
    }

    /// The card was looked for, and found where `link` leads. It is selected, and the PIN does
    /// not count.
    pub(crate) fn found_again(&mut self, link: Box<dyn Link>) {
        self.let_go();
        self.link = Some(link);
        self.ready = true;
        // Others may have had it.
        self.changes += 1;
    }

    /// Whether it is known where the card is.
    pub(crate) fn has_way(&self) -> bool {
        self.link.is_some() || self.held.is_some()
    }

    /// The card has to be looked for, and the PIN given again.
    pub(crate) fn let_go(&mut self) {
        *self = State {
            pin: self.pin.take(),
            changes: self.changes,
            keeps_rights: self.keeps_rights,
            ..State::default()
        };
    }

    /// Ends the transaction that goes on, if there is one.
    pub(crate) fn release(&mut self) {
        match self.held.take() {
            Some(held) if held.has_begun() => self.link = held.end(),
            pending => self.held = pending,
        }
    }

    /// An operation is over: its transaction ends, unless it goes on for the next ones.
    pub(crate) fn end_operation(&mut self) {
        if self.held.as_ref().is_some_and(|held| !held.stays) {
            self.release();
        }
    }

    /// The way to the card, if it is known where that is: the transaction that goes on, if
    /// `goes_on` says so, or a new one, which is waited for as long as `call` lasts. A new one
    /// goes on after this operation if it `stays`.
    ///
    /// # Errors
    /// As [`Link::begin`]; what [`Call::check`] says.
    pub(crate) fn begin(
        &mut self,
        goes_on: impl FnOnce(&mut Held) -> bool,
        stays: bool,
        call: &Call,
    ) -> Result<Option<Way<'_>>, Fault> {
        let goes_on = |held: &mut Held| held.has_begun() && goes_on(held);
        if !self.held.as_mut().is_some_and(goes_on) {
            self.begin_anew(stays, call)?;
        }
        self.way(|link| link.begin()).map_err(Fault::Lost)
    }

    fn begin_anew(&mut self, stays: bool, call: &Call) -> Result<(), Fault> {
        loop {
            // Somebody may have waited in vain for one.
            let is_pending = self.held.as_ref().is_some_and(|held| !held.has_begun());
            if !is_pending {
                self.release();
                if !stays && call.is_endless() {
                    // Begun without a thread.
                    return Ok(());
                }
                let Some(link) = self.link.take() else {
                    return Ok(());
                };
                self.held = Some(Held::begin(move || Ok(link)).map_err(Fault::Lost)?);
            }
            let Some(held) = &mut self.held else {
                return Ok(());
            };
            if held.wait(call)? {
                held.stays = stays;
                return Ok(());
            }
            call.check()?;
        }
    }

    /// The way for one command alone: see [`Link::alone`]. `None` where the card is not
    /// ready for that as far as we know, or others may have to be waited for in time.
    pub(crate) fn alone(&mut self, call: &Call) -> Option<Way<'_>> {
        if !self.ready {
            return None;
        }
        let resumes = |held: &mut Held| held.has_begun() && held.resumes();
        if !self.held.as_mut().is_some_and(resumes) {
            if !call.is_endless() {
                return None;
            }
            self.release();
        }
        if self.held.as_ref().is_some_and(|held| !held.has_begun()) {
            return None;
        }
        self.way(|link| link.alone()).ok()?
    }

    fn way<'a>(
        &'a mut self,
        free: impl FnOnce(&'a mut dyn Link) -> Result<Box<dyn Transport + 'a>, Lost>,
    ) -> Result<Option<Way<'a>>, Lost> {
        let transport: Box<dyn Transport + 'a> = match (&mut self.held, &mut self.link) {
            (Some(held), _) => Box::new(held.turn()),
            (None, Some(link)) => free(&mut **link)?,
            (None, None) => return Ok(None),
        };
        Ok(Some(Way {
            transport,
            ready: &mut self.ready,
            verified: &mut self.verified,
            pin: &mut self.pin,
            changes: &mut self.changes,
        }))
    }
}
