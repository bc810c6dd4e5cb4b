//! The driver on virtual cards in this process.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod administrator;
mod common;
mod conformance;
mod deletion;
mod keys;
mod other_cards;
mod pin;
mod recovery;
mod slots;
mod stage;
mod transactions;
mod turns;
mod unfinished;
mod waiting;
