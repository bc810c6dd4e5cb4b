//! A driver that is nobody's: its one token keeps its keys with the driver for memory, and has
//! a scheme, a name and backend strings of its own.
//!
//! It is added to everything as the page "A new driver" of CONTRIBUTING.md says; the tests of
//! this crate verify that nothing else is needed.
#![forbid(unsafe_code)]

use std::sync::Arc;

use claviger_memory::MemoryDriver;
use claviger_token::{
    About, Call, Decryptor, Deletion, Detail, Driver, Error, Example, GeneratedKey, KeyRef,
    KeySpec, Listed, Listing, NewKey, Signer, SlotId, SlotInfo, Token, TokenInfo, Unfinished,
    backend,
};

const SCHEME: &str = "fifth";

/// Serves one token.
pub struct FifthDriver {
    keys: MemoryDriver,
}

impl FifthDriver {
    /// What the driver says of itself to people.
    pub const ABOUT: About = About::new(SCHEME, "a token of the fifth kind").written(
        "fifth:[serial=NUMBER]",
        &[Example::new("fifth:", "the only token of its kind")],
    );

    /// A driver with an empty token of its own.
    pub fn new() -> Self {
        FifthDriver {
            keys: MemoryDriver::new(),
        }
    }

    /// The token as it shows itself: that of the memory under another name.
    fn info(&self, call: &Call) -> Result<Option<TokenInfo>, Error> {
        let found = self.keys.tokens("memory:", call)?.pop();
        Ok(found.map(|mut info| {
            SCHEME.clone_into(&mut info.id.kind);
            info.backend = format!("{SCHEME}:serial={}", info.id.serial);
            info
        }))
    }

    /// The token, if it fits `text`.
    fn fitting(&self, text: &str, call: &Call) -> Result<Option<TokenInfo>, Error> {
        let mut serial = None;
        for attribute in backend::attributes(SCHEME, text)? {
            let (name, value) = attribute?;
            if name != "serial" || !value.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(backend::bad(
                    text,
                    "it has a serial in hexadecimal, and no more",
                ));
            }
            serial = Some(value);
        }
        let fits = |info: &TokenInfo| serial.is_none_or(|serial| serial == info.id.serial);
        Ok(self.info(call)?.filter(fits))
    }
}

impl Default for FifthDriver {
    fn default() -> Self {
        FifthDriver::new()
    }
}

impl Driver for FifthDriver {
    fn about(&self) -> About {
        FifthDriver::ABOUT
    }

    fn look(&self, backend: &str, detail: Detail, call: &Call) -> Result<Listing, Error> {
        let keys = self.keys.open("memory:", call)?;
        let found = self.fitting(backend, call)?;
        let found = found.map(|info| Listed::with_slots(info, detail, |_| keys.slots(call)));
        Ok(Listing::new(found, []))
    }

    fn named_slot(&self, backend: &str) -> Result<Option<SlotId>, Error> {
        self.fitting(backend, &Call::unlimited()).map(|_| None)
    }

    fn open(&self, backend: &str, call: &Call) -> Result<Arc<dyn Token>, Error> {
        match self.fitting(backend, call)? {
            Some(info) => Ok(Arc::new(Fifth {
                info,
                keys: self.keys.open("memory:", call)?,
            })),
            None => Err(Error::NoToken {
                wanted: backend.into(),
                present: self.info(call)?.map(|i| i.backend).into_iter().collect(),
            }),
        }
    }
}

struct Fifth {
    info: TokenInfo,
    keys: Arc<dyn Token>,
}

impl Token for Fifth {
    fn info(&self) -> &TokenInfo {
        &self.info
    }

    fn slots(&self, call: &Call) -> Result<Vec<SlotInfo>, Error> {
        self.keys.slots(call)
    }

    fn free_slots(
        &self,
        specs: &[KeySpec],
        taken: &[SlotId],
        call: &Call,
    ) -> Result<Vec<SlotId>, Error> {
        self.keys.free_slots(specs, taken, call)
    }

    fn generate(&self, new: &NewKey<'_>, call: &Call) -> Result<GeneratedKey, Error> {
        self.keys.generate(new, call)
    }

    fn name(&self, key: &KeyRef, label: &str, call: &Call) -> Result<(), Error> {
        self.keys.name(key, label, call)
    }

    fn delete(&self, key: &KeyRef, call: &Call) -> Result<Deletion, Error> {
        self.keys.delete(key, call)
    }

    fn discard(&self, left: &Unfinished, call: &Call) -> Result<Deletion, Error> {
        self.keys.discard(left, call)
    }

    fn signer(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Signer>, Error> {
        self.keys.signer(key, call)
    }

    fn decryptor(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Decryptor>, Error> {
        self.keys.decryptor(key, call)
    }
}
