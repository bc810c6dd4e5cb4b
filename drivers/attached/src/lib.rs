//! Devices that programs attach: tokens of their own, which they serve over a connection.
//!
//! The driver knows no connection. Whoever has one, such as a daemon, describes the device
//! ([`Description`]), says how it is reached ([`Link`]), and adds it to the [`Devices`] that the
//! driver serves:
//!
//! ```
//! use claviger_attached::{AttachedDriver, Devices};
//! use claviger_token::{Call, Driver};
//!
//! let devices = Devices::default();
//! let driver = AttachedDriver::new(devices.clone());
//! // Nobody has attached one with `devices.attach(description, link)`.
//! assert!(driver.tokens("attached:", &Call::unlimited())?.is_empty());
//! # Ok::<(), claviger_token::Error>(())
//! ```
//!
//! A device is its identity key: the serial is that key's fingerprint. Whoever attaches it has
//! seen the key answer a challenge. Nothing else that a device says is believed: each signature is
//! verified, each agreement has its length and is not zero, each list has bounds, and a key is
//! used by its public half only. A device that is gone is absent, until it is attached again.
//!
//! | module | idea |
//! | --- | --- |
//! | `description` | what a device states of itself, checked |
//! | `link` | what a device is asked for, and what it answers |
//! | `devices` | the devices that are attached |
//! | `driver` | lists and opens them |
//! | `device` | asks one of them, and checks the answers |
//! | `token`, `key` | one of them as a token, and its keys |
#![forbid(unsafe_code)]

mod description;
mod device;
mod devices;
mod driver;
mod key;
mod link;
mod token;

pub use description::{BadDescription, Description, LONGEST_LABEL, MOST_KEYS, Statement};
pub use devices::{AttachError, Attachment, Devices, MOST_DEVICES};
pub use driver::AttachedDriver;
pub use link::{Asked, Failure, Happening, Link, Reply, Request, StatedKey};
