//! Speaks to a Claviger daemon: signs, decrypts and manages identities that it keeps.
//!
//! ```no_run
//! use claviger_client::Options;
//! use claviger_client::blocking::{Call, Client};
//! use claviger_client::request;
//!
//! let options = Options::own().ok_or("XDG_RUNTIME_DIR is not set")?;
//! let client = Client::connect(options)?;
//! let engine = request::committer("alice");
//! let signature = client.commit(&engine, b"letter", &request::raw(), &Call::default())?;
//! println!("{}: {} bytes", signature.scheme, signature.bytes.len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Start the daemon with `claviger serve`. It knows its callers by their user and their socket, and
//! lets each use what it was granted.
//!
//! | module | idea |
//! | --- | --- |
//! | [`blocking`] | the client for programs without an async runtime |
//! | `asynchronous` | the client for programs that run tokio (feature `tokio`) |
//! | [`request`], [`daemon`], [`reads_for`] | the requests, each with the type of its answer |
//! | [`device`] | tokens of its own that a program attaches to the daemon |
//! | [`peer`] | where daemons listen, and who serves a socket |
//! | [`frame`] | bytes to messages, and back |
//! | [`wire`] | the messages |
//!
//! Data that is longer than a frame goes in chunks by itself. To decrypt long files, open their
//! header only ([`Client::open_header`](blocking::Client::open_header)) and decrypt the rest here.
#![forbid(unsafe_code)]

mod answer;
#[cfg(feature = "tokio")]
pub mod asynchronous;
pub mod blocking;
pub mod daemon;
pub mod device;
mod error;
pub mod frame;
mod greeting;
mod options;
pub mod peer;
mod pieces;
pub mod reads_for;
pub mod request;
mod retry;
mod shape;
pub mod wire;

pub use answer::Answer;
pub use error::{Error, Refusal};
pub use options::Options;
