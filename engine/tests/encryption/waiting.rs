//! Requests that wait for evidence, and who answers them.

use std::time::Duration;

use claviger_engine::Capabilities::Commit;
use claviger_engine::message::*;
use claviger_engine::node::{ENCRYPTION, READS_FOR};
use claviger_engine::{
    EngineError, EngineMsg, IdParams, Msg, Node, Participant, Preference, Registry,
};
use claviger_memory::MemoryDriver;
use claviger_token::Call;

use crate::common::*;
use crate::stage::*;

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
    // Whoever is in a hurry does not wait for as long as that may take.
    let (node, _oracle) = asks_the_test(Duration::from_secs(3600));
    make_all(&node, &["a"]).await;
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
    let (node, oracle) = asks_the_test(Duration::from_millis(200));
    make_all(&node, &["a"]).await;
    let waiting: Vec<_> = (0..3).map(|_| spawn_seal(&node, "a")).collect();
    for task in waiting {
        let answered = tokio::time::timeout(Duration::from_secs(60), task).await;
        let error = answered.unwrap().unwrap().unwrap_err();
        assert!(
            matches!(error, EngineError::ReadsForSilent { .. }),
            "{error}"
        );
    }
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
