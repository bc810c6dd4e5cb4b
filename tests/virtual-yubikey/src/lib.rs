//! A virtual YubiKey, and a pcscd to plug it into.
//!
//! [`Card`] is a YubiKey's PIV application as a state machine: commands in, replies out.
mod apdu;
mod attest;
mod auth;
mod builder;
mod card;
mod firmware;
mod keys;
mod objects;
mod tlv;

pub use apdu::Status;
pub use auth::{ManagementAlgorithm, ManagementKey, PinPolicy, Touch, TouchPolicy};
pub use builder::Builder;
pub use card::{Card, Origin, Shape, ins};
pub use firmware::Firmware;
pub use keys::{Algorithm, PrivateKey};
pub use objects::{ObjectId, Slot, object};
