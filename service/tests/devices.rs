//! Devices that programs attach: what they may, and what becomes of those that lie, flood, stall
//! and vanish.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod common;
#[path = "../../client/examples/device.rs"]
#[allow(dead_code, unreachable_pub, reason = "it is an example of its own")]
mod example;
#[path = "devices/stage.rs"]
mod stage;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use claviger_client::asynchronous::device::Attachment as AsyncAttachment;
use claviger_client::device::{
    self, DeviceKey, DeviceKeys, Happening, Keys, Reply, Request, attachment_text,
};
use claviger_client::wire::{self, Frame, daemon_request::Request as ToDaemon, frame::Content};
use claviger_engine::grants::{NewGrant, Subject};
use claviger_engine::message::{RequestDeleteIdentity, RequestGenerateIdentity};
use claviger_engine::{Backend, Capabilities, EngineId, IdParams};
use claviger_token::{
    Algorithm, Call, Driver, Error, Event, KeyRef, KeySpec, NewKey, SlotId, Token, Unwrap,
    unfinished_mark,
};
use rustix::process::getuid;

use common::{LONG, Peer, ask_daemon, error_code, sign, signature};
use example::MemoryDevice;
use stage::Stage;

fn call() -> Call {
    Call::within(LONG)
}

fn generate(backend: &str) -> RequestGenerateIdentity {
    RequestGenerateIdentity {
        backend: Backend::from(backend),
        params: IdParams::P256,
        capabilities: Capabilities::CommitAndDecrypt,
    }
}

// --- attaching ---------------------------------------------------------------------

#[test]
fn a_device_serves_identities_like_any_other_token_and_works_again_when_it_is_back() {
    let stage = Stage::new();
    let program = stage.attach(MemoryDevice::new());
    let backend = program.backend();
    let (alice, node) = (EngineId::local("carol"), stage.daemon.service.node());
    stage
        .run(node.generate(&alice, generate(&backend), &call()))
        .unwrap();
    let mut peer = stage.daemon.peer();
    peer.send(&sign(1, "carol", b"first"));
    stage.daemon.check(&peer.next(), "carol", b"first");

    let device = program.stop(&stage);
    peer.send(&sign(2, "carol", b"second"));
    let absent = error_code(&peer.next());
    assert!(
        ["no-token", "token-unavailable"].contains(&&*absent),
        "{absent}"
    );
    // A request with a deadline waits for it.
    let mut waits = sign(3, "carol", b"third");
    waits.deadline_ms = LONG.as_millis() as u32;
    peer.send(&waits);
    stage.daemon.settles_at(1, 1);
    let program = stage.attach(device);
    stage.daemon.check(&peer.next(), "carol", b"third");

    let delete = RequestDeleteIdentity {
        external_identity: alice.clone(),
        backend: Backend::from(backend),
    };
    stage.run(node.delete(&alice, delete, &call())).unwrap();
    assert_eq!(program.stop(&stage).list(), []);
}

/// What answers a challenge.
type Prove<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;

#[test]
fn who_does_not_prove_the_identity_key_attaches_nothing() {
    let stage = Stage::new();
    let (own, other) = (MemoryDevice::new(), MemoryDevice::new());
    let attach = |prove: Prove<'_>| {
        let mut peer = stage.daemon.peer();
        peer.send(&stage::attaching(1, own.describe()));
        let challenge = stage::challenge(&peer.next());
        peer.send(&stage::proof(1, prove(&challenge)));
        let answer = peer.next();
        (peer, answer)
    };
    let home = stage.home_id();
    let seen = std::cell::RefCell::new(Vec::new());
    // One that does, and is listened to.
    let (first, answer) = attach(&|challenge| {
        let proof = own.prove(&attachment_text(&home, challenge));
        seen.replace(proof.clone());
        proof
    });
    assert_eq!(answer.kind(), "daemon-reply", "{answer:?}");
    drop(first);
    stage.has(0);
    let text = |challenge: &[u8]| attachment_text(&home, challenge);
    let wrong: [Prove<'_>; 6] = [
        // Replayed.
        &|_| seen.borrow().clone(),
        &|_| Vec::new(),
        &|_| vec![0; 64],
        &|challenge| other.prove(&text(challenge)),
        &|challenge| own.prove(challenge),
        &|challenge| own.prove(&attachment_text("another home", challenge)),
    ];
    for prove in wrong {
        let (mut peer, answer) = attach(prove);
        assert_eq!(error_code(&answer), "device-unproven");
        assert_eq!(stage.devices.count(), 0);
        // The connection goes on.
        peer.send(&sign(2, "alice", b"message"));
        stage.daemon.check(&peer.next(), "alice", b"message");
    }
    // A proof of nothing is dropped.
    let mut peer = stage.daemon.peer();
    peer.send(&stage::proof(7, vec![1; 64]));
    peer.send(&sign(8, "alice", b"message"));
    stage.daemon.check(&peer.next(), "alice", b"message");
}

#[test]
fn no_key_of_an_identity_signs_what_attaches_a_device() {
    let stage = Stage::new();
    let mut peer = stage.daemon.peer();
    let text = attachment_text(&stage.home_id(), &[7; 32]);
    peer.send(&sign(1, "alice", &text));
    assert_eq!(error_code(&peer.next()), "reserved-message");
}

#[test]
fn a_device_is_attached_once_and_within_its_bounds() {
    let stage = Stage::new();
    let device = MemoryDevice::new();
    let mut first = stage.daemon.peer();
    let number = stage.attach_by_hand(&mut first, 1, &device);
    for _ in 0..2 {
        let mut second = stage.daemon.peer();
        let answer = stage.try_to_attach(&mut second, 1, &device, device.describe());
        assert_eq!(error_code(&answer), "device-attached");
    }
    let detach = |device| ask_daemon(90, ToDaemon::DetachDevice(wire::DetachDevice { device }));
    first.send(&detach(number + 1));
    assert_eq!(error_code(&first.next()), "bad-request");
    first.send(&detach(number));
    assert_eq!(first.next().kind(), "daemon-reply");
    assert_eq!(stage.devices.count(), 0);
    stage.attach_by_hand(&mut first, 2, &device);
    // So many on one connection, and no more.
    for id in 3..10 {
        stage.attach_by_hand(&mut first, id, &MemoryDevice::new());
    }
    let ninth = MemoryDevice::new();
    let answer = stage.try_to_attach(&mut first, 10, &ninth, ninth.describe());
    assert_eq!(error_code(&answer), "busy");
    assert_eq!(stage.devices.count(), 8);
    // What it says of itself has bounds.
    let wrong: [fn(&mut device::Device); 5] = [
        |it| it.kind = "memory".into(),
        |it| it.label = "a\nb".into(),
        |it| it.uses.clear(),
        |it| it.public_key.truncate(20),
        |it| it.most_keys = u32::MAX,
    ];
    for change in wrong {
        let mut description = ninth.describe();
        change(&mut description);
        let mut peer = stage.daemon.peer();
        let answer = stage.try_to_attach(&mut peer, 1, &ninth, description);
        assert_eq!(error_code(&answer), "bad-device");
    }
    drop(first);
    stage.has(0);
}

#[test]
fn on_a_daemon_of_the_system_a_device_needs_a_grant() {
    let stage = Stage::of_the_system();
    let device = MemoryDevice::new();
    let mut peer = stage.daemon.peer();
    peer.send(&stage::attaching(1, device.describe()));
    assert_eq!(error_code(&peer.next()), "not-allowed");
    assert_eq!(stage.devices.count(), 0);
    let own = Subject::Uid(getuid().as_raw());
    let grant = NewGrant::parse(own, "api", "", "attach-device", "").unwrap();
    stage
        .daemon
        .service
        .node()
        .registry()
        .add_grant(&grant)
        .unwrap();
    stage.attach_by_hand(&mut peer, 2, &device);
    assert_eq!(stage.devices.count(), 1);
}

// --- devices that lie --------------------------------------------------------------

/// Does something for which a device is asked, and gives it up then. What the device was asked for.
fn given_up_when_asked(
    peer: &mut Peer,
    work: impl FnOnce(&Call) -> Result<(), Error> + Send,
) -> Frame {
    let is_given_up = Arc::<AtomicBool>::default();
    let call = call().cancelled_by(Arc::clone(&is_given_up));
    thread::scope(|scope| {
        let working = scope.spawn(|| work(&call));
        let asked = peer.next();
        assert_eq!(asked.kind(), "device-request");
        is_given_up.store(true, Ordering::Relaxed);
        assert!(matches!(working.join().unwrap(), Err(Error::Cancelled)));
        asked
    })
}

/// A device that the test plays, and the driver's view of it.
fn token_of(stage: &Stage, device: &MemoryDevice, peer: &mut Peer) -> Arc<dyn Token> {
    stage.attach_by_hand(peer, 1, device);
    stage.driver.open("attached:", &call()).unwrap()
}

#[test]
fn what_a_device_lists_out_of_its_bounds_is_malformed_and_harms_nobody() {
    let stage = Stage::new();
    let device = MemoryDevice::new();
    let mut peer = stage.daemon.peer();
    let token = token_of(&stage, &device, &mut peer);
    let key = |slot: String| DeviceKey {
        slot,
        spec: Some(device::spec("p256", device::KeyUse::Sign)),
        public_key: device.describe().public_key,
        label: String::new(),
    };
    let none = Vec::new;
    let lists: [(Vec<DeviceKey>, &str); 6] = [
        (none(), "done"),
        (
            (0..1025).map(|slot| key(slot.to_string())).collect(),
            "malformed-reply",
        ),
        (vec![key("a".into()), key("a".into())], "malformed-reply"),
        (vec![key("a#b".into())], "malformed-reply"),
        (
            vec![DeviceKey {
                public_key: vec![4; 91],
                ..key("a".into())
            }],
            "malformed-reply",
        ),
        (
            vec![DeviceKey {
                spec: None,
                ..key("a".into())
            }],
            "malformed-reply",
        ),
    ];
    for (keys, expected) in lists {
        let listed = thread::scope(|scope| {
            let listed = scope.spawn(|| token.slots(&call()));
            let asked = peer.next();
            let reply = Reply::Keys(DeviceKeys { keys });
            peer.send(&stage::reply(asked.id, reply));
            listed.join().unwrap()
        });
        assert_eq!(
            listed.map_or_else(|error| error.code(), |_| "done"),
            expected
        );
    }
    // The answer to another question, and none at all.
    for reply in [Reply::Done(true), Reply::Signature(vec![1])] {
        let listed = thread::scope(|scope| {
            let listed = scope.spawn(|| token.slots(&call()));
            let asked = peer.next();
            peer.send(&stage::reply(asked.id, reply));
            listed.join().unwrap()
        });
        assert_eq!(listed.unwrap_err().code(), "malformed-reply");
    }
    stage.daemon.serves();
}

/// What is done with a token.
type Work<'a> = &'a (dyn Fn() -> Result<(), Error> + Sync);

#[test]
fn a_signature_that_does_not_verify_and_a_secret_of_another_length_are_not_handed_on() {
    let stage = Stage::new();
    let mut device = MemoryDevice::new();
    let mut peer = stage.daemon.peer();
    let token = token_of(&stage, &device, &mut peer);
    // What the device answers: the truth, or what is given.
    let mut answered = |work: Work<'_>, lie: Option<Reply>| {
        let mut lie = lie;
        thread::scope(|scope| {
            let working = scope.spawn(work);
            while !working.is_finished() {
                let Some(asked) = peer.any_within(Duration::from_millis(20)) else {
                    continue;
                };
                let request = stage::request(&asked);
                let is_use = matches!(request, Request::Sign(_) | Request::Agree(_));
                let reply = match lie.take_if(|_| is_use) {
                    Some(lie) => lie,
                    None => device::answer(&mut device, request),
                };
                peer.send(&stage::reply(asked.id, reply));
            }
            working.join().unwrap()
        })
    };
    let made = std::sync::Mutex::new(Vec::new());
    for spec in [
        KeySpec::sign(Algorithm::P256),
        KeySpec::decrypt(Algorithm::P256),
    ] {
        let make = || {
            let slot = token.free_slots(&[spec], &[], &call())?.remove(0);
            let mark = unfinished_mark();
            let new = NewKey {
                slot: &slot,
                spec,
                mark: &mark,
            };
            let public_key = token.generate(&new, &call())?.public_key;
            made.lock().unwrap().push(KeyRef { slot, public_key });
            Ok(())
        };
        answered(&make, None).unwrap();
    }
    let made = made.into_inner().unwrap();
    let signs = || {
        let signer = token.signer(&made[0], &call())?;
        let signed = signer.sign(b"message", &call())?;
        signer.public_key().verify(b"message", &signed).unwrap();
        Ok(())
    };
    let agrees = || {
        let decryptor = token.decryptor(&made[1], &call())?;
        let peer = &made[1].public_key;
        decryptor.unwrap(Unwrap::Agree { peer }, &call()).map(drop)
    };
    answered(&signs, None).unwrap();
    answered(&agrees, None).unwrap();
    let secret = |secret| Reply::Secret(device::DeviceSecret { secret });
    let lies: [(Work<'_>, Reply, &str); 8] = [
        (&signs, Reply::Signature(vec![1; 64]), "malformed-reply"),
        (&signs, Reply::Signature(Vec::new()), "malformed-reply"),
        (&signs, secret(vec![1; 32]), "malformed-reply"),
        (
            &signs,
            Reply::Failure(device::failure("rejected", "no")),
            "rejected",
        ),
        (&agrees, secret(vec![1; 31]), "malformed-reply"),
        (&agrees, secret(vec![1; 33]), "malformed-reply"),
        (&agrees, secret(vec![0; 32]), "decryption-failed"),
        (
            &agrees,
            Reply::Failure(device::failure("x\u{1b}[2J", "\u{7}")),
            "device",
        ),
    ];
    for (work, lie, expected) in lies {
        let error = answered(work, Some(lie)).unwrap_err();
        assert_eq!(error.code(), expected, "{error}");
        assert!(
            !error.to_string().chars().any(char::is_control),
            "{error:?}"
        );
    }
    answered(&signs, None).unwrap();
}

#[test]
fn an_answer_to_nothing_ends_the_connection_of_its_device_and_a_late_one_is_dropped() {
    let stage = Stage::new();
    let device = MemoryDevice::new();
    for frame in [
        stage::reply(0, Reply::Done(true)),
        stage::reply(2, Reply::Done(true)),
        stage::event(u64::MAX, Happening::TouchNeeded),
    ] {
        let mut peer = stage.daemon.peer();
        let token = token_of(&stage, &device, &mut peer);
        // It was asked for one thing, and nobody waits for that any more.
        let asked = given_up_when_asked(&mut peer, |call| token.slots(call).map(drop));
        assert_eq!(asked.id, 1);
        assert_eq!(peer.next().kind(), "device-cancel");
        peer.send(&stage::reply(asked.id, Reply::Done(true)));
        peer.send(&stage::event(asked.id, Happening::TouchNeeded));
        peer.send(&sign(9, "alice", b"message"));
        stage.daemon.check(&peer.next(), "alice", b"message");
        peer.send(&frame);
        peer.ends_with("bad-request");
        stage.has(0);
    }
    // A connection without devices is asked for nothing.
    let mut peer = stage.daemon.peer();
    peer.send(&stage::reply(1, Reply::Done(true)));
    peer.ends_with("bad-request");
}

// --- devices that stall and vanish -------------------------------------------------

#[test]
fn a_device_that_does_not_answer_ends_at_the_deadline_of_its_request_and_harms_nobody() {
    let stage = Stage::new();
    let (silent, answers) = (MemoryDevice::new(), MemoryDevice::new());
    let mut peer = stage.daemon.peer();
    let token = token_of(&stage, &silent, &mut peer);
    let program = stage.attach(answers);
    let soon = || Call::within(Duration::from_millis(100));
    for _ in 0..3 {
        assert!(matches!(token.slots(&soon()), Err(Error::DeadlineExceeded)));
    }
    // Its keys are not listed.
    let (driver, backend) = (&stage.driver, program.backend());
    let look = driver.look("attached:", claviger_token::Detail::Slots, &soon());
    let listed = look.unwrap().tokens;
    assert_eq!(listed.len(), 2);
    let its = listed.iter().find(|found| found.info.backend != backend);
    assert!(its.unwrap().slots.is_err());
    // Those of the other one are, while somebody waits for it.
    let is_given_up = Arc::<AtomicBool>::default();
    let waits = call().cancelled_by(Arc::clone(&is_given_up));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| token.slots(&waits));
        let look = driver.look(&backend, claviger_token::Detail::Slots, &call());
        assert!(look.unwrap().tokens.pop().unwrap().slots.is_ok());
        stage.daemon.serves();
        is_given_up.store(true, Ordering::Relaxed);
        assert!(matches!(waiting.join().unwrap(), Err(Error::Cancelled)));
    });
    // A request that is given up ends as well.
    let given_up = call().cancelled_by(Arc::new(true.into()));
    assert!(matches!(token.slots(&given_up), Err(Error::Cancelled)));
    stage.daemon.serves();
    program.stop(&stage);
}

#[test]
fn a_device_that_does_not_say_what_became_of_a_change_is_detached() {
    let stage = Stage::new();
    let device = MemoryDevice::new();
    let mut peer = stage.daemon.peer();
    let token = token_of(&stage, &device, &mut peer);
    let spec = KeySpec::sign(Algorithm::P256);
    let slot = SlotId::new("5d41402abc4b2a76b9719d911017c592");
    let new = NewKey {
        slot: &slot,
        spec,
        mark: "mark",
    };
    given_up_when_asked(&mut peer, |call| token.generate(&new, call).map(drop));
    stage.has(0);
    // Whether it is told before it is cut off does not matter.
    let told = loop {
        match peer.next_or_end() {
            Some(frame) if frame.kind() == "device-cancel" => {}
            other => break other,
        }
    };
    assert_eq!(error_code(&told.unwrap()), "caller-too-slow");
    assert!(matches!(
        token.slots(&call()),
        Err(Error::TokenUnavailable { .. })
    ));
}

#[test]
fn a_device_that_vanishes_at_any_step_is_absent_and_leaves_nothing_behind() {
    let stage = Stage::new();
    let device = MemoryDevice::new();
    // While it is being attached.
    let mut peer = stage.daemon.peer();
    peer.send(&stage::attaching(1, device.describe()));
    drop(peer);
    let mut peer = stage.daemon.peer();
    peer.send(&stage::attaching(1, device.describe()));
    stage::challenge(&peer.next());
    drop(peer);
    stage.daemon.settles_at(0, 0);
    // Idle, and while it is asked.
    let mut peer = stage.daemon.peer();
    let token = token_of(&stage, &device, &mut peer);
    drop(peer);
    stage.has(0);
    assert!(matches!(
        token.slots(&call()),
        Err(Error::TokenUnavailable { .. })
    ));
    for _ in 0..3 {
        let mut peer = stage.daemon.peer();
        stage.attach_by_hand(&mut peer, 1, &device);
        let listed = thread::scope(|scope| {
            let listed = scope.spawn(|| token.slots(&call()));
            assert_eq!(peer.next().kind(), "device-request");
            drop(peer);
            listed.join().unwrap()
        });
        assert!(
            matches!(listed, Err(Error::TokenUnavailable { .. })),
            "{listed:?}"
        );
        stage.has(0);
    }
    stage.daemon.settles_at(0, 0);
    stage.daemon.serves();
}

/// Makes the first key, and never says so.
struct Dies {
    inner: MemoryDevice,
    close: Box<dyn Fn() + Send>,
}

#[test]
fn a_key_that_a_device_made_and_did_not_tell_of_is_destroyed_when_it_is_back() {
    let stage = Stage::new();
    let mut dies = Dies {
        inner: MemoryDevice::new(),
        close: Box::new(|| {}),
    };
    let mut attachment = stage.open(&dies.inner);
    dies.close = Box::new(attachment.closer());
    let backend = format!("attached:serial={}", attachment.serial());
    let serving = thread::spawn(move || {
        while let Some(asked) = attachment.next().unwrap() {
            let reply = device::answer(&mut dies.inner, asked.request());
            if let Reply::Generated(_) = reply {
                (dies.close)();
            }
            // The daemon may be gone.
            let _ = asked.reply(reply);
        }
        dies.inner
    });
    let (bob, node) = (EngineId::local("bob"), stage.daemon.service.node());
    let made = stage.run(node.generate(&bob, generate(&backend), &call()));
    assert_eq!(made.unwrap_err().code(), "token-unavailable");
    let mut device = serving.join().unwrap();
    stage.has(0);
    assert_eq!(device.list().len(), 1);
    assert_eq!(node.registry().identity(&bob).unwrap(), None);

    let program = stage.attach(device);
    let left = stage.run(node.resolve_intents(&call())).unwrap();
    assert!(left.is_empty(), "{left:?}");
    let mut device = program.stop(&stage);
    assert_eq!(device.list(), []);
    let program = stage.attach(device);
    stage
        .run(node.generate(&bob, generate(&backend), &call()))
        .unwrap();
    assert_eq!(program.stop(&stage).list().len(), 2);
}

#[test]
fn a_daemon_that_drains_answers_what_needs_a_device_first() {
    let stage = Stage::new();
    let mut device = MemoryDevice::new();
    let program = stage.attach(device);
    let (carol, node) = (EngineId::local("carol"), stage.daemon.service.node());
    stage
        .run(node.generate(&carol, generate(&program.backend()), &call()))
        .unwrap();
    device = program.stop(&stage);
    let mut brings = stage.daemon.peer();
    stage.attach_by_hand(&mut brings, 1, &device);
    let mut wants = stage.daemon.peer();
    wants.send(&sign(1, "carol", b"message"));
    let first = brings.next();
    let draining = stage.daemon.drain(LONG);
    // Others are told.
    let mut idle_ends = 0;
    let mut asked = Some(first);
    while let Some(frame) = asked {
        if frame.kind() != "device-request" {
            assert_eq!(error_code(&frame), "draining");
            idle_ends += 1;
            break;
        }
        let reply = device::answer(&mut device, stage::request(&frame));
        brings.send(&stage::reply(frame.id, reply));
        asked = brings.next_or_end();
    }
    assert_eq!(idle_ends, 1);
    stage.daemon.check(&wants.next(), "carol", b"message");
    assert!(draining.join().unwrap());
}

// --- persons -----------------------------------------------------------------------

#[test]
fn events_are_told_to_who_waits_and_a_flood_of_them_is_not() {
    let stage = Stage::new();
    let device = MemoryDevice::new();
    let mut peer = stage.daemon.peer();
    let token = token_of(&stage, &device, &mut peer);
    let heard = Arc::new(std::sync::Mutex::new(Vec::new()));
    let its = Arc::clone(&heard);
    let call = call().watched_by(Arc::new(move |event: &Event| {
        its.lock().unwrap().push(event.clone());
    }));
    thread::scope(|scope| {
        let listed = scope.spawn(|| token.slots(&call));
        let asked = peer.next();
        for _ in 0..5_000 {
            peer.send(&stage::event(asked.id, Happening::ApprovalNeeded));
        }
        peer.send(&stage::reply(asked.id, Reply::Keys(DeviceKeys::default())));
        assert_eq!(listed.join().unwrap().unwrap(), []);
    });
    let heard = heard.lock().unwrap();
    let token = token.info().id.clone();
    assert!((2..=65).contains(&heard.len()), "{}", heard.len());
    assert_eq!(
        heard[0],
        Event::ApprovalNeeded {
            token: token.clone()
        }
    );
    assert_eq!(heard.last(), Some(&Event::PersonDone { token }));
    stage.daemon.serves();
}

#[test]
fn a_caller_hears_that_its_request_waits_for_a_person_who_may_decline() {
    let stage = Stage::new();
    let program = stage.attach(MemoryDevice::new());
    let (carol, node) = (EngineId::local("carol"), stage.daemon.service.node());
    stage
        .run(node.generate(&carol, generate(&program.backend()), &call()))
        .unwrap();
    let mut device = program.stop(&stage);
    let mut attachment = stage.open(&device);
    let close = attachment.closer();
    // Asks a person for each signature, who declines every other one.
    let serving = thread::spawn(move || {
        let mut approves = false;
        while let Some(asked) = attachment.next().unwrap() {
            let reply = match asked.request() {
                Request::Sign(_) => {
                    asked.event(Happening::ApprovalNeeded).unwrap();
                    asked.event(Happening::PersonDone).unwrap();
                    approves = !approves;
                    match approves {
                        true => device::answer(&mut device, asked.request()),
                        false => Reply::Failure(device::failure("rejected", "they declined")),
                    }
                }
                other => device::answer(&mut device, other),
            };
            asked.reply(reply).unwrap();
        }
    });
    let mut peer = stage.daemon.peer();
    for (id, approved) in [(1, true), (2, false), (3, true)] {
        peer.send(&sign(id, "carol", b"message"));
        let mut kinds = Vec::new();
        let answer = loop {
            let frame = peer.any_within(LONG).unwrap();
            match &frame.content {
                Some(Content::Event(event)) => kinds.push(event.kind()),
                _ => break frame,
            }
        };
        use wire::event::Kind;
        assert_eq!(kinds, [Kind::ApprovalNeeded, Kind::PersonDone], "{id}");
        match approved {
            true => drop(signature(&answer)),
            false => assert_eq!(error_code(&answer), "rejected"),
        }
    }
    close();
    serving.join().unwrap();
}

// --- the async face ----------------------------------------------------------------

#[test]
fn a_program_that_runs_tokio_serves_a_device_and_answers_in_any_order() {
    let stage = Stage::new();
    let mut device = MemoryDevice::new();
    let options = stage.options();
    let opened = AsyncAttachment::open(&options, device.describe(), async |text: Vec<u8>| {
        device.prove(&text)
    });
    let mut attachment = stage.run(opened).unwrap();
    let token = stage.driver.open("attached:", &call()).unwrap();
    let (give_up, is_asked) = std::sync::mpsc::channel();
    let program = stage.spawn(async move {
        // Two requests, the second one answered first.
        let first = attachment.next().await.unwrap().unwrap();
        let second = attachment.next().await.unwrap().unwrap();
        assert!(!first.is_cancelled() && first.deadline().is_some());
        for asked in [second, first] {
            let reply = device::answer(&mut device, asked.request());
            asked.reply(reply).await.unwrap();
        }
        // One that is dropped fails.
        drop(attachment.next().await.unwrap().unwrap());
        // One that nobody waits for any more.
        let given_up = attachment.next().await.unwrap().unwrap();
        give_up.send(()).unwrap();
        let waits = tokio::spawn(async move {
            given_up.cancelled().await;
            // The daemon may have ended by now.
            let _ = given_up.reply(Reply::Done(false)).await;
        });
        attachment.serve(&mut device).await.unwrap();
        waits.await.unwrap();
    });
    thread::scope(|scope| {
        let lists = [(); 2].map(|()| scope.spawn(|| token.slots(&call())));
        for list in lists {
            assert_eq!(list.join().unwrap().unwrap(), []);
        }
    });
    assert_eq!(token.slots(&call()).unwrap_err().code(), "device");
    let is_given_up = Arc::<AtomicBool>::default();
    let waits = call().cancelled_by(Arc::clone(&is_given_up));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| token.slots(&waits));
        is_asked.recv_timeout(LONG).unwrap();
        is_given_up.store(true, Ordering::Relaxed);
        assert!(matches!(waiting.join().unwrap(), Err(Error::Cancelled)));
    });
    assert_eq!(token.slots(&call()).unwrap(), []);
    assert!(stage.daemon.drain(LONG).join().unwrap());
    stage.run(program).unwrap();
}
