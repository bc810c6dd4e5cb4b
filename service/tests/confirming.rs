//! Uses of keys that a person confirms.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod common;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use claviger_client::wire::{Cancel, Frame, frame::Content};
use claviger_engine::grants::{NewGrant, Subject};
use claviger_engine::{EngineId, Node, Registry};
use claviger_formats::envelope;
use claviger_memory::MemoryDriver;
use claviger_service::audit::{Audit, AuditSettings};
use claviger_service::policy::Rules;
use claviger_service::reload::Changes;
use claviger_service::{Caller, Confirm, Service};
use claviger_token::{Call, KeyUse};
use common::{
    Daemon, LONG, chunk, decrypt, error_code, generate, is_asked_for, runtime, sign, sign_long,
};
use rustix::process::{getgid, getuid};
use serde_json::Value;
use tempfile::TempDir;

/// A person who answers what the test says; without an answer, none comes until the request ends.
struct Person {
    questions: Sender<String>,
    answers: Mutex<VecDeque<bool>>,
    asked: AtomicUsize,
    /// How many questions are open at once, and were at most.
    open: AtomicUsize,
    most: AtomicUsize,
}

impl Confirm for Person {
    fn confirm(&self, question: &str, call: &Call) -> Result<bool, String> {
        self.asked.fetch_add(1, SeqCst);
        let open = self.open.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(open, SeqCst);
        // The test may be over.
        let _ = self.questions.send(question.to_owned());
        let answer = self.answers.lock().unwrap().pop_front();
        while answer.is_none() && call.check().is_ok() {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.open.fetch_sub(1, SeqCst);
        answer.ok_or_else(|| "nobody answered in time".into())
    }
}

impl Person {
    fn new() -> (Arc<Self>, Receiver<String>) {
        let (questions, asked) = channel();
        let person = Person {
            questions,
            answers: Mutex::default(),
            asked: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        };
        (Arc::new(person), asked)
    }

    fn answers(&self, answers: &[bool]) {
        self.answers.lock().unwrap().extend(answers);
    }

    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }
}

/// A daemon of this user with `alice`, whose uses are confirmed, and `bob`, whose are not.
struct Stage {
    daemon: Daemon,
    person: Arc<Person>,
    questions: Receiver<String>,
    log: PathBuf,
    _folder: TempDir,
}

impl Stage {
    fn new() -> Self {
        Stage::with(true)
    }

    fn with(audits: bool) -> Self {
        let (runtime, registry) = (runtime(), Registry::in_memory().unwrap());
        let node = Node::builder(registry).driver(MemoryDriver::new()).build();
        for name in ["alice", "bob"] {
            runtime.block_on(generate(&node, name, "memory:"));
        }
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("audit");
        let audit = match audits {
            true => Audit::open(AuditSettings::of(&log)).unwrap(),
            false => Audit::off(),
        };
        let (person, questions) = Person::new();
        let service = Service::builder(node)
            .audit(audit)
            .confirmer(person.clone())
            .confirmed(vec!["alice".into()])
            .build();
        Stage {
            daemon: Daemon::of(runtime, service),
            person,
            questions,
            log,
            _folder: folder,
        }
    }

    fn question(&self) -> String {
        self.questions.recv_timeout(LONG).unwrap()
    }

    /// A file that these identities can open.
    fn file_to(&self, names: &[&str]) -> Vec<u8> {
        let keys: Vec<_> = (names.iter())
            .map(|name| self.daemon.key(name, KeyUse::Decrypt))
            .collect();
        let keys: Vec<_> = keys.iter().collect();
        envelope::encrypt(&keys, b"a letter").unwrap()
    }
}

/// What the log says of uses and refusals.
fn lines(log: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let of_uses =
        |line: &Value| ["begin", "end", "refused"].contains(&line["kind"].as_str().unwrap());
    lines.filter(of_uses).collect()
}

#[test]
fn a_use_that_is_confirmed_is_done_and_one_that_is_declined_is_not_and_the_log_tells() {
    let stage = Stage::new();
    let mut peer = stage.daemon.peer();
    stage.person.answers(&[true, false]);
    peer.send(&sign(1, "alice", b"first"));
    stage.daemon.check(&peer.next(), "alice", b"first");
    let question = stage.question();
    for word in [
        "`alice`",
        "`raw`",
        "sign",
        &format!("uid {}", getuid().as_raw()),
    ] {
        assert!(question.contains(word), "{word}: {question}");
    }
    peer.send(&sign(2, "alice", b"second"));
    assert_eq!(error_code(&peer.next()), "use-not-confirmed");
    // Whose uses are not confirmed is not asked about.
    peer.send(&sign(3, "bob", b"third"));
    stage.daemon.check(&peer.next(), "bob", b"third");
    assert_eq!(stage.person.asked(), 2);
    let lines = lines(&stage.log);
    let told: Vec<_> = (lines.iter())
        .map(|line| (line["kind"].as_str().unwrap(), line["confirmed"].as_bool()))
        .collect();
    let expected = [
        ("begin", Some(true)),
        ("end", None),
        ("refused", None),
        ("begin", None),
        ("end", None),
    ];
    assert_eq!(told, expected, "{lines:?}");
    assert_eq!(lines[2]["outcome"], "use-not-confirmed");
    assert_eq!(lines[2]["identity"], "alice");
}

#[test]
fn without_a_log_it_is_the_same() {
    let stage = Stage::with(false);
    let mut peer = stage.daemon.peer();
    stage.person.answers(&[false, true]);
    peer.send(&sign(1, "alice", b"first"));
    assert_eq!(error_code(&peer.next()), "use-not-confirmed");
    peer.send(&sign(2, "alice", b"second"));
    stage.daemon.check(&peer.next(), "alice", b"second");
}

#[test]
fn a_question_ends_with_its_request_and_holds_up_nobody_else() {
    let stage = Stage::new();
    let mut peer = stage.daemon.peer();
    // Nobody answers.
    peer.send(&sign(1, "alice", b"given up"));
    stage.question();
    peer.send(&sign(2, "bob", b"meanwhile"));
    let frame = peer.next();
    assert_eq!(frame.id, 2, "{frame:?}");
    stage.daemon.check(&frame, "bob", b"meanwhile");
    // Who gives up is not asked any more, nor is who goes away.
    peer.send(&Frame::new(1, Content::Cancel(Cancel {})));
    assert_eq!(error_code(&peer.next()), "cancelled");
    let mut leaves = stage.daemon.peer();
    leaves.send(&sign(1, "alice", b"left"));
    stage.question();
    drop(leaves);
    stage.daemon.settles_at(1, 0);
    let mut late = sign(3, "alice", b"late");
    late.deadline_ms = 300;
    peer.send(&late);
    assert_eq!(error_code(&peer.next()), "deadline-exceeded");
    // Their turns are over.
    stage.person.answers(&[true]);
    peer.send(&sign(4, "alice", b"next"));
    stage.daemon.check(&peer.next(), "alice", b"next");
    drop(peer);
    stage.daemon.settles_at(0, 0);
    assert_eq!(stage.person.open.load(SeqCst), 0);
    let outcomes = lines(&stage.log).into_iter();
    let refused = outcomes.filter(|line| line["kind"] == "refused").count();
    assert_eq!(refused, 3);
}

#[test]
fn one_question_of_a_user_is_asked_at_a_time_and_each_request_once() {
    let stage = Stage::new();
    let mut peer = stage.daemon.peer();
    stage.person.answers(&[true; 6]);
    for id in 1..=6 {
        peer.send(&sign(id, "alice", b"many"));
    }
    for _ in 1..=6 {
        stage.daemon.check(&peer.next(), "alice", b"many");
    }
    assert_eq!(stage.person.asked(), 6);
    assert_eq!(stage.person.most.load(SeqCst), 1);
    // One that comes in pieces is asked about once, and before they come.
    stage.person.answers(&[true, false]);
    peer.send(&sign_long(7, "alice"));
    assert!(is_asked_for(&peer.next(), 7));
    assert_eq!(stage.person.asked(), 7);
    peer.send(&chunk(7, b"a long ", false));
    assert!(is_asked_for(&peer.next(), 7));
    peer.send(&chunk(7, b"message", true));
    stage.daemon.check(&peer.next(), "alice", b"a long message");
    peer.send(&sign_long(8, "alice"));
    assert_eq!(error_code(&peer.next()), "use-not-confirmed");
    assert_eq!(stage.person.asked(), 8);
}

#[test]
fn a_file_for_anybody_is_asked_about_once_if_a_key_may_open_it_whose_uses_are_confirmed() {
    let stage = Stage::new();
    let mut peer = stage.daemon.peer();
    let both = stage.file_to(&["alice", "bob"]);
    stage.person.answers(&[false, true, true]);
    peer.send(&decrypt(1, "", both.clone(), false));
    assert_eq!(error_code(&peer.next()), "use-not-confirmed");
    peer.send(&decrypt(2, "", both, false));
    assert_eq!(peer.next().kind(), "engine");
    assert_eq!(stage.person.asked(), 2);
    peer.send(&decrypt(
        3,
        "alice_decryptor_alice",
        stage.file_to(&["alice"]),
        false,
    ));
    assert_eq!(peer.next().kind(), "engine");
    assert_eq!(stage.person.asked(), 3);
    peer.send(&decrypt(4, "", stage.file_to(&["bob"]), false));
    assert_eq!(peer.next().kind(), "engine");
    assert_eq!(stage.person.asked(), 3);
    let confirmed = lines(&stage.log).into_iter();
    let confirmed = confirmed.filter(|line| line["confirmed"] == true).count();
    // The end of the one for anybody, and the beginning of the one that was named.
    assert_eq!(confirmed, 2);
}

#[test]
fn a_daemon_that_can_ask_nobody_refuses() {
    let (runtime, node) = common::node();
    let confirmed = vec!["alice".to_owned()];
    let service = Service::builder(node).confirmed(confirmed).build();
    let daemon = Daemon::of(runtime, service);
    let mut peer = daemon.peer();
    peer.send(&sign(1, "alice", b"message"));
    assert_eq!(error_code(&peer.next()), "use-not-confirmed");
    // It changes while the daemon serves.
    daemon.change(Changes::default());
    peer.send(&sign(2, "alice", b"message"));
    daemon.check(&peer.next(), "alice", b"message");
}

/// A daemon of the system, where this user has this grant, and another identity.
fn granted(operation: &[&str]) -> (Daemon, Arc<Person>) {
    let (runtime, node) = common::node();
    for operation in operation {
        let subject = Subject::Uid(getuid().as_raw());
        let grant = NewGrant::parse(subject, "", "alice", operation, "").unwrap();
        node.registry().add_grant(&grant).unwrap();
    }
    let (person, _) = Person::new();
    let service = Service::builder(node)
        .system(true)
        .confirmer(person.clone());
    (Daemon::of(runtime, service.build()), person)
}

#[test]
fn a_grant_with_confirmation_asks_one_without_does_not_and_who_has_none_is_not_asked_about() {
    let (daemon, person) = granted(&["sign+confirm"]);
    let mut peer = daemon.peer();
    person.answers(&[true, false]);
    peer.send(&sign(1, "alice", b"message"));
    daemon.check(&peer.next(), "alice", b"message");
    peer.send(&sign(2, "alice", b"message"));
    assert_eq!(error_code(&peer.next()), "use-not-confirmed");
    assert_eq!(person.asked(), 2);

    let (daemon, person) = granted(&["sign+confirm", "sign"]);
    let mut peer = daemon.peer();
    peer.send(&sign(1, "alice", b"message"));
    daemon.check(&peer.next(), "alice", b"message");
    assert_eq!(person.asked(), 0);

    let (daemon, person) = granted(&["decrypt+confirm"]);
    daemon.change(Changes {
        confirmed: vec!["alice".into()],
        ..Changes::default()
    });
    let mut peer = daemon.peer();
    peer.send(&sign(1, "alice", b"message"));
    assert_eq!(error_code(&peer.next()), "not-allowed");
    assert_eq!(person.asked(), 0);
}

#[test]
fn a_grant_with_confirmation_is_kept_with_the_registry() {
    let (_runtime, node) = common::node();
    let registry = node.registry();
    let subject = Subject::Uid(7);
    let [with, without] = ["sign+confirm", "sign"]
        .map(|operation| NewGrant::parse(subject, "", "alice", operation, "raw").unwrap());
    let added = [&with, &without].map(|grant| registry.add_grant(grant).unwrap());
    assert_ne!(added[0].id, added[1].id);
    assert_eq!(registry.grants().unwrap(), added);
    assert_eq!(added.map(|grant| grant.what.is_confirmed), [true, false]);
    // It is judged like the other one.
    let caller = Caller {
        uid: 7,
        gid: getgid().as_raw(),
        socket: "api".into(),
    };
    registry.remove_grant(2).unwrap();
    let seen = Rules::of(&node, None).judge(&caller);
    assert!(seen.may_see(&EngineId::local("alice")).unwrap());
}
