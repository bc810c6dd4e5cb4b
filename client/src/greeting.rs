//! The first frame of each side: versions, and whose home it is.

use crate::error::{Error, Refusal};
use crate::frame::PROTOCOL;
use crate::options::Options;
use crate::wire::{self, Frame, Hello, frame::Content};

/// What a caller says first.
pub(crate) fn ours(options: &Options) -> Frame {
    let hello = Hello {
        version: PROTOCOL,
        program: options.program.clone(),
        answers_pins: options.answers_pins,
        ..Hello::default()
    };
    Frame::new(0, Content::Hello(hello))
}

/// What the daemon says first, if it will do.
pub(crate) fn judge(frame: Frame, options: &Options) -> Result<Hello, Error> {
    let hello = match (frame.id, frame.content) {
        (0, Some(Content::Hello(hello))) => hello,
        (0, Some(Content::Error(error))) => return Err(refused(error)),
        _ => {
            let what = "its first frame is not a greeting";
            return Err(Error::Protocol { what });
        }
    };
    if hello.version != PROTOCOL {
        return Err(Error::Version {
            ours: PROTOCOL,
            theirs: Some(hello.version),
        });
    }
    match &options.home_id {
        Some(wanted) if *wanted != hello.home_id => Err(Error::OtherHome {
            found: hello.home_id,
            wanted: wanted.clone(),
        }),
        _ => Ok(hello),
    }
}

/// What we say before we close, to a daemon whose version we do not speak.
pub(crate) fn objection(error: &Error) -> Option<Frame> {
    let Error::Version { .. } = error else {
        return None;
    };
    let objection = wire::Error {
        code: error.code().into(),
        message: format!("this program speaks version {PROTOCOL} of the protocol"),
        fields: [("speaks".to_owned(), PROTOCOL.to_string())].into(),
        ..wire::Error::default()
    };
    Some(Frame::new(0, Content::Error(objection)))
}

fn refused(error: wire::Error) -> Error {
    match &*error.code {
        "protocol-version" => Error::Version {
            ours: PROTOCOL,
            theirs: error
                .fields
                .get("speaks")
                .and_then(|text| text.parse().ok()),
        },
        _ => Refusal::from(error).into(),
    }
}
