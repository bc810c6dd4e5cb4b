//! A PIV card of another provenance: Nitrokey's `piv-authenticator`, with storage in a
//! folder, plugged in like the virtual YubiKey. It shows that the driver speaks the
//! standard, and not only what our own card makes of it.
//!
//! `Card` adds to it what a token's firmware brings: power, chained commands and
//! replies in pieces. It is there with the feature `card` only.
//!
//! | module | idea |
//! | --- | --- |
//! | `card` | commands in, replies out; power on and off |
//! | `platform` | what `piv-authenticator` runs on: storage, keys, randomness |
#![cfg(feature = "card")]

mod card;
mod platform;

pub use card::Card;
