//! Views of one node: each asks its own policy, and has its own logins.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use claviger_engine::CommitStreamError;
use claviger_engine::encryption::Preference;
use claviger_engine::message::{
    RequestConnectIdentity, RequestDeleteIdentity, RequestEncrypt, RequestGenerateIdentity,
};
use claviger_engine::opener::Opener;
use claviger_engine::policy::{OwnersOnly, Permission, Policy, Subject};
use claviger_engine::{Backend, Capabilities, EngineError, EngineId, IdParams, Node, Registry};
use claviger_formats::envelope::{self, Sealed};
use claviger_memory::MemoryDriver;
use claviger_token::{Algorithm, Call, Error, KeySpec, NoPin, Pin, PinSource, TokenId};
use common::logins::{Stage, is_not_allowed, with_pin};
use common::safes::{PINS, Person, Safes};
use common::{call, id};

/// Denies everything.
struct Nothing;

impl Policy for Nothing {
    fn check(&self, sender: &EngineId, _: Permission<'_>) -> Result<(), EngineError> {
        Err(denied(sender))
    }
}

/// One caller, who may do everything but use somebody else's login.
struct Caller(&'static str);

impl Policy for Caller {
    fn check(&self, sender: &EngineId, wanted: Permission<'_>) -> Result<(), EngineError> {
        match wanted {
            Permission::UseLogin { .. } => Err(denied(sender)),
            _ => Ok(()),
        }
    }

    fn subject(&self) -> Option<Subject> {
        Some(Subject {
            name: self.0.into(),
            uid: 7,
        })
    }
}

/// The same of nobody in particular.
struct Anybody;

impl Policy for Anybody {
    fn check(&self, sender: &EngineId, wanted: Permission<'_>) -> Result<(), EngineError> {
        Caller("").check(sender, wanted)
    }
}

/// Lets keys be used as long as it is set.
struct As(Arc<AtomicBool>);

impl Policy for As {
    fn check(&self, sender: &EngineId, wanted: Permission<'_>) -> Result<(), EngineError> {
        match wanted {
            Permission::Use { .. } if !self.0.load(SeqCst) => Err(denied(sender)),
            _ => Ok(()),
        }
    }
}

/// Knows the PIN, and says it after the right to use keys was taken back.
struct TakesBack(Person, Arc<AtomicBool>);

impl PinSource for TakesBack {
    fn pin(&self, token: &TokenId, label: &str, call: &Call) -> Result<Pin, Error> {
        self.1.store(false, SeqCst);
        self.0.pin(token, label, call)
    }

    fn is_one_for_all(&self) -> bool {
        false
    }
}

/// One caller, who uses the logins of others for the keys of this identity.
struct LoginsFor(&'static str);

impl Policy for LoginsFor {
    fn check(&self, sender: &EngineId, wanted: Permission<'_>) -> Result<(), EngineError> {
        match wanted {
            Permission::UseLogin { .. } if *sender != id(self.0) => Err(denied(sender)),
            _ => Ok(()),
        }
    }
}

/// One caller, who may do everything but name more than tokens.
struct OnlyTokens;

impl Policy for OnlyTokens {
    fn check(&self, sender: &EngineId, wanted: Permission<'_>) -> Result<(), EngineError> {
        match wanted {
            Permission::AnyBackend => Err(denied(sender)),
            _ => Ok(()),
        }
    }
}

fn denied(sender: &EngineId) -> EngineError {
    EngineError::NotAllowed {
        sender: sender.clone(),
        what: "do this",
    }
}

async fn sign(node: &Node, identity: &str, call: &claviger_token::Call) -> Result<(), EngineError> {
    let (who, engine) = (
        id(identity),
        id(&format!("{identity}_committer_{identity}")),
    );
    let signed = node.commit(&who, &engine, b"m".to_vec(), call);
    signed.await.map(drop)
}

fn in_memory() -> RequestGenerateIdentity {
    RequestGenerateIdentity {
        backend: Backend::LocalMemory,
        params: IdParams::Ed25519,
        capabilities: Capabilities::CommitAndDecrypt,
    }
}

#[tokio::test]
async fn each_view_of_a_node_asks_its_own_policy_about_the_same_identities() {
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(MemoryDriver::new())
        .build();
    let allowed = node.seen_by(Arc::new(Caller("one")));
    let denied = node.seen_by(Arc::new(Nothing));
    let (alice, unlimited) = (id("alice"), call());
    let made = allowed.generate(&alice, in_memory(), &unlimited).await;
    made.unwrap();
    for view in [&node, &allowed] {
        sign(view, "alice", &call()).await.unwrap();
    }
    is_not_allowed(&sign(&denied, "alice", &call()).await);
    // A view of a view asks only its own.
    sign(&denied.seen_by(Arc::new(OwnersOnly)), "alice", &call())
        .await
        .unwrap();
    is_not_allowed(&sign(&allowed.seen_by(Arc::new(Nothing)), "alice", &call()).await);
}

/// What the node answers to each request about `identity`, in words without its name.
async fn answers(node: &Node, identity: &str) -> Vec<String> {
    let (who, call) = (id(identity), call());
    let engine = |what: &str| id(&format!("{identity}_{what}_{identity}"));
    let (signs, opens) = (engine("committer"), engine("decryptor"));
    let connect = |from: &str| RequestConnectIdentity {
        external_identity: id(from),
        backend: Backend::LocalMemory,
        capabilities: Capabilities::Commit,
    };
    let encrypt = RequestEncrypt {
        data: b"m".to_vec().into(),
        external_identity: who.clone(),
        use_reads_for: false,
        preference: Preference::default(),
    };
    let delete = RequestDeleteIdentity {
        external_identity: who.clone(),
        backend: Backend::LocalMemory,
    };
    let said = |done: Result<(), EngineError>| match done {
        Ok(()) => "done".into(),
        Err(error) => error.to_string().replace(identity, "IT"),
    };
    let bob = id("bob");
    vec![
        said(
            node.commit(&who, &signs, b"m".to_vec(), &call)
                .await
                .map(drop),
        ),
        said(
            node.decrypt(&who, &opens, b"m".to_vec(), &call)
                .await
                .map(drop),
        ),
        said(node.decryptor(&who, &opens, &call).await.map(drop)),
        said(node.encrypt(&who, encrypt, &call).await.map(drop)),
        said(node.generate(&who, in_memory(), &call).await.map(drop)),
        said(node.connect(&who, connect("bob"), &call).await.map(drop)),
        said(node.connect(&bob, connect(identity), &call).await.map(drop)).replace("bob", "IT"),
        said(node.delete(&who, delete, &call).await.map(drop)),
        said(
            node.grant_reads_for(&who, &bob, &who, None, &call)
                .await
                .map(drop),
        ),
        said(
            node.revoke_reads_for(&who, &bob, &who, &call)
                .await
                .map(drop),
        ),
        said(node.evidence_about(&who, &who).map(drop)),
        said(node.reads_for(&who, &who, &bob).map(drop)),
    ]
}

#[tokio::test]
async fn whom_a_views_policy_denies_learns_nothing_of_what_exists() {
    let home = tempfile::tempdir().unwrap();
    let device = common::Device::new();
    let open = || {
        Node::builder(Registry::open(home.path()).unwrap())
            .driver(device.clone())
            .driver(MemoryDriver::new())
            .build()
    };
    let node = open();
    for name in ["there", "altered", "bob"] {
        common::make(&node, name, &device.backend()).await;
    }
    drop(node);
    let file = rusqlite::Connection::open(home.path().join("registry.sqlite")).unwrap();
    let changed = file.execute(
        "UPDATE key SET backend = 'x:' WHERE owner_name = 'altered'",
        [],
    );
    assert_eq!(changed.unwrap(), 2);
    drop(file);
    let node = open();
    // Who may do anything sees the difference.
    sign(&node, "there", &call()).await.unwrap();
    let altered = sign(&node, "altered", &call()).await.unwrap_err();
    assert_eq!(altered.code(), "registry-row-altered");
    let absent = sign(&node, "absent", &call()).await.unwrap_err();
    assert_eq!(absent.code(), "no-such-engine");

    let denied = node.seen_by(Arc::new(Nothing));
    let absent = answers(&denied, "absent").await;
    assert_eq!(absent, vec!["`IT` may not do this"; absent.len()]);
    for name in ["there", "altered"] {
        assert_eq!(answers(&denied, name).await, absent, "{name}");
    }
}

#[tokio::test]
async fn the_login_of_one_view_serves_another_only_where_its_policy_allows_that() {
    for is_known in [true, false] {
        let stage = Stage::new().await;
        let node = stage.node(NoPin, OwnersOnly);
        let [one, other] = ["one", "other"].map(|name| {
            node.seen_by(match is_known {
                true => Arc::new(Caller(name)),
                false => Arc::new(Anybody),
            })
        });
        // The first needs a PIN, and has a login then, for whichever identity it asks.
        sign(&one, "alice", &with_pin()).await.unwrap();
        sign(&one, "alice", &call()).await.unwrap();
        sign(&one, "bob", &call()).await.unwrap();
        for name in ["alice", "bob"] {
            is_not_allowed(&sign(&other, name, &call()).await);
        }
        let shares = node.seen_by(Arc::new(OwnersOnly));
        sign(&shares, "bob", &call()).await.unwrap();
        // The token was opened once for all of them.
        assert_eq!(stage.came(), [PINS[0]]);
    }
}

#[tokio::test]
async fn views_of_one_subject_share_a_login_also_after_the_first_is_gone() {
    let stage = Stage::new().await;
    let node = stage.node(NoPin, OwnersOnly);
    let view = |name| node.seen_by(Arc::new(Caller(name)));
    sign(&view("one"), "alice", &with_pin()).await.unwrap();
    sign(&view("one"), "bob", &call()).await.unwrap();
    is_not_allowed(&sign(&view("other"), "alice", &call()).await);
    // Nor does another node share it.
    let apart = stage.node(NoPin, Caller("one"));
    is_not_allowed(&sign(&apart, "alice", &call()).await);
    assert_eq!(stage.came(), [PINS[0]]);
}

#[tokio::test]
async fn the_nodes_own_login_serves_all_views() {
    let stage = Stage::new().await;
    let node = stage.node(stage.safes.person(), OwnersOnly);
    for name in ["one", "other"] {
        let view = node.seen_by(Arc::new(Caller(name)));
        sign(&view, "alice", &call()).await.unwrap();
    }
    assert_eq!(stage.came(), [PINS[0]]);
}

#[tokio::test]
async fn a_wrong_pin_of_one_view_takes_no_login_from_another() {
    let stage = Stage::new().await;
    let node = stage.node(NoPin, OwnersOnly);
    let [one, other] = ["one", "other"].map(|name| node.seen_by(Arc::new(Caller(name))));
    let wrong = claviger_token::Call::unlimited().using(claviger_token::Access::with(
        claviger_token::FixedPin::new("999999"),
    ));
    let refused = sign(&other, "alice", &wrong).await;
    assert!(
        matches!(refused, Err(EngineError::Token(Error::PinWrong { .. }))),
        "{refused:?}"
    );
    sign(&one, "alice", &with_pin()).await.unwrap();
    sign(&one, "alice", &call()).await.unwrap();
    is_not_allowed(&sign(&other, "alice", &call()).await);
}

#[tokio::test]
async fn a_backend_that_names_more_than_a_token_is_refused_before_anything_is_asked() {
    let stage = Stage::new().await;
    let node = stage.node(NoPin, OwnersOnly);
    let view = node.seen_by(Arc::new(OnlyTokens));
    let device = &stage.safes.0[0].device;
    let named = device.backend().to_string();
    let more = format!("{named}?pin={}", PINS[0]);
    let (carol, call) = (id("carol"), call());
    let generate = || RequestGenerateIdentity {
        backend: Backend::from(more.clone()),
        ..stage.request()
    };
    let foreign = device.foreign_key(KeySpec::sign(Algorithm::P256)).1;
    let adopt = RequestConnectIdentity {
        external_identity: id(&foreign),
        backend: Backend::from(more.clone()),
        capabilities: Capabilities::Commit,
    };
    let refused = [
        view.generate(&carol, generate(), &call).await.map(drop),
        view.connect(&carol, adopt, &call).await.map(drop),
        view.tokens(&carol, Some(&more), &call).await.map(drop),
        view.find_accounts(&carol, &more, Vec::new(), &call, |_| {})
            .await
            .map(drop),
    ];
    for refused in refused {
        assert_eq!(refused.unwrap_err().code(), "backend-names-more");
    }
    assert!(stage.came().is_empty());
    // A token may be named, and who may do everything names the rest, too.
    let found = view.tokens(&carol, Some(&named), &call).await.unwrap();
    assert_eq!(found.len(), 1);
    node.generate(&carol, generate(), &call).await.unwrap();
    assert_eq!(stage.came(), [PINS[0]]);
}

/// What a request that uses a key of `alice` ends with.
async fn use_of_key(node: &Node, request: &str, file: &[u8]) -> Result<(), EngineError> {
    let (alice, call) = (id("alice"), call());
    match request {
        "sign" => sign(node, "alice", &call).await,
        "sign as it is read" => {
            let engine = id("alice_committer_alice");
            let signed = node.commit_stream(&alice, &engine, &b"m"[..], &call);
            signed.await.map(drop).map_err(|error| match error {
                CommitStreamError::Engine(error) => error,
                other => panic!("{other}"),
            })
        }
        "decrypt" => {
            let engine = id("alice_decryptor_alice");
            let opened = node.decrypt(&alice, &engine, file.to_vec(), &call);
            opened.await.map(drop)
        }
        "open" => {
            let sealed = Sealed::read(file).unwrap();
            let opener = Opener::only(node, &alice, &alice, sealed.stanzas()).await?;
            opener.open(&call).await.map(drop).map_err(|not| not.error)
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_right_that_is_taken_back_while_a_request_waits_is_not_used_any_more() {
    for safes in [Safes::new, Safes::slow] {
        let stage = Stage::with(safes()).await;
        let node = stage.node(NoPin, OwnersOnly);
        let keys = node.public_keys(&id("alice")).unwrap().unwrap();
        let file = envelope::encrypt(&[&keys.decrypt.unwrap()], b"text").unwrap();
        for request in ["sign", "sign as it is read", "decrypt", "open"] {
            for takes_back in [false, true] {
                stage.safes.log_out();
                let may = Arc::new(AtomicBool::new(true));
                let switch = match takes_back {
                    true => Arc::clone(&may),
                    false => Arc::default(),
                };
                let person = TakesBack(stage.safes.person(), switch);
                let node = stage.node(person, As(may));
                let done = use_of_key(&node, request, &file).await;
                // The PIN was asked for in either case.
                assert_eq!(stage.came(), [PINS[0]], "{request}");
                match takes_back {
                    true => is_not_allowed(&done),
                    false => done.unwrap(),
                }
            }
        }
    }
}

#[tokio::test]
async fn a_view_uses_a_login_by_whose_key_it_uses_and_not_by_what_it_calls_itself() {
    let stage = Stage::new().await;
    let node = stage.node(NoPin, OwnersOnly);
    let one = node.seen_by(Arc::new(Caller("one")));
    sign(&one, "alice", &with_pin()).await.unwrap();
    let other = node.seen_by(Arc::new(LoginsFor("bob")));
    for (who, key, may) in [
        ("bob", "alice", false),
        ("alice", "alice", false),
        ("bob", "bob", true),
        ("alice", "bob", true),
    ] {
        let engine = id(&format!("{key}_committer_{key}"));
        let (who, call) = (id(who), call());
        let signed = other.commit(&who, &engine, b"m".to_vec(), &call).await;
        match may {
            true => drop(signed.unwrap()),
            false => is_not_allowed(&signed),
        }
    }
}
