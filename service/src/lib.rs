//! The daemon: engines that stay, callers that are known and judged, and a log of who did what.
//!
//! A front-end builds a [`Service`] around its node, lets it [serve](Service::serve) the sockets
//! that it [binds](Listening::bind), and [drains](Service::drain) it in the end.
//!
//! | module | idea |
//! | --- | --- |
//! | `service`, `shared` | accepts connections, and ends; what they share |
//! | [`sockets`] | the sockets on which it listens |
//! | [`home_lock`] | one daemon for one home |
//! | [`policy`] | judges callers by what they made and what they are granted |
//! | [`audit`] | the log of who used which key |
//! | [`caller`] | who calls, as the kernel says |
//! | [`limits`] | what one caller may take |
//! | `connection` | one connection: frames in, answers out |
//! | `session` | what the requests of one connection share |
//! | `request`, `dispatch` | each request becomes one call of the node |
//! | `administration`, `certificates` | requests to the daemon itself |
//! | [`guest`] | callers that speak another protocol, for front-ends |
//! | `auditing`, [`audit`] | which requests use a key, and the log of it |
//! | `authority`, [`policy`] | who may do what |
//! | `attaching`, `devices`, `device_messages` | devices that programs attach |
//! | `convert`, `replies` | between the wire's messages and the engines' |
//! | `streams` | data that comes in chunks |
//! | `outbox`, [`asking`] | what the caller of a request is told and asked meanwhile |
//! | `confirming` | uses of keys that a person confirms |
//! | [`pins`] | PINs that it keeps, and where the PIN of a request comes from |
//! | [`settings`] | the table `[serve]` of the configuration |
//! | [`reload`] | what of it changes while the daemon serves |
//! | [`notify`] | tells the service manager how it is |
//! | `metered`, [`metrics`] | figures for Prometheus |
//! | `refusal` | what the daemon itself answers |
#![forbid(unsafe_code)]

mod administration;
pub mod asking;
mod attaching;
pub mod audit;
mod auditing;
mod authority;
pub mod caller;
mod certificates;
mod confirming;
mod connection;
mod convert;
mod device_messages;
mod devices;
mod dispatch;
pub mod guest;
pub mod home_lock;
pub mod limits;
mod metered;
pub mod metrics;
pub mod notify;
mod outbox;
pub mod pins;
pub mod policy;
mod refusal;
pub mod reload;
mod replies;
mod request;
mod service;
mod session;
pub mod settings;
mod shared;
pub mod sockets;
mod streams;

pub use asking::{AskPin, Confirm, SecretBytes, SecretKind};
pub use caller::Caller;
pub use guest::{FrontEnd, Guest, GuestError, GuestKey, Serving, ToBeSigned};
pub use home_lock::{HomeLock, HomeLockError};
pub use limits::Limits;
pub use pins::{Authority, Keeper, PinSettings};
pub use refusal::Refusal;
pub use service::{Service, ServiceBuilder};
pub use sockets::{Listening, SocketError};
