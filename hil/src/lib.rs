//! Runs the conformance suite and measures, on attached devices and on virtual ones.
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
#![forbid(unsafe_code)]

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
mod readers;
pub mod replay;
pub mod report;
pub mod results;
pub mod run;
pub mod screen;
mod spy;
pub mod transcript;
pub mod virtuals;

pub use error::HilError;
pub use spy::spied;

/// What a panic says.
pub(crate) fn failure_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked without a word").to_owned()
}
