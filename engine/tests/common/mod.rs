//! A token that can be made to fail, and what every test of the engine needs.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod filled;
pub mod logins;
pub mod safes;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Weak};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use claviger_engine::message::{
    ReplyConnectIdentity, ReplyGenerateIdentity, RequestConnectIdentity, RequestDeleteIdentity,
    RequestGenerateIdentity,
};
use claviger_engine::policy::{self, OwnersOnly};
use claviger_engine::{
    Backend, Capabilities, EngineError, EngineId, IdParams, Node, Policy, Registry,
};
use claviger_memory::MemoryDriver;
use claviger_token::{
    About, Call, Decryptor, Deletion, Detail, Driver, Error, Event, GeneratedKey, KeyRef, KeySpec,
    Listed, Listing, NewKey, Pace, Protection, PublicKey, Secret, Signature, Signer, SlotId,
    SlotInfo, Token, TokenId, TokenInfo, Unfinished, Unwrap,
};

/// A token like a device: it outlives the node, protects its keys, and can fail.
///
/// Its keys are those of a memory token, so signing and decrypting are real.
#[derive(Clone)]
pub struct Device(Arc<State>);

struct State {
    inner: Arc<dyn Token>,
    info: TokenInfo,
    attached: AtomicBool,
    /// After so many more generations or deletions the token goes away.
    fuse: AtomicU32,
    protection: Mutex<Protection>,
    named_slot: Mutex<Option<SlotId>>,
    /// What opening and signing answer with.
    trouble: Mutex<Option<Error>>,
    /// Whether signing waits for a touch.
    wants_touch: AtomicBool,
    /// Whether somebody is to touch it now.
    waits_for_touch: AtomicBool,
    /// Who opens it waits as long as this is so.
    silent: AtomicBool,
    /// Who asks it for a key to use waits as long as this is so.
    hides_keys: AtomicBool,
    /// How often somebody began to open it.
    opened: AtomicU32,
    /// The token as those have it who opened it.
    shared: Mutex<Weak<Device>>,
    /// How long making a key takes, and using it to decrypt: in milliseconds.
    generates_in: AtomicU64,
    decrypts_in: AtomicU64,
    /// Whether using a key to decrypt waits, and whether somebody does.
    holds_decryptions: AtomicBool,
    decrypting: AtomicBool,
    /// The thread that decrypted last.
    decrypted_on: Mutex<Option<ThreadId>>,
    generating: AtomicBool,
    /// Whether making a key waits.
    holds_keys: AtomicBool,
    /// Whether it panics when it has made a key.
    panics: AtomicBool,
    /// What deleting answers with.
    undeletable: Mutex<Option<Error>>,
    /// What giving a key its name answers with.
    unnameable: Mutex<Option<Error>>,
    /// Whether keys do not do what they are asked.
    misuses: AtomicBool,
    /// Where keys are found, instead of where they were made.
    moved_to: Mutex<Option<SlotId>>,
    /// The slots that there are, instead of as many as one wants, and those among them that
    /// are not there after all.
    slots: Mutex<(Vec<SlotId>, Vec<SlotId>)>,
}

const NO_FUSE: u32 = u32::MAX;

impl Device {
    pub fn new() -> Self {
        Device::paced(Pace::Quick)
    }

    /// One whose keys can be derived again.
    pub fn deriving() -> Self {
        Device::with(Pace::Quick, true)
    }

    /// One that only states what it can do.
    pub fn untried() -> Self {
        let mut device = Device::new();
        let state = Arc::get_mut(&mut device.0).unwrap();
        state.info.untried = state.info.uses.clone();
        state.info.remembered_as = "model 1.0".into();
        device
    }

    /// One that is reached by `backend`, which may fit others, too.
    pub fn reached_by(backend: &str) -> Self {
        let mut device = Device::new();
        let state = Arc::get_mut(&mut device.0).unwrap();
        state.info.backend = backend.into();
        device
    }

    /// One of another kind.
    pub fn of_kind(kind: &str) -> Self {
        let mut device = Device::new();
        let state = Arc::get_mut(&mut device.0).unwrap();
        state.info.id.kind = kind.into();
        device
    }

    /// The same token, under the name that a later version gives it.
    pub fn renamed(&self, serial: &str) -> Self {
        let mut device = Device::new();
        let state = Arc::get_mut(&mut device.0).unwrap();
        state.inner = Arc::clone(&self.0.inner);
        state.info = self.0.info.clone();
        state.info.id.serial = serial.into();
        state.info.formerly = vec![self.id()];
        device
    }

    pub fn paced(pace: Pace) -> Self {
        Device::with(pace, false)
    }

    fn with(pace: Pace, derives: bool) -> Self {
        let inner = MemoryDriver::new()
            .open("memory:", &Call::unlimited())
            .unwrap();
        let mut info = inner.info().clone();
        info.id.kind = "device".into();
        info.backend = format!("device:{}", info.id.serial);
        info.durable = true;
        info.pace = pace;
        info.derives = derives;
        Device(Arc::new(State {
            inner,
            info,
            attached: AtomicBool::new(true),
            fuse: AtomicU32::new(NO_FUSE),
            protection: Mutex::new(Protection::FULL),
            named_slot: Mutex::default(),
            trouble: Mutex::default(),
            wants_touch: AtomicBool::new(false),
            waits_for_touch: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            hides_keys: AtomicBool::new(false),
            opened: AtomicU32::default(),
            shared: Mutex::default(),
            generates_in: AtomicU64::default(),
            decrypts_in: AtomicU64::default(),
            holds_decryptions: AtomicBool::default(),
            decrypting: AtomicBool::default(),
            decrypted_on: Mutex::default(),
            generating: AtomicBool::default(),
            holds_keys: AtomicBool::default(),
            panics: AtomicBool::default(),
            undeletable: Mutex::default(),
            unnameable: Mutex::default(),
            misuses: AtomicBool::default(),
            moved_to: Mutex::default(),
            slots: Mutex::default(),
        }))
    }

    pub fn backend(&self) -> Backend {
        Backend::from(self.0.info.backend.clone())
    }

    pub fn keys(&self) -> usize {
        self.0.inner.slots(&Call::unlimited()).unwrap().len()
    }

    pub fn detach(&self) {
        self.0.attached.store(false, SeqCst);
    }

    pub fn attach(&self) {
        self.0.fuse.store(NO_FUSE, SeqCst);
        self.0.attached.store(true, SeqCst);
    }

    /// Opening and signing fail from now on, or do no more.
    pub fn fails_with(&self, error: Option<Error>) {
        *self.0.trouble.lock().unwrap() = error;
    }

    /// Making a key takes so long from now on.
    pub fn generates_in(&self, time: Duration) {
        self.0.generates_in.store(time.as_millis() as u64, SeqCst);
    }

    /// Making a key waits from now on, or does no more: then it goes on.
    pub fn holds_keys(&self, holds: bool) {
        self.0.holds_keys.store(holds, SeqCst);
    }

    /// Decrypting takes so long from now on.
    pub fn decrypts_in(&self, time: Duration) {
        self.0.decrypts_in.store(time.as_millis() as u64, SeqCst);
    }

    /// Decrypting waits from now on, or does no more: then it goes on.
    pub fn holds_decryptions(&self, holds: bool) {
        self.0.holds_decryptions.store(holds, SeqCst);
    }

    /// Whether this thread decrypted last.
    pub fn decrypted_here(&self) -> bool {
        *self.0.decrypted_on.lock().unwrap() == Some(std::thread::current().id())
    }

    /// Whether somebody has begun to decrypt.
    pub fn is_decrypting(&self) -> bool {
        self.0.decrypting.load(SeqCst)
    }

    /// Whether a key is being made.
    pub fn is_generating(&self) -> bool {
        self.0.generating.load(SeqCst)
    }

    /// The driver panics from now on when it has made a key, or does no more.
    pub fn panics(&self, panics: bool) {
        self.0.panics.store(panics, SeqCst);
    }

    /// Deleting fails from now on, or does no more.
    pub fn deletes_with(&self, error: Option<Error>) {
        *self.0.undeletable.lock().unwrap() = error;
    }

    /// Giving a key its name fails from now on, or does no more.
    pub fn names_with(&self, error: Option<Error>) {
        *self.0.unnameable.lock().unwrap() = error;
    }

    /// Keys sign something else and agree on something else from now on, or do no more.
    pub fn misuses_keys(&self, misuses: bool) {
        self.0.misuses.store(misuses, SeqCst);
    }

    /// Another tool has given the keys this place.
    pub fn moves_keys_to(&self, slot: &str) {
        *self.0.moved_to.lock().unwrap() = Some(SlotId::new(slot));
    }

    /// There are these slots and no others, and those of them in `missing` are not there.
    pub fn has_slots(&self, slots: &[&str], missing: &[&str]) {
        let ids = |names: &[&str]| names.iter().map(|name| SlotId::new(*name)).collect();
        *self.0.slots.lock().unwrap() = (ids(slots), ids(missing));
    }

    /// What is on it: slot and label.
    pub fn labels(&self) -> Vec<String> {
        let slots = self.0.inner.slots(&Call::unlimited()).unwrap();
        slots.into_iter().map(|slot| slot.label).collect()
    }

    fn found_in(&self, slot: SlotId) -> SlotId {
        self.0.moved_to.lock().unwrap().clone().unwrap_or(slot)
    }

    /// Signing waits for a touch from now on, or does no more: then it goes on.
    pub fn wants_touch(&self, wanted: bool) {
        self.0.wants_touch.store(wanted, SeqCst);
    }

    /// Whether it waits for a touch.
    pub fn waits_for_touch(&self) -> bool {
        self.0.waits_for_touch.load(SeqCst)
    }

    /// Who opens it has no answer from now on, or has again.
    pub fn falls_silent(&self, silent: bool) {
        self.0.silent.store(silent, SeqCst);
    }

    /// Who asks it for a key to use has no answer from now on, or has again.
    pub fn hides_keys(&self, hides: bool) {
        self.0.hides_keys.store(hides, SeqCst);
    }

    /// How often somebody began to open it.
    pub fn opened(&self) -> u32 {
        self.0.opened.load(SeqCst)
    }

    pub fn id(&self) -> TokenId {
        self.0.info.id.clone()
    }

    fn in_order(&self) -> Result<(), Error> {
        self.check()?;
        self.0.trouble.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    /// The token goes away after `steps` more generations or deletions.
    pub fn detach_after(&self, steps: u32) {
        self.0.fuse.store(steps, SeqCst);
    }

    pub fn protects_with(&self, protection: Protection) {
        *self.0.protection.lock().unwrap() = protection;
    }

    /// The backend names this slot from now on.
    pub fn name_slot(&self, slot: &str) {
        *self.0.named_slot.lock().unwrap() = Some(SlotId::new(slot));
    }

    /// Makes a key that no identity knows of.
    pub fn foreign_key(&self, spec: KeySpec) -> (SlotId, String) {
        let call = Call::unlimited();
        let slot = self
            .0
            .inner
            .free_slots(&[spec], &[], &call)
            .unwrap()
            .remove(0);
        let key = self
            .0
            .inner
            .generate(
                &NewKey {
                    slot: &slot,
                    spec,
                    mark: "somebody else's",
                },
                &call,
            )
            .unwrap();
        (slot, key.public_key.fingerprint().to_string())
    }

    /// Removes every key, as another program might.
    pub fn wipe(&self) {
        for slot in self.0.inner.slots(&Call::unlimited()).unwrap() {
            let key = slot.key_ref().unwrap();
            self.0.inner.delete(&key, &Call::unlimited()).unwrap();
        }
    }

    fn destroy(
        &self,
        call: &Call,
        destroy: impl FnOnce(&dyn Token, &Call) -> Result<Deletion, Error>,
    ) -> Result<Deletion, Error> {
        self.burn()?;
        if let Some(error) = self.0.undeletable.lock().unwrap().clone() {
            return Err(error);
        }
        match destroy(&*self.0.inner, call)? {
            Deletion::Destroyed if self.0.info.derives => Ok(Deletion::Derivable),
            told => Ok(told),
        }
    }

    fn check(&self) -> Result<(), Error> {
        if self.0.attached.load(SeqCst) {
            return Ok(());
        }
        Err(Error::TokenUnavailable {
            token: self.0.info.id.clone(),
            reason: "pulled out".into(),
        })
    }

    fn burn(&self) -> Result<(), Error> {
        self.check()?;
        match self.0.fuse.load(SeqCst) {
            NO_FUSE => Ok(()),
            0 => {
                self.detach();
                self.check()
            }
            left => {
                self.0.fuse.store(left - 1, SeqCst);
                Ok(())
            }
        }
    }
}

impl Driver for Device {
    fn about(&self) -> About {
        About::new("device", "a device of this test")
    }

    fn look(&self, _: &str, detail: Detail, call: &Call) -> Result<Listing, Error> {
        let there = self.check().ok().map(|()| {
            Listed::with_slots(self.0.info.clone(), detail, |_| {
                self.in_order()?;
                self.slots(call)
            })
        });
        Ok(Listing::new(there, []))
    }

    fn named_slot(&self, _: &str) -> Result<Option<SlotId>, Error> {
        Ok(self.0.named_slot.lock().unwrap().clone())
    }

    fn names_more(&self, _: &str) -> Result<Option<&'static str>, Error> {
        Ok(None)
    }

    fn open(&self, backend: &str, _: &Call) -> Result<Arc<dyn Token>, Error> {
        self.0.opened.fetch_add(1, SeqCst);
        hang_while(|| self.0.silent.load(SeqCst));
        if self.check().is_err() || backend != self.0.info.backend {
            return Err(Error::NoToken {
                wanted: backend.into(),
                present: Vec::new(),
            });
        }
        self.in_order()?;
        // Opening what is open gives the same token again.
        let mut shared = self.0.shared.lock().unwrap();
        let token = shared.upgrade().unwrap_or_else(|| Arc::new(self.clone()));
        *shared = Arc::downgrade(&token);
        Ok(token)
    }
}

/// Blocks as a device does that does not answer: without an end, but for a test that failed
/// meanwhile.
pub fn hang_while(holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while holds() {
        assert!(begun.elapsed() < LONGEST_HANG, "nobody let it go on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// So long a device hangs in a test that failed.
const LONGEST_HANG: Duration = Duration::from_secs(120);

struct DeviceSigner(Device, Arc<dyn Signer>);

impl Signer for DeviceSigner {
    fn public_key(&self) -> &PublicKey {
        self.1.public_key()
    }

    fn slot(&self) -> SlotId {
        self.0.found_in(self.1.slot())
    }

    fn sign(&self, message: &[u8], call: &Call) -> Result<Signature, Error> {
        let DeviceSigner(device, inner) = self;
        device.in_order()?;
        if device.0.misuses.load(SeqCst) {
            return inner.sign(b"something else", call);
        }
        if device.0.wants_touch.load(SeqCst) {
            call.tell(&Event::TouchNeeded { token: device.id() });
            device.0.waits_for_touch.store(true, SeqCst);
            hang_while(|| device.0.wants_touch.load(SeqCst));
            device.0.waits_for_touch.store(false, SeqCst);
            call.tell(&Event::PersonDone { token: device.id() });
        }
        inner.sign(message, call)
    }
}

impl Token for Device {
    fn info(&self) -> &TokenInfo {
        &self.0.info
    }

    fn slots(&self, call: &Call) -> Result<Vec<SlotInfo>, Error> {
        self.check()?;
        self.0.inner.slots(call)
    }

    fn free_slots(
        &self,
        specs: &[KeySpec],
        taken: &[SlotId],
        call: &Call,
    ) -> Result<Vec<SlotId>, Error> {
        self.check()?;
        let (slots, _) = &*self.0.slots.lock().unwrap();
        if slots.is_empty() {
            return self.0.inner.free_slots(specs, taken, call);
        }
        let free = slots.iter().filter(|slot| !taken.contains(slot)).cloned();
        let free: Vec<SlotId> = free.take(specs.len()).collect();
        match free.len() == specs.len() {
            true => Ok(free),
            false => Err(Error::TokenFull { token: self.id() }),
        }
    }

    fn generate(&self, new: &NewKey<'_>, call: &Call) -> Result<GeneratedKey, Error> {
        self.burn()?;
        if self.0.slots.lock().unwrap().1.contains(new.slot) {
            return Err(Error::NoSuchSlot {
                token: self.id(),
                slot: new.slot.to_string(),
            });
        }
        self.0.generating.store(true, SeqCst);
        std::thread::sleep(Duration::from_millis(self.0.generates_in.load(SeqCst)));
        hang_while(|| self.0.holds_keys.load(SeqCst));
        // A device does not look at the clock.
        let made = match call.check() {
            Ok(()) => self.0.inner.generate(new, call),
            Err(_) => self.0.inner.generate(new, &Call::unlimited()),
        };
        self.0.generating.store(false, SeqCst);
        let mut key = made?;
        assert!(!self.0.panics.load(SeqCst), "the driver has an error");
        key.protection = *self.0.protection.lock().unwrap();
        Ok(key)
    }

    fn name(&self, key: &KeyRef, label: &str, call: &Call) -> Result<(), Error> {
        self.check()?;
        if let Some(error) = self.0.unnameable.lock().unwrap().clone() {
            return Err(error);
        }
        self.0.inner.name(key, label, call)
    }

    fn delete(&self, key: &KeyRef, call: &Call) -> Result<Deletion, Error> {
        self.destroy(call, |inner, call| inner.delete(key, call))
    }

    fn discard(&self, left: &Unfinished, call: &Call) -> Result<Deletion, Error> {
        self.destroy(call, |inner, call| inner.discard(left, call))
    }

    fn signer(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Signer>, Error> {
        hang_while(|| self.0.hides_keys.load(SeqCst));
        self.check()?;
        let signer = self.0.inner.signer(key, call)?;
        Ok(Arc::new(DeviceSigner(self.clone(), signer)))
    }

    fn decryptor(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Decryptor>, Error> {
        self.check()?;
        let decryptor = self.0.inner.decryptor(key, call)?;
        Ok(Arc::new(DeviceDecryptor(self.clone(), decryptor)))
    }
}

struct DeviceDecryptor(Device, Arc<dyn Decryptor>);

impl Decryptor for DeviceDecryptor {
    fn public_key(&self) -> &PublicKey {
        self.1.public_key()
    }

    fn slot(&self) -> SlotId {
        self.0.found_in(self.1.slot())
    }

    fn confirm(&self, call: &Call) -> Result<(), Error> {
        self.1.confirm(call)
    }

    fn unwrap(&self, request: Unwrap<'_>, _: &Call) -> Result<Secret, Error> {
        let DeviceDecryptor(device, inner) = self;
        if device.0.misuses.load(SeqCst) {
            return Ok(Secret::new(vec![7; 32]));
        }
        device.0.decrypting.store(true, SeqCst);
        *device.0.decrypted_on.lock().unwrap() = Some(std::thread::current().id());
        std::thread::sleep(Duration::from_millis(device.0.decrypts_in.load(SeqCst)));
        hang_while(|| device.0.holds_decryptions.load(SeqCst));
        inner.unwrap(request, &Call::unlimited())
    }
}

/// A node on `home` with the device attached; another one is another process.
pub fn node(home: &Path, device: &Device) -> Node {
    Node::builder(Registry::open(home).unwrap())
        .driver(device.clone())
        .driver(MemoryDriver::new())
        .build()
}

/// The default, but keys are made for other nodes, too.
pub struct MakesForAll;

impl Policy for MakesForAll {
    fn check(&self, who: &EngineId, access: policy::Permission<'_>) -> Result<(), EngineError> {
        match access {
            policy::Permission::Generate { .. } => Ok(()),
            _ => OwnersOnly.check(who, access),
        }
    }
}

/// A node whose identities live in memory.
pub fn memory_node() -> Node {
    Node::builder(Registry::in_memory().unwrap())
        .driver(MemoryDriver::new())
        .build()
}

/// Waits until something is so that others do.
pub async fn until(what: impl Fn() -> bool) {
    let begun = Instant::now();
    while !what() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it never came");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub fn id(name: &str) -> EngineId {
    EngineId::local(name)
}

pub fn call() -> Call {
    Call::unlimited()
}

pub async fn generate(
    node: &Node,
    name: &str,
    backend: &Backend,
    params: IdParams,
    capabilities: Capabilities,
) -> ReplyGenerateIdentity {
    let request = RequestGenerateIdentity {
        backend: backend.clone(),
        params,
        capabilities,
    };
    let made = node.generate(&id(name), request, &call()).await;
    let (engines, err) = parts(made);
    ReplyGenerateIdentity {
        commitment_engine: engines.commitment_engine,
        decryption_engine: engines.decryption_engine,
        external_identity: id(name),
        err,
    }
}

/// An Ed25519 identity with both capabilities, which must succeed.
pub async fn make(node: &Node, name: &str, backend: &Backend) -> ReplyGenerateIdentity {
    let reply = generate(
        node,
        name,
        backend,
        IdParams::Ed25519,
        Capabilities::CommitAndDecrypt,
    )
    .await;
    assert!(reply.err.is_none(), "{:?}", reply.err);
    reply
}

pub async fn connect(
    node: &Node,
    name: &str,
    to: &str,
    backend: &Backend,
    capabilities: Capabilities,
) -> ReplyConnectIdentity {
    let request = RequestConnectIdentity {
        external_identity: id(to),
        backend: backend.clone(),
        capabilities,
    };
    let (engines, err) = parts(node.connect(&id(name), request, &call()).await);
    ReplyConnectIdentity {
        commitment_engine: engines.commitment_engine,
        decryption_engine: engines.decryption_engine,
        err,
    }
}

pub async fn delete(node: &Node, who: &str, identity: &str) -> Result<Vec<Deletion>, EngineError> {
    let request = RequestDeleteIdentity {
        external_identity: id(identity),
        backend: Backend::LocalMemory,
    };
    node.delete(&id(who), request, &call()).await
}

fn parts<T: Default>(result: Result<T, EngineError>) -> (T, Option<EngineError>) {
    match result {
        Ok(value) => (value, None),
        Err(err) => (T::default(), Some(err)),
    }
}

pub fn text(err: Option<EngineError>) -> String {
    err.map(|e| e.to_string()).unwrap_or_default()
}
