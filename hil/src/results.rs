//! The results of a run: one [`Record`] per finding, each with its device.
//!
//! They are written as JSON lines while the run goes on, so that they survive whatever happens
//! next. The other reports are made from them.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};

use claviger_token::{Algorithm, KeySpec};
use serde::{Deserialize, Serialize};

use crate::error::HilError;

/// One finding. In JSON it is one flat object: the circumstances, the device, and what
/// `record` says it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The run.
    #[serde(flatten)]
    pub run: Run,
    /// The device; none for what is about the run as a whole.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Subject>,
    /// What was found.
    #[serde(flatten)]
    pub finding: Finding,
}

/// The circumstances of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The version of this format: 2. The first had `supports` where there are `makes` and
    /// `uses` now.
    pub schema: u32,
    /// When the run began, in UTC (RFC 3339).
    pub run: String,
    /// The machine: system, processor, how many of them.
    pub host: String,
    /// The version of Claviger.
    pub claviger: String,
    /// `release`, or `debug`, whose figures are of no use.
    pub build: String,
}

/// What reports say of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// What reports call it: the same in each run.
    pub device: String,
    /// Its kind: the driver's scheme.
    pub kind: String,
    /// Its model, as it says itself.
    pub model: String,
    /// Its serial.
    pub serial: String,
    /// The version of its firmware, app or library, as it says itself; may be empty.
    pub firmware: String,
    /// What the bench may do with it.
    pub standing: Standing,
}

/// What the bench may do with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It was started by the bench.
    Virtual,
    /// It is listed as expendable.
    Listed,
    /// It is not listed: it is only read.
    ReadOnly,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum Finding {
    /// The device is there, and offers this.
    Device {
        /// The kinds of key that it makes. Earlier reports call them `supports`.
        #[serde(alias = "supports")]
        makes: Vec<KeySpec>,
        /// The kinds of key that it works with, wherever they were made. Earlier reports
        /// do not say.
        #[serde(default)]
        uses: Vec<KeySpec>,
        /// What else it says of itself.
        notes: Vec<(String, String)>,
    },
    /// A check was made, or could not be.
    Check {
        /// The statement, as a sentence with underscores.
        check: String,
        /// What it is about: one of [`Theme::ALL`](claviger_conformance::Theme::ALL), or
        /// `device` for the bench's own.
        capability: String,
        /// What came of it.
        outcome: Outcome,
        /// Why it was skipped, or how it failed.
        reason: String,
        /// How long it took, in seconds.
        seconds: f64,
    },
    /// How long an operation takes, one at a time.
    Latency {
        /// What was measured.
        #[serde(flatten)]
        of: Operation,
        /// How many keys of the bench were on the device.
        keys: usize,
        /// How often it was measured.
        samples: usize,
        /// Microseconds: the mean.
        mean: f64,
        /// Microseconds: half of them took no longer.
        p50: f64,
        /// Microseconds: of twenty, nineteen took no longer.
        p95: f64,
        /// Microseconds: of a hundred, ninety-nine took no longer.
        p99: f64,
        /// Microseconds: the quantiles 0, 5, … 100 %.
        quantiles: Vec<f64>,
        /// Microseconds: the median of each round. The rounds lie apart, and show how much
        /// it varies within the run.
        #[serde(alias = "tenths")]
        rounds: Vec<f64>,
    },
    /// How many operations are done in a second.
    Throughput {
        /// What was measured.
        #[serde(flatten)]
        of: Operation,
        /// How many threads asked for it at once.
        callers: usize,
        /// Operations per second: the median of the rounds.
        per_second: f64,
        /// Operations per second, round by round.
        rounds: Vec<f64>,
    },
    /// What the machine itself did while the device was measured. Where it did less,
    /// other programs were at work.
    Machine {
        /// How much of the same arithmetic its processors did in a second, round by round.
        rounds: Vec<f64>,
    },
    /// What an operation asks of the device.
    Calls {
        /// What was measured.
        #[serde(flatten)]
        of: Operation,
        /// `apdu` or `pkcs11`.
        unit: String,
        /// How many of them.
        calls: f64,
    },
    /// What a long time of the same does.
    Endurance {
        /// What was measured.
        #[serde(flatten)]
        of: Operation,
        /// How long, in seconds.
        seconds: f64,
        /// How many operations were done.
        operations: usize,
        /// The errors, and how often each came.
        errors: Vec<(String, usize)>,
        /// Microseconds: the median of each of up to sixty equal parts of the time.
        medians: Vec<f64>,
        /// Microseconds: the slowest of each part.
        slowest: Vec<f64>,
    },
    /// What could not be measured.
    NotMeasured {
        /// What.
        what: String,
        /// Why.
        reason: String,
    },
    /// The run ended.
    End {
        /// Whether everything was done.
        complete: bool,
        /// How long it took, in seconds.
        seconds: f64,
    },
}

/// An operation with a kind of key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Operation {
    /// What is done.
    pub operation: Verb,
    /// The kind of key.
    pub algorithm: Algorithm,
}

/// What is done with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// A signature.
    Sign,
    /// A key agreement, or RSA-OAEP.
    Decrypt,
    /// A key is made.
    Generate,
}

impl Verb {
    /// `sign`, `decrypt` or `generate`.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Sign => "sign",
            Verb::Decrypt => "decrypt",
            Verb::Generate => "generate",
        }
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.operation.name(), self.algorithm)
    }
}

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The device does what the check says.
    Passed,
    /// The check does not apply, or could not be made.
    Skipped,
    /// The device does something else.
    Failed,
}

impl Record {
    /// What reports call the device; empty for the run as a whole.
    pub fn device(&self) -> &str {
        self.device.as_ref().map_or("", |subject| &subject.device)
    }
}

/// The records of a run, in memory and in a file.
pub struct Results {
    run: Run,
    records: Vec<Record>,
    path: PathBuf,
    file: File,
}

/// The file with the records.
pub(crate) const RESULTS: &str = "results.jsonl";

impl Results {
    /// An empty file of results in `folder`, which is made if it is not there.
    ///
    /// # Errors
    /// [`HilError::Unwritable`].
    pub fn create(folder: &Path) -> Result<Results, HilError> {
        let path = folder.join(RESULTS);
        let file = fs::create_dir_all(folder)
            .and_then(|()| File::create(&path))
            .map_err(|e| HilError::Unwritable {
                path: path.clone(),
                reason: e.to_string(),
            })?;
        Ok(Results {
            run: Run::now(),
            records: Vec::new(),
            path,
            file,
        })
    }

    /// Adds a finding.
    ///
    /// # Errors
    /// [`HilError::Unwritable`].
    pub fn add(&mut self, device: Option<&Subject>, finding: Finding) -> Result<(), HilError> {
        let record = Record {
            run: self.run.clone(),
            device: device.cloned(),
            finding,
        };
        let written = serde_json::to_string(&record)
            .map_err(std::io::Error::other)
            .and_then(|line| writeln!(self.file, "{line}"));
        self.records.push(record);
        written.map_err(|e| HilError::Unwritable {
            path: self.path.clone(),
            reason: e.to_string(),
        })
    }

    /// All of them so far.
    pub fn records(&self) -> &[Record] {
        &self.records
    }
}

impl Run {
    fn now() -> Run {
        let now = chrono::Utc::now();
        Run {
            schema: 2,
            run: now.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            host: host(),
            claviger: env!("CARGO_PKG_VERSION").into(),
            build: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            }
            .into(),
        }
    }
}

/// The machine, as far as it matters to figures.
fn host() -> String {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or(std::env::consts::ARCH, |(_, model)| model.trim());
    format!("{}, {processors} × {model}", std::env::consts::OS)
}

/// Reads the results of a run.
///
/// # Errors
/// [`HilError::BadReport`].
pub fn read(path: &Path) -> Result<Vec<Record>, HilError> {
    let bad = |reason: String| HilError::BadReport {
        path: path.into(),
        reason,
    };
    let file = File::open(path).map_err(|e| bad(e.to_string()))?;
    let mut records = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|e| bad(e.to_string()))?;
        let record: Record =
            serde_json::from_str(&line).map_err(|e| bad(format!("line {}: {e}", index + 1)))?;
        records.push(record);
    }
    match records.is_empty() {
        true => Err(bad("it is empty".into())),
        false => Ok(records),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_flat_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut results = Results::create(folder.path()).unwrap();
        let subject = Subject {
            device: "d".into(),
            kind: "piv".into(),
            model: "m".into(),
            serial: "1".into(),
            firmware: "5.7.1".into(),
            standing: Standing::ReadOnly,
        };
        let of = Operation {
            operation: Verb::Sign,
            algorithm: Algorithm::P256,
        };
        let calls = Finding::Calls {
            of,
            unit: "apdu".into(),
            calls: 1.0,
        };
        results.add(Some(&subject), calls).unwrap();
        let end = Finding::End {
            complete: true,
            seconds: 1.5,
        };
        results.add(None, end).unwrap();
        let path = folder.path().join("results.jsonl");
        assert_eq!(read(&path).unwrap(), results.records());

        let text = fs::read_to_string(&path).unwrap();
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(first["record"], "calls");
        assert_eq!(first["operation"], "sign");
        assert_eq!(first["algorithm"], "p256");
        assert_eq!(first["standing"], "read-only");
        assert_eq!(first["firmware"], "5.7.1");
        assert!(first["host"].as_str().unwrap().contains(" × "));
    }

    #[test]
    fn a_report_of_the_first_version_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let line = r#"{"schema":1,"run":"2026-11-02T09:00:00Z","host":"h","claviger":"0.1.0",
            "build":"release","device":"d","kind":"piv","model":"m","serial":"1",
            "firmware":"5.7.1","standing":"listed","record":"device",
            "supports":[{"algorithm":"p256","use":"sign"}],"notes":[]}"#;
        fs::write(&path, line.replace('\n', "")).unwrap();
        let Finding::Device { makes, uses, .. } = &read(&path).unwrap()[0].finding else {
            panic!("it is about a device");
        };
        assert_eq!(*makes, [KeySpec::sign(Algorithm::P256)]);
        assert_eq!(*uses, []);
    }

    #[test]
    fn what_is_no_report_is_refused_with_the_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        for (text, words) in [("", "empty"), ("{}", "line 1"), ("\n", "line 1")] {
            fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(read(&folder.path().join("none")).is_err());
    }
}
