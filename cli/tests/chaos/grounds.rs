//! The tokens that processes are killed on, and what others see of them.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use claviger_tests::as_user;
use claviger_token::key::from_hex;
use claviger_token::{Algorithm as Kind, PublicKey};
use claviger_virtual_yubikey::{
    Algorithm, Card, Fault, Inserted, ManagementAlgorithm, Origin, Pcscd, PrivateKey, Rule, Slot,
    object,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::{Outcome, Stage};

/// A token, a home folder beside it, and the command.
pub(crate) trait Ground {
    fn name(&self) -> &'static str;

    /// The folder to work in; the home folder is `home` in it.
    fn folder(&self) -> PathBuf;

    /// The command in that folder, with PIN and all.
    fn claviger(&self, words: &[&str]) -> Command;

    fn backend(&self) -> String;

    /// The fingerprint of a key that is on the token and not ours.
    fn foreign_key(&self) -> String;

    /// Where the token is kept, if that is on a disk.
    fn disk(&self) -> Option<PathBuf> {
        None
    }

    /// Puts right what the token itself loses when a process that uses it is killed.
    fn heal(&self) {}

    /// The keys on the token, as others see them: their slots and fingerprints.
    fn keys(&self) -> Keys;

    /// Has another program put a key of its own where a key of ours is: beside it, where the
    /// token has room for both, else in its place. The answer is its fingerprint; none where
    /// there have been enough.
    fn intrude(&self, slot: &str) -> Option<String>;

    /// Whether such a key takes the place of ours.
    fn has_room_for_one(&self) -> bool;

    /// All that is on the token and not ours.
    fn foreign(&self) -> BTreeMap<String, Vec<u8>>;

    /// How many PIN tries are spent, where the token counts them.
    fn pin_tries_spent(&self) -> u64 {
        0
    }
}

impl dyn Ground + '_ {
    /// What the command lists; nothing where who was killed at once has made no registry.
    pub(crate) fn identities(&self) -> BTreeMap<String, Value> {
        let listed = Outcome::of(&mut self.claviger(&["--json", "identities"]));
        if listed.err().contains("there is no registry") {
            return BTreeMap::new();
        }
        let listed = listed.succeeds().json();
        let named = |one: &Value| (one["name"].as_str().unwrap().into(), one.clone());
        listed.as_array().unwrap().iter().map(named).collect()
    }

    /// The words by which an identity is made here.
    pub(crate) fn generate(&self, name: &str) -> Vec<String> {
        ["generate", name, "--backend", &self.backend()]
            .map(String::from)
            .to_vec()
    }
}

/// The keys of an identity that are not deleted.
pub(crate) fn keys_of(identity: &Value) -> Keys {
    let keys = identity["keys"].as_array().unwrap().iter();
    let text = |key: &Value, name: &str| key[name].as_str().unwrap().to_owned();
    keys.filter(|key| key["deleted"] == false)
        .map(|key| (text(key, "slot"), text(key, "fingerprint")))
        .collect()
}

/// Keys by slot and fingerprint. In place of what is missing of a pair it says that.
pub(crate) type Keys = BTreeSet<(String, String)>;

/// The fingerprint of the key in a slot where there is one only.
fn only_in(keys: &Keys, slot: &str) -> String {
    let mut found = keys.iter().filter(|(place, _)| place == slot);
    found.next().map(|(_, key)| key.clone()).unwrap()
}

fn fingerprint(point: &[u8]) -> String {
    let key = PublicKey::from_bytes(Kind::P256, point);
    key.map_or("unreadable".into(), |key| key.fingerprint().to_string())
}

/// Where p11-kit is configured for no module: only the tokens of ours are looked at.
fn no_modules(folder: &Path) -> PathBuf {
    let config = folder.join("config");
    fs::create_dir_all(config.join("pkcs11")).unwrap();
    fs::write(config.join("pkcs11/pkcs11.conf"), "user-config: only\n").unwrap();
    config
}

/// SoftHSM2, seen by OpenSC.
pub(crate) struct Soft {
    stage: Stage,
    config: PathBuf,
    /// The files of the objects of others.
    foreign: RefCell<BTreeSet<PathBuf>>,
}

impl Soft {
    /// The `CKA_ID` of a key pair that others made.
    const FOREIGN: &str = "f0f0f0";
    /// The label of what others put on the token.
    const THEIRS: &str = "theirs";
    /// So many objects at most others add meanwhile: the token becomes slower with each.
    const MOST: usize = 60;

    pub(crate) fn new() -> Soft {
        let stage = Stage::new();
        let pair = ["--keypairgen", "--key-type", "EC:prime256v1"];
        stage.pkcs11_tool(&[&pair[..], &["--id", Self::FOREIGN, "--label", "theirs"]].concat());
        stage.write("data", "theirs");
        let data = stage.path("data");
        let write = ["--write-object", data.to_str().unwrap(), "--type", "data"];
        stage.pkcs11_tool(&[&write[..], &["--label", "theirs"]].concat());
        let foreign = objects(&stage);
        Soft {
            config: no_modules(&stage.path("")),
            stage,
            foreign: RefCell::new(foreign),
        }
    }
}

/// Half of a key pair on a SoftHSM2 token.
struct Object {
    is_private: bool,
    id: String,
    label: String,
    point: String,
}

impl Object {
    /// Whether it has the label of a key that is not finished. Beside one of the same key that
    /// has its name it is a copy: killed while it names a key, Claviger leaves both.
    fn is_marked(&self) -> bool {
        self.label.starts_with("claviger-unfinished-")
    }
}

/// What `pkcs11-tool --list-objects` says.
fn listed(text: &str) -> Vec<Object> {
    let mut objects: Vec<Object> = Vec::new();
    let mut is_key = false;
    for line in text.lines() {
        if line.contains(" Object;") || line.contains(" object ") {
            let is_private = line.starts_with("Private Key");
            is_key = is_private || line.starts_with("Public Key");
            if is_key {
                objects.push(Object {
                    is_private,
                    id: String::new(),
                    label: String::new(),
                    point: String::new(),
                });
            }
        } else if let (true, Some(object), Some((name, value))) =
            (is_key, objects.last_mut(), line.trim().split_once(':'))
        {
            let value = value.trim().to_owned();
            match name {
                "EC_POINT" => object.point = value,
                "ID" => object.id = value,
                "label" => object.label = value,
                _ => {}
            }
        }
    }
    objects
}

/// The files of the objects on the token.
fn objects(stage: &Stage) -> BTreeSet<PathBuf> {
    let files = fs::read_dir(stage.token_folder()).unwrap();
    { files.map(|entry| entry.unwrap().path()) }
        .filter(|path| path.extension().is_some_and(|end| end == "object"))
        .filter(|path| path.file_name().is_some_and(|name| name != "token.object"))
        .collect()
}

impl Ground for Soft {
    fn name(&self) -> &'static str {
        "softhsm"
    }

    fn folder(&self) -> PathBuf {
        self.stage.path("")
    }

    fn claviger(&self, words: &[&str]) -> Command {
        let words = [&["--pin-source", "file:pin"], words].concat();
        let mut command = self.stage.claviger(words);
        command.env("XDG_CONFIG_HOME", &self.config);
        command
    }

    fn backend(&self) -> String {
        self.stage.token.backend()
    }

    fn foreign_key(&self) -> String {
        only_in(&self.keys(), Self::FOREIGN)
    }

    fn disk(&self) -> Option<PathBuf> {
        Some(self.stage.token_folder().into())
    }

    fn heal(&self) {
        self.stage.heal();
    }

    fn intrude(&self, slot: &str) -> Option<String> {
        if self.foreign.borrow().len() > Self::MOST {
            return None;
        }
        let (before, files) = (self.keys(), objects(&self.stage));
        let pair = ["--keypairgen", "--key-type", "EC:prime256v1"];
        let named = ["--id", slot, "--label", Self::THEIRS];
        self.stage.pkcs11_tool(&[&pair[..], &named].concat());
        let new = objects(&self.stage);
        self.foreign
            .borrow_mut()
            .extend(new.difference(&files).cloned());
        let made = self.keys().difference(&before).next().cloned();
        made.map(|(_, key)| key)
    }

    fn has_room_for_one(&self) -> bool {
        false
    }

    fn keys(&self) -> Keys {
        let mut halves: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        let mut keys = Keys::new();
        let objects = listed(&self.stage.pkcs11_tool(&["--list-objects"]));
        let is_copy = |object: &Object| {
            let is_finished = |other: &&Object| {
                (other.is_private, &other.id) == (object.is_private, &object.id)
                    && !other.is_marked()
                    && other.label != Self::THEIRS
            };
            object.is_marked() && objects.iter().any(|other| is_finished(&other))
        };
        for object in objects
            .iter()
            .filter(|object| !object.id.is_empty() && !is_copy(object))
        {
            let (private, public) = halves.entry(object.id.clone()).or_default();
            match object.is_private {
                true => *private += 1,
                false => {
                    *public += 1;
                    // Without the tag and the length of an OCTET STRING.
                    let bytes = from_hex(&object.point).unwrap_or_default();
                    let key = fingerprint(bytes.get(2..).unwrap_or_default());
                    keys.insert((object.id.clone(), key));
                }
            }
        }
        let missing = halves.into_iter().filter_map(|(id, (private, public))| {
            let what = match private.cmp(&public) {
                Ordering::Less => "no private half",
                Ordering::Equal => return None,
                Ordering::Greater => "no public half",
            };
            Some((id, what.to_owned()))
        });
        keys.extend(missing);
        keys
    }

    fn foreign(&self) -> BTreeMap<String, Vec<u8>> {
        let content = |path: &PathBuf| fs::read(path).unwrap_or_default();
        let files = self.foreign.borrow();
        { files.iter() }
            .map(|path| (path.display().to_string(), content(path)))
            .collect()
    }
}

/// A virtual YubiKey, which shows what is in it.
pub(crate) struct YubiKey {
    yubikey: Inserted,
    /// Where others have put keys in place of ours.
    taken: RefCell<BTreeSet<Slot>>,
    folder: TempDir,
    config: PathBuf,
}

impl YubiKey {
    pub(crate) const PIN: &str = "246802";
    const MANAGEMENT_KEY: [u8; 24] = [0xa5; 24];
    const THEIRS: [Slot; 2] = [Slot::AUTHENTICATION, Slot::KEY_MANAGEMENT];
    /// So many slots at most others take meanwhile.
    const MOST: usize = 8;
    /// So long it takes for each command: a fast one of its kind.
    const PACE: Duration = Duration::from_millis(2);

    pub(crate) fn new() -> YubiKey {
        let certificate = [0x70, 3, 1, 2, 3, 0x71, 1, 0, 0xfe, 0];
        let card = Card::builder()
            .pin(Self::PIN)
            .management_key(ManagementAlgorithm::Aes192, &Self::MANAGEMENT_KEY)
            .generated(Slot::AUTHENTICATION, Algorithm::P256)
            .imported(Slot::KEY_MANAGEMENT, PrivateKey::generate(Algorithm::P256))
            .object(object::certificate(Slot::AUTHENTICATION), &certificate)
            .object(object::certificate(Slot::new(0x83).unwrap()), &certificate)
            .object(object::CHUID, &[0x34, 2, 1, 2])
            .object(object::CAPABILITY, &[0xf0, 1, 1])
            .object(object::PRINTED, &[1, 2, 3]);
        let folder = tempfile::tempdir().unwrap();
        let hex = claviger_token::key::to_hex(&Self::MANAGEMENT_KEY);
        fs::write(folder.path().join("pin"), Self::PIN).unwrap();
        fs::write(folder.path().join("management-key"), hex).unwrap();
        let yubikey = Pcscd::insert(card.build());
        let pace = Rule::new(Fault::Delay(Self::PACE));
        yubikey.faults().add(pace.always());
        YubiKey {
            yubikey,
            taken: RefCell::default(),
            config: no_modules(folder.path()),
            folder,
        }
    }

    /// As often as a process is started again with a wrong PIN, killed or not: how many
    /// tries are spent.
    pub(crate) fn pin_tries_spent_by(&self, starts: u64, mut start: impl FnMut(Command)) -> u64 {
        fs::write(self.folder().join("wrong-pin"), "135791").unwrap();
        for _ in 0..starts {
            start(self.command(&["--pin-source", "file:wrong-pin", "sign", "alice", "pin"]));
        }
        let spent = self.pin_tries_spent();
        let forget = ["doctor", "--forget-refused-pin", &self.backend()];
        Outcome::of(&mut self.command(&forget));
        let words = ["sign", "alice", "pin", "-o", "signature"];
        Outcome::of(&mut self.claviger(&words)).succeeds();
        spent
    }

    fn command(&self, words: &[&str]) -> Command {
        let (variable, socket) = Pcscd::environment();
        let mut command = as_user(env!("CARGO_BIN_EXE_claviger"));
        command
            .args(words)
            .current_dir(self.folder.path())
            .env(variable, socket)
            .env("XDG_CONFIG_HOME", &self.config)
            .env("CLAVIGER_HOME", self.folder.path().join("home"))
            .env("CLAVIGER_DAEMON", "")
            .env_remove("CLAVIGER_LOG")
            .stdin(Stdio::null());
        command
    }
}

impl Ground for YubiKey {
    fn name(&self) -> &'static str {
        "yubikey"
    }

    fn folder(&self) -> PathBuf {
        self.folder.path().into()
    }

    fn claviger(&self, words: &[&str]) -> Command {
        let right = ["--pin-source", "file:pin"];
        let administrator = ["--management-key", "file:management-key"];
        self.command(&[&right[..], &administrator, words].concat())
    }

    fn backend(&self) -> String {
        format!("piv:serial={}", self.yubikey.card().serial())
    }

    fn foreign_key(&self) -> String {
        only_in(&self.keys(), "9a")
    }

    fn intrude(&self, slot: &str) -> Option<String> {
        let reference = u8::from_str_radix(slot.get(..2)?, 16).ok()?;
        let slot = Slot::new(reference)?;
        let mut taken = self.taken.borrow_mut();
        if taken.len() >= Self::MOST && !taken.contains(&slot) {
            return None;
        }
        taken.insert(slot);
        let key = PrivateKey::generate(Algorithm::P256);
        let public = PublicKey::from_der(&key.spki()).ok()?;
        let mut card = self.yubikey.card();
        card.put_key(slot, key, Origin::Generated);
        Some(public.fingerprint().to_string())
    }

    fn has_room_for_one(&self) -> bool {
        true
    }

    fn keys(&self) -> Keys {
        self.yubikey.faults().clear_log();
        let card = self.yubikey.card();
        let key = |slot: Slot| {
            let key = PublicKey::from_der(&card.key(slot)?.spki());
            let shown = key.map_or("unreadable".into(), |key| key.fingerprint().to_string());
            Some((name(slot), shown))
        };
        let slots = Slot::all().filter(|slot| *slot != Slot::ATTESTATION);
        slots.filter_map(key).collect()
    }

    fn foreign(&self) -> BTreeMap<String, Vec<u8>> {
        let card = self.yubikey.card();
        let mut found = BTreeMap::new();
        let taken = self.taken.borrow();
        for slot in Self::THEIRS.into_iter().chain(taken.iter().copied()) {
            let key = card.key(slot).map(|key| key.spki()).unwrap_or_default();
            found.insert(format!("key {}", name(slot)), key);
        }
        let theirs = [
            ("certificate 9a", object::certificate(Slot::AUTHENTICATION)),
            (
                "certificate 83",
                object::certificate(Slot::new(0x83).unwrap()),
            ),
            ("CHUID", object::CHUID),
            ("CCC", object::CAPABILITY),
            ("printed", object::PRINTED),
            ("admin", object::ADMIN_DATA),
        ];
        for (name, id) in theirs {
            let content = card.object(id).unwrap_or_default().to_vec();
            found.insert(name.into(), content);
        }
        found
    }

    fn pin_tries_spent(&self) -> u64 {
        u64::from(3 - self.yubikey.card().pin_tries())
    }
}

/// A slot as Claviger names it.
fn name(slot: Slot) -> String {
    format!("{:02x}", slot.reference())
}
