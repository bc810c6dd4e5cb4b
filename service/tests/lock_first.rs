//! A lock of the daemon, where the token that it names is not found.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use claviger_client::wire::{
    self, Frame, daemon_reply::Reply, daemon_request::Request, frame::Content,
};
use claviger_engine::{Node, Registry};
use claviger_pkcs11::Pkcs11Driver;
use claviger_service::Service;
use claviger_tests::SoftHsm;
use common::{Daemon, Peer, runtime};

fn ask(peer: &mut Peer, request: Request) -> Reply {
    let request = wire::DaemonRequest {
        request: Some(request),
    };
    peer.send(&Frame::new(1, Content::DaemonRequest(request)));
    match peer.next().content {
        Some(Content::DaemonReply(reply)) => reply.reply.unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_lock_ends_everything_where_the_token_that_it_names_is_not_there() {
    let token = SoftHsm::new();
    let runtime = runtime();
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(Pkcs11Driver::new())
        .build();
    let daemon = Daemon::of(runtime, Service::builder(node).build());
    let mut peer = daemon.peer_with(SoftHsm::PIN);
    let known = token.backend();
    // One that it was unlocked by, and one that names nothing.
    for named in [known.clone(), "pkcs11:token=nowhere".to_owned()] {
        let unlock = wire::Unlock {
            backend: known.clone(),
            for_s: 0,
        };
        let unlocked = ask(&mut peer, Request::Unlock(unlock));
        assert!(matches!(unlocked, Reply::Unlock(_)), "{unlocked:?}");
        let lock = Request::Lock(wire::Lock { backend: named });
        match ask(&mut peer, lock) {
            Reply::Lock(locked) => assert_eq!(locked.tokens.len(), 1),
            other => panic!("{other:?}"),
        }
    }
}
