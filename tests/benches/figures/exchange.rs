//! Figures of encryption: streams beside `rage`, evidence in great number, and two cores.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use claviger_engine::evidence::statement;
use claviger_engine::message::{RequestEncrypt, RequestGenerateIdentity};
use claviger_engine::{
    Backend, Capabilities, EngineId, Evidence, IdParams, Node, Party, Preference, PublicKeys,
    Registry, Terms,
};
use claviger_memory::MemoryDriver;
use claviger_tests::{SoftHsm, peers};
use claviger_token::{Algorithm, Call, PublicKey, Secret, Signature, SignatureScheme};
use ed25519_dalek::{Signer, SigningKey};

use crate::{Figure, micros, timed};

pub(crate) async fn figures() -> Vec<Figure> {
    let mut figures = streams();
    figures.push(reads_for().await);
    figures.push(scaling().await);
    figures
}

/// A folder to work in, on the disk that is built on, and the programs.
struct Workbench {
    folder: tempfile::TempDir,
    claviger: PathBuf,
    rage: PathBuf,
    token: SoftHsm,
}

/// How long a program took, and the most memory that it had, in KiB.
struct Run {
    took: Duration,
    peak: u64,
}

impl Workbench {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn claviger(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.claviger);
        let (variable, conf) = self.token.environment();
        command.env(variable, conf);
        command.env("CLAVIGER_HOME", self.path("home"));
        command.args(["--pin-source", "file:pin"]).args(words);
        command
    }

    fn rage(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.rage);
        command.args(words);
        command
    }

    /// Runs it to its end; what it says is thrown away.
    fn run(&self, mut command: Command) -> Run {
        command
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let begun = Instant::now();
        let mut child = command.spawn().unwrap();
        let mut peak = 0;
        loop {
            // It only grows. The first ones may be of the process before it became the program.
            peak = high_water(child.id()).unwrap_or(peak);
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "{command:?}");
                let took = begun.elapsed();
                return Run { took, peak };
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn high_water(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// The command as `cargo xtask bench` builds it.
pub(crate) fn claviger() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let release = program.ancestors().find(|f| f.ends_with("release"));
    let claviger = release.unwrap_or(Path::new(".")).join("claviger");
    let hint = "`cargo xtask bench` builds it";
    assert!(claviger.exists(), "no {}: {hint}", claviger.display());
    claviger
}

fn streams() -> Vec<Figure> {
    const LENGTH: usize = 1 << 30;
    const ROUNDS: usize = 5;
    let place = Workbench {
        folder: tempfile::tempdir_in(crate::folder()).unwrap(),
        claviger: claviger(),
        rage: peers::optimised_rage(),
        token: SoftHsm::new(),
    };
    std::fs::write(place.path("pin"), SoftHsm::PIN).unwrap();
    let keygen = peers::optimised_rage().with_file_name("rage-keygen");
    let key = Command::new(keygen).output().unwrap().stdout;
    let key = String::from_utf8(key).unwrap();
    let recipient = key.lines().find_map(|l| l.strip_prefix("# public key: "));
    let recipient = recipient.unwrap();
    std::fs::write(place.path("key"), &key).unwrap();
    std::fs::write(place.path("recipient"), recipient).unwrap();
    let noise: Vec<u8> = (0u32..1 << 20)
        .flat_map(|i| i.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect();
    let big = noise.repeat(LENGTH / noise.len());
    std::fs::write(place.path("big"), big).unwrap();
    place.run(place.claviger(&["generate", "me", "--backend", &place.token.backend()]));
    place.run(place.claviger(&["contact", "add", "friend", "recipient"]));
    // One file, for both programs.
    let words = ["encrypt", "me", "--also", "friend", "big", "-o", "big.age"];
    place.run(place.claviger(&words));

    let (mut encrypt, mut decrypt, mut peak) = (Vec::new(), Vec::new(), 0);
    let mut last = [Duration::ZERO; 4];
    for _ in 0..ROUNDS {
        let ours = place.run(place.claviger(&["encrypt", "friend", "big"]));
        let theirs = place.run(place.rage(&["-r", recipient, "big"]));
        encrypt.push(ours.took.as_secs_f64() / theirs.took.as_secs_f64());
        let opened = place.run(place.claviger(&["decrypt", "me", "big.age"]));
        let rages = place.run(place.rage(&["--decrypt", "-i", "key", "big.age"]));
        decrypt.push(opened.took.as_secs_f64() / rages.took.as_secs_f64());
        peak = peak.max(ours.peak).max(opened.peak);
        last = [ours.took, theirs.took, opened.took, rages.took];
    }
    let median = |ratios: &mut Vec<f64>| {
        ratios.sort_by(f64::total_cmp);
        ratios[ratios.len() / 2]
    };
    let [ours, theirs, opened, rages] = last.map(|d| d.as_secs_f64());
    vec![
        Figure {
            name: "encrypt_1gib_ratio",
            value: median(&mut encrypt),
            wanted: "≤ 1.15",
            what: format!("`claviger encrypt` of 1 GiB {ours:.2} s / `rage` {theirs:.2} s"),
        },
        Figure {
            name: "decrypt_1gib_ratio",
            value: median(&mut decrypt),
            wanted: "≤ 1.15",
            what: format!("`claviger decrypt` of 1 GiB {opened:.2} s / `rage` {rages:.2} s"),
        },
        Figure {
            name: "stream_peak_mib",
            value: peak as f64 / 1024.0,
            wanted: "",
            what: "the most memory that `claviger` took for either, in MiB".into(),
        },
    ]
}

/// 100,000 pieces over 20,000 identities in ten layers: each reads for five of the next
/// layer. One in a thousand goes back, and makes cycles.
async fn reads_for() -> Figure {
    const LAYERS: usize = 10;
    const WIDTH: usize = 2_000;
    const EACH: usize = 5;
    let mut state = 1u64;
    let mut random = move |below: usize| {
        // SplitMix64: the same graph in every run.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below as u64) as usize
    };
    let people: Vec<(SigningKey, Party)> = (0..LAYERS * WIDTH)
        .map(|n| {
            let key = SigningKey::generate(&mut rand_core::OsRng);
            let mut decrypt = [1; 32];
            decrypt[..8].copy_from_slice(&(n as u64).to_be_bytes());
            let public = |algorithm, bytes| PublicKey::from_bytes(algorithm, bytes).ok();
            let keys = PublicKeys {
                sign: public(Algorithm::Ed25519, key.verifying_key().as_bytes()),
                decrypt: public(Algorithm::X25519, &decrypt),
            };
            let name = format!("somebody {n}").into();
            (key, Party { name, keys })
        })
        .collect();
    let mut pieces = Vec::new();
    for n in 0..people.len() {
        for _ in 0..EACH {
            let layer = (n / WIDTH + 1) % LAYERS;
            let goes_back = layer == 0 && random(100) > 0;
            let to = match goes_back {
                // The last layer reads for some of its own.
                true => n / WIDTH * WIDTH + random(WIDTH),
                false => layer * WIDTH + random(WIDTH),
            };
            let (from, to) = (&people[n].1, &people[to]);
            let terms = Terms::new(None);
            let said = statement(from, &to.1, &terms);
            let signature = to.0.sign(&said).to_bytes().to_vec();
            pieces.push(Evidence {
                from_identity: from.clone(),
                to_identity: to.1.clone(),
                terms,
                proof: Signature::new(SignatureScheme::Ed25519, signature).unwrap(),
            });
        }
    }
    let node = memory_node();
    let count = node
        .import_evidence(&EngineId::program(), pieces)
        .await
        .unwrap()
        .added;
    // Whom this machine knows by name.
    let known: Vec<EngineId> = (0..1_000)
        .map(|_| people[random(people.len())].1.clone())
        .filter(|party| node.registry().add_contact(party).is_ok())
        .map(|party| EngineId::local(party.name))
        .collect();
    let mut samples = Vec::new();
    let mut yes = 0;
    for round in 0..20_000 {
        let (a, b) = (&known[random(known.len())], &known[random(known.len())]);
        // The first ones look the names up.
        let mut unused = Vec::new();
        let place = if round < 5_000 {
            &mut unused
        } else {
            &mut samples
        };
        timed(place, || {
            yes += usize::from(node.reads_for(&EngineId::program(), a, b).unwrap());
        });
    }
    samples.sort_unstable();
    let at = |part: usize| micros(samples[samples.len() * part / 100]);
    Figure {
        name: "reads_for_100k_us",
        value: at(50),
        wanted: "≤ 100",
        what: format!(
            "p50 of a query over {count} pieces in µs (p99 {:.0} µs; {yes} of 20000 are true)",
            at(99)
        ),
    }
}

fn memory_node() -> Node {
    Node::builder(Registry::in_memory().unwrap())
        .driver(MemoryDriver::new())
        .build()
}

/// Direct encryption of short messages, by one caller and by two.
async fn scaling() -> Figure {
    const ROUND: Duration = Duration::from_millis(500);
    let node = memory_node();
    let who = EngineId::local("bench");
    let request = RequestGenerateIdentity {
        backend: Backend::LocalMemory,
        params: IdParams::P256,
        capabilities: Capabilities::Decrypt,
    };
    node.generate(&who, request, &Call::unlimited())
        .await
        .unwrap();
    let info = node.registry().identity(&who).unwrap().unwrap();
    let key = info.keys[0].public_key.clone();
    let (mut ratios, mut bare, mut rates) = (Vec::new(), Vec::new(), (0.0, 0.0));
    for _ in 0..9 {
        let one = rate(&node, &who, 1, ROUND).await;
        let two = rate(&node, &who, 2, ROUND).await;
        ratios.push(two / one);
        rates = (two, one);
        bare.push(bare_rate(&key, 2, ROUND) / bare_rate(&key, 1, ROUND));
    }
    ratios.sort_by(f64::total_cmp);
    bare.sort_by(f64::total_cmp);
    Figure {
        name: "encrypt_scaling_2t",
        value: ratios[ratios.len() / 2],
        wanted: "≥ 1.70",
        what: format!(
            "32-byte messages: two callers {:.0}/s / one {:.0}/s (without any engine: {:.2})",
            rates.0,
            rates.1,
            bare[bare.len() / 2]
        ),
    }
}

/// Encryptions a second of so many callers.
async fn rate(node: &Node, who: &EngineId, callers: usize, round: Duration) -> f64 {
    let end = Instant::now() + round;
    let callers: Vec<_> = (0..callers)
        .map(|_| {
            let (node, who) = (node.clone(), who.clone());
            tokio::spawn(async move {
                let mut count = 0u64;
                while Instant::now() < end {
                    let request = RequestEncrypt {
                        data: Secret::new(vec![7; 32]),
                        external_identity: who.clone(),
                        use_reads_for: false,
                        preference: Preference::default(),
                    };
                    node.encrypt(
                        &claviger_engine::EngineId::program(),
                        request,
                        &Call::unlimited(),
                    )
                    .await
                    .unwrap();
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut count = 0;
    for caller in callers {
        count += caller.await.unwrap();
    }
    count as f64 / round.as_secs_f64()
}

/// The same without any engine: what this machine has to give.
fn bare_rate(key: &PublicKey, callers: usize, round: Duration) -> f64 {
    let end = Instant::now() + round;
    let work = || {
        let mut count = 0u64;
        while Instant::now() < end {
            claviger_formats::envelope::encrypt(&[key], &[7; 32]).unwrap();
            count += 1;
        }
        count
    };
    let count: u64 = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..callers).map(|_| scope.spawn(work)).collect();
        let counts = callers.into_iter().map(|caller| caller.join().unwrap());
        counts.sum()
    });
    count as f64 / round.as_secs_f64()
}
