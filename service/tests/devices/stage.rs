//! A daemon to which programs attach devices, such a program, and one that is played frame by frame.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use claviger_attached::{AttachedDriver, Devices};
use claviger_client::Options;
use claviger_client::blocking::device::Attachment;
use claviger_client::device::{Device, Happening, Reply, Request, attachment_text};
use claviger_client::wire::{self, Frame, daemon_reply, daemon_request, frame::Content};
use claviger_engine::{Node, Registry};
use claviger_memory::MemoryDriver;
use claviger_service::Service;
use claviger_token::Driver;
use tokio::runtime::Handle;

use super::common::{self, Daemon, LONG, Peer, ask_daemon, runtime};
use super::example::MemoryDevice;

/// A daemon to which programs attach devices, with `alice` in memory.
pub(crate) struct Stage {
    pub(crate) daemon: Daemon,
    pub(crate) devices: Devices,
    pub(crate) driver: Arc<AttachedDriver>,
    handle: Handle,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Stage::of(false)
    }

    pub(crate) fn of_the_system() -> Self {
        Stage::of(true)
    }

    fn of(is_system: bool) -> Self {
        let runtime = runtime();
        let handle = runtime.handle().clone();
        let devices = Devices::with_patience(Duration::from_millis(100));
        let driver = Arc::new(AttachedDriver::new(devices.clone()));
        let its_driver: Arc<dyn Driver> = driver.clone();
        let node = Node::builder(Registry::in_memory().unwrap())
            .driver(MemoryDriver::new())
            .drivers([its_driver])
            .build();
        runtime.block_on(common::generate(&node, "alice", "memory:"));
        let service = Service::builder(node)
            .devices(devices.clone())
            .system(is_system)
            .build();
        Stage {
            daemon: Daemon::of(runtime, service),
            devices,
            driver,
            handle,
        }
    }

    /// Waits for what is done in the daemon's runtime.
    pub(crate) fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.handle.block_on(work)
    }

    pub(crate) fn spawn(
        &self,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> tokio::task::JoinHandle<()> {
        self.handle.spawn(work)
    }

    pub(crate) fn home_id(&self) -> String {
        let home = self.daemon.service.node().registry().home_id();
        home.unwrap().unwrap_or_default()
    }

    pub(crate) fn options(&self) -> Options {
        Options::new(self.daemon.path())
    }

    /// Waits until so many devices are attached.
    pub(crate) fn has(&self, devices: usize) {
        let end = Instant::now() + LONG;
        while self.devices.count() != devices {
            assert!(Instant::now() < end, "{} devices", self.devices.count());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// A connection that attaches the device.
    pub(crate) fn open(&self, device: &MemoryDevice) -> Attachment {
        let prove = |text: &[u8]| device.prove(text);
        Attachment::open(&self.options(), device.describe(), prove).unwrap()
    }

    /// A program that serves the device.
    pub(crate) fn attach(&self, device: MemoryDevice) -> Program {
        self.attach_as(device, |_| {})
    }

    /// The same, which describes it otherwise.
    pub(crate) fn attach_as(
        &self,
        mut keys: MemoryDevice,
        change: impl FnOnce(&mut Device),
    ) -> Program {
        let mut description = keys.describe();
        change(&mut description);
        let prove = |text: &[u8]| keys.prove(text);
        let mut attachment = Attachment::open(&self.options(), description, prove).unwrap();
        let serial = attachment.serial().to_owned();
        let close = Box::new(attachment.closer());
        let thread = thread::spawn(move || {
            attachment.serve(&mut keys).unwrap();
            keys
        });
        Program {
            serial,
            close,
            thread,
        }
    }

    /// Attaches a device from a connection that the test plays; what it is called there.
    pub(crate) fn attach_by_hand(&self, peer: &mut Peer, id: u64, keys: &MemoryDevice) -> u32 {
        let answer = self.try_to_attach(peer, id, keys, keys.describe());
        match answer.content {
            Some(Content::DaemonReply(wire::DaemonReply {
                reply: Some(daemon_reply::Reply::DeviceAttached(attached)),
            })) => attached.device,
            other => panic!("not attached: {other:?}"),
        }
    }

    /// The answer to whom attaches a device, and proves its identity key if that is asked for.
    pub(crate) fn try_to_attach(
        &self,
        peer: &mut Peer,
        id: u64,
        keys: &MemoryDevice,
        description: Device,
    ) -> Frame {
        peer.send(&attaching(id, description));
        let first = peer.next();
        if first.kind() != "device-challenge" {
            return first;
        }
        let text = attachment_text(&self.home_id(), &challenge(&first));
        peer.send(&proof(id, keys.prove(&text)));
        peer.next()
    }
}

/// A program that serves a device on a thread of its own.
pub(crate) struct Program {
    serial: String,
    close: Box<dyn Fn() + Send + Sync>,
    thread: JoinHandle<MemoryDevice>,
}

impl Program {
    pub(crate) fn backend(&self) -> String {
        format!("attached:serial={}", self.serial)
    }

    /// Ends it, and waits until the daemon has seen that.
    pub(crate) fn stop(self, stage: &Stage) -> MemoryDevice {
        let before = stage.devices.count();
        (self.close)();
        let device = self.thread.join().unwrap();
        stage.has(before - 1);
        device
    }
}

pub(crate) fn attaching(id: u64, device: Device) -> Frame {
    let request = wire::AttachDevice {
        device: Some(device),
    };
    ask_daemon(id, daemon_request::Request::AttachDevice(request))
}

pub(crate) fn challenge(frame: &Frame) -> Vec<u8> {
    match &frame.content {
        Some(Content::DeviceChallenge(asked)) => asked.challenge.clone(),
        other => panic!("no challenge: {other:?}"),
    }
}

pub(crate) fn proof(id: u64, signature: Vec<u8>) -> Frame {
    Frame::new(id, Content::DeviceProof(wire::DeviceProof { signature }))
}

pub(crate) fn request(frame: &Frame) -> &Request {
    match &frame.content {
        Some(Content::DeviceRequest(wire::DeviceRequest {
            request: Some(request),
            ..
        })) => request,
        other => panic!("no request to a device: {other:?}"),
    }
}

pub(crate) fn reply(id: u64, reply: Reply) -> Frame {
    let reply = wire::DeviceReply { reply: Some(reply) };
    Frame::new(id, Content::DeviceReply(reply))
}

pub(crate) fn event(id: u64, kind: Happening) -> Frame {
    let kind = kind.into();
    Frame::new(id, Content::DeviceEvent(wire::DeviceEvent { kind }))
}
