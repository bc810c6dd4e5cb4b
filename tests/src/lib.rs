//! Tokens for tests, and what starts them.
//!
//! A fixture that cannot be had panics and says how to get it: a test never passes
//! because the thing that it tests is not there.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a fixture that fails is a test that fails"
)]

mod folder;
mod kryoptic;
pub mod peers;
mod softhsm;
mod token;
#[cfg(unix)]
mod tpm;

pub use kryoptic::Kryoptic;
pub use softhsm::SoftHsm;
#[cfg(unix)]
pub use tpm::Tpm;

/// The example in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
