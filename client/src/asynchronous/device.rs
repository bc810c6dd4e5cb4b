//! Attaches a device, and answers what the daemon asks it for, in a program that runs tokio.
//!
//! It does what the [blocking](crate::blocking::device) one does.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::connection::{Greeted, next};
use crate::device::{self, Device, Happening, Keys, Reply, Request, Step};
use crate::error::Error;
use crate::frame::{self, Decoder, FrameError};
use crate::options::Options;
use crate::wire::{Frame, frame::Content};

/// How long the daemon may take to attach a device.
const ATTACHING: Duration = Duration::from_secs(30);

/// How many frames wait to be written.
const WAITING: usize = 64;

/// A device that is attached as long as this lives.
pub struct Attachment {
    reader: OwnedReadHalf,
    decoder: Decoder,
    line: Arc<Line>,
    /// Writes whole frames, whatever becomes of those who sent them.
    writing: JoinHandle<()>,
    serial: String,
}

/// The connection, as those who answer use it.
struct Line {
    outgoing: mpsc::Sender<Zeroizing<Vec<u8>>>,
    open: Mutex<HashMap<u64, Arc<Cancelled>>>,
}

/// Whether nobody waits for a reply any more.
#[derive(Default)]
struct Cancelled {
    it_is: AtomicBool,
    told: Notify,
}

impl Attachment {
    /// Connects, and attaches a device. `prove` signs a text with the device's identity key, in the
    /// form of `DeviceReply.signature`.
    ///
    /// # Errors
    /// As [`Client::connect`](super::Client::connect); what the daemon refuses.
    pub async fn open<F>(
        options: &Options,
        device: Device,
        prove: impl FnOnce(Vec<u8>) -> F,
    ) -> Result<Self, Error>
    where
        F: Future<Output = Vec<u8>>,
    {
        let greeted = Greeted::open(options).await?;
        let (outgoing, to_write) = mpsc::channel(WAITING);
        let line = Line {
            outgoing,
            open: Mutex::default(),
        };
        let mut attachment = Attachment {
            reader: greeted.reader,
            decoder: greeted.decoder,
            line: Arc::new(line),
            writing: tokio::spawn(write(greeted.writer, to_write)),
            serial: String::new(),
        };
        let home_id = greeted.hello.home_id;
        let attaching = attachment.attach(device, prove, &home_id);
        timeout(ATTACHING, attaching)
            .await
            .map_err(|_| Error::Deadline)??;
        Ok(attachment)
    }

    async fn attach<F>(
        &mut self,
        device: Device,
        prove: impl FnOnce(Vec<u8>) -> F,
        home_id: &str,
    ) -> Result<(), Error>
    where
        F: Future<Output = Vec<u8>>,
    {
        self.line.send(&device::attaching(device)).await?;
        let mut prove = Some(prove);
        loop {
            let frame = self.read().await?.ok_or_else(gone)?;
            match device::step(frame, home_id)? {
                Step::Read => {}
                Step::Prove(text) => {
                    let prove = prove.take().ok_or_else(crate::answer::unexpected)?;
                    let signature = prove(text).await;
                    self.line.send(&device::proof(signature)).await?;
                }
                Step::Attached(attached) => {
                    self.serial = attached.serial;
                    return Ok(());
                }
            }
        }
    }

    /// The device's serial: the fingerprint of its identity key.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// What the device is asked for next. `None`: the daemon ended the connection, as when it is
    /// restarted.
    ///
    /// # Errors
    /// What happens to the connection.
    pub async fn next(&mut self) -> Result<Option<Asked>, Error> {
        loop {
            let Some(frame) = self.read().await? else {
                return Ok(None);
            };
            match (frame.id, frame.content) {
                (0, Some(Content::Error(_))) => return Ok(None),
                (id, Some(Content::DeviceCancel(_))) => self.line.cancel(id),
                (id, Some(Content::DeviceRequest(asked))) => match asked.request {
                    Some(request) => {
                        return Ok(Some(self.asked(id, frame.deadline_ms, request)));
                    }
                    None => {
                        let unknown = device::reply(id, device::unknown());
                        self.line.send(&unknown).await?;
                    }
                },
                _ => {}
            }
        }
    }

    fn asked(&self, id: u64, deadline_ms: u32, request: Request) -> Asked {
        let cancelled = Arc::<Cancelled>::default();
        self.line.open().insert(id, Arc::clone(&cancelled));
        Asked {
            line: Arc::clone(&self.line),
            id,
            deadline: device::deadline(deadline_ms),
            request,
            cancelled,
            is_answered: false,
        }
    }

    /// Answers by these keys until the daemon ends the connection.
    ///
    /// # Errors
    /// What happens to the connection.
    pub async fn serve(&mut self, keys: &mut (dyn Keys + Send)) -> Result<(), Error> {
        while let Some(asked) = self.next().await? {
            let reply = device::answer(keys, asked.request());
            match asked.reply(reply).await {
                Err(Error::Gone { .. }) => break,
                replied => replied?,
            }
        }
        Ok(())
    }

    /// The next frame; `None` at the end.
    async fn read(&mut self) -> Result<Option<Frame>, Error> {
        match next(&mut self.reader, &mut self.decoder).await {
            Ok(frame) => Ok(frame),
            Err(FrameError::Io(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // Those who answer may hold the line longer.
        self.writing.abort();
    }
}

async fn write(mut writer: OwnedWriteHalf, mut frames: mpsc::Receiver<Zeroizing<Vec<u8>>>) {
    while let Some(frame) = frames.recv().await {
        if writer.write_all(&frame).await.is_err() {
            return;
        }
    }
}

impl Line {
    async fn send(&self, frame: &Frame) -> Result<(), Error> {
        let mut bytes = Zeroizing::new(Vec::new());
        frame::encode(frame, &mut bytes)?;
        self.outgoing.send(bytes).await.map_err(|_| gone())
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Cancelled>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cancel(&self, id: u64) {
        if let Some(cancelled) = self.open().get(&id) {
            cancelled.it_is.store(true, Ordering::Relaxed);
            cancelled.told.notify_one();
        }
    }
}

/// A request to the device. It may be answered by any task, and in any order. One that is dropped
/// fails.
pub struct Asked {
    line: Arc<Line>,
    id: u64,
    deadline: Option<Instant>,
    request: Request,
    cancelled: Arc<Cancelled>,
    is_answered: bool,
}

impl Asked {
    /// What is asked for.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// When nobody waits for the reply any more, if that is known.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether nobody waits for the reply any more. It is answered nevertheless.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.it_is.load(Ordering::Relaxed)
    }

    /// Waits until nobody waits for the reply any more. [`Attachment::next`] has to be polled
    /// meanwhile.
    pub async fn cancelled(&self) {
        while !self.is_cancelled() {
            self.cancelled.told.notified().await;
        }
    }

    /// Tells the daemon that the request waits for a person, or does so no longer.
    ///
    /// # Errors
    /// What happens to the connection.
    pub async fn event(&self, kind: Happening) -> Result<(), Error> {
        self.line.send(&device::event(self.id, kind)).await
    }

    /// Answers.
    ///
    /// # Errors
    /// What happens to the connection; a reply that is longer than a frame.
    pub async fn reply(mut self, reply: Reply) -> Result<(), Error> {
        self.is_answered = true;
        self.line.open().remove(&self.id);
        self.line.send(&device::reply(self.id, reply)).await
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if self.is_answered {
            return;
        }
        self.line.open().remove(&self.id);
        let mut bytes = Zeroizing::new(Vec::new());
        if frame::encode(&device::reply(self.id, device::dropped()), &mut bytes).is_ok() {
            // Where so much waits to be written, the daemon reads nothing anyway.
            let _ = self.line.outgoing.try_send(bytes);
        }
    }
}

fn gone() -> Error {
    Error::Gone {
        why: "the connection to the daemon ended".into(),
    }
}
