//! Who calls: what the kernel says of the peer of a socket.

use std::fmt;
use std::sync::Arc;

use rustix::process::{getgid, getuid};

/// The subject of every request of a connection: the peer's user and group when it connected
/// (`SO_PEERCRED`), and the socket that it connected to. Its process id and its executable say
/// nothing that lasts, and what it says of itself counts for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Caller {
    /// The user.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// The name of the socket.
    pub socket: Arc<str>,
}

impl Caller {
    /// The daemon itself.
    pub(crate) fn the_daemon() -> Self {
        Caller {
            uid: getuid().as_raw(),
            gid: getgid().as_raw(),
            socket: Arc::from(""),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Caller { uid, gid, socket } = self;
        write!(f, "uid {uid}, gid {gid} on `{socket}`")
    }
}

/// Whether the caller may do what only the daemon's own user and root may: unlock for others, add
/// grants.
pub(crate) fn is_operator(caller: &Caller) -> bool {
    caller.uid == 0 || caller.uid == getuid().as_raw()
}
