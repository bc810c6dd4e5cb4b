//! The codec: whatever arrives, and in whatever pieces, is a frame or an error.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use claviger_client::frame::{self, CHUNK, Decoder, FrameError, LIMIT};
use claviger_client::wire::{
    Cancel, Chunk, Frame, Hello, PinAnswer, ReplyDecryption, RequestCommitment, RequestEncrypt,
    frame::Content,
};

fn hello(id: u64, program: &str) -> Frame {
    Frame::new(
        id,
        Content::Hello(Hello {
            version: frame::PROTOCOL,
            program: program.into(),
            ..Hello::default()
        }),
    )
}

fn encoded(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for each in frames {
        frame::encode(each, &mut bytes).unwrap();
    }
    bytes
}

/// All frames of these bytes, which arrive in pieces of this length.
fn decoded(bytes: &[u8], piece: usize) -> Result<Vec<Frame>, FrameError> {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let space = decoder.space();
        assert!(!space.is_empty());
        let length = piece.min(space.len()).min(rest.len());
        space[..length].copy_from_slice(&rest[..length]);
        decoder.filled(length);
        rest = &rest[length..];
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
    }
    decoder.end().map(|()| frames)
}

#[test]
fn frames_come_out_as_they_went_in_whatever_the_pieces() {
    let long = Frame::new(
        3,
        Content::Chunk(Chunk {
            data: vec![7; CHUNK],
            last: true,
        }),
    );
    let frames = [
        hello(0, "one"),
        Frame::new(u64::MAX, Content::Cancel(Cancel {})),
        long,
        hello(4, ""),
    ];
    let bytes = encoded(&frames);
    for piece in [1, 2, 3, 4, 5, 7, 64, 4095, 4096, 4097, 65_536, usize::MAX] {
        assert_eq!(decoded(&bytes, piece).unwrap(), frames, "{piece}");
    }
}

#[test]
fn a_length_over_the_limit_is_refused_before_its_bytes_arrive() {
    for length in [LIMIT as u32 + 1, 1 << 31, u32::MAX] {
        let refused = decoded(&length.to_be_bytes(), 1).unwrap_err();
        assert!(
            matches!(refused, FrameError::TooLong { length: said } if said == length as usize),
            "{refused}"
        );
        assert_eq!(refused.code(), "frame-too-long");
    }
}

#[test]
fn a_frame_over_the_limit_is_not_written() {
    let content = Content::Chunk(Chunk {
        data: vec![0; LIMIT],
        last: false,
    });
    let mut bytes = b"before".to_vec();
    let refused = frame::encode(&Frame::new(1, content), &mut bytes).unwrap_err();
    assert_eq!(refused.code(), "frame-too-long");
    assert_eq!(bytes, b"before");
}

#[test]
fn a_frame_of_exactly_the_limit_passes() {
    let chunk = |length| {
        Frame::new(
            1,
            Content::Chunk(Chunk {
                data: vec![1; length],
                last: false,
            }),
        )
    };
    let overhead = encoded(&[chunk(LIMIT / 2)]).len() - LIMIT / 2 - 4;
    let bytes = encoded(&[chunk(LIMIT - overhead)]);
    assert_eq!(bytes.len(), LIMIT + 4);
    assert_eq!(decoded(&bytes, 1 << 16).unwrap().len(), 1);
}

#[test]
fn a_length_that_is_announced_and_never_sent_gets_no_memory() {
    let mut decoder = Decoder::new();
    let announced = (LIMIT as u32).to_be_bytes();
    decoder.space()[..4].copy_from_slice(&announced);
    decoder.filled(4);
    assert!(decoder.next_frame().unwrap().is_none());
    assert!(decoder.space().len() <= 4096);
}

#[test]
fn a_connection_that_ends_within_a_frame_is_an_error_and_between_frames_it_is_not() {
    let bytes = encoded(&[hello(1, "program"), hello(2, "program")]);
    let first = encoded(&[hello(1, "program")]).len();
    for length in 0..=bytes.len() {
        let mut decoder = Decoder::new();
        let mut reader = &bytes[..length];
        let mut frames = 0;
        let end = loop {
            match frame::read(&mut reader, &mut decoder) {
                Ok(Some(_)) => frames += 1,
                Ok(None) => break None,
                Err(e) => break Some(e),
            }
        };
        assert_eq!(frames, length / first, "{length}");
        match length % first {
            0 => assert!(end.is_none(), "{length} {end:?}"),
            received => assert!(
                matches!(end, Some(FrameError::Truncated { received: told }) if told == received),
                "{length} {end:?}"
            ),
        }
    }
}

#[test]
fn bytes_that_are_no_message_are_an_error() {
    for message in [
        &[0xff][..],
        &[0x08],
        &[0x1a, 0x05, 0x08],
        &[0x1a, 0xff, 0xff, 0xff, 0xff, 0x0f],
    ] {
        let mut bytes = (message.len() as u32).to_be_bytes().to_vec();
        bytes.extend_from_slice(message);
        let refused = decoded(&bytes, 1).unwrap_err();
        assert_eq!(refused.code(), "frame-malformed", "{message:?}");
    }
}

#[test]
fn a_message_that_this_version_does_not_know_is_a_frame_without_content() {
    // Field 90, of two bytes, and the id 5.
    let message = [0x08, 5, 0xd2, 0x05, 2, 1, 2];
    let mut bytes = (message.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(&message);
    let frames = decoded(&bytes, 1).unwrap();
    assert_eq!(
        frames,
        [Frame {
            id: 5,
            ..Frame::default()
        }]
    );
    assert_eq!(frames[0].kind(), "unknown");
}

#[test]
fn a_secret_is_not_in_what_is_written_for_people() {
    let secret = b"SECRET".to_vec();
    let shown = [
        format!(
            "{:?}",
            PinAnswer {
                pin: Some(secret.clone())
            }
        ),
        format!(
            "{:?}",
            Frame::new(
                1,
                Content::Chunk(Chunk {
                    data: secret.clone(),
                    last: true
                })
            )
        ),
        format!(
            "{:?}",
            RequestCommitment {
                data: secret.clone(),
                purpose: None
            }
        ),
        format!(
            "{:?}",
            RequestEncrypt {
                data: secret.clone(),
                external_identity: None,
                use_reads_for: false,
                preference: None
            }
        ),
        format!(
            "{:?}",
            ReplyDecryption {
                data: secret,
                err: None,
                data_follows: false
            }
        ),
    ];
    for text in shown {
        assert!(
            !text.contains("SECRET") && !text.contains("83, 69"),
            "{text}"
        );
    }
}

#[test]
fn what_is_left_of_a_long_frame_is_given_back() {
    let mut decoder = Decoder::new();
    let long = Content::Chunk(Chunk {
        data: vec![7; CHUNK],
        last: true,
    });
    let bytes = encoded(&[Frame::new(1, long), hello(2, "short")]);
    let mut reader = &bytes[..];
    for _ in 0..2 {
        assert!(frame::read(&mut reader, &mut decoder).unwrap().is_some());
    }
    assert!(decoder.space().len() <= 4096);
}
