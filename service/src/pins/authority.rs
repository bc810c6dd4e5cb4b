//! Who may have what PINs used.

use claviger_engine::policy::{Permission, Subject};
use claviger_engine::{EngineError, EngineId, Node, Policy};
use claviger_token::TokenId;

use crate::Caller;

/// Judges callers, for a [`Keeper`](super::Keeper).
pub trait Authority: Send + Sync {
    /// Whether the caller may unlock tokens for others, and lock all: the daemon's own user, and
    /// root.
    fn is_operator(&self, caller: &Caller) -> bool;

    /// Whether a PIN that the daemon has serves a request of the caller, which uses a key of `owner`
    /// and no other one.
    fn may_use_login(&self, caller: &Caller, owner: Option<&EngineId>, token: &TokenId) -> bool;

    /// The node as the caller sees it. All views of one caller share their logins.
    fn view(&self, caller: &Caller) -> Node;
}

/// The daemon itself: what it wants for itself was judged before.
pub(super) struct TheDaemon;

impl Policy for TheDaemon {
    fn check(&self, _: &EngineId, _: Permission<'_>) -> Result<(), EngineError> {
        Ok(())
    }

    fn subject(&self) -> Option<Subject> {
        Some(Subject {
            name: "the daemon".into(),
            uid: rustix::process::getuid().as_raw(),
        })
    }
}
