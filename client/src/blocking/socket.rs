//! A Unix socket on which no call waits for ever.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    self, AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::error::Error;

/// How often a call that waits looks at its deadline, and whether it was cancelled.
pub(super) const TICK: Duration = Duration::from_millis(250);

/// How long a daemon may take no byte of a frame.
const STALL: Duration = Duration::from_secs(30);

pub(super) struct Socket {
    file: OwnedFd,
}

/// Why a frame was not written whole.
pub(super) enum Unwritten {
    /// None of it was written in time; the connection is as it was.
    Nothing,
    /// The connection is of no use any more.
    Broken(io::Error),
}

/// What came of a read.
pub(super) enum Received {
    /// So many bytes.
    Bytes(usize),
    /// Nothing yet.
    Nothing,
    /// The end.
    End,
}

impl Socket {
    pub(super) fn connect(path: &Path) -> Result<Socket, Error> {
        let failed = |errno: Errno| Error::at(path, errno.into());
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
        let file = net::socket_with(family, kind, SocketFlags::CLOEXEC, None).map_err(failed)?;
        // It also ends a `connect` that finds the queue of the daemon full.
        set_socket_timeout(&file, Timeout::Send, Some(TICK)).map_err(failed)?;
        net::connect(&file, &address).map_err(failed)?;
        Ok(Socket { file })
    }

    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// Writes all of it, or says what became of it. A program without a handler for SIGPIPE is not
    /// ended.
    pub(super) fn write(&self, bytes: &[u8], until: Option<Instant>) -> Result<(), Unwritten> {
        let mut rest = bytes;
        let mut last = None;
        while !rest.is_empty() {
            match net::send(&self.file, rest, SendFlags::NOSIGNAL) {
                Ok(length) => {
                    rest = &rest[length..];
                    last = None;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let now = Instant::now();
                    let stalled = now.duration_since(*last.get_or_insert(now)) > STALL;
                    let late = until.is_some_and(|until| now >= until);
                    match (late || stalled, rest.len() == bytes.len()) {
                        (true, true) if late => return Err(Unwritten::Nothing),
                        (true, _) => {
                            return Err(Unwritten::Broken(io::ErrorKind::TimedOut.into()));
                        }
                        _ => {}
                    }
                }
                Err(errno) => return Err(Unwritten::Broken(errno.into())),
            }
        }
        Ok(())
    }

    /// Reads what there is, after it waited for the read timeout at most.
    pub(super) fn read(&self, space: &mut [u8]) -> io::Result<Received> {
        match net::recv(&self.file, space, RecvFlags::empty()) {
            Ok((_, 0)) => Ok(Received::End),
            Ok((_, length)) => Ok(Received::Bytes(length)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Received::Nothing),
            Err(errno) => Err(errno.into()),
        }
    }

    /// How long a read waits; `None` is for ever.
    pub(super) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        Ok(set_socket_timeout(&self.file, Timeout::Recv, timeout)?)
    }

    /// Ends the connection for all threads that use it.
    pub(super) fn shut(&self) {
        // Whoever is at the other end may have done so before.
        let _ = net::shutdown(&self.file, net::Shutdown::Both);
    }
}
