//! Who counts as one sender, where each sender has a limit.

use crate::{EngineId, EngineName, NodeId};

/// One sender, whatever it calls itself: another node can make up as many names as it likes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Sender {
    /// One on this node, by its name.
    Here(EngineName),
    /// Another node, with all its names.
    Node(NodeId),
}

impl From<&EngineId> for Sender {
    fn from(id: &EngineId) -> Self {
        match &id.node {
            Some(node) => Sender::Node(node.clone()),
            None => Sender::Here(EngineName::clone(&id.name)),
        }
    }
}
