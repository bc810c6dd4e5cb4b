//! Tokens that are taken away and put back at any moment, under load, in one process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use claviger_engine::message::{EngineMsg, Msg, RequestCommitment, RequestGenerateIdentity};
use claviger_engine::{
    Backend, Capabilities, Commitment, EngineError, EngineId, IdParams, Node, Registry,
};
use claviger_piv::PivDriver;
use claviger_pkcs11::Pkcs11Driver;
use claviger_tests::{Kryoptic, SoftHsm};
use claviger_token::sync::lock;
use claviger_token::{Access, Advice, Call, Error, FixedPin, KeyUse, PublicKey};
use claviger_virtual_yubikey::{Card, Fault, Inserted, Pcscd, Rule, ins};
use tempfile::TempDir;

use crate::grounds::YubiKey;
use crate::report::{Choices, Report, millis, percentile, progress};

/// How many sign all the time.
const CALLERS: u64 = 8;
/// So much later than its deadline a request may end on a machine with more to do.
const GRACE: Duration = Duration::from_secs(2);
/// A request that has not ended by then never will.
const NEVER: Duration = Duration::from_secs(30);
/// Of so many removals one is followed by the next before the token has recovered.
const HASTE: u64 = 5;
/// What `p99` of the recoveries is to stay below.
const WANTED: Duration = Duration::from_millis(500);

/// A token that is taken away and put back.
pub(crate) trait Removable: Send + Sync {
    fn name(&self) -> &'static str;

    /// Takes it away, at once or with a command that comes soon.
    fn remove(&self, choices: &mut Choices);

    /// Puts it back.
    fn insert(&self);

    fn pin_tries_spent(&self) -> u64 {
        0
    }
}

impl Removable for SoftHsm {
    fn name(&self) -> &'static str {
        "softhsm"
    }

    fn remove(&self, _: &mut Choices) {
        SoftHsm::remove(self);
    }

    fn insert(&self) {
        SoftHsm::insert(self);
    }
}

impl Removable for Kryoptic {
    fn name(&self) -> &'static str {
        "kryoptic"
    }

    fn remove(&self, _: &mut Choices) {
        Kryoptic::remove(self);
    }

    fn insert(&self) {
        Kryoptic::insert(self);
    }
}

impl Removable for Inserted {
    fn name(&self) -> &'static str {
        "yubikey"
    }

    fn remove(&self, choices: &mut Choices) {
        self.faults().clear_log();
        let fault = choices.of(&[None, Some(Fault::RemoveBefore), Some(Fault::RemoveAfter)]);
        if let Some(fault) = fault {
            let rule = Rule::new(fault);
            // The next command, or the next signature.
            let rule = match choices.once_in(2) {
                true => rule,
                false => rule.on(ins::AUTHENTICATE),
            };
            self.faults().add(rule.after(choices.below(4) as usize));
            let end = Instant::now() + Duration::from_secs(1);
            while self.is_inserted() && Instant::now() < end {
                std::thread::sleep(Duration::from_micros(200));
            }
            self.faults().clear();
        }
        // Also waits until the reader has noticed.
        Inserted::remove(self);
    }

    fn insert(&self) {
        Inserted::insert(self);
    }

    fn pin_tries_spent(&self) -> u64 {
        u64::from(3 - self.card().pin_tries())
    }
}

/// A node with an identity on a token of its own.
pub(crate) struct Subject {
    pub(crate) node: Node,
    pub(crate) engine: EngineId,
    pub(crate) key: PublicKey,
    _home: TempDir,
}

impl Subject {
    pub(crate) async fn new(backend: String, access: Access) -> Subject {
        let home = tempfile::tempdir().unwrap();
        let node = Node::builder(Registry::open(home.path()).unwrap())
            .driver(Pkcs11Driver::new())
            .driver(PivDriver::new())
            .access(access)
            .build();
        let request = RequestGenerateIdentity {
            backend: Backend::from(backend),
            params: IdParams::P256,
            capabilities: Capabilities::Commit,
        };
        let who = EngineId::local("subject");
        let reply = node
            .generate(&who, request, &Call::unlimited())
            .await
            .unwrap();
        let identities = node.registry().identities().unwrap();
        let (_, info) = { identities.into_iter() }
            .find(|(name, _)| *name == who)
            .unwrap();
        let keys = info.keys.into_iter();
        let key = { keys }.find(|key| key.usage == KeyUse::Sign).unwrap();
        Subject {
            node,
            engine: reply.commitment_engine.unwrap(),
            key: key.public_key,
            _home: home,
        }
    }

    pub(crate) async fn on_yubikey(yubikey: &Inserted) -> Subject {
        let backend = format!("piv:serial={}", yubikey.card().serial());
        let access = Access {
            factory_defaults: true,
            ..Access::with(FixedPin::new(YubiKey::PIN))
        };
        Subject::new(backend, access).await
    }
}

/// What came of the requests of one kind of token.
#[derive(Default)]
struct Tally {
    requests: AtomicU64,
    signed: AtomicU64,
    unavailable: AtomicU64,
    late: AtomicU64,
    hung: AtomicU64,
    wrong: AtomicU64,
    twice: AtomicU64,
    /// The worst excess over a deadline, in microseconds.
    excess: AtomicU64,
    /// Errors that nobody asked for.
    errors: Mutex<BTreeMap<String, u64>>,
    /// When the token was put back, until the first signature after that.
    awaited: Mutex<Option<Instant>>,
    recoveries: Mutex<Vec<Duration>>,
    /// The part of it after the reader has noticed the token.
    ours: Mutex<Vec<Duration>>,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn value(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

pub(crate) fn run(report: &mut Report, removals: u64, seed: u64) {
    let runtime = runtime();
    let mut tallies = Vec::new();
    let mut spent = 0;
    let mut go = |number: u64, token: Arc<dyn Removable>, subject: Subject| {
        let choices = Choices::new(seed, 10 + number);
        let tally = runtime.block_on(storm(&token, &Arc::new(subject), removals, choices));
        spent += token.pin_tries_spent();
        tallies.push((token.name(), tally));
    };
    let soft = SoftHsm::new();
    let subject = runtime.block_on(Subject::new(soft.backend(), soft.access()));
    go(0, Arc::new(soft), subject);
    match Kryoptic::skipped() {
        Some(why) => eprintln!("SKIPPED removals of kryoptic: {why}"),
        None => {
            let kryoptic = Kryoptic::new();
            let subject = runtime.block_on(Subject::new(kryoptic.backend(), kryoptic.access()));
            go(1, Arc::new(kryoptic), subject);
        }
    }
    let yubikey = Pcscd::insert(Card::builder().pin(YubiKey::PIN).build());
    let subject = runtime.block_on(Subject::on_yubikey(&yubikey));
    go(2, Arc::new(yubikey), subject);

    report.figure("removals", removals * tallies.len() as u64);
    let sum = |counter: fn(&Tally) -> &AtomicU64| -> u64 {
        tallies.iter().map(|(_, tally)| value(counter(tally))).sum()
    };
    let totals = [
        ("requests", sum(|t| &t.requests)),
        ("signed", sum(|t| &t.signed)),
        ("unavailable", sum(|t| &t.unavailable)),
        ("deadlines_passed", sum(|t| &t.late)),
        ("hung", sum(|t| &t.hung)),
        ("wrong_results", sum(|t| &t.wrong)),
        ("answered_twice", sum(|t| &t.twice)),
    ];
    totals
        .into_iter()
        .for_each(|(name, n)| report.figure(name, n));
    for (name, broken) in [
        ("hung", "a request hung"),
        ("wrong_results", "a signature was wrong"),
        ("answered_twice", "a request was not answered once"),
    ] {
        let counted = totals.iter().find(|(n, _)| *n == name);
        report.promise(counted.is_some_and(|(_, n)| *n == 0), broken);
    }
    report.count("pin_tries_spent", spent);
    report.promise(spent == 0, "a PIN try was spent by removals");
    let mut all = Vec::new();
    for (name, tally) in &tallies {
        let mut recoveries = lock(&tally.recoveries).clone();
        let p50 = percentile(&mut recoveries, 0.50);
        let p99 = percentile(&mut recoveries, 0.99);
        report.figure(format!("recovery_{name}_p50_ms"), millis(p50));
        report.figure(format!("recovery_{name}_p99_ms"), millis(p99));
        let mut ours = lock(&tally.ours).clone();
        let ours_p99 = percentile(&mut ours, 0.99);
        report.figure(format!("recovery_{name}_noticed_p99_ms"), millis(ours_p99));
        let excess = Duration::from_micros(value(&tally.excess));
        report.figure(format!("latest_{name}_ms"), millis(excess));
        report.promise(
            recoveries.len() < 100 || p99 < WANTED,
            format!("the recovery of {name} took {} ms (p99)", millis(p99)),
        );
        for (error, times) in &*lock(&tally.errors) {
            report.promise(false, format!("on {name}, {times} times: {error}"));
        }
        all.append(&mut recoveries);
    }
    report.figure("recovery_p50_ms", millis(percentile(&mut all, 0.50)));
    report.figure("recovery_p99_ms", millis(percentile(&mut all, 0.99)));
}

/// Takes the token away and puts it back again and again, while callers use it.
async fn storm(
    token: &Arc<dyn Removable>,
    subject: &Arc<Subject>,
    removals: u64,
    mut choices: Choices,
) -> Arc<Tally> {
    let (tally, stop) = (Arc::new(Tally::default()), Arc::new(AtomicBool::new(false)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let (subject, tally) = (Arc::clone(subject), Arc::clone(&tally));
            let choices = Choices::new(choices.below(u64::MAX), number);
            tokio::spawn(call(number, subject, tally, Arc::clone(&stop), choices))
        })
        .collect();
    let (its_token, its_tally) = (Arc::clone(token), Arc::clone(&tally));
    let moved = tokio::task::spawn_blocking(move || {
        let (name, begun) = (its_token.name(), Instant::now());
        for round in 0..removals {
            if round % 50 == 0 {
                let seconds = begun.elapsed().as_secs();
                progress(format!(
                    "{name}: {round} of {removals} removals, {seconds} s"
                ));
            }
            let long = |choices: &mut Choices, most| {
                std::thread::sleep(choices.between(Duration::ZERO, Duration::from_millis(most)));
            };
            long(&mut choices, 60);
            its_token.remove(&mut choices);
            long(&mut choices, 60);
            let inserted = Instant::now();
            *lock(&its_tally.awaited) = Some(inserted);
            its_token.insert();
            let noticed = inserted.elapsed();
            if choices.once_in(HASTE) && round + 1 < removals {
                *lock(&its_tally.awaited) = None;
                continue;
            }
            let begun = Instant::now();
            while lock(&its_tally.awaited).is_some() {
                if begun.elapsed() > NEVER {
                    let never = format!("not recovered within {NEVER:?}");
                    *lock(&its_tally.errors).entry(never).or_default() += 1;
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            let recovery = lock(&its_tally.recoveries).last().copied();
            let ours = recovery.unwrap_or_default().saturating_sub(noticed);
            lock(&its_tally.ours).push(ours);
        }
    });
    moved.await.unwrap();
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    tally
}

/// Signs until it is told to stop, and notes what comes of it.
async fn call(
    number: u64,
    subject: Arc<Subject>,
    tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
    mut choices: Choices,
) {
    let caller = subject.node.attach(format!("caller {number}")).unwrap();
    for request in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // One of ten does not wait for the token.
        let limit = match choices.below(10) {
            0 => None,
            _ => Some(choices.between(Duration::from_millis(20), Duration::from_secs(2))),
        };
        let data = format!("{number}: {request}").into_bytes();
        let message = EngineMsg {
            sender: caller.id().clone(),
            target: subject.engine.clone(),
            mailbox: None,
            msg: Msg::RequestCommitment(RequestCommitment::raw(data.clone())),
        };
        count(&tally.requests);
        let begun = Instant::now();
        let circumstances = limit.map_or(Call::unlimited(), Call::within);
        let sent = subject.node.send(message, &circumstances);
        let ended = tokio::time::timeout(NEVER, sent).await.is_ok();
        let took = begun.elapsed();
        let excess = limit.map_or(Duration::ZERO, |limit| took.saturating_sub(limit));
        tally
            .excess
            .fetch_max(excess.as_micros() as u64, Ordering::Relaxed);
        if !ended || excess > GRACE {
            count(&tally.hung);
        }
        let reply = caller.try_receive(0).map(|reply| reply.msg);
        if caller.try_receive(0).is_some() || (ended && reply.is_none()) {
            count(&tally.twice);
        }
        let Some(Msg::ReplyCommitment(reply)) = reply else {
            continue;
        };
        match (reply.commitment, reply.err) {
            (Some(signature), _) => tally.check(&subject.key, &data, &signature),
            (None, Some(error)) => {
                tally.note(&error, limit.is_some_and(|limit| took >= limit));
                // Who does not wait asks again a little later.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            (None, None) => count(&tally.wrong),
        }
    }
}

impl Tally {
    fn check(&self, key: &PublicKey, data: &[u8], signature: &Commitment) {
        if key.verify(data, signature).is_err() {
            count(&self.wrong);
            return;
        }
        count(&self.signed);
        if let Some(inserted) = lock(&self.awaited).take() {
            lock(&self.recoveries).push(inserted.elapsed());
        }
    }

    fn note(&self, error: &EngineError, over: bool) {
        match error {
            EngineError::Token(error) if error.advice() == Advice::InsertToken => {
                count(&self.unavailable);
            }
            EngineError::Token(Error::DeadlineExceeded) if over => count(&self.late),
            other => *lock(&self.errors).entry(other.to_string()).or_default() += 1,
        }
    }
}
