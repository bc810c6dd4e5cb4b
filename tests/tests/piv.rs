//! A YubiKey behind PC/SC that others use, reset and pull out meanwhile.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use claviger_engine::message::{RequestDeleteIdentity, RequestGenerateIdentity};
use claviger_engine::policy;
use claviger_engine::{
    Backend, Capabilities, EngineError, EngineId, IdParams, Node, Policy, Registry,
};
use claviger_piv::PivDriver;
use claviger_piv::reader::{PcscReaders, Readers as _};
use claviger_tests::CountedReaders;
use claviger_token::sync::lock;
use claviger_token::{
    Access, Algorithm, Call, Deletion, Driver, Error, FixedPin, KeyRef, KeySpec, NewKey, Signer,
    Token, Unfinished, unfinished_mark,
};
use claviger_virtual_yubikey::{Card, Fault, Firmware, Inserted, Nature, Pcscd, Rule, ins};

const SPEC: KeySpec = KeySpec::sign(Algorithm::P256);

/// Commands are counted, and whoever opens a token looks at every card: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

struct Bench {
    yubikey: Inserted,
    token: Arc<dyn Token>,
    key: KeyRef,
    signer: Arc<dyn Signer>,
    _alone: MutexGuard<'static, ()>,
}

fn access() -> Access {
    Access {
        factory_defaults: true,
        ..Access::with(FixedPin::new("246802"))
    }
}

fn bench() -> Bench {
    let alone = lock(&ALONE);
    let yubikey = Pcscd::insert(Card::builder().pin("246802").build());
    let backend = format!("piv:serial={}", yubikey.card().serial());
    let call = Call::unlimited().using(access());
    let token = PivDriver::new().open(&backend, &call).unwrap();
    let slot = token.free_slots(&[SPEC], &[], &call).unwrap().remove(0);
    let mark = &unfinished_mark();
    let new = NewKey {
        slot: &slot,
        spec: SPEC,
        mark,
    };
    let public_key = token.generate(&new, &call).unwrap().public_key;
    let key = KeyRef { slot, public_key };
    let signer = token.signer(&key, &Call::unlimited()).unwrap();
    signer.sign(b"message", &call).unwrap();
    Bench {
        yubikey,
        token,
        key,
        signer,
        _alone: alone,
    }
}

impl Bench {
    fn sign(&self) -> Result<(), Error> {
        self.signer.sign(b"message", &Call::unlimited()).map(drop)
    }

    /// Signs, and checks that this took one command.
    fn sign_as_usual(&self) {
        let before = self.yubikey.faults().log().len();
        self.sign().unwrap();
        assert_eq!(self.yubikey.faults().log().len() - before, 1);
        assert_eq!(self.yubikey.card().pin_tries(), 3);
    }
}

/// A node of a process of its own, with an identity in `home`.
fn node(home: &Path, readers: &CountedReaders) -> Node {
    Node::builder(Registry::open(home).unwrap())
        .driver(PivDriver::with_readers(readers.clone()))
        .access(access())
        .build()
}

#[test]
fn a_node_that_is_made_for_one_signature_takes_nine_commands_in_one_transaction() {
    let _alone = lock(&ALONE);
    let yubikey = Pcscd::insert(Card::builder().pin("246802").build());
    let home = tempfile::tempdir().unwrap();
    let readers = CountedReaders::default();
    let (alice, call) = (EngineId::local("alice"), Call::unlimited());
    let request = RequestGenerateIdentity {
        backend: Backend::from(format!("piv:serial={}", yubikey.card().serial())),
        params: IdParams::P256,
        capabilities: Capabilities::Commit,
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let made = node(home.path(), &readers);
    let made = runtime.block_on(made.generate(&alice, request, &call));
    let engine = made.unwrap().commitment_engine.unwrap();
    // A machine that is busy with other things may take longer than a transaction stays.
    for _ in 0..5 {
        let before = (readers.transactions(), readers.single_commands());
        yubikey.faults().clear_log();
        let node = node(home.path(), &readers);
        let signed = node.commit(&alice, &engine, b"message".to_vec(), &call);
        runtime.block_on(signed).unwrap();
        drop(node);
        let sent = yubikey.faults().log().len();
        assert!(sent <= 9, "{sent} commands");
        let begun = (
            readers.transactions() - before.0,
            readers.single_commands() - before.1,
        );
        println!("{sent} commands, {begun:?}");
        if begun == (1, 0) {
            return;
        }
    }
    panic!("it took several transactions");
}

#[test]
fn a_slot_that_was_tried_is_not_called_untried_any_more() {
    let _alone = lock(&ALONE);
    // Of neither is it known who made it.
    let cards = [
        (Firmware::V5_7_1, Nature::YUBIKEY, None),
        (Firmware::CANOKEY, Nature::CANOKEY, Some("84")),
    ];
    for (firmware, nature, missing) in cards {
        let card = Card::builder().firmware(firmware).nature(nature);
        let card = Pcscd::insert(card.pin("246802").build());
        let home = tempfile::tempdir().unwrap();
        let node = node(home.path(), &CountedReaders::default());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let backend = format!("piv:serial={}", card.card().serial());
        let call = Call::unlimited();
        let ids = ["a", "b", "c"].map(EngineId::local);
        for id in &ids {
            let request = RequestGenerateIdentity {
                backend: Backend::from(backend.clone()),
                params: IdParams::P256,
                capabilities: Capabilities::Commit,
            };
            // The third finds out that there is no slot 84.
            let _ = runtime.block_on(node.generate(id, request, &call));
        }
        let request = RequestDeleteIdentity {
            external_identity: ids[0].clone(),
            backend: Backend::from(backend.clone()),
        };
        let _ = runtime.block_on(node.delete(&ids[0], request, &call));
        let look = runtime
            .block_on(node.look(&EngineId::program(), Some(&backend), &Call::unlimited()))
            .unwrap();
        let (_, slots) = &look.tokens[0];
        let said = |name: &str| {
            let slot = slots
                .iter()
                .find(|slot| slot.slot.as_str() == name)
                .unwrap();
            let mut notes = slot.notes.iter().filter(|(note, _)| note == "slot");
            notes.next().map(|(_, said)| said.as_str())
        };
        assert_eq!(said("82"), None);
        assert_eq!(said("95"), Some("not tried"));
        if let Some(missing) = missing {
            assert_eq!(said(missing), Some("the token does not have it"));
        }
    }
}

#[test]
fn a_reset_by_another_program_is_survived() {
    let bench = bench();
    for _ in 0..3 {
        bench.yubikey.reset();
        bench.sign().unwrap();
        bench.sign_as_usual();
    }
}

#[test]
fn a_smartcard_service_that_was_restarted_is_used_again_by_the_next_request() {
    let bench = bench();
    for _ in 0..2 {
        Pcscd::restart();
        bench.yubikey.insert();
        bench.sign().unwrap();
        bench.sign_as_usual();
    }
}

#[test]
fn a_card_that_is_pulled_out_in_the_middle_of_a_command_works_again_when_it_is_back() {
    let bench = bench();
    for fault in [Fault::RemoveBefore, Fault::RemoveAfter] {
        let rule = Rule::new(fault).on(ins::AUTHENTICATE);
        bench.yubikey.faults().add(rule);
        let pulled = bench.sign();
        assert!(
            matches!(pulled, Err(Error::TokenUnavailable { .. })),
            "{pulled:?}"
        );
        assert!(!bench.yubikey.is_inserted());
        bench.yubikey.insert();
        bench.sign().unwrap();
        bench.sign_as_usual();
    }
}

#[test]
fn a_card_that_is_pulled_out_while_it_makes_a_key_keeps_nothing_of_it() {
    let bench = bench();
    let call = Call::unlimited().using(access());
    let slots = || bench.token.slots(&call).unwrap();
    let before = slots();
    for instruction in [ins::PUT_DATA, ins::GENERATE, ins::ATTEST] {
        for fault in [Fault::RemoveBefore, Fault::RemoveAfter] {
            let slot = bench
                .token
                .free_slots(&[SPEC], &[], &call)
                .unwrap()
                .remove(0);
            bench.yubikey.faults().add(Rule::new(fault).on(instruction));
            let left = Unfinished {
                slot,
                mark: unfinished_mark(),
                public_key: None,
            };
            let new = NewKey {
                slot: &left.slot,
                spec: SPEC,
                mark: &left.mark,
            };
            let made = bench.token.generate(&new, &call);
            assert!(matches!(made, Err(Error::TokenUnavailable { .. })));
            bench.yubikey.insert();
            bench.token.discard(&left, &call).unwrap();
            assert_eq!(slots(), before);
        }
    }
    bench.sign().unwrap();
    let deleted = bench.token.delete(&bench.key, &call).unwrap();
    assert_eq!(deleted, Deletion::Destroyed);
}

#[test]
fn a_card_that_another_program_holds_is_waited_for() {
    let bench = bench();
    let name = std::ffi::CString::new(bench.yubikey.reader()).unwrap();
    let context = pcsc::Context::establish(pcsc::Scope::User).unwrap();
    let (mode, any) = (pcsc::ShareMode::Shared, pcsc::Protocols::ANY);
    let mut card = context.connect(&name, mode, any).unwrap();
    std::thread::scope(|scope| {
        let transaction = card.transaction().unwrap();
        let signing = scope.spawn(|| bench.sign());
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert!(!signing.is_finished());
        drop(transaction);
        signing.join().unwrap().unwrap();
    });
    card.disconnect(pcsc::Disposition::LeaveCard)
        .map_err(|(_, error)| error)
        .unwrap();
    bench.sign_as_usual();
}

#[test]
fn what_waits_for_a_card_that_another_program_holds_ends_at_its_deadline() {
    const LONG: std::time::Duration = std::time::Duration::from_secs(60);
    let bench = bench();
    let name = std::ffi::CString::new(bench.yubikey.reader()).unwrap();
    let context = pcsc::Context::establish(pcsc::Scope::User).unwrap();
    let (mode, any) = (pcsc::ShareMode::Shared, pcsc::Protocols::ANY);
    let mut card = context.connect(&name, mode, any).unwrap();
    let backend = format!("piv:serial={}", bench.yubikey.card().serial());
    let transaction = card.transaction().unwrap();
    let (sender, ended) = std::sync::mpsc::channel();
    type Request = Box<dyn FnOnce(&Call) -> Result<(), Error> + Send>;
    let requests: [Request; 3] = {
        let (signer, token) = (Arc::clone(&bench.signer), Arc::clone(&bench.token));
        let other = PivDriver::with_readers(PcscReaders);
        [
            Box::new(move |call| signer.sign(b"message", call).map(drop)),
            Box::new(move |call| token.slots(call).map(drop)),
            Box::new(move |call| other.open(&backend, call).map(drop)),
        ]
    };
    let mut waiting = vec!["sign", "slots", "open"];
    for (what, request) in waiting.clone().into_iter().zip(requests) {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let limit = std::time::Duration::from_millis(300);
            sender.send((what, request(&Call::within(limit).using(access()))))
        });
    }
    while !waiting.is_empty() {
        let Ok((what, done)) = ended.recv_timeout(LONG) else {
            panic!("past their deadlines wait: {waiting:?}");
        };
        assert!(
            matches!(done, Err(Error::DeadlineExceeded)),
            "{what}: {done:?}"
        );
        waiting.retain(|other| *other != what);
    }
    drop(transaction);
    card.disconnect(pcsc::Disposition::LeaveCard)
        .map_err(|(_, error)| error)
        .unwrap();
    let call = Call::within(LONG).using(access());
    bench.signer.sign(b"message", &call).unwrap();
    bench.sign_as_usual();
}

#[test]
fn who_lets_go_of_a_card_that_another_program_holds_does_not_wait_for_that_program() {
    const LONG: std::time::Duration = std::time::Duration::from_secs(20);
    let _alone = lock(&ALONE);
    let yubikey = Pcscd::insert(Card::builder().build());
    let name = std::ffi::CString::new(yubikey.reader()).unwrap();
    let link = PcscReaders.connect(yubikey.reader()).unwrap();
    let context = pcsc::Context::establish(pcsc::Scope::User).unwrap();
    let any = pcsc::Protocols::ANY;
    let mut card = context
        .connect(&name, pcsc::ShareMode::Shared, any)
        .unwrap();
    let transaction = card.transaction().unwrap();
    let (sender, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(link);
        sender.send(())
    });
    let done = ended.recv_timeout(LONG);
    drop(transaction);
    card.disconnect(pcsc::Disposition::LeaveCard)
        .map_err(|(_, error)| error)
        .unwrap();
    done.expect("it waits for the other program");
    // It is let go all the same.
    let begun = std::time::Instant::now();
    let alone = loop {
        match context.connect(&name, pcsc::ShareMode::Exclusive, any) {
            Err(pcsc::Error::SharingViolation) if begun.elapsed() < LONG => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            connected => break connected.unwrap(),
        }
    };
    alone
        .disconnect(pcsc::Disposition::LeaveCard)
        .map_err(|(_, error)| error)
        .unwrap();
}

/// Whoever's PIN opened a token uses it, and nobody else.
struct Private;

impl Policy for Private {
    fn check(&self, who: &EngineId, access: policy::Permission<'_>) -> Result<(), EngineError> {
        match access {
            policy::Permission::UseLogin { .. } => Err(EngineError::NotAllowed {
                sender: who.clone(),
                what: "use somebody else's login",
            }),
            _ => Ok(()),
        }
    }
}

fn request(card: &Inserted) -> RequestGenerateIdentity {
    RequestGenerateIdentity {
        backend: Backend::from(format!("piv:serial={}", card.card().serial())),
        params: IdParams::P256,
        capabilities: Capabilities::Commit,
    }
}

#[test]
fn what_a_request_brings_to_change_a_card_serves_it_alone_and_what_the_node_has_serves_all() {
    let _alone = lock(&ALONE);
    let yubikey = Pcscd::insert(Card::builder().pin("246802").build());
    let home = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let pin_only = || Access::with(FixedPin::new("246802"));
    let node = |access: Access| {
        Node::builder(Registry::open(home.path()).unwrap())
            .driver(PivDriver::with_readers(CountedReaders::default()))
            .access(access)
            .build()
    };
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(EngineId::local);
    let generate = |node: &Node, who: &EngineId, call: &Call| {
        runtime.block_on(node.generate(who, request(&yubikey), call))
    };
    let delete = |node: &Node, who: &EngineId, call: &Call| {
        let request = RequestDeleteIdentity {
            external_identity: who.clone(),
            backend: request(&yubikey).backend,
        };
        runtime.block_on(node.delete(who, request, call))
    };
    let (bare, with_key) = (Call::unlimited(), Call::unlimited().using(access()));

    let without_key = node(pin_only());
    generate(&without_key, &alice, &with_key).unwrap();
    let made = generate(&without_key, &bob, &bare);
    assert!(
        matches!(
            made,
            Err(EngineError::Token(Error::ManagementKeyNeeded { .. }))
        ),
        "{made:?}"
    );
    assert!(delete(&without_key, &alice, &bare).is_err());
    assert!(
        yubikey
            .card()
            .key(claviger_virtual_yubikey::Slot::new(0x82).unwrap())
            .is_some()
    );
    delete(&without_key, &alice, &with_key).unwrap();
    drop(without_key);

    let with_its_own = node(access());
    generate(&with_its_own, &bob, &bare).unwrap();
    let pin_of_its_own = Call::unlimited().using(pin_only());
    generate(&with_its_own, &carol, &pin_of_its_own).unwrap();
    delete(&with_its_own, &bob, &pin_of_its_own).unwrap();
}

#[test]
fn a_pin_of_one_request_is_not_sent_again_for_another_sender_where_the_policy_says_no() {
    let _alone = lock(&ALONE);
    let yubikey = Pcscd::insert(Card::builder().pin("246802").build());
    let home = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let node = Node::builder(Registry::open(home.path()).unwrap())
        .driver(PivDriver::with_readers(CountedReaders::default()))
        .policy(Private)
        .build();
    let [alice, bob] = ["alice", "bob"].map(EngineId::local);
    let with_pin = Call::unlimited().using(access());
    let made = runtime.block_on(node.generate(&alice, request(&yubikey), &with_pin));
    let engine = made.unwrap().commitment_engine.unwrap();
    let sign = |who: &EngineId| {
        let call = Call::unlimited();
        runtime.block_on(node.commit(who, &engine, b"message".to_vec(), &call))
    };
    sign(&alice).unwrap();
    yubikey.reset();
    yubikey.faults().clear_log();
    let signed = sign(&bob);
    assert!(
        matches!(signed, Err(EngineError::NotAllowed { .. })),
        "{signed:?}"
    );
    assert_eq!(yubikey.faults().count(ins::VERIFY), 0);
    sign(&alice).unwrap();
    assert!(yubikey.faults().count(ins::VERIFY) > 0);
}
