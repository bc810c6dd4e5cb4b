//! A token without a login, which its driver holds always.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use claviger_client::wire::{self, daemon_request::Request};

use common::{Daemon, ask_daemon, sign};

#[test]
fn a_token_without_a_login_is_not_kept_and_a_lock_without_a_deadline_is_answered() {
    let daemon = Daemon::new();
    let mut peer = daemon.peer();
    let unlock = wire::Unlock {
        backend: "memory:".into(),
        for_s: 0,
    };
    let lock = || ask_daemon(2, Request::Lock(wire::Lock::default()));
    peer.send(&ask_daemon(1, Request::Unlock(unlock)));
    let unlocked = format!("{:?}", peer.next());
    assert!(unlocked.contains("UnlockReply"), "{unlocked}");
    peer.send(&lock());
    let locked = format!("{:?}", peer.next());
    assert!(locked.contains("LockReply"), "{locked}");
    // Whoever uses it does not wait either.
    peer.send(&sign(3, "alice", b"message"));
    daemon.check(&peer.next(), "alice", b"message");
}
