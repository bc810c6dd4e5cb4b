//! PKCS#11 tokens whose sessions, handles, objects and files do not stay what they were.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use claviger_engine::message::{RequestDeleteIdentity, RequestGenerateIdentity};
use claviger_engine::{
    Backend, Capabilities, EngineError, EngineId, IdParams, Node, Registry, TokenState,
};
use claviger_pkcs11::{Pkcs11Driver, with_module};
use claviger_tests::{Kryoptic, SoftHsm};
use claviger_token::{Access, Advice, Call, Error, FixedPin, Pin, PinSource, PublicKey, TokenId};
use cryptoki::context::Pkcs11;
use cryptoki::object::{Attribute, ObjectClass};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

/// What is done to a module is felt at all its tokens: one test at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Gives a PIN, and counts how often it is asked.
#[derive(Clone)]
struct Asked {
    pin: FixedPin,
    times: Arc<AtomicUsize>,
}

impl PinSource for Asked {
    fn pin(&self, token: &TokenId, label: &str, call: &Call) -> Result<Pin, Error> {
        self.times.fetch_add(1, Ordering::Relaxed);
        self.pin.pin(token, label, call)
    }
}

/// A node with an identity, which has signed.
struct Bench {
    node: Node,
    who: EngineId,
    engine: EngineId,
    backend: Backend,
    key: PublicKey,
    asked: Asked,
    _home: TempDir,
    _alone: MutexGuard<'static, ()>,
}

async fn bench(backend: &str, pin: &str) -> Bench {
    let alone = ALONE.lock().await;
    let home = tempfile::tempdir().unwrap();
    let asked = Asked {
        pin: FixedPin::new(pin),
        times: Arc::default(),
    };
    let node = Node::builder(Registry::open(home.path()).unwrap())
        .driver(Pkcs11Driver::new())
        .access(Access::with(asked.clone()))
        .build();
    let (who, backend) = (EngineId::local("alice"), Backend::from(backend.to_owned()));
    let request = RequestGenerateIdentity {
        backend: backend.clone(),
        params: IdParams::P256,
        capabilities: Capabilities::Commit,
    };
    let made = node
        .generate(&who, request, &Call::unlimited())
        .await
        .unwrap();
    let mut identities = node.registry().identities().unwrap();
    let bench = Bench {
        engine: made.commitment_engine.unwrap(),
        key: identities.remove(0).1.keys.remove(0).public_key,
        node,
        who,
        backend,
        asked,
        _home: home,
        _alone: alone,
    };
    bench.sign().await.unwrap();
    bench
}

impl Bench {
    async fn sign(&self) -> Result<(), EngineError> {
        let (data, call) = (b"message".to_vec(), Call::unlimited());
        let signature = self
            .node
            .commit(&self.who, &self.engine, data, &call)
            .await?;
        assert!(self.key.verify(b"message", &signature).is_ok());
        Ok(())
    }

    /// How often a PIN was asked for.
    fn pins(&self) -> usize {
        self.asked.times.load(Ordering::Relaxed)
    }
}

/// A session with the token, in this process, where the driver has logged in.
fn in_session<T>(token: &SoftHsm, work: impl FnOnce(&Session) -> T) -> T {
    with_module(SoftHsm::module().as_ref(), |module| {
        let slots = module.get_slots_with_initialized_token().unwrap();
        let is_it = |slot: &cryptoki::slot::Slot| {
            module.get_token_info(*slot).unwrap().label() == token.label()
        };
        let slot = slots.into_iter().find(is_it).unwrap();
        work(&module.open_rw_session(slot).unwrap())
    })
    .unwrap()
}

/// What ends every session of the module, and all that it knows.
fn finalize() {
    let end = |module: &Pkcs11| module.clone().finalize().unwrap();
    with_module(SoftHsm::module().as_ref(), end).unwrap();
}

fn utility(token: &SoftHsm, program: &str, words: &[&str]) {
    let (variable, file) = token.environment();
    let status = Command::new(program)
        .args(words)
        .env(variable, file)
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
}

#[tokio::test]
async fn a_session_that_was_lost_is_replaced_with_the_next_request() {
    let token = SoftHsm::new();
    let bench = bench(&token.backend(), SoftHsm::PIN).await;
    let log_out = || in_session(&token, |session| session.logout().unwrap());
    let log_in_as_another = || {
        in_session(&token, |session| {
            session.logout().unwrap();
            let pin = AuthPin::new(SoftHsm::SO_PIN.into());
            session.login(UserType::So, Some(&pin)).unwrap();
            session.logout().unwrap();
        });
    };
    let disturbances: [&dyn Fn(); 3] = [&log_out, &log_in_as_another, &finalize];
    for (what, disturb) in disturbances.into_iter().enumerate() {
        for round in 0..3 {
            disturb();
            let signed = bench.sign().await;
            assert!(signed.is_ok(), "{what}, {round}: {signed:?}");
        }
    }
    // The one that was accepted is kept.
    assert_eq!(bench.pins(), 1);
}

#[tokio::test]
async fn a_handle_that_went_stale_is_found_again_by_its_public_key() {
    let token = SoftHsm::new();
    let bench = bench(&token.backend(), SoftHsm::PIN).await;
    for _ in 0..3 {
        in_session(&token, |session| {
            for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
                let found = session.find_objects(&[Attribute::Class(class)]).unwrap();
                assert_eq!(found.len(), 1);
                let keep = [Attribute::Token(true)];
                session.copy_object(found[0], &keep).unwrap();
                session.destroy_object(found[0]).unwrap();
            }
        });
        bench.sign().await.unwrap();
    }
}

#[tokio::test]
async fn a_token_that_was_initialised_anew_has_lost_its_keys_and_is_told_so() {
    let token = SoftHsm::new();
    let bench = bench(&token.backend(), SoftHsm::PIN).await;
    // By another process. It is the same token: it keeps its serial.
    utility(
        &token,
        "softhsm2-util",
        &init_token(&["--token", token.label()], &token),
    );
    for _ in 0..2 {
        for _ in 0..2 {
            match bench.sign().await {
                Err(EngineError::Token(Error::KeyNotFound { .. })) => {}
                other => panic!("{other:?}"),
            }
        }
        finalize();
    }
    assert_eq!(bench.pins(), 1);
    assert_eq!(bench.node.registry().identities().unwrap().len(), 1);
}

#[tokio::test]
async fn another_token_with_the_same_label_is_never_used() {
    let token = SoftHsm::new();
    let bench = bench(&token.backend(), SoftHsm::PIN).await;
    token.remove();
    utility(&token, "softhsm2-util", &init_token(&["--free"], &token));
    finalize();
    for _ in 0..3 {
        match bench.sign().await {
            Err(EngineError::Token(error)) => {
                assert_eq!(error.advice(), Advice::InsertToken, "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(bench.pins(), 1);
    token.insert();
    bench.sign().await.unwrap();
}

/// Words for `softhsm2-util`: makes a token with the label and the PINs of `token` `from`
/// something.
fn init_token<'a>(from: &[&'a str], token: &'a SoftHsm) -> Vec<&'a str> {
    let words = ["--init-token", "--label", token.label()];
    let pins = ["--so-pin", SoftHsm::SO_PIN, "--pin", SoftHsm::PIN];
    [from, &words, &pins].concat()
}

#[tokio::test]
async fn a_key_that_has_gone_is_said_to_be_gone_and_its_identity_is_kept() {
    let token = SoftHsm::new();
    let bench = bench(&token.backend(), SoftHsm::PIN).await;
    let identities = bench.node.registry().identities().unwrap();
    let id = identities[0].1.keys[0].slot.to_string();
    // By another process.
    for class in ["privkey", "pubkey"] {
        let module = [
            "--module",
            SoftHsm::module(),
            "--token-label",
            token.label(),
        ];
        let login = ["--login", "--pin", SoftHsm::PIN];
        let delete = ["--delete-object", "--type", class, "--id", &id];
        utility(
            &token,
            "pkcs11-tool",
            &[&module[..], &login, &delete].concat(),
        );
    }
    for _ in 0..3 {
        match bench.sign().await {
            Err(EngineError::Token(Error::KeyNotFound { key, .. })) => {
                assert_eq!(key, bench.key.fingerprint().to_string());
            }
            other => panic!("{other:?}"),
        }
    }
    // The token works.
    let states = bench.node.token_states();
    assert!(states.iter().all(|(_, state)| *state == TokenState::Ready));
    assert_eq!(bench.node.registry().identities().unwrap(), identities);
    let request = RequestDeleteIdentity {
        external_identity: bench.who.clone(),
        backend: bench.backend.clone(),
    };
    let call = Call::unlimited();
    bench.node.delete(&bench.who, request, &call).await.unwrap();
}

#[tokio::test]
async fn a_module_that_fails_for_ever_is_not_asked_for_ever_and_gets_no_pins() {
    if let Some(why) = Kryoptic::skipped() {
        eprintln!("SKIPPED a module that fails for ever: {why}");
        return;
    }
    let token = Kryoptic::new();
    let bench = bench(&token.backend(), Kryoptic::PIN).await;
    let asked = bench.pins();
    // It answers CKR_GENERAL_ERROR and CKR_DEVICE_MEMORY from now on.
    token.remove();
    let begun = Instant::now();
    for _ in 0..50 {
        match bench.sign().await {
            Err(EngineError::Token(error)) => {
                assert_eq!(error.advice(), Advice::InsertToken, "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(bench.pins(), asked);
    token.insert();
    bench.sign().await.unwrap();
}
