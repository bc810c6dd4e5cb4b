//! An open token.

use std::sync::{Arc, Condvar, Mutex, Weak};

use claviger_token::key::to_hex;
use claviger_token::sync::lock;
use claviger_token::{
    Algorithm, Call, Decryptor, Deletion, Error, GeneratedKey, KeyRef, KeySpec, NewKey, Signer,
    SlotId, SlotInfo, Token, TokenInfo, Unfinished,
};
use rand_core::{OsRng, RngCore};

use crate::one_call::OneCall;
use crate::quirks::Quirks;
use crate::session::Connection;

/// The length of the `CKA_ID`s that we choose, in bytes: as long as a SHA-1, which is
/// what others put there.
const ID_LENGTH: usize = 20;

/// An open token.
pub(crate) struct Pkcs11Token {
    pub(crate) me: Weak<Pkcs11Token>,
    pub(crate) info: TokenInfo,
    pub(crate) quirks: &'static Quirks,
    /// The algorithms for whose signatures the token is given the message, not its hash.
    pub(crate) hashes: Vec<Algorithm>,
    pub(crate) write_protected: bool,
    pub(crate) connection: Arc<Connection>,
    pub(crate) one_call: OneCall,
    /// After the connection, so that the token is closed when this is dropped.
    pub(crate) _living: Living,
}

/// The place of one token in the process: it is opened once, and shared.
#[derive(Default)]
pub(crate) struct SharedToken {
    pub(crate) state: Mutex<SharedState>,
    pub(crate) closed: Condvar,
}

#[derive(Default)]
pub(crate) struct SharedState {
    pub(crate) token: Weak<Pkcs11Token>,
    /// How many are open, those that are just being closed included: only after
    /// that does a login say anything about its PIN.
    pub(crate) living: usize,
}

/// Counts an open token.
pub(crate) struct Living(pub(crate) Arc<SharedToken>);

impl Drop for Living {
    fn drop(&mut self) {
        lock(&self.0.state).living -= 1;
        self.0.closed.notify_all();
    }
}

impl Token for Pkcs11Token {
    fn info(&self) -> &TokenInfo {
        &self.info
    }

    fn slots(&self, call: &Call) -> Result<Vec<SlotInfo>, Error> {
        self.list(call)
    }

    fn free_slots(
        &self,
        specs: &[KeySpec],
        _: &[SlotId],
        call: &Call,
    ) -> Result<Vec<SlotId>, Error> {
        call.check()?;
        for spec in specs {
            self.info.check_makes(*spec)?;
        }
        self.check_writable()?;
        let slots = specs.iter().map(|_| {
            let mut id = [0; ID_LENGTH];
            OsRng.fill_bytes(&mut id);
            SlotId::new(to_hex(&id))
        });
        Ok(slots.collect())
    }

    fn generate(&self, new: &NewKey<'_>, call: &Call) -> Result<GeneratedKey, Error> {
        self.generate_key(new, call)
    }

    fn name(&self, key: &KeyRef, label: &str, call: &Call) -> Result<(), Error> {
        self.name_key(key, label, call)
    }

    fn delete(&self, key: &KeyRef, call: &Call) -> Result<Deletion, Error> {
        self.delete_key(key, call)
    }

    fn discard(&self, left: &Unfinished, call: &Call) -> Result<Deletion, Error> {
        self.discard_key(left, call)
    }

    fn signer(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Signer>, Error> {
        self.signer_of(key, call)
    }

    fn decryptor(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Decryptor>, Error> {
        self.decryptor_of(key, call)
    }
}

impl Pkcs11Token {
    pub(crate) fn check_writable(&self) -> Result<(), Error> {
        match self.write_protected {
            true => Err(Error::TokenReadOnly {
                token: self.info.id.clone(),
            }),
            false => Ok(()),
        }
    }

    pub(crate) fn unsupported(&self, wanted: KeySpec) -> Error {
        Error::Unsupported {
            token: self.info.id.clone(),
            wanted,
            supported: self.info.uses.clone(),
        }
    }

    pub(crate) fn not_usable(&self, wanted: KeySpec, reason: &str) -> Error {
        Error::NotUsable {
            token: self.info.id.clone(),
            wanted,
            reason: reason.into(),
        }
    }

    pub(crate) fn malformed(&self, call: &str, reason: &str) -> Error {
        Error::MalformedReply {
            token: self.info.id.clone(),
            call: call.into(),
            reason: reason.into(),
        }
    }
}
