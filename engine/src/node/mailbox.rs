//! Those who take part in a node, and their mailboxes.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use claviger_token::sync::{lock, read, write};
use tokio::sync::Notify;

use super::{ENCRYPTION, IDENTITY_MANAGEMENT, Inner, Node, READS_FOR};
use crate::message::EngineMsg;
use crate::registry::RegistryError;
use crate::{EngineId, EngineName};

/// How many messages a participant's mailboxes hold together.
pub const MAILBOX_CAPACITY: usize = 1024;

/// Why a message was not taken.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The mailbox that the message, or its reply, would go to holds too many.
    #[error("the mailbox is full")]
    MailboxFull,
    /// Somebody else has the name.
    #[error("the name is taken")]
    NameTaken,
    /// The registry could not be read.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

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
        let mut held = lock(&self.mailboxes.held);
        let message = held.boxes.get_mut(&mailbox)?.pop_front()?;
        held.count -= 1;
        Some(message)
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        write(&self.node.participants).remove(&self.id.name);
    }
}

#[derive(Default)]
pub(super) struct Mailboxes {
    held: Mutex<Held>,
    arrived: Notify,
}

#[derive(Default)]
struct Held {
    boxes: HashMap<u64, VecDeque<EngineMsg>>,
    /// Messages in all boxes, and places reserved for more.
    count: usize,
}

impl Mailboxes {
    pub(super) fn reserve(&self) -> Result<Place<'_>, SendError> {
        let mut held = lock(&self.held);
        if held.count >= MAILBOX_CAPACITY {
            return Err(SendError::MailboxFull);
        }
        held.count += 1;
        Ok(Place {
            mailboxes: self,
            taken: false,
        })
    }
}

/// A place for one message, kept free while its reply is being made.
pub(super) struct Place<'a> {
    mailboxes: &'a Mailboxes,
    taken: bool,
}

impl Place<'_> {
    pub(super) fn put(mut self, mailbox: u64, message: EngineMsg) {
        self.taken = true;
        lock(&self.mailboxes.held)
            .boxes
            .entry(mailbox)
            .or_default()
            .push_back(message);
        self.mailboxes.arrived.notify_waiters();
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.taken {
            lock(&self.mailboxes.held).count -= 1;
        }
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

impl Inner {
    pub(super) fn participant(&self, id: &EngineId) -> Option<Arc<Mailboxes>> {
        if id.node.is_some() {
            return None;
        }
        read(&self.participants).get(&id.name).cloned()
    }

    /// Puts a message into the mailbox of a participant; one for nobody is dropped.
    pub(crate) fn deliver(&self, message: EngineMsg) -> Result<(), SendError> {
        if let Some(mailboxes) = self.participant(&message.target) {
            let place = mailboxes.reserve()?;
            place.put(message.mailbox.unwrap_or(0), message);
        }
        Ok(())
    }
}
