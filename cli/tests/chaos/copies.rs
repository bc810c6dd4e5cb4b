//! Copies of a home that are used beside it, and homes that are restored: no key is destroyed
//! that somebody has.
//!
//! A home is copied while keys are made and destroyed in it, and the process there may be
//! killed at that moment. Then a command runs in the copy, with the PIN and all. Only what a
//! person asks for by name (`delete`) may destroy a key there, so that is not among them.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::Outcome;
use crate::grounds::{Ground, Keys, Soft, YubiKey, keys_of};
use crate::report::{Choices, Report, progress};

/// An identity that is always there, one that comes and goes, and one that copies make.
const BYSTANDER: &str = "alice";
const VICTIM: &str = "bob";
const STRAY: &str = "stray";
/// After so many copies one home is restored.
const RESTORES: u64 = 3;

#[derive(Default)]
struct Tally {
    copies: u64,
    /// Those in which something was interrupted, as it seems there.
    interrupted: u64,
    destroyed: u64,
    restores: u64,
    /// Those of a state with open intents.
    open: u64,
    restores_destroyed: u64,
    complaints: Vec<String>,
}

pub(crate) fn run(report: &mut Report, copies: u64, seed: u64) {
    let grounds: [&dyn Ground; 2] = [&Soft::new(), &YubiKey::new()];
    let mut tally = Tally::default();
    for (number, ground) in (0..).zip(grounds) {
        let mut double = Double {
            ground,
            choices: Choices::new(seed, 30 + number),
            tally: &mut tally,
            length: Duration::ZERO,
        };
        double.begin();
        for round in 0..(copies + number) / 2 {
            if round % 20 == 0 {
                progress(format!("{}: {round} copies", ground.name()));
            }
            double.copy();
            if round % RESTORES == RESTORES - 1 {
                double.restore();
            }
        }
    }
    report.figure("copies", tally.copies);
    report.figure("copies_interrupted", tally.interrupted);
    report.figure("copies_destroyed", tally.destroyed);
    report.figure("restores", tally.restores);
    report.figure("restores_open", tally.open);
    report.figure("restores_destroyed", tally.restores_destroyed);
    report.promise(tally.destroyed == 0, "a copy of a home destroyed a key");
    report.promise(
        tally.restores_destroyed == 0,
        "a home that was restored destroyed a key",
    );
    report.promise(
        tally.interrupted > 0 || tally.copies < 50,
        "no home was copied in the middle of anything",
    );
    report.broken.extend(tally.complaints);
}

/// A home and its copies.
struct Double<'a> {
    ground: &'a dyn Ground,
    choices: Choices,
    tally: &'a mut Tally,
    /// How long a generation takes when nobody interferes.
    length: Duration,
}

impl Double<'_> {
    fn begin(&mut self) {
        let begun = Instant::now();
        self.must(&self.ground.generate(BYSTANDER));
        self.length = begun.elapsed();
    }

    /// Copies the home while something is done in it, and uses the copy.
    fn copy(&mut self) {
        let copy = self.ground.folder().join("copy");
        self.do_something(|| {
            let mut cp = Command::new("cp");
            cp.current_dir(copy.parent().unwrap())
                .args(["-r", "home", "copy"]);
            // It complains of what is removed meanwhile.
            let _ = cp.output().unwrap();
        });
        self.tally.copies += 1;
        let seen = Outcome::of(&mut self.in_copy(&["--json", "doctor"]));
        self.tally.interrupted += u64::from(is_interrupted(&seen));
        let before = self.ground.keys();
        let said = self.use_it(&copy);
        let gone = self.gone_since(&before);
        self.tally.destroyed += gone;
        // The one that copies make has keys that the home knows nothing of.
        let _ = Outcome::of(&mut self.in_copy(&["delete", STRAY]));
        std::fs::remove_dir_all(&copy).unwrap();
        self.put_right(&said);
        if gone > 0 {
            self.complain(&said, &format!("{gone} keys are gone"));
        }
    }

    /// Restores an older state, in which something may be open.
    fn restore(&mut self) {
        self.do_something(|| {});
        let open = self.backup("older");
        self.do_something(|| {});
        self.put_right("what came after the backup");
        self.backup("now");
        let home = self.ground.folder().join("home");
        self.must(&["restore", "older"].map(String::from));
        self.tally.restores += 1;
        self.tally.open += u64::from(open > 0);
        let before = self.ground.keys();
        let said = self.use_it(&home);
        let gone = self.gone_since(&before);
        self.tally.restores_destroyed += gone;
        if gone > 0 {
            self.complain(&said, &format!("{gone} keys are gone after a restore"));
        }
        let seen = Outcome::of(&mut self.command(&["--json", "doctor"]));
        if open > 0 && !is_interrupted(&seen) {
            self.complain(&said, "what was open in the backup is not shown");
        }
        let _ = Outcome::of(&mut self.command(&["delete", STRAY]));
        self.must(&["restore", "now"].map(String::from));
        self.must(&["doctor", "--this-is-the-home"].map(String::from));
        for file in ["older", "now"] {
            std::fs::remove_file(self.ground.folder().join(file)).unwrap();
        }
        self.put_right("a restore");
    }

    /// How many intents are open in it.
    fn backup(&mut self, file: &str) -> u64 {
        let outcome = Outcome::of(&mut self.command(&["--json", "backup", file]));
        outcome.succeeds().json()["open_intents"].as_u64().unwrap()
    }

    /// Makes or deletes an identity, does `meanwhile` at some moment of it, and kills the
    /// process then or waits for it.
    fn do_something(&mut self, meanwhile: impl FnOnce()) {
        let words = match self.ground.identities().contains_key(VICTIM) {
            true => ["delete", VICTIM].map(String::from).to_vec(),
            false => self.ground.generate(VICTIM),
        };
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let late = (self.choices).between(Duration::ZERO, self.length.mul_f64(1.1));
        let mut command = self.command(&words);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(late);
        meanwhile();
        if self.choices.once_in(2) {
            // An error: it has ended.
            let _ = child.kill();
        }
        child.wait().unwrap();
        self.ground.heal();
    }

    /// Uses a home that is not the one where things were begun; what was said.
    fn use_it(&mut self, home: &PathBuf) -> String {
        let generate = self.ground.generate(STRAY);
        let generate: Vec<&str> = generate.iter().map(String::as_str).collect();
        let words = match self.choices.below(4) {
            0 => &["doctor", "--repair"][..],
            1 => &["sign", BYSTANDER, "pin", "-o", "left.sig"],
            2 => &["identities"],
            _ => &generate,
        };
        // Whether it succeeds is another question: the copy may be half a one.
        let _ = Outcome::of(self.command(words).env("CLAVIGER_HOME", home));
        // The next command with the PIN resolves what is open, where it may.
        let repair = &["doctor", "--repair"];
        let _ = Outcome::of(self.command(repair).env("CLAVIGER_HOME", home));
        let _ = std::fs::remove_file(self.ground.folder().join("left.sig"));
        words.join(" ")
    }

    fn gone_since(&self, before: &Keys) -> u64 {
        before.difference(&self.ground.keys()).count() as u64
    }

    /// Resolves what is open in the home; then each identity there has its keys.
    fn put_right(&mut self, said: &str) {
        let outcome = Outcome::of(&mut self.command(&["doctor", "--repair"]));
        if outcome.code() != Some(0) {
            self.complain(
                said,
                &format!("not put right: {}{}", outcome.out(), outcome.err()),
            );
        }
        let keys = self.ground.keys();
        let identities = self.ground.identities();
        let lost = { identities.values() }
            .flat_map(keys_of)
            .filter(|key| !keys.contains(key))
            .count();
        if lost > 0 || !identities.contains_key(BYSTANDER) {
            self.tally.destroyed += lost as u64;
            self.complain(said, &format!("{lost} keys of the home are gone"));
        }
    }

    fn command(&self, words: &[&str]) -> Command {
        self.ground.claviger(words)
    }

    fn in_copy(&self, words: &[&str]) -> Command {
        let mut command = self.command(words);
        command.env("CLAVIGER_HOME", self.ground.folder().join("copy"));
        command
    }

    fn must(&self, words: &[String]) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Outcome::of(&mut self.command(&words)).succeeds();
    }

    fn complain(&mut self, said: &str, what: &str) {
        let complaint = format!("on {} after `{said}`: {what}", self.ground.name());
        progress(&complaint);
        self.tally.complaints.push(complaint);
    }
}

/// Whether `doctor` shows that something was interrupted. It may say nothing: a copy may be
/// half a one.
fn is_interrupted(doctor: &Outcome) -> bool {
    let report: Value = serde_json::from_slice(doctor.bytes()).unwrap_or_default();
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    findings.iter().any(|finding| {
        finding["level"] == "warning" && finding["what"].to_string().contains("was interrupted")
    })
}
