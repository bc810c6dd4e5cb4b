//! One request on one connection, from its first frame to the last of its answer.

use std::cell::Cell;
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::call::Call;
use super::connection::{Connection, Ended, Unsent, Until};
use crate::answer::{Answer, Step, unexpected};
use crate::error::Error;
use crate::frame::CHUNK;
use crate::pieces::{Ahead, Pieces};
use crate::retry::{Failed, milliseconds};
use crate::wire::{Frame, PinAnswer, PinRequest, frame::Content};

/// How long an answer is waited for after the deadline or a cancellation: the daemon answers these
/// requests too, and says what became of them.
const GRACE: Duration = Duration::from_secs(1);

/// Where the data of a request comes from.
pub(super) enum Data<'a> {
    /// It is in the first frame.
    Inline,
    /// It follows.
    Bytes(Pieces<'a>),
    /// It is read. What was read is gone, so the request is not made again after that.
    Stream(Ahead, &'a mut dyn Read),
}

/// Makes a request and waits for its answer.
pub(super) fn exchange(
    connection: &Arc<Connection>,
    content: Content,
    mut data: Data<'_>,
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
    exchange.finish(&mut data)
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

    /// Waits for the answer, and sends data when it is asked for.
    fn finish(&self, data: &mut Data<'_>) -> Result<Answer, Failed> {
        let mut answer = Answer::new(self.call.longest_reply);
        let mut is_whole = matches!(data, Data::Inline);
        loop {
            let content = match self.connection.wait(self.id, || self.patience()) {
                Ok(content) => content,
                Err(ended) => return Err(self.ended(ended, is_whole, data)),
            };
            match content {
                Content::Chunk(_) if answer.is_empty() && !is_whole => {
                    is_whole = self.feed(data)?;
                }
                content => {
                    if let Step::Done = self.take(content, &mut answer)? {
                        return Ok(answer);
                    }
                }
            }
        }
    }

    fn ended(&self, ended: Ended, is_whole: bool, data: &Data<'_>) -> Failed {
        match ended {
            Ended::Lost(why) if is_whole => Failed::Finally(Error::Lost { why }),
            // Not all of it was sent, so it was not carried out.
            Ended::Lost(why) => again(Error::Gone { why }, data),
            Ended::Draining(why) => again(Error::Gone { why }, data),
            Ended::Late if self.cancelled.get().is_some() => Failed::Finally(Error::Cancelled),
            Ended::Late => {
                self.connection.cancel(self.id);
                Failed::Finally(Error::Deadline)
            }
        }
    }

    /// Sends the next piece of the data; whether it is the last one.
    fn feed(&self, data: &mut Data<'_>) -> Result<bool, Failed> {
        let chunk = match data {
            Data::Inline => return Err(unexpected().into()),
            Data::Bytes(pieces) => pieces.next(),
            Data::Stream(ahead, rest) => match read_chunk(*rest) {
                Ok(following) => ahead.push(following),
                Err(e) => {
                    self.connection.cancel(self.id);
                    return Err(Failed::Finally(Error::Input(e)));
                }
            },
        };
        let last = chunk.last;
        let sent = self.send(&Frame::new(self.id, Content::Chunk(chunk)));
        sent.map_err(|error| again(error, data))?;
        Ok(last)
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

/// It may be made again, unless what was read for it is gone.
fn again(error: Error, data: &Data<'_>) -> Failed {
    match data {
        Data::Stream(..) => Failed::Finally(error),
        _ => error.into(),
    }
}

/// The next bytes of a reader, as many as go into one chunk; none at its end.
pub(super) fn read_chunk(reader: &mut dyn Read) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut chunk = Zeroizing::new(Vec::with_capacity(CHUNK));
    reader.take(CHUNK as u64).read_to_end(&mut chunk)?;
    Ok(chunk)
}
