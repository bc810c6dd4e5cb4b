//! One connection that several threads use at once.
//!
//! There is no thread that reads: of those that wait for replies one reads, and hands out what is
//! for others. So a program with one request at a time makes one write and one read for it, and
//! wakes nobody.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use zeroize::Zeroize;

use super::socket::{Received, Socket, TICK, Unwritten};
use crate::error::{Error, Refusal};
use crate::frame::{self, Decoder, FrameError};
use crate::greeting;
use crate::options::Options;
use crate::peer::Peer;
use crate::wire::{Frame, Hello, frame::Content};

/// How long a daemon may take to greet.
const GREETING: Duration = Duration::from_secs(5);

/// The writer's buffer is kept up to this size.
const KEPT: usize = 64 << 10;

pub(super) struct Connection {
    socket: Socket,
    pub(super) peer: Peer,
    pub(super) hello: Hello,
    writer: Mutex<Vec<u8>>,
    reader: Mutex<Reader>,
    state: Mutex<State>,
}

/// What only the thread uses that reads.
struct Reader {
    decoder: Decoder,
    timeout: Option<Duration>,
}

#[derive(Default)]
struct State {
    requests: HashMap<u64, Waiting>,
    last_id: u64,
    /// A thread reads.
    is_read: bool,
    /// It takes no more requests.
    is_retired: bool,
    /// Why the connection ended, if it has.
    end: Option<Ended>,
}

/// A request that has no answer yet.
#[derive(Default)]
struct Waiting {
    /// What came for it while another thread read.
    frames: VecDeque<Content>,
    /// The thread that waits for it and sleeps.
    thread: Option<Thread>,
}

/// Why nothing came for a request.
#[derive(Clone)]
pub(super) enum Ended {
    /// The time is over.
    Late,
    /// The connection has ended.
    Lost(String),
    /// The daemon ended it, and had not begun what it has not answered.
    Draining(String),
}

/// Why a frame was not sent.
pub(super) enum Unsent {
    /// It was too late to send it.
    Late,
    /// The connection ended before it was sent whole.
    Lost(String),
    /// It is too long.
    Frame(FrameError),
}

impl Connection {
    /// Connects, and greets. This ends at the given time, if not before.
    pub(super) fn open(options: &Options, until: Option<Instant>) -> Result<Connection, Error> {
        let path = &options.socket;
        let socket = Socket::connect(path)?;
        let peer = Peer::of(socket.file()).map_err(|e| Error::at(path, e))?;
        if !options.expected.includes(peer) {
            return Err(Error::OtherPeer {
                path: path.clone(),
                uid: peer.uid,
            });
        }
        let mut connection = Connection {
            socket,
            peer,
            hello: Hello::default(),
            writer: Mutex::default(),
            reader: Mutex::new(Reader {
                decoder: Decoder::new(),
                timeout: None,
            }),
            state: Mutex::default(),
        };
        connection.hello = connection.greet(options, until)?;
        Ok(connection)
    }

    fn greet(&self, options: &Options, until: Option<Instant>) -> Result<Hello, Error> {
        let limit = Instant::now() + GREETING;
        let until = until.map_or(limit, |until| until.min(limit));
        let silent = || Error::Silent {
            path: options.socket.clone(),
            seconds: GREETING.as_secs(),
        };
        // A daemon that refuses the connection may have closed it already, and said why.
        let sent = self.send(&greeting::ours(options), Some(until));
        match self.first_frame(until)? {
            Some(first) => greeting::judge(first, options).inspect_err(|error| {
                if let Some(objection) = greeting::objection(error) {
                    // It is for their log; our caller is told in any case.
                    let _ = self.send(&objection, Some(until));
                }
            }),
            None => Err(match sent {
                Err(Unsent::Lost(why)) => Error::Gone { why },
                _ => silent(),
            }),
        }
    }

    /// The first frame; `None` if none came in time.
    fn first_frame(&self, until: Instant) -> Result<Option<Frame>, Error> {
        let mut reader = lock(&self.reader);
        loop {
            if let Some(frame) = reader.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            let now = Instant::now();
            if now >= until {
                return Ok(None);
            }
            match self.receive(&mut reader, &Until::time(until)) {
                Ok(Received::End) => {
                    reader.decoder.end()?;
                    let why = "the daemon closed the connection and said nothing".into();
                    return Err(Error::Gone { why });
                }
                Ok(_) => {}
                Err(e) => return Err(Error::Gone { why: e.to_string() }),
            }
        }
    }

    /// What a program goes on with that makes no requests: the socket, what has arrived, and how the
    /// daemon greeted.
    pub(super) fn into_parts(self) -> (Socket, Decoder, Hello) {
        let reader = self.reader.into_inner();
        let reader = reader.unwrap_or_else(PoisonError::into_inner);
        (self.socket, reader.decoder, self.hello)
    }

    /// Whether it takes requests, as far as is known.
    pub(super) fn is_open(&self) -> bool {
        let state = lock(&self.state);
        state.end.is_none() && !state.is_retired
    }

    /// It gets no more requests. Those that are in flight are answered.
    pub(super) fn retire(&self) {
        lock(&self.state).is_retired = true;
    }

    /// Ends it for everybody.
    pub(super) fn end(&self, why: impl Into<String>) {
        self.end_as(Ended::Lost(why.into()));
    }

    fn end_as(&self, end: Ended) {
        let mut state = lock(&self.state);
        state.end.get_or_insert(end);
        for waiting in state.requests.values_mut() {
            waiting.wake();
        }
        drop(state);
        self.socket.shut();
    }

    /// A new id, for which replies are kept until [`leave`](Self::leave).
    pub(super) fn enter(&self) -> u64 {
        let mut state = lock(&self.state);
        state.last_id += 1;
        let id = state.last_id;
        state.requests.insert(id, Waiting::default());
        id
    }

    /// Nobody waits for this id any more.
    pub(super) fn leave(&self, id: u64) {
        let mut state = lock(&self.state);
        state.requests.remove(&id);
        state.hand_over();
    }

    pub(super) fn send(&self, frame: &Frame, until: Option<Instant>) -> Result<(), Unsent> {
        let mut buffer = lock(&self.writer);
        buffer.clear();
        frame::encode(frame, &mut buffer).map_err(Unsent::Frame)?;
        let written = self.socket.write(&buffer, until);
        if frame.is_secret() {
            buffer.zeroize();
        }
        if buffer.capacity() > KEPT {
            *buffer = Vec::new();
        }
        drop(buffer);
        match written {
            Ok(()) => Ok(()),
            Err(Unwritten::Nothing) => Err(Unsent::Late),
            Err(Unwritten::Broken(e)) => {
                self.end(e.to_string());
                Err(Unsent::Lost(e.to_string()))
            }
        }
    }

    /// What comes next for this id. Until when to wait is asked again after each tick, if it can
    /// change.
    pub(super) fn wait(&self, id: u64, mut until: impl FnMut() -> Until) -> Result<Content, Ended> {
        loop {
            let until = until();
            let mut state = lock(&self.state);
            if let Some(content) = state.take(id) {
                // It may be long before this thread waits again.
                state.hand_over();
                return Ok(content);
            }
            if let Some(end) = &state.end {
                return Err(end.clone());
            }
            if until.is_over() {
                return Err(Ended::Late);
            }
            if state.is_read {
                state.sleep(id);
                drop(state);
                match until.pause() {
                    Some(pause) => thread::park_timeout(pause),
                    None => thread::park(),
                }
                continue;
            }
            state.is_read = true;
            drop(state);
            if let Some(content) = self.read_for(id, &until) {
                return Ok(content);
            }
        }
    }

    /// Reads, as the one that does, until something for this id comes or nothing more is there.
    fn read_for(&self, id: u64, until: &Until) -> Option<Content> {
        let _role = Role(self);
        let mut reader = lock(&self.reader);
        loop {
            match reader.decoder.next_frame() {
                Ok(Some(frame)) => match self.hand_out(frame, id) {
                    Some(content) => return Some(content),
                    None => continue,
                },
                Ok(None) => {}
                Err(e) => {
                    self.end(e.to_string());
                    return None;
                }
            }
            let end = match self.receive(&mut reader, until) {
                Ok(Received::Bytes(_)) => continue,
                Ok(Received::Nothing) => return None,
                Ok(Received::End) => match reader.decoder.end() {
                    Ok(()) => "the daemon closed the connection".into(),
                    Err(e) => e.to_string(),
                },
                Err(e) => e.to_string(),
            };
            self.end(end);
            return None;
        }
    }

    /// Gives a frame to the request that it is for. What is for this id is returned.
    fn hand_out(&self, frame: Frame, id: u64) -> Option<Content> {
        let content = match (frame.id, frame.content) {
            (0, Some(Content::Error(error))) => {
                let refusal = Refusal::from(error);
                self.end_as(match refusal.is_draining() {
                    true => Ended::Draining(refusal.message),
                    false => Ended::Lost(refusal.message),
                });
                return None;
            }
            // What a newer daemon says beside its replies.
            (0, _) | (_, None) => return None,
            (to, Some(content)) if to == id => return Some(content),
            (_, Some(content)) => content,
        };
        let mut state = lock(&self.state);
        let is_made = frame.id <= state.last_id;
        match state.requests.get_mut(&frame.id) {
            Some(waiting) => {
                waiting.frames.push_back(content);
                waiting.wake();
            }
            // Its caller has given it up.
            None if is_made => {}
            None => {
                drop(state);
                self.end("the daemon replied to a request that was not made");
            }
        }
        None
    }

    fn receive(&self, reader: &mut Reader, until: &Until) -> std::io::Result<Received> {
        // A deadline that is far costs no call: a read ends after each tick.
        let pause = until.pause();
        let timeout = pause.map(|pause| pause.clamp(Duration::from_millis(1), TICK));
        if timeout != reader.timeout {
            self.socket.set_read_timeout(timeout)?;
            reader.timeout = timeout;
        }
        let received = self.socket.read(reader.decoder.space())?;
        if let Received::Bytes(length) = received {
            reader.decoder.filled(length);
        }
        Ok(received)
    }
}

impl State {
    fn take(&mut self, id: u64) -> Option<Content> {
        let waiting = self.requests.get_mut(&id)?;
        waiting.thread = None;
        waiting.frames.pop_front()
    }

    fn sleep(&mut self, id: u64) {
        if let Some(waiting) = self.requests.get_mut(&id) {
            waiting.thread = Some(thread::current());
        }
    }

    /// If nobody reads, wakes one that could.
    fn hand_over(&mut self) {
        if !self.is_read {
            let mut waiting = self.requests.values_mut();
            if let Some(next) = waiting.find(|waiting| waiting.thread.is_some()) {
                next.wake();
            }
        }
    }
}

impl Waiting {
    fn wake(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.unpark();
        }
    }
}

/// That this thread reads.
struct Role<'a>(&'a Connection);

impl Drop for Role<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.is_read = false;
        state.hand_over();
    }
}

/// Until when is waited.
#[derive(Default)]
pub(super) struct Until {
    /// `None` is for ever.
    pub(super) time: Option<Instant>,
    /// Whether the time can change: then it is looked at again after a tick.
    pub(super) can_change: bool,
}

impl Until {
    fn time(time: Instant) -> Until {
        Until {
            time: Some(time),
            can_change: false,
        }
    }

    fn is_over(&self) -> bool {
        self.time.is_some_and(|time| Instant::now() >= time)
    }

    fn pause(&self) -> Option<Duration> {
        let left = self
            .time
            .map(|time| time.saturating_duration_since(Instant::now()));
        match (left, self.can_change) {
            (Some(left), true) => Some(left.min(TICK)),
            (None, true) => Some(TICK),
            (left, false) => left,
        }
    }
}

/// A thread that panicked left nothing half done: each change is made at once.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
