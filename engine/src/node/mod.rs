//! The node: routing, mailboxes, and the calls of a program.
//!
//! | module | idea |
//! | --- | --- |
//! | `builder` | what a node is made of |
//! | `identities` | making, connecting and deleting identities |
//! | `keys` | using keys |
//! | `reading` | tokens, and how they stand |
//! | `mailbox` | those who take part, and their mailboxes |
//! | `post` | messages: each becomes one call, and its result the reply |

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, RwLock};

use claviger_token::sync::write;
use claviger_token::{Call, Error};

use crate::exchange::Exchange;
use crate::key_engine::KeyEngine;
use crate::opening::Opened;
use crate::policy::Policy;
use crate::registry::Registry;
use crate::tokens::Tokens;
use crate::{EngineError, EngineId, EngineName};

mod builder;
mod identities;
mod keys;
mod mailbox;
mod post;
mod reading;

pub use self::builder::NodeBuilder;
pub use self::identities::Engines;
pub(crate) use self::identities::ManagementTurns;
pub(crate) use self::keys::{Done, Work, no_such};
pub use self::mailbox::{MAILBOX_CAPACITY, Participant, SendError};

/// The name of the Identity Management engine of every node.
pub const IDENTITY_MANAGEMENT: &str = "identity_management";

/// The name of the Encryption engine of every node.
pub const ENCRYPTION: &str = "encryption";

/// The name of the Reads For engine of every node.
pub const READS_FOR: &str = "reads_for";

/// A node: its engines, its registry and its tokens. Clones are the same node.
///
/// A program calls the methods named after the requests, which return a result; or it sends
/// messages with [`Node::send`] and finds the replies in the sender's mailbox. A message becomes
/// the same call.
///
/// Each request names who makes it, `who`, of whom the node's [`Policy`] is asked. The node
/// believes that: who makes requests on behalf of others states whom it has authenticated. What
/// the program wants for itself it asks for as [`EngineId::program`].
///
/// A node works within a tokio runtime that has its timers enabled.
#[derive(Clone)]
pub struct Node(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) registry: Registry,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) policy: Arc<dyn Policy>,
    pub(crate) exchange: Exchange,
    /// The engines that have been asked for, by name.
    engines: RwLock<HashMap<EngineName, Arc<KeyEngine>>>,
    participants: RwLock<HashMap<EngineName, Arc<mailbox::Mailboxes>>>,
    /// The keys of which it was said that they are not on their tokens any more.
    missed: Mutex<HashSet<i64>>,
    turns: ManagementTurns,
}

impl Node {
    /// The identities.
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// The id of this node's Identity Management engine.
    pub fn identity_management(&self) -> EngineId {
        EngineId::local(IDENTITY_MANAGEMENT)
    }
}

impl Inner {
    /// What is noted of a token that was opened under a name that earlier versions gave it is
    /// noted under its own from now on.
    pub(crate) fn rename(&self, opened: Opened, call: &Call) -> Result<Opened, EngineError> {
        let info = opened.0.token.info();
        for former in &info.formerly {
            if self.registry.knows_token(former)? && self.tokens.is_only_one(info, former, call) {
                self.registry.rename_token(former, &info.id)?;
                write(&self.engines).clear();
            }
        }
        Ok(opened)
    }
}

/// The work was dropped: its thread panicked, or the runtime ends.
fn interrupted() -> EngineError {
    EngineError::Token(Error::Cancelled)
}
