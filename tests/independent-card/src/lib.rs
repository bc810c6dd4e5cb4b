//! A PIV card of another maker: Nitrokey's `piv-authenticator`, with storage in a folder, plugged
//! in like the virtual YubiKey. It shows that the driver follows the standard, and not only our own
//! reading of it.
//!
//! `Card` adds what the firmware of a token brings: power, chained commands and replies in pieces.
//! It needs the feature `card`.
//!
//! | module | idea |
//! | --- | --- |
//! | `card` | commands in, replies out; power on and off |
//! | `platform` | what `piv-authenticator` runs on: storage, keys, randomness |
#![cfg(feature = "card")]

mod card;
mod platform;

pub use card::Card;
