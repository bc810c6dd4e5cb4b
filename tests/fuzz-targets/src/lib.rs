//! What the fuzz targets do with an input. `tests/fuzz` gives them the inputs of a fuzzer; the
//! tests of this crate give them random ones, in every run.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what must not happen is a finding"
)]

pub mod age;
pub mod agent;
pub mod attestation;
pub mod evidence;
pub mod frames;
pub mod ledger;
pub mod piv;
pub mod piv_replies;
pub mod plugin;
pub mod public_key;
mod shared;
pub mod sshsig;
pub mod uri;
