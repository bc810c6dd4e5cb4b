//! A daemon of another version.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;

use claviger_client::frame::{self, Decoder, PROTOCOL};
use claviger_client::wire::{Error, Frame, Hello, frame::Content};

use super::common::{Daemon, Stage};

/// A daemon that answers a greeting so; what it heard.
fn daemon_that_says(stage: &Stage, answer: Content) -> JoinHandle<Vec<Frame>> {
    let folder = stage.runtime().join("claviger");
    fs::create_dir(&folder).unwrap();
    let listener = UnixListener::bind(folder.join("api.sock")).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut decoder = Decoder::new();
        let mut heard = Vec::new();
        heard.extend(frame::read(&mut stream, &mut decoder).unwrap());
        frame::write(&Frame::new(0, answer), &mut stream).unwrap();
        while let Ok(Some(frame)) = frame::read(&mut stream, &mut decoder) {
            heard.push(frame);
        }
        heard
    })
}

#[test]
fn a_daemon_of_another_version_is_told_so_and_the_command_fails() {
    let stage = Stage::with_alice();
    let hello = Hello {
        version: PROTOCOL + 1,
        ..Hello::default()
    };
    let daemon = daemon_that_says(&stage, Content::Hello(hello));
    let failed = stage.run(["--json", "sign", "alice", "letter"]);
    let failed = failed.fails(1, "\"code\":\"protocol-version\"");
    assert!(failed.err().contains("version 2"), "{}", failed.err());
    let heard = daemon.join().unwrap();
    let objection = heard.into_iter().find_map(|frame| match frame.content {
        Some(Content::Error(error)) => Some(error),
        _ => None,
    });
    let objection = objection.expect("it is told");
    assert_eq!(objection.code, "protocol-version");
    assert_eq!(objection.fields["speaks"], PROTOCOL.to_string());
}

#[test]
fn a_daemon_that_refuses_our_version_is_believed() {
    let stage = Stage::with_alice();
    let refusal = Error {
        code: "protocol-version".into(),
        message: "I am newer".into(),
        fields: [("speaks".to_owned(), "7".to_owned())].into(),
        ..Error::default()
    };
    let daemon = daemon_that_says(&stage, Content::Error(refusal));
    let failed = stage.run(["sign", "alice", "letter"]);
    failed.fails(1, "the daemon speaks version 7 of the protocol");
    daemon.join().unwrap();
}

#[test]
fn the_daemon_refuses_a_caller_of_another_version_and_says_what_it_speaks() {
    let stage = Stage::new();
    let _daemon = Daemon::start(&stage);
    let path = stage.runtime().join("claviger/api.sock");
    let mut stream = UnixStream::connect(path).unwrap();
    let hello = Hello {
        version: PROTOCOL + 1,
        ..Hello::default()
    };
    frame::write(&Frame::new(0, Content::Hello(hello)), &mut stream).unwrap();
    let mut decoder = Decoder::new();
    let mut refused = None;
    while let Ok(Some(frame)) = frame::read(&mut stream, &mut decoder) {
        if let Some(Content::Error(error)) = frame.content {
            refused = Some(error);
        }
    }
    let refused = refused.expect("it says why before it ends the connection");
    assert_eq!(refused.code, "protocol-version");
    assert_eq!(refused.fields["speaks"], PROTOCOL.to_string());
}
