//! Runs the conformance suite and measures, on the devices that are attached and on
//! virtual ones.
//!
//! Data flows one way:
//!
//! | | module | idea |
//! | --- | --- | --- |
//! | 1 | [`config`] | `hil.toml`: which devices may be written to |
//! | 2 | [`devices`], [`virtuals`] | the devices of a run; what is started for it |
//! | | `bench` | a device that may be written to |
//! | | `guard`, `journal`, `readers` | what stands between the bench and a device |
//! | 3 | [`mod@run`], [`conformance`], `measure`, `machine`, `spy` | what is done with each |
//! | | [`transcript`], [`replay`] | what went over the wire, without the secrets, and again |
//! | 4 | [`results`] | what was found |
//! | 5 | [`report`], [`compare`] | what people and machines read of it |
//!
//! `hil/README.md` shows how it is used.
#![forbid(unsafe_code)]

use std::any::Any;
use std::sync::{Mutex, MutexGuard, PoisonError};

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

/// What a mutex holds, also after a check that held it has failed.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a panic says.
pub(crate) fn failure_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked without a word").to_owned()
}
