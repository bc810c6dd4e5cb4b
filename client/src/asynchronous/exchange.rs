//! One request on one connection, from its first frame to the last of its answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use super::Call;
use super::connection::Connection;
use crate::answer::{Answer, Step};
use crate::error::Error;
use crate::frame::CHUNK;
use crate::retry::{Failed, milliseconds};
use crate::wire::{Chunk, Frame, PinAnswer, PinRequest, frame::Content};

/// How long an answer is waited for after the deadline: the daemon answers then, and says what
/// became of the request.
const GRACE: Duration = Duration::from_secs(1);

/// Where the data of a request comes from.
pub(super) enum Data<'a, R> {
    /// It is in the first frame.
    Inline,
    /// It follows.
    Bytes(&'a [u8]),
    /// Its beginning was read; the rest follows.
    Stream(&'a [u8], &'a mut R),
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
        data: Data<'_, R>,
        until: Option<Instant>,
    ) -> Result<Answer, Failed> {
        let frame = Frame {
            id: self.id,
            deadline_ms: milliseconds(until.map(Instant::into_std)),
            content: Some(content),
        };
        self.connection.send(&frame).await?;
        match data {
            Data::Inline => {}
            Data::Bytes(bytes) => self.upload(bytes).await?,
            Data::Stream(beginning, rest) => {
                let sent = self.stream(beginning, rest).await;
                sent.map_err(Failed::finally)?;
            }
        }
        while !self.is_answered {
            match self.replies.recv().await {
                Some(content) => self.take(content).await?,
                None => {
                    let why = self.connection.end();
                    return Err(Failed::Finally(Error::Lost { why }));
                }
            }
        }
        let answer = self.answer.take();
        Ok(answer.unwrap_or_else(|| Answer::new(0)))
    }

    async fn upload(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        let count = bytes.len().div_ceil(CHUNK);
        for (number, chunk) in bytes.chunks(CHUNK).enumerate() {
            self.catch_up().await?;
            if self.is_answered {
                return Ok(());
            }
            self.chunk(chunk.to_vec(), number + 1 == count).await?;
        }
        Ok(())
    }

    async fn stream(
        &mut self,
        beginning: &[u8],
        rest: &mut (impl AsyncRead + Unpin),
    ) -> Result<(), Failed> {
        let mut next = Zeroizing::new(beginning.to_vec());
        loop {
            self.catch_up().await?;
            if self.is_answered {
                return Ok(());
            }
            let following = read_chunk(rest).await;
            let following = following.map_err(|e| Failed::Finally(Error::Input(e)))?;
            let last = following.is_empty();
            let chunk = std::mem::replace(&mut next, following);
            self.chunk(chunk.to_vec(), last).await?;
            if last {
                return Ok(());
            }
        }
    }

    async fn chunk(&self, data: Vec<u8>, last: bool) -> Result<(), Failed> {
        let chunk = Content::Chunk(Chunk { data, last });
        Ok(self.connection.send(&Frame::new(self.id, chunk)).await?)
    }

    /// Takes what has come, without waiting for more: a refusal, a PIN request.
    async fn catch_up(&mut self) -> Result<(), Failed> {
        while !self.is_answered {
            match self.replies.try_recv() {
                Ok(content) => self.take(content).await?,
                Err(mpsc::error::TryRecvError::Empty) => return Ok(()),
                // Not all of the request was sent, so it was not carried out.
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    let why = self.connection.end();
                    return Err(Failed::NotBegun(Error::Gone { why }));
                }
            }
        }
        Ok(())
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
