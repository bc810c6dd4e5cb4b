//! The node: routing, mailboxes, and the calls of a program.
//!
//! | module | idea |
//! | --- | --- |
//! | `abandoned` | resolving what was abandoned on a token that a request has used |
//! | `builder` | what a node is made of |
//! | `identities` | making, connecting and deleting identities |
//! | `keys` | using keys |
//! | `reading` | tokens, and how they stand |
//! | `unlocking` | logging in for others, and logging out |
//! | `mailbox` | those who take part, and their mailboxes |
//! | `post` | messages: each becomes one call, and its result the reply |

use std::sync::Arc;

use claviger_token::Error;

use crate::inner::Inner;
use crate::policy::Policy;
use crate::registry::Registry;
use crate::{EngineError, EngineId};

mod abandoned;
mod builder;
mod identities;
mod keys;
mod mailbox;
mod post;
mod reading;
mod unlocking;

pub use self::builder::NodeBuilder;
pub(crate) use self::keys::{Done, Work, no_such};
pub use self::mailbox::Participant;
pub use self::unlocking::ClosingToken;
pub use crate::inner::{ENCRYPTION, IDENTITY_MANAGEMENT, READS_FOR};
pub use crate::mailboxes::{MAILBOX_CAPACITY, OUTSIDE_CAPACITY, SENDER_CAPACITY, SendError};
pub use crate::types::Engines;

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

impl Node {
    /// The same node as one caller sees it: the same registry, tokens and engines, but each request
    /// asks `policy`. It is to be made once for each connection, or kept.
    ///
    /// A PIN that a request through the view [carries](claviger_token::Call::using) makes a login
    /// of the view's, whatever its `who` is: another view uses it only if its policy allows that
    /// ([`Permission::UseLogin`](crate::policy::Permission::UseLogin)). Views whose policies judge
    /// the same [`Subject`](crate::policy::Subject) share logins, and an identity that is entered
    /// through one is noted as made by its uid.
    ///
    /// Through a view `who` is the identity that a request is about, not who asks; whom the policy
    /// denies something does not learn whether it exists.
    #[must_use]
    pub fn seen_by(&self, policy: Arc<dyn Policy>) -> Node {
        Node(Arc::new(self.0.seen_by(policy)))
    }

    /// The identities.
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// The id of this node's Identity Management engine.
    pub fn identity_management(&self) -> EngineId {
        EngineId::local(IDENTITY_MANAGEMENT)
    }
}

/// The work was dropped: its thread panicked, or the runtime ends.
fn interrupted() -> EngineError {
    EngineError::Token(Error::Cancelled)
}
