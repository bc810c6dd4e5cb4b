//! Speaks to a Claviger daemon.
#![forbid(unsafe_code)]

mod answer;
pub mod blocking;
pub mod daemon;
mod error;
pub mod frame;
mod greeting;
mod options;
pub mod peer;
pub mod reads_for;
pub mod request;
pub mod wire;

pub use answer::Answer;
pub use error::{Error, Refusal};
pub use options::Options;
