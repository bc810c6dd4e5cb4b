//! What a driver needs on this machine to reach its tokens.

use crate::Error;

/// Something on this machine through which a driver reaches tokens: a service, a library.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Need {
    /// What it is, with an article: `the smartcard service`.
    pub what: String,
    /// A backend string that every token behind it matches.
    pub backend: String,
    /// The tokens behind it.
    pub reach: Reach,
    /// Why it cannot be used, as far as this shows without looking at tokens.
    pub missing: Option<Error>,
}

/// The tokens behind a [`Need`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// All tokens of the driver: without it the driver reaches none.
    All,
    /// Some tokens: this machine is configured for it, so it is expected to work.
    Configured,
}

impl Need {
    /// Something behind which all tokens of the driver are, and which works as far as is known.
    pub fn new(what: impl Into<String>, backend: impl Into<String>) -> Self {
        Need {
            what: what.into(),
            backend: backend.into(),
            reach: Reach::All,
            missing: None,
        }
    }

    /// The same, but this machine's configuration names it, and other tokens are not behind it.
    #[must_use]
    pub fn configured(mut self) -> Self {
        self.reach = Reach::Configured;
        self
    }

    /// The same, but it cannot be used because of `error`, if there is one.
    #[must_use]
    pub fn missing(mut self, error: Option<Error>) -> Self {
        self.missing = error;
        self
    }
}
