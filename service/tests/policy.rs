//! Who may do what: each permission for each kind of caller.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::Arc;

use claviger_engine::encryption::{Preference, Via};
use claviger_engine::grants::{NewGrant, Subject};
use claviger_engine::message::{RequestConnectIdentity, RequestGenerateIdentity};
use claviger_engine::policy::{Operation, Permission};
use claviger_engine::{
    Backend, Capabilities, EngineError, EngineId, IdParams, Node, Policy, Purpose, Registry,
};
use claviger_memory::MemoryDriver;
use claviger_pkcs11::Pkcs11Driver;
use claviger_service::Caller;
use claviger_service::policy::Rules;
use claviger_token::{Call, TokenId};

const MAKER: u32 = 1001;
const OTHER: u32 = 1002;
const DAEMON: u32 = 999;

fn caller(uid: u32) -> Caller {
    Caller {
        uid,
        gid: uid,
        socket: "api".into(),
    }
}

fn id(name: &str) -> EngineId {
    EngineId::local(name)
}

/// What is asked about an identity, by the words of the grant that allows it.
fn about<'a>(identity: &'a EngineId, other: &'a EngineId) -> Vec<(&'static str, Permission<'a>)> {
    let uses = |operation| Permission::Use {
        identity,
        operation,
    };
    vec![
        ("sign raw", uses(Operation::Sign(&Purpose::Raw))),
        ("sign node", uses(Operation::Sign(&Purpose::Node))),
        ("sign proof", uses(Operation::Sign(&Purpose::Proof))),
        ("sign evidence", uses(Operation::Sign(&Purpose::Evidence))),
        (
            "sign certificate",
            uses(Operation::Sign(&Purpose::Certificate)),
        ),
        ("sign prehash", uses(Operation::Sign(&Purpose::Prehash))),
        ("decrypt", uses(Operation::Decrypt)),
        ("encrypt", Permission::Encrypt(identity)),
        ("encrypt", Permission::ReadEvidence(identity)),
        ("connect", Permission::Connect(identity)),
        ("delete", Permission::Delete(identity)),
        (
            "grant",
            Permission::Grant {
                reader: other,
                by: identity,
            },
        ),
        (
            "grant",
            Permission::Revoke {
                reader: other,
                by: identity,
            },
        ),
    ]
}

/// What is asked about no identity.
fn about_none<'a>(
    backend: &'a Backend,
    token: &'a TokenId,
    of: &'a EngineId,
) -> Vec<(&'static str, Permission<'a>)> {
    vec![
        ("generate", Permission::Generate { backend }),
        ("adopt", Permission::Adopt),
        ("list-tokens", Permission::ListTokens),
        ("submit-evidence", Permission::SubmitEvidence),
        ("attach-device", Permission::AttachDevice),
        ("use-login", Permission::UseLogin { token, of }),
    ]
}

/// `alice`, whom [`MAKER`] made, and `bob`, whom nobody did.
async fn stage(own: Option<u32>) -> (Node, Arc<Rules>) {
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(MemoryDriver::new())
        .build();
    let rules = Rules::of(&node, own);
    let maker = Rules::of(&node, Some(MAKER)).view(&caller(MAKER));
    for (node, name) in [(&maker, "alice"), (&node, "bob")] {
        let request = RequestGenerateIdentity {
            backend: Backend::LocalMemory,
            params: IdParams::Ed25519,
            capabilities: Capabilities::CommitAndDecrypt,
        };
        let call = Call::unlimited();
        node.generate(&id(name), request, &call).await.unwrap();
    }
    (node, rules)
}

fn is_denied(done: &Result<(), EngineError>) -> bool {
    match done {
        Ok(()) => false,
        Err(error) => {
            assert_eq!(error.code(), "not-allowed");
            true
        }
    }
}

#[tokio::test]
async fn on_a_daemon_of_the_system_callers_may_what_they_made_and_what_they_are_granted() {
    let (node, rules) = stage(None).await;
    let (alice, bob) = (id("alice"), id("bob"));
    let absent = id("absent");
    let (backend, token) = (Backend::LocalMemory, token());
    // By default: who made it everything with it, and nobody else anything, root included.
    for uid in [MAKER, OTHER, 0, DAEMON] {
        let policy = rules.judge(&caller(uid));
        for (identity, other) in [(&alice, &bob), (&bob, &alice), (&absent, &bob)] {
            let made = uid == MAKER && identity == &alice;
            for (what, wanted) in about(identity, other) {
                let done = policy.check(identity, wanted);
                // Nobody has digests signed by default.
                let may = made && what != "sign prehash";
                assert_eq!(is_denied(&done), !may, "{uid} {what} {identity}");
            }
            assert_eq!(policy.may_see(identity).unwrap(), made);
        }
        for (what, wanted) in about_none(&backend, &token, &bob) {
            assert!(is_denied(&policy.check(&alice, wanted)), "{uid} {what}");
        }
    }
    // Each grant allows what it says, to whom it says, and nothing else.
    let others = rules.judge(&caller(OTHER));
    let granted: Vec<&str> = about(&bob, &alice)
        .iter()
        .chain(&about_none(&backend, &token, &bob))
        .map(|(words, _)| *words)
        .collect();
    for words in granted {
        let (operation, purpose) = words.split_once(' ').unwrap_or((words, ""));
        let of_none = about_none(&backend, &token, &bob);
        let identity = match of_none.iter().any(|(known, _)| *known == words) {
            true => "",
            false => "bob",
        };
        let new = NewGrant::parse(Subject::Uid(OTHER), "", identity, operation, purpose).unwrap();
        let grant = node.registry().add_grant(&new).unwrap();
        for (known, wanted) in about(&bob, &alice).into_iter().chain(of_none) {
            let done = others.check(&bob, wanted);
            assert_eq!(is_denied(&done), known != words, "{words}: {known}");
            let stranger = rules.judge(&caller(1003));
            assert!(is_denied(&stranger.check(&bob, wanted)), "{words}");
        }
        for (known, wanted) in about(&alice, &bob) {
            assert!(is_denied(&others.check(&alice, wanted)), "{words}: {known}");
        }
        assert_eq!(others.may_see(&bob).unwrap(), identity == "bob");
        assert!(!others.may_see(&alice).unwrap());
        assert!(node.registry().remove_grant(grant.id).unwrap());
        let (_, signs) = about(&bob, &alice).remove(0);
        assert!(is_denied(&others.check(&bob, signs)));
    }
}

fn token() -> TokenId {
    TokenId {
        kind: "memory".into(),
        manufacturer: String::new(),
        serial: "1".into(),
    }
}

#[tokio::test]
async fn a_daemon_of_one_user_lets_that_user_do_everything_and_others_what_they_are_granted() {
    let (_node, rules) = stage(Some(DAEMON)).await;
    let (alice, bob) = (id("alice"), id("bob"));
    let (backend, token) = (Backend::LocalMemory, token());
    for uid in [DAEMON, OTHER, 0] {
        let policy = rules.judge(&caller(uid));
        let wanted = about(&alice, &bob).into_iter();
        for (what, wanted) in wanted.chain(about_none(&backend, &token, &bob)) {
            let done = policy.check(&alice, wanted);
            let may = uid == DAEMON && what != "sign prehash";
            assert_eq!(is_denied(&done), !may, "{uid} {what}");
        }
        assert_eq!(policy.may_see(&bob).unwrap(), uid == DAEMON);
    }
}

#[tokio::test]
async fn a_grant_may_be_to_a_primary_group_and_to_one_socket() {
    let (node, rules) = stage(None).await;
    let bob = id("bob");
    let signs = Permission::Use {
        identity: &bob,
        operation: Operation::Sign(&Purpose::Raw),
    };
    let grant = NewGrant::parse(Subject::Gid(100), "build", "bob", "sign", "raw").unwrap();
    node.registry().add_grant(&grant).unwrap();
    for (gid, socket, may) in [
        (100, "build", true),
        (100, "api", false),
        (101, "build", false),
    ] {
        let policy = rules.judge(&Caller {
            uid: OTHER,
            gid,
            socket: socket.into(),
        });
        assert_eq!(
            !is_denied(&policy.check(&bob, signs)),
            may,
            "{gid} {socket}"
        );
    }
    // A uid is no gid.
    let uid = rules.judge(&Caller {
        uid: 100,
        gid: 1,
        socket: "build".into(),
    });
    assert!(is_denied(&uid.check(&bob, signs)));
}

#[tokio::test]
async fn what_another_process_grants_or_takes_back_counts_after_a_moment() {
    let home = tempfile::tempdir().unwrap();
    let node = Node::builder(Registry::open(home.path()).unwrap())
        .driver(MemoryDriver::new())
        .build();
    let rules = Rules::of(&node, None);
    let policy = rules.judge(&caller(OTHER));
    let lists = || policy.check(&id("x"), Permission::ListTokens);
    assert!(is_denied(&lists()));
    let other = Registry::open(home.path()).unwrap();
    let new = NewGrant::parse(Subject::Uid(OTHER), "", "", "list-tokens", "").unwrap();
    let grant = other.add_grant(&new).unwrap();
    let until = |denied: bool| {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while is_denied(&lists()) != denied {
            assert!(std::time::Instant::now() < end);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    until(false);
    other.remove_grant(grant.id).unwrap();
    until(true);
    // Rights that were altered are none.
    other.add_grant(&new).unwrap();
    until(false);
    drop(other);
    let file = rusqlite::Connection::open(home.path().join("registry.sqlite")).unwrap();
    file.execute("UPDATE grants SET number = 1003", []).unwrap();
    file.execute(
        "UPDATE seal SET digests = zeroblob(32) WHERE name = 'grants'",
        [],
    )
    .unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        match lists() {
            Ok(()) => assert!(std::time::Instant::now() < end),
            Err(error) => {
                assert_eq!(error.code(), "registry-row-altered");
                break;
            }
        }
    }
}

#[tokio::test]
async fn with_a_grant_a_backend_says_which_token_is_meant_and_nothing_that_is_loaded_or_read() {
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(Pkcs11Driver::new())
        .build();
    let rules = Rules::of(&node, Some(DAEMON));
    for operation in ["generate", "adopt", "list-tokens"] {
        let grant = NewGrant::parse(Subject::Uid(OTHER), "", "", operation, "").unwrap();
        node.registry().add_grant(&grant).unwrap();
    }
    let call = Call::within(std::time::Duration::from_secs(20));
    let codes = async |uid: u32, backend: &str| {
        let view = rules.view(&caller(uid));
        let generate = RequestGenerateIdentity {
            backend: Backend::from(backend),
            params: IdParams::P256,
            capabilities: Capabilities::Commit,
        };
        let key = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        let adopt = RequestConnectIdentity {
            external_identity: id(key),
            backend: Backend::from(backend),
            capabilities: Capabilities::Commit,
        };
        let carol = id("carol");
        [
            view.generate(&carol, generate, &call).await.map(drop),
            view.connect(&carol, adopt, &call).await.map(drop),
            view.look(&carol, Some(backend), &call).await.map(drop),
        ]
        .map(|done| done.map_or_else(|error| error.code(), |()| "done"))
    };
    for backend in [
        "pkcs11:?module-path=/nonexistent.so",
        "pkcs11:token=none?module-path=/nonexistent.so&pin-source=file:/etc/hostname",
        "pkcs11:token=none?pin-source=env:PIN",
        "pkcs11:token=none?x-init-reserved=a",
    ] {
        let denied = codes(OTHER, backend).await;
        assert_eq!(denied, ["backend-names-more"; 3], "{backend}");
    }
    let named = codes(OTHER, "pkcs11:token=none?module-name=none").await;
    assert_eq!(named, ["no-token", "no-token", "done"]);
    // Who may do everything is answered by the driver.
    let own = codes(DAEMON, "pkcs11:?module-path=/nonexistent.so").await;
    assert_eq!(own, ["bad-module"; 3]);
}

#[tokio::test]
async fn a_grant_about_tokens_or_about_another_identity_shows_no_name_of_others() {
    let (node, rules) = stage(None).await;
    for (identity, operation) in [("", "list-tokens"), ("", "adopt"), ("bob", "encrypt")] {
        let new = NewGrant::parse(Subject::Uid(OTHER), "", identity, operation, "").unwrap();
        node.registry().add_grant(&new).unwrap();
    }
    let (others, call) = (rules.view(&caller(OTHER)), Call::unlimited());
    let me = EngineId::program();
    // The names that a list shows.
    let listed = async |node: &Node| -> Vec<String> {
        let tokens = node.tokens(&me, None, &call).await.unwrap();
        let slots = tokens.into_iter().flat_map(|(_, slots)| slots);
        let notes = slots.flat_map(|slot| slot.notes);
        let mut names: Vec<String> = notes
            .filter(|(name, _)| name == "identity")
            .map(|(_, identity)| identity)
            .collect();
        names.sort();
        names.dedup();
        names
    };
    assert_eq!(listed(&node).await, ["alice", "bob"]);
    assert_eq!(listed(&others).await, ["bob"]);
    // Whose the key is that is to be adopted.
    for (name, is_said) in [("alice", false), ("bob", true)] {
        let keys = node.public_keys(&id(name)).unwrap().unwrap();
        let request = RequestConnectIdentity {
            external_identity: id(&keys.sign.unwrap().fingerprint().to_string()),
            backend: Backend::LocalMemory,
            capabilities: Capabilities::Commit,
        };
        let refused = others.connect(&id("carol"), request, &call).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), "key-has-owner");
        let shown = format!("{refused} {refused:?}");
        assert_eq!(shown.contains(name), is_said, "{shown}");
    }
    // Who is there to read through.
    let recipients = async |via: &str| {
        let preference = Preference {
            readers: true,
            via: Via::Named(vec![id(via)]),
            depth: 1,
        };
        let bob = id("bob");
        let found = others.recipients(&me, &bob, true, &preference, &call);
        found.await.map(drop).map_err(|error| error.code())
    };
    let absent = recipients("absent").await;
    assert_eq!(absent, Err("external-identity-not-found"));
    assert_eq!(recipients("alice").await, absent);
    assert_ne!(recipients("bob").await, absent);
}
