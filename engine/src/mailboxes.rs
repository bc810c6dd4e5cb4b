//! The mailboxes of those who take part in a node.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use claviger_token::sync::lock;
use tokio::sync::Notify;

use crate::message::EngineMsg;
use crate::registry::RegistryError;

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

#[derive(Default)]
pub(crate) struct Mailboxes {
    pub(crate) held: Mutex<Held>,
    pub(crate) arrived: Notify,
}

#[derive(Default)]
pub(crate) struct Held {
    pub(crate) boxes: HashMap<u64, VecDeque<EngineMsg>>,
    /// Messages in all boxes, and places reserved for more.
    pub(crate) count: usize,
}

impl Mailboxes {
    pub(crate) fn reserve(&self) -> Result<Reservation<'_>, SendError> {
        let mut held = lock(&self.held);
        if held.count >= MAILBOX_CAPACITY {
            return Err(SendError::MailboxFull);
        }
        held.count += 1;
        Ok(Reservation {
            mailboxes: self,
            taken: false,
        })
    }
}

/// A place for one message, kept free while its reply is being made.
pub(crate) struct Reservation<'a> {
    mailboxes: &'a Mailboxes,
    taken: bool,
}

impl Reservation<'_> {
    pub(crate) fn put(mut self, mailbox: u64, message: EngineMsg) {
        self.taken = true;
        lock(&self.mailboxes.held)
            .boxes
            .entry(mailbox)
            .or_default()
            .push_back(message);
        self.mailboxes.arrived.notify_waiters();
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.taken {
            lock(&self.mailboxes.held).count -= 1;
        }
    }
}
