//! File formats of other programs: age files, SSH signatures and public keys, for keys on tokens.
//!
//! ```
//! use claviger_formats::envelope::{self, Fit, Sealed};
//! use claviger_token::PublicKey;
//!
//! let key = PublicKey::from_text(
//!     "-----BEGIN PUBLIC KEY-----
//! MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEuOAyaLEPRLcfyclBJ9AJbVC40b+3
//! kqk6aPfFnclFwj86xLj0SAX12ceWWecCBZcYlu28bYRLYpv2ASGuEAZSrA==
//! -----END PUBLIC KEY-----",
//! )?;
//! let file = envelope::encrypt(&[&key], b"Meet me at the bridge.")?;
//!
//! // The header says which keys may open the file, before any token is used.
//! assert_eq!(Sealed::read(&file[..])?.fits(&key), Fit::Yes);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Drivers do not need this crate. Programs that show keys, encrypt to them, or verify signatures
//! from files do.
//!
//! | module | idea |
//! | --- | --- |
//! | [`certificate`] | X.509 certificates, and requests for them |
//! | [`envelope`] | ciphertexts: age files, opened with a device's key agreement |
//! | [`age_plugin`] | recipients and identities of the age plugin |
//! | [`ssh`] | public keys in SSH's form |
//! | [`ssh_signature`] | signatures in SSH's wire format |
//! | [`ssh_request`] | what an agent for SSH is asked to sign |
//! | [`sshsig`] | SSH signatures |
//! | [`foreign`] | public keys in the forms of other programs |
//! | [`verdict`] | whether a signature is valid, for messages of any length |
#![forbid(unsafe_code)]

pub mod age_plugin;
pub mod certificate;
pub mod envelope;
pub mod foreign;
pub mod ssh;
pub mod ssh_request;
pub mod ssh_signature;
pub mod sshsig;
pub mod verdict;

/// Its writers, readers and recipients are what [`envelope`] gives.
pub use age;
