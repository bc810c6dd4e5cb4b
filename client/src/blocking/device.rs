//! Attaches a device, and answers what the daemon asks it for, without an async runtime.
//!
//! ```no_run
//! use claviger_client::Options;
//! use claviger_client::blocking::device::Attachment;
//! use claviger_client::device::{self, KeyUse, Reply};
//!
//! # fn sign(text: &[u8]) -> Vec<u8> { text.to_vec() }
//! # let public_key = Vec::new();
//! let options = Options::own().ok_or("XDG_RUNTIME_DIR is not set")?;
//! let keys = [device::spec("p256", KeyUse::Sign)];
//! let device = device::device("my device", public_key, &keys);
//! let mut attachment = Attachment::open(&options, device, |text| sign(text))?;
//! while let Some(asked) = attachment.next()? {
//!     asked.reply(Reply::Failure(device::failure("busy", "it does nothing yet")))?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::connection::Connection;
use super::socket::{Received, Socket};
use crate::device::{self, Device, Happening, Keys, Reply, Request, Step};
use crate::error::Error;
use crate::frame::{self, Decoder};
use crate::options::Options;
use crate::wire::{Frame, frame::Content};

/// How long the daemon may take to attach a device.
const ATTACHING: Duration = Duration::from_secs(30);

/// A device that is attached as long as this lives.
pub struct Attachment {
    line: Arc<Line>,
    decoder: Decoder,
    serial: String,
}

/// The connection, as those who answer use it.
struct Line {
    socket: Socket,
    /// One frame is written at a time.
    writer: Mutex<()>,
    /// The requests that are not answered, and whether somebody still waits for them.
    open: Mutex<HashMap<u64, Arc<AtomicBool>>>,
}

impl Attachment {
    /// Connects, and attaches a device. `prove` signs a text with the device's identity key, in the
    /// form of `DeviceReply.signature`.
    ///
    /// # Errors
    /// As [`Client::connect`](super::Client::connect); what the daemon refuses.
    pub fn open(
        options: &Options,
        device: Device,
        prove: impl FnOnce(&[u8]) -> Vec<u8>,
    ) -> Result<Self, Error> {
        let (socket, decoder, hello) = Connection::open(options, None)?.into_parts();
        let line = Line {
            socket,
            writer: Mutex::default(),
            open: Mutex::default(),
        };
        let mut attachment = Attachment {
            line: Arc::new(line),
            decoder,
            serial: String::new(),
        };
        attachment.attach(device, prove, &hello.home_id)?;
        Ok(attachment)
    }

    fn attach(
        &mut self,
        device: Device,
        prove: impl FnOnce(&[u8]) -> Vec<u8>,
        home_id: &str,
    ) -> Result<(), Error> {
        let until = Some(Instant::now() + ATTACHING);
        self.line.send(&device::attaching(device))?;
        let mut prove = Some(prove);
        loop {
            let frame = self.read(until)?.ok_or(Error::Deadline)?;
            match device::step(frame, home_id)? {
                Step::Read => {}
                Step::Prove(text) => {
                    let prove = prove.take().ok_or_else(crate::answer::unexpected)?;
                    self.line.send(&device::proof(prove(&text)))?;
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

    /// What the device is asked for next, and waits for it. `None`: the daemon ended the
    /// connection, as when it is restarted.
    ///
    /// # Errors
    /// What happens to the connection.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator over results goes on after an error"
    )]
    pub fn next(&mut self) -> Result<Option<Asked>, Error> {
        loop {
            let frame = match self.read(None) {
                Ok(frame) => frame,
                Err(Error::Gone { .. }) => None,
                Err(error) => return Err(error),
            };
            let Some(frame) = frame else { return Ok(None) };
            match (frame.id, frame.content) {
                (0, Some(Content::Error(_))) => return Ok(None),
                (id, Some(Content::DeviceCancel(_))) => self.line.cancel(id),
                (id, Some(Content::DeviceRequest(asked))) => match asked.request {
                    Some(request) => {
                        return Ok(Some(self.asked(id, frame.deadline_ms, request)));
                    }
                    None => self.line.send(&device::reply(id, device::unknown()))?,
                },
                _ => {}
            }
        }
    }

    fn asked(&self, id: u64, deadline_ms: u32, request: Request) -> Asked {
        let is_cancelled = Arc::<AtomicBool>::default();
        self.line.open().insert(id, Arc::clone(&is_cancelled));
        Asked {
            line: Arc::clone(&self.line),
            id,
            deadline: device::deadline(deadline_ms),
            request,
            is_cancelled,
            is_answered: false,
        }
    }

    /// Answers by these keys until the daemon ends the connection.
    ///
    /// # Errors
    /// What happens to the connection.
    pub fn serve(&mut self, keys: &mut dyn Keys) -> Result<(), Error> {
        while let Some(asked) = self.next()? {
            let reply = device::answer(keys, asked.request());
            match asked.reply(reply) {
                Err(Error::Gone { .. }) => break,
                replied => replied?,
            }
        }
        Ok(())
    }

    /// Ends the attachment from another thread.
    pub fn closer(&self) -> impl Fn() + Send + Sync + 'static {
        let line = Arc::clone(&self.line);
        move || line.socket.shut()
    }

    /// The next frame; `None` if none came in time.
    fn read(&mut self, until: Option<Instant>) -> Result<Option<Frame>, Error> {
        let gone = |why: String| Error::Gone { why };
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            // A timeout of less than a microsecond would be none.
            let timeout = left.map(|left| left.max(Duration::from_millis(1)));
            let set = self.line.socket.set_read_timeout(timeout);
            set.map_err(|e| gone(e.to_string()))?;
            match self.line.socket.read(self.decoder.space()) {
                Ok(Received::Bytes(length)) => self.decoder.filled(length),
                Ok(Received::Nothing) => {}
                Ok(Received::End) => {
                    self.decoder.end()?;
                    return Err(gone("the daemon closed the connection".into()));
                }
                Err(e) => return Err(gone(e.to_string())),
            }
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // Those who answer may hold the line longer.
        self.line.socket.shut();
    }
}

impl Line {
    fn send(&self, frame: &Frame) -> Result<(), Error> {
        let mut bytes = Zeroizing::new(Vec::new());
        frame::encode(frame, &mut bytes)?;
        let _turn = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.socket.write(&bytes, None).map_err(|_| Error::Gone {
            why: "the connection to the daemon ended".into(),
        })
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<AtomicBool>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cancel(&self, id: u64) {
        if let Some(is_cancelled) = self.open().get(&id) {
            is_cancelled.store(true, Ordering::Relaxed);
        }
    }
}

/// A request to the device. It may be answered on any thread, and in any order. One that is
/// dropped fails.
pub struct Asked {
    line: Arc<Line>,
    id: u64,
    deadline: Option<Instant>,
    request: Request,
    is_cancelled: Arc<AtomicBool>,
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
        self.is_cancelled.load(Ordering::Relaxed)
    }

    /// Tells the daemon that the request waits for a person, or does so no longer.
    ///
    /// # Errors
    /// What happens to the connection.
    pub fn event(&self, kind: Happening) -> Result<(), Error> {
        self.line.send(&device::event(self.id, kind))
    }

    /// Answers.
    ///
    /// # Errors
    /// What happens to the connection; a reply that is longer than a frame.
    pub fn reply(mut self, reply: Reply) -> Result<(), Error> {
        self.answer(reply)
    }

    fn answer(&mut self, reply: Reply) -> Result<(), Error> {
        self.is_answered = true;
        self.line.open().remove(&self.id);
        self.line.send(&device::reply(self.id, reply))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.is_answered {
            // If it cannot be told, the connection has ended.
            let _ = self.answer(device::dropped());
        }
    }
}
