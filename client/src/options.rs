//! How a daemon is reached, and what must be true of it.

use std::path::PathBuf;
use std::time::Duration;

use crate::peer::{self, Expected};

/// How a daemon is reached, and what must be true of it.
#[derive(Debug, Clone)]
pub struct Options {
    /// The path of its socket.
    pub socket: PathBuf,
    /// As whom it has to run.
    pub expected: Expected,
    /// The id of the home that it has to serve, if only that will do.
    pub home_id: Option<String>,
    /// This program and its version, for the daemon's log.
    pub program: String,
    /// Whether the [`Listener`](crate::blocking::Listener) of the requests can give a PIN.
    pub answers_pins: bool,
    /// How long a daemon is waited for that goes away and comes back, as when it is restarted. Only
    /// requests that were not begun are sent again.
    pub patience: Duration,
}

impl Options {
    /// A daemon of this process's own user, on this socket.
    pub fn new(socket: impl Into<PathBuf>) -> Options {
        Options {
            socket: socket.into(),
            expected: Expected::Own,
            home_id: None,
            program: concat!("claviger-client ", env!("CARGO_PKG_VERSION")).into(),
            answers_pins: false,
            patience: Duration::from_secs(5),
        }
    }

    /// The daemon on a socket that somebody named: of this process's user, of root, or of the user
    /// `claviger`.
    pub fn named(socket: impl Into<PathBuf>) -> Options {
        Options {
            expected: Expected::of_named(),
            ..Options::new(socket)
        }
    }

    /// The daemon that the environment means: the one on the socket `$CLAVIGER_DAEMON`, otherwise the
    /// user's own. `None` if that variable is empty, which is to use none, or without
    /// `$XDG_RUNTIME_DIR`.
    pub fn from_environment() -> Option<Options> {
        match std::env::var_os("CLAVIGER_DAEMON") {
            Some(socket) if socket.is_empty() => None,
            Some(socket) => Some(Options::named(socket)),
            None => Options::own(),
        }
    }

    /// The user's own daemon, where it usually listens. `None` without `$XDG_RUNTIME_DIR`.
    pub fn own() -> Option<Options> {
        peer::own_socket().map(Options::new)
    }
}
