//! What a request may use on a token: whose PIN, whose management key, and how much may be risked.

use std::fmt;
use std::sync::{Arc, LazyLock};

use crate::{AcceptedKeys, NoPin, PinSource, RefusedInProcess, RefusedPins};

/// What a request may use to open a token and to change it. A [`Call`](crate::Call) carries it.
///
/// The login that a PIN makes is that of the token, which is open for the whole process. All else
/// serves the request that carries it, and no other: a token that was opened with a management
/// key makes no keys for requests that carry none.
#[derive(Clone)]
pub struct Access {
    /// Where the PIN comes from if the backend names no source of its own.
    pub pins: Arc<dyn PinSource>,
    /// Whether to log in even if a refusal would lock the token.
    pub last_try: bool,
    /// Whether to send a PIN whose length the token says it does not take: some state other
    /// limits than they keep.
    pub any_pin_length: bool,
    /// Where the management key of a smartcard comes from: hexadecimal, in a source of
    /// the same kinds as a PIN's. Wanted when keys are made, named and destroyed.
    pub management_keys: Arc<dyn PinSource>,
    /// The management keys that tokens accepted, which drivers note here. They are wiped when the
    /// last copy of this access is dropped, as with the request that carries it.
    pub accepted_keys: Arc<AcceptedKeys>,
    /// Whether the published defaults of a kind of token may be tried where no PIN or
    /// management key is given.
    pub factory_defaults: bool,
    /// Which PINs were refused before and are not sent again.
    pub refused_pins: Arc<dyn RefusedPins>,
    /// From which account on a token that derives its keys looks for free ones, where the
    /// backend names none: who else uses the seed begins elsewhere.
    pub first_account: u32,
}

impl Access {
    /// PINs from `pins`, and never the last try. PINs that are refused are remembered as
    /// long as the process lives; a node of `claviger-engine` remembers them in its
    /// registry.
    pub fn with(pins: impl PinSource + 'static) -> Self {
        Access {
            pins: Arc::new(pins),
            last_try: false,
            any_pin_length: false,
            management_keys: Arc::new(NoPin),
            accepted_keys: Arc::default(),
            factory_defaults: false,
            refused_pins: RefusedInProcess::shared(),
            first_account: 0,
        }
    }

    /// No PIN at all: only what a token gives without one.
    pub fn without_pin() -> Self {
        Access::with(NoPin)
    }

    /// The same with PINs from another source.
    #[must_use]
    pub fn with_pins(self, pins: Arc<dyn PinSource>) -> Self {
        Access { pins, ..self }
    }

    /// What a call may use that carries nothing.
    pub(crate) fn none() -> &'static Access {
        static NONE: LazyLock<Access> = LazyLock::new(Access::without_pin);
        &NONE
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("last_try", &self.last_try)
            .finish_non_exhaustive()
    }
}
