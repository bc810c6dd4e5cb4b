//! Identities whose keys live on hardware tokens: the node, its engines, their registry.
//!
//! A [`Node`] routes messages between engines. *Identity Management* generates,
//! connects and deletes identities; for each it spawns a *Commitment* engine, which
//! signs, and a *Decryption* engine, which opens. The *Encryption* engine encrypts to
//! identities and contacts, through what the *Reads For* engine knows if that is wanted. The keys are made on and stay on
//! tokens, which the node reaches through the drivers it is given; it knows none by
//! itself.
//!
//! | module | idea |
//! | --- | --- |
//! | [`types`] | the vocabulary: engine ids, backends, capabilities, identities |
//! | [`message`] | what engines say to each other |
//! | [`node`] | routing, mailboxes, and what a program holds in its hand |
//! | `identity_management` | what each message to it leads to, as a pure function |
//! | `accounts` | finding keys of a lost registry on a token that derives them |
//! | `lifecycle`, `adoption` | doing it: between the token and the registry |
//! | [`purpose`] | what a signature is for, and which bytes are signed |
//! | `commitment` | having something signed, messages longer than memory included |
//! | `key_engine` | the Commitment and Decryption engines |
//! | [`opener`] | who opens a file, and with whose PIN |
//! | [`encryption`] | the Encryption engine: to whom, and who waits for what; pure |
//! | [`reads_for`] | the Reads For engine: who reads for whom, in memory |
//! | [`evidence`] | what proves it, signed, and the text in which it travels |
//! | `exchange` | carrying out what the two lead to |
//! | `granting` | granting, revoking and taking in evidence |
//! | [`registry`] | the identities, durable, with write-ahead intents |
//! | [`refused`], `unnoted` | PINs that tokens refused, durable; and where that cannot be |
//! | [`policy`] | who may do what |
//! | [`token_state`] | how a token stands, what changes that, what a request gets meanwhile |
//! | `standings` | how the tokens stand, who is told, and waiting for one to come back |
//! | `tokens`, `lane` | open tokens and the threads that work them |
#![forbid(unsafe_code)]

mod accounts;
mod adoption;
mod commitment;
pub mod encryption;
pub mod error;
pub mod evidence;
mod exchange;
mod granting;
mod identity_management;
mod key_engine;
mod lane;
mod lease;
mod lifecycle;
pub mod message;
pub mod node;
mod only_for;
pub mod opener;
pub mod policy;
pub mod purpose;
pub mod reads_for;
pub mod refused;
pub mod registry;
mod settling;
mod standings;
pub mod token_state;
mod tokens;
mod trial;
pub mod types;
mod unnoted;

pub use accounts::{FoundKey, Search, SoughtKey};
pub use commitment::CommitStreamError;
pub use encryption::{Preference, Recipient, Via};
pub use error::EngineError;
pub use evidence::{BadEvidence, Evidence, EvidenceFile, Party, PublicKeys, Revocation, Terms};
pub use exchange::READS_FOR_DEADLINE;
pub use granting::{Imported, NotImported, Standing};
pub use message::{EngineMsg, Msg};
pub use node::{Node, Participant};
pub use policy::{OwnersOnly, Policy};
pub use purpose::Purpose;
pub use registry::{Registry, RegistryError};
pub use standings::TokenChanges;
pub use token_state::{TokenChange, TokenState};
pub use tokens::Found;
pub use types::{
    Backend, Capabilities, Commitment, EngineId, EngineName, IdParams, IdentityInfo, KeyInfo,
    NodeId, Origin,
};
