//! The agent as its clients see it: a daemon in this process, and messages by hand.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_agent::SshAgent;
use claviger_agent::messages::LIMIT;
use claviger_engine::grants::{NewGrant, Subject};
use claviger_engine::message::RequestGenerateIdentity;
use claviger_engine::{Backend, Capabilities, EngineId, IdParams, Node, Registry};
use claviger_formats::{ssh, ssh_signature, sshsig};
use claviger_memory::MemoryDriver;
use claviger_service::audit::{Audit, AuditSettings};
use claviger_service::{Limits, Listening, Service};
use claviger_token::{Algorithm, Call, KeyUse, PublicKey, Signature, SignatureScheme};
use ed25519_dalek::{Signer, SigningKey};
use rustix::process::getuid;
use ssh_encoding::{Decode, Encode};
use tokio::runtime::Runtime;

/// What is waited for comes by then, or never.
const LONG: Duration = Duration::from_secs(30);

const FAILURE: u8 = 5;
const SUCCESS: u8 = 6;
const EXTENSION_FAILURE: u8 = 28;

/// A daemon with `alice` (P-256) and `bob` (Ed25519) in its memory.
struct Daemon {
    service: Service,
    node: Node,
    runtime: Runtime,
    socket: PathBuf,
    folder: tempfile::TempDir,
}

impl Daemon {
    fn new() -> Self {
        Daemon::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let registry = Registry::in_memory().unwrap();
        let node = Node::builder(registry).driver(MemoryDriver::new()).build();
        for (name, params) in [("alice", IdParams::P256), ("bob", IdParams::Ed25519)] {
            let request = RequestGenerateIdentity {
                backend: Backend::from("memory:"),
                params,
                capabilities: Capabilities::Commit,
            };
            let (who, call) = (EngineId::local(name), Call::unlimited());
            let made = node.generate(&who, request, &call);
            runtime.block_on(made).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let audit = Audit::open(AuditSettings::of(folder.path().join("audit.jsonl"))).unwrap();
        let service = Service::builder(node.clone())
            .limits(limits)
            .audit(audit)
            .front_end(Arc::new(SshAgent::new()))
            .build();
        let socket = folder.path().join("ssh.sock");
        let listening = Listening::bind("ssh", &socket, 0o600).unwrap();
        let serving = service.clone();
        runtime.spawn(async move { serving.serve(vec![listening]).await.unwrap() });
        Daemon {
            service,
            node,
            runtime,
            socket,
            folder,
        }
    }

    fn client(&self) -> Client {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        Client(stream)
    }

    fn key(&self, name: &str) -> PublicKey {
        let found = self.node.registry().identity(&EngineId::local(name));
        let info = found.unwrap().unwrap();
        info.key(KeyUse::Sign).unwrap().public_key.clone()
    }

    fn grant(&self, socket: &str, name: &str, purpose: &str) {
        let subject = Subject::Uid(getuid().as_raw());
        let new = NewGrant::parse(subject, socket, name, "sign", purpose).unwrap();
        self.node.registry().add_grant(&new).unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("audit.jsonl")).unwrap()
    }
}

/// A client of the agent.
struct Client(UnixStream);

impl Client {
    fn send(&mut self, message: &[u8]) {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        self.0.write_all(&[&length[..], message].concat()).unwrap();
    }

    /// The next answer; `None` where the agent has ended the connection.
    fn next(&mut self) -> Option<Vec<u8>> {
        let mut length = [0; 4];
        match self.0.read_exact(&mut length) {
            Ok(()) => {}
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return None,
            Err(error) => panic!("{error}"),
        }
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut answer).unwrap();
        Some(answer)
    }

    fn ask(&mut self, message: &[u8]) -> Vec<u8> {
        self.send(message);
        self.next().unwrap()
    }

    /// The names of the keys.
    fn names(&mut self) -> Vec<String> {
        let answer = self.ask(&[11]);
        let (kind, mut rest) = answer.split_first().unwrap();
        assert_eq!(*kind, 12);
        let count = u32::decode(&mut rest).unwrap();
        let names = (0..count).map(|_| {
            let key = Vec::<u8>::decode(&mut rest).unwrap();
            ssh::from_wire(&key).unwrap();
            String::decode(&mut rest).unwrap()
        });
        names.collect()
    }

    /// Whether `key` signs `data` truly; `None` where that is refused.
    fn signs(&mut self, key: &PublicKey, data: &[u8]) -> Option<()> {
        let wire = ssh::to_wire(key).unwrap();
        let answer = self.ask(&message(13, &[&wire, data], &[0; 4]));
        let (kind, mut rest) = answer.split_first().unwrap();
        if *kind == FAILURE {
            return None;
        }
        assert_eq!(*kind, 14);
        let signature = Vec::<u8>::decode(&mut rest).unwrap();
        ssh_signature::verify(key, data, &signature).unwrap();
        Some(())
    }

    fn bind(&mut self, host: &Host, session: &[u8], forwarding: bool) -> u8 {
        let signature = host.signature(session);
        self.bind_with(host, session, &signature, forwarding)
    }

    fn bind_with(&mut self, host: &Host, session: &[u8], signature: &[u8], forwarding: bool) -> u8 {
        let name = b"session-bind@openssh.com";
        let parts = [&name[..], &host.wire(), session, signature];
        self.ask(&message(27, &parts, &[forwarding.into()]))[0]
    }
}

fn message(kind: u8, parts: &[&[u8]], end: &[u8]) -> Vec<u8> {
    let mut message = vec![kind];
    for part in parts {
        part.encode(&mut message).unwrap();
    }
    message.extend_from_slice(end);
    message
}

struct Host(SigningKey);

impl Host {
    fn new(seed: u8) -> Self {
        Host(SigningKey::from_bytes(&[seed; 32]))
    }

    fn wire(&self) -> Vec<u8> {
        let public = self.0.verifying_key();
        let key = PublicKey::from_bytes(Algorithm::Ed25519, public.as_bytes()).unwrap();
        ssh::to_wire(&key).unwrap()
    }

    fn signature(&self, session: &[u8]) -> Vec<u8> {
        let bytes = self.0.sign(session).to_bytes().to_vec();
        let signature = Signature::new(SignatureScheme::Ed25519, bytes).unwrap();
        ssh_signature::to_wire(&signature).unwrap()
    }
}

/// What an SSH login in this session signs; it names the host or does not.
fn login(key: &PublicKey, session: &[u8], host: Option<&Host>) -> Vec<u8> {
    let wire = ssh::to_wire(key).unwrap();
    let name = String::decode(&mut wire.as_slice()).unwrap();
    let method = match host {
        Some(_) => "publickey-hostbound-v00@openssh.com",
        None => "publickey",
    };
    let mut data = Vec::new();
    session.encode(&mut data).unwrap();
    data.push(50);
    for part in ["git", "ssh-connection", method] {
        part.as_bytes().encode(&mut data).unwrap();
    }
    data.push(1);
    for part in [name.as_bytes(), &wire] {
        part.encode(&mut data).unwrap();
    }
    if let Some(host) = host {
        host.wire().encode(&mut data).unwrap();
    }
    data
}

#[test]
fn a_login_and_an_ssh_signature_are_signed_and_raw_data_is_not_unless_a_grant_names_it() {
    let daemon = Daemon::new();
    let mut client = daemon.client();
    assert_eq!(client.names(), ["alice", "bob"]);
    let host = Host::new(1);
    for name in ["alice", "bob"] {
        let key = daemon.key(name);
        let mut client = daemon.client();
        assert_eq!(client.bind(&host, b"session", false), SUCCESS);
        client
            .signs(&key, &login(&key, b"session", Some(&host)))
            .unwrap();
        client.signs(&key, &login(&key, b"session", None)).unwrap();
        client
            .signs(&key, &sshsig::signed_data("git", b"text").unwrap())
            .unwrap();
        assert_eq!(client.signs(&key, b"anything"), None);
        let other = daemon.key(if name == "alice" { "bob" } else { "alice" });
        let foreign = login(&other, b"session", Some(&host));
        assert_eq!(client.signs(&key, &foreign), None, "another key logs in");
    }
    let key = daemon.key("bob");
    daemon.grant("", "bob", "raw");
    client.signs(&key, b"anything").unwrap();
    // What another purpose signs is not raw, whatever it lacks.
    let cut = &sshsig::signed_data("git", b"text").unwrap()[..40];
    assert_eq!(client.signs(&key, cut), None);
    let mut certificate = Vec::new();
    let kind = b"ssh-ed25519-cert-v01@openssh.com";
    kind[..].encode(&mut certificate).unwrap();
    ssh::to_wire(&key)
        .unwrap()
        .encode(&mut certificate)
        .unwrap();
    assert_eq!(client.signs(&key, &certificate), None);
    daemon.grant("", "bob", "ssh-certificate");
    client.signs(&key, &certificate).unwrap();
    certificate.push(0);
    assert_eq!(
        client.signs(&key, &certificate),
        None,
        "another key issues it"
    );
    let stranger = Host::new(9);
    let stranger = ssh::from_wire(&stranger.wire()).unwrap();
    assert_eq!(client.signs(&stranger, b"anything"), None);
}

#[test]
fn each_signature_has_a_begin_and_an_end_in_the_audit_log_and_each_refusal_a_line() {
    let daemon = Daemon::new();
    let (mut client, key, host) = (daemon.client(), daemon.key("bob"), Host::new(1));
    assert_eq!(client.bind(&host, b"session", false), SUCCESS);
    client
        .signs(&key, &login(&key, b"session", Some(&host)))
        .unwrap();
    client
        .signs(&key, &sshsig::signed_data("git", b"text").unwrap())
        .unwrap();
    assert_eq!(client.signs(&key, b"anything"), None);
    assert_eq!(client.signs(&key, &login(&key, b"another", None)), None);
    let host = ssh::fingerprint(&host.wire());
    let log = daemon.log();
    for words in [
        format!("\"kind\":\"begin\",{{caller}},\"identity\":\"bob\",\"operation\":\"sign\",\"purpose\":\"ssh:{host}\""),
        "\"kind\":\"begin\",{caller},\"identity\":\"bob\",\"operation\":\"sign\",\"purpose\":\"sshsig:git\"".into(),
        "\"kind\":\"refused\",{caller},\"identity\":\"bob\",\"operation\":\"sign\",\"purpose\":\"raw\"".into(),
        "\"kind\":\"refused\",{caller},\"identity\":\"bob\",\"operation\":\"sign\",\"purpose\":\"ssh\"".into(),
    ] {
        let (uid, gid) = (getuid().as_raw(), rustix::process::getgid().as_raw());
        let caller = format!("\"caller\":{{\"uid\":{uid},\"gid\":{gid},\"socket\":\"ssh\"}}");
        let words = words.replace("{caller}", &caller);
        assert!(log.contains(&words), "no {words} in {log}");
    }
    assert_eq!(log.matches("\"kind\":\"begin\"").count(), 2, "{log}");
    assert_eq!(log.matches("\"outcome\":\"done\"").count(), 2, "{log}");
}

#[test]
fn a_session_that_does_not_verify_is_not_bound_and_nobody_logs_in_by_its_connection() {
    let daemon = Daemon::new();
    let (mut client, key) = (daemon.client(), daemon.key("bob"));
    let (host, other) = (Host::new(1), Host::new(2));
    let forged = other.signature(b"session");
    let bound = client.bind_with(&host, b"session", &forged, false);
    assert_eq!(bound, EXTENSION_FAILURE);
    assert_eq!(
        client.signs(&key, &login(&key, b"session", Some(&host))),
        None
    );
    assert_eq!(client.bind(&host, b"session", false), SUCCESS);
    assert_eq!(
        client.signs(&key, &login(&key, b"session", Some(&host))),
        None
    );
    // Nor is it good for anything else.
    let git = sshsig::signed_data("git", b"text").unwrap();
    assert_eq!(client.signs(&key, &git), None);
    // Others are not concerned.
    let mut second = daemon.client();
    assert_eq!(second.bind(&host, b"session", false), SUCCESS);
    second
        .signs(&key, &login(&key, b"session", Some(&host)))
        .unwrap();
    assert_eq!(second.signs(&key, &login(&key, b"another", None)), None);
    assert_eq!(
        second.signs(&key, &login(&key, b"session", Some(&other))),
        None
    );
}

#[test]
fn grants_for_the_socket_say_which_keys_log_in_where_also_to_whom_the_daemon_serves() {
    let daemon = Daemon::new();
    let (alice, bob) = (daemon.key("alice"), daemon.key("bob"));
    let (host, other) = (Host::new(1), Host::new(2));
    let fingerprint = ssh::fingerprint(&host.wire());
    daemon.grant("api", "alice", "");
    assert_eq!(
        daemon.client().names(),
        ["alice", "bob"],
        "of another socket"
    );
    daemon.grant("ssh", "bob", &format!("ssh:{fingerprint}"));
    let mut client = daemon.client();
    assert_eq!(client.names(), ["bob"]);
    assert_eq!(client.bind(&host, b"session", false), SUCCESS);
    client
        .signs(&bob, &login(&bob, b"session", Some(&host)))
        .unwrap();
    assert_eq!(
        client.signs(&alice, &login(&alice, b"session", Some(&host))),
        None
    );
    let git = sshsig::signed_data("git", b"text").unwrap();
    assert_eq!(client.signs(&bob, &git), None);
    let mut elsewhere = daemon.client();
    assert_eq!(elsewhere.bind(&other, b"session", false), SUCCESS);
    assert_eq!(
        elsewhere.signs(&bob, &login(&bob, b"session", Some(&other))),
        None
    );
    let mut unknown = daemon.client();
    assert_eq!(unknown.signs(&bob, &login(&bob, b"session", None)), None);
    // Through another machine.
    let mut forwarded = daemon.client();
    assert_eq!(forwarded.bind(&other, b"way", true), SUCCESS);
    assert_eq!(forwarded.bind(&host, b"session", false), SUCCESS);
    let through = login(&bob, b"session", Some(&host));
    assert_eq!(forwarded.signs(&bob, &through), None);
    daemon.grant("ssh", "bob", &format!("ssh-forwarded:{fingerprint}"));
    forwarded.signs(&bob, &through).unwrap();
    daemon.grant("ssh", "alice", "sshsig:git");
    assert_eq!(
        daemon.client().names(),
        ["bob", "alice"],
        "in the order of the grants"
    );
    client.signs(&alice, &git).unwrap();
}

#[test]
fn a_locked_agent_shows_and_signs_nothing_until_the_same_passphrase_comes() {
    let daemon = Daemon::new();
    let (mut client, key) = (daemon.client(), daemon.key("bob"));
    let git = sshsig::signed_data("git", b"text").unwrap();
    assert_eq!(client.ask(&message(23, &[b"words"], &[])), [FAILURE]);
    assert_eq!(client.ask(&message(22, &[b"words"], &[])), [SUCCESS]);
    // For all connections of the user.
    let mut second = daemon.client();
    for client in [&mut client, &mut second] {
        assert_eq!(client.names(), Vec::<String>::new());
        assert_eq!(client.signs(&key, &git), None);
        assert_eq!(client.ask(&message(22, &[b"other"], &[])), [FAILURE]);
        assert_eq!(client.ask(&[19]), [FAILURE]);
    }
    assert_eq!(second.ask(&message(23, &[b"other"], &[])), [FAILURE]);
    assert_eq!(second.ask(&message(23, &[b"words"], &[])), [SUCCESS]);
    client.signs(&key, &git).unwrap();
}

#[test]
fn a_session_that_is_bound_while_the_agent_is_locked_is_known_afterwards() {
    let daemon = Daemon::new();
    let (mut client, key, host) = (daemon.client(), daemon.key("bob"), Host::new(1));
    assert_eq!(client.ask(&message(22, &[b"words"], &[])), [SUCCESS]);
    let mut forged = daemon.client();
    let signature = host.signature(b"another");
    assert_eq!(
        forged.bind_with(&host, b"session", &signature, true),
        EXTENSION_FAILURE
    );
    let mut forwarded = daemon.client();
    assert_eq!(forwarded.bind(&host, b"way", true), SUCCESS);
    assert_eq!(client.bind(&host, b"session", false), SUCCESS);
    assert_eq!(client.ask(&message(23, &[b"words"], &[])), [SUCCESS]);
    assert_eq!(client.signs(&key, &login(&key, b"another", None)), None);
    client.signs(&key, &login(&key, b"session", None)).unwrap();
    let to_the_gate = login(&key, b"way", Some(&host));
    assert_eq!(forwarded.signs(&key, &to_the_gate), None);
    assert_eq!(forged.signs(&key, &login(&key, b"session", None)), None);
}

#[test]
fn a_connection_with_a_session_that_is_not_bound_signs_nothing_more() {
    let daemon = Daemon::new();
    let (key, host, other) = (daemon.key("bob"), Host::new(1), Host::new(2));
    let git = sshsig::signed_data("git", b"text").unwrap();
    let refused = |mut client: Client| {
        let login = login(&key, b"login", Some(&host));
        client.signs(&key, &git).is_none() && client.signs(&key, &login).is_none()
    };
    let name = b"session-bind@openssh.com";
    let parts = [&name[..], &host.wire(), b"way", &host.signature(b"way")];
    let whole = message(27, &parts, &[1]);
    let odd = message(27, &parts, &[2]);
    let longer = [&whole[..], b"."].concat();
    for malformed in [&whole[..whole.len() - 1], &whole[..40], &odd, &longer] {
        let mut client = daemon.client();
        assert_eq!(client.ask(malformed), [FAILURE]);
        assert!(refused(client), "{malformed:?}");
    }
    let mut moved = daemon.client();
    assert_eq!(moved.bind(&host, b"way", true), SUCCESS);
    moved.signs(&key, &git).unwrap();
    assert_eq!(moved.bind(&other, b"way", true), EXTENSION_FAILURE);
    assert!(refused(moved));
    let mut many = daemon.client();
    for session in 0..16u8 {
        assert_eq!(many.bind(&host, &[session], true), SUCCESS);
    }
    many.signs(&key, &git).unwrap();
    assert_eq!(many.bind(&host, b"more", true), EXTENSION_FAILURE);
    assert!(refused(many));
    let mut twice = daemon.client();
    assert_eq!(twice.bind(&host, b"login", false), SUCCESS);
    assert_eq!(twice.bind(&host, b"login", false), EXTENSION_FAILURE);
    assert!(refused(twice));
}

#[test]
fn a_connection_that_binds_nothing_logs_in_only_by_grants_for_forwarded_agents() {
    let daemon = Daemon::new();
    let (key, host) = (daemon.key("bob"), Host::new(1));
    let fingerprint = ssh::fingerprint(&host.wire());
    let mut client = daemon.client();
    let (named, plain) = (
        login(&key, b"session", Some(&host)),
        login(&key, b"session", None),
    );
    client.signs(&key, &plain).unwrap();
    daemon.grant("ssh", "bob", &format!("ssh:{fingerprint}"));
    daemon.grant("ssh", "bob", "ssh");
    daemon.grant("ssh", "bob", "");
    for login in [&named, &plain] {
        assert_eq!(client.signs(&key, login), None);
    }
    daemon.grant("ssh", "bob", &format!("ssh-forwarded:{fingerprint}"));
    client.signs(&key, &named).unwrap();
    assert_eq!(client.signs(&key, &plain), None);
    daemon.grant("ssh", "bob", "ssh-forwarded");
    client.signs(&key, &plain).unwrap();
}

#[test]
fn keys_are_neither_added_nor_removed() {
    let daemon = Daemon::new();
    let mut client = daemon.client();
    for kind in [17, 18, 20, 21, 25, 26] {
        assert_eq!(client.ask(&[&[kind][..], b"whatever"].concat()), [FAILURE]);
    }
    // Tokens are locked, and every key is still there.
    assert_eq!(client.ask(&[19]), [SUCCESS]);
    assert_eq!(client.names(), ["alice", "bob"]);
    let key = daemon.key("bob");
    client
        .signs(&key, &sshsig::signed_data("git", b"text").unwrap())
        .unwrap();
}

#[test]
fn what_is_truncated_or_unknown_is_answered_and_what_is_too_long_ends_the_connection() {
    let daemon = Daemon::new();
    let mut client = daemon.client();
    let key = daemon.key("bob");
    let wire = ssh::to_wire(&key).unwrap();
    let whole = message(
        13,
        &[&wire, &sshsig::signed_data("git", b"text").unwrap()],
        &[0; 4],
    );
    for end in 1..whole.len() {
        assert_eq!(client.ask(&whole[..end]), [FAILURE], "{end}");
    }
    for unknown in [0u8, 1, 9, 10, 99, 255] {
        assert_eq!(client.ask(&[unknown]), [FAILURE]);
    }
    assert_eq!(client.ask(&message(27, &[b"query"], &[])), [FAILURE]);
    // Many at once are answered one after the other.
    for _ in 0..100 {
        client.send(&[11]);
    }
    for _ in 0..100 {
        assert_eq!(client.next().unwrap()[0], 12);
    }
    let longest = vec![99; LIMIT];
    assert_eq!(client.ask(&longest), [FAILURE]);
    for length in [0u32, u32::try_from(LIMIT).unwrap() + 1, u32::MAX] {
        let mut client = daemon.client();
        client.0.write_all(&length.to_be_bytes()).unwrap();
        assert_eq!(client.next(), None, "{length}");
    }
    assert_eq!(client.names(), ["alice", "bob"]);
}

#[test]
fn a_client_that_stalls_or_vanishes_harms_nobody() {
    let daemon = Daemon::with(Limits {
        stalled: Duration::from_millis(200),
        connections_of_caller: 4,
        ..Limits::default()
    });
    let mut idle = daemon.client();
    let mut stalled = daemon.client();
    stalled.0.write_all(&[0, 0, 1]).unwrap();
    let mut vanished = daemon.client();
    let key = daemon.key("bob");
    let wire = ssh::to_wire(&key).unwrap();
    let git = sshsig::signed_data("git", b"text").unwrap();
    vanished.send(&message(13, &[&wire, &git], &[0; 4]));
    drop(vanished);
    assert_eq!(stalled.next(), None, "it is cut off");
    // One that has nothing to say may stay, as one that is forwarded does.
    assert_eq!(idle.names(), ["alice", "bob"]);
    let mut more = Vec::new();
    let begun = Instant::now();
    // Those that are over are counted no more.
    while more.len() < 3 {
        let mut client = daemon.client();
        // One that is refused may be closed before it says anything.
        let said = client.0.write_all(&[0, 0, 0, 1, 11]);
        if said.is_ok() && client.next().is_some() {
            more.push(client);
        }
        assert!(begun.elapsed() < LONG);
    }
    assert_eq!(daemon.client().next(), None, "there is no place");
    idle.signs(&key, &git).unwrap();
}

#[test]
fn connections_end_with_the_daemon() {
    let daemon = Daemon::new();
    let mut client = daemon.client();
    assert_eq!(client.names(), ["alice", "bob"]);
    assert!(daemon.runtime.block_on(daemon.service.drain(LONG)));
    assert_eq!(client.next(), None);
}
