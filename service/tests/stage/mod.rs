//! A SoftHSM2 token with the key of `alice`, a keeper of PINs by a clock of the test's own, and
//! callers.
#![allow(unreachable_pub, dead_code, reason = "for the tests beside it")]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use claviger_altered_module::AlteredModule;
use claviger_engine::message::RequestGenerateIdentity;
use claviger_engine::policy::{Permission, Subject};
use claviger_engine::{
    Backend, Capabilities, EngineError, EngineId, IdParams, Node, Policy, Registry,
};
use claviger_pkcs11::Pkcs11Driver;
use claviger_service::pins::{Clock, Keeper, PinSettings};
use claviger_service::{AskPin, Authority, Caller, SecretBytes, SecretKind};
use claviger_tests::SoftHsm;
use claviger_token::{Call, Driver, TokenId};
use tempfile::TempDir;

/// The users of these tests.
pub const OPERATOR: u32 = 1;
pub const OTHER: u32 = 2;
/// May use the daemon's logins.
pub const GRANTED: u32 = 3;

/// Nothing waits longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A person who types PINs, one after the other.
pub struct Person {
    types: Mutex<VecDeque<String>>,
    asked: AtomicUsize,
}

impl Person {
    pub fn types(pins: &[&str]) -> Arc<Self> {
        Arc::new(Person {
            types: Mutex::new(pins.iter().map(|pin| (*pin).to_owned()).collect()),
            asked: AtomicUsize::new(0),
        })
    }

    pub fn absent() -> Arc<Self> {
        Person::types(&[])
    }

    /// How often they were asked for a PIN.
    pub fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }
}

impl AskPin for Person {
    fn ask(
        &self,
        kind: SecretKind,
        _: &TokenId,
        _: &str,
        _: Option<u32>,
        _: &Call,
    ) -> Option<SecretBytes> {
        assert_eq!(kind, SecretKind::Pin);
        self.asked.fetch_add(1, SeqCst);
        let typed = self.types.lock().unwrap().pop_front();
        typed.map(|pin| SecretBytes::new(pin.into_bytes()))
    }
}

/// Goes on when the test says so.
#[derive(Default)]
pub struct Hands(Mutex<(Duration, Duration)>);

impl Hands {
    pub fn goes_on(&self, time: Duration) {
        let mut hands = self.0.lock().unwrap();
        hands.0 += time;
        hands.1 += time;
    }

    pub fn sleeps(&self, time: Duration) {
        self.0.lock().unwrap().1 += time;
    }
}

impl Clock for Hands {
    fn awake(&self) -> Duration {
        self.0.lock().unwrap().0
    }

    fn elapsed(&self) -> Duration {
        self.0.lock().unwrap().1
    }
}

/// A system instance: each caller may use `alice`, and a grant says who uses the daemon's logins.
struct Rules {
    node: Node,
    is_granted: Arc<AtomicBool>,
}

impl Rules {
    fn may(uid: u32, is_granted: &AtomicBool) -> bool {
        uid == OPERATOR || (uid == GRANTED && is_granted.load(SeqCst))
    }
}

impl Authority for Rules {
    fn is_operator(&self, caller: &Caller) -> bool {
        caller.uid == OPERATOR
    }

    fn may_use_login(&self, caller: &Caller, _: Option<&EngineId>, _: &TokenId) -> bool {
        Rules::may(caller.uid, &self.is_granted)
    }

    fn view(&self, caller: &Caller) -> Node {
        self.node.seen_by(Arc::new(RulesFor {
            caller: caller.clone(),
            is_granted: Arc::clone(&self.is_granted),
        }))
    }
}

struct RulesFor {
    caller: Caller,
    is_granted: Arc<AtomicBool>,
}

impl Policy for RulesFor {
    fn check(&self, sender: &EngineId, wanted: Permission<'_>) -> Result<(), EngineError> {
        match wanted {
            Permission::UseLogin { .. } if !Rules::may(self.caller.uid, &self.is_granted) => {
                Err(EngineError::NotAllowed {
                    sender: sender.clone(),
                    what: "use a login of others",
                })
            }
            _ => Ok(()),
        }
    }

    fn subject(&self) -> Option<Subject> {
        Some(Subject {
            name: self.caller.to_string().into(),
            uid: self.caller.uid,
        })
    }
}

pub struct Stage {
    pub token: SoftHsm,
    pub id: TokenId,
    pub clock: Arc<Hands>,
    pub keeper: Arc<Keeper>,
    pub credentials: TempDir,
    module: AlteredModule,
    rules: Arc<Rules>,
    _home: TempDir,
}

impl Stage {
    /// `alice` has a key on the token, nobody is logged in, and no login was counted.
    pub async fn new() -> Self {
        let token = SoftHsm::new();
        let module = AlteredModule::of(SoftHsm::module().as_ref());
        let backend = backend(&token, &module);
        let home = tempfile::tempdir().unwrap();
        let node = Node::builder(Registry::open(home.path()).unwrap())
            .driver(Pkcs11Driver::new())
            .build();
        let alice = EngineId::local("alice");
        let request = RequestGenerateIdentity {
            backend: Backend::from(backend.clone()),
            params: IdParams::P256,
            capabilities: Capabilities::Commit,
        };
        let call = Call::within(PATIENCE).using(token.access());
        node.generate(&alice, request, &call).await.unwrap();
        let found = Pkcs11Driver::new().tokens(&backend, &call).unwrap();
        let id = found[0].id.clone();
        let closing = node.close_token(&id).unwrap();
        closing.done(&call).await.unwrap();
        module.forget_calls();
        let (clock, credentials) = (Arc::<Hands>::default(), tempfile::tempdir().unwrap());
        let rules = Arc::new(Rules {
            node: node.clone(),
            is_granted: Arc::new(AtomicBool::new(true)),
        });
        let settings = PinSettings {
            credentials: Some(credentials.path().into()),
            ..PinSettings::default()
        };
        let keeper = Keeper::with_clock(&node, rules.clone(), settings, clock.clone());
        Stage {
            token,
            id,
            clock,
            keeper,
            credentials,
            module,
            rules,
            _home: home,
        }
    }

    pub fn node(&self) -> &Node {
        &self.rules.node
    }

    pub fn backend(&self) -> String {
        backend(&self.token, &self.module)
    }

    pub fn caller(&self, uid: u32) -> Caller {
        Caller {
            uid,
            gid: uid,
            socket: "api".into(),
        }
    }

    /// How often a PIN was sent to the token.
    pub fn logins(&self) -> usize {
        self.module.calls("C_Login")
    }

    pub fn take_the_grant_back(&self) {
        self.rules.is_granted.store(false, SeqCst);
    }

    /// The operator unlocks the token.
    pub async fn unlock(
        &self,
        person: Arc<Person>,
        limit: Option<Duration>,
    ) -> Result<TokenId, EngineError> {
        let (operator, backend) = (self.caller(OPERATOR), self.backend());
        let call = Call::within(PATIENCE);
        let unlocked = (self.keeper).unlock(&operator, &backend, limit, person, &call);
        Ok(unlocked.await?.id)
    }

    /// A user signs with the key of `alice`.
    pub async fn sign(&self, uid: u32, person: Arc<Person>) -> Result<(), EngineError> {
        self.sign_with(uid, person).await
    }

    /// The same, where another one types the PIN.
    pub async fn sign_with(&self, uid: u32, person: Arc<dyn AskPin>) -> Result<(), EngineError> {
        let caller = self.caller(uid);
        let owner = Some(EngineId::local("alice"));
        let access = self.keeper.access(&caller, owner, person);
        let (view, call) = (
            self.rules.view(&caller),
            Call::within(PATIENCE).using(access),
        );
        let (alice, engine) = ("alice", "alice_committer_alice");
        let [alice, engine] = [alice, engine].map(EngineId::local);
        let signed = view.commit(&alice, &engine, b"message".to_vec(), &call);
        signed.await.map(drop)
    }

    /// The token is not unlocked, who brings no PIN is not served, and who does is logged in anew.
    pub async fn is_locked(&self) {
        assert!(self.keeper.status().is_empty());
        let before = self.logins();
        let absent = self.sign(OPERATOR, Person::absent()).await;
        assert_eq!(absent.unwrap_err().code(), "pin-needed");
        assert_eq!(self.logins(), before);
        let here = self.keeper.connected(&self.caller(OPERATOR));
        self.sign(OPERATOR, Person::types(&[SoftHsm::PIN]))
            .await
            .unwrap();
        assert_eq!(self.logins(), before + 1);
        drop(here);
    }
}

fn backend(token: &SoftHsm, module: &AlteredModule) -> String {
    let path = module.path();
    format!(
        "pkcs11:token={}?module-path={}",
        token.label(),
        path.display()
    )
}

/// Waits until it is so.
pub async fn until(is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "it never was");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
