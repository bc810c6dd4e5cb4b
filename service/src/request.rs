//! One request of a connection, and what it asks for.

use std::sync::Arc;

use claviger_client::wire::{self, engine_msg::Msg as Wire};
use claviger_engine::EngineId;
use claviger_engine::types::owner_by_name;
use claviger_token::{Call, KeyUse};

use crate::outbox::Line;
use crate::session::Session;

/// One request of a connection.
pub(crate) struct Request {
    pub(crate) session: Arc<Session>,
    pub(crate) line: Line,
    pub(crate) call: Call,
}

/// What a connection asks for.
pub(crate) enum Asked {
    Engine(wire::EngineMsg),
    Daemon(wire::DaemonRequest),
}

impl Asked {
    /// The identity whose key it uses, as the name of the engine says: another key is not used for
    /// it.
    pub(crate) fn owner(&self) -> Option<EngineId> {
        let Asked::Engine(message) = self else {
            return None;
        };
        let usage = match &message.msg {
            Some(Wire::RequestCommitment(_)) => KeyUse::Sign,
            Some(Wire::RequestDecryption(_)) => KeyUse::Decrypt,
            _ => return None,
        };
        owner_by_name(usage, &message.target.as_ref()?.name)
    }

    /// The beginning of the data, if the rest comes in chunks.
    pub(crate) fn takes_data(&mut self) -> Option<Vec<u8>> {
        let Asked::Engine(message) = self else {
            return None;
        };
        let data = match &mut message.msg {
            _ if !message.data_follows => return None,
            Some(Wire::RequestCommitment(request)) => &mut request.data,
            Some(Wire::RequestDecryption(request)) => &mut request.data,
            Some(Wire::RequestEncrypt(request)) => &mut request.data,
            _ => return None,
        };
        Some(std::mem::take(data))
    }
}
