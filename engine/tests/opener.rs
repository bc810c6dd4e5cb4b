//! Who opens a file, and with whose PIN: one PIN for whichever token asks is not sent round.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use claviger_engine::message::RequestGenerateIdentity;
use claviger_engine::opener::{NotOpened, Opened, Opener};
use claviger_engine::policy::{self, Operation};
use claviger_engine::{
    Backend, Capabilities, EngineError, EngineId, IdParams, Node, Policy, Registry,
};
use claviger_formats::envelope::{self, Sealed};
use claviger_token::{
    About, Access, Call, Detail, Driver, Error, FixedPin, KeyUse, Listing, PinSource, SlotId, Token,
};
use common::safes::{PINS, Safe, Safes};
use common::{Device, call, delete, id};
use tempfile::TempDir;

/// Two safes, `ida` with keys on the first and `idb` with keys on the second.
struct Stage {
    safes: Safes,
    home: TempDir,
}

impl Stage {
    async fn new(params: IdParams) -> Self {
        Stage::with_backends(params, ["", ""]).await
    }

    /// The same; what is given ends the backend of `ida`'s and of `idb`'s token.
    async fn with_backends(params: IdParams, ends: [&str; 2]) -> Self {
        let stage = Stage {
            safes: Safes::new(),
            home: tempfile::tempdir().unwrap(),
        };
        for ((name, safe), end) in ["ida", "idb"].into_iter().zip(&stage.safes.0).zip(ends) {
            let backend = format!("{}{end}", safe.device.info().backend);
            let made = stage.generate(name, &backend, params).await;
            assert!(made.is_none(), "{made:?}");
        }
        stage.safes.log_out();
        stage
    }

    async fn generate(&self, name: &str, backend: &str, params: IdParams) -> Option<EngineError> {
        let request = RequestGenerateIdentity {
            backend: Backend::from(backend),
            params,
            capabilities: Capabilities::CommitAndDecrypt,
        };
        let node = self.node(self.safes.person());
        node.generate(&id(name), request, &call()).await.err()
    }

    /// A node that was just started.
    fn node(&self, pins: impl PinSource + 'static) -> Node {
        Node::builder(Registry::open(self.home.path()).unwrap())
            .driver(self.safes.clone())
            .access(Access::with(pins))
            .build()
    }

    fn file_for(&self, names: &[&str]) -> Vec<u8> {
        let node = self.node(FixedPin::new(""));
        let keys = names.iter().map(|name| {
            let info = node.registry().identity(&id(name)).unwrap().unwrap();
            info.key(KeyUse::Decrypt).unwrap().public_key.clone()
        });
        let keys: Vec<_> = keys.collect();
        envelope::encrypt(&keys.iter().collect::<Vec<_>>(), b"hello").unwrap()
    }

    fn came(&self) -> [Vec<String>; 2] {
        [self.safes.0[0].came(), self.safes.0[1].came()]
    }
}

async fn open(node: &Node, file: &[u8]) -> Result<Opened, NotOpened> {
    let file = Sealed::read(file).unwrap();
    let opener = Opener::anybody(
        node,
        &EngineId::program(),
        file.stanzas(),
        &Call::unlimited(),
    )
    .await?;
    opener.open(&call()).await
}

fn refused(opened: Result<Opened, NotOpened>) -> EngineError {
    match opened {
        Ok(opened) => panic!("{} opened it", opened.who),
        Err(not) => not.error,
    }
}

fn nothing() -> [Vec<String>; 2] {
    [Vec::new(), Vec::new()]
}

#[tokio::test]
async fn the_pin_of_a_token_that_is_away_goes_to_no_other() {
    let stage = Stage::new(IdParams::Ed25519).await;
    let file = stage.file_for(&["ida"]);
    stage.safes.0[0].device.detach();
    let node = stage.node(FixedPin::new(PINS[0]));
    let error = refused(open(&node, &file).await);
    assert_eq!(error.code(), "pin-for-several-tokens");
    let EngineError::PinForSeveralTokens { holders } = &error else {
        panic!("{error:?}");
    };
    let holders: Vec<String> = holders.iter().map(ToString::to_string).collect();
    let [a, b] = &holders[..] else {
        panic!("{holders:?}");
    };
    assert!(
        a.starts_with("idb on ") && b.starts_with("ida on "),
        "{holders:?}"
    );
    assert!(b.contains("(not attached)"), "{b}");
    assert_eq!(stage.came(), nothing());
}

/// A driver of the same kind whose tokens cannot be looked at.
struct Blind;

impl Driver for Blind {
    fn about(&self) -> About {
        About::new("device", "a device of this test")
    }

    fn look(&self, _: &str, _: Detail, _: &Call) -> Result<Listing, Error> {
        Err(Error::System {
            what: "no smartcard service".into(),
            reason: "connection refused".into(),
        })
    }

    fn named_slot(&self, _: &str) -> Result<Option<SlotId>, Error> {
        Ok(None)
    }

    fn open(&self, _: &str, _: &Call) -> Result<Arc<dyn Token>, Error> {
        Err(Error::Cancelled)
    }
}

#[tokio::test]
async fn a_token_that_cannot_be_looked_at_is_not_called_away() {
    let stage = Stage::new(IdParams::Ed25519).await;
    let file = stage.file_for(&["ida"]);
    let node = Node::builder(Registry::open(stage.home.path()).unwrap())
        .driver(Blind)
        .build();
    let EngineError::TokensAway { holders } = refused(open(&node, &file).await) else {
        panic!("another error");
    };
    let shown: Vec<String> = holders.iter().map(ToString::to_string).collect();
    let said = shown
        .iter()
        .all(|holder| holder.contains("smartcard service"));
    assert!(said && !shown.is_empty(), "{shown:?}");
}

#[tokio::test]
async fn one_pin_for_whichever_token_asks_goes_to_none_of_several_and_to_the_only_one() {
    let stage = Stage::new(IdParams::Ed25519).await;
    let file = stage.file_for(&["ida", "idb"]);
    let error = refused(open(&stage.node(FixedPin::new(PINS[1])), &file).await);
    assert_eq!(error.code(), "pin-for-several-tokens");
    assert_eq!(stage.came(), nothing());

    // Who knows whose PIN is asked for is asked.
    assert!(open(&stage.node(stage.safes.person()), &file).await.is_ok());
    stage.safes.log_out();

    // A stanza that says for whom it is.
    let stage = Stage::new(IdParams::P256).await;
    let file = stage.file_for(&["idb"]);
    let opened = open(&stage.node(FixedPin::new(PINS[1])), &file).await;
    assert_eq!(opened.unwrap_or_else(|not| panic!("{not}")).who, id("idb"));
    assert_eq!(stage.came(), [vec![], vec![PINS[1].to_owned()]]);
}

/// Lets nobody decrypt.
struct NoDecryption;

impl Policy for NoDecryption {
    fn check(&self, who: &EngineId, access: policy::Permission<'_>) -> Result<(), EngineError> {
        match access {
            policy::Permission::Use {
                operation: Operation::Decrypt,
                ..
            } => Err(EngineError::NotAllowed {
                sender: who.clone(),
                what: "decrypt",
            }),
            _ => Ok(()),
        }
    }
}

#[tokio::test]
async fn the_policy_is_asked_before_a_file_is_opened() {
    let stage = Stage::new(IdParams::Ed25519).await;
    let file = stage.file_for(&["ida"]);
    let node = Node::builder(Registry::open(stage.home.path()).unwrap())
        .driver(stage.safes.clone())
        .access(Access::with(stage.safes.person()))
        .policy(NoDecryption)
        .build();
    let error = refused(open(&node, &file).await);
    assert!(matches!(error, EngineError::NotAllowed { .. }), "{error:?}");
    assert_eq!(stage.came(), nothing());
}

#[tokio::test]
async fn who_is_named_is_meant_and_gets_the_pin() {
    let stage = Stage::new(IdParams::Ed25519).await;
    let bytes = stage.file_for(&["idb"]);
    let file = Sealed::read(&bytes[..]).unwrap();
    let node = stage.node(FixedPin::new(PINS[1]));
    let opener = Opener::only(&node, &EngineId::program(), &id("idb"), file.stanzas())
        .await
        .unwrap();
    assert!(opener.open(&call()).await.is_ok());
    assert_eq!(stage.came(), [vec![], vec![PINS[1].to_owned()]]);

    let failed = Opener::only(&node, &EngineId::program(), &id("ida"), file.stanzas())
        .await
        .unwrap();
    stage.safes.0[0].logged_in.store(true, SeqCst);
    let error = refused(failed.open(&call()).await);
    assert_eq!(error.to_string(), "Decryption Failed");
    let nobody = Opener::only(&node, &EngineId::program(), &id("nobody"), file.stanzas()).await;
    assert!(matches!(
        nobody.map(drop),
        Err(EngineError::IdentityDoesNotExist)
    ));
}

#[tokio::test]
async fn a_token_whose_backend_says_where_its_pin_is_needs_no_other() {
    let stage = Stage::with_backends(IdParams::Ed25519, ["", "?pin=222222"]).await;
    let file = stage.file_for(&["idb"]);
    // The PIN that was given is for one of two, and goes to none; the second has its own.
    stage.safes.0[0].device.detach();
    let opened = open(&stage.node(FixedPin::new("333333")), &file).await;
    // The identity's backend is kept without the PIN's place, unless the driver keeps it.
    match opened {
        Ok(opened) => assert_eq!(opened.who, id("idb")),
        Err(not) => assert_eq!(not.error.code(), "pin-for-several-tokens"),
    }
    assert!(!stage.came().concat().contains(&"333333".to_owned()));
}

#[tokio::test]
async fn a_token_that_took_the_place_of_another_gets_no_pin() {
    let safe = |pin| Safe {
        device: Device::reached_by("device:any"),
        ..Safe::new(pin)
    };
    let stage = Stage {
        safes: Safes(PINS.map(safe)),
        home: tempfile::tempdir().unwrap(),
    };
    let [a, b] = &stage.safes.0;
    b.device.detach();
    let made = stage.generate("ida", "device:any", IdParams::Ed25519).await;
    assert!(made.is_none(), "{made:?}");
    stage.safes.log_out();
    let node = stage.node(FixedPin::new(PINS[0]));
    let info = node.registry().identity(&id("ida")).unwrap().unwrap();
    let file = stage.file_for(&["ida"]);
    a.device.detach();
    b.device.attach();
    let (signs, opens) = (
        info.commitment_engine.clone().unwrap(),
        info.decryption_engine.clone().unwrap(),
    );
    let soon = Call::within(Duration::from_millis(300));
    for call in [call(), soon] {
        let signed = node.commit(&id("ida"), &signs, b"x".to_vec(), &call).await;
        assert_eq!(signed.unwrap_err().code(), "token-unavailable");
    }
    let opened = node
        .decrypt(&id("ida"), &opens, file.clone(), &call())
        .await;
    assert_eq!(opened.unwrap_err().code(), "token-unavailable");
    assert!(delete(&node, "ida", "ida").await.is_err());
    assert_eq!(stage.came(), nothing());
    a.device.attach();
    b.device.detach();
    let opened = node.decrypt(&id("ida"), &opens, file, &call()).await;
    assert_eq!(*opened.unwrap(), b"hello");
}

#[tokio::test]
async fn what_was_interrupted_on_several_tokens_is_not_settled_with_one_pin() {
    let stage = Stage::new(IdParams::Ed25519).await;
    for (name, safe) in ["c", "d"].into_iter().zip(&stage.safes.0) {
        safe.device.detach_after(1);
        let backend = &safe.device.info().backend;
        assert!(
            stage
                .generate(name, backend, IdParams::Ed25519)
                .await
                .is_some()
        );
        safe.device.attach();
    }
    stage.safes.log_out();
    let node = stage.node(FixedPin::new(PINS[0]));
    let left = node.resolve_intents(&Call::unlimited()).await.unwrap();
    assert_eq!(left.len(), 2);
    for (_, error) in &left {
        assert_eq!(error.code(), "pin-for-several-tokens");
    }
    assert_eq!(stage.came(), nothing());

    let first = [stage.safes.0[0].device.id()];
    let left = node
        .resolve_intents_with_pins_for(&first, &Call::unlimited())
        .await
        .unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(stage.came(), [vec![PINS[0].to_owned()], vec![]]);
    drop(node);
    let left = stage
        .node(stage.safes.person())
        .resolve_intents(&Call::unlimited())
        .await
        .unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn where_nobody_is_to_be_asked_no_key_is_used_that_may_need_a_touch() {
    let home = tempfile::tempdir().unwrap();
    // A smartcard that does not say that it needs no touch.
    let card = Device::of_kind("piv");
    let node = common::node(home.path(), &card);
    let its = Backend::from(card.info().backend.clone());
    for (name, backend) in [("touched", its), ("free", Backend::LocalMemory)] {
        let all = Capabilities::CommitAndDecrypt;
        let made = common::generate(&node, name, &backend, IdParams::P256, all).await;
        assert!(made.err.is_none(), "{name}: {:?}", made.err);
    }
    let key = |name: &str| {
        let info = node.registry().identity(&id(name)).unwrap().unwrap();
        info.key(KeyUse::Decrypt).unwrap().public_key.clone()
    };
    let (touched, free) = (key("touched"), key("free"));
    let unattended = async |recipients: &[&claviger_token::PublicKey]| {
        let file = envelope::encrypt(recipients, b"hello").unwrap();
        let file = Sealed::read(&file[..]).unwrap();
        let asker = EngineId::program();
        let opener = Opener::anybody(&node, &asker, file.stanzas(), &call()).await;
        opener.unwrap().unattended().open(&call()).await
    };
    let opened = unattended(&[&touched, &free]).await;
    assert_eq!(opened.ok().unwrap().who, id("free"));
    let error = refused(unattended(&[&touched]).await);
    let EngineError::PersonNeeded { holders } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(holders.len(), 1);
    assert_eq!(holders[0].who, id("touched"));
    assert_eq!(error.code(), "person-needed");
}
