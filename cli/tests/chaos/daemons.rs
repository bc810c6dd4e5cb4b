//! A daemon that is killed under its clients at any moment: what it has answered is true, and what
//! it leaves behind is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use claviger_token::sync::lock;
use rustix::process::Signal;
use serde_json::Value;

use crate::clients::{Clients, LETTER};
use crate::common::{Daemon, Outcome, Stage};
use crate::report::{Choices, Report, millis, percentile, progress};

/// Who signs and opens files.
pub(crate) const ALICE: &str = "alice";
/// Who seals the log. Its backend names a file with the PIN, so that it needs no person.
const SEALER: &str = "sealer";
/// The log of the daemon.
const LOG: &str = "audit.jsonl";
/// So long a daemon serves at most before it is killed.
const LONGEST_LIFE: Duration = Duration::from_millis(250);
/// So long one that ends by itself is given before it is killed all the same.
const LONGEST_END: Duration = Duration::from_millis(40);
/// Of so many daemons one is killed at its start, whether it has answered or not.
const AT_ITS_START: u64 = 4;
/// Of so many one is told to end, and killed while it does.
const AT_ITS_END: u64 = 8;
/// Of so many one ends by itself, which seals the log.
const BY_ITSELF: u64 = 10;
/// After so many kills what was begun is resolved by a command, and the token's keys are counted.
const REPAIR: u64 = 5;
/// Of so many kills at least one strikes in the middle of something.
const ENOUGH: u64 = 100;
/// After so many complaints nothing new is learnt.
const MOST_COMPLAINTS: usize = 20;
/// A daemon that has answered nobody by then never will.
const NEVER: Duration = Duration::from_secs(120);

/// What clients and daemons did, and what is wrong with it.
#[derive(Default)]
pub(crate) struct Tally {
    /// Requests that were answered as they should be.
    pub(crate) answered: AtomicU64,
    /// Requests that may have been carried out: their daemon died before it answered.
    pub(crate) unknown: AtomicU64,
    /// Answers that are not true.
    pub(crate) untrue: AtomicU64,
    /// Requests that ended otherwise.
    pub(crate) failed: AtomicU64,
    complaints: Mutex<Vec<String>>,
    /// When a daemon was ready, until its first answer.
    ready: Mutex<Option<Instant>>,
    first_answers: Mutex<Vec<Duration>>,
}

impl Tally {
    /// A request was answered as it should be.
    pub(crate) fn answered(&self) {
        count(&self.answered);
        if let Some(ready) = lock(&self.ready).take() {
            lock(&self.first_answers).push(ready.elapsed());
        }
    }

    /// Counts what is wrong, and says so.
    pub(crate) fn complain(&self, counter: &AtomicU64, what: String) {
        count(counter);
        self.object(what);
    }

    fn object(&self, what: String) {
        progress(&what);
        self.complaints().push(what);
    }

    fn complaints(&self) -> MutexGuard<'_, Vec<String>> {
        lock(&self.complaints)
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn value(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

pub(crate) fn run(report: &mut Report, kills: u64, seed: u64) {
    let stage = stage();
    let tally = Tally::default();
    let ends = AtomicBool::new(false);
    let mut choices = Choices::new(seed, 30);
    let of_clients = Choices::new(seed, 31);
    let clients = Clients::new(&stage, &tally);
    let mut killer = Killer {
        stage: &stage,
        tally: &tally,
        clients: &clients,
        killed: 0,
        ended: 0,
        interrupted: 0,
        orphans: 0,
        log_faults: 0,
        lines: 0,
        seals: 0,
    };
    let last = thread::scope(|scope| {
        let _ends = Ends(&ends);
        clients.begin(scope, of_clients, &ends);
        // It serves until the clients have ended.
        killer.fight(kills, &mut choices)
    });
    killer.end(last);
    killer.check("the last one", true);
    killer.check_answers();
    killer.report(report);
}

/// Ends the clients, also where something else fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A home whose daemon writes everything down and seals it.
fn stage() -> Stage {
    let stage = Stage::with_alice();
    let pin = stage.path("pin").display().to_string();
    let backend = format!("{}&pin-source=file:{pin}", stage.token.backend());
    let sealer = ["generate", SEALER, "--backend", &backend];
    let only = ["--capabilities", "commit"];
    stage.run([&sealer[..], &only].concat()).succeeds();
    stage.write("letter", LETTER);
    let encrypt = ["encrypt", ALICE, "letter", "-o", "letter.age"];
    stage.run(encrypt).succeeds();
    let folder = stage.path("config/claviger");
    fs::create_dir_all(&folder).unwrap();
    let log = stage.path(LOG).display().to_string();
    let settings = format!("[serve.audit]\nfile = '{log}'\njournal = false\nseal = '{SEALER}'\n");
    fs::write(folder.join("config.toml"), settings).unwrap();
    stage
}

struct Killer<'a> {
    stage: &'a Stage,
    tally: &'a Tally,
    clients: &'a Clients<'a>,
    killed: u64,
    /// Those that ended by themselves.
    ended: u64,
    /// Kills that left something to be resolved.
    interrupted: u64,
    orphans: u64,
    log_faults: u64,
    lines: u64,
    seals: u64,
}

impl Killer<'_> {
    /// Kills so many; the one after them serves.
    fn fight(&mut self, kills: u64, choices: &mut Choices) -> Daemon {
        let begun = Instant::now();
        while self.killed < kills {
            if self.killed.is_multiple_of(50) {
                let seconds = begun.elapsed().as_secs();
                progress(format!(
                    "{} of {kills} daemons killed, {seconds} s",
                    self.killed
                ));
            }
            let said = self.round(choices);
            let repairs = self.killed.is_multiple_of(REPAIR);
            self.check(&said, repairs);
            if self.tally.complaints().len() > MOST_COMPLAINTS {
                break;
            }
        }
        let daemon = self.start();
        self.wait_for_an_answer();
        // By requests that only use keys of the token.
        let begun = Instant::now();
        while self.found().iter().any(is_interrupted) {
            if begun.elapsed() > NEVER {
                let what = "what daemons have left is not resolved by the next one";
                self.tally.object(what.into());
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        daemon
    }

    /// Lets a daemon live and die.
    fn round(&mut self, choices: &mut Choices) -> String {
        let daemon = self.start();
        if !choices.once_in(AT_ITS_START) {
            self.wait_for_an_answer();
        }
        thread::sleep(choices.between(Duration::ZERO, LONGEST_LIFE));
        if choices.once_in(BY_ITSELF) {
            self.end(daemon);
            return "a daemon that ended".into();
        }
        let is_at_its_end = choices.once_in(AT_ITS_END);
        if is_at_its_end {
            daemon.signal(Signal::TERM);
            thread::sleep(choices.between(Duration::ZERO, LONGEST_END));
        }
        daemon.kill();
        self.killed += 1;
        match is_at_its_end {
            true => format!("kill {} of one that ended", self.killed),
            false => format!("kill {}", self.killed),
        }
    }

    fn start(&self) -> Daemon {
        let daemon = Daemon::start(self.stage);
        *lock(&self.tally.ready) = Some(Instant::now());
        daemon
    }

    fn end(&mut self, daemon: Daemon) {
        self.ended += 1;
        let status = daemon.stop();
        if !status.success() {
            self.tally
                .object(format!("a daemon that was to end: {status}"));
        }
    }

    fn wait_for_an_answer(&self) {
        let begun = Instant::now();
        while lock(&self.tally.ready).is_some() {
            if begun.elapsed() > NEVER {
                return self.tally.object("a daemon answers nobody".into());
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// What a daemon that is dead has left.
    fn check(&mut self, said: &str, repairs: bool) {
        self.stage.heal();
        self.check_log(said);
        let found = self.found();
        let is_interrupted = found.iter().any(is_interrupted);
        self.interrupted += u64::from(is_interrupted);
        let mut is_half_deleted = false;
        for error in found.iter().filter(|found| found["level"] == "error") {
            let what = error["what"].as_str().unwrap();
            match is_interrupted && what.contains("is not on the token any more") {
                // Of an identity that is being deleted.
                true => is_half_deleted = true,
                false => self.tally.object(format!("after {said}: {what}")),
            }
        }
        let repairs = repairs || is_half_deleted;
        if repairs {
            let repaired = self.claviger(&["doctor", "--repair"]);
            if repaired.code() != Some(0) {
                let why = format!("{}{}", repaired.out(), repaired.err());
                self.tally
                    .object(format!("after {said} it is not put right: {why}"));
            }
            self.count_keys(said);
        }
        let there = self.identities();
        for untrue in self.clients.untrue(&there) {
            let what = format!("after {said}: {untrue}");
            self.tally.complain(&self.tally.untrue, what);
        }
    }

    /// What `doctor` finds.
    fn found(&self) -> Vec<Value> {
        let doctor = self.stage.run(["--no-daemon", "--json", "doctor"]).json();
        doctor["findings"].as_array().unwrap().clone()
    }

    /// Keys and identities are one to one.
    fn count_keys(&mut self, said: &str) {
        let identities = self.stage.json(&["--no-daemon", "identities"]);
        let of = |one: &Value| one["keys"].as_array().unwrap().len() as u64;
        let known: u64 = identities.as_array().unwrap().iter().map(of).sum();
        let found = self.stage.private_keys() as u64;
        if known != found {
            self.orphans += known.abs_diff(found);
            let what = format!("after {said}: {found} keys for {known} of identities");
            self.tally.object(what);
        }
    }

    fn identities(&self) -> BTreeSet<String> {
        let listed = self.claviger(&["--json", "identities"]).json();
        let name = |one: &Value| one["name"].as_str().unwrap().to_owned();
        listed.as_array().unwrap().iter().map(name).collect()
    }

    /// The files of the log, the oldest first.
    fn log(&self) -> Vec<PathBuf> {
        let moved = format!("{LOG}.");
        let is_moved = |name: &String| {
            let number = name.strip_prefix(&moved);
            number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let mut names = self.stage.files();
        names.retain(is_moved);
        // Their numbers have leading zeros.
        names.sort();
        names.push(LOG.into());
        let paths = names.iter().map(|name| self.stage.path(name));
        paths.filter(|path| path.exists()).collect()
    }

    /// The log has no fault. A last line that was cut short is completed by the next daemon.
    fn check_log(&mut self, said: &str) {
        let files = self.log();
        if files.is_empty() {
            return;
        }
        let mut words = vec!["--json".into(), "audit".into(), "verify".into()];
        words.extend(files.iter().map(|file| file.display().to_string()));
        words.extend(["--sealed-by".into(), SEALER.into()]);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let report = self.claviger(&words);
        if report.err().contains("audit-empty") {
            return;
        }
        let report = report.json();
        self.lines = report["lines"].as_u64().unwrap();
        self.seals = report["seals"].as_u64().unwrap();
        let faults = report["faults"].as_array().unwrap();
        let is_cut = |fault: &&Value| fault["what"] == "the last line was cut short";
        let others = faults.iter().filter(|fault| !is_cut(fault));
        let others: Vec<String> = others.map(Value::to_string).collect();
        if !others.is_empty() {
            self.log_faults += others.len() as u64;
            self.tally
                .object(format!("after {said}, in the log: {others:?}"));
        }
    }

    /// What was answered is in the log, from its beginning to its end.
    fn check_answers(&self) {
        let (mut begun, mut done) = (BTreeMap::new(), BTreeSet::new());
        for file in self.log() {
            for line in fs::read_to_string(file).unwrap().lines() {
                let line: Value = serde_json::from_str(line).unwrap();
                match line["kind"].as_str() {
                    Some("begin") if line["operation"] == "sign" => {
                        let digest = line["digest"].as_str().unwrap_or_default();
                        begun.insert(line["n"].as_u64(), digest.to_owned());
                    }
                    Some("end") if line["outcome"] == "done" => {
                        done.extend(begun.remove(&line["id"].as_u64()));
                    }
                    _ => {}
                }
            }
        }
        let signed = self.clients.signed();
        let missing = signed.difference(&done).count() as u64;
        if missing > 0 {
            let what = format!(
                "of {} signatures {missing} are not in the log",
                signed.len()
            );
            self.tally.complain(&self.tally.untrue, what);
        }
    }

    /// The command, which works by itself.
    fn claviger(&self, words: &[&str]) -> Outcome {
        let words = [&["--no-daemon"], words].concat();
        self.stage.run_with_pin(&words)
    }

    fn report(&self, report: &mut Report) {
        let tally = self.tally;
        report.figure("daemon_kills", self.killed);
        report.figure("daemon_ends", self.ended);
        report.figure("daemon_interrupted", self.interrupted);
        report.figure("daemon_answered", value(&tally.answered));
        for (what, done) in self.clients.done() {
            report.figure(format!("daemon_{what}"), done);
        }
        report.figure("daemon_unknown", value(&tally.unknown));
        report.figure("daemon_failed", value(&tally.failed));
        report.figure("daemon_untrue", value(&tally.untrue));
        report.figure("daemon_orphans", self.orphans);
        report.figure("daemon_log_lines", self.lines);
        report.figure("daemon_log_seals", self.seals);
        report.figure("daemon_log_faults", self.log_faults);
        let mut first = lock(&tally.first_answers).clone();
        for (name, share) in [("p50", 0.50), ("p99", 0.99)] {
            let after = percentile(&mut first, share);
            report.figure(format!("daemon_first_answer_{name}_ms"), millis(after));
        }
        let is_nothing = |counter: &AtomicU64| value(counter) == 0;
        report.promise(is_nothing(&tally.untrue), "a daemon's answer was not true");
        report.promise(is_nothing(&tally.failed), "a request to a daemon failed");
        report.promise(
            self.orphans == 0,
            "a daemon left keys and identities unequal",
        );
        report.promise(self.log_faults == 0, "a daemon left a log with faults");
        report.promise(self.seals > 0, "no seal of a daemon was checked");
        report.promise(
            self.interrupted > 0 || self.killed < ENOUGH,
            "no daemon was struck in the middle",
        );
        report.broken.extend(tally.complaints().drain(..));
    }
}

/// Whether something is to be resolved, as `doctor` sees it.
fn is_interrupted(finding: &Value) -> bool {
    finding["level"] == "warning" && finding["what"].to_string().contains("interrupted")
}
