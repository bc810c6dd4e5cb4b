//! Figures: what Claviger costs over a bare session, measured side by side in one run.
//!
//! Each figure is a ratio or a difference of two medians. Their samples alternate, so that a
//! machine that is slow for a while is slow for both.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a bench that cannot run says so and ends"
)]

mod daemon;
mod exchange;
mod ledger;
mod piv;
mod processes;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use claviger_engine::message::{RequestDeleteIdentity, RequestGenerateIdentity};
use claviger_engine::{Backend, Capabilities, EngineId, IdParams, Node, Registry};
use claviger_memory::MemoryDriver;
use claviger_pkcs11::Pkcs11Driver;
use claviger_tests::SoftHsm;
use claviger_token::Call;
use claviger_virtual_yubikey::Pcscd;
use cryptoki::context::Pkcs11;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use ed25519_dalek::Signer;
use sha2::{Digest, Sha256};

const MESSAGE: &[u8] = b"The quick brown fox jumps over the lazy dog, again and again.";
/// The object identifier of P-256, in DER.
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

fn main() {
    let said = |option: &str| std::env::args().any(|arg| arg == option);
    let (json, is_long) = (said("--json"), said("--long"));
    SoftHsm::prepare();
    Pcscd::prepare();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let figures = match said("--daemon") {
        true => daemon::figures(is_long),
        false => runtime.block_on(all(is_long)),
    };
    show(&figures, json);
}

async fn all(is_long: bool) -> Vec<Figure> {
    // First: a process loads all tokens of the folder, and those that follow have many keys.
    progress("whole processes");
    let of_processes = processes::figures();
    let of_daemon = daemon::figures(is_long);
    let mut figures = Vec::new();
    progress("commitments on SoftHSM2");
    figures.extend(commit().await);
    progress("two callers at once");
    figures.extend(throughput().await);
    progress("a token with 1,000 keys");
    figures.extend(many_keys().await);
    progress("generation");
    figures.extend(generate().await);
    progress("commitments in memory");
    figures.extend(memory().await);
    progress("encryption, beside rage");
    figures.extend(exchange::figures().await);
    progress("a virtual YubiKey behind a real pcscd");
    figures.extend(piv::figures().await);
    progress("a simulated Ledger");
    figures.extend(ledger::figures().await);
    figures.extend(of_processes);
    figures.extend(of_daemon);
    figures
}

fn show(figures: &[Figure], json: bool) {
    if json {
        let fields: Vec<String> = figures
            .iter()
            .map(|f| format!("\"{}\":{:.4}", f.name, f.value))
            .collect();
        println!("{{{}}}", fields.join(","));
    } else {
        println!(
            "{:<26} {:>9}  {:<10} what it compares",
            "figure", "value", "wanted"
        );
        for f in figures {
            println!(
                "{:<26} {:>9.3}  {:<10} {}",
                f.name, f.value, f.wanted, f.what
            );
        }
    }
}

fn progress(what: &str) {
    eprintln!("bench: {what} …");
}

struct Figure {
    name: &'static str,
    value: f64,
    wanted: &'static str,
    what: String,
}

/// A node with an identity `bench` on a token of its own.
struct Subject {
    node: Node,
    who: EngineId,
    engine: EngineId,
    token: SoftHsm,
    _home: tempfile::TempDir,
}

impl Subject {
    async fn new() -> Self {
        let token = SoftHsm::new();
        let home = tempfile::tempdir_in(folder()).unwrap();
        let node = Node::builder(Registry::open(home.path()).unwrap())
            .driver(Pkcs11Driver::new())
            .access(token.access())
            .build();
        let who = EngineId::local("bench");
        let reply = node
            .generate(&who, p256(&token), &Call::unlimited())
            .await
            .unwrap();
        Subject {
            node,
            who,
            engine: reply.commitment_engine.unwrap(),
            token,
            _home: home,
        }
    }

    async fn sign(&self) {
        let data = MESSAGE.to_vec();
        self.node
            .commit(&self.who, &self.engine, data, &Call::unlimited())
            .await
            .unwrap();
    }

    /// A bare session on the same token, and the handle of the identity's key.
    fn bare(&self) -> Bare {
        Bare::on(&self.token)
    }
}

struct Bare {
    session: Session,
    key: ObjectHandle,
}

impl Bare {
    fn on(token: &SoftHsm) -> Self {
        let module = Pkcs11::new(SoftHsm::module()).unwrap();
        let slot = module
            .get_slots_with_initialized_token()
            .unwrap()
            .into_iter()
            .find(|s| module.get_token_info(*s).unwrap().label() == token.label())
            .unwrap();
        let session = module.open_rw_session(slot).unwrap();
        // The driver has logged this process in.
        let _ = session.login(UserType::User, Some(&AuthPin::new(SoftHsm::PIN.into())));
        let wanted = [
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::Sign(true),
        ];
        let key = session.find_objects(&wanted).unwrap()[0];
        Bare { session, key }
    }

    /// Copies the key, so that the token has so many more.
    fn add_keys(&self, keys: std::ops::Range<u32>) {
        for number in keys {
            let filler = [
                Attribute::Token(true),
                Attribute::Id(number.to_be_bytes().to_vec()),
                Attribute::Label(b"filler".to_vec()),
            ];
            self.session.copy_object(self.key, &filler).unwrap();
        }
    }

    fn sign(&self) {
        let digest = Sha256::digest(MESSAGE);
        self.session
            .sign(&Mechanism::Ecdsa, self.key, &digest)
            .unwrap();
    }

    /// What one must do at the least for an identity that signs and decrypts.
    fn generate(&self) -> [ObjectHandle; 4] {
        let public = |usage| {
            vec![
                Attribute::Token(true),
                Attribute::Private(false),
                Attribute::KeyType(KeyType::EC),
                Attribute::EcParams(P256.to_vec()),
                Attribute::Label(b"bare".to_vec()),
                Attribute::Id(vec![7; 20]),
                usage,
            ]
        };
        let private = |usage| {
            vec![
                Attribute::Token(true),
                Attribute::Private(true),
                Attribute::Sensitive(true),
                Attribute::Extractable(false),
                Attribute::Label(b"bare".to_vec()),
                Attribute::Id(vec![7; 20]),
                usage,
            ]
        };
        let pair = |public: Vec<_>, private: Vec<_>| {
            self.session
                .generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)
                .unwrap()
        };
        let (a, b) = pair(
            public(Attribute::Verify(true)),
            private(Attribute::Sign(true)),
        );
        let (c, d) = pair(
            public(Attribute::Derive(true)),
            private(Attribute::Derive(true)),
        );
        [a, b, c, d]
    }
}

fn p256(token: &SoftHsm) -> RequestGenerateIdentity {
    RequestGenerateIdentity {
        backend: Backend::from(token.backend()),
        params: IdParams::P256,
        capabilities: Capabilities::CommitAndDecrypt,
    }
}

/// Where the registries lie: on the disk that is built on, not in memory.
fn folder() -> std::path::PathBuf {
    let program = std::env::current_exe().unwrap();
    program.parent().unwrap().to_path_buf()
}

fn median(samples: &mut [Duration]) -> Duration {
    samples.sort_unstable();
    samples[samples.len() / 2]
}

fn micros(d: Duration) -> f64 {
    d.as_secs_f64() * 1e6
}

fn timed(samples: &mut Vec<Duration>, work: impl FnOnce()) {
    let begun = Instant::now();
    work();
    samples.push(begun.elapsed());
}

async fn timed_async(samples: &mut Vec<Duration>, work: impl Future<Output = ()>) {
    let begun = Instant::now();
    work.await;
    samples.push(begun.elapsed());
}

async fn commit() -> [Figure; 1] {
    let subject = Subject::new().await;
    let bare = subject.bare();
    let (mut floor, mut engine) = (Vec::new(), Vec::new());
    for _ in 0..500 {
        bare.sign();
        subject.sign().await;
    }
    for _ in 0..20_000 {
        timed(&mut floor, || bare.sign());
        timed_async(&mut engine, subject.sign()).await;
    }
    let (floor, engine) = (micros(median(&mut floor)), micros(median(&mut engine)));
    [Figure {
        name: "commit_p256_ratio",
        value: engine / floor,
        wanted: "≤ 1.15",
        what: format!("a commitment {engine:.1} µs / a bare signature {floor:.1} µs"),
    }]
}

async fn throughput() -> [Figure; 1] {
    const ROUND: Duration = Duration::from_millis(500);
    let subject = Arc::new(Subject::new().await);
    let (mut ratios, mut rates) = (Vec::new(), (0.0, 0.0));
    for _ in 0..9 {
        let floor = threads(&subject, ROUND);
        let engine = tasks(&subject, ROUND).await;
        ratios.push(engine / floor);
        rates = (engine, floor);
    }
    ratios.sort_by(f64::total_cmp);
    [Figure {
        name: "commit_throughput_2t",
        value: ratios[ratios.len() / 2],
        wanted: "≥ 0.90",
        what: format!(
            "two callers {:.0}/s / two bare threads {:.0}/s",
            rates.0, rates.1
        ),
    }]
}

/// Signatures a second of two threads with a bare session each.
fn threads(subject: &Subject, round: Duration) -> f64 {
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let start = Barrier::new(3);
    let sessions = [subject.bare(), subject.bare()];
    std::thread::scope(|scope| {
        for bare in sessions {
            let (stop, done, start) = (&stop, &done, &start);
            scope.spawn(move || {
                start.wait();
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    bare.sign();
                    count += 1;
                }
                done.fetch_add(count, Ordering::Relaxed);
            });
        }
        start.wait();
        std::thread::sleep(round);
        stop.store(true, Ordering::Relaxed);
    });
    done.load(Ordering::Relaxed) as f64 / round.as_secs_f64()
}

/// Commitments a second of two callers.
async fn tasks(subject: &Arc<Subject>, round: Duration) -> f64 {
    let end = Instant::now() + round;
    let callers = [(); 2].map(|()| {
        let subject = Arc::clone(subject);
        tokio::spawn(async move {
            let mut count = 0u64;
            while Instant::now() < end {
                subject.sign().await;
                count += 1;
            }
            count
        })
    });
    let mut count = 0;
    for caller in callers {
        count += caller.await.unwrap();
    }
    count as f64 / round.as_secs_f64()
}

async fn many_keys() -> [Figure; 1] {
    let (few, many) = (Subject::new().await, Subject::new().await);
    for (subject, keys) in [(&few, 10), (&many, 1000)] {
        // The identity has two.
        subject.bare().add_keys(2..keys);
    }
    let (mut with_few, mut with_many) = (Vec::new(), Vec::new());
    for _ in 0..10_000 {
        timed_async(&mut with_few, few.sign()).await;
        timed_async(&mut with_many, many.sign()).await;
    }
    let (with_few, with_many) = (
        micros(median(&mut with_few)),
        micros(median(&mut with_many)),
    );
    [Figure {
        name: "keys_1000_ratio",
        value: with_many / with_few,
        wanted: "≤ 1.10",
        what: format!("1,000 keys on the token {with_many:.1} µs / 10 keys {with_few:.1} µs"),
    }]
}

async fn generate() -> [Figure; 1] {
    let subject = Subject::new().await;
    let bare = subject.bare();
    let (mut floor, mut engine) = (Vec::new(), Vec::new());
    let who = EngineId::local("again");
    for _ in 0..60 {
        let begun = Instant::now();
        let made = bare.generate();
        floor.push(begun.elapsed());
        for object in made {
            bare.session.destroy_object(object).unwrap();
        }
        let begun = Instant::now();
        let made = subject
            .node
            .generate(&who, p256(&subject.token), &Call::unlimited())
            .await;
        engine.push(begun.elapsed());
        made.unwrap();
        let request = RequestDeleteIdentity {
            external_identity: who.clone(),
            backend: Backend::from(subject.token.backend()),
        };
        subject
            .node
            .delete(&who, request, &Call::unlimited())
            .await
            .unwrap();
    }
    let (floor, engine) = (micros(median(&mut floor)), micros(median(&mut engine)));
    [Figure {
        name: "generate_ratio",
        value: engine / floor,
        wanted: "≤ 1.30",
        what: format!(
            "a durable Generate {:.1} ms / its two bare key generations {:.1} ms",
            engine / 1e3,
            floor / 1e3
        ),
    }]
}

async fn memory() -> [Figure; 1] {
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(MemoryDriver::new())
        .build();
    let who = EngineId::local("bench");
    let request = RequestGenerateIdentity {
        backend: Backend::LocalMemory,
        params: IdParams::Ed25519,
        capabilities: Capabilities::Commit,
    };
    let made = node.generate(&who, request, &Call::unlimited()).await;
    let target = made.unwrap().commitment_engine.unwrap();
    let key = ed25519_dalek::SigningKey::generate(&mut rand_core::OsRng);
    let (mut floor, mut engine) = (Vec::new(), Vec::new());
    for _ in 0..30_000 {
        timed(&mut floor, || {
            std::hint::black_box(key.sign(std::hint::black_box(MESSAGE)));
        });
        let begun = Instant::now();
        node.commit(&who, &target, MESSAGE.to_vec(), &Call::unlimited())
            .await
            .unwrap();
        engine.push(begun.elapsed());
    }
    let (floor, engine) = (micros(median(&mut floor)), micros(median(&mut engine)));
    [Figure {
        name: "memory_overhead_us",
        value: engine - floor,
        wanted: "≤ 5",
        what: format!("a commitment {engine:.1} µs − a bare Ed25519 signature {floor:.1} µs"),
    }]
}
