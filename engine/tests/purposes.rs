//! What a signature is for: no document is a statement, and no statement is a document.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::io::Read;
use std::sync::{Arc, Mutex};

use claviger_engine::evidence::{Statement, statement};
use claviger_engine::message::RequestCommitment;
use claviger_engine::policy::{Operation, Permission};
use claviger_engine::purpose::{NODE_PREFIX, TlsSide};
use claviger_engine::{
    Capabilities, CommitStreamError, Commitment, EngineError, EngineId, IdParams, Node, Party,
    Policy, PublicKeys, Purpose, Registry, Terms,
};
use claviger_formats::ssh;
use claviger_formats::sshsig::{self, Hash};
use claviger_memory::MemoryDriver;
use claviger_token::{KeyUse, PublicKey, SignatureScheme, possession};
use common::*;
use sha2::{Digest, Sha256, Sha512};

const MEMORY: claviger_engine::Backend = claviger_engine::Backend::LocalMemory;

/// A node with an identity `alice` of this cryptosystem: its engine and public keys.
async fn alice(params: IdParams) -> (Node, EngineId, PublicKeys) {
    let node = memory_node();
    let (engine, keys) = enter(&node, params).await;
    (node, engine, keys)
}

async fn enter(node: &Node, params: IdParams) -> (EngineId, PublicKeys) {
    let reply = generate(node, "alice", &MEMORY, params, Capabilities::Commit).await;
    let keys = node.public_keys(&id("alice")).unwrap().unwrap();
    (reply.commitment_engine.unwrap(), keys)
}

async fn commit_for(
    node: &Node,
    engine: &EngineId,
    data: &[u8],
    purpose: Purpose,
) -> Result<Commitment, EngineError> {
    let request = RequestCommitment {
        data: data.to_vec(),
        purpose,
    };
    node.commit_for(&id("alice"), engine, request, &call())
        .await
}

async fn stream(
    node: &Node,
    engine: &EngineId,
    message: impl Read,
) -> Result<Commitment, CommitStreamError> {
    let who = id("alice");
    node.commit_stream(&who, engine, message, &call()).await
}

fn party(name: &str, keys: &PublicKeys) -> Party {
    Party {
        name: name.into(),
        keys: keys.clone(),
    }
}

/// What other purposes sign, each as a document would hold it.
fn statements(keys: &PublicKeys) -> Vec<Vec<u8>> {
    let (from, to) = (party("mallory", keys), party("alice", keys));
    let revocation = Statement::Revocation {
        statement: [7; 32],
        by: keys.sign.clone().unwrap(),
    };
    let mut all = vec![
        statement(&from, &to, &Terms::V1),
        statement(&from, &to, &Terms::new(None)),
        revocation.to_bytes(),
        sshsig::signed_data("file", b"hello").unwrap(),
        format!("{} 00", possession::PREFIX).into_bytes(),
        format!("{NODE_PREFIX}x").into_bytes(),
        vec![b' '; 64],
    ];
    all.extend(
        [
            // RFC 8446 §4.4.3, RFC 9345 §4, RFC 9261 §5.2.2.
            "TLS 1.3, server CertificateVerify",
            "TLS, server delegated credentials",
            "Exported Authenticator",
        ]
        .map(|context| [&[b' '; 64], context.as_bytes(), &[0], &[7; 32]].concat()),
    );
    all.extend([20, 28, 32, 48, 64].map(ssh_login));
    all
}

/// What an SSH login signs (RFC 4252 §7), in a session whose id has this length.
fn ssh_login(length: u8) -> Vec<u8> {
    let session = vec![7; usize::from(length)];
    let string = |text: &[u8]| [&[0, 0, 0, u8::try_from(text.len()).unwrap()], text].concat();
    let fields = [b"alice", &b"ssh-connection"[..], b"publickey"].map(string);
    [&string(&session)[..], &[50], &fields.concat(), &[1]].concat()
}

#[tokio::test]
async fn what_only_resembles_another_purpose_is_a_document() {
    let (node, engine, _) = alice(IdParams::Ed25519).await;
    let mut another_message = ssh_login(32);
    another_message[4 + 32] = 51;
    let mut longer = ssh_login(32);
    longer[3] = 33;
    for document in [
        [&[b' '; 63][..], b"an indented line"].concat(),
        ssh_login(32)[..4 + 32].to_vec(),
        another_message,
        longer,
        ssh_login(31),
    ] {
        let signed = node.commit(&id("alice"), &engine, document, &call()).await;
        assert!(signed.is_ok(), "{signed:?}");
    }
}

#[tokio::test]
async fn a_document_that_holds_a_statement_is_not_signed() {
    for params in [IdParams::P256, IdParams::Ed25519, IdParams::Bls] {
        let (node, engine, keys) = alice(params).await;
        for document in statements(&keys) {
            for document in [document.clone(), [&document[..], b"\nmore"].concat()] {
                let signed = node
                    .commit(&id("alice"), &engine, document.clone(), &call())
                    .await;
                let Err(error @ EngineError::ReservedMessage { .. }) = signed else {
                    panic!("{signed:?}");
                };
                assert_eq!(error.code(), "reserved-message");
                let streamed = stream(&node, &engine, &document[..]).await;
                assert!(matches!(
                    streamed,
                    Err(CommitStreamError::Engine(
                        EngineError::ReservedMessage { .. }
                    ))
                ));
            }
            // What only mentions one is a document as any.
            let about = [b"This is it: ", &document[..]].concat();
            let signed = node
                .commit(&id("alice"), &engine, about.clone(), &call())
                .await;
            let key = keys.sign.as_ref().unwrap();
            assert_eq!(key.verify(&about, &signed.unwrap()), Ok(()));
        }
    }
}

/// Gives one byte at a time, and says how many it gave.
struct Slow<'a>(&'a [u8], usize);

impl Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let (Some(first), Some(room)) = (self.0.get(self.1), buffer.first_mut()) else {
            return Ok(0);
        };
        *room = *first;
        self.1 += 1;
        Ok(1)
    }
}

#[tokio::test]
async fn a_message_that_comes_in_pieces_is_refused_after_its_first_bytes() {
    let (node, engine, keys) = alice(IdParams::P256).await;
    for document in statements(&keys) {
        let long = [&document[..], &[7; 10_000]].concat();
        let mut slow = Slow(&long, 0);
        let refused = stream(&node, &engine, &mut slow).await;
        assert!(refused.is_err());
        assert!(slow.1 <= 128, "{} bytes were read", slow.1);
    }
}

/// Says that it is at its end, and goes on when it is asked again, as a file that grows.
struct Growing<'a>(Vec<&'a [u8]>);

impl Read for Growing<'_> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        match self.0.first_mut() {
            Some(&mut []) => {
                self.0.remove(0);
                Ok(0)
            }
            Some(part) => part.read(to),
            None => Ok(0),
        }
    }
}

#[tokio::test]
async fn what_is_added_to_a_message_after_its_end_is_not_signed() {
    for params in [IdParams::P256, IdParams::Ed25519, IdParams::Bls] {
        let (node, engine, keys) = alice(params).await;
        let key = keys.sign.clone().unwrap();
        for document in statements(&keys) {
            for at in [0, 4] {
                let (first, rest) = document.split_at(at);
                let message = Growing(vec![first, rest]);
                let signed = stream(&node, &engine, message).await.unwrap();
                assert_eq!(key.verify(first, &signed), Ok(()), "{params} {at}");
            }
        }
    }
}

#[tokio::test]
async fn a_message_is_signed_as_it_is_read() {
    for params in [
        IdParams::P256,
        IdParams::P384,
        IdParams::Secp256k1,
        IdParams::Ed25519,
        IdParams::Bls,
    ] {
        let (node, engine, keys) = alice(params).await;
        let key = keys.sign.unwrap();
        for length in [0, 1, 127, 128, 129, 300_000] {
            let message = vec![0x5a; length];
            let signed = stream(&node, &engine, Slow(&message, 0)).await.unwrap();
            assert_eq!(key.verify(&message, &signed), Ok(()), "{params} {length}");
        }
    }
}

#[tokio::test]
async fn a_message_that_cannot_be_read_is_not_signed() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("gone"))
        }
    }
    let (node, engine, _) = alice(IdParams::P256).await;
    for message in [&b""[..], &[7; 500]] {
        let refused = stream(&node, &engine, message.chain(Broken)).await;
        assert!(matches!(refused, Err(CommitStreamError::Message(_))));
    }
}

/// Checks that `said` is what was signed.
#[track_caller]
fn is_signed(key: &PublicKey, said: &[u8], signed: Result<Commitment, EngineError>) {
    assert_eq!(key.verify(said, &signed.unwrap()), Ok(()));
}

#[tokio::test]
async fn each_purpose_signs_its_own_bytes() {
    let (node, engine, keys) = alice(IdParams::P256).await;
    let key = keys.sign.clone().unwrap();
    let digest = Sha512::digest(b"hello").to_vec();
    let ssh = Purpose::SshSig {
        namespace: "git".into(),
        hash: Hash::Sha512,
    };
    let signed = commit_for(&node, &engine, &digest, ssh).await;
    is_signed(&key, &sshsig::signed_data("git", b"hello").unwrap(), signed);

    let said = statement(
        &party("bob", &keys),
        &party("alice", &keys),
        &Terms::new(None),
    );
    is_signed(
        &key,
        &said,
        commit_for(&node, &engine, &said, Purpose::Evidence).await,
    );

    let signed = commit_for(&node, &engine, &[7; 16], Purpose::Proof).await;
    let text = format!("{} {}", possession::PREFIX, "07".repeat(16));
    is_signed(&key, text.as_bytes(), signed);

    let signed = commit_for(&node, &engine, &[7; 32], Purpose::Tls(TlsSide::Client)).await;
    let mut said = vec![b' '; 64];
    said.extend_from_slice(b"TLS 1.3, client CertificateVerify\0");
    said.extend_from_slice(&[7; 32]);
    is_signed(&key, &said, signed);

    let signed = commit_for(&node, &engine, b"me", Purpose::Node).await;
    is_signed(&key, format!("{NODE_PREFIX}me").as_bytes(), signed);

    let digest = Sha256::digest(b"anything");
    let signed = commit_for(&node, &engine, &digest, Purpose::Prehash).await;
    is_signed(&key, b"anything", signed);
}

#[tokio::test]
async fn what_does_not_fit_a_purpose_is_not_signed_for_it() {
    let (node, engine, keys) = alice(IdParams::P256).await;
    let ssh = |namespace: &str| Purpose::SshSig {
        namespace: namespace.into(),
        hash: Hash::Sha512,
    };
    let other = alice(IdParams::P256).await.2;
    let by_other = statement(
        &party("bob", &keys),
        &party("eve", &other),
        &Terms::new(None),
    );
    let old = statement(&party("bob", &keys), &party("alice", &keys), &Terms::V1);
    let mut long = statement(
        &party("bob", &keys),
        &party("alice", &keys),
        &Terms::new(None),
    );
    long.push(0);
    for (data, purpose) in [
        (&[7; 32][..], ssh("file")),
        (&[7; 64], ssh("")),
        (b"", Purpose::Evidence),
        (b"a document", Purpose::Evidence),
        (&by_other, Purpose::Evidence),
        (&old, Purpose::Evidence),
        (&long, Purpose::Evidence),
        (&[7; 15], Purpose::Proof),
        (&[7; 20], Purpose::Tls(TlsSide::Server)),
    ] {
        let signed = commit_for(&node, &engine, data, purpose.clone()).await;
        assert!(
            matches!(signed, Err(EngineError::NotForPurpose { .. })),
            "{purpose:?}: {signed:?}"
        );
    }
    for length in [0, 20, 31, 33, 64] {
        let signed = commit_for(&node, &engine, &vec![7; length], Purpose::Prehash).await;
        assert_eq!(signed.unwrap_err().code(), "bad-message");
    }
    // What signs the message itself signs no digest.
    for params in [IdParams::Ed25519, IdParams::Bls] {
        let (node, engine, _) = alice(params).await;
        let signed = commit_for(&node, &engine, &[7; 32], Purpose::Prehash).await;
        assert_eq!(signed.unwrap_err().code(), "bad-message");
    }
}

/// What an SSH login of this key signs (RFC 4252 §7), with the name of how it is signed.
fn login_of(wire: &[u8], algorithm: &str, host: Option<&[u8]>) -> Vec<u8> {
    let string = |part: &[u8]| [&u32::try_from(part.len()).unwrap().to_be_bytes(), part].concat();
    let method = match host {
        Some(_) => "publickey-hostbound-v00@openssh.com",
        None => "publickey",
    };
    let parts = [
        string(&[7; 32]),
        vec![50],
        string(b"git"),
        string(b"ssh-connection"),
        string(method.as_bytes()),
        vec![1],
        string(algorithm.as_bytes()),
        string(wire),
        host.map(string).unwrap_or_default(),
    ];
    parts.concat()
}

#[tokio::test]
async fn a_key_signs_its_own_ssh_logins_to_the_host_of_the_purpose_and_certificates_that_it_issues()
{
    let (node, engine, keys) = alice(IdParams::P256).await;
    let key = keys.sign.clone().unwrap();
    let other = alice(IdParams::P256).await.2.sign.unwrap();
    let [wire, foreign] = [&key, &other].map(|key| ssh::to_wire(key).unwrap());
    let [here, there] = [&b"a host"[..], b"another"].map(|host| Some(ssh::fingerprint(host)));
    let login = |host| Purpose::SshLogin {
        host,
        forwarded: false,
    };
    let own = |host| login_of(&wire, "ecdsa-sha2-nistp256", host);
    for (data, purpose) in [
        (own(None), login(None)),
        (own(None), login(here.clone())),
        (own(Some(b"a host")), login(here.clone())),
    ] {
        let signed = commit_for(&node, &engine, &data, purpose).await;
        is_signed(&key, &data, signed);
        let raw = commit_for(&node, &engine, &data, Purpose::Raw).await;
        assert_eq!(raw.unwrap_err().code(), "reserved-message");
    }
    let certificate = |issuer: &[u8]| {
        let kind = b"ecdsa-sha2-nistp256-cert-v01@openssh.com";
        let string =
            |part: &[u8]| [&u32::try_from(part.len()).unwrap().to_be_bytes(), part].concat();
        [string(kind), string(b"nonce and more"), string(issuer)].concat()
    };
    let issued = certificate(&wire);
    let signed = commit_for(&node, &engine, &issued, Purpose::SshCertificate).await;
    is_signed(&key, &issued, signed);
    let raw = commit_for(&node, &engine, &issued, Purpose::Raw).await;
    assert_eq!(raw.unwrap_err().code(), "reserved-message");
    for (data, purpose) in [
        (own(Some(b"a host")), login(None)),
        (own(Some(b"a host")), login(there)),
        (login_of(&foreign, "ecdsa-sha2-nistp256", None), login(None)),
        (login_of(&wire, "ssh-ed25519", None), login(None)),
        (login_of(&wire, "rsa-sha2-512", None), login(None)),
        (b"a document".to_vec(), login(None)),
        (b"a document".to_vec(), Purpose::SshCertificate),
        (certificate(&foreign), Purpose::SshCertificate),
        (own(None), Purpose::SshCertificate),
    ] {
        let signed = commit_for(&node, &engine, &data, purpose.clone()).await;
        assert_eq!(signed.unwrap_err().code(), "not-for-purpose", "{purpose:?}");
    }
    // No key of this kind signs so.
    let request = RequestCommitment::raw(b"a document".to_vec());
    let scheme = Some(SignatureScheme::RsaPkcs1Sha512);
    let (who, call) = (id("alice"), call());
    let signed = node.commit_in(&who, &engine, request, scheme, &call);
    assert_eq!(signed.await.unwrap_err().code(), "not-for-purpose");
}

/// Lets nothing through, and notes what it was asked.
#[derive(Clone, Default)]
struct Strict(Arc<Mutex<Vec<String>>>);

impl Policy for Strict {
    fn check(&self, sender: &EngineId, access: Permission<'_>) -> Result<(), EngineError> {
        let Permission::Use {
            identity,
            operation,
        } = access
        else {
            return Ok(());
        };
        let what = match operation {
            Operation::Sign(purpose) => purpose.name(),
            Operation::Decrypt => "decrypt",
            _ => "something else",
        };
        let line = format!("{sender} {identity} {what}");
        self.0.lock().unwrap().push(line);
        Err(EngineError::NotAllowed {
            sender: sender.clone(),
            what: "use it",
        })
    }
}

#[tokio::test]
async fn the_policy_is_asked_for_each_use_with_identity_operation_and_purpose() {
    let policy = Strict::default();
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(MemoryDriver::new())
        .policy(policy.clone())
        .build();
    let reply = make(&node, "alice", &MEMORY).await;
    let (signs, opens) = (
        reply.commitment_engine.unwrap(),
        reply.decryption_engine.unwrap(),
    );
    let bob = id("bob");
    let signed = node.commit(&bob, &signs, vec![1], &call()).await;
    assert!(matches!(signed, Err(EngineError::NotAllowed { .. })));
    let streamed = node.commit_stream(&bob, &signs, &b"x"[..], &call()).await;
    assert!(streamed.is_err());
    for purpose in [Purpose::Prehash, Purpose::Node] {
        let request = RequestCommitment {
            data: vec![7; 32],
            purpose,
        };
        let signed = node.commit_for(&bob, &signs, request, &call()).await;
        assert!(matches!(signed, Err(EngineError::NotAllowed { .. })));
    }
    let opened = node.decrypt(&bob, &opens, vec![1], &call()).await;
    assert!(matches!(opened, Err(EngineError::NotAllowed { .. })));
    let decryptor = node.decryptor(&bob, &opens, &call()).await;
    assert!(matches!(
        decryptor.err(),
        Some(EngineError::NotAllowed { .. })
    ));
    let granted = node
        .grant_reads_for(
            &EngineId::program(),
            &id("alice"),
            &id("alice"),
            None,
            &call(),
        )
        .await;
    assert!(matches!(granted, Err(EngineError::NotAllowed { .. })));
    let asked = policy.0.lock().unwrap().join(", ");
    let expected = "bob alice raw, bob alice raw, bob alice prehash, bob alice node, \
                    bob alice decrypt, bob alice decrypt, program alice evidence";
    assert_eq!(asked, expected);
}

#[tokio::test]
async fn from_another_node_nobody_hands_in_digests_nor_uses_what_others_own() {
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(MemoryDriver::new())
        .policy(MakesForAll)
        .build();
    let (engine, keys) = enter(&node, IdParams::P256).await;
    let remote = |name: &str| EngineId {
        node: Some(claviger_engine::NodeId(Arc::new(
            keys.sign.clone().unwrap(),
        ))),
        name: name.into(),
    };
    let reply = node
        .generate(
            &remote("carol"),
            claviger_engine::message::RequestGenerateIdentity {
                backend: MEMORY,
                params: IdParams::P256,
                capabilities: Capabilities::Commit,
            },
            &call(),
        )
        .await;
    let own = reply.unwrap().commitment_engine.unwrap();
    let sign = async |who: EngineId, engine: &EngineId, purpose: Purpose| {
        let request = RequestCommitment {
            data: vec![7; 32],
            purpose,
        };
        node.commit_for(&who, engine, request, &call()).await
    };
    for purpose in [Purpose::Raw, Purpose::Prehash] {
        let refused = sign(remote("carol"), &engine, purpose).await;
        assert!(matches!(refused, Err(EngineError::NotAllowed { .. })));
    }
    assert!(sign(remote("carol"), &own, Purpose::Raw).await.is_ok());
    let refused = sign(remote("carol"), &own, Purpose::Prehash).await;
    assert!(matches!(refused, Err(EngineError::NotAllowed { .. })));
    // In one process it has to be asked for, and then it is done.
    assert!(sign(id("alice"), &engine, Purpose::Prehash).await.is_ok());
    let key = node.public_keys(&id("alice")).unwrap().unwrap();
    assert!(
        key.sign
            .is_some_and(|key| key.algorithm().can(KeyUse::Sign))
    );
}

#[tokio::test]
async fn a_key_signs_certificates_of_itself_for_that_purpose_and_none_as_documents() {
    use claviger_formats::certificate::{self, Chain};
    let (node, engine, keys) = alice(IdParams::P256).await;
    let key = keys.sign.unwrap();
    let subject = "CN=alice".parse().unwrap();
    let names = ["alice.example".parse().unwrap()];
    let request = certificate::request(&key, &subject, &names).unwrap();
    let own = certificate::self_signed(&key, &subject, &names, 1).unwrap();
    for unsigned in [&request, &own] {
        let raw = commit_for(&node, &engine, unsigned.bytes(), Purpose::Raw).await;
        let refused = raw.unwrap_err();
        assert!(
            matches!(refused, EngineError::ReservedMessage { kind, .. } if kind == "certificate")
        );
        let signed = commit_for(&node, &engine, unsigned.bytes(), Purpose::Certificate).await;
        let pem = unsigned.signed(&signed.unwrap()).unwrap();
        assert!(pem.contains("-----END CERTIFICATE"));
    }
    let signed = commit_for(&node, &engine, own.bytes(), Purpose::Certificate).await;
    let pem = own.signed(&signed.unwrap()).unwrap();
    let chain = Chain::read(pem.as_bytes(), &key).unwrap();
    // It stays with its key, and nobody else's is taken.
    let registry = node.registry();
    let entered = registry.set_certificate(&id("alice"), chain.ders(), chain.not_before());
    assert_eq!(entered.unwrap(), chain);
    assert_eq!(registry.certificate(&key).unwrap(), Some(chain.clone()));
    assert!(registry.check().unwrap().is_empty());
    let late = registry.set_certificate(&id("alice"), chain.ders(), chain.not_after() + 1);
    assert_eq!(late.unwrap_err().code(), "certificate-expired");
    let nobody = registry.set_certificate(&id("nobody"), chain.ders(), chain.not_before());
    assert_eq!(nobody.unwrap_err().code(), "no-identity");

    let (other_node, other_engine, other) = alice(IdParams::P256).await;
    let other_key = other.sign.unwrap();
    let of_other = certificate::self_signed(&other_key, &subject, &names, 1).unwrap();
    for data in [of_other.bytes(), b"a document"] {
        let signed = commit_for(&node, &engine, data, Purpose::Certificate).await;
        assert!(matches!(signed, Err(EngineError::NotForPurpose { .. })));
    }
    let signed = commit_for(
        &other_node,
        &other_engine,
        of_other.bytes(),
        Purpose::Certificate,
    );
    let pem = of_other.signed(&signed.await.unwrap()).unwrap();
    let of_other = Chain::read(pem.as_bytes(), &other_key).unwrap();
    let entered = registry.set_certificate(&id("alice"), of_other.ders(), of_other.not_before());
    assert_eq!(entered.unwrap_err().code(), "certificate-other-key");
    assert_eq!(registry.certificate(&key).unwrap(), Some(chain));

    let request = claviger_engine::message::RequestDeleteIdentity {
        external_identity: id("alice"),
        backend: MEMORY,
    };
    node.delete(&id("alice"), request, &call()).await.unwrap();
    assert_eq!(registry.certificate(&key).unwrap(), None);
    assert!(registry.check().unwrap().is_empty());
}
