//! Each message from each kind of caller, over sockets.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod common;

use std::collections::BTreeSet;

use claviger_client::wire::daemon_request::Request as ToDaemon;
use claviger_client::wire::{self, Frame, engine_msg::Msg, frame::Content};
use claviger_engine::grants::{NewGrant, Subject};
use claviger_engine::{EngineId, Node, Registry};
use claviger_memory::MemoryDriver;
use claviger_service::audit::{Audit, AuditSettings};
use claviger_service::policy::Rules;
use claviger_service::{Caller, Service};
use prost::Message;
use prost::encoding::decode_varint;
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

use common::{Daemon, ask_daemon, decrypt, encrypt, is_no_root, manage, runtime, sign};

const MAKER: u32 = 1001;
const GRANTED: u32 = 1002;
const OTHER: u32 = 1003;
const ROOT: u32 = 0;

/// What `GRANTED` may, about `alice` and about nobody.
const GRANTS: [(&str, &str); 9] = [
    ("alice", "sign"),
    ("alice", "decrypt"),
    ("alice", "encrypt"),
    ("alice", "connect"),
    ("", "generate"),
    ("", "adopt"),
    ("", "list-tokens"),
    ("", "submit-evidence"),
    ("", "attach-device"),
];

/// A daemon of the system with `alice`, whom [`MAKER`] made, and `altered`, whom nobody did.
struct Stage {
    daemon: Daemon,
    home: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let (runtime, home) = (runtime(), tempfile::tempdir().unwrap());
        let node = Node::builder(Registry::open(home.path()).unwrap())
            .driver(MemoryDriver::new())
            .build();
        let maker = Caller {
            uid: MAKER,
            gid: MAKER,
            socket: "api".into(),
        };
        let makers = Rules::of(&node, Some(MAKER)).view(&maker);
        runtime.block_on(common::generate(&makers, "alice", "memory:"));
        runtime.block_on(common::generate(&node, "altered", "memory:"));
        for (identity, operation) in GRANTS {
            let to = Subject::Uid(GRANTED);
            let grant = NewGrant::parse(to, "api", identity, operation, "").unwrap();
            node.registry().add_grant(&grant).unwrap();
        }
        let audit = Audit::open(AuditSettings::of(home.path().join("audit.jsonl"))).unwrap();
        let service = Service::builder(node).system(true).audit(audit).build();
        let daemon = Daemon::of(runtime, service);
        daemon.is_for_all();
        Stage { daemon, home }
    }

    /// The daemon's answer to this user.
    fn ask(&self, uid: u32, request: &Frame) -> Frame {
        let mut peer = self.daemon.peer_of(uid, None);
        peer.send(request);
        let answer = peer.next_or_end();
        answer.unwrap_or_else(|| panic!("no answer to {request:?} of {uid}"))
    }

    fn audit_lines(&self, kind: &str) -> usize {
        let text = std::fs::read_to_string(self.home.path().join("audit.jsonl")).unwrap();
        let kind = format!("\"kind\":\"{kind}\"");
        text.lines().filter(|line| line.contains(&kind)).count()
    }
}

fn id(name: &str) -> Option<wire::EngineId> {
    Some(wire::EngineId {
        name: name.into(),
        ..wire::EngineId::default()
    })
}

fn to(target: &str, msg: Msg) -> Frame {
    let message = wire::EngineMsg {
        target: id(target),
        msg: Some(msg),
        ..wire::EngineMsg::default()
    };
    Frame::new(1, Content::Engine(message))
}

fn with_purpose(mut frame: Frame, purpose: wire::purpose::Purpose) -> Frame {
    if let Some(Content::Engine(message)) = &mut frame.content
        && let Some(Msg::RequestCommitment(request)) = &mut message.msg
    {
        request.purpose = Some(wire::Purpose {
            purpose: Some(purpose),
        });
    }
    frame
}

fn connect(new: &str, external: &str) -> Frame {
    let request = wire::RequestConnectIdentity {
        external_identity: id(external),
        backend: "memory:".into(),
        capabilities: vec![wire::KeyUse::Sign.into()],
    };
    manage(1, new, Msg::RequestConnectIdentity(request))
}

/// The messages about an identity.
fn about(identity: &str) -> Vec<(&'static str, Frame)> {
    let decryptor = format!("{identity}_decryptor_{identity}");
    let reads_for = wire::RequestReadsFor {
        a: id(identity),
        b: id(identity),
    };
    let query = wire::QueryReadsForEvidence {
        external_identity: id(identity),
    };
    let delete = wire::RequestDeleteIdentity {
        external_identity: id(identity),
        backend: "memory:".into(),
    };
    let import = wire::ImportCertificate {
        identity: identity.into(),
        certificates: vec![b"none".to_vec()],
    };
    vec![
        ("sign", sign(1, identity, b"message")),
        (
            "prehash",
            with_purpose(
                sign(1, identity, &[7; 32]),
                wire::purpose::Purpose::Prehash(true),
            ),
        ),
        (
            "decrypt",
            decrypt(1, &decryptor, b"no file".to_vec(), false),
        ),
        ("open", decrypt(1, &decryptor, b"no file".to_vec(), true)),
        ("encrypt", encrypt(1, identity, b"text".to_vec(), false)),
        ("connect", connect("another", identity)),
        (
            "reads-for",
            to("reads_for", Msg::RequestReadsFor(reads_for)),
        ),
        (
            "evidence",
            to("reads_for", Msg::QueryReadsForEvidence(query)),
        ),
        (
            "delete",
            manage(1, identity, Msg::RequestDeleteIdentity(delete)),
        ),
        (
            "import-certificate",
            ask_daemon(1, ToDaemon::ImportCertificate(import)),
        ),
    ]
}

/// The messages about none.
fn about_none() -> Vec<(&'static str, Frame)> {
    let generate = wire::RequestGenerateIdentity {
        backend: "memory:".into(),
        params: "p256".into(),
        capabilities: vec![wire::KeyUse::Sign.into()],
    };
    let key = format!("SHA256:{}", "A".repeat(43));
    let submit = wire::SubmitReadsForEvidence {
        evidence: b"none".to_vec(),
    };
    let grant = wire::Grant {
        subject: Some(wire::grant::Subject::Uid(OTHER)),
        identity: "alice".into(),
        operation: "sign".into(),
        purpose: "node".into(),
        ..wire::Grant::default()
    };
    let unlock = wire::Unlock {
        backend: "absent:".into(),
        for_s: 1,
    };
    let daemon = |request| ask_daemon(1, request);
    vec![
        (
            "generate",
            manage(1, "made", Msg::RequestGenerateIdentity(generate)),
        ),
        ("adopt", connect("adopted", &key)),
        (
            "submit",
            to("reads_for", Msg::SubmitReadsForEvidence(submit)),
        ),
        ("status", daemon(ToDaemon::Status(wire::Status::default()))),
        (
            "list",
            daemon(ToDaemon::ListIdentities(wire::ListIdentities::default())),
        ),
        (
            "tokens",
            daemon(ToDaemon::ListTokens(wire::ListTokens {
                backend: "memory:".into(),
            })),
        ),
        ("unlock", daemon(ToDaemon::Unlock(unlock))),
        (
            "attach",
            daemon(ToDaemon::AttachDevice(wire::AttachDevice::default())),
        ),
        (
            "detach",
            daemon(ToDaemon::DetachDevice(wire::DetachDevice::default())),
        ),
        ("lock", daemon(ToDaemon::Lock(wire::Lock::default()))),
        (
            "add-grant",
            daemon(ToDaemon::AddGrant(wire::AddGrant { grant: Some(grant) })),
        ),
        (
            "grants",
            daemon(ToDaemon::ListGrants(wire::ListGrants::default())),
        ),
        (
            "remove-grant",
            daemon(ToDaemon::RemoveGrant(wire::RemoveGrant { id: 9_999 })),
        ),
    ]
}

/// Whether the answer is that the caller may not, in whatever form.
fn is_denied(answer: &Frame) -> bool {
    format!("{answer:?}").contains("\"not-allowed\"")
}

/// Who may: the maker of `alice`, who is granted much, another user, root.
const MAY: [(&str, [bool; 4]); 23] = [
    ("sign", [true, true, false, false]),
    // A grant to sign is none for digests, and to have made the key is none either.
    ("prehash", [false, false, false, false]),
    ("decrypt", [true, true, false, false]),
    ("open", [true, true, false, false]),
    ("encrypt", [true, true, false, false]),
    ("connect", [true, true, false, false]),
    ("reads-for", [true, true, false, false]),
    ("evidence", [true, true, false, false]),
    ("generate", [false, true, false, false]),
    ("adopt", [false, true, false, false]),
    ("submit", [false, true, false, false]),
    ("attach", [false, true, false, false]),
    // Of the connection's own devices; it has none.
    ("detach", [true, true, true, true]),
    ("import-certificate", [true, true, false, false]),
    ("status", [true, true, true, true]),
    ("list", [true, true, true, true]),
    ("tokens", [false, true, false, false]),
    ("unlock", [false, false, false, true]),
    ("lock", [true, true, true, true]),
    ("add-grant", [false, false, false, true]),
    ("grants", [false, false, false, true]),
    ("remove-grant", [false, false, false, true]),
    ("delete", [true, false, false, false]),
];

#[test]
fn each_message_is_carried_out_for_those_who_may_and_for_nobody_else() {
    if is_no_root() {
        return;
    }
    let stage = Stage::new();
    let frames: Vec<_> = about("alice").into_iter().chain(about_none()).collect();
    assert_eq!(frames.len(), MAY.len());
    for (message, may) in MAY {
        let (_, frame) = frames.iter().find(|(name, _)| *name == message).unwrap();
        // The maker comes last: what they delete is gone.
        for (at, uid) in [(3, ROOT), (2, OTHER), (1, GRANTED), (0, MAKER)] {
            let answer = stage.ask(uid, frame);
            if message == "submit" && !may[at] && format!("{answer:?}").contains("bad-") {
                continue;
            }
            assert_eq!(
                !is_denied(&answer),
                may[at],
                "{message} of {uid}: {answer:?}"
            );
        }
    }
    let registry = stage.daemon.service.node().registry();
    assert_eq!(registry.identity(&EngineId::local("alice")).unwrap(), None);
    let made = registry.maker_of(&EngineId::local("made")).unwrap();
    assert_eq!(made, Some(GRANTED));
    // Of each refusal of a use there is a line, and each use has its two.
    assert!(stage.audit_lines("refused") > 20);
    assert_eq!(stage.audit_lines("begin"), stage.audit_lines("end"));
}

/// The name of the message that a frame asks for something with, as the wire's descriptors have it.
fn asked(frame: &Frame, messages: &[DescriptorProto]) -> String {
    let (message, bytes) = match frame.content.clone() {
        Some(Content::Engine(wire::EngineMsg { msg, .. })) => {
            let only = wire::EngineMsg {
                msg,
                ..wire::EngineMsg::default()
            };
            ("EngineMsg", only.encode_to_vec())
        }
        Some(Content::DaemonRequest(request)) => ("DaemonRequest", request.encode_to_vec()),
        other => panic!("{other:?}"),
    };
    let number = decode_varint(&mut &*bytes).unwrap() >> 3;
    let message = messages.iter().find(|one| one.name() == message).unwrap();
    let is_it = |field: &&FieldDescriptorProto| field.number() as u64 == number;
    message.field.iter().find(is_it).unwrap().name().to_owned()
}

#[test]
fn each_message_that_asks_for_something_is_in_the_table() {
    let files = FileDescriptorSet::decode(wire::DESCRIPTORS).unwrap();
    let messages = files.file.into_iter().flat_map(|file| file.message_type);
    let messages: Vec<DescriptorProto> = messages.collect();
    let mut there_are = BTreeSet::new();
    for message in &messages {
        let asks = |field: &str| match message.name() {
            "DaemonRequest" => true,
            "EngineMsg" => !field.starts_with("reply_"),
            _ => false,
        };
        let choices = message.field.iter();
        let choices = choices.filter(|one| one.oneof_index.is_some() && !one.proto3_optional());
        let names = choices.map(|field| field.name().to_owned());
        there_are.extend(names.filter(|name| asks(name)));
    }
    let frames = about("alice").into_iter().chain(about_none());
    let in_table: BTreeSet<String> = frames.map(|(_, frame)| asked(&frame, &messages)).collect();
    assert_eq!(in_table, there_are);
    assert!(there_are.len() > 18, "{there_are:?}");
}

#[test]
fn whom_nothing_is_granted_is_answered_alike_whatever_exists() {
    if is_no_root() {
        return;
    }
    let stage = Stage::new();
    let file = rusqlite::Connection::open(stage.home.path().join("registry.sqlite")).unwrap();
    let altered = "UPDATE key SET backend = 'x:' WHERE owner_name = 'altered'";
    assert_eq!(file.execute(altered, []).unwrap(), 2);
    drop(file);
    for uid in [OTHER, ROOT] {
        let answers = |name: &str| -> Vec<String> {
            let list = wire::ListIdentities { name: name.into() };
            let list = ask_daemon(1, ToDaemon::ListIdentities(list));
            let frames = about(name).into_iter().chain([("list", list)]);
            frames
                .map(|(message, frame)| {
                    let answer = stage.ask(uid, &frame);
                    assert!(
                        message == "list" || is_denied(&answer),
                        "{message}: {answer:?}"
                    );
                    format!("{message}: {answer:?}").replace(name, "IT")
                })
                .collect()
        };
        let absent = answers("absent");
        for name in ["alice", "altered"] {
            assert_eq!(answers(name), absent, "{name}");
        }
    }
}

#[test]
fn a_name_that_another_user_has_is_taken_and_nothing_more_is_said() {
    if is_no_root() {
        return;
    }
    let stage = Stage::new();
    let (_, mut generate) = about_none().remove(0);
    if let Some(Content::Engine(message)) = &mut generate.content {
        message.identity = "alice".into();
    }
    let answer = format!("{:?}", stage.ask(GRANTED, &generate));
    assert!(answer.contains("\"identity-exists\""), "{answer}");
    assert!(answer.contains("\"Identity already exists\""), "{answer}");
    assert!(!answer.contains("1001"), "{answer}");
    let alice = EngineId::local("alice");
    let registry = stage.daemon.service.node().registry();
    assert_eq!(registry.maker_of(&alice).unwrap(), Some(MAKER));
}
