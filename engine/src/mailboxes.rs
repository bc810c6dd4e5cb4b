//! The mailboxes of those who take part in a node.
//!
//! What comes from outside the process has limits of its own, so that it leaves room for messages
//! and replies of this process, and one sender for those of the others. It counts until it is
//! received: also in a mailbox that nobody looks into.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use claviger_token::sync::lock;
use tokio::sync::Notify;

use crate::message::EngineMsg;
use crate::registry::RegistryError;
use crate::sender::Sender;

/// How many messages a participant's mailboxes hold together.
pub const MAILBOX_CAPACITY: usize = 1024;

/// How many of them may come from outside the process ([`Node::let_in`](crate::Node::let_in)).
pub const OUTSIDE_CAPACITY: usize = MAILBOX_CAPACITY / 2;

/// How many of these may be of one sender. Another node with all its names is one.
pub const SENDER_CAPACITY: usize = 64;

/// Why a message was not taken.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The mailbox that the message, or its reply, would go to holds too many.
    #[error("the mailbox is full")]
    MailboxFull,
    /// The message came from outside the process, and too many that did have not been received:
    /// of this sender ([`SENDER_CAPACITY`]), or of all ([`OUTSIDE_CAPACITY`]).
    #[error("the mailbox holds too many messages from outside")]
    Busy,
    /// Somebody else has the name.
    #[error("the name is taken")]
    NameTaken,
    /// The registry could not be read.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl SendError {
    /// A name for the variant that does not change, for programs; that of the registry's error,
    /// where it is one.
    pub fn code(&self) -> &'static str {
        match self {
            SendError::MailboxFull => "mailbox-full",
            SendError::Busy => "mailbox-busy",
            SendError::NameTaken => "name-taken",
            SendError::Registry(error) => error.code(),
        }
    }
}

#[derive(Default)]
pub(crate) struct Mailboxes {
    held: Mutex<Held>,
    pub(crate) arrived: Notify,
}

#[derive(Default)]
struct Held {
    /// The messages in each box that has any.
    boxes: HashMap<u64, VecDeque<Waiting>>,
    /// Messages in all boxes, and places reserved for more.
    count: usize,
    /// Those of them from outside, by sender.
    outside: HashMap<Sender, usize>,
}

struct Waiting {
    message: EngineMsg,
    /// Who sent it, if it came from outside.
    outside: Option<Sender>,
}

impl Mailboxes {
    /// Keeps a place for a message.
    ///
    /// # Errors
    /// [`SendError::MailboxFull`].
    pub(crate) fn reserve(&self) -> Result<Reservation<'_>, SendError> {
        self.reserve_for(None)
    }

    /// Keeps a place for a message that came from outside.
    ///
    /// # Errors
    /// [`SendError::MailboxFull`], [`SendError::Busy`].
    pub(crate) fn reserve_for_outside(&self, sender: Sender) -> Result<Reservation<'_>, SendError> {
        self.reserve_for(Some(sender))
    }

    fn reserve_for(&self, outside: Option<Sender>) -> Result<Reservation<'_>, SendError> {
        lock(&self.held).take_place(outside.as_ref())?;
        Ok(Reservation {
            mailboxes: self,
            outside,
            taken: false,
        })
    }

    /// The next message in a mailbox, if there is one.
    pub(crate) fn next(&self, mailbox: u64) -> Option<EngineMsg> {
        let mut held = lock(&self.held);
        let messages = held.boxes.get_mut(&mailbox)?;
        let next = messages.pop_front();
        // Senders choose the numbers: empty boxes would add up.
        if messages.is_empty() {
            held.boxes.remove(&mailbox);
        }
        let Waiting { message, outside } = next?;
        held.free_place(outside.as_ref());
        Some(message)
    }
}

impl Held {
    fn take_place(&mut self, outside: Option<&Sender>) -> Result<(), SendError> {
        if self.count >= MAILBOX_CAPACITY {
            return Err(SendError::MailboxFull);
        }
        if let Some(sender) = outside {
            let of_all: usize = self.outside.values().sum();
            let its = self.outside.get(sender).copied().unwrap_or_default();
            if of_all >= OUTSIDE_CAPACITY || its >= SENDER_CAPACITY {
                return Err(SendError::Busy);
            }
            self.outside.insert(sender.clone(), its + 1);
        }
        self.count += 1;
        Ok(())
    }

    fn free_place(&mut self, outside: Option<&Sender>) {
        self.count -= 1;
        let Some(sender) = outside else {
            return;
        };
        if let Some(its) = self.outside.get_mut(sender) {
            *its -= 1;
            if *its == 0 {
                self.outside.remove(sender);
            }
        }
    }
}

/// A place for one message, kept free while its reply is being made.
pub(crate) struct Reservation<'a> {
    mailboxes: &'a Mailboxes,
    outside: Option<Sender>,
    taken: bool,
}

impl Reservation<'_> {
    pub(crate) fn put(mut self, mailbox: u64, message: EngineMsg) {
        self.taken = true;
        let waiting = Waiting {
            message,
            outside: self.outside.take(),
        };
        let mut held = lock(&self.mailboxes.held);
        held.boxes.entry(mailbox).or_default().push_back(waiting);
        drop(held);
        self.mailboxes.arrived.notify_waiters();
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.taken {
            lock(&self.mailboxes.held).free_place(self.outside.as_ref());
        }
    }
}
