//! A grant to use the daemon's login for the keys of one identity, on a real SoftHSM2.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::time::Duration;

use claviger_client::wire::daemon_request::Request as ToDaemon;
use claviger_client::wire::{self, Frame};
use claviger_engine::grants::{NewGrant, Subject};
use claviger_engine::message::RequestGenerateIdentity;
use claviger_engine::{Backend, Capabilities, EngineId, IdParams, Node, Registry};
use claviger_pkcs11::Pkcs11Driver;
use claviger_service::Service;
use claviger_tests::SoftHsm;
use claviger_token::{Call, TokenId};
use common::{Daemon, ask_daemon, error_code, is_no_root, runtime, sign};

const ROOT: u32 = 0;
const GRANTED: u32 = 1002;

/// A daemon of the system with `alice` and `build-bot` on one token. [`GRANTED`] may sign as both,
/// and use the daemon's login as `build-bot`.
struct Stage {
    daemon: Daemon,
    token: SoftHsm,
    _home: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let (runtime, home, token) = (runtime(), tempfile::tempdir().unwrap(), SoftHsm::new());
        let node = Node::builder(Registry::open(home.path()).unwrap())
            .driver(Pkcs11Driver::new())
            .build();
        let call = Call::within(Duration::from_secs(60)).using(token.access());
        for name in ["alice", "build-bot"] {
            let request = RequestGenerateIdentity {
                backend: Backend::from(token.backend()),
                params: IdParams::P256,
                capabilities: Capabilities::Commit,
            };
            let who = EngineId::local(name);
            let made = node.generate(&who, request, &call);
            runtime.block_on(made).unwrap();
        }
        for (identity, operation) in [
            ("alice", "sign"),
            ("build-bot", "sign"),
            ("build-bot", "use-login"),
        ] {
            let to = Subject::Uid(GRANTED);
            let grant = NewGrant::parse(to, "api", identity, operation, "").unwrap();
            node.registry().add_grant(&grant).unwrap();
        }
        let stage = Stage {
            daemon: Daemon::of(runtime, Service::builder(node).system(true).build()),
            token,
            _home: home,
        };
        stage.daemon.is_for_all();
        stage.log_out();
        stage
    }

    fn id(&self) -> TokenId {
        let node = self.daemon.service.node();
        let info = node.registry().identity(&EngineId::local("alice"));
        info.unwrap().unwrap().keys[0].token.clone()
    }

    /// Closes the token; what the daemon keeps of it stays.
    fn log_out(&self) {
        let closing = self.daemon.service.node().close_token(&self.id()).unwrap();
        let call = Call::within(common::LONG);
        self.daemon.block_on(closing.done(&call)).unwrap();
    }

    fn unlock(&self) {
        let mut root = self.daemon.peer_of(ROOT, Some(SoftHsm::PIN));
        let unlock = wire::Unlock {
            backend: self.token.backend(),
            for_s: 0,
        };
        root.send(&ask_daemon(1, ToDaemon::Unlock(unlock)));
        let answer = root.next();
        assert_eq!(root.asked, 1);
        assert!(format!("{answer:?}").contains("UnlockReply"), "{answer:?}");
    }

    /// The answer to a request of a user who has no PIN.
    fn signed_as(&self, name: &str) -> Frame {
        let mut peer = self.daemon.peer_of(GRANTED, None);
        peer.send(&sign(1, name, b"m"));
        peer.next()
    }
}

#[test]
fn a_grant_to_use_the_login_for_one_identity_gives_the_kept_pin_to_its_requests_alone() {
    if is_no_root() {
        return;
    }
    let stage = Stage::new();
    assert_eq!(error_code(&stage.signed_as("build-bot")), "pin-needed");
    stage.unlock();
    stage.log_out();
    // The PIN is kept, and the token is not open.
    assert_eq!(error_code(&stage.signed_as("alice")), "pin-needed");
    let signed = stage.signed_as("build-bot");
    stage.daemon.check(&signed, "build-bot", b"m");
    // Now it is open, by the daemon's login.
    assert_eq!(error_code(&stage.signed_as("alice")), "locked");
    let signed = stage.signed_as("build-bot");
    stage.daemon.check(&signed, "build-bot", b"m");
}
