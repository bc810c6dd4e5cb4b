//! One request on one connection, from its first frame to the last of its answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use super::Call;
use super::connection::Connection;
use crate::answer::{Answer, Step, unexpected};
use crate::error::Error;
use crate::frame::CHUNK;
use crate::pieces::{Ahead, Pieces};
use crate::retry::{Failed, milliseconds};
use crate::wire::{Frame, PinAnswer, PinRequest, frame::Content};

/// How long an answer is waited for after the deadline: the daemon answers then, and says what
/// became of the request.
const GRACE: Duration = Duration::from_secs(1);

/// Where the data of a request comes from.
pub(super) enum Data<'a, R> {
    /// It is in the first frame.
    Inline,
    /// It follows.
    Bytes(Pieces<'a>),
    /// It is read. What was read is gone, so the request is not made again after that.
    Stream(Ahead, &'a mut R),
}

impl<R> Data<'_, R> {
    /// It may be made again, unless what was read for it is gone.
    fn again(&self, error: Error) -> Failed {
        match self {
            Data::Stream(..) => Failed::Finally(error),
            _ => error.into(),
        }
    }
}

/// Makes a request and waits for its answer.
pub(super) async fn exchange<R: AsyncRead + Unpin>(
    connection: &Arc<Connection>,
    content: Content,
    data: Data<'_, R>,
    call: &Call<'_>,
    until: Option<Instant>,
) -> Result<Answer, Failed> {
    let (id, replies) = connection.enter();
    let mut exchange = Exchange {
        connection,
        id,
        replies,
        call,
        is_answered: false,
        answer: Some(Answer::new(call.longest_reply)),
    };
    match until {
        None => exchange.run(content, data, None).await,
        Some(until) => {
            let patience = until + GRACE;
            let run = exchange.run(content, data, Some(until));
            let late = |_| Failed::Finally(Error::Deadline);
            timeout_at(patience, run).await.map_err(late)?
        }
    }
}

struct Exchange<'a> {
    connection: &'a Arc<Connection>,
    id: u64,
    replies: mpsc::Receiver<Content>,
    call: &'a Call<'a>,
    is_answered: bool,
    answer: Option<Answer>,
}

impl Exchange<'_> {
    async fn run<R: AsyncRead + Unpin>(
        &mut self,
        content: Content,
        mut data: Data<'_, R>,
        until: Option<Instant>,
    ) -> Result<Answer, Failed> {
        let frame = Frame {
            id: self.id,
            deadline_ms: milliseconds(until.map(Instant::into_std)),
            content: Some(content),
        };
        self.connection.send(&frame).await?;
        let mut is_whole = matches!(data, Data::Inline);
        while !self.is_answered {
            match self.replies.recv().await {
                Some(Content::Chunk(_)) if self.is_asked() && !is_whole => {
                    is_whole = self.feed(&mut data).await?;
                }
                Some(content) => self.take(content).await?,
                None => return Err(self.ended(is_whole, &data)),
            }
        }
        let answer = self.answer.take();
        Ok(answer.unwrap_or_else(|| Answer::new(0)))
    }

    /// Whether a chunk asks for data, since no reply has come.
    fn is_asked(&self) -> bool {
        self.answer.as_ref().is_some_and(Answer::is_empty)
    }

    fn ended<R>(&self, is_whole: bool, data: &Data<'_, R>) -> Failed {
        match self.connection.end() {
            (why, false) if is_whole => Failed::Finally(Error::Lost { why }),
            // Not all of it was sent, or the daemon did not begin: it was not carried out.
            (why, _) => data.again(Error::Gone { why }),
        }
    }

    /// Sends the next piece of the data; whether it is the last one.
    async fn feed<R: AsyncRead + Unpin>(&self, data: &mut Data<'_, R>) -> Result<bool, Failed> {
        let chunk = match data {
            Data::Inline => return Err(unexpected().into()),
            Data::Bytes(pieces) => pieces.next(),
            Data::Stream(ahead, rest) => {
                let following = read_chunk(*rest).await;
                ahead.push(following.map_err(|e| Failed::Finally(Error::Input(e)))?)
            }
        };
        let last = chunk.last;
        let chunk = Frame::new(self.id, Content::Chunk(chunk));
        let sent = self.connection.send(&chunk).await;
        sent.map_err(|error| data.again(error))?;
        Ok(last)
    }

    async fn take(&mut self, content: Content) -> Result<(), Failed> {
        match content {
            Content::Event(event) => self.call.listener.event(&event),
            Content::PinRequest(request) => self.answer_pin(&request).await?,
            content => {
                let is_refusal = matches!(content, Content::Error(_));
                let step = self.answer.as_mut().map(|answer| answer.add(content));
                self.is_answered = is_refusal || matches!(step, Some(Ok(Step::Done)));
                if let Some(Err(error)) = step {
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    async fn answer_pin(&self, request: &PinRequest) -> Result<(), Failed> {
        let pin = self.call.listener.pin(request).await;
        let pin = pin.map(|mut pin| std::mem::take(&mut *pin));
        let answer = Frame::new(self.id, Content::PinAnswer(PinAnswer { pin }));
        // The request has begun: whatever happens now, it is not made again.
        self.connection.send(&answer).await.map_err(|error| {
            Failed::Finally(match error {
                Error::Gone { why } => Error::Lost { why },
                error => error,
            })
        })
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        self.connection.leave(self.id, self.is_answered);
    }
}

/// The next bytes of a reader, as many as go into one chunk; none at its end.
pub(super) async fn read_chunk(
    reader: &mut (impl AsyncRead + Unpin),
) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut chunk = Zeroizing::new(Vec::with_capacity(CHUNK));
    reader.take(CHUNK as u64).read_to_end(&mut chunk).await?;
    Ok(chunk)
}
