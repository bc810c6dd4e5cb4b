//! Pages of the registry that are damaged at random, and who notices.
//!
//! Whether a registry is damaged is said by others: by SQLite's `integrity_check`, and by
//! reading all its rows and comparing them with those that were there.

use std::collections::BTreeMap;

use claviger_engine::{EngineId, IdentityInfo, Node, Party, PublicKeys};
use claviger_token::{Call, KeyUse, PublicKey};
use rusqlite::Connection;
use rusqlite::types::Value;

use crate::common::Outcome;
use crate::device::filled::Home;
use crate::device::{delete, make};
use crate::report::{Choices, Report, progress};

/// SQLite's pages here.
const PAGE: usize = 4096;
/// More contacts than a registry of this size has that is looked through when it is opened.
const MANY: u32 = 1_500;
/// Of so many registries one is also shown to the command.
const SHOWN: u64 = 25;
const MESSAGE: &[u8] = b"pay the bearer";

#[derive(Default)]
struct Tally {
    corruptions: u64,
    /// Those by which a row reads differently, or to which `integrity_check` objects.
    harmful: u64,
    /// Those of them that did not keep the registry from opening.
    opened: u64,
    called_sound: u64,
    wrong_keys: u64,
    complaints: Vec<String>,
}

pub(crate) fn run(report: &mut Report, corruptions: u64, seed: u64) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let tally = runtime.block_on(async {
        let mut tally = Tally::default();
        let mut choices = Choices::new(seed, 20);
        // One that is looked through when it is opened, and one that is too large for that.
        for contacts in [0, MANY] {
            let victim = Victim::new(contacts).await;
            for round in 0..(corruptions + u64::from(contacts == 0)) / 2 {
                if round % 100 == 0 {
                    progress(format!(
                        "corruption: {} of {corruptions}",
                        tally.corruptions
                    ));
                }
                victim.suffer(&mut choices, &mut tally).await;
            }
        }
        tally
    });
    report.figure("corruptions", tally.corruptions);
    report.figure("corruptions_harmful", tally.harmful);
    report.figure("corruptions_opened", tally.opened);
    report.figure("called_sound", tally.called_sound);
    report.figure("wrong_keys", tally.wrong_keys);
    report.promise(
        tally.harmful > tally.corruptions / 4 || tally.corruptions == 0,
        "next to nothing was damaged",
    );
    report.promise(
        tally.opened > 0 || tally.corruptions == 0,
        "no damaged registry was opened",
    );
    report.promise(
        tally.called_sound == 0,
        "a damaged registry was called sound",
    );
    report.promise(tally.wrong_keys == 0, "a wrong key was used");
    report.broken.extend(tally.complaints);
}

/// All rows of all tables. SQLite's own table of the numbers that it has given away is left
/// out: which they are is nobody's business.
type Rows = BTreeMap<String, Vec<Vec<String>>>;

/// What is asked of a registry in everyday use.
#[derive(PartialEq)]
struct Use {
    identities: Vec<(EngineId, IdentityInfo)>,
    contacts: Vec<Party>,
}

struct Victim {
    home: Home,
    /// The file as it was, and as it was before the last things were written.
    whole: Vec<u8>,
    older: Vec<u8>,
    rows: Rows,
    used: Use,
}

impl Victim {
    async fn new(contacts: u32) -> Victim {
        let home = Home::new().await;
        let registry = home.open().unwrap();
        for number in 0..contacts {
            registry.add_contact(&somebody(number)).unwrap();
        }
        drop(registry);
        let older = home.bytes();
        let node = home.node();
        make(&node, "victor", &home.device.backend()).await;
        delete(&node, "mallory", "mallory").await.unwrap();
        drop(node);
        let registry = home.open().unwrap();
        assert!(registry.check().unwrap().is_empty());
        let used = Use {
            identities: registry.identities().unwrap(),
            contacts: registry.contacts().unwrap(),
        };
        drop(registry);
        let whole = home.bytes();
        let rows = rows(&home).unwrap();
        Victim {
            home,
            whole,
            older,
            rows,
            used,
        }
    }

    /// Damages a page, and looks who notices.
    async fn suffer(&self, choices: &mut Choices, tally: &mut Tally) {
        let (bytes, what) = self.damaged(choices);
        tally.corruptions += 1;
        self.home.put(&bytes);
        let objects = !integrity(&self.home);
        let differs = rows(&self.home).is_none_or(|rows| rows != self.rows);
        let is_harmful = objects || differs;
        tally.harmful += u64::from(is_harmful);
        // Others may have left something beside it.
        self.home.put(&bytes);
        let is_sound = match self.home.open() {
            Ok(registry) => {
                tally.opened += u64::from(is_harmful);
                registry.check().is_ok_and(|faults| faults.is_empty())
            }
            Err(_) => false,
        };
        let mut complain = |what_happened: &str| {
            let how =
                format!("{what} (integrity_check objects: {objects}, rows differ: {differs})");
            tally.complaints.push(format!("{what_happened}: {how}"));
        };
        if is_sound && is_harmful {
            tally.called_sound += 1;
            complain("a damaged registry was called sound");
        }
        if tally.corruptions.is_multiple_of(SHOWN) && is_harmful && doctor_is_content(&self.home) {
            tally.called_sound += 1;
            complain("doctor found nothing");
        }
        self.home.put(&bytes);
        if let Some(wrong) = self.wrong_use().await {
            tally.wrong_keys += 1;
            complain(&wrong);
        }
    }

    /// What is used that is not what was written, if anything is. What is refused is not used.
    async fn wrong_use(&self) -> Option<String> {
        let registry = self.home.open().ok()?;
        let identities = registry.identities();
        if identities.is_ok_and(|found| found != self.used.identities) {
            return Some("other identities were listed".into());
        }
        if registry
            .contacts()
            .is_ok_and(|found| found != self.used.contacts)
        {
            return Some("other contacts were listed".into());
        }
        for contact in self.used.contacts.iter().take(3) {
            let found = registry.contact(&contact.name);
            if let Ok(Some(found)) = found
                && found != *contact
            {
                return Some(format!("another key was given for {}", contact.name));
            }
        }
        drop(registry);
        let node = self.home.open_node().ok()?;
        for (who, info) in &self.used.identities {
            if let Some(wrong) = wrong_identity(&node, who, info).await {
                return Some(wrong);
            }
        }
        None
    }

    /// The file with a page that is not what was written, and what became of it.
    fn damaged(&self, choices: &mut Choices) -> (Vec<u8>, String) {
        let mut bytes = self.whole.clone();
        let pages = (bytes.len() / PAGE) as u64;
        loop {
            let page = choices.below(pages) as usize;
            let place = page * PAGE..(page + 1) * PAGE;
            let other = choices.below(pages) as usize * PAGE;
            let how = match choices.below(6) {
                0 => {
                    let at = place.start + choices.below(PAGE as u64) as usize;
                    bytes[at] ^= 1 << choices.below(8);
                    format!("a bit at {at}")
                }
                1 => {
                    let length = 1 + choices.below(64) as usize;
                    let at = place.start + choices.below((PAGE - length) as u64) as usize;
                    bytes[at..at + length].fill_with(|| choices.below(256) as u8);
                    format!("{length} bytes at {at}")
                }
                2 => {
                    bytes[place].fill(0);
                    format!("page {page} empty")
                }
                3 => {
                    bytes[place].fill_with(|| choices.below(256) as u8);
                    format!("page {page} random")
                }
                4 => {
                    bytes.copy_within(other..other + PAGE, place.start);
                    format!("page {page} as the one at {other}")
                }
                _ => match self.older.get(place.clone()) {
                    Some(older) => {
                        bytes[place].copy_from_slice(older);
                        format!("page {page} as it was before")
                    }
                    None => continue,
                },
            };
            if bytes != self.whole {
                return (bytes, how);
            }
        }
    }
}

/// Whether an identity that is not refused uses keys that are not its own.
async fn wrong_identity(node: &Node, who: &EngineId, info: &IdentityInfo) -> Option<String> {
    let is_other = |found: &IdentityInfo| found != info;
    let found = node.registry().identity(who);
    if found.is_ok_and(|found| found.as_ref().is_some_and(is_other)) {
        return Some(format!("another `{who}` was used"));
    }
    let living = info.keys.iter().filter(|key| !key.deleted);
    for key in living.clone() {
        let owner = node.registry().owner_of(&key.public_key.fingerprint());
        if let Ok(Some(owner)) = owner
            && owner != key.owner
        {
            return Some(format!("a key of `{who}` was said to be one of `{owner}`"));
        }
    }
    if let Ok(Some(keys)) = node.public_keys(who) {
        let is_one_of_theirs = |key: &PublicKey| living.clone().any(|own| own.public_key == *key);
        let found = [keys.sign, keys.decrypt];
        if !found.iter().flatten().all(is_one_of_theirs) {
            return Some(format!("another key was encrypted to for `{who}`"));
        }
    }
    let engine = info.commitment_engine.as_ref()?;
    let signed = node
        .commit(who, engine, MESSAGE.to_vec(), &Call::unlimited())
        .await;
    let signer = living.clone().find(|key| key.usage == KeyUse::Sign);
    match (signed, signer) {
        (Ok(signature), Some(key)) if key.public_key.verify(MESSAGE, &signature).is_ok() => None,
        (Ok(_), _) => Some(format!("another key signed for `{who}`")),
        (Err(_), _) => None,
    }
}

/// One of the contacts that make a registry large: with a long key.
fn somebody(number: u32) -> Party {
    let mut modulus = [0xff; 512];
    modulus[8..12].copy_from_slice(&number.to_be_bytes());
    Party {
        name: format!("somebody {number}").into(),
        keys: PublicKeys {
            sign: PublicKey::from_rsa(&modulus, &[1, 0, 1]).ok(),
            decrypt: None,
        },
    }
}

/// Whether SQLite has no objections to the file.
fn integrity(home: &Home) -> bool {
    let Ok(db) = Connection::open(home.file()) else {
        return false;
    };
    let said = db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
    said.is_ok_and(|said| said == "ok")
}

/// What is in the file, read by nobody's rules; none where that fails.
fn rows(home: &Home) -> Option<Rows> {
    let db = Connection::open(home.file()).ok()?;
    let read = || {
        let mut names = db.prepare(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> 'sqlite_sequence'",
        )?;
        let names: Vec<String> =
            { names.query_map([], |row| row.get(0))? }.collect::<rusqlite::Result<_>>()?;
        let mut all = Rows::new();
        for name in names {
            let mut query = db.prepare(&format!("SELECT * FROM \"{name}\" NOT INDEXED"))?;
            let columns = query.column_count();
            let rows = query.query_map([], |row| {
                let values = (0..columns).map(|column| row.get::<_, Value>(column));
                values.map(|value| Ok(format!("{:?}", value?))).collect()
            })?;
            all.insert(name, rows.collect::<rusqlite::Result<_>>()?);
        }
        Ok::<_, rusqlite::Error>(all)
    };
    read().ok()
}

/// Whether the command finds nothing wrong with the registry.
fn doctor_is_content(home: &Home) -> bool {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_claviger"));
    command
        .args(["--json", "doctor"])
        .env("CLAVIGER_DAEMON", "")
        .env("CLAVIGER_HOME", home.path());
    let outcome = Outcome::of(&mut command);
    let report = outcome.json();
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    findings.iter().all(|finding| finding["code"].is_null())
}
