//! File formats of other programs: age files, SSH signatures and public keys, for keys on tokens.
//!
//! Drivers do not need this crate. Programs that show keys, encrypt to them, or verify signatures
//! from files do.
//!
//! | module | idea |
//! | --- | --- |
//! | [`envelope`] | ciphertexts: age files, opened with a device's key agreement |
//! | [`ssh`] | public keys in SSH's form |
//! | [`sshsig`] | SSH signatures |
//! | [`foreign`] | public keys in the forms of other programs |
//! | [`verdict`] | whether a signature is valid, for messages of any length |
#![forbid(unsafe_code)]

pub mod envelope;
pub mod foreign;
pub mod ssh;
pub mod sshsig;
pub mod verdict;

/// Its writers, readers and recipients are what [`envelope`] gives.
pub use age;
