//! What a front-end of another protocol may have done for its callers.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod common;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use claviger_engine::grants::{NewGrant, Subject};
use claviger_engine::{Purpose, Registry};
use claviger_memory::MemoryDriver;
use claviger_service::audit::{Audit, AuditSettings};
use claviger_service::{
    Confirm, FrontEnd, Guest, GuestError, GuestKey, Limits, Service, Serving, ToBeSigned,
};
use claviger_token::{Call, KeyUse, Signature};
use common::{Daemon, LONG, generate, runtime};
use rustix::process::getuid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Hands each guest to the test.
struct HandsOver(Sender<Arc<Guest>>);

impl FrontEnd for HandsOver {
    fn serves(&self, _: &str) -> bool {
        true
    }

    fn serve(&self, mut stream: tokio::net::UnixStream, guest: Guest) -> Serving {
        // The test may be over.
        let _ = self.0.send(Arc::new(guest));
        Box::pin(async move {
            let _ = stream.read_u8().await;
        })
    }
}

/// A person who answers when the test says so. Each question is told when it is asked and when it
/// is over.
struct Person {
    questions: Sender<String>,
    answers: Mutex<Receiver<bool>>,
    over: Sender<()>,
}

impl Confirm for Person {
    fn confirm(&self, question: &str, call: &Call) -> Result<bool, String> {
        let answers = self.answers.lock().unwrap();
        // The test may be over.
        let _ = self.questions.send(question.to_owned());
        let answer = loop {
            match answers.recv_timeout(Duration::from_millis(2)) {
                Ok(answer) => break Ok(answer),
                Err(RecvTimeoutError::Timeout) if call.check().is_ok() => {}
                Err(_) => break Err("nobody answered in time".to_owned()),
            }
        };
        let _ = self.over.send(());
        answer
    }
}

/// A daemon of this user with `alice` and `bob`, whose sockets another protocol is spoken on.
struct Stage {
    answers: Sender<bool>,
    questions: Receiver<String>,
    over: Receiver<()>,
    guests: Receiver<Arc<Guest>>,
    daemon: Daemon,
    log: PathBuf,
    _folder: TempDir,
}

impl Stage {
    /// Where a person confirms each use of these.
    fn confirming(identities: &[&str], limits: Limits) -> Self {
        let (runtime, registry) = (runtime(), Registry::in_memory().unwrap());
        let node = claviger_engine::Node::builder(registry)
            .driver(MemoryDriver::new())
            .build();
        for name in ["alice", "bob"] {
            runtime.block_on(generate(&node, name, "memory:"));
        }
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("audit");
        let (hands_over, guests) = channel();
        let ((asks, questions), (answers, said), (ends, over)) = (channel(), channel(), channel());
        let person = Person {
            questions: asks,
            answers: Mutex::new(said),
            over: ends,
        };
        let service = Service::builder(node)
            .audit(Audit::open(AuditSettings::of(&log)).unwrap())
            .confirmer(Arc::new(person))
            .confirmed(identities.iter().map(ToString::to_string).collect())
            .limits(limits)
            .front_end(Arc::new(HandsOver(hands_over)));
        Stage {
            answers,
            questions,
            over,
            guests,
            daemon: Daemon::of(runtime, service.build()),
            log,
            _folder: folder,
        }
    }

    /// A guest, with the connection that it lives as long as.
    fn guest(&self) -> (Arc<Guest>, UnixStream) {
        let stream = UnixStream::connect(self.daemon.path()).unwrap();
        (self.guests.recv_timeout(LONG).unwrap(), stream)
    }

    /// Grants this user to sign; the number of the grant.
    fn grant(&self, socket: &str, identity: &str, operation: &str, purpose: &str) -> i64 {
        let subject = Subject::Uid(getuid().as_raw());
        let grant = NewGrant::parse(subject, socket, identity, operation, purpose).unwrap();
        let registry = self.daemon.service.node().registry();
        registry.add_grant(&grant).unwrap().id
    }

    fn key(&self, guest: &Guest, name: &str) -> GuestKey {
        let keys = self.daemon.block_on(guest.keys()).unwrap();
        let named = |key: &GuestKey| *key.owner.name == *name;
        keys.into_iter().find(named).unwrap()
    }

    /// Has a guest sign a message without a purpose, elsewhere.
    fn signs(&self, guest: &Arc<Guest>, key: &GuestKey) -> JoinHandle<Signed> {
        let (guest, key) = (Arc::clone(guest), key.clone());
        let runtime = self.daemon.block_on(async { Handle::current() });
        runtime.spawn(async move { guest.sign(&key, raw(), Call::unlimited()).await })
    }

    fn question(&self) -> String {
        self.questions.recv_timeout(LONG).unwrap()
    }
}

type Signed = Result<Signature, GuestError>;

fn raw() -> ToBeSigned {
    ToBeSigned {
        data: b"message".to_vec(),
        purpose: Purpose::Raw,
        scheme: None,
    }
}

/// The kind, outcome, identity and purpose of each line about a use or a refusal.
fn lines(log: &Path) -> Vec<[String; 4]> {
    let text = std::fs::read_to_string(log).unwrap();
    let lines = text.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        ["kind", "outcome", "identity", "purpose"]
            .map(|field| line[field].as_str().unwrap_or_default().to_owned())
    });
    let of_uses = |line: &[String; 4]| ["begin", "end", "refused"].contains(&&*line[0]);
    lines.filter(of_uses).collect()
}

#[test]
fn a_right_that_is_taken_back_while_a_person_is_asked_is_not_used() {
    // It is this user's daemon, who may use every key on its own socket.
    for socket in ["", "api"] {
        let stage = Stage::confirming(&["alice"], Limits::default());
        stage.grant(socket, "bob", "sign", "");
        let right = stage.grant(socket, "alice", "sign", "raw");
        let (guest, _stream) = stage.guest();
        let alice = stage.key(&guest, "alice");
        stage.answers.send(true).unwrap();
        let signed = stage.daemon.block_on(stage.signs(&guest, &alice)).unwrap();
        let public = stage.daemon.key("alice", KeyUse::Sign);
        public.verify(b"message", &signed.unwrap()).unwrap();
        stage.question();

        let signs = stage.signs(&guest, &alice);
        stage.question();
        let registry = stage.daemon.service.node().registry();
        registry.remove_grant(right).unwrap();
        stage.answers.send(true).unwrap();
        let refused = stage.daemon.block_on(signs).unwrap().unwrap_err();
        assert_eq!(refused.code(), "not-allowed", "{socket}");
        let lines = lines(&stage.log);
        let told: Vec<_> = lines.iter().map(|line| [&*line[0], &*line[1]]).collect();
        let expected = [["begin", ""], ["end", "done"], ["refused", "not-allowed"]];
        assert_eq!(told, expected);
    }
}

#[test]
fn a_question_ends_with_whoever_waits_for_it_and_the_next_one_is_asked() {
    let stage = Stage::confirming(&["alice"], Limits::default());
    stage.grant("", "alice", "sign", "raw");
    let (guest, _stream) = stage.guest();
    let alice = stage.key(&guest, "alice");
    // As the daemon does with connections that do not end in time.
    let dropped = stage.signs(&guest, &alice);
    stage.question();
    dropped.abort();
    stage.over.recv_timeout(LONG).unwrap();
    let next = stage.signs(&guest, &alice);
    stage.question();
    stage.answers.send(true).unwrap();
    stage.daemon.block_on(next).unwrap().unwrap();
}

#[test]
fn a_list_of_keys_is_a_request_of_its_caller() {
    let limits = Limits {
        requests_of_caller: 1,
        ..Limits::default()
    };
    let stage = Stage::confirming(&["alice"], limits);
    stage.grant("", "alice", "sign", "raw");
    let (guest, stream) = stage.guest();
    let alice = stage.key(&guest, "alice");
    let (other, other_stream) = stage.guest();
    let signs = stage.signs(&guest, &alice);
    stage.question();
    let list = || stage.daemon.block_on(other.keys());
    assert_eq!(list().unwrap_err().code(), "busy");
    stage.answers.send(true).unwrap();
    stage.daemon.block_on(signs).unwrap().unwrap();
    assert_eq!(list().unwrap().len(), 2);
    assert_eq!(stage.daemon.service.status().requests_served, 3);
    // It begins nothing new at its end.
    let drained = stage.daemon.drain(LONG);
    stage.daemon.block_on(other.ending());
    assert_eq!(list().unwrap_err().code(), "draining");
    drop((guest, stream, other, other_stream));
    assert!(drained.join().unwrap());
}

#[test]
fn a_signature_by_a_key_of_nobody_is_a_refusal_in_the_log() {
    let stage = Stage::confirming(&[], Limits::default());
    let (guest, _stream) = stage.guest();
    guest.refused_unknown_key("ssh");
    let expected = ["refused", "no-such-engine", "", "ssh"].map(str::to_owned);
    assert_eq!(lines(&stage.log), [expected]);
}

#[test]
fn names_that_callers_choose_do_not_rewrite_the_question() {
    let stage = Stage::confirming(&["alice"], Limits::default());
    let (guest, _stream) = stage.guest();
    let alice = stage.key(&guest, "alice");
    let what = ToBeSigned {
        data: vec![7; 32],
        purpose: Purpose::SshSig {
            namespace: "git`\u{202e}\u{200b}\n".into(),
            hash: claviger_formats::sshsig::Hash::Sha256,
        },
        scheme: None,
    };
    stage.answers.send(false).unwrap();
    let signed = guest.sign(&alice, what, Call::unlimited());
    let refused = stage.daemon.block_on(signed).unwrap_err();
    assert_eq!(refused.code(), "use-not-confirmed");
    let question = stage.question();
    let shown = "for `sshsig:git\u{fffd}\u{fffd}\u{fffd}\u{fffd}`.";
    assert!(question.ends_with(shown), "{question:?}");
}
