//! The state of an open card, and its connection.

use claviger_token::Pin;

use crate::apdu::{Lost, Transport};
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
            ..State::default()
        };
    }

    /// Ends the transaction that goes on, if there is one.
    pub(crate) fn release(&mut self) {
        if let Some(held) = self.held.take() {
            self.link = held.end();
        }
    }

    /// The way to the card, if it is known where that is: the transaction that goes on, if
    /// `goes_on` says so, or a new one. A new one goes on after this operation if it `stays`.
    ///
    /// # Errors
    /// As [`Link::begin`].
    pub(crate) fn begin(
        &mut self,
        goes_on: impl FnOnce(&mut Held) -> bool,
        stays: bool,
    ) -> Result<Option<Way<'_>>, Lost> {
        if !self.held.as_mut().is_some_and(goes_on) {
            self.release();
            if stays {
                self.held = self.link.take().map(Held::begin).transpose()?;
            }
        }
        self.way(|link| link.begin())
    }

    /// The way for one command alone: see [`Link::alone`]. `None` where the card is not
    /// ready for that as far as we know.
    pub(crate) fn alone(&mut self) -> Option<Way<'_>> {
        if !self.ready {
            return None;
        }
        if !self.held.as_mut().is_some_and(Held::resumes) {
            self.release();
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
