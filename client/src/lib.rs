//! Speaks to a Claviger daemon.
#![forbid(unsafe_code)]

pub mod frame;
pub mod wire;
