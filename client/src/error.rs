//! What can go wrong between a program and the daemon.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::frame::FrameError;
use crate::wire;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path of the socket is longer than the system allows (107 bytes).
    #[error("the path of the socket is too long: `{}`", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// Nobody listens there: no socket, or one that its daemon left behind.
    #[error("no daemon listens on `{}`: {source}", path.display())]
    NoDaemon {
        /// The path of the socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The socket is there, and no connection can be made.
    #[error("no connection to `{}`: {source}", path.display())]
    Connect {
        /// The path of the socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The daemon runs as a user that was not expected. Nothing was sent to it.
    #[error("`{}` is served by uid {uid}, which is not expected there", path.display())]
    OtherPeer {
        /// The path of the socket.
        path: PathBuf,
        /// The daemon's user.
        uid: u32,
    },
    /// The daemon serves another home.
    #[error("the daemon serves the home {found}, not {wanted}")]
    OtherHome {
        /// The id of its home.
        found: String,
        /// The id that was expected.
        wanted: String,
    },
    /// The daemon speaks another version of the protocol.
    #[error("{}", version(*ours, *theirs))]
    Version {
        /// The version that this crate speaks.
        ours: u32,
        /// The daemon's, if it is known.
        theirs: Option<u32>,
    },
    /// A connection was made, and the daemon did not greet.
    #[error("the daemon on `{}` did not answer within {seconds} s", path.display())]
    Silent {
        /// The path of the socket.
        path: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// What the daemon sent, or what was to be sent, is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The daemon broke the protocol.
    #[error("the daemon broke the protocol: {what}")]
    Protocol {
        /// What it did.
        what: &'static str,
    },
    /// The daemon went away before it had the whole request, and did not come back. The request was
    /// not carried out.
    #[error("the daemon is gone, and the request was not carried out: {why}")]
    Gone {
        /// How the connection ended.
        why: String,
    },
    /// The connection ended after the request was sent. It may have been carried out.
    #[error("the daemon is gone, and the request may have been carried out: {why}")]
    Lost {
        /// How the connection ended.
        why: String,
    },
    /// The daemon answered with an error.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// The deadline passed.
    #[error("the deadline passed before the daemon answered")]
    Deadline,
    /// The request was cancelled by its caller.
    #[error("the request was cancelled")]
    Cancelled,
    /// The answer is longer than the caller allows.
    #[error("the answer is longer than {limit} bytes")]
    ReplyTooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// The data of the request cannot be read.
    #[error("the data to send cannot be read: {0}")]
    Input(#[source] io::Error),
}

impl Error {
    /// A stable code: see ERRORS.md. Of what the daemon answered, it is the daemon's.
    pub fn code(&self) -> &str {
        match self {
            Error::PathTooLong { .. } => "socket-path-too-long",
            Error::NoDaemon { .. } => "no-daemon",
            Error::Connect { .. } => "connection-failed",
            Error::OtherPeer { .. } => "daemon-not-trusted",
            Error::OtherHome { .. } => "daemon-other-home",
            Error::Version { .. } => "protocol-version",
            Error::Silent { .. } => "daemon-silent",
            Error::Frame(error) => error.code(),
            Error::Protocol { .. } => "daemon-protocol",
            Error::Gone { .. } => "daemon-gone",
            Error::Lost { .. } => "request-lost",
            Error::Refused(refusal) => &refusal.code,
            Error::Deadline => "deadline-exceeded",
            Error::Cancelled => "cancelled",
            Error::ReplyTooLong { .. } => "reply-too-long",
            Error::Input(_) => "io",
        }
    }

    /// What the daemon answered, if that is what went wrong.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Error::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// Why there is no connection to this path.
    pub(crate) fn at(path: &Path, source: io::Error) -> Error {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::NotADirectory => Error::NoDaemon { path, source },
            // The path does not fit into an address.
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidFilename => {
                Error::PathTooLong { path }
            }
            _ => Error::Connect { path, source },
        }
    }

    /// Whether a daemon that starts now could make it good.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Error::NoDaemon { .. }
            | Error::Connect { .. }
            | Error::Silent { .. }
            | Error::Gone { .. } => true,
            Error::Refused(refusal) => refusal.is_draining(),
            _ => false,
        }
    }
}

fn version(ours: u32, theirs: Option<u32>) -> String {
    let theirs = theirs.map_or("another version".into(), |theirs| {
        format!("version {theirs}")
    });
    format!("the daemon speaks {theirs} of the protocol, and this program version {ours}")
}

/// An error that the daemon answered with.
#[derive(Clone, PartialEq, Eq)]
pub struct Refusal {
    /// A stable code: see ERRORS.md.
    pub code: String,
    /// What happened, in one sentence without its full stop.
    pub message: String,
    /// What a person can do; may be empty.
    pub hint: String,
    /// The fields of the error.
    pub fields: BTreeMap<String, String>,
}

impl Refusal {
    /// The daemon is about to end and did not begin the request.
    pub(crate) fn is_draining(&self) -> bool {
        self.code == DRAINING
    }
}

/// The code of a request that was not begun because the daemon ends.
const DRAINING: &str = "draining";

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl From<wire::Error> for Refusal {
    fn from(error: wire::Error) -> Self {
        Refusal {
            code: error.code,
            message: error.message,
            hint: error.hint,
            fields: error.fields.into_iter().collect(),
        }
    }
}

impl From<wire::EngineError> for Refusal {
    fn from(error: wire::EngineError) -> Self {
        Refusal {
            code: error.code,
            message: error.message,
            hint: error.hint,
            fields: error.fields.into_iter().collect(),
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Error::Refused(Box::new(refusal))
    }
}
