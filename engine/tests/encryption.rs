//! The Encryption and Reads For engines: the rows of the specification, each as a test.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::time::{Duration, Instant};

use claviger_engine::encryption::MOST_RECIPIENTS;
use claviger_engine::evidence::{from_text, statement, to_text};
use claviger_engine::message::*;
use claviger_engine::node::{ENCRYPTION, READS_FOR};
use claviger_engine::{
    BadEvidence, Capabilities, EngineError, EngineMsg, Evidence, EvidenceFile, IdParams, Imported,
    Msg, Node, Participant, Party, Preference, PublicKeys, Purpose, Registry, Terms,
};
use claviger_memory::MemoryDriver;
use claviger_token::{Algorithm, Call, PublicKey, Secret, Signature, SignatureScheme};
use common::*;

use Capabilities::{Commit, CommitAndDecrypt};

const MEMORY: claviger_engine::Backend = claviger_engine::Backend::LocalMemory;

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

fn request(to: &str, use_reads_for: bool, preference: Preference) -> RequestEncrypt {
    RequestEncrypt {
        data: secret("attack at dawn"),
        external_identity: id(to),
        use_reads_for,
        preference,
    }
}

/// Encrypts to `to` with the default preference.
async fn seal(node: &Node, to: &str, use_reads_for: bool) -> Result<Vec<u8>, EngineError> {
    let request = request(to, use_reads_for, Preference::default());
    node.encrypt(&claviger_engine::EngineId::program(), request, &call())
        .await
}

/// Whether the identity's Decryption engine opens the file.
async fn opens(node: &Node, who: &str, file: &[u8]) -> bool {
    let info = node.registry().identity(&id(who)).unwrap().unwrap();
    let engine = info.decryption_engine.unwrap();
    let (who, call) = (id(who), call());
    match node.decrypt(&who, &engine, file.to_vec(), &call).await {
        Ok(data) => {
            assert_eq!(*data, b"attack at dawn");
            true
        }
        Err(error) => {
            assert_eq!(error.to_string(), "Decryption Failed");
            false
        }
    }
}

async fn make_all(node: &Node, names: &[&str]) {
    for name in names {
        make_with(node, name, IdParams::P256, CommitAndDecrypt).await;
    }
}

async fn make_with(node: &Node, name: &str, params: IdParams, capabilities: Capabilities) {
    let reply = generate(node, name, &MEMORY, params, capabilities).await;
    assert!(reply.err.is_none(), "{:?}", reply.err);
}

async fn grant(node: &Node, reader: &str, by: &str) -> Evidence {
    node.grant_reads_for(
        &claviger_engine::EngineId::program(),
        &id(reader),
        &id(by),
        None,
        &call(),
    )
    .await
    .unwrap()
}

async fn submit(node: &Node, evidence: Evidence) -> String {
    let msg = Msg::SubmitReadsForEvidence(SubmitReadsForEvidence { evidence });
    match node.ask(&id("x"), &id(READS_FOR), msg, &call()).await {
        Some(Msg::ReplySubmitReadsForEvidence(reply)) => text(reply.err),
        other => panic!("{other:?}"),
    }
}

async fn reads_for(node: &Node, a: &str, b: &str) -> bool {
    let msg = Msg::RequestReadsFor(RequestReadsFor { a: id(a), b: id(b) });
    match node.ask(&id("x"), &id(READS_FOR), msg, &call()).await {
        Some(Msg::ReplyReadsFor(reply)) => {
            assert!(reply.err.is_none(), "{:?}", reply.err);
            reply.reads_for
        }
        other => panic!("{other:?}"),
    }
}

async fn about(node: &Node, who: &str) -> ReplyReadsForEvidence {
    let msg = Msg::QueryReadsForEvidence(QueryReadsForEvidence {
        external_identity: id(who),
    });
    match node.ask(&id("x"), &id(READS_FOR), msg, &call()).await {
        Some(Msg::ReplyReadsForEvidence(reply)) => reply,
        other => panic!("{other:?}"),
    }
}

/// What another machine would know of an identity.
fn party(node: &Node, name: &str) -> Party {
    let info = node.registry().identity(&id(name)).unwrap().unwrap();
    let key = |usage| info.key(usage).map(|key| key.public_key.clone());
    Party {
        name: name.into(),
        keys: PublicKeys {
            sign: key(claviger_token::KeyUse::Sign),
            decrypt: key(claviger_token::KeyUse::Decrypt),
        },
    }
}

/// Evidence signed with the key of `signer`, whatever it says.
async fn signed(node: &Node, signer: &str, from: Party, to: Party) -> Evidence {
    signed_with(node, signer, from, to, Terms::new(None)).await
}

async fn signed_with(node: &Node, signer: &str, from: Party, to: Party, terms: Terms) -> Evidence {
    let said = statement(&from, &to, &terms);
    Evidence {
        from_identity: from,
        to_identity: to,
        terms,
        proof: forged(node, signer, said).await,
    }
}

/// What no engine signs for anybody: whoever hands in a digest has any signature of the key.
async fn forged(node: &Node, signer: &str, said: Vec<u8>) -> Signature {
    use sha2::Digest;
    let info = node.registry().identity(&id(signer)).unwrap().unwrap();
    let engine = info.commitment_engine.clone().unwrap();
    let key = info.key(claviger_token::KeyUse::Sign).unwrap();
    assert_eq!(key.public_key.algorithm(), Algorithm::P256, "{signer}");
    let request = RequestCommitment {
        data: sha2::Sha256::digest(said).to_vec(),
        purpose: Purpose::Prehash,
    };
    let signed = node
        .commit_for(&id(signer), &engine, request, &call())
        .await;
    signed.unwrap()
}

// --- Encryption ----------------------------------------------------------------------

#[tokio::test]
async fn without_reads_for_it_is_encrypted_at_once_and_to_the_identity_alone() {
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(MemoryDriver::new())
        // Nobody is there to be asked.
        .reads_for(id("nobody"))
        .build();
    make_with(&node, "a", IdParams::P256, CommitAndDecrypt).await;
    make_all(&node, &["b"]).await;
    grant(&node, "b", "a").await;
    for preference in [
        Preference::ITSELF,
        Preference::WITH_READERS,
        Preference::CHEAPEST,
    ] {
        let msg = Msg::RequestEncrypt(request("a", false, preference));
        let reply = node.ask(&id("x"), &id(ENCRYPTION), msg, &call()).await;
        let Some(Msg::ReplyEncrypt(reply)) = reply else {
            panic!("{reply:?}");
        };
        assert!(reply.err.is_none());
        assert!(opens(&node, "a", &reply.ciphertext).await);
        assert!(!opens(&node, "b", &reply.ciphertext).await);
    }
}

#[tokio::test]
async fn the_default_is_the_identity_itself_where_it_has_a_key() {
    let node = memory_node();
    make_all(&node, &["a", "b", "c"]).await;
    grant(&node, "a", "b").await;
    grant(&node, "c", "a").await;
    let file = seal(&node, "a", true).await.unwrap();
    assert!(opens(&node, "a", &file).await);
    assert!(!opens(&node, "b", &file).await);
    assert!(!opens(&node, "c", &file).await);
}

#[tokio::test]
async fn nobody_becomes_a_recipient_in_place_of_an_identity_without_a_key() {
    let node = memory_node();
    make_with(&node, "team", IdParams::P384, Commit).await;
    make_with(&node, "mallory", IdParams::P256, CommitAndDecrypt).await;
    // Whoever wants to be read for says so, and nobody else has to agree.
    let (from, to) = (party(&node, "team"), party(&node, "mallory"));
    let piece = signed(&node, "mallory", from, to).await;
    assert_eq!(submit(&node, piece).await, "");
    for use_reads_for in [false, true] {
        for preference in [
            Preference::ITSELF,
            Preference::CHEAPEST,
            Preference::WITH_READERS,
        ] {
            let request = request("team", use_reads_for, preference.clone());
            let error = node
                .encrypt(&claviger_engine::EngineId::program(), request, &call())
                .await
                .unwrap_err();
            assert!(
                matches!(error, EngineError::NoEncryptionKey { .. }),
                "{preference:?}: {error}"
            );
        }
    }
}

#[tokio::test]
async fn the_cheapest_is_found_transitively() {
    let node = memory_node();
    make_with(&node, "start", IdParams::P256, CommitAndDecrypt).await;
    make_with(&node, "middle", IdParams::P256, CommitAndDecrypt).await;
    make_with(&node, "end", IdParams::Ed25519, CommitAndDecrypt).await;
    grant(&node, "start", "middle").await;
    grant(&node, "middle", "end").await;
    let cheapest = request("start", true, Preference::CHEAPEST);
    let file = node
        .encrypt(&claviger_engine::EngineId::program(), cheapest, &call())
        .await
        .unwrap();
    assert!(opens(&node, "end", &file).await);
    assert!(!opens(&node, "start", &file).await);
}

#[tokio::test]
async fn the_preference_of_the_caller_decides() {
    let node = memory_node();
    make_with(&node, "yubikey", IdParams::P256, CommitAndDecrypt).await;
    make_with(&node, "safe", IdParams::P256, CommitAndDecrypt).await;
    make_with(&node, "cheap", IdParams::Ed25519, CommitAndDecrypt).await;
    make_with(&node, "heir", IdParams::Ed25519, CommitAndDecrypt).await;
    grant(&node, "safe", "yubikey").await;
    grant(&node, "heir", "safe").await;
    grant(&node, "yubikey", "cheap").await;
    for (preference, expected) in [
        (Preference::ITSELF, [true, false, false, false]),
        (Preference::CHEAPEST, [false, false, true, false]),
        (Preference::WITH_READERS, [true, true, false, true]),
    ] {
        let request = request("yubikey", true, preference.clone());
        let file = node
            .encrypt(&claviger_engine::EngineId::program(), request, &call())
            .await
            .unwrap();
        for (who, expected) in ["yubikey", "safe", "cheap", "heir"]
            .into_iter()
            .zip(expected)
        {
            assert_eq!(
                opens(&node, who, &file).await,
                expected,
                "{preference:?} {who}"
            );
        }
    }
}

#[tokio::test]
async fn unknown_recipients_and_deleted_ones_are_said() {
    let node = memory_node();
    for use_reads_for in [false, true] {
        let error = seal(&node, "nobody", use_reads_for).await.unwrap_err();
        assert_eq!(error.to_string(), "External identity not found");
    }
    make_all(&node, &["a"]).await;
    connect(&node, "b", "a", &MEMORY, CommitAndDecrypt).await;
    delete(&node, "a", "a").await.unwrap();
    for use_reads_for in [false, true] {
        let error = seal(&node, "b", use_reads_for).await.unwrap_err();
        assert_eq!(error.to_string(), "the identity `a` was deleted");
    }
}

#[tokio::test]
async fn a_recipient_that_is_made_anew_gets_what_is_for_its_new_key() {
    let node = memory_node();
    make_all(&node, &["a"]).await;
    let old = seal(&node, "a", false).await.unwrap();
    delete(&node, "a", "a").await.unwrap();
    assert!(seal(&node, "a", false).await.is_err());
    make_all(&node, &["a"]).await;
    assert!(!opens(&node, "a", &old).await);
    let new = seal(&node, "a", false).await.unwrap();
    assert!(opens(&node, "a", &new).await);
}

#[tokio::test]
async fn one_who_is_made_anew_by_another_process_is_not_mixed_up_with_the_old_one() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let (here, there) = (node(home.path(), &device), node(home.path(), &device));
    make(&there, "a", &device.backend()).await;
    let old = seal(&here, "a", false).await.unwrap();
    delete(&there, "a", "a").await.unwrap();
    make(&there, "a", &device.backend()).await;
    let new = seal(&here, "a", false).await.unwrap();
    assert!(!opens(&there, "a", &old).await);
    assert!(opens(&there, "a", &new).await);
}

// --- Waiting for evidence ------------------------------------------------------------

/// A node whose Encryption engine asks the test.
fn asks_the_test(deadline: Duration) -> (Node, Participant) {
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(MemoryDriver::new())
        .reads_for(id("oracle"))
        .reads_for_deadline(deadline)
        .build();
    let oracle = node.attach("oracle").unwrap();
    (node, oracle)
}

async fn reply(node: &Node, sender: &str, about: &str, err: Option<EngineError>) {
    let msg = Msg::ReplyReadsForEvidence(ReplyReadsForEvidence {
        external_identity: id(about),
        evidence: Default::default(),
        err,
    });
    let message = EngineMsg {
        sender: id(sender),
        target: id(ENCRYPTION),
        mailbox: None,
        msg,
    };
    node.send(message, &call()).await.unwrap();
}

fn spawn_seal(
    node: &Node,
    to: &'static str,
) -> tokio::task::JoinHandle<Result<Vec<u8>, EngineError>> {
    let node = node.clone();
    tokio::spawn(async move { seal(&node, to, true).await })
}

#[tokio::test]
async fn requests_for_one_identity_share_one_query_and_all_are_answered() {
    let (node, oracle) = asks_the_test(Duration::from_secs(60));
    make_all(&node, &["a", "b"]).await;
    let waiting: Vec<_> = (0..10).map(|_| spawn_seal(&node, "a")).collect();
    let query = oracle.receive(0).await;
    assert_eq!(query.sender, id(ENCRYPTION));
    let Msg::QueryReadsForEvidence(query) = query.msg else {
        panic!("{query:?}");
    };
    assert_eq!(query.external_identity, id("a"));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(oracle.try_receive(0).is_none(), "a second query");
    // Another identity has a list of its own.
    let other = spawn_seal(&node, "b");
    oracle.receive(0).await;

    // Only the configured engine is listened to, and only for what is pending.
    reply(&node, "mallory", "a", None).await;
    reply(&node, READS_FOR, "a", None).await;
    reply(&node, "oracle", "c", None).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(waiting.iter().all(|task| !task.is_finished()));

    reply(&node, "oracle", "a", None).await;
    for task in waiting {
        let file = task.await.unwrap().unwrap();
        assert!(opens(&node, "a", &file).await);
    }
    assert!(!other.is_finished());
    reply(&node, "oracle", "b", None).await;
    assert!(other.await.unwrap().is_ok());
    // The list was cleared: the next request asks again.
    let again = spawn_seal(&node, "a");
    oracle.receive(0).await;
    reply(&node, "oracle", "a", None).await;
    assert!(again.await.unwrap().is_ok());
}

#[tokio::test]
async fn an_error_from_reads_for_answers_all_who_wait() {
    let (node, oracle) = asks_the_test(Duration::from_secs(60));
    make_all(&node, &["a"]).await;
    let waiting: Vec<_> = (0..3).map(|_| spawn_seal(&node, "a")).collect();
    oracle.receive(0).await;
    let err = EngineError::ExternalIdentityNotFound;
    reply(&node, "oracle", "a", Some(err)).await;
    for task in waiting {
        let error = task.await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), "External identity not found");
    }
}

#[tokio::test]
async fn silence_answers_all_who_wait_and_nothing_waits_for_ever() {
    let begun = Instant::now();
    let (node, oracle) = asks_the_test(Duration::from_millis(200));
    make_all(&node, &["a"]).await;
    let waiting: Vec<_> = (0..3).map(|_| spawn_seal(&node, "a")).collect();
    // Whoever is in a hurry does not wait so long.
    let hurry = Call::within(Duration::from_millis(20));
    let error = node
        .encrypt(
            &claviger_engine::EngineId::program(),
            request("a", true, Preference::ITSELF),
            &hurry,
        )
        .await;
    assert!(matches!(
        error,
        Err(EngineError::Token(claviger_token::Error::DeadlineExceeded))
    ));
    for task in waiting {
        let error = task.await.unwrap().unwrap_err();
        assert!(
            matches!(error, EngineError::ReadsForSilent { .. }),
            "{error}"
        );
    }
    assert!(begun.elapsed() < Duration::from_secs(10));
    // What comes too late is for nobody.
    oracle.receive(0).await;
    reply(&node, "oracle", "a", None).await;
    // Nobody there at all is silence, too.
    drop(oracle);
    let error = seal(&node, "a", true).await.unwrap_err();
    assert!(
        matches!(error, EngineError::ReadsForSilent { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn evidence_that_does_not_verify_is_of_no_account_whoever_sends_it() {
    let (node, oracle) = asks_the_test(Duration::from_secs(60));
    make_with(&node, "team", IdParams::P384, Commit).await;
    make_all(&node, &["mallory", "a"]).await;
    // Mallory says that the team reads for her, in the name of somebody else.
    let mut forged = signed(&node, "mallory", party(&node, "team"), party(&node, "a")).await;
    forged.to_identity.keys.decrypt = party(&node, "mallory").keys.decrypt;
    let task = spawn_seal(&node, "team");
    oracle.receive(0).await;
    let mut evidence = claviger_engine::reads_for::EvidenceAbout::default();
    evidence.direct.push(forged);
    let msg = Msg::ReplyReadsForEvidence(ReplyReadsForEvidence {
        external_identity: id("team"),
        evidence,
        err: None,
    });
    let message = EngineMsg {
        sender: id("oracle"),
        target: id(ENCRYPTION),
        mailbox: None,
        msg,
    };
    node.send(message, &call()).await.unwrap();
    let error = task.await.unwrap().unwrap_err();
    assert!(
        matches!(error, EngineError::NoEncryptionKey { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_reply_to_an_encryption_comes_to_the_senders_mailbox() {
    let node = memory_node();
    make_all(&node, &["a"]).await;
    let sender = node.attach("sender").unwrap();
    for use_reads_for in [false, true] {
        let message = EngineMsg {
            sender: id("sender"),
            target: node.encryption(),
            mailbox: None,
            msg: Msg::RequestEncrypt(request("a", use_reads_for, Preference::ITSELF)),
        };
        node.send(message, &call()).await.unwrap();
        let reply = sender.receive(0).await;
        assert_eq!(reply.sender, node.encryption());
        let Msg::ReplyEncrypt(reply) = reply.msg else {
            panic!("{reply:?}");
        };
        assert!(opens(&node, "a", &reply.ciphertext).await);
    }
}

#[tokio::test]
async fn what_the_two_engines_do_not_accept_is_dropped() {
    let node = memory_node();
    let commit = || Msg::RequestCommitment(RequestCommitment::raw(vec![1]));
    for engine in [ENCRYPTION, READS_FOR] {
        let answer = node.ask(&id("x"), &id(engine), commit(), &call()).await;
        assert!(answer.is_none());
        assert!(node.attach(engine).is_err(), "the name is taken");
    }
    let msg = Msg::RequestEncrypt(request("a", false, Preference::ITSELF));
    assert!(
        node.ask(&id("x"), &id(READS_FOR), msg, &call())
            .await
            .is_none()
    );
    let request = format!("{:?}", request("a", false, Preference::ITSELF));
    assert!(
        !request.contains("97, 116"),
        "the plaintext is shown: {request}"
    );
}

// --- Reads For -----------------------------------------------------------------------

#[tokio::test]
async fn it_is_a_partial_order() {
    let node = memory_node();
    make_all(&node, &["a", "b", "c"]).await;
    for who in ["a", "b", "c"] {
        assert!(reads_for(&node, who, who).await, "reflexive");
    }
    assert!(!reads_for(&node, "a", "b").await);
    grant(&node, "a", "b").await;
    assert!(reads_for(&node, "a", "b").await);
    assert!(!reads_for(&node, "b", "a").await, "not symmetric");
    grant(&node, "b", "c").await;
    assert!(reads_for(&node, "a", "c").await, "transitive");
    assert!(!reads_for(&node, "c", "a").await);
    // A cycle is as good as any.
    grant(&node, "c", "a").await;
    for (a, b) in [("c", "b"), ("b", "a"), ("a", "a")] {
        assert!(reads_for(&node, a, b).await);
    }
    let chain = node
        .reads_for_chain(&claviger_engine::EngineId::program(), &id("a"), &id("c"))
        .unwrap()
        .unwrap();
    let names: Vec<_> = chain.iter().map(|e| &*e.to_identity.name).collect();
    assert_eq!(names, ["b", "c"]);
    let msg = Msg::RequestReadsFor(RequestReadsFor {
        a: id("a"),
        b: id("nobody"),
    });
    let reply = node.ask(&id("x"), &id(READS_FOR), msg, &call()).await;
    let Some(Msg::ReplyReadsFor(reply)) = reply else {
        panic!("{reply:?}");
    };
    assert!(!reply.reads_for);
    assert_eq!(text(reply.err), "External identity not found");
}

#[tokio::test]
async fn only_verified_evidence_is_stored_and_once() {
    let node = memory_node();
    make_all(&node, &["a", "b", "mallory"]).await;
    let (a, b) = (party(&node, "a"), party(&node, "b"));
    let good = signed(&node, "b", a.clone(), b.clone()).await;

    // Signed by somebody else: by the reader, by a third.
    for signer in ["a", "mallory"] {
        let forged = signed(&node, signer, a.clone(), b.clone()).await;
        assert_eq!(submit(&node, forged).await, "Invalid evidence provided.");
    }
    // Replayed under another name, for other keys, the other way round.
    let mut renamed = good.clone();
    renamed.from_identity.name = "somebody".into();
    let mut swapped = good.clone();
    std::mem::swap(&mut swapped.from_identity, &mut swapped.to_identity);
    let mut rekeyed = good.clone();
    rekeyed.from_identity.keys = party(&node, "mallory").keys;
    let mut without = good.clone();
    without.to_identity.keys.sign = None;
    let mut nobody = good.clone();
    nobody.from_identity.keys = PublicKeys::default();
    let mut unnamed = good.clone();
    unnamed.from_identity.name = "".into();
    let mut altered = good.clone();
    let mut bytes = altered.proof.as_bytes().to_vec();
    bytes[5] ^= 1;
    altered.proof = Signature::new(altered.proof.scheme(), bytes).unwrap();
    let mut other_scheme = good.clone();
    let bytes = other_scheme.proof.as_bytes().to_vec();
    other_scheme.proof = Signature::new(SignatureScheme::Ed25519, bytes).unwrap();
    for bad in [
        renamed,
        swapped,
        rekeyed,
        without,
        nobody,
        unnamed,
        altered,
        other_scheme,
    ] {
        assert_eq!(
            submit(&node, bad.clone()).await,
            "Invalid evidence provided.",
            "{bad:?}"
        );
    }
    // A name that stands for other keys here, though the signature is right.
    let posing = Party {
        name: "b".into(),
        keys: party(&node, "mallory").keys,
    };
    let posing = signed(&node, "mallory", a.clone(), posing).await;
    assert!(posing.verify().is_ok());
    assert_eq!(submit(&node, posing).await, "Invalid evidence provided.");
    assert!(node.registry().all_evidence().unwrap().is_empty());
    assert!(!reads_for(&node, "a", "b").await);

    assert_eq!(submit(&node, good.clone()).await, "");
    assert_eq!(
        submit(&node, good.clone()).await,
        "Evidence already exists."
    );
    // The same said again, with another signature, is the same.
    let again = signed_with(&node, "b", a, b, good.terms).await;
    assert_eq!(submit(&node, again).await, "Evidence already exists.");
    assert_eq!(node.registry().all_evidence().unwrap(), [good]);
    assert!(reads_for(&node, "a", "b").await);
}

#[tokio::test]
async fn a_query_gives_all_evidence_in_which_the_identity_stands_on_either_side() {
    let node = memory_node();
    make_all(&node, &["a", "b", "c", "d", "e"]).await;
    let ab = grant(&node, "a", "b").await;
    let bc = grant(&node, "b", "c").await;
    let cd = grant(&node, "c", "d").await;
    grant(&node, "e", "d").await;
    let reply = about(&node, "b").await;
    assert_eq!(reply.external_identity, id("b"));
    assert!(reply.err.is_none());
    assert_eq!(reply.evidence.direct, [ab, bc]);
    assert_eq!(reply.evidence.onward, [cd]);
    let nobody = about(&node, "nobody").await;
    assert_eq!(text(nobody.err), "External identity not found");
    assert!(nobody.evidence.direct.is_empty());
}

#[tokio::test]
async fn every_cryptosystem_that_signs_can_grant() {
    let node = memory_node();
    make_all(&node, &["reader"]).await;
    for (name, params) in [
        ("p256", IdParams::P256),
        ("p384", IdParams::P384),
        ("ed25519", IdParams::Ed25519),
        ("secp256k1", IdParams::Secp256k1),
        ("bls", IdParams::Bls),
    ] {
        make_with(&node, name, params, Commit).await;
        let evidence = grant(&node, "reader", name).await;
        assert!(reads_for(&node, "reader", name).await);
        let file = EvidenceFile::from(vec![evidence]);
        let text = to_text(&file).unwrap();
        assert_eq!(from_text(text.as_bytes()).unwrap(), file);
    }
    let error = node
        .grant_reads_for(
            &claviger_engine::EngineId::program(),
            &id("nobody"),
            &id("p256"),
            None,
            &call(),
        )
        .await;
    assert!(matches!(error, Err(EngineError::ExternalIdentityNotFound)));
    let error = node
        .grant_reads_for(
            &claviger_engine::EngineId::program(),
            &id("reader"),
            &id("p256"),
            None,
            &call(),
        )
        .await;
    assert!(matches!(error, Err(EngineError::EvidenceExists)));
}

#[tokio::test]
async fn an_identity_that_was_made_anew_does_not_inherit_evidence() {
    let node = memory_node();
    make_all(&node, &["a", "b"]).await;
    let old = grant(&node, "a", "b").await;
    for who in ["a", "b"] {
        delete(&node, who, who).await.unwrap();
        make_all(&node, &[who]).await;
        assert!(!reads_for(&node, "a", "b").await);
        assert_eq!(
            submit(&node, old.clone()).await,
            "Invalid evidence provided."
        );
    }
    // What is said of the new ones is new.
    grant(&node, "a", "b").await;
    assert!(reads_for(&node, "a", "b").await);
}

#[tokio::test]
async fn evidence_outlives_the_process_and_is_seen_by_others() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let (here, there) = (node(home.path(), &device), node(home.path(), &device));
    make(&here, "a", &device.backend()).await;
    make(&here, "b", &device.backend()).await;
    assert!(!reads_for(&there, "a", "b").await);
    grant(&here, "a", "b").await;
    assert!(reads_for(&there, "a", "b").await);
    drop((here, there));
    assert!(reads_for(&node(home.path(), &device), "a", "b").await);
}

#[tokio::test]
async fn evidence_travels_between_machines_that_know_each_others_public_keys() {
    let (mine, yours) = (memory_node(), memory_node());
    make_all(&mine, &["yk"]).await;
    make_all(&yours, &["safe"]).await;
    mine.registry().add_contact(&party(&yours, "safe")).unwrap();
    let evidence = grant(&mine, "safe", "yk").await;

    let mut file = party(&mine, "yk");
    // There it is called something else; the keys count.
    file.name = "your key".into();
    yours.registry().add_contact(&file).unwrap();
    let imported = yours
        .import_evidence(
            &claviger_engine::EngineId::program(),
            vec![evidence.clone()],
        )
        .await
        .unwrap();
    let one = Imported {
        added: 1,
        ..Imported::default()
    };
    assert_eq!(imported, one);
    let again = yours
        .import_evidence(&claviger_engine::EngineId::program(), vec![evidence])
        .await
        .unwrap();
    let known = Imported {
        known: 1,
        ..Imported::default()
    };
    assert_eq!(again, known);
    assert!(reads_for(&yours, "safe", "your key").await);
    let request = request("your key", true, Preference::WITH_READERS);
    let sealed = yours
        .encrypt(&claviger_engine::EngineId::program(), request, &call())
        .await
        .unwrap();
    assert!(opens(&mine, "yk", &sealed).await);
    assert!(opens(&yours, "safe", &sealed).await);
}

#[tokio::test]
async fn what_was_granted_to_a_decryption_key_alone_holds_for_its_owner_and_goes_no_further() {
    let node = memory_node();
    make_all(&node, &["safe", "yk", "mallory"]).await;
    // The safe was known by its age recipient only.
    let mut bare = party(&node, "safe");
    bare.keys.sign = None;
    let piece = signed(&node, "yk", bare, party(&node, "yk")).await;
    assert_eq!(submit(&node, piece).await, "");
    assert!(reads_for(&node, "safe", "yk").await);
    assert!(!reads_for(&node, "yk", "safe").await);
    // Mallory claims the safe's decryption key for her own, and grants herself to read.
    let posing = Party {
        name: "vault".into(),
        keys: PublicKeys {
            sign: party(&node, "mallory").keys.sign,
            decrypt: party(&node, "safe").keys.decrypt,
        },
    };
    let piece = signed(&node, "mallory", party(&node, "mallory"), posing).await;
    assert_eq!(submit(&node, piece).await, "");
    assert!(!reads_for(&node, "mallory", "yk").await);
    let request = request("yk", true, Preference::WITH_READERS);
    let file = node
        .encrypt(&claviger_engine::EngineId::program(), request, &call())
        .await
        .unwrap();
    assert!(opens(&node, "safe", &file).await);
    assert!(!opens(&node, "mallory", &file).await);
}

#[tokio::test]
async fn of_an_import_all_is_taken_or_nothing() {
    let node = memory_node();
    make_all(&node, &["a", "b", "c"]).await;
    let good = signed(&node, "b", party(&node, "a"), party(&node, "b")).await;
    let mut bad = signed(&node, "c", party(&node, "a"), party(&node, "c")).await;
    bad.from_identity.name = "b".into();
    let error = node
        .import_evidence(&claviger_engine::EngineId::program(), vec![good, bad])
        .await
        .unwrap_err();
    assert_eq!(error.piece, Some(1));
    assert!(matches!(
        error.error,
        EngineError::InvalidEvidence {
            reason: BadEvidence::Signature
        }
    ));
    assert!(node.registry().all_evidence().unwrap().is_empty());
}

#[tokio::test]
async fn a_name_stands_for_one_identity_or_contact() {
    let node = memory_node();
    make_all(&node, &["a"]).await;
    let mut contact = party(&node, "a");
    assert!(node.registry().add_contact(&contact).is_err());
    contact.name = "b".into();
    node.registry().add_contact(&contact).unwrap();
    assert!(node.registry().add_contact(&contact).is_err());
    let reply = generate(&node, "b", &MEMORY, IdParams::Ed25519, Commit).await;
    assert_eq!(text(reply.err), "a contact has this name");
    let reply = connect(&node, "b", "a", &MEMORY, Commit).await;
    assert_eq!(text(reply.err), "a contact has this name");
    assert_eq!(node.registry().contacts().unwrap(), [contact]);
    assert!(node.registry().remove_contact("b").unwrap());
    assert!(!node.registry().remove_contact("b").unwrap());
    make_all(&node, &["b"]).await;
}

fn x25519(n: u32) -> PublicKey {
    let mut bytes = [9; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    PublicKey::from_bytes(Algorithm::X25519, &bytes).unwrap()
}

#[tokio::test]
async fn a_hundred_thousand_pieces_are_taken_and_asked_in_microseconds() {
    // A build for debugging verifies so many in seconds, and on a busy machine in more.
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(MemoryDriver::new())
        .reads_for_deadline(Duration::from_secs(300))
        .build();
    // Quick to sign with.
    make_with(&node, "hub", IdParams::Ed25519, CommitAndDecrypt).await;
    make_with(&node, "spoke", IdParams::Ed25519, CommitAndDecrypt).await;
    let info = node.registry().identity(&id("hub")).unwrap().unwrap();
    let (engine, hub) = (info.commitment_engine.unwrap(), party(&node, "hub"));
    let mut evidence = Vec::new();
    for n in 0..100_000 {
        let from = Party {
            name: format!("reader {n}").into(),
            keys: PublicKeys {
                sign: None,
                decrypt: Some(x25519(n)),
            },
        };
        let terms = Terms::new(None);
        let request = RequestCommitment {
            data: statement(&from, &hub, &terms),
            purpose: Purpose::Evidence,
        };
        let proof = node.commit_for(&id("hub"), &engine, request, &call()).await;
        evidence.push(Evidence {
            from_identity: from,
            to_identity: hub.clone(),
            terms,
            proof: proof.unwrap(),
        });
        // As many as there may be: the hub itself, and one less than that.
        if n as usize + 2 == MOST_RECIPIENTS {
            node.import_evidence(
                &claviger_engine::EngineId::program(),
                std::mem::take(&mut evidence),
            )
            .await
            .unwrap();
            let keys = node
                .recipients(
                    &claviger_engine::EngineId::program(),
                    &id("hub"),
                    true,
                    &Preference::WITH_READERS,
                    &call(),
                )
                .await;
            assert_eq!(keys.unwrap().len(), MOST_RECIPIENTS);
        }
    }
    let imported = node
        .import_evidence(&claviger_engine::EngineId::program(), evidence)
        .await
        .unwrap();
    assert_eq!(
        imported,
        Imported {
            added: 100_001 - MOST_RECIPIENTS,
            ..Imported::default()
        }
    );
    grant(&node, "hub", "spoke").await;
    let reader = Party {
        name: "reader".into(),
        keys: PublicKeys {
            sign: None,
            decrypt: Some(x25519(77_777)),
        },
    };
    node.registry().add_contact(&reader).unwrap();
    assert!(reads_for(&node, "reader", "spoke").await);
    let begun = Instant::now();
    for _ in 0..100 {
        assert!(
            node.reads_for(
                &claviger_engine::EngineId::program(),
                &id("reader"),
                &id("spoke")
            )
            .unwrap()
        );
        assert!(
            !node
                .reads_for(
                    &claviger_engine::EngineId::program(),
                    &id("spoke"),
                    &id("hub")
                )
                .unwrap()
        );
    }
    let each = begun.elapsed() / 200;
    assert!(each < Duration::from_millis(1), "{each:?}");
    // So many cannot all be recipients; that is said, and nobody is left out silently.
    let keys = node
        .recipients(
            &claviger_engine::EngineId::program(),
            &id("hub"),
            true,
            &Preference::WITH_READERS,
            &call(),
        )
        .await;
    assert!(
        matches!(keys, Err(EngineError::TooManyRecipients)),
        "{keys:?}"
    );
}
