//! A daemon that does what a test says: one script for each connection.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test program uses some of it"
)]

use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use claviger_client::Options;
use claviger_client::frame::{self, Decoder, FrameError, PROTOCOL};
use claviger_client::wire::{
    self, Chunk, EngineMsg, Frame, Hello, ReplyCommitment, Signature, engine_msg::Msg,
    frame::Content,
};

/// Longer than anything takes that works.
pub const LIMIT: Duration = Duration::from_secs(30);

pub const HOME: &str = "00112233";

/// A folder with a socket.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        Place {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    pub fn options(&self) -> Options {
        Options::new(self.socket())
    }
}

pub type Script = Box<dyn FnOnce(Side) + Send>;

pub fn script(script: impl FnOnce(Side) + Send + 'static) -> Script {
    Box::new(script)
}

/// A daemon in a thread; it is over after its last script.
pub struct Daemon(Option<JoinHandle<()>>);

impl Daemon {
    pub fn new(socket: &Path, scripts: Vec<Script>) -> Daemon {
        let listener = UnixListener::bind(socket).unwrap();
        Daemon(Some(thread::spawn(move || {
            for script in scripts {
                let (stream, _) = listener.accept().unwrap();
                script(Side::new(stream));
            }
        })))
    }

    /// Waits for it, and fails where a script did.
    pub fn end(mut self) {
        self.0.take().unwrap().join().unwrap();
    }
}

/// The daemon's side of a connection.
pub struct Side {
    pub stream: UnixStream,
    decoder: Decoder,
}

impl Side {
    pub fn new(stream: UnixStream) -> Side {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        Side {
            stream,
            decoder: Decoder::new(),
        }
    }

    /// The next frame; `None` is the end.
    pub fn next(&mut self) -> Option<Frame> {
        frame::read(&mut self.stream, &mut self.decoder).unwrap()
    }

    /// The next frame, which has to come.
    pub fn take(&mut self) -> (u64, Content) {
        let frame = self.next().unwrap();
        (frame.id, frame.content.unwrap())
    }

    /// The data of the next request to sign, and its id.
    pub fn request(&mut self) -> (u64, Vec<u8>) {
        match self.take() {
            (
                id,
                Content::Engine(EngineMsg {
                    msg: Some(Msg::RequestCommitment(asked)),
                    ..
                }),
            ) => (id, asked.data),
            other => panic!("{other:?}"),
        }
    }

    /// A caller that has gone by now is no failure: what it got is for the test to say.
    pub fn send(&mut self, id: u64, content: Content) {
        match frame::write(&Frame::new(id, content), &mut self.stream) {
            Err(FrameError::Io(e)) if is_gone(&e) => {}
            sent => sent.unwrap(),
        }
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Greets as a daemon of [`HOME`] does.
    pub fn greet(mut self) -> Side {
        self.greet_as(PROTOCOL, HOME);
        self
    }

    pub fn greet_as(&mut self, version: u32, home_id: &str) -> Hello {
        let (id, content) = self.take();
        assert_eq!(id, 0);
        let Content::Hello(hello) = content else {
            panic!("{content:?}");
        };
        assert_eq!(hello.version, PROTOCOL);
        self.send(
            0,
            Content::Hello(Hello {
                version,
                program: "scripted".into(),
                home_id: home_id.into(),
                is_own: true,
                answers_pins: false,
            }),
        );
        hello
    }

    /// Signs with the data itself.
    pub fn sign(&mut self, id: u64, data: &[u8]) {
        self.send(id, signed(data));
    }

    /// Asks for the next chunk of a request, and takes it.
    pub fn chunk(&mut self, id: u64) -> Chunk {
        self.send(id, Content::Chunk(Chunk::default()));
        match self.take() {
            (to, Content::Chunk(chunk)) if to == id => chunk,
            other => panic!("no chunk: {other:?}"),
        }
    }

    /// Asks for all data of a request.
    pub fn data(&mut self, id: u64) -> Vec<u8> {
        let mut data = Vec::new();
        loop {
            let chunk = self.chunk(id);
            data.extend_from_slice(&chunk.data);
            if chunk.last {
                return data;
            }
        }
    }

    pub fn refuse(&mut self, id: u64, code: &str) {
        self.send(id, error(code));
    }

    /// Until the caller goes.
    pub fn wait_for_the_end(&mut self) {
        loop {
            match frame::read(&mut self.stream, &mut self.decoder) {
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(FrameError::Io(e)) if is_gone(&e) => return,
                Err(e) => panic!("{e}"),
            }
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    [BrokenPipe, ConnectionReset].contains(&error.kind())
}

pub fn signed(data: &[u8]) -> Content {
    Content::Engine(EngineMsg {
        msg: Some(Msg::ReplyCommitment(ReplyCommitment {
            commitment: Some(Signature {
                scheme: "none".into(),
                bytes: data.into(),
            }),
            err: None,
        })),
        ..EngineMsg::default()
    })
}

pub fn error(code: &str) -> Content {
    Content::Error(wire::Error {
        code: code.into(),
        message: format!("it is `{code}`"),
        hint: "do something".into(),
        fields: [("token".to_owned(), "pkcs11:".to_owned())].into(),
    })
}

pub fn encoded(id: u64, content: Content) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(&Frame::new(id, content), &mut bytes).unwrap();
    bytes
}

/// Passes once the other side has said so.
pub fn gate() -> (impl FnOnce() + Send, impl FnOnce() + Send) {
    let (open, wait) = mpsc::channel::<()>();
    (
        move || open.send(()).unwrap(),
        move || wait.recv_timeout(LIMIT).unwrap(),
    )
}
