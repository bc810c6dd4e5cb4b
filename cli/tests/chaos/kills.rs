//! Processes that are killed, or find no space or no way to write, at any point of Generate,
//! Connect and Delete; and what others find afterwards.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::Outcome;
use crate::grounds::{Ground, Keys, Soft, YubiKey, keys_of};
use crate::report::{Choices, Report, progress};

/// An identity that is made first and never touched.
const BYSTANDER: &str = "alice";
/// Identities that are made and deleted.
const VICTIMS: [&str; 2] = ["bob", "carol"];
/// One who is connected to an identity, and one who adopts a key of others.
const FRIEND: &str = "friend";
const ADOPTER: &str = "adopter";
/// Of so many rounds one is on a full disk, and one where nothing may be written.
const WEATHER: u64 = 25;
/// Of so many kills one is followed by one of the process that puts things right.
const RELAPSE: u64 = 8;
/// Of so many chances another program takes one to put its key where one of ours is.
const INTRUSION: u64 = 4;
/// Of so many kills at least one strikes in the middle of something.
const ENOUGH: u64 = 100;
/// So often a process with a wrong PIN is started.
const WRONG_STARTS: u64 = 20;

/// Runs the command with `FOLDERS` on a disk of their own that has `FREE` bytes left.
const ON_A_FULL_DISK: &str = r#"
mkdir -p small && mount -t tmpfs -o size=4m none small || exit 99
number=0
for folder in $FOLDERS; do
    number=$((number + 1))
    cp -a "$folder" "small/$number" && mount --bind "small/$number" "$folder" || exit 99
done
dd if=/dev/zero of=small/filler bs=4k 2>/dev/null
truncate -s "-$FREE" small/filler
"$@"
status=$?
rm small/filler
number=0
for folder in $FOLDERS; do
    number=$((number + 1))
    umount "$folder" && find "$folder" -mindepth 1 -delete || exit 99
    cp -a "small/$number/." "$folder" || exit 99
done
exit $status
"#;

/// Runs the command with a home folder that cannot be written to.
const READ_ONLY: &str = r#"
mount --bind home home && mount -o remount,bind,ro home || exit 99
exec "$@"
"#;

#[derive(Default)]
struct Tally {
    kills: u64,
    /// Kills that left something to be settled.
    interrupted: u64,
    /// Keys of others that were put where keys of ours are.
    intruders: u64,
    settled: u64,
    full_disks: u64,
    /// Those of them that the token was on, too.
    full_token_disks: u64,
    read_only: u64,
    orphans: u64,
    lost: u64,
    foreign_touched: u64,
    pin_tries_spent: u64,
    complaints: Vec<String>,
}

pub(crate) fn run(report: &mut Report, kills: u64, seed: u64) {
    let yubikey = YubiKey::new();
    let grounds: [&dyn Ground; 2] = [&Soft::new(), &yubikey];
    let mut all = Tally::default();
    for (number, ground) in grounds.into_iter().enumerate() {
        let wanted = (kills + number as u64) / 2;
        let choices = Choices::new(seed, number as u64);
        let tally = Battle::begin(ground, choices).fight(wanted);
        let name = ground.name();
        report.figure(format!("kills_{name}"), tally.kills);
        report.figure(format!("interrupted_{name}"), tally.interrupted);
        report.figure(format!("intruders_{name}"), tally.intruders);
        report.promise(
            tally.intruders > 0 || tally.kills < ENOUGH,
            format!("no key of others was put where one of ours is on {name}"),
        );
        report.promise(
            tally.interrupted > 0 || tally.kills < ENOUGH,
            format!("no process was struck in the middle on {name}"),
        );
        all.kills += tally.kills;
        all.intruders += tally.intruders;
        all.full_disks += tally.full_disks;
        all.full_token_disks += tally.full_token_disks;
        all.read_only += tally.read_only;
        all.orphans += tally.orphans;
        all.lost += tally.lost;
        all.foreign_touched += tally.foreign_touched;
        all.pin_tries_spent += tally.pin_tries_spent;
        all.complaints.extend(tally.complaints);
    }
    progress("a wrong PIN, again and again");
    let mut choices = Choices::new(seed, 9);
    let spent = yubikey.pin_tries_spent_by(WRONG_STARTS, |command| {
        let late = choices.between(Duration::ZERO, Duration::from_millis(300));
        strike(command, late);
    });
    report.figure("kills", all.kills);
    report.figure("full_disks", all.full_disks);
    report.figure("full_token_disks", all.full_token_disks);
    report.figure("read_only", all.read_only);
    report.figure("intruders", all.intruders);
    report.figure("orphans", all.orphans);
    report.figure("lost", all.lost);
    report.figure("foreign_touched", all.foreign_touched);
    report.count("pin_tries_spent", all.pin_tries_spent);
    report.figure("wrong_pin_tries_spent", spent);
    report.promise(all.orphans == 0, "a key has no identity");
    report.promise(all.lost == 0, "an identity has no key");
    report.promise(all.foreign_touched == 0, "something of others was touched");
    report.promise(all.pin_tries_spent == 0, "a PIN try was spent");
    report.promise(spent <= 1, "a wrong PIN was sent more than once");
    report.broken.extend(all.complaints);
}

/// What is done next, and what it does to the identities if it comes to its end.
struct Move {
    words: Vec<String>,
    name: &'static str,
    makes: bool,
}

struct Battle<'a> {
    ground: &'a dyn Ground,
    choices: Choices,
    tally: Tally,
    /// Keys that are not ours.
    others: Keys,
    /// Keys of ours that others have put theirs in place of.
    taken: Keys,
    foreign: BTreeMap<String, Vec<u8>>,
    foreign_key: String,
    bystander: Value,
    /// How long the commands take when nobody interferes.
    lengths: BTreeMap<String, Duration>,
}

impl<'a> Battle<'a> {
    fn begin(ground: &'a dyn Ground, choices: Choices) -> Self {
        let mut battle = Battle {
            ground,
            choices,
            tally: Tally::default(),
            others: ground.keys(),
            taken: Keys::new(),
            foreign: ground.foreign(),
            foreign_key: ground.foreign_key(),
            bystander: Value::Null,
            lengths: BTreeMap::new(),
        };
        battle.timed(&ground.generate(BYSTANDER));
        battle.bystander = ground.identities()[BYSTANDER].clone();
        for next in [
            Move::new(VICTIMS[0], true, ground.generate(VICTIMS[0])),
            battle.connect(FRIEND, VICTIMS[0]),
            battle.adopt(),
            Move::new(FRIEND, false, words(&["delete", FRIEND])),
            Move::new(ADOPTER, false, words(&["delete", ADOPTER])),
            Move::new(VICTIMS[0], false, words(&["delete", VICTIMS[0]])),
            Move::new("", false, words(&["doctor", "--repair"])),
        ] {
            battle.timed(&next.words);
        }
        battle.check("before anything was killed");
        battle
    }

    fn fight(mut self, wanted: u64) -> Tally {
        let name = self.ground.name();
        let begun = Instant::now();
        // Where the machine is so busy that nothing is struck, it ends nevertheless.
        for round in 0..10 * wanted {
            if self.tally.kills >= wanted {
                break;
            }
            if round % 50 == 0 {
                let (kills, seconds) = (self.tally.kills, begun.elapsed().as_secs());
                progress(format!("{name}: {kills} of {wanted} kills, {seconds} s"));
            }
            self.round();
        }
        self.use_what_is_left();
        let kills = self.tally.kills;
        if kills < wanted {
            let complaint = format!("on {name} only {kills} of {wanted} were struck");
            self.tally.complaints.push(complaint);
        }
        self.tally
    }

    /// The keys of those that are left still sign.
    fn use_what_is_left(&mut self) {
        for (name, identity) in self.ground.identities() {
            if keys_of(&identity)
                .iter()
                .any(|key| self.taken.contains(key))
            {
                continue;
            }
            let sign = ["sign", &name, "pin", "--format", "sshsig", "-o", "left.sig"];
            let verify = ["verify", &name, "--signature", "left.sig", "pin"];
            for command in [&sign[..], &verify] {
                let outcome = Outcome::of(&mut self.command(&words(command)));
                if outcome.code() != Some(0) {
                    self.tally.lost += 1;
                    self.complain(&command.join(" "), &outcome.err());
                }
            }
            let _ = std::fs::remove_file(self.ground.folder().join("left.sig"));
        }
    }

    fn round(&mut self) {
        let next = self.choose();
        let said = next.words.join(" ");
        if !next.makes && VICTIMS.contains(&next.name) && self.choices.once_in(INTRUSION) {
            let keys = keys_of(&self.ground.identities()[next.name]);
            self.intrude(keys.into_iter().collect());
        }
        // 0: a full disk, 1: nothing may be written; else it is killed.
        let weather = self.choices.below(WEATHER);
        let ended = match weather {
            0 => Some(self.on_a_full_disk(&next.words)),
            1 => {
                self.tally.read_only += 1;
                Some(self.confined(&next.words, READ_ONLY, &[]))
            }
            _ => self.kill(&next.words),
        };
        self.ground.heal();
        if !self.ground.has_room_for_one() && self.choices.once_in(INTRUSION) {
            let unfinished = self.unfinished();
            self.intrude(unfinished);
        }
        self.settle(weather > 1, &said);
        self.check(&said);
        let there = self.ground.identities().contains_key(next.name);
        match ended {
            // What was confirmed has been done.
            Some(true) if there != next.makes => self.complain(&said, "confirmed, not done"),
            // Nothing can be begun that cannot be written down.
            Some(true) if weather == 1 => self.complain(&said, "done where nothing can be written"),
            _ => {}
        }
    }

    /// Keys on the token that are nobody's, since what was killed had not come to its end.
    fn unfinished(&self) -> Vec<(String, String)> {
        let known: Keys = self
            .ground
            .identities()
            .values()
            .flat_map(keys_of)
            .collect();
        let is_unknown =
            |key: &(String, String)| !known.contains(key) && !self.others.contains(key);
        self.ground.keys().into_iter().filter(is_unknown).collect()
    }

    /// Another program puts a key of its own where one of these is.
    fn intrude(&mut self, mut ours: Vec<(String, String)>) {
        ours.retain(|key| !self.taken.contains(key));
        if ours.is_empty() {
            return;
        }
        let ours = ours[self.choices.below(ours.len() as u64) as usize].clone();
        let Some(theirs) = self.ground.intrude(&ours.0) else {
            return;
        };
        self.tally.intruders += 1;
        self.others.insert((ours.0.clone(), theirs));
        if self.ground.has_room_for_one() {
            self.others.remove(&ours);
            self.taken.insert(ours);
        }
        for (name, content) in self.ground.foreign() {
            self.foreign.entry(name).or_insert(content);
        }
    }

    fn choose(&mut self) -> Move {
        let ground = self.ground;
        let there = self.ground.identities();
        let mut moves = Vec::new();
        for name in VICTIMS {
            moves.push(match there.contains_key(name) {
                true => Move::new(name, false, words(&["delete", name])),
                false => Move::new(name, true, ground.generate(name)),
            });
        }
        moves.push(match there.contains_key(FRIEND) {
            true => Move::new(FRIEND, false, words(&["delete", FRIEND])),
            false => self.connect(FRIEND, BYSTANDER),
        });
        moves.push(match there.contains_key(ADOPTER) {
            true => Move::new(ADOPTER, false, words(&["delete", ADOPTER])),
            false => self.adopt(),
        });
        // Most of the time something with keys.
        let weighted = [0, 0, 0, 1, 1, 1, 2, 3];
        moves.swap_remove(self.choices.of(&weighted))
    }

    fn connect(&self, who: &'static str, to: &str) -> Move {
        Move::new(who, true, words(&["connect", who, "--to", to]))
    }

    fn adopt(&self) -> Move {
        let backend = self.ground.backend();
        let adopt = ["connect", ADOPTER, "--to", &self.foreign_key];
        let adopt = [&adopt[..], &["--backend", &backend]].concat();
        Move::new(ADOPTER, true, words(&adopt))
    }

    fn command(&self, words: &[String]) -> Command {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.ground.claviger(&words)
    }

    /// Notes how long a command takes.
    fn timed(&mut self, words: &[String]) {
        let begun = Instant::now();
        Outcome::of(&mut self.command(words)).succeeds();
        self.lengths.insert(kind(words), begun.elapsed());
    }

    /// Whether it was quicker, and then whether it succeeded.
    fn kill(&mut self, words: &[String]) -> Option<bool> {
        let length = self.lengths[&kind(words)];
        let late = self.choices.between(Duration::ZERO, length.mul_f64(1.1));
        let ended = strike(self.command(words), late);
        self.tally.kills += u64::from(ended.is_none());
        ended
    }

    /// The registry's disk, the token's, or that of both; whether it succeeded.
    fn on_a_full_disk(&mut self, words: &[String]) -> bool {
        let home = self.ground.folder().join("home");
        let (folders, kib) = match (self.ground.disk(), self.choices.below(3)) {
            // A token's files are small.
            (Some(token), 0) => (vec![token], 4 * self.choices.below(8)),
            (Some(token), 1) => (vec![home, token], self.choices.below(80)),
            _ => (vec![home], self.choices.below(80)),
        };
        self.tally.full_disks += 1;
        let is_token = |folder: &PathBuf| !folder.ends_with("home");
        self.tally.full_token_disks += u64::from(folders.iter().any(is_token));
        let folders: Vec<_> = folders.iter().map(|f| f.display().to_string()).collect();
        let disk = [
            ("FREE", (1024 * kib).to_string()),
            ("FOLDERS", folders.join(" ")),
        ];
        self.confined(words, ON_A_FULL_DISK, &disk)
    }

    fn confined(&self, words: &[String], script: &str, variables: &[(&str, String)]) -> bool {
        let plain = self.command(words);
        let mut command = Command::new("unshare");
        command.args(["-rm", "--propagation", "private", "sh", "-c", script, "sh"]);
        command.arg(plain.get_program()).args(plain.get_args());
        command.envs(plain.get_envs().filter_map(|(k, v)| Some((k, v?))));
        command.envs(variables.iter().map(|(k, v)| (k, v)));
        command.current_dir(self.ground.folder());
        let outcome = Outcome::of(&mut command);
        let code = outcome.code();
        assert!(matches!(code, Some(0 | 1)), "{code:?} {}", outcome.err());
        code == Some(0)
    }

    /// The next start that has the PIN puts things right; it may be killed, too.
    fn settle(&mut self, killing: bool, said: &str) {
        let repair = words(&["doctor", "--repair"]);
        let seen = Outcome::of(&mut self.command(&words(&["--json", "doctor"]))).json();
        self.tally.interrupted += u64::from(killing && is_interrupted(&seen));
        if killing && self.choices.once_in(RELAPSE) {
            self.kill(&repair);
            self.ground.heal();
        }
        let outcome = Outcome::of(&mut self.command(&repair));
        self.tally.settled += u64::from(outcome.out().contains("is resolved"));
        // Of a key that another program has replaced doctor says that it is gone.
        let identities = self.ground.identities();
        let mut keys = identities.values().flat_map(keys_of);
        let is_taken = keys.any(|key| self.taken.contains(&key));
        if outcome.code() != Some(i32::from(is_taken)) {
            let said_then = format!("{}{}", outcome.out(), outcome.err());
            self.complain(said, &format!("not put right: {said_then}"));
        }
    }

    /// Keys and identities are one to one, and what others have is as it was.
    fn check(&mut self, said: &str) {
        let identities = self.ground.identities();
        let keys = self.ground.keys();
        let expected: Keys = identities.values().flat_map(keys_of).collect();
        let is_known =
            |key: &&(String, String)| expected.contains(*key) || self.others.contains(*key);
        let orphans = keys.iter().filter(|key| !is_known(key)).count() as u64;
        let gone = expected.difference(&keys);
        let mut lost = gone.filter(|key| !self.taken.contains(*key)).count() as u64;
        lost += u64::from(identities.get(BYSTANDER) != Some(&self.bystander));
        let foreign = self.ground.foreign();
        let touched = { self.foreign.iter() }
            .filter(|(name, content)| foreign.get(*name) != Some(content))
            .count() as u64;
        let touched = touched + self.others.difference(&keys).count() as u64;
        self.tally.orphans += orphans;
        self.tally.lost += lost;
        self.tally.foreign_touched += touched;
        self.tally.pin_tries_spent += self.ground.pin_tries_spent();
        if orphans + lost + touched > 0 {
            let what = format!(
                "{orphans} orphans, {lost} lost, {touched} touched; \
                 on the token {keys:?}, expected {expected:?}"
            );
            self.complain(said, &what);
        }
    }

    fn complain(&mut self, said: &str, what: &str) {
        let complaint = format!("on {} after `{said}`: {what}", self.ground.name());
        progress(&complaint);
        self.tally.complaints.push(complaint);
    }
}

/// Whether something is to be settled, as `doctor` sees it.
fn is_interrupted(doctor: &Value) -> bool {
    let mut findings = doctor["findings"].as_array().unwrap().iter();
    findings.any(|f| f["level"] == "warning" && f["what"].to_string().contains("interrupted"))
}

impl Move {
    fn new(name: &'static str, makes: bool, words: Vec<String>) -> Move {
        Move { words, name, makes }
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.into()).collect()
}

/// What tells how long a command takes.
fn kind(words: &[String]) -> String {
    let adopts = words.iter().any(|word| word.starts_with("SHA256:"));
    let who = words.get(1).filter(|_| words[0] == "delete");
    let light = who.is_some_and(|who| [FRIEND, ADOPTER].contains(&who.as_str()));
    format!("{} {adopts} {light}", words[0])
}

/// Starts a process and kills it so much later. Where it was quicker: whether it succeeded.
fn strike(mut command: Command, late: Duration) -> Option<bool> {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    std::thread::sleep(late);
    // An error: it has ended.
    let _ = child.kill();
    let status = child.wait().unwrap();
    status.signal().is_none().then(|| status.success())
}
