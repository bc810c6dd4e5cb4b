//! What comes back for a request, from its first frame to its last.

use prost::Message;
use zeroize::Zeroizing;

use crate::error::{Error, Refusal};
use crate::wire::{DaemonReply, EngineMsg, daemon_reply::Reply, engine_msg::Msg, frame::Content};

/// All of the answer to a request.
pub struct Answer {
    frames: Vec<Content>,
    data: Zeroizing<Vec<u8>>,
    limit: usize,
    room: usize,
}

/// What a frame meant for its request.
pub(crate) enum Step {
    /// More of the answer comes.
    More,
    /// The answer is complete.
    Done,
}

impl Answer {
    /// Nothing yet, and at most so many bytes.
    pub(crate) fn new(limit: usize) -> Answer {
        Answer {
            frames: Vec::with_capacity(1),
            data: Zeroizing::default(),
            limit,
            room: limit,
        }
    }

    /// Whether nothing has come yet. A chunk asks for data then.
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Takes a frame that is neither an event nor a PIN request.
    pub(crate) fn add(&mut self, content: Content) -> Result<Step, Error> {
        let is_first = self.frames.is_empty();
        match content {
            Content::Error(error) => Err(Refusal::from(error).into()),
            Content::Chunk(chunk) if !is_first => {
                self.take_room(chunk.data.len())?;
                grow(&mut self.data, chunk.data.len());
                self.data.extend_from_slice(&chunk.data);
                Ok(match chunk.last {
                    true => Step::Done,
                    false => Step::More,
                })
            }
            Content::Engine(_) | Content::DaemonReply(_) => {
                let goes_on = goes_on(&content);
                if goes_on || !is_first {
                    self.take_room(length(&content))?;
                }
                self.frames.push(content);
                Ok(match goes_on {
                    true => Step::More,
                    false => Step::Done,
                })
            }
            _ => Err(unexpected()),
        }
    }

    fn take_room(&mut self, length: usize) -> Result<(), Error> {
        let limit = self.limit;
        let left = self.room.checked_sub(length);
        self.room = left.ok_or(Error::ReplyTooLong { limit })?;
        Ok(())
    }

    /// The reply of an engine, and the data that followed.
    pub(crate) fn engine(mut self) -> Result<(EngineMsg, Zeroizing<Vec<u8>>), Error> {
        match (self.frames.pop(), self.frames.is_empty()) {
            (Some(Content::Engine(message)), true) => Ok((message, self.data)),
            _ => Err(unexpected()),
        }
    }

    /// The replies of an engine that needed several.
    pub(crate) fn engines(self) -> impl Iterator<Item = Result<Msg, Error>> {
        self.frames.into_iter().map(|content| match content {
            Content::Engine(EngineMsg { msg: Some(msg), .. }) => Ok(msg),
            _ => Err(unexpected()),
        })
    }

    /// The replies of the daemon itself, and the data that followed.
    pub(crate) fn daemon(
        self,
    ) -> (
        impl Iterator<Item = Result<Reply, Error>>,
        Zeroizing<Vec<u8>>,
    ) {
        let replies = self.frames.into_iter().map(|content| match content {
            Content::DaemonReply(DaemonReply { reply: Some(reply) }) => Ok(reply),
            _ => Err(unexpected()),
        });
        (replies, self.data)
    }
}

/// The daemon answered something else.
pub(crate) fn unexpected() -> Error {
    Error::Protocol {
        what: "the reply does not answer the request",
    }
}

/// Whether more frames belong to the reply.
fn goes_on(content: &Content) -> bool {
    match content {
        Content::Engine(message) => match &message.msg {
            Some(Msg::ReplyDecryption(reply)) => reply.data_follows,
            Some(Msg::ReplyEncrypt(reply)) => reply.data_follows,
            Some(Msg::ReplyReadsForEvidence(reply)) => reply.more,
            _ => false,
        },
        Content::DaemonReply(reply) => match &reply.reply {
            Some(Reply::Identities(reply)) => reply.more,
            Some(Reply::Grants(reply)) => reply.more,
            Some(Reply::Tokens(reply)) => reply.data_follows,
            _ => false,
        },
        _ => false,
    }
}

fn length(content: &Content) -> usize {
    match content {
        Content::Engine(message) => message.encoded_len(),
        Content::DaemonReply(reply) => reply.encoded_len(),
        _ => 0,
    }
}

/// Room for so many bytes more; no copy of a secret stays behind.
fn grow(data: &mut Zeroizing<Vec<u8>>, more: usize) {
    if data.capacity() - data.len() < more {
        let capacity = (data.len() + more).max(2 * data.capacity());
        let mut larger = Zeroizing::new(Vec::with_capacity(capacity));
        larger.extend_from_slice(data);
        *data = larger;
    }
}
