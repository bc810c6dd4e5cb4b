//! What a driver implements to list and open the tokens of its kind.

use std::sync::Arc;
use std::time::Duration;

use crate::needs::Need;
use crate::{About, Call, Error, SlotId, SlotInfo, Token, TokenId, TokenInfo};

/// Lists and opens the tokens of one kind.
pub trait Driver: Send + Sync {
    /// What the driver says of itself to people.
    fn about(&self) -> About;

    /// The scheme of the backend strings that this driver serves, such as `pkcs11`.
    fn scheme(&self) -> &'static str {
        self.about().scheme
    }

    /// The attached tokens that match `backend`, found without a PIN, and the places that cannot
    /// be read. With [`Detail::Slots`] each token comes with the slots that are visible without a
    /// PIN.
    ///
    /// `backend` is a backend string with this driver's [scheme](Driver::scheme); the
    /// bare scheme with a colon matches every token of the kind.
    ///
    /// # Errors
    /// [`Error::BadBackend`], [`Error::BadModule`], [`Error::DeadlineExceeded`],
    /// [`Error::Cancelled`]. No match is not an error.
    fn look(&self, backend: &str, detail: Detail, call: &Call) -> Result<Listing, Error>;

    /// The attached tokens that match `backend`: [`Driver::look`] without slots and without the
    /// unreadable places.
    ///
    /// # Errors
    /// As [`Driver::look`].
    fn tokens(&self, backend: &str, call: &Call) -> Result<Vec<TokenInfo>, Error> {
        let listing = self.look(backend, Detail::Tokens, call)?;
        Ok(listing.tokens.into_iter().map(|found| found.info).collect())
    }

    /// What the driver needs on this machine to reach its tokens, and what of it is missing. Blocks
    /// as long as a service takes to answer.
    fn needs(&self, _call: &Call) -> Vec<Need> {
        Vec::new()
    }

    /// Waits until tokens of this kind are plugged in or unplugged.
    fn watch(&self) -> Box<dyn Watch> {
        Box::new(Interval)
    }

    /// The slot that `backend` names, if it names one.
    ///
    /// # Errors
    /// [`Error::BadBackend`].
    fn named_slot(&self, backend: &str) -> Result<Option<SlotId>, Error>;

    /// The first attribute of `backend` that names more than tokens: a file of this machine, code
    /// that is loaded or run, an argument of it, an address, or where a PIN comes from. `None` if
    /// the string only says which tokens are meant, and how keys on them are made.
    ///
    /// Who may not do everything on this machine may only name tokens. By default nothing may
    /// follow the scheme.
    ///
    /// # Errors
    /// [`Error::BadBackend`].
    fn names_more(&self, backend: &str) -> Result<Option<&'static str>, Error> {
        let rest = crate::backend::of_scheme(self.scheme(), backend)?;
        Ok((!rest.is_empty()).then_some("what follows the scheme"))
    }

    /// Opens the one token that matches `backend`, and logs in if the token needs it, with what
    /// the call [may use](Call::access).
    ///
    /// Opening an open token returns the same token, without asking for a PIN. If a person has to
    /// do something first, such as unlocking the device, `call` says who is told and how long to
    /// wait.
    ///
    /// # Errors
    /// [`Error::BadBackend`], [`Error::BadModule`], [`Error::NoToken`],
    /// [`Error::AmbiguousToken`] (with the candidates), and the PIN errors. Each of these is final
    /// for its PIN: nothing is sent twice.
    fn open(&self, backend: &str, call: &Call) -> Result<Arc<dyn Token>, Error>;
}

/// How closely a driver looks at the tokens that it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Which tokens there are.
    Tokens,
    /// Their slots, too: all that is visible without a PIN.
    Slots,
}

/// The tokens that a driver finds, and the places that it cannot read.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Listing {
    /// The tokens.
    pub tokens: Vec<Listed>,
    /// The places with a possible token that cannot be read.
    pub unreadable: Vec<Unreadable>,
}

impl Listing {
    /// These tokens, and these places that cannot be read.
    pub fn new(
        tokens: impl IntoIterator<Item = Listed>,
        unreadable: impl IntoIterator<Item = Unreadable>,
    ) -> Self {
        Listing {
            tokens: tokens.into_iter().collect(),
            unreadable: unreadable.into_iter().collect(),
        }
    }

    /// The slots of the token with this name.
    ///
    /// # Errors
    /// [`Error::TokenUnavailable`] if it is not among the tokens, or why its slots cannot be read.
    pub fn slots_of(self, token: &TokenId) -> Result<Vec<SlotInfo>, Error> {
        let is_it = |found: &Listed| found.info.id == *token;
        match self.tokens.into_iter().find(is_it) {
            Some(found) => found.slots,
            None => Err(Error::TokenUnavailable {
                token: token.clone(),
                reason: "it was not found".into(),
            }),
        }
    }
}

/// A token that a driver found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Listed {
    /// What it shows without a PIN.
    pub info: TokenInfo,
    /// Its slots that are visible without a PIN, or why they cannot be read. None if only
    /// [`Detail::Tokens`] were asked for.
    pub slots: Result<Vec<SlotInfo>, Error>,
}

impl Listed {
    /// A token whose slots were not looked at.
    pub fn new(info: TokenInfo) -> Self {
        Listed {
            info,
            slots: Ok(Vec::new()),
        }
    }

    /// A token, and its slots as `slots` reads them if `detail` asks for them.
    pub fn with_slots(
        info: TokenInfo,
        detail: Detail,
        slots: impl FnOnce(&TokenInfo) -> Result<Vec<SlotInfo>, Error>,
    ) -> Self {
        let slots = match detail {
            Detail::Tokens => Ok(Vec::new()),
            Detail::Slots => slots(&info),
        };
        Listed { info, slots }
    }
}

/// A place with a possible token that cannot be read.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Unreadable {
    /// The place in the driver's terms: a reader, a module, a slot of it.
    pub place: String,
    /// Why it cannot be read.
    pub error: Error,
}

impl Unreadable {
    /// A place that cannot be read because of `error`.
    pub fn new(place: impl Into<String>, error: Error) -> Self {
        Unreadable {
            place: place.into(),
            error,
        }
    }
}

/// Waits until tokens are plugged in or unplugged.
pub trait Watch: Send {
    /// Waits until tokens may have changed since the last call, or until `limit` is over. Returns
    /// whether it is worth looking.
    fn wait(&mut self, limit: Duration) -> bool;
}

/// For tokens that announce no changes: it is always worth looking, four times a second.
#[derive(Debug, Clone, Copy, Default)]
pub struct Interval;

impl Watch for Interval {
    fn wait(&mut self, limit: Duration) -> bool {
        std::thread::sleep(limit.min(Duration::from_millis(250)));
        true
    }
}
