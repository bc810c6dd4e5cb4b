//! The journal of the machine, which gets the same lines: systemd's, by its own protocol.
//!
//! Each line is one datagram. `MESSAGE` is the line in JSON without its time and the hash of the
//! one before, which the journal has itself; `CLAVIGER_KIND` and `CLAVIGER_ID` find it.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use claviger_token::sync::lock;

use super::AuditError;
use super::line::{Content, Event};

/// The socket of systemd's journal.
pub const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";

/// So long a journal that is busy is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// The journal.
pub struct Journal {
    path: PathBuf,
    socket: UnixDatagram,
    /// The number of the next line, where no file counts them.
    next: AtomicU64,
    /// Why the last line was not taken.
    failure: Mutex<Option<String>>,
}

impl Journal {
    /// That at a socket, such as [`JOURNAL_SOCKET`].
    ///
    /// # Errors
    /// [`AuditError::Unavailable`]: nobody takes lines there.
    pub fn connect(path: impl Into<PathBuf>) -> Result<Self, AuditError> {
        let path = path.into();
        let connected = (|| {
            let socket = UnixDatagram::unbound()?;
            socket.connect(&path)?;
            socket.set_write_timeout(Some(PATIENCE))?;
            Ok(socket)
        })();
        match connected {
            Ok(socket) => Ok(Journal {
                path,
                socket,
                next: AtomicU64::new(1),
                failure: Mutex::default(),
            }),
            Err(error) => Err(unavailable(&path, &error)),
        }
    }

    /// Why the last line was not taken, if it was not.
    pub(super) fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }

    /// The number of the next line.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Tells a line.
    pub(super) fn tell(&self, number: u64, content: Content<'_>) -> Result<(), AuditError> {
        let told = self.send(number, content);
        *lock(&self.failure) = told.as_ref().err().map(ToString::to_string);
        told.map_err(|error| unavailable(&self.path, &error))
    }

    fn send(&self, number: u64, content: Content<'_>) -> io::Result<()> {
        let kind = content.kind();
        let id = content.use_of(number).to_string();
        let message = serde_json::to_vec(&Event::new(number, content))?;
        let mut datagram = Vec::with_capacity(message.len() + 160);
        for (name, value) in [
            ("MESSAGE", &*message),
            ("PRIORITY", b"6"),
            ("SYSLOG_IDENTIFIER", b"claviger"),
            ("CLAVIGER_KIND", kind.as_bytes()),
            ("CLAVIGER_ID", id.as_bytes()),
        ] {
            field(&mut datagram, name, value);
        }
        match self.socket.send(&datagram) {
            // The journal was started anew: its socket is another one.
            Err(error) if is_gone(&error) => {
                self.socket.connect(&self.path)?;
                self.socket.send(&datagram).map(drop)
            }
            sent => sent.map(drop),
        }
    }
}

/// A field with its length, which may hold anything.
fn field(datagram: &mut Vec<u8>, name: &str, value: &[u8]) {
    datagram.extend_from_slice(name.as_bytes());
    datagram.push(b'\n');
    datagram.extend_from_slice(&(value.len() as u64).to_le_bytes());
    datagram.extend_from_slice(value);
    datagram.push(b'\n');
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected
    )
}

fn unavailable(path: &Path, error: &io::Error) -> AuditError {
    AuditError::Unavailable {
        path: path.into(),
        reason: error.to_string(),
    }
}
