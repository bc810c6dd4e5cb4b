//! Fixtures that start tokens for tests.
//!
//! A fixture that is not available panics and says how to get it: no test passes because the thing
//! that it tests is missing.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a fixture that fails is a test that fails"
)]

mod folder;
mod kryoptic;
mod mutated;
mod neighbour;
#[cfg(unix)]
mod nss;
#[cfg(unix)]
mod opencryptoki;
#[cfg(feature = "piv")]
mod opensc;
#[cfg(unix)]
mod p11kit;
pub mod peers;
#[cfg(unix)]
pub mod private;
#[cfg(feature = "piv")]
mod readers;
mod softhsm;
#[cfg(unix)]
mod sshd;
mod token;
#[cfg(unix)]
mod tpm;
#[cfg(unix)]
mod unpacked;
#[cfg(unix)]
mod user;

pub use kryoptic::Kryoptic;
pub use mutated::mutated;
pub use neighbour::Neighbour;
#[cfg(unix)]
pub use nss::Nss;
#[cfg(unix)]
pub use opencryptoki::OpenCryptoki;
#[cfg(feature = "piv")]
pub use opensc::OpenSc;
#[cfg(unix)]
pub use p11kit::{P11KitClient, P11KitProxy};
#[cfg(feature = "piv")]
pub use readers::CountedReaders;
pub use softhsm::SoftHsm;
#[cfg(unix)]
pub use sshd::Sshd;
#[cfg(unix)]
pub use tpm::Tpm;
#[cfg(unix)]
pub use user::{as_root, as_user, is_powerless, is_user, needs_user};

/// The example for library users compiles.
#[cfg(doctest)]
#[doc = include_str!("../../docs/library.md")]
struct Library;
