//! Runs the conformance suite and measures, on attached devices and on virtual ones.
//!
//! ```sh
//! claviger-hil --virtual --out report      # the suite and measurements, on virtual devices
//! claviger-hil --config hil.toml           # on attached devices, too
//! ```
//!
//! Data flows one way:
//!
//! | | module | idea |
//! | --- | --- | --- |
//! | 1 | [`config`] | `hil.toml`: which devices may be written to |
//! | 2 | [`devices`], [`virtuals`] | the devices of a run; starting the virtual ones |
//! | | `bench` | a device that may be written to |
//! | | `guard`, `journal`, `readers` | the protection between the bench and a device |
//! | 3 | [`mod@run`], [`conformance`], `measure`, `machine`, `spy` | checks and measurements |
//! | | [`transcript`], [`replay`] | recording the wire without secrets, and replaying it |
//! | 4 | [`results`] | the results |
//! | 5 | [`report`], [`compare`] | reports for people and machines |
//!
//! `hil/README.md` shows how to use it.
//!
//! Each driver is a feature; a device of a driver that is left out is neither found nor started.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(all(feature = "pkcs11", feature = "piv", feature = "ledger")),
    allow(
        dead_code,
        unused_imports,
        unused_mut,
        reason = "some of what the drivers share has no use without one of them"
    )
)]

use std::any::Any;

mod bench;
pub mod compare;
pub mod config;
pub mod conformance;
pub mod devices;
mod error;
mod guard;
mod journal;
mod machine;
mod measure;
mod missing;
#[cfg(feature = "piv")]
mod readers;
#[cfg(feature = "piv")]
pub mod replay;
pub mod report;
pub mod results;
pub mod run;
pub mod screen;
#[cfg(feature = "pkcs11")]
mod spy;
pub mod transcript;
pub mod virtuals;

pub use error::HilError;
#[cfg(feature = "pkcs11")]
pub use spy::spied;

/// What a panic says.
pub(crate) fn failure_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked without a word").to_owned()
}
