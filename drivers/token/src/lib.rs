//! The contract between identities and the tokens that hold their keys.
//!
//! ```
//! use claviger_token::{Call, Driver, Error, Signature, SlotInfo};
//!
//! /// Signs with the first key that the token shows.
//! fn sign(driver: &dyn Driver, backend: &str, message: &[u8]) -> Result<Option<Signature>, Error> {
//!     let call = Call::unlimited();
//!     let token = driver.open(backend, &call)?;
//!     let Some(key) = token.slots(&call)?.iter().find_map(SlotInfo::key_ref) else {
//!         return Ok(None);
//!     };
//!     token.signer(&key, &call)?.sign(message, &call).map(Some)
//! }
//! ```
//!
//! A [`Driver`] lists the tokens of its kind and opens one. A [`Token`] has slots, and a slot
//! holds at most one key. A key either signs ([`Signer`]) or decrypts ([`Decryptor`]). Whoever
//! uses tokens needs this crate and one crate for each kind of token. Whoever writes a driver
//! implements the four traits and runs the checks of `claviger-conformance` against a token of the
//! new kind.
//!
//! | module | idea |
//! | --- | --- |
//! | [`algorithm`] | key algorithms, and what a key is for |
//! | [`id`] | the names of tokens, slots and keys |
//! | [`info`] | what tokens and slots show of themselves |
//! | [`driver`] | listing and opening the tokens of one kind |
//! | [`token`] | an open token and its keys: making, using, destroying them |
//! | [`backend`] | backend strings, and the one token that such a string names |
//! | [`key`] | public keys: encodings, fingerprints, verification |
//! | [`signing`] | signatures: schemes and encodings |
//! | [`agreement`] | key agreement: what a driver checks of a request and of an answer |
//! | [`shelf`] | what is open in this process, opened once and shared |
//! | [`shell`] | quoting for a shell |
//! | [`pin`] | where PINs come from |
//! | [`refused`] | rejected PINs, which are not sent again |
//! | [`access`] | what a request may use to open a token |
//! | [`call`] | the circumstances of a request: deadline, cancellation, whom to tell, access |
//! | [`about`] | what a driver says of itself to people |
//! | [`needs`], [`usb`] | what a driver needs on this machine; tokens on USB |
//! | [`error`] | errors, each with a stable code |
//! | [`possession`] | proofs that a token has the private key of a public key |
//! | [`sync`] | locks that outlive a panic |
//! | [`interop`] | handles as keys of the `signature` crate |
//!
//! # Blocking
//! Device calls block. A token states whether it is quick enough to be called in place
//! ([`Pace`]); the caller decides where other calls run.
#![forbid(unsafe_code)]

pub mod about;
mod accepted;
pub mod access;
pub mod agreement;
pub mod algorithm;
pub mod backend;
pub mod call;
pub mod driver;
pub mod error;
pub mod id;
pub mod info;
pub mod interop;
pub mod key;
mod locked;
pub mod needs;
pub mod pin;
pub mod possession;
pub mod refused;
pub mod shelf;
pub mod shell;
pub mod signing;
pub mod sync;
pub mod token;
pub mod usb;

pub use about::{About, Example};
pub use accepted::AcceptedKeys;
pub use access::Access;
pub use algorithm::{Algorithm, KeySpec, KeyUse};
pub use call::{Call, Event};
pub use driver::{Detail, Driver, Interval, Listed, Listing, Unreadable, Watch};
pub use error::{Advice, Error, TriesLeft};
pub use id::{KeyRef, SlotId, SlotName, TokenId};
pub use info::{Pace, SlotInfo, SlotState, TokenInfo};
pub use key::{Fingerprint, PublicKey};
pub use locked::{DUMPABLE, Pin, keep_memory_private};
pub use pin::{FixedPin, NoPin, PinSource, StoredPin};
pub use refused::{PinTurn, PinVerdict, RefusedInProcess, RefusedPins};
pub use signing::{Signature, SignatureScheme};
pub use token::{
    Attestation, Decryptor, Deletion, Derives, DigestSigner, GeneratedKey, NewKey, Protection,
    Secret, Signer, Token, Unfinished, Unwrap, unfinished_mark,
};

/// Shows the text of a [`Pin`].
pub use secrecy::ExposeSecret;
/// What a [`Secret`] is: it is wiped when it is dropped.
pub use zeroize::Zeroizing;
