//! Those who take part in a node, and their mailboxes.

use std::sync::Arc;

use claviger_token::sync::write;

use super::Node;
use crate::inner::{ENCRYPTION, IDENTITY_MANAGEMENT, Inner, READS_FOR};
use crate::mailboxes::{Mailboxes, SendError};
use crate::message::EngineMsg;
use crate::{EngineId, EngineName};

/// One who takes part in a node: an id and its mailboxes. Dropping it leaves the node.
pub struct Participant {
    node: Arc<Inner>,
    id: EngineId,
    mailboxes: Arc<Mailboxes>,
}

impl Participant {
    /// The id that others send to, and under which its identity is entered.
    pub fn id(&self) -> &EngineId {
        &self.id
    }

    /// The next message in a mailbox; waits for one.
    pub async fn receive(&self, mailbox: u64) -> EngineMsg {
        loop {
            let arrived = self.mailboxes.arrived.notified();
            if let Some(message) = self.try_receive(mailbox) {
                return message;
            }
            arrived.await;
        }
    }

    /// The next message in a mailbox, if there is one.
    pub fn try_receive(&self, mailbox: u64) -> Option<EngineMsg> {
        self.mailboxes.next(mailbox)
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        write(&self.node.participants).remove(&self.id.name);
    }
}

impl Node {
    /// Takes part in the node under `name`: messages to it come to the result's mailboxes.
    ///
    /// # Errors
    /// [`SendError::NameTaken`] where an engine or another participant has the name.
    pub fn attach(&self, name: impl Into<EngineName>) -> Result<Participant, SendError> {
        let name = name.into();
        let is_engine = [IDENTITY_MANAGEMENT, ENCRYPTION, READS_FOR].contains(&&*name);
        if is_engine || self.0.registry.engine(&name)?.is_some() {
            return Err(SendError::NameTaken);
        }
        let mut participants = write(&self.0.participants);
        if participants.contains_key(&name) {
            return Err(SendError::NameTaken);
        }
        let mailboxes = Arc::new(Mailboxes::default());
        participants.insert(name.clone(), Arc::clone(&mailboxes));
        Ok(Participant {
            node: Arc::clone(&self.0),
            id: EngineId::local(name),
            mailboxes,
        })
    }
}
