//! What other programs read and write: age files, SSH signatures and public keys, with keys
//! that are on tokens.
//!
//! A driver needs none of this; whoever shows a key to people, encrypts to one, or checks a
//! signature from a file does.
//!
//! | module | idea |
//! | --- | --- |
//! | [`envelope`] | ciphertexts: age files, opened with a device's key agreement |
//! | [`ssh`] | public keys as SSH writes them |
//! | [`sshsig`] | signatures as SSH knows them |
//! | [`foreign`] | public keys as other programs write them |
//! | [`verdict`] | whether a signature is valid, of messages however long |
#![forbid(unsafe_code)]

pub mod envelope;
pub mod foreign;
pub mod ssh;
pub mod sshsig;
pub mod verdict;

/// Its writers, readers and recipients are what [`envelope`] gives.
pub use age;
