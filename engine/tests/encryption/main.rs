//! The Encryption and Reads For engines: the rows of the specification, each as a test.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the helpers of tests are tests"
)]

#[path = "../common/mod.rs"]
mod common;
mod recipients;
mod relation;
mod stage;
mod waiting;
