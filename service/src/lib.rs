//! The daemon: engines that stay, callers that are known and judged, and a log of who did what.
//!
//! | module | idea |
//! | --- | --- |
//! | [`caller`] | who calls, as the kernel says |
//! | [`policy`] | judges callers by what they made and what they are granted |
//! | [`audit`] | the log of who used which key |
//! | [`asking`] | asks the caller of a request for a PIN |
#![forbid(unsafe_code)]

pub mod asking;
pub mod audit;
pub mod caller;
pub mod policy;

pub use asking::{AskPin, SecretBytes, SecretKind};
pub use caller::Caller;
