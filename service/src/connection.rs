//! One connection: reads frames, begins requests, writes answers.
//!
//! A connection is one task. Each request is polled once where it is begun, which is all that a
//! quick token needs; the others stay in the connection until they are ready. What it reads in one
//! turn it answers with one write.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use claviger_client::frame::{self, Decoder, PROTOCOL};
use claviger_client::wire::{self, Frame, frame::Content};
use claviger_token::Zeroizing;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Instant, Sleep, sleep};
use zeroize::Zeroize;

use crate::limits::Counted;
use crate::replies::Answer;
use crate::request::{Asked, Request};
use crate::session::Session;
use crate::streams::{Chunks, Incoming};
use crate::{Caller, Refusal};

/// So many frames are taken in one turn; then other connections have theirs.
const FRAMES_A_TURN: usize = 8;

/// An empty buffer for answers that is larger than this is freed.
const KEPT: usize = 4 << 10;

/// An empty buffer of frames that is larger than this is freed.
const KEPT_OF_FRAMES: usize = 64 << 10;

/// What a connection may hold whatever its caller's other connections hold.
const HELD_ALWAYS: usize = 64 << 10;

/// So many requests more than its limit a caller may have in flight, each as the only one of its
/// connection: one program of a user does not shut out the others.
const SPARE: usize = 32;

/// One connection.
pub(crate) struct Connection {
    stream: UnixStream,
    session: Arc<Session>,
    decoder: Decoder,
    /// What is to be written; the first `written` bytes of it are.
    outgoing: Vec<u8>,
    written: usize,
    in_flight: FuturesUnordered<InFlight>,
    requests: HashMap<u64, Ticket>,
    phase: Phase,
    /// The memory of its buffers, as it counts for the caller.
    held: usize,
    /// Whether a frame came in this turn.
    has_come: bool,
    /// How long the caller may take for a frame.
    to_send: Option<Pin<Box<Sleep>>>,
    /// How long it may take for its reading, and what it has read in that time.
    to_read: Option<Pin<Box<Sleep>>>,
    read: usize,
}

type InFlight = Pin<Box<dyn Future<Output = (u64, Answer)> + Send>>;

/// A request that is not answered yet.
struct Ticket {
    cancelled: Arc<AtomicBool>,
    chunks: Option<Chunks>,
    /// Whether the caller may send a chunk.
    is_asked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The caller has not said who it is.
    New,
    Open,
    /// Nothing is read any more; what is written still is.
    Closing,
}

/// How a turn ended.
enum Turn {
    /// There is more to do, after others have had their turns.
    Yield,
    /// The connection is over.
    Over,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream, session: Arc<Session>) -> Self {
        let mut connection = Connection {
            stream,
            session,
            decoder: Decoder::new(),
            outgoing: Vec::new(),
            written: 0,
            in_flight: FuturesUnordered::new(),
            requests: HashMap::new(),
            phase: Phase::New,
            held: 0,
            has_come: false,
            to_send: None,
            to_read: None,
            read: 0,
        };
        let hello = connection.session.shared.hello();
        connection.put(&Frame::new(0, Content::Hello(hello)));
        connection
    }

    /// Serves it until it is over. Its requests are given up then, and are waited for: what a
    /// token has begun comes to its end.
    pub(crate) async fn run(mut self) {
        while let Turn::Yield = poll_fn(|cx| self.turn(cx)).await {
            tokio::task::yield_now().await;
        }
        self.session.outbox.end();
        self.session.devices.end();
        for (_, ticket) in self.requests.drain() {
            ticket.cancelled.store(true, Ordering::Relaxed);
        }
        while self.in_flight.next().await.is_some() {}
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        self.has_come = false;
        let mut left = FRAMES_A_TURN;
        loop {
            self.finish(cx);
            self.take_frames(&mut left, cx);
            if left > 0 && self.reads() {
                match self.read(cx) {
                    Poll::Ready(true) => continue,
                    Poll::Ready(false) => {
                        // It may have closed one direction only.
                        let _ = self.write(cx);
                        return Poll::Ready(Turn::Over);
                    }
                    Poll::Pending => {}
                }
            }
            self.close_if_drained();
            let was_full = self.is_full();
            if self.write(cx).is_err() {
                return Poll::Ready(Turn::Over);
            }
            if let Some(refusal) = self.holds_too_much() {
                self.cut_off(&refusal, cx);
                return Poll::Ready(Turn::Over);
            }
            if left == 0 {
                return Poll::Ready(Turn::Yield);
            }
            if was_full && !self.is_full() {
                continue;
            }
            if self.phase == Phase::Closing && self.outgoing.is_empty() {
                return Poll::Ready(Turn::Over);
            }
            if self.is_out_of_patience(cx) {
                self.cut_off(&Refusal::TooSlow("sent no whole frame"), cx);
                return Poll::Ready(Turn::Over);
            }
            return Poll::Pending;
        }
    }

    /// Writes the answers that are ready, after what else was to be told of their requests.
    fn finish(&mut self, cx: &mut Context<'_>) {
        let mut ready = Vec::new();
        if !self.in_flight.is_empty() {
            while let Poll::Ready(Some(done)) = self.in_flight.poll_next_unpin(cx) {
                ready.push(done);
            }
        }
        for told in self.session.outbox.take(cx.waker()) {
            if let (Some(Content::Chunk(_)), Some(ticket)) =
                (&told.content, self.requests.get_mut(&told.id))
            {
                ticket.is_asked = true;
            }
            // What waits to be read is not added to by what nobody must know.
            if !self.is_full() || !matches!(told.content, Some(Content::Event(_))) {
                self.put(&told);
            }
        }
        for (id, answer) in ready {
            self.requests.remove(&id);
            self.answer(id, answer);
        }
        self.ask_devices();
    }

    /// Writes what the caller's devices are asked for, after the answer that they are attached.
    fn ask_devices(&mut self) {
        if let Some(refusal) = self.session.devices.broken()
            && self.phase != Phase::Closing
        {
            self.close(&refusal);
        }
        while !self.is_full()
            && let Some(frame) = self.session.devices.next_frame()
        {
            self.put(&frame);
        }
    }

    fn reads(&self) -> bool {
        self.phase != Phase::Closing && !self.is_full()
    }

    /// Whether the caller leaves so much unread that nothing more is begun for it.
    fn is_full(&self) -> bool {
        self.outgoing.len() - self.written > self.session.shared.limits().unread
    }

    fn take_frames(&mut self, left: &mut usize, cx: &mut Context<'_>) {
        while *left > 0 && self.reads() {
            match self.decoder.next_frame() {
                Ok(None) => return,
                Ok(Some(frame)) => {
                    *left -= 1;
                    self.has_come = true;
                    if let Err(refusal) = self.take(frame, cx) {
                        self.close(&refusal);
                    }
                }
                Err(error) => self.close(&Refusal::BadFrame {
                    code: error.code(),
                    reason: error.to_string(),
                }),
            }
        }
    }

    /// Takes a frame.
    ///
    /// # Errors
    /// What ends the connection.
    fn take(&mut self, frame: Frame, cx: &mut Context<'_>) -> Result<(), Refusal> {
        let Frame {
            id,
            deadline_ms,
            content,
        } = frame;
        if self.phase == Phase::New {
            return match content {
                Some(Content::Hello(hello)) if id == 0 => self.greet(&hello),
                _ => Err(Refusal::BadRequest("the first frame is no hello")),
            };
        }
        match content {
            Some(Content::Engine(message)) => {
                self.begin(id, deadline_ms, Asked::Engine(message), cx)
            }
            Some(Content::DaemonRequest(request)) => {
                self.begin(id, deadline_ms, Asked::Daemon(request), cx)
            }
            Some(Content::Cancel(_)) => {
                if let Some(ticket) = self.requests.get(&id) {
                    ticket.cancelled.store(true, Ordering::Relaxed);
                }
                Ok(())
            }
            Some(Content::PinAnswer(mut answer)) => {
                let pin = answer.pin.take().map(Zeroizing::new);
                self.session.outbox.answer(id, pin);
                Ok(())
            }
            Some(Content::Chunk(chunk)) => self.take_chunk(id, chunk),
            Some(Content::DeviceReply(reply)) => self.session.devices.replied(id, reply.reply),
            Some(Content::DeviceEvent(event)) => self.session.devices.happened(id, event.kind()),
            Some(Content::DeviceProof(proof)) => {
                self.session.devices.proven(id, proof.signature);
                Ok(())
            }
            Some(_) => Err(Refusal::BadRequest("only the daemon says that")),
            None if id == 0 => Err(Refusal::BadRequest("its message is unknown")),
            None => {
                self.answer(id, Refusal::BadRequest("its message is unknown").into());
                Ok(())
            }
        }
    }

    fn greet(&mut self, hello: &wire::Hello) -> Result<(), Refusal> {
        if hello.version != PROTOCOL {
            return Err(Refusal::Version {
                theirs: hello.version,
                ours: PROTOCOL,
            });
        }
        self.session.outbox.answers_pins(hello.answers_pins);
        self.phase = Phase::Open;
        Ok(())
    }

    /// A chunk of a request that is over is dropped.
    fn take_chunk(&mut self, id: u64, chunk: wire::Chunk) -> Result<(), Refusal> {
        let Some(ticket) = self.requests.get_mut(&id) else {
            return Ok(());
        };
        let is_asked = std::mem::take(&mut ticket.is_asked);
        match &ticket.chunks {
            Some(chunks) if is_asked => {
                // There is a place for what was asked for, unless nobody waits for it any more.
                let _ = chunks.try_send(chunk);
                Ok(())
            }
            _ => Err(Refusal::BadRequest("a chunk comes before it is asked for")),
        }
    }

    /// Begins a request: it is answered, now or later.
    ///
    /// # Errors
    /// What ends the connection.
    fn begin(
        &mut self,
        id: u64,
        deadline_ms: u32,
        mut asked: Asked,
        cx: &mut Context<'_>,
    ) -> Result<(), Refusal> {
        if id == 0 {
            return Err(Refusal::BadRequest("the id of a request is not 0"));
        }
        if self.requests.contains_key(&id) {
            return Err(Refusal::BadRequest("its id is that of a request in flight"));
        }
        let taken = match self.admit() {
            Ok(taken) => taken,
            Err(refusal) => {
                self.answer(id, refusal.into());
                return Ok(());
            }
        };
        let cancelled = Arc::<AtomicBool>::default();
        let line = self.session.outbox.begin(id);
        let call = (self.session).call(&line, asked.owner(), deadline_ms, &cancelled);
        let mut ticket = Ticket {
            cancelled,
            chunks: None,
            is_asked: false,
        };
        let mut data = None;
        let mut taken_as_long = None;
        if let Some(begins) = asked.takes_data() {
            let most = self.session.shared.limits().long_requests_of_caller;
            taken_as_long = self.session.load.take(Counted::LongRequest, most);
            if taken_as_long.is_none() {
                let what = "requests with long data";
                self.answer(id, Refusal::Busy { what, most }.into());
                return Ok(());
            }
            let (chunks, incoming) = Incoming::new(&line, &call, begins);
            (ticket.chunks, data) = (Some(chunks), Some(incoming));
        }
        let request = Request {
            session: Arc::clone(&self.session),
            line,
            call,
        };
        let in_flight = self.session.shared.begun();
        let mut work: InFlight = Box::pin(async move {
            let answer = request.answer(asked, data).await;
            drop((taken, taken_as_long, in_flight));
            (id, answer)
        });
        match work.as_mut().poll(cx) {
            Poll::Ready((id, answer)) => self.answer(id, answer),
            Poll::Pending => {
                self.requests.insert(id, ticket);
                self.in_flight.push(work);
            }
        }
        Ok(())
    }

    /// Whether another request may begin.
    fn admit(&self) -> Result<crate::limits::Taken, Refusal> {
        let limits = self.session.shared.limits();
        if self.session.shared.is_draining() {
            return Err(Refusal::Draining);
        }
        if self.in_flight.len() >= limits.requests_of_connection {
            return Err(Refusal::Busy {
                what: "requests of one connection",
                most: limits.requests_of_connection,
            });
        }
        let most = match self.in_flight.is_empty() {
            true => limits.requests_of_caller.saturating_add(SPARE),
            false => limits.requests_of_caller,
        };
        let taken = self.session.load.take(Counted::Request, most);
        taken.ok_or(Refusal::Busy {
            what: "requests of one caller",
            most,
        })
    }

    fn answer(&mut self, id: u64, answer: Answer) {
        self.session.shared.answered();
        for told in self.session.outbox.answered(id) {
            if !self.is_full() {
                self.put(&told);
            }
        }
        let Answer { first, then } = answer;
        self.put(&Frame::new(id, first));
        for content in then {
            self.put(&Frame::new(id, content));
        }
    }

    fn put(&mut self, frame: &Frame) {
        if let Err(error) = frame::encode(frame, &mut self.outgoing) {
            tracing::warn!(%error, kind = frame.kind(), "an answer is too long for a frame");
            let refusal = Refusal::BadFrame {
                code: error.code(),
                reason: error.to_string(),
            };
            let said = Frame::new(frame.id, Content::Error(refusal.to_wire()));
            // It is short.
            let _ = frame::encode(&said, &mut self.outgoing);
        }
    }

    /// Says why, and ends the connection after what is to be written.
    fn close(&mut self, refusal: &Refusal) {
        let Caller { uid, .. } = self.session.caller;
        tracing::debug!(uid, %refusal, "a connection ends");
        self.put(&Frame::new(0, Content::Error(refusal.to_wire())));
        self.phase = Phase::Closing;
    }

    /// The daemon ends: once every request is answered, nothing more is begun.
    fn close_if_drained(&mut self) {
        let (shared, devices) = (&self.session.shared, &self.session.devices);
        let is_needed = || devices.has_devices() && shared.has_in_flight();
        let is_done = self.in_flight.is_empty() && self.phase != Phase::Closing;
        if is_done && shared.is_draining() && !is_needed() {
            self.close(&Refusal::Draining);
        }
        if self.session.shared.is_forced() {
            for ticket in self.requests.values() {
                ticket.cancelled.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Reads what there is. `false`: the caller is gone.
    fn read(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut space = ReadBuf::new(self.decoder.space());
        match Pin::new(&mut self.stream).poll_read(cx, &mut space) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(_)) => Poll::Ready(false),
            Poll::Ready(Ok(())) => {
                let length = space.filled().len();
                self.decoder.filled(length);
                Poll::Ready(length > 0)
            }
        }
    }

    /// Writes as much as the caller takes.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.written < self.outgoing.len() {
            let rest = &self.outgoing[self.written..];
            match Pin::new(&mut self.stream).poll_write(cx, rest) {
                Poll::Pending => {
                    self.forget_written();
                    return Ok(());
                }
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => {
                    let written = written?;
                    self.written += written;
                    self.read += written;
                }
            }
        }
        if self.written > 0 {
            self.outgoing.zeroize();
            if self.outgoing.capacity() > KEPT {
                self.outgoing = Vec::new();
            }
            self.written = 0;
        }
        Ok(())
    }

    /// A caller that never reads all of it does not make the buffer grow for ever.
    fn forget_written(&mut self) {
        if self.written < self.outgoing.len() / 2 || self.written < KEPT {
            return;
        }
        self.outgoing.copy_within(self.written.., 0);
        let left = self.outgoing.len() - self.written;
        self.outgoing[left..].zeroize();
        self.outgoing.truncate(left);
        self.written = 0;
    }

    /// Whether the caller let us wait for too long: for its first frame, for the rest of a frame,
    /// or for its reading.
    fn is_out_of_patience(&mut self, cx: &mut Context<'_>) -> bool {
        let limits = self.session.shared.limits();
        let to_send = match self.phase {
            Phase::New => Some(limits.first_frame),
            _ if self.reads() && !self.decoder.is_empty() => Some(limits.stalled),
            _ => None,
        };
        let to_read = (!self.outgoing.is_empty()).then_some(limits.stalled);
        let has_read = self.read >= limits.unread;
        let is_new = self.phase == Phase::New;
        let sends_late = is_over(&mut self.to_send, to_send, self.has_come && !is_new, cx);
        if self.to_read.is_none() || to_read.is_none() || has_read {
            self.read = 0;
        }
        let reads_late = is_over(&mut self.to_read, to_read, has_read, cx);
        sends_late || reads_late
    }

    /// Counts what it holds; a refusal where the caller holds too much, and this connection is one
    /// of those that hold it.
    fn holds_too_much(&mut self) -> Option<Refusal> {
        if self.decoder.size() > KEPT_OF_FRAMES {
            self.decoder.release();
        }
        let now = self.decoder.size() + self.outgoing.capacity();
        if now == self.held {
            return None;
        }
        let most = self.session.shared.limits().buffered_of_caller;
        let all = self.session.load.holds(self.held, now);
        let grew = now > std::mem::replace(&mut self.held, now);
        (grew && all > most && now > HELD_ALWAYS).then_some(Refusal::Busy {
            what: "bytes of one caller",
            most,
        })
    }

    /// Says so to a caller that reads, and closes.
    fn cut_off(&mut self, refusal: &Refusal, cx: &mut Context<'_>) {
        let uid = self.session.caller.uid;
        tracing::info!(uid, %refusal, "a caller is cut off");
        if self.outgoing.is_empty() {
            self.close(refusal);
            let _ = self.write(cx);
        }
    }
}

/// Whether the time `limit` is over, which begins anew when something `has_moved`.
fn is_over(
    timer: &mut Option<Pin<Box<Sleep>>>,
    limit: Option<Duration>,
    has_moved: bool,
    cx: &mut Context<'_>,
) -> bool {
    let Some(limit) = limit else {
        *timer = None;
        return false;
    };
    let timer = timer.get_or_insert_with(|| Box::pin(sleep(limit)));
    if has_moved {
        timer.as_mut().reset(far(limit));
    }
    timer.as_mut().poll(cx).is_ready()
}

fn far(limit: Duration) -> Instant {
    Instant::now() + limit
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.outgoing.zeroize();
        self.session.load.holds(self.held, 0);
        self.session.outbox.end();
        self.session.devices.end();
    }
}
