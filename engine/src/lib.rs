//! Identities whose keys live on hardware tokens: the node, its engines, their registry.
//!
//! ```
//! use claviger_engine::message::RequestGenerateIdentity;
//! use claviger_engine::{Backend, Capabilities, EngineId, IdParams, Node, Registry};
//! use claviger_memory::MemoryDriver;
//! use claviger_token::Call;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let node = Node::builder(Registry::in_memory()?)
//!     .driver(MemoryDriver::new())
//!     .build();
//! let (alice, call) = (EngineId::local("alice"), Call::unlimited());
//! let request = RequestGenerateIdentity {
//!     backend: Backend::from("memory:"),
//!     params: IdParams::Ed25519,
//!     capabilities: Capabilities::Commit,
//! };
//! let engines = node.generate(&alice, request, &call).await?;
//! let engine = engines.commitment_engine.ok_or("alice cannot sign")?;
//! let signature = node.commit(&alice, &engine, b"hello".to_vec(), &call).await?;
//! # let _ = signature;
//! # Ok(())
//! # })
//! # }
//! ```
//!
//! A [`Node`] routes messages between engines. *Identity Management* generates, connects and
//! deletes identities. For each identity it spawns a *Commitment* engine, which signs, and a
//! *Decryption* engine, which decrypts. The *Encryption* engine encrypts to identities and
//! contacts, and, on request, to those who provably read for them by the *Reads For* engine. Keys
//! are made on tokens and stay there. The node reaches tokens through the drivers that it is
//! given, and knows no driver itself.
//!
//! | module | idea |
//! | --- | --- |
//! | [`types`] | the vocabulary: engine ids, backends, capabilities, identities |
//! | [`message`] | messages between engines |
//! | [`node`], `inner`, `mailboxes` | routing, mailboxes, and the calls of a program |
//! | `identity_management` | decides what each message to it leads to, as a pure function |
//! | `accounts` | finds keys of a lost registry on a token that derives its keys |
//! | `lifecycle`, `adoption` | does it, between the token and the registry |
//! | [`purpose`] | purposes of signatures, and the bytes that are signed |
//! | `commitment` | signs, also messages that are longer than memory |
//! | `key_engine`, `routed`, `wants` | the Commitment and Decryption engines; decryptors that block; asking the policy again |
//! | [`opener`] | finds who can open a file, and with whose PIN |
//! | [`encryption`] | the Encryption engine: recipients and pending requests; pure |
//! | [`reads_for`] | the Reads For engine: the graph of evidence, in memory |
//! | [`evidence`] | signed evidence, and its text form |
//! | `exchange`, `exchange_state` | carries out what these two decide |
//! | `granting` | grants, revokes and imports evidence |
//! | [`registry`] | the identities on disk, with write-ahead intents; rejected PINs |
//! | `pin_note` | the record, on the disk, that a PIN is being sent |
//! | [`policy`] | authorisation |
//! | [`token_state`] | states of a token, transitions, and what a request gets in each |
//! | `standings` | the states of all tokens |
//! | `watching`, `waiting` | subscribers to these states; waiting for a token that is away |
//! | `tokens`, `lane`, `waiting_threads` | open tokens, the threads that serve them, and those that wait for them |
//! | `asking` | asks a person for a PIN before the turn at the token is taken |
//! | `opening`, `whose_pin` | opens tokens apart from everything else; whose PIN that takes |
//! | `due` | when it is looked whether something was abandoned on a token |
//! | `shares` | what each caller may have waiting for a token |
//! | `sender` | who counts as one sender, where each has a limit |
//! | `turns` | waits no longer than a request lasts; turns at identities and tokens |
#![forbid(unsafe_code)]

mod accepted;
mod accounts;
mod adoption;
mod asking;
mod closings;
mod commitment;
mod due;
pub mod encryption;
pub mod error;
pub mod evidence;
mod exchange;
mod exchange_state;
mod granting;
pub mod grants;
mod identity_management;
mod inner;
mod key_engine;
mod lane;
mod lease;
mod lifecycle;
mod mailboxes;
mod management;
pub mod message;
pub mod node;
pub mod opener;
mod opening;
mod pacer;
mod pin_note;
pub mod policy;
pub mod purpose;
pub mod reads_for;
pub mod registry;
mod resolving;
mod routed;
mod sender;
mod shares;
mod standings;
pub mod token_state;
mod tokens;
mod trial;
mod turns;
pub mod types;
mod verdicts;
mod waiting;
mod waiting_threads;
mod wants;
mod watching;
mod whose_pin;

pub use accounts::{FoundKey, Search, SoughtKey};
pub use commitment::CommitStreamError;
pub use encryption::{Preference, Recipient, Via};
pub use error::EngineError;
pub use evidence::{BadEvidence, Evidence, EvidenceFile, Party, PublicKeys, Revocation, Terms};
pub use exchange_state::READS_FOR_DEADLINE;
pub use granting::{Imported, NotImported, Standing};
pub use message::{EngineMsg, Msg};
pub use node::{Node, Participant};
pub use policy::{OwnersOnly, Policy};
pub use purpose::Purpose;
pub use registry::{Registry, RegistryError};
pub use token_state::{TokenChange, TokenState};
pub use tokens::FoundTokens;
pub use types::{
    Backend, Capabilities, Commitment, EngineId, EngineName, Engines, IdParams, IdentityInfo,
    KeyInfo, NodeId, Origin,
};
pub use watching::TokenChanges;
