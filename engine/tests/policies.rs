//! The policy is asked for everything, and who sends is stated by whoever lets a message in.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::{Arc, Mutex};

use claviger_engine::encryption::Preference;
use claviger_engine::message::{
    EngineMsg, Msg, QueryReadsForEvidence, ReplyReadsForEvidence, RequestCommitment,
    RequestConnectIdentity, RequestDecryption, RequestDeleteIdentity, RequestEncrypt,
    RequestGenerateIdentity, RequestReadsFor, SubmitReadsForEvidence,
};
use claviger_engine::opener::Opener;
use claviger_engine::policy::{Operation, Permission};
use claviger_engine::reads_for::EvidenceAbout;
use claviger_engine::{
    Backend, Capabilities, EngineError, EngineId, Evidence, IdParams, Node, NodeId, Policy,
    Purpose, Registry,
};
use claviger_formats::envelope::{self, Sealed};
use claviger_memory::MemoryDriver;
use claviger_token::{Call, KeySpec, KeyUse, PublicKey};
use common::{Device, call, id};
use tempfile::TempDir;

/// What was asked for, as one word.
fn word(access: Permission<'_>) -> String {
    match access {
        Permission::Generate { .. } => "generate".into(),
        Permission::Use {
            operation: Operation::Sign(purpose),
            ..
        } => format!("sign {}", purpose.name()),
        Permission::Use {
            operation: Operation::Decrypt,
            ..
        } => "decrypt".into(),
        Permission::Connect(_) => "connect".into(),
        Permission::Adopt => "adopt".into(),
        Permission::Delete(_) => "delete".into(),
        Permission::Grant { .. } => "grant".into(),
        Permission::Revoke { .. } => "revoke".into(),
        Permission::ListTokens => "list".into(),
        Permission::Encrypt(_) => "encrypt".into(),
        Permission::ReadEvidence(_) => "read evidence".into(),
        Permission::SubmitEvidence => "submit evidence".into(),
        Permission::AttachDevice => "attach".into(),
        Permission::UseLogin { .. } => "use a login".into(),
        Permission::AnyBackend => "name more".into(),
        other => panic!("no word for {other:?}"),
    }
}

/// Denies one thing, and notes who asked for what.
#[derive(Clone, Default)]
struct Denies {
    what: Arc<Mutex<String>>,
    asked: Arc<Mutex<Vec<(EngineId, String)>>>,
}

impl Policy for Denies {
    fn check(&self, sender: &EngineId, access: Permission<'_>) -> Result<(), EngineError> {
        let word = word(access);
        let denied = *self.what.lock().unwrap() == word;
        self.asked.lock().unwrap().push((sender.clone(), word));
        match denied {
            false => Ok(()),
            true => Err(EngineError::NotAllowed {
                sender: sender.clone(),
                what: "do this",
            }),
        }
    }
}

struct Stage {
    node: Node,
    policy: Denies,
    device: Device,
    evidence: Evidence,
    file: Vec<u8>,
    _home: TempDir,
}

impl Stage {
    /// `alice` and `bob`, who reads for her, and a key that is nobody's.
    async fn new() -> Self {
        let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
        let policy = Denies::default();
        let node = Node::builder(Registry::open(home.path()).unwrap())
            .driver(device.clone())
            .driver(MemoryDriver::new())
            .policy(policy.clone())
            .build();
        for name in ["alice", "bob"] {
            common::make(&node, name, &device.backend()).await;
        }
        let (me, reader, by, call) = (EngineId::program(), id("bob"), id("alice"), call());
        let granted = node.grant_reads_for(&me, &reader, &by, None, &call);
        let evidence = granted.await.unwrap();
        let keys = node.public_keys(&id("alice")).unwrap().unwrap();
        let file = envelope::encrypt(&[&keys.decrypt.unwrap()], b"text").unwrap();
        Stage {
            node,
            policy,
            device,
            evidence,
            file,
            _home: home,
        }
    }

    fn backend(&self) -> Backend {
        self.device.backend()
    }

    /// Has `who` make the request that is called so, and says what it said.
    async fn ask(&self, who: &EngineId, request: &str) -> Result<(), EngineError> {
        let (node, call) = (&self.node, call());
        let (alice, bob) = (id("alice"), id("bob"));
        let sign = |purpose| RequestCommitment {
            data: vec![7; 32],
            purpose,
        };
        let signs = id("alice_committer_alice");
        let opens = id("alice_decryptor_alice");
        match request {
            "generate" => {
                let request = RequestGenerateIdentity {
                    backend: self.backend(),
                    params: IdParams::Ed25519,
                    capabilities: Capabilities::Commit,
                };
                node.generate(who, request, &call).await.map(drop)
            }
            "connect" | "adopt" => {
                let spec = KeySpec::sign(claviger_token::Algorithm::P256);
                let to = match request {
                    "connect" => alice,
                    _ => id(&self.device.foreign_key(spec).1),
                };
                let request = RequestConnectIdentity {
                    external_identity: to,
                    backend: self.backend(),
                    capabilities: Capabilities::Commit,
                };
                node.connect(who, request, &call).await.map(drop)
            }
            "delete" => {
                let request = RequestDeleteIdentity {
                    external_identity: bob,
                    backend: self.backend(),
                };
                node.delete(who, request, &call).await.map(drop)
            }
            "sign raw" => {
                let signed = node.commit(who, &signs, vec![1], &call);
                signed.await.map(drop)
            }
            "sign raw, read" => {
                let signed = node.commit_stream(who, &signs, &b"text"[..], &call).await;
                signed.map(drop).map_err(|error| match error {
                    claviger_engine::CommitStreamError::Engine(error) => error,
                    other => panic!("{other}"),
                })
            }
            "sign prehash" => {
                let signed = node.commit_for(who, &signs, sign(Purpose::Prehash), &call);
                signed.await.map(drop)
            }
            "decrypt" => {
                let opened = node.decrypt(who, &opens, self.file.clone(), &call);
                opened.await.map(drop)
            }
            "decrypt, streamed" => node.decryptor(who, &opens, &call).await.map(drop),
            "decrypt, whoever can" => {
                let sealed = Sealed::read(self.file.as_slice()).unwrap();
                let opener = Opener::anybody(node, who, sealed.stanzas(), &call).await?;
                opener.open(&call).await.map(drop).map_err(|not| not.error)
            }
            "decrypt, one can" => {
                let sealed = Sealed::read(self.file.as_slice()).unwrap();
                let opener = Opener::only(node, who, &alice, sealed.stanzas()).await?;
                opener.open(&call).await.map(drop).map_err(|not| not.error)
            }
            "grant" => {
                let granted = node.grant_reads_for(who, &alice, &bob, None, &call);
                granted.await.map(drop)
            }
            "revoke" => {
                let revoked = node.revoke_reads_for(who, &bob, &alice, &call);
                revoked.await.map(drop)
            }
            "list" => node.tokens(who, Some("device:"), &call).await.map(drop),
            "list, with slots" => node.look(who, None, &call).await.map(drop),
            "list, accounts" => {
                let found = node.find_accounts(who, "device:", Vec::new(), &call, |_| {});
                found.await.map(drop)
            }
            "encrypt" => {
                let request = RequestEncrypt {
                    data: b"text".to_vec().into(),
                    external_identity: alice,
                    use_reads_for: false,
                    preference: Preference::ITSELF,
                };
                node.encrypt(who, request, &call).await.map(drop)
            }
            "encrypt, streamed" => {
                let to = node.recipients(who, &alice, true, &Preference::ITSELF, &call);
                to.await.map(drop)
            }
            "read evidence" => node.reads_for(who, &bob, &alice).map(drop),
            "read evidence, chain" => node.reads_for_chain(who, &bob, &alice).map(drop),
            "read evidence, all" => node.evidence_about(who, &alice).map(drop),
            "submit evidence" => node.submit_evidence(who, &self.evidence),
            "submit evidence, file" => {
                let file = vec![self.evidence.clone()];
                let imported = node.import_evidence(who, file).await;
                imported.map(drop).map_err(|not| not.error)
            }
            other => panic!("{other}"),
        }
    }
}

const REQUESTS: [&str; 24] = [
    "generate",
    "connect",
    "adopt",
    "delete",
    "sign raw",
    "sign raw, read",
    "sign prehash",
    "decrypt",
    "decrypt, streamed",
    "decrypt, whoever can",
    "decrypt, one can",
    "grant",
    "revoke",
    "list",
    "list, with slots",
    "list, accounts",
    "encrypt",
    "encrypt, streamed",
    "read evidence",
    "read evidence, chain",
    "read evidence, all",
    "submit evidence",
    "submit evidence, file",
    "sign evidence",
];

#[tokio::test]
async fn the_policy_is_asked_for_every_request_and_what_it_denies_is_not_done() {
    let stage = Stage::new().await;
    let keys = stage.device.keys();
    for request in REQUESTS {
        let denied = request.split(',').next().unwrap();
        *stage.policy.what.lock().unwrap() = denied.into();
        stage.policy.asked.lock().unwrap().clear();
        let opened = stage.device.opened();
        let who = id("carol");
        // A grant is a signature as well.
        let asked = match request {
            "sign evidence" => "grant",
            other => other,
        };
        let done = stage.ask(&who, asked).await;
        assert!(
            matches!(done, Err(EngineError::NotAllowed { .. })),
            "{request}: {done:?}"
        );
        let asked = stage.policy.asked.lock().unwrap();
        let by_her = asked.iter().any(|(by, what)| *by == who && what == denied);
        assert!(by_her, "{request}: {asked:?}");
        assert_eq!(stage.device.opened(), opened, "{request}");
    }
    let identities = stage.node.registry().identities().unwrap();
    assert_eq!(identities.len(), 2);
    // That of `adopt` was made by this test.
    assert_eq!(stage.device.keys(), keys + 1);
    let evidence = stage.node.evidence_about(&id("x"), &id("alice"));
    stage.policy.what.lock().unwrap().clear();
    assert!(evidence.is_ok());
    let granted = stage.node.reads_for(&id("x"), &id("bob"), &id("alice"));
    assert!(granted.unwrap());
}

#[tokio::test]
async fn what_the_policy_does_not_deny_is_done() {
    for request in REQUESTS.into_iter().filter(|r| *r != "sign evidence") {
        let stage = Stage::new().await;
        let done = stage.ask(&id("carol"), request).await;
        assert!(
            !matches!(done, Err(EngineError::NotAllowed { .. })),
            "{request}"
        );
    }
}

/// Somebody on another node.
fn remote(node: &Node, name: &str) -> EngineId {
    let info = node.registry().identity(&id("alice")).unwrap().unwrap();
    let key: PublicKey = info.key(KeyUse::Sign).unwrap().public_key.clone();
    EngineId {
        node: Some(NodeId(Arc::new(key))),
        name: name.into(),
    }
}

/// All messages to engines of `alice`, as if she sent them.
fn messages(stage: &Stage) -> Vec<(EngineId, Msg)> {
    let management = stage.node.identity_management();
    let request = RequestConnectIdentity {
        external_identity: id("alice"),
        backend: stage.backend(),
        capabilities: Capabilities::Commit,
    };
    let delete = RequestDeleteIdentity {
        external_identity: id("alice"),
        backend: stage.backend(),
    };
    let data = stage.file.clone();
    vec![
        (management.clone(), Msg::RequestConnectIdentity(request)),
        (management, Msg::RequestDeleteIdentity(delete)),
        (
            id("alice_committer_alice"),
            Msg::RequestCommitment(RequestCommitment::raw(vec![1])),
        ),
        (
            id("alice_decryptor_alice"),
            Msg::RequestDecryption(RequestDecryption { data }),
        ),
    ]
}

fn error(reply: Option<Msg>) -> Option<EngineError> {
    match reply.unwrap() {
        Msg::ReplyConnectIdentity(reply) => reply.err,
        Msg::ReplyDeleteIdentity(reply) => reply.err,
        Msg::ReplyCommitment(reply) => reply.err,
        Msg::ReplyDecryption(reply) => reply.err,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_a_message_from_outside_says_of_its_sender_counts_for_nothing() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let stage = Stage::new().await;
    let node = common::node(home.path(), &device);
    common::make(&node, "alice", &device.backend()).await;
    let mallory = remote(&node, "mallory");
    for (target, msg) in messages(&stage) {
        let message = EngineMsg {
            sender: id("alice"),
            target,
            mailbox: None,
            msg,
        };
        let reply = node.let_in(&mallory, message, &Call::unlimited()).await;
        let error = error(reply.unwrap());
        assert!(
            matches!(&error, Some(EngineError::NotAllowed { sender, .. }) if *sender == mallory),
            "{error:?}"
        );
    }
    assert_eq!(node.registry().identities().unwrap().len(), 1);
    // The same from this process is done, whatever was sent before it.
    let (target, msg) = messages(&stage).remove(2);
    let reply = node.ask(&id("alice"), &target, msg, &call()).await;
    assert!(error(reply).is_none());
}

#[tokio::test]
async fn from_another_node_nobody_chooses_the_backend_that_keys_are_made_on() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node = common::node(home.path(), &device);
    common::make(&node, "alice", &device.backend()).await;
    let (mallory, opened) = (remote(&node, "mallory"), device.opened());
    let message = EngineMsg {
        sender: mallory.clone(),
        target: node.identity_management(),
        mailbox: None,
        msg: Msg::RequestGenerateIdentity(RequestGenerateIdentity {
            backend: device.backend(),
            params: IdParams::Ed25519,
            capabilities: Capabilities::Commit,
        }),
    };
    let reply = node.let_in(&mallory, message, &call()).await.unwrap();
    let Some(Msg::ReplyGenerateIdentity(reply)) = reply else {
        panic!("no reply");
    };
    assert!(
        matches!(&reply.err, Some(EngineError::NotAllowed { sender, .. }) if *sender == mallory),
        "{:?}",
        reply.err
    );
    assert_eq!(device.opened(), opened);
    assert_eq!(device.keys(), 2);
}

#[tokio::test]
async fn who_is_denied_does_not_learn_what_exists() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let (node, backend) = (common::node(home.path(), &device), device.backend());
    for name in ["alice", "gone"] {
        common::make(&node, name, &backend).await;
    }
    let (params, commit) = (IdParams::Ed25519, Capabilities::Commit);
    common::generate(&node, "signer", &backend, params, commit).await;
    // A key that was deleted is known as long as somebody is connected to it.
    common::connect(&node, "heir", "gone", &backend, commit).await;
    common::delete(&node, "gone", "gone").await.unwrap();
    let (mallory, call) = (remote(&node, "mallory"), call());
    let told = |what: &str, done: Option<EngineError>| match done {
        Some(EngineError::NotAllowed { what, .. }) => what,
        other => panic!("{what}: {other:?}"),
    };
    let keys = node.public_keys(&id("alice")).unwrap().unwrap();
    let file = envelope::encrypt(&[&keys.decrypt.unwrap()], b"text").unwrap();
    let sealed = Sealed::read(file.as_slice()).unwrap();
    let mut all = [vec![], vec![], vec![]];
    for name in ["alice", "signer", "heir", "nobody"] {
        let request = RequestDeleteIdentity {
            external_identity: id(name),
            backend: backend.clone(),
        };
        let deleted = node.delete(&mallory, request, &call).await;
        all[0].push(told("delete", deleted.err()));
        let request = RequestConnectIdentity {
            external_identity: id(name),
            backend: backend.clone(),
            capabilities: Capabilities::CommitAndDecrypt,
        };
        let connected = node.connect(&mallory, request, &call).await;
        all[1].push(told("connect", connected.err()));
        let opener = Opener::only(&node, &mallory, &id(name), sealed.stanzas()).await;
        all[2].push(told("decrypt", opener.err()));
    }
    for told in all {
        assert!(told.iter().all(|what| *what == told[0]), "{told:?}");
    }
    let engine = id("gone_committer_gone");
    let signed = node.commit(&mallory, &engine, vec![1], &call).await;
    told("sign", signed.err());
    // Who may use it is told that it is gone.
    let signed = node.commit(&id("heir"), &engine, vec![1], &call).await;
    assert!(
        matches!(signed, Err(EngineError::IdentityDeleted { .. })),
        "{signed:?}"
    );
}

/// What the engine called so answers `who` to a message that is let in: nothing, or its error.
async fn told(node: &Node, who: &EngineId, engine: &str, msg: Msg) -> Option<String> {
    let message = EngineMsg {
        sender: who.clone(),
        target: id(engine),
        mailbox: None,
        msg,
    };
    let reply = node.let_in(who, message, &call()).await.unwrap();
    reply.map(|reply| error(Some(reply)).unwrap().to_string())
}

/// Lets nobody use anything.
struct NoUse;

impl Policy for NoUse {
    fn check(&self, sender: &EngineId, access: Permission<'_>) -> Result<(), EngineError> {
        match access {
            Permission::Use { .. } => Err(EngineError::NotAllowed {
                sender: sender.clone(),
                what: "use this",
            }),
            _ => Ok(()),
        }
    }
}

#[tokio::test]
async fn to_who_is_denied_an_engine_that_is_not_there_answers_as_one_that_is() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let default = common::node(home.path(), &device);
    common::make(&default, "alice", &device.backend()).await;
    let mallory = remote(&default, "mallory");
    let strict = Node::builder(Registry::open(home.path()).unwrap())
        .driver(device.clone())
        .policy(NoUse)
        .build();
    let sign = || Msg::RequestCommitment(RequestCommitment::raw(vec![1]));
    let open = || Msg::RequestDecryption(RequestDecryption { data: vec![1] });
    // From another node, and from another process of this machine.
    for (node, who) in [
        (&default, &mallory),
        (&strict, &mallory),
        (&strict, &id("uid 1000")),
    ] {
        for (kind, msg) in [
            ("committer", &sign as &dyn Fn() -> Msg),
            ("decryptor", &open),
        ] {
            let there = told(node, who, &format!("alice_{kind}_alice"), msg()).await;
            let denied = there.as_ref().unwrap();
            assert!(denied.contains("may not"), "{denied}");
            let absent = told(node, who, &format!("nobody_{kind}_nobody"), msg()).await;
            assert_eq!(absent, there, "{kind}");
        }
        // What no engine does, and what no engine is called, is dropped as ever.
        assert_eq!(told(node, who, "alice_committer_alice", open()).await, None);
        assert_eq!(told(node, who, "alice_committer_bob", sign()).await, None);
    }
    let call = call();
    for engine in ["alice_committer_alice", "nobody_committer_nobody"] {
        let signed = default.commit(&mallory, &id(engine), vec![1], &call).await;
        assert!(
            matches!(signed, Err(EngineError::NotAllowed { .. })),
            "{signed:?}"
        );
    }
    // In this process it is as the specification has it.
    for node in [&default, &strict] {
        let absent = id("nobody_committer_nobody");
        assert!(node.ask(&id("x"), &absent, sign(), &call).await.is_none());
    }
}

#[tokio::test]
async fn to_who_is_denied_an_engine_that_was_altered_answers_as_one_that_is_not_there() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let before = common::node(home.path(), &device);
    common::make(&before, "alice", &device.backend()).await;
    let mallory = remote(&before, "mallory");
    drop(before);
    let db = rusqlite::Connection::open(home.path().join("registry.sqlite")).unwrap();
    let change = "UPDATE key SET backend = 'device:other' WHERE owner_name = 'alice'";
    assert_eq!(db.execute(change, []).unwrap(), 2);
    drop(db);
    let node = common::node(home.path(), &device);
    let sign = || Msg::RequestCommitment(RequestCommitment::raw(vec![1]));
    let open = || Msg::RequestDecryption(RequestDecryption { data: vec![1] });
    for (kind, msg) in [
        ("committer", &sign as &dyn Fn() -> Msg),
        ("decryptor", &open),
    ] {
        let absent = told(&node, &mallory, &format!("nobody_{kind}_nobody"), msg()).await;
        let altered = told(&node, &mallory, &format!("alice_{kind}_alice"), msg()).await;
        assert!(altered.as_ref().unwrap().contains("may not"), "{altered:?}");
        assert_eq!(altered, absent, "{kind}");
    }
    // Nor is it told of what it asks the wrong engine for.
    for (kind, msg) in [("committer", open()), ("decryptor", sign())] {
        let altered = told(&node, &mallory, &format!("alice_{kind}_alice"), msg).await;
        assert_eq!(altered, None, "{kind}");
    }
    // Who may use it learns what is wrong.
    let engine = id("alice_committer_alice");
    let signed = node.commit(&id("alice"), &engine, vec![1], &call()).await;
    assert!(
        matches!(&signed, Err(EngineError::Registry(error)) if error.code() == "registry-row-altered"),
        "{signed:?}"
    );
}

#[tokio::test]
async fn who_lets_a_message_in_gets_the_reply_and_a_participant_the_true_sender() {
    let stage = Stage::new().await;
    let carol = remote(&stage.node, "carol");
    let message = |target: EngineId, msg| EngineMsg {
        sender: id("alice"),
        target,
        mailbox: Some(3),
        msg,
    };
    let query = |name: &str| {
        Msg::QueryReadsForEvidence(QueryReadsForEvidence {
            external_identity: id(name),
        })
    };
    let reads_for = stage.node.reads_for_engine();
    let call = call();
    let asked = (stage.node).let_in(&carol, message(reads_for.clone(), query("alice")), &call);
    let Some(Msg::ReplyReadsForEvidence(reply)) = asked.await.unwrap() else {
        panic!("no reply");
    };
    assert_eq!(reply.evidence.direct.len(), 1);
    let listener = stage.node.attach("listener").unwrap();
    let sent = (stage.node).let_in(&carol, message(listener.id().clone(), query("x")), &call);
    assert!(sent.await.unwrap().is_none());
    assert_eq!(listener.try_receive(3).unwrap().sender, carol);
    // Each is asked about by the name of who was let in.
    for (what, msg) in [
        (
            "read evidence",
            Msg::RequestReadsFor(RequestReadsFor {
                a: id("bob"),
                b: id("alice"),
            }),
        ),
        (
            "submit evidence",
            Msg::SubmitReadsForEvidence(SubmitReadsForEvidence {
                evidence: stage.evidence.clone(),
            }),
        ),
    ] {
        stage.policy.asked.lock().unwrap().clear();
        let message = message(reads_for.clone(), msg);
        let reply = stage.node.let_in(&carol, message, &call).await;
        assert!(reply.unwrap().is_some());
        let asked = stage.policy.asked.lock().unwrap();
        assert!(
            asked
                .iter()
                .all(|(who, word)| *who == carol && word == what)
        );
        assert!(!asked.is_empty(), "{what}");
    }
    // Evidence that nobody asked the sender for is dropped, whoever it says that it is.
    let forged = Msg::ReplyReadsForEvidence(ReplyReadsForEvidence {
        external_identity: id("alice"),
        evidence: EvidenceAbout::default(),
        err: None,
    });
    let forged = message(stage.node.encryption(), forged);
    let reply = stage.node.let_in(&carol, forged, &call).await;
    assert!(reply.unwrap().is_none());
}
