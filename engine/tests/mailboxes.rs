//! Messages from outside the process have limits of their own in a participant's mailboxes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;

use claviger_engine::message::{EngineMsg, Msg, RequestCommitment};
use claviger_engine::node::{MAILBOX_CAPACITY, OUTSIDE_CAPACITY, SENDER_CAPACITY, SendError};
use claviger_engine::{EngineId, Node, NodeId};
use claviger_token::{Algorithm, PublicKey};
use common::{call, id, memory_node};

/// Somebody called `name` on another node: that of this number.
fn remote(node: u8, name: &str) -> EngineId {
    let mut key = [9; 32];
    key[0] = node;
    let key = PublicKey::from_bytes(Algorithm::X25519, &key).unwrap();
    EngineId {
        node: Some(NodeId(Arc::new(key))),
        name: name.into(),
    }
}

fn message(sender: EngineId, mailbox: u64) -> EngineMsg {
    EngineMsg {
        sender,
        target: id("listener"),
        mailbox: Some(mailbox),
        msg: Msg::RequestCommitment(RequestCommitment::raw(Vec::new())),
    }
}

async fn let_in(node: &Node, who: &EngineId, mailbox: u64) -> Result<(), SendError> {
    let message = message(who.clone(), mailbox);
    node.let_in(who, message, &call()).await.map(drop)
}

/// Sends until no more is taken; how many were.
async fn flood(node: &Node, who: impl Fn(usize) -> EngineId) -> usize {
    for sent in 0..=MAILBOX_CAPACITY {
        // The sender chooses mailboxes that nobody looks into.
        let Err(refused) = let_in(node, &who(sent), sent as u64).await else {
            continue;
        };
        assert!(matches!(refused, SendError::Busy), "{refused:?}");
        assert_eq!(refused.code(), "mailbox-busy");
        return sent;
    }
    panic!("it has no limit");
}

#[tokio::test]
async fn a_flood_from_another_node_leaves_room_for_others_and_is_answered_busy() {
    let node = memory_node();
    let listener = node.attach("listener").unwrap();
    // Under many names it is one sender.
    let sent = flood(&node, |sent| remote(1, &sent.to_string())).await;
    assert_eq!(sent, SENDER_CAPACITY);
    let (other, its_own) = (remote(2, "other"), 5000);
    let_in(&node, &other, its_own).await.unwrap();
    let message = message(id("here"), its_own);
    node.send(message, &call()).await.unwrap();
    for sender in [other, id("here")] {
        assert_eq!(listener.try_receive(its_own).unwrap().sender, sender);
    }
    // What is received makes room.
    assert!(listener.try_receive(0).is_some() && listener.try_receive(1).is_some());
    for _ in 0..2 {
        let_in(&node, &remote(1, "x"), 0).await.unwrap();
    }
    let more = let_in(&node, &remote(1, "x"), 0).await;
    assert!(matches!(more, Err(SendError::Busy)), "{more:?}");
}

#[tokio::test]
async fn all_that_comes_from_outside_leaves_room_for_those_here() {
    let node = memory_node();
    let listener = node.attach("listener").unwrap();
    // Also who is let in from this machine is from outside.
    let senders = 2 * OUTSIDE_CAPACITY / SENDER_CAPACITY;
    let who = |sent| match sent % senders {
        0 => id("on this machine"),
        nth => remote(u8::try_from(nth).unwrap(), "x"),
    };
    assert_eq!(flood(&node, who).await, OUTSIDE_CAPACITY);
    for _ in OUTSIDE_CAPACITY..MAILBOX_CAPACITY {
        node.send(message(id("here"), 7), &call()).await.unwrap();
    }
    let full = node.send(message(id("here"), 7), &call()).await;
    assert!(
        matches!(&full, Err(error @ SendError::MailboxFull) if error.code() == "mailbox-full"),
        "{full:?}"
    );
    assert!(listener.try_receive(7).is_some());
    node.send(message(id("here"), 7), &call()).await.unwrap();
}
