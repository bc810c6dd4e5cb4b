//! One connection: a task that reads and hands out, and a task that writes whole frames, whatever
//! becomes of those who sent them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::error::{Error, Refusal};
use crate::frame::{self, Decoder, FrameError};
use crate::greeting;
use crate::options::Options;
use crate::peer::Peer;
use crate::wire::{self, Frame, Hello, frame::Content};

/// How long a daemon may take to greet.
const GREETING: Duration = Duration::from_secs(5);

/// How many frames wait to be written, and for one request to be taken.
const WAITING: usize = 64;

pub(super) struct Connection {
    pub(super) hello: Hello,
    outgoing: mpsc::Sender<Outgoing>,
    shared: Arc<Shared>,
    tasks: [JoinHandle<()>; 2],
}

struct Shared(Mutex<State>);

#[derive(Default)]
struct State {
    requests: HashMap<u64, mpsc::Sender<Content>>,
    last_id: u64,
    is_retired: bool,
    /// Why the connection ended, if it has, and whether what is not answered was not begun.
    end: Option<(String, bool)>,
}

/// A frame to be written, and who wants to know whether it was.
struct Outgoing {
    bytes: Zeroizing<Vec<u8>>,
    written: oneshot::Sender<()>,
}

/// A connection on which both sides have greeted.
pub(super) struct Greeted {
    pub(super) reader: OwnedReadHalf,
    pub(super) writer: OwnedWriteHalf,
    /// What has arrived.
    pub(super) decoder: Decoder,
    pub(super) hello: Hello,
}

impl Greeted {
    pub(super) async fn open(options: &Options) -> Result<Greeted, Error> {
        let path = &options.socket;
        let connected = UnixStream::connect(path).await;
        let stream = connected.map_err(|e| Error::at(path, e))?;
        let peer = Peer::of(&stream).map_err(|e| Error::at(path, e))?;
        if !options.expected.includes(peer) {
            return Err(Error::OtherPeer {
                path: path.clone(),
                uid: peer.uid,
            });
        }
        let (mut reader, mut writer) = stream.into_split();
        let mut decoder = Decoder::new();
        let greeted = greet(&mut reader, &mut writer, &mut decoder, options);
        let hello = timeout(GREETING, greeted)
            .await
            .map_err(|_| Error::Silent {
                path: path.clone(),
                seconds: GREETING.as_secs(),
            })??;
        Ok(Greeted {
            reader,
            writer,
            decoder,
            hello,
        })
    }
}

impl Connection {
    pub(super) async fn open(options: &Options) -> Result<Connection, Error> {
        let Greeted {
            reader,
            writer,
            decoder,
            hello,
        } = Greeted::open(options).await?;
        let shared = Arc::new(Shared(Mutex::default()));
        let (outgoing, to_write) = mpsc::channel(WAITING);
        let tasks = [
            tokio::spawn(read(shared.clone(), reader, decoder)),
            tokio::spawn(write(shared.clone(), writer, to_write)),
        ];
        Ok(Connection {
            hello,
            outgoing,
            shared,
            tasks,
        })
    }

    /// Whether it takes requests, as far as is known.
    pub(super) fn is_open(&self) -> bool {
        let state = self.shared.lock();
        state.end.is_none() && !state.is_retired
    }

    /// It gets no more requests. Those that are in flight are answered.
    pub(super) fn retire(&self) {
        self.shared.lock().is_retired = true;
    }

    /// Why it ended, and whether what is not answered was not begun.
    pub(super) fn end(&self) -> (String, bool) {
        let state = self.shared.lock();
        let end = state.end.clone();
        end.unwrap_or_else(|| ("it was closed".into(), false))
    }

    /// A new id, and what comes for it.
    pub(super) fn enter(&self) -> (u64, mpsc::Receiver<Content>) {
        let mut state = self.shared.lock();
        state.last_id += 1;
        let id = state.last_id;
        let (sender, receiver) = mpsc::channel(WAITING);
        // Where the connection has ended nothing will come.
        if state.end.is_none() {
            state.requests.insert(id, sender);
        }
        (id, receiver)
    }

    /// Nobody waits for this id any more; the daemon is told, unless it has answered.
    pub(super) fn leave(&self, id: u64, is_answered: bool) {
        self.shared.lock().requests.remove(&id);
        if is_answered {
            return;
        }
        let cancel = Frame::new(id, Content::Cancel(wire::Cancel {}));
        let mut bytes = Vec::new();
        if frame::encode(&cancel, &mut bytes).is_ok() {
            let (written, _) = oneshot::channel();
            let bytes = Zeroizing::new(bytes);
            // Where so much waits to be written, the daemon takes nothing anyway.
            let _ = self.outgoing.try_send(Outgoing { bytes, written });
        }
    }

    /// Sends a frame, and returns when it is written whole.
    pub(super) async fn send(&self, frame: &Frame) -> Result<(), Error> {
        let mut bytes = Zeroizing::new(Vec::new());
        frame::encode(frame, &mut bytes)?;
        let (written, is_written) = oneshot::channel();
        let gone = || Error::Gone { why: self.end().0 };
        let outgoing = Outgoing { bytes, written };
        self.outgoing.send(outgoing).await.map_err(|_| gone())?;
        is_written.await.map_err(|_| gone())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A task that panicked left nothing half done: each change is made at once.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, why: String, is_draining: bool) {
        let mut state = self.lock();
        state.end.get_or_insert((why, is_draining));
        state.requests.clear();
    }
}

async fn greet(
    reader: &mut OwnedReadHalf,
    writer: &mut OwnedWriteHalf,
    decoder: &mut Decoder,
    options: &Options,
) -> Result<Hello, Error> {
    let mut bytes = Vec::new();
    frame::encode(&greeting::ours(options), &mut bytes)?;
    // A daemon that refuses the connection may have closed it already, and said why.
    let sent = writer.write_all(&bytes).await;
    let first = match next(reader, decoder).await {
        Ok(Some(first)) => first,
        Ok(None) => {
            let why = match sent {
                Ok(()) => "the daemon closed the connection and said nothing".into(),
                Err(e) => e.to_string(),
            };
            return Err(Error::Gone { why });
        }
        Err(FrameError::Io(e)) => return Err(Error::Gone { why: e.to_string() }),
        Err(e) => return Err(e.into()),
    };
    let judged = greeting::judge(first, options);
    if let Some(objection) = judged.as_ref().err().and_then(greeting::objection) {
        bytes.clear();
        frame::encode(&objection, &mut bytes)?;
        // It is for their log; our caller is told in any case.
        let _ = writer.write_all(&bytes).await;
    }
    judged
}

/// The next frame; `None` at the end.
pub(super) async fn next(
    reader: &mut OwnedReadHalf,
    decoder: &mut Decoder,
) -> Result<Option<Frame>, FrameError> {
    loop {
        if let Some(frame) = decoder.next_frame()? {
            return Ok(Some(frame));
        }
        match reader.read(decoder.space()).await? {
            0 => return decoder.end().map(|()| None),
            length => decoder.filled(length),
        }
    }
}

async fn read(shared: Arc<Shared>, mut reader: OwnedReadHalf, mut decoder: Decoder) {
    let (why, is_draining) = loop {
        match next(&mut reader, &mut decoder).await {
            Ok(Some(frame)) => {
                if let Err(end) = hand_out(&shared, frame).await {
                    break end;
                }
            }
            Ok(None) => break ("the daemon closed the connection".into(), false),
            Err(e) => break (e.to_string(), false),
        }
    };
    shared.end(why, is_draining);
}

/// Gives a frame to the request that it is for; why the connection ends, if it does.
async fn hand_out(shared: &Shared, frame: Frame) -> Result<(), (String, bool)> {
    let content = match (frame.id, frame.content) {
        (0, Some(Content::Error(error))) => {
            let refusal = Refusal::from(error);
            let is_draining = refusal.is_draining();
            return Err((refusal.message, is_draining));
        }
        // What a newer daemon says beside its replies.
        (0, _) | (_, None) => return Ok(()),
        (_, Some(content)) => content,
    };
    let (request, is_made) = {
        let state = shared.lock();
        let request = state.requests.get(&frame.id).cloned();
        (request, frame.id <= state.last_id)
    };
    match request {
        // Its caller may have given it up just now.
        Some(request) => drop(request.send(content).await),
        None if is_made => {}
        None => {
            let why = "the daemon replied to a request that was not made";
            return Err((why.into(), false));
        }
    }
    Ok(())
}

async fn write(
    shared: Arc<Shared>,
    mut writer: OwnedWriteHalf,
    mut frames: mpsc::Receiver<Outgoing>,
) {
    while let Some(frame) = frames.recv().await {
        match writer.write_all(&frame.bytes).await {
            // Who sent it may not be there any more.
            Ok(()) => drop(frame.written.send(())),
            Err(e) => {
                shared.end(e.to_string(), false);
                return;
            }
        }
    }
}
