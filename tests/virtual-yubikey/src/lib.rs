//! A virtual YubiKey, and a pcscd to plug it into: for tests only.
//!
//! [`Card`] is a YubiKey's PIV application as a state machine: commands in, replies out, without
//! hardware, time or threads. It implements NIST SP 800-73-4 and Yubico's extensions, with the
//! [`Firmware`] that a test chooses. Start reading at `card.rs`.
//!
//! [`Device`] adds faults between a card and its user: removal in the middle of a command, resets,
//! malformed replies, delays ([`Faults`]). It also counts commands.
//!
//! [`Pcscd`] starts a pcscd of this process's own, without rights and beside the
//! system's, and plugs cards into it. PC/SC clients, in this process and in those that it
//! starts, take them for real. One process has one; each test takes a slot of it. It
//! takes other cards as well ([`Smartcard`]).
//!
//! The program `claviger-virtual-yubikey` runs any command with a YubiKey plugged in.
//!
//! # Limits
//! A real YubiKey may differ where neither the standard nor Yubico's documents specify the status
//! word. It has more applications, and its secrets are secret.

/// The root to which the attestations of virtual cards lead, as PEM: what a driver has to
/// trust to take them for YubiKeys. Cards [of another maker](Builder::of_another_maker) have
/// their own.
pub const ROOT: &str = include_str!("../root.pem");
/// The file with [`ROOT`], for programs that take one.
pub const ROOT_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/root.pem");

mod apdu;
mod attest;
mod auth;
mod builder;
mod card;
mod faults;
mod firmware;
mod keys;
mod nature;
mod neighbour;
mod objects;
mod pcscd;
mod serve;
mod tlv;

pub use apdu::Status;
pub use auth::{ManagementAlgorithm, ManagementKey, PinPolicy, Touch, TouchPolicy};
pub use builder::Builder;
pub use card::{Card, Origin, Shape, ins};
pub use faults::{Answer, Device, Exchange, Fault, Faults, Rule, Smartcard};
pub use firmware::Firmware;
pub use keys::{Algorithm, PrivateKey};
pub use nature::Nature;
pub use neighbour::Neighbour;
pub use objects::{ObjectId, Slot, object};
pub use pcscd::{Inserted, Pcscd};
