//! One request on one connection, from its first frame to the last of its answer.

use std::cell::Cell;
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::call::Call;
use super::connection::{Connection, Ended, Unsent, Until};
use crate::answer::{Answer, Step};
use crate::error::Error;
use crate::frame::CHUNK;
use crate::retry::{Failed, milliseconds};
use crate::wire::{Chunk, Frame, PinAnswer, PinRequest, frame::Content};

/// How long an answer is waited for after the deadline or a cancellation: the daemon answers these
/// requests too, and says what became of them.
const GRACE: Duration = Duration::from_secs(1);

/// Where the data of a request comes from.
pub(super) enum Data<'a> {
    /// It is in the first frame.
    Inline,
    /// It follows.
    Bytes(&'a [u8]),
    /// Its beginning was read; the rest follows.
    Stream(&'a [u8], &'a mut dyn Read),
}

/// Makes a request and waits for its answer.
pub(super) fn exchange(
    connection: &Arc<Connection>,
    content: Content,
    data: Data<'_>,
    call: &Call<'_>,
    until: Option<Instant>,
) -> Result<Answer, Failed> {
    let exchange = Exchange {
        connection,
        id: connection.enter(),
        call,
        until,
        cancelled: Cell::new(None),
    };
    if let Some(cancel) = call.cancel
        && cancel.aim(connection, exchange.id)
    {
        return Err(Failed::Finally(Error::Cancelled));
    }
    exchange.begin(content)?;
    let mut answer = Answer::new(call.longest_reply);
    let is_done = match data {
        Data::Inline => false,
        Data::Bytes(bytes) => exchange.upload(bytes, &mut answer)?,
        Data::Stream(beginning, rest) => exchange.stream(beginning, rest, &mut answer)?,
    };
    match is_done {
        true => Ok(answer),
        false => exchange.finish(answer),
    }
}

struct Exchange<'a> {
    connection: &'a Arc<Connection>,
    id: u64,
    call: &'a Call<'a>,
    until: Option<Instant>,
    /// When it was seen that the request is cancelled.
    cancelled: Cell<Option<Instant>>,
}

impl Exchange<'_> {
    fn begin(&self, content: Content) -> Result<(), Failed> {
        let frame = Frame {
            id: self.id,
            deadline_ms: milliseconds(self.until),
            content: Some(content),
        };
        Ok(self.send(&frame)?)
    }

    fn send(&self, frame: &Frame) -> Result<(), Error> {
        let sent = self.connection.send(frame, self.until);
        sent.map_err(|unsent| match unsent {
            Unsent::Late => Error::Deadline,
            Unsent::Lost(why) => Error::Gone { why },
            Unsent::Frame(error) => error.into(),
        })
    }

    /// Sends the data in chunks; whether the answer is complete before they are.
    fn upload(&self, bytes: &[u8], answer: &mut Answer) -> Result<bool, Failed> {
        let count = bytes.len().div_ceil(CHUNK);
        for (number, chunk) in bytes.chunks(CHUNK).enumerate() {
            if self.catch_up(answer)? {
                return Ok(true);
            }
            self.chunk(chunk.to_vec(), number + 1 == count)?;
        }
        Ok(false)
    }

    /// Sends what a reader gives. What was read is gone, so this is not begun again.
    fn stream(
        &self,
        beginning: &[u8],
        rest: &mut dyn Read,
        answer: &mut Answer,
    ) -> Result<bool, Failed> {
        let mut next = Zeroizing::new(beginning.to_vec());
        loop {
            if self.catch_up(answer).map_err(Failed::finally)? {
                return Ok(true);
            }
            let following = read_chunk(rest).map_err(|e| {
                self.connection.cancel(self.id);
                Failed::Finally(Error::Input(e))
            })?;
            let last = following.is_empty();
            let chunk = std::mem::replace(&mut next, following).to_vec();
            self.chunk(chunk, last).map_err(Failed::finally)?;
            if last {
                return Ok(false);
            }
        }
    }

    fn chunk(&self, data: Vec<u8>, last: bool) -> Result<(), Failed> {
        if self.until.is_some_and(|until| Instant::now() >= until) {
            self.connection.cancel(self.id);
            return Err(Failed::Finally(Error::Deadline));
        }
        let chunk = Content::Chunk(Chunk { data, last });
        Ok(self.send(&Frame::new(self.id, chunk))?)
    }

    /// Takes what has come, without waiting for more: a refusal, a PIN request.
    fn catch_up(&self, answer: &mut Answer) -> Result<bool, Failed> {
        loop {
            match self.connection.poll(self.id) {
                Ok(None) => return Ok(false),
                Ok(Some(content)) => {
                    if let Step::Done = self.take(content, answer)? {
                        return Ok(true);
                    }
                }
                // Not all of the request was sent, so it was not carried out.
                Err(Ended::Lost(why)) => return Err(Failed::NotBegun(Error::Gone { why })),
                Err(Ended::Late) => return Err(Failed::Finally(Error::Deadline)),
            }
        }
    }

    fn finish(&self, mut answer: Answer) -> Result<Answer, Failed> {
        loop {
            let content = match self.connection.wait(self.id, || self.patience()) {
                Ok(content) => content,
                Err(Ended::Lost(why)) => return Err(Failed::Finally(Error::Lost { why })),
                Err(Ended::Late) if self.cancelled.get().is_some() => {
                    return Err(Failed::Finally(Error::Cancelled));
                }
                Err(Ended::Late) => {
                    self.connection.cancel(self.id);
                    return Err(Failed::Finally(Error::Deadline));
                }
            };
            if let Step::Done = self.take(content, &mut answer)? {
                return Ok(answer);
            }
        }
    }

    fn take(&self, content: Content, answer: &mut Answer) -> Result<Step, Failed> {
        match content {
            Content::Event(event) => {
                self.call.listener.event(&event);
                Ok(Step::More)
            }
            Content::PinRequest(request) => {
                self.answer_pin(&request)?;
                Ok(Step::More)
            }
            content => Ok(answer.add(content).inspect_err(|error| {
                if let Error::ReplyTooLong { .. } = error {
                    self.connection.cancel(self.id);
                }
            })?),
        }
    }

    fn answer_pin(&self, request: &PinRequest) -> Result<(), Failed> {
        let pin = self.call.listener.pin(request);
        let pin = pin.map(|mut pin| std::mem::take(&mut *pin));
        let answer = Frame::new(self.id, Content::PinAnswer(PinAnswer { pin }));
        // The request has begun: whatever happens now, it is not made again.
        self.send(&answer).map_err(|error| {
            Failed::Finally(match error {
                Error::Gone { why } => Error::Lost { why },
                error => error,
            })
        })
    }

    fn patience(&self) -> Until {
        let is_cancelled = self.call.cancel.is_some_and(|cancel| cancel.is_cancelled());
        if is_cancelled && self.cancelled.get().is_none() {
            self.cancelled.set(Some(Instant::now()));
        }
        let times = [self.until, self.cancelled.get()];
        let first = times.into_iter().flatten().min();
        Until {
            time: first.and_then(|time| time.checked_add(GRACE)),
            can_change: self.call.cancel.is_some(),
        }
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        if let Some(cancel) = self.call.cancel {
            cancel.aim_nowhere();
        }
        self.connection.leave(self.id);
    }
}

/// The next bytes of a reader, as many as go into one chunk; none at its end.
pub(super) fn read_chunk(reader: &mut dyn Read) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut chunk = Zeroizing::new(Vec::with_capacity(CHUNK));
    reader.take(CHUNK as u64).read_to_end(&mut chunk)?;
    Ok(chunk)
}
