//! An ssh-agent whose keys live in hardware.
//!
//! [`SshAgent`] is a front-end of the daemon: it serves the sockets that are called `ssh`, or
//! `ssh-` and something, in the protocol of `ssh-agent` (draft-ietf-sshm-ssh-agent, OpenSSH
//! `PROTOCOL.agent`). It knows no driver and has no keys. It reads what a client asks to be signed,
//! finds out what it is for, and has the daemon judge, log and sign it.
//!
//! | module | idea |
//! | --- | --- |
//! | `connection` | one client: messages in, answers out |
//! | `client` | what a client has sent, and whether it is there |
//! | `notifier` | tells the person that a token waits |
//! | `locks` | `ssh-add -x` and `-X` |
//! | [`wanted`] | what a signature is for |
//! | [`bindings`] | which SSH sessions a client is for |
//! | [`messages`] | the protocol's messages |
#![forbid(unsafe_code)]

pub mod bindings;
mod client;
mod connection;
mod locks;
pub mod messages;
mod notifier;
pub mod wanted;

use std::sync::Arc;

use claviger_service::{FrontEnd, Guest, Serving};
use tokio::net::UnixStream;

use self::connection::Connection;
use self::locks::Locks;
use self::notifier::Notifier;

/// The name of the daemon's socket for SSH.
pub const SOCKET: &str = "ssh";

/// The front-end. Its locks last as long as it does.
#[derive(Default)]
pub struct SshAgent {
    shared: Arc<Shared>,
}

/// What the connections share.
#[derive(Default)]
struct Shared {
    locks: Locks,
    notifier: Notifier,
}

impl SshAgent {
    /// One that nobody has locked.
    pub fn new() -> Self {
        SshAgent::default()
    }
}

impl FrontEnd for SshAgent {
    fn serves(&self, socket: &str) -> bool {
        socket
            .strip_prefix(SOCKET)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    }

    fn serve(&self, stream: UnixStream, guest: Guest) -> Serving {
        let connection = Connection::new(stream, guest, Arc::clone(&self.shared));
        Box::pin(connection.run())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_serves_the_sockets_that_are_named_for_ssh() {
        let agent = SshAgent::new();
        let served = ["ssh", "ssh-ci", "api", "sshd", ""].map(|name| agent.serves(name));
        assert_eq!(served, [true, true, false, false, false]);
    }
}
