//! The frames of a daemon and its callers: any bytes, frames that were good once, and lengths that
//! are not true, all of it in pieces.

use std::sync::LazyLock;

use claviger_client::device;
use claviger_client::frame::{self, Decoder, FrameError, LIMIT};
use claviger_client::request::{self, Commit, Generate, Request};
use claviger_client::wire::{
    self, Cancel, Chunk, Event, Frame, Hello, KeyUse, PinAnswer, PinRequest, TokenId,
    frame::Content,
};

use crate::shared::Input;

/// A conversation, as its bytes.
static VALID: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let commit = Commit {
        engine: &request::committer("alice"),
        data: b"message",
        purpose: request::raw(),
    };
    let generate = Generate {
        identity: "alice",
        backend: "pkcs11:token=bench",
        params: "p256",
        capabilities: &[KeyUse::Sign, KeyUse::Decrypt],
    };
    let token = Some(TokenId::default());
    let spec = device::spec("p256", KeyUse::Sign);
    let attach = wire::AttachDevice {
        device: Some(device::device(
            "fuzz",
            vec![7; 91],
            std::slice::from_ref(&spec),
        )),
    };
    let attach = Content::DaemonRequest(wire::DaemonRequest {
        request: Some(wire::daemon_request::Request::AttachDevice(attach)),
    });
    let key = device::DeviceKey {
        slot: "1".into(),
        spec: Some(spec.clone()),
        public_key: vec![7; 91],
        label: "alice".into(),
    };
    let reply = |reply| Content::DeviceReply(wire::DeviceReply { reply: Some(reply) });
    let contents = [
        Content::Hello(Hello {
            version: frame::PROTOCOL,
            program: "fuzz".into(),
            ..Hello::default()
        }),
        commit.content(false),
        generate.content(false),
        Content::PinRequest(PinRequest {
            token: token.clone(),
            tries_left: Some(3),
            ..PinRequest::default()
        }),
        Content::PinAnswer(PinAnswer {
            pin: Some(b"1234".to_vec()),
        }),
        Content::Event(Event {
            token,
            ..Event::default()
        }),
        Content::Chunk(Chunk {
            data: vec![7; 32],
            last: true,
        }),
        Content::Cancel(Cancel {}),
        attach,
        Content::DeviceProof(wire::DeviceProof {
            signature: vec![7; 64],
        }),
        Content::DeviceRequest(wire::DeviceRequest {
            device: 1,
            request: Some(device::Request::Generate(device::DeviceGenerate {
                slot: "5d41402abc4b2a76b9719d911017c592".into(),
                spec: Some(spec),
                label: "claviger-unfinished-".into(),
            })),
        }),
        reply(device::Reply::Keys(device::DeviceKeys { keys: vec![key] })),
        reply(device::Reply::Secret(device::DeviceSecret {
            secret: vec![7; 32],
        })),
        reply(device::Reply::Failure(device::failure("rejected", "no"))),
        Content::DeviceEvent(wire::DeviceEvent {
            kind: device::Happening::ApprovalNeeded.into(),
        }),
        Content::DeviceCancel(wire::DeviceCancel {}),
    ];
    let mut bytes = Vec::new();
    for (id, content) in contents.into_iter().enumerate() {
        frame::encode(&Frame::new(id as u64, content), &mut bytes).unwrap();
    }
    bytes
});

/// One input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let what = input.byte().unwrap_or(0);
    let bytes = match what % 3 {
        0 => input.0.to_vec(),
        // One frame whose length is true.
        1 => {
            let mut bytes = (input.0.len() as u32).to_be_bytes().to_vec();
            bytes.extend_from_slice(input.0);
            bytes
        }
        _ => input.patch(&VALID),
    };
    let piece = usize::from(what / 3) + 1;
    let (frames, end) = decoded(&bytes, piece);
    let (same, same_end) = decoded(&bytes, usize::MAX);
    assert_eq!(frames, same);
    let code = |end: &Result<(), FrameError>| end.as_ref().map_err(FrameError::code).copied();
    assert_eq!(code(&end), code(&same_end));
    // What was read can be written, and is read again as the same.
    let mut written = Vec::new();
    for each in &frames {
        frame::encode(each, &mut written).unwrap();
    }
    let (again, end) = decoded(&written, piece);
    assert_eq!(frames, again);
    end.unwrap();
}

/// The frames before the end, and whether the end is between two frames.
fn decoded(bytes: &[u8], piece: usize) -> (Vec<Frame>, Result<(), FrameError>) {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let space = decoder.space();
        // It never gives more than twice what has arrived.
        assert!(!space.is_empty() && space.len() <= (2 * bytes.len()).max(4 << 10));
        assert!(space.len() <= 2 * LIMIT);
        let length = piece.min(space.len()).min(rest.len());
        space[..length].copy_from_slice(&rest[..length]);
        decoder.filled(length);
        rest = &rest[length..];
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(e) => return (frames, Err(e)),
            }
        }
    }
    (frames, decoder.end())
}
