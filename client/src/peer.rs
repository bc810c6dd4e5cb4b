//! Where daemons listen, and who serves a socket.

use std::env;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// The socket of the system's daemon.
pub const SYSTEM_SOCKET: &str = "/run/claviger/api.sock";

/// The socket of the user's own daemon: `$XDG_RUNTIME_DIR/claviger/api.sock`. `None` if there is no
/// such folder.
pub fn own_socket() -> Option<PathBuf> {
    let folder = PathBuf::from(env::var_os("XDG_RUNTIME_DIR")?);
    folder
        .is_absolute()
        .then(|| folder.join("claviger/api.sock"))
}

/// The process that listens on a socket, as the system tells (`SO_PEERCRED`). With socket activation
/// it is the one that made the socket. A process id says nothing that lasts and is not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

impl Peer {
    /// The other end of this connection.
    ///
    /// # Errors
    /// What the system says.
    pub fn of(connection: impl AsFd) -> io::Result<Peer> {
        // `rustix` has a process id there that cannot be 0, as that of another namespace is.
        let found = getsockopt(&connection, PeerCredentials)?;
        Ok(Peer {
            uid: found.uid(),
            gid: found.gid(),
        })
    }
}

/// Whose daemon may be spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Expected {
    /// This process's own user's (its effective uid).
    #[default]
    Own,
    /// A daemon of one of these users: of the system's daemon 0 and the uid of `claviger`.
    OneOf(Vec<u32>),
    /// Anybody's.
    Anyone,
}

/// The name of the user of the system's daemon.
const SYSTEM_USER: &str = "claviger";

impl Expected {
    /// Whose daemon may be spoken to on a socket that somebody named: this process's user, root, and
    /// the user `claviger` where there is one.
    pub fn of_named() -> Expected {
        let own = rustix::process::geteuid().as_raw();
        Expected::OneOf([0, own].into_iter().chain(uid_of(SYSTEM_USER)).collect())
    }

    /// Whether this is one of them.
    pub fn includes(&self, peer: Peer) -> bool {
        match self {
            Expected::Own => peer.uid == rustix::process::geteuid().as_raw(),
            Expected::OneOf(users) => users.contains(&peer.uid),
            Expected::Anyone => true,
        }
    }
}

/// The number of a user, where `/etc/passwd` has it.
fn uid_of(name: &str) -> Option<u32> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        match fields.next() {
            Some(found) if found == name => fields.nth(1)?.parse().ok(),
            _ => None,
        }
    })
}
