//! The daemon: engines that stay, callers that are known and judged, and a log of who did what.
//!
//! | module | idea |
//! | --- | --- |
//! | [`caller`] | who calls, as the kernel says |
//! | [`asking`] | asks the caller of a request for a PIN |
#![forbid(unsafe_code)]

pub mod asking;
pub mod caller;

pub use asking::{AskPin, SecretBytes, SecretKind};
pub use caller::Caller;
