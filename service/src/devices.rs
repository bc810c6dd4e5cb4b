//! The devices of one connection: requests to them go out, their replies and events come in.
//!
//! Requests come from threads that serve tokens, as does what an [`Outbox`] sends. They have ids of
//! the daemon's own, so none of them is mistaken for an answer to the program.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use claviger_attached::{Asked, Attachment, Failure, Happening, Link, Reply};
use claviger_client::wire::{DeviceCancel, DeviceRequest, Frame, device_reply, frame::Content};
use claviger_client::wire::{device_event::Kind, device_request};
use claviger_token::sync::lock;
use claviger_token::{Error, TokenId};
use tokio::sync::oneshot;

use crate::Refusal;
use crate::device_messages as messages;
use crate::limits::Taken;
use crate::outbox::Outbox;

/// So many devices one connection attaches at most.
const MOST_DEVICES: usize = 8;

/// So many requests to one device are in flight at most.
const MOST_REQUESTS: usize = 32;

/// So many events of one request are told; what is too much is dropped.
const MOST_EVENTS: usize = 64;

/// So often it is looked whether a request has ended meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The devices of one connection.
#[derive(Default)]
pub(crate) struct Channel {
    /// Whether it ever had one: most connections have none.
    is_used: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    devices: HashMap<u32, Plugged>,
    last_device: u32,
    /// What is to be sent, each with the device that it is for.
    frames: VecDeque<(u32, Frame)>,
    asked: HashMap<u64, Waiting>,
    last_id: u64,
    /// Who attaches a device and has to prove it, by request.
    proofs: HashMap<u64, oneshot::Sender<Vec<u8>>>,
    /// Why the connection has to end.
    broken: Option<&'static str>,
    is_over: bool,
}

/// A device of the connection.
struct Plugged {
    /// `None` as long as it is being attached.
    attachment: Option<Attachment>,
    token: TokenId,
    /// The program has been told what the device is called.
    is_announced: bool,
    _taken: Taken,
}

/// A request that has no reply yet.
struct Waiting {
    device: u32,
    said: SyncSender<Said>,
    events: usize,
}

enum Said {
    Reply(device_reply::Reply),
    Event(Happening),
}

impl Channel {
    /// What to send next.
    pub(crate) fn next_frame(&self) -> Option<Frame> {
        if !self.is_used.load(Ordering::Relaxed) {
            return None;
        }
        let mut inner = lock(&self.inner);
        let Inner {
            frames, devices, ..
        } = &mut *inner;
        let is_known = |device: &u32| devices.get(device).is_none_or(|its| its.is_announced);
        let at = frames.iter().position(|(device, _)| is_known(device))?;
        frames.remove(at).map(|(_, frame)| frame)
    }

    /// Whether the connection has devices that others may need.
    pub(crate) fn has_devices(&self) -> bool {
        self.is_used.load(Ordering::Relaxed) && !lock(&self.inner).devices.is_empty()
    }

    /// Why the connection has to end, if a device broke the rules.
    pub(crate) fn broken(&self) -> Option<Refusal> {
        if !self.is_used.load(Ordering::Relaxed) {
            return None;
        }
        lock(&self.inner).broken.take().map(Refusal::TooSlow)
    }

    /// The connection has ended: its devices are gone, and nobody waits any more.
    pub(crate) fn end(&self) {
        if !self.is_used.load(Ordering::Relaxed) {
            return;
        }
        let mut inner = lock(&self.inner);
        inner.is_over = true;
        inner.frames.clear();
        inner.proofs.clear();
        let asked = std::mem::take(&mut inner.asked);
        let devices = std::mem::take(&mut inner.devices);
        drop(inner);
        // Those who wait see that the device is gone, so it is gone first.
        drop(devices);
        drop(asked);
    }

    /// The proof of the request `id`, when it comes.
    pub(crate) fn proof_of(&self, id: u64) -> oneshot::Receiver<Vec<u8>> {
        self.is_used.store(true, Ordering::Relaxed);
        let (sender, proof) = oneshot::channel();
        let mut inner = lock(&self.inner);
        if !inner.is_over {
            inner.proofs.insert(id, sender);
        }
        proof
    }

    /// A proof. One that nobody waits for is dropped.
    pub(crate) fn proven(&self, id: u64, signature: Vec<u8>) {
        if self.is_used.load(Ordering::Relaxed)
            && let Some(waits) = lock(&self.inner).proofs.remove(&id)
        {
            let _ = waits.send(signature);
        }
    }

    /// Nobody waits for the proof any more.
    pub(crate) fn forget_proof(&self, id: u64) {
        lock(&self.inner).proofs.remove(&id);
    }

    /// A place for one more device, and its number.
    ///
    /// # Errors
    /// [`Refusal::Busy`].
    pub(crate) fn place(&self, token: TokenId, taken: Taken) -> Result<u32, Refusal> {
        let mut inner = lock(&self.inner);
        if inner.devices.len() >= MOST_DEVICES {
            return Err(Refusal::Busy {
                what: "devices of one connection",
                most: MOST_DEVICES,
            });
        }
        inner.last_device = inner.last_device.wrapping_add(1);
        let device = inner.last_device;
        let plugged = Plugged {
            attachment: None,
            token,
            is_announced: false,
            _taken: taken,
        };
        inner.devices.insert(device, plugged);
        Ok(device)
    }

    /// The device is attached; unless the connection has ended meanwhile.
    pub(crate) fn plug(&self, device: u32, attachment: Attachment) {
        let mut inner = lock(&self.inner);
        match inner.devices.get_mut(&device) {
            Some(plugged) => plugged.attachment = Some(attachment),
            None => {
                drop(inner);
                drop(attachment);
            }
        }
    }

    /// The answer that says what the device is called is about to be sent.
    pub(crate) fn announce(&self, device: u32) {
        if let Some(plugged) = lock(&self.inner).devices.get_mut(&device) {
            plugged.is_announced = true;
        }
    }

    /// The device is gone. Its name, if it was there.
    pub(crate) fn unplug(&self, device: u32) -> Option<TokenId> {
        let mut inner = lock(&self.inner);
        let gone = inner.devices.remove(&device);
        inner.frames.retain(|(to, _)| *to != device);
        let (its, others): (HashMap<_, _>, _) = std::mem::take(&mut inner.asked)
            .into_iter()
            .partition(|(_, waiting)| waiting.device == device);
        inner.asked = others;
        drop(inner);
        let token = gone.as_ref().map(|plugged| plugged.token.clone());
        // As at the end of the connection.
        drop(gone);
        drop(its);
        token
    }

    /// A reply to a request. One whose request was given up is dropped.
    ///
    /// # Errors
    /// What ends the connection.
    pub(crate) fn replied(
        &self,
        id: u64,
        reply: Option<device_reply::Reply>,
    ) -> Result<(), Refusal> {
        let mut inner = lock(&self.inner);
        inner.check_id(id)?;
        let Some(waiting) = inner.asked.remove(&id) else {
            return Ok(());
        };
        let reply = reply.ok_or(Refusal::BadRequest("its reply is unknown"))?;
        // There is a place for it beside all events.
        let _ = waiting.said.try_send(Said::Reply(reply));
        Ok(())
    }

    /// An event of a request.
    ///
    /// # Errors
    /// What ends the connection.
    pub(crate) fn happened(&self, id: u64, kind: Kind) -> Result<(), Refusal> {
        let mut inner = lock(&self.inner);
        inner.check_id(id)?;
        let what = match kind {
            Kind::TouchNeeded => Happening::TouchNeeded,
            Kind::ApprovalNeeded => Happening::ApprovalNeeded,
            Kind::PersonDone => Happening::PersonDone,
            // A newer program may say more.
            Kind::Unspecified => return Ok(()),
        };
        if let Some(waiting) = inner.asked.get_mut(&id)
            && waiting.events < MOST_EVENTS
        {
            waiting.events += 1;
            let _ = waiting.said.try_send(Said::Event(what));
        }
        Ok(())
    }

    fn ask(
        &self,
        device: u32,
        request: device_request::Request,
        deadline_ms: u32,
    ) -> Result<(u64, Receiver<Said>), Failure> {
        let mut inner = lock(&self.inner);
        if !inner.devices.contains_key(&device) {
            return Err(Failure::Gone);
        }
        let its = inner.asked.values().filter(|one| one.device == device);
        if its.count() >= MOST_REQUESTS {
            return Err(Failure::Busy);
        }
        inner.last_id += 1;
        let id = inner.last_id;
        let (sender, said) = sync_channel(MOST_EVENTS + 1);
        let waiting = Waiting {
            device,
            said: sender,
            events: 0,
        };
        inner.asked.insert(id, waiting);
        let request = DeviceRequest {
            device,
            request: Some(request),
        };
        let frame = Frame {
            id,
            deadline_ms,
            content: Some(Content::DeviceRequest(request)),
        };
        inner.frames.push_back((device, frame));
        Ok((id, said))
    }

    /// Nobody waits for the reply any more: the program is told, if it was asked. Whether it was.
    fn cancel(&self, device: u32, id: u64) -> bool {
        let mut inner = lock(&self.inner);
        let before = inner.frames.len();
        inner.frames.retain(|(_, frame)| frame.id != id);
        let was_asked = inner.frames.len() == before;
        if was_asked && inner.asked.contains_key(&id) {
            let cancel = Frame::new(id, Content::DeviceCancel(DeviceCancel {}));
            inner.frames.push_back((device, cancel));
        }
        was_asked
    }

    fn forget(&self, id: u64) {
        lock(&self.inner).asked.remove(&id);
    }

    fn break_off(&self, device: u32, why: &'static str) {
        self.unplug(device);
        lock(&self.inner).broken = Some(why);
    }
}

impl Inner {
    /// # Errors
    /// [`Refusal::BadRequest`] for an id that no request had.
    fn check_id(&self, id: u64) -> Result<(), Refusal> {
        match id != 0 && id <= self.last_id {
            true => Ok(()),
            false => Err(Refusal::BadRequest("no device was asked for this")),
        }
    }
}

/// The way to one device.
pub(crate) struct DeviceLink {
    pub(crate) channel: Arc<Channel>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) device: u32,
}

impl DeviceLink {
    fn wait(&self, id: u64, said: &Receiver<Said>, asked: &Asked<'_>) -> Result<Reply, Failure> {
        let mut ended: Option<(Error, Instant)> = None;
        loop {
            let pause = match &ended {
                None => asked.call.at_most(LOOK_AGAIN),
                Some((_, until)) => until.saturating_duration_since(Instant::now()),
            };
            match said.recv_timeout(pause) {
                Ok(Said::Reply(reply)) => return messages::reply(&asked.request, reply),
                Ok(Said::Event(what)) if ended.is_none() => (asked.heard)(what),
                Ok(Said::Event(_)) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Failure::Gone),
            }
            if ended.is_none()
                && let Err(error) = asked.call.check()
            {
                if !self.channel.cancel(self.device, id) {
                    return Err(Failure::NotBegun(error));
                }
                self.outbox.wake();
                ended = Some((error, Instant::now() + asked.patience));
            }
            if let Some((error, until)) = &ended
                && Instant::now() >= *until
            {
                return Err(Failure::Ended(error.clone()));
            }
        }
    }
}

impl Link for DeviceLink {
    fn ask(&self, asked: &Asked<'_>) -> Result<Reply, Failure> {
        let left = asked.call.at_most(Duration::MAX);
        // A deadline that is far is as good as none, which is 0.
        let left = u32::try_from(left.as_millis().max(1)).unwrap_or(0);
        let request = messages::request(&asked.request)?;
        let (id, said) = self.channel.ask(self.device, request, left)?;
        self.outbox.wake();
        let reply = self.wait(id, &said, asked);
        self.channel.forget(id);
        reply
    }

    fn end(&self, why: &'static str) {
        self.channel.break_off(self.device, why);
        self.outbox.wake();
    }
}
