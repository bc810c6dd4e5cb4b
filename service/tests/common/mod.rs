//! A daemon in this process, and a peer that says frames to it, right ones and wrong ones.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::fs::{Permissions, set_permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use claviger_client::frame::{self, Decoder};
use claviger_client::wire::{self, Frame, engine_msg::Msg, frame::Content};
use claviger_engine::message::RequestGenerateIdentity;
use claviger_engine::{Backend, Capabilities, EngineId, IdParams, Node, Registry};
use claviger_memory::MemoryDriver;
use claviger_service::reload::Changes;
use claviger_service::{Limits, Listening, Service};
use claviger_token::{Call, KeyUse, PublicKey, Signature, SignatureScheme};
use rustix::process::{Gid, Uid, getuid};
use tokio::runtime::Runtime;

/// What is waited for comes by then, or never.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// A daemon that serves one socket.
pub(crate) struct Daemon {
    pub(crate) service: Service,
    runtime: Runtime,
    path: PathBuf,
    ended: Mutex<Receiver<()>>,
    _folder: tempfile::TempDir,
}

/// Whether a test is skipped since only root connects as other users. Says so.
pub(crate) fn is_no_root() -> bool {
    let is_skipped = !getuid().is_root();
    if is_skipped {
        println!("SKIPPED: only root connects as other users");
    }
    is_skipped
}

/// A node with keys in memory, and the identity `alice` on it.
pub(crate) fn node() -> (Runtime, Node) {
    let runtime = runtime();
    let registry = Registry::in_memory().unwrap();
    let node = Node::builder(registry).driver(MemoryDriver::new()).build();
    runtime.block_on(generate(&node, "alice", "memory:"));
    (runtime, node)
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

pub(crate) async fn generate(node: &Node, name: &str, backend: &str) {
    let request = RequestGenerateIdentity {
        backend: Backend::from(backend),
        params: IdParams::P256,
        capabilities: Capabilities::CommitAndDecrypt,
    };
    let call = Call::unlimited();
    node.generate(&EngineId::local(name), request, &call)
        .await
        .unwrap();
}

impl Daemon {
    /// With `alice` in memory, and these limits.
    pub(crate) fn with(limits: Limits) -> Self {
        let (runtime, node) = node();
        Daemon::of(runtime, Service::builder(node).limits(limits).build())
    }

    pub(crate) fn new() -> Self {
        Daemon::with(Limits::default())
    }

    pub(crate) fn of(runtime: Runtime, service: Service) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let socket = Listening::bind("api", &path, 0o600).unwrap();
        let (serving, (done, ended)) = (service.clone(), channel());
        runtime.spawn(async move {
            serving.serve(vec![socket]).await.unwrap();
            let _ = done.send(());
        });
        Daemon {
            service,
            runtime,
            path,
            ended: Mutex::new(ended),
            _folder: folder,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A peer that has said hello, and has heard it.
    pub(crate) fn peer(&self) -> Peer {
        let mut peer = self.stranger();
        peer.send(&hello(1, false));
        assert_eq!(peer.next().kind(), "hello");
        peer
    }

    /// A peer that has said hello, and answers whenever it is asked for a PIN.
    pub(crate) fn peer_with(&self, pin: &str) -> Peer {
        let mut peer = self.stranger();
        peer.pin = Some(pin.to_owned());
        peer.send(&hello(1, true));
        assert_eq!(peer.next().kind(), "hello");
        peer
    }

    /// All users come to its socket.
    pub(crate) fn is_for_all(&self) {
        let folder = self.path.parent().unwrap();
        set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
        set_permissions(&self.path, Permissions::from_mode(0o666)).unwrap();
    }

    /// A peer of this user, who has said hello, and answers with this PIN if there is one.
    pub(crate) fn peer_of(&self, uid: u32, pin: Option<&str>) -> Peer {
        let path = self.path.clone();
        // The kernel has a user for each thread, and a socket has that of who connects it.
        let connected = std::thread::spawn(move || {
            let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
            rustix::thread::set_thread_res_gid(group, group, group).unwrap();
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            Peer::to(&path)
        });
        let mut peer = connected.join().unwrap();
        peer.pin = pin.map(str::to_owned);
        peer.send(&hello(1, pin.is_some()));
        assert_eq!(peer.next().kind(), "hello");
        peer
    }

    /// A peer that has not said anything.
    pub(crate) fn stranger(&self) -> Peer {
        Peer::to(&self.path)
    }

    /// The public key of an identity.
    pub(crate) fn key(&self, name: &str, usage: KeyUse) -> PublicKey {
        let registry = self.service.node().registry();
        let info = registry.identity(&EngineId::local(name)).unwrap().unwrap();
        info.key(usage).unwrap().public_key.clone()
    }

    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Has it go on by other settings.
    pub(crate) fn change(&self, changes: Changes) {
        let _runtime = self.runtime.enter();
        self.service.change(changes);
    }

    /// Drains it elsewhere.
    pub(crate) fn drain(&self, limit: Duration) -> JoinHandle<bool> {
        let (service, runtime) = (self.service.clone(), self.runtime.handle().clone());
        std::thread::spawn(move || runtime.block_on(service.drain(limit)))
    }

    /// It has stopped serving.
    pub(crate) fn has_ended(&self) {
        self.ended.lock().unwrap().recv_timeout(LONG).unwrap();
    }

    /// Waits until there are so many connections, and so many requests in flight.
    pub(crate) fn settles_at(&self, connections: u32, in_flight: u32) {
        let end = Instant::now() + LONG;
        loop {
            let status = self.service.status();
            let now = (status.connections, status.requests_in_flight);
            if now == (connections, in_flight) {
                return;
            }
            assert!(
                Instant::now() < end,
                "connections and requests in flight: {now:?}"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// It still serves others.
    pub(crate) fn serves(&self) {
        let mut peer = self.peer();
        peer.send(&sign(1, "alice", b"still there"));
        self.check(&peer.next(), "alice", b"still there");
    }

    /// The frame has the identity's signature over the message.
    pub(crate) fn check(&self, frame: &Frame, name: &str, message: &[u8]) {
        let signature = signature(frame);
        self.key(name, KeyUse::Sign)
            .verify(message, &signature)
            .unwrap();
    }
}

/// One end of a connection.
pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
    decoder: Decoder,
    pin: Option<String>,
    /// How often it was asked for a PIN.
    pub(crate) asked: usize,
    /// The label of the token in the last of these requests.
    pub(crate) label: String,
}

impl Peer {
    pub(crate) fn to(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        Peer {
            stream,
            decoder: Decoder::new(),
            pin: None,
            asked: 0,
            label: String::new(),
        }
    }

    pub(crate) fn send(&mut self, frame: &Frame) {
        frame::write(frame, &mut self.stream).unwrap();
    }

    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next frame.
    pub(crate) fn next(&mut self) -> Frame {
        self.next_or_end().expect("the daemon ended the connection")
    }

    /// The next frame; `None` at the end.
    pub(crate) fn next_or_end(&mut self) -> Option<Frame> {
        match frame::read(&mut self.stream, &mut self.decoder) {
            Ok(Some(asks)) if asks.kind() == "pin-request" => {
                self.asked += 1;
                if let Some(Content::PinRequest(asked)) = &asks.content {
                    self.label.clone_from(&asked.label);
                }
                let pin = self.pin.clone().map(String::into_bytes);
                let answer = wire::PinAnswer { pin };
                self.send(&Frame::new(asks.id, Content::PinAnswer(answer)));
                self.next_or_end()
            }
            Ok(Some(told)) if told.kind() == "event" => self.next_or_end(),
            Ok(frame) => frame,
            Err(frame::FrameError::Io(error)) if error.kind() == ErrorKind::ConnectionReset => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// The next frame, an event, too; `None` if none comes in time.
    pub(crate) fn any_within(&mut self, limit: Duration) -> Option<Frame> {
        self.stream.set_read_timeout(Some(limit)).unwrap();
        let read = frame::read(&mut self.stream, &mut self.decoder);
        self.stream.set_read_timeout(Some(LONG)).unwrap();
        match read {
            Ok(frame) => Some(frame.expect("the daemon ended the connection")),
            Err(frame::FrameError::Io(error)) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// The connection ends after an error about it, with this code.
    pub(crate) fn ends_with(&mut self, code: &str) {
        let frame = loop {
            let frame = self.next();
            if frame.kind() != "hello" {
                break frame;
            }
        };
        assert_eq!(
            (frame.id, error_code(&frame).as_str()),
            (0, code),
            "{frame:?}"
        );
        assert!(self.next_or_end().is_none());
    }

    /// The daemon has closed the connection.
    pub(crate) fn is_cut_off(&mut self) {
        let mut rest = [0; 4096];
        loop {
            match self.stream.read(&mut rest) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

pub(crate) fn hello(version: u32, answers_pins: bool) -> Frame {
    let hello = wire::Hello {
        version,
        program: "test".to_owned(),
        answers_pins,
        ..wire::Hello::default()
    };
    Frame::new(0, Content::Hello(hello))
}

fn engine(id: u64, target: String, msg: Msg, data_follows: bool) -> Frame {
    let target = wire::EngineId {
        name: target,
        ..wire::EngineId::default()
    };
    let message = wire::EngineMsg {
        target: Some(target),
        data_follows,
        msg: Some(msg),
        ..wire::EngineMsg::default()
    };
    Frame::new(id, Content::Engine(message))
}

pub(crate) fn sign(id: u64, name: &str, message: &[u8]) -> Frame {
    let request = wire::RequestCommitment {
        data: message.to_vec(),
        purpose: None,
    };
    engine(
        id,
        format!("{name}_committer_{name}"),
        Msg::RequestCommitment(request),
        false,
    )
}

/// A request to sign whose message comes in chunks: it lasts until they have come.
pub(crate) fn sign_long(id: u64, name: &str) -> Frame {
    let request = Msg::RequestCommitment(wire::RequestCommitment::default());
    engine(id, format!("{name}_committer_{name}"), request, true)
}

pub(crate) fn chunk(id: u64, data: &[u8], last: bool) -> Frame {
    let data = data.to_vec();
    Frame::new(id, Content::Chunk(wire::Chunk { data, last }))
}

pub(crate) fn decrypt(id: u64, target: &str, data: Vec<u8>, header_only: bool) -> Frame {
    let request = wire::RequestDecryption {
        data,
        header_only,
        unattended: false,
    };
    engine(
        id,
        target.to_owned(),
        Msg::RequestDecryption(request),
        false,
    )
}

pub(crate) fn encrypt(id: u64, to: &str, data: Vec<u8>, data_follows: bool) -> Frame {
    let to = wire::EngineId {
        name: to.to_owned(),
        ..wire::EngineId::default()
    };
    let request = wire::RequestEncrypt {
        data,
        external_identity: Some(to),
        use_reads_for: false,
        preference: None,
    };
    engine(
        id,
        "encryption".to_owned(),
        Msg::RequestEncrypt(request),
        data_follows,
    )
}

/// A request to Identity Management, about the identity `name`.
pub(crate) fn manage(id: u64, name: &str, msg: Msg) -> Frame {
    let mut frame = engine(id, "identity_management".to_owned(), msg, false);
    if let Some(Content::Engine(message)) = &mut frame.content {
        message.identity = name.to_owned();
    }
    frame
}

pub(crate) fn ask_daemon(id: u64, request: wire::daemon_request::Request) -> Frame {
    let request = wire::DaemonRequest {
        request: Some(request),
    };
    Frame::new(id, Content::DaemonRequest(request))
}

/// The message of an engine's reply.
pub(crate) fn reply(frame: &Frame) -> &Msg {
    match &frame.content {
        Some(Content::Engine(wire::EngineMsg { msg: Some(msg), .. })) => msg,
        _ => panic!("no reply: {frame:?}"),
    }
}

pub(crate) fn signature(frame: &Frame) -> Signature {
    match reply(frame) {
        Msg::ReplyCommitment(wire::ReplyCommitment {
            commitment: Some(made),
            err: None,
        }) => {
            let scheme = (SignatureScheme::EcdsaP256Sha256.name() == made.scheme)
                .then_some(SignatureScheme::EcdsaP256Sha256)
                .unwrap();
            Signature::new(scheme, made.bytes.clone()).unwrap()
        }
        other => panic!("no signature: {other:?}"),
    }
}

/// The code of an error, in place of a reply or in one.
pub(crate) fn error_code(frame: &Frame) -> String {
    if let Some(Content::Error(error)) = &frame.content {
        return error.code.clone();
    }
    let err = match reply(frame) {
        Msg::ReplyCommitment(reply) => &reply.err,
        Msg::ReplyDecryption(reply) => &reply.err,
        Msg::ReplyEncrypt(reply) => &reply.err,
        Msg::ReplyGenerateIdentity(reply) => &reply.err,
        Msg::ReplyConnectIdentity(reply) => &reply.err,
        Msg::ReplyDeleteIdentity(reply) => &reply.err,
        other => panic!("no error: {other:?}"),
    };
    err.as_ref()
        .map_or_else(|| panic!("no error: {frame:?}"), |error| error.code.clone())
}

/// The daemon asks for more of the data of this request.
pub(crate) fn is_asked_for(frame: &Frame, id: u64) -> bool {
    frame.id == id && matches!(&frame.content, Some(Content::Chunk(chunk)) if chunk.data.is_empty())
}
