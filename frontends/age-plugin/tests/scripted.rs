//! The plugin, and a daemon that does what the test says: tokens that wait for a person.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod common;
#[path = "../../../client/tests/common/mod.rs"]
mod daemon;

use claviger_client::wire::DaemonReply;
use claviger_client::wire::{
    EngineError, EngineId, EngineMsg, Event, IdentitiesReply, Identity, Key, KeyUse,
    ReplyDecryption, TokenId, daemon_reply::Reply, engine_msg::Msg, event::Kind, frame::Content,
};
use claviger_token::{Algorithm, PublicKey};
use common::plugin::{Plugin, key_of};
use common::{FILE_KEY, handed, identity, said, wrapped};
use daemon::{Daemon, Place, Side, script};

fn key() -> PublicKey {
    PublicKey::from_bytes(Algorithm::X25519, &[9; 32]).unwrap()
}

fn token() -> Option<TokenId> {
    Some(TokenId {
        kind: "piv".into(),
        manufacturer: "Yubico".into(),
        serial: "7".into(),
    })
}

/// Greets, lists `alice` with the key, and takes the request to open the header.
fn asked_to_open(side: Side) -> (Side, u64) {
    let mut side = side.greet();
    let (id, content) = side.take();
    assert!(matches!(content, Content::DaemonRequest(_)), "{content:?}");
    let alice = Identity {
        decryption_engine: Some(EngineId {
            name: "alice_decryptor_alice".into(),
            ..EngineId::default()
        }),
        keys: vec![Key {
            usage: KeyUse::Decrypt.into(),
            public_key: key().to_der().unwrap(),
            ..Key::default()
        }],
        ..Identity::default()
    };
    let listed = IdentitiesReply {
        identities: vec![alice],
        more: false,
    };
    let reply = Some(Reply::Identities(listed));
    side.send(id, Content::DaemonReply(DaemonReply { reply }));
    let id = next_opening(&mut side);
    (side, id)
}

fn next_opening(side: &mut Side) -> u64 {
    match side.take() {
        (
            id,
            Content::Engine(EngineMsg {
                msg: Some(Msg::RequestDecryption(asked)),
                ..
            }),
        ) => {
            assert!(asked.header_only && !asked.unattended);
            id
        }
        other => panic!("{other:?}"),
    }
}

fn opened(data: &[u8], err: Option<EngineError>) -> Content {
    let data = data.to_vec();
    let reply = ReplyDecryption {
        data,
        err,
        data_follows: false,
    };
    Content::Engine(EngineMsg {
        msg: Some(Msg::ReplyDecryption(reply)),
        ..EngineMsg::default()
    })
}

fn tells(side: &mut Side, id: u64, kind: Kind) {
    let event = Event {
        kind: kind.into(),
        token: token(),
        ..Event::default()
    };
    side.send(id, Content::Event(event));
}

fn away() -> Content {
    let error = EngineError {
        code: "token-unavailable".into(),
        message: "the token is gone".into(),
        ..EngineError::default()
    };
    opened(&[], Some(error))
}

/// The plugin, after it was told what to open.
fn asked(place: &Place) -> Plugin {
    let mut plugin = Plugin::start(&place.socket());
    plugin.says(&said("add-identity", &[&identity(&key(), "alice")], &[]));
    plugin.says(&handed("0", &wrapped(&key())));
    plugin.says(&said("done", &[], &[]));
    plugin
}

#[test]
fn what_a_token_waits_for_is_told_to_the_user() {
    let place = Place::new();
    let daemon = Daemon::new(
        &place.socket(),
        vec![script(|side| {
            let (mut side, id) = asked_to_open(side);
            tells(&mut side, id, Kind::TouchNeeded);
            tells(&mut side, id, Kind::PersonDone);
            tells(&mut side, id, Kind::ApprovalNeeded);
            side.send(id, opened(&FILE_KEY, None));
            side.wait_for_the_end();
        })],
    );
    let heard = asked(&place).hears_out(&[]);
    let told = ["msg: Touch ", "msg: Approve on "].map(|what| format!("{what}piv:Yubico/7"));
    assert_eq!(heard[..2], told);
    assert_eq!(heard[2..], [key_of(0)]);
    daemon.end();
}

#[test]
fn a_token_that_is_away_is_asked_for_and_tried_again() {
    let place = Place::new();
    let daemon = Daemon::new(
        &place.socket(),
        vec![script(|side| {
            let (mut side, id) = asked_to_open(side);
            side.send(id, away());
            let id = next_opening(&mut side);
            side.send(id, opened(&FILE_KEY, None));
            side.wait_for_the_end();
        })],
    );
    let heard = asked(&place).answered(|one| match one.tag.as_str() {
        "confirm" => said("ok", &["yes"], &[]),
        _ => said("ok", &[], &[]),
    });
    assert!(heard[0].starts_with("confirm "), "{heard:?}");
    assert!(
        heard[0].ends_with("the token is gone. Attach the token to go on"),
        "{heard:?}"
    );
    assert_eq!(heard[1..], [key_of(0)]);
    daemon.end();
}

#[test]
fn a_token_that_stays_away_is_given_up_after_three_attempts_or_a_no() {
    for (answer, attempts) in [("yes", 3), ("no", 1)] {
        let place = Place::new();
        let daemon = Daemon::new(
            &place.socket(),
            vec![script(move |side| {
                let (mut side, mut id) = asked_to_open(side);
                for _ in 1..attempts {
                    side.send(id, away());
                    id = next_opening(&mut side);
                }
                side.send(id, away());
                side.wait_for_the_end();
            })],
        );
        let heard = asked(&place).answered(|one| match one.tag.as_str() {
            "confirm" => said("ok", &[answer], &[]),
            _ => said("ok", &[], &[]),
        });
        let last = heard.last().unwrap();
        assert_eq!(last, "error identity 0: the token is gone", "{heard:?}");
        daemon.end();
    }
}

/// Nobody would read the file key: the daemon need not wait for the touch.
#[test]
fn a_program_that_ends_while_a_touch_is_waited_for_has_the_request_cancelled() {
    let place = Place::new();
    let daemon = Daemon::new(
        &place.socket(),
        vec![script(|side| {
            let (mut side, id) = asked_to_open(side);
            tells(&mut side, id, Kind::TouchNeeded);
            let (given_up, content) = side.take();
            assert!(matches!(content, Content::Cancel(_)), "{content:?}");
            assert_eq!(given_up, id);
            side.refuse(id, "cancelled");
            side.wait_for_the_end();
        })],
    );
    let mut plugin = asked(&place);
    assert_eq!(plugin.next().tag, "msg");
    plugin.says(&said("ok", &[], &[]));
    let Plugin {
        mut child,
        to,
        from,
    } = plugin;
    drop((to, from));
    assert_eq!(child.wait().unwrap().code(), Some(1));
    daemon.end();
}
