//! The tokens that processes are killed on, and what others see of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use claviger_tests::as_user;
use claviger_token::key::from_hex;
use claviger_token::{Algorithm as Kind, PublicKey};
use claviger_virtual_yubikey::{
    Algorithm, Card, Fault, Inserted, ManagementAlgorithm, Pcscd, PrivateKey, Rule, Slot, object,
};
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

    /// The keys on the token by their slots, as others see them: their fingerprints.
    fn keys(&self) -> BTreeMap<String, String>;

    /// All that is on the token and not ours.
    fn foreign(&self) -> BTreeMap<String, Vec<u8>>;

    /// How many PIN tries are spent, where the token counts them.
    fn pin_tries_spent(&self) -> u64 {
        0
    }
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
    /// The files of the objects that were there first.
    foreign: Vec<PathBuf>,
}

impl Soft {
    /// The `CKA_ID` of a key pair that others made.
    const FOREIGN: &str = "f0f0f0";

    pub(crate) fn new() -> Soft {
        let stage = Stage::new();
        let pair = ["--keypairgen", "--key-type", "EC:prime256v1"];
        stage.pkcs11_tool(&[&pair[..], &["--id", Self::FOREIGN, "--label", "theirs"]].concat());
        stage.write("data", "theirs");
        let data = stage.path("data");
        let write = ["--write-object", data.to_str().unwrap(), "--type", "data"];
        stage.pkcs11_tool(&[&write[..], &["--label", "theirs"]].concat());
        let objects = fs::read_dir(stage.token_folder()).unwrap();
        let foreign = { objects.map(|entry| entry.unwrap().path()) }
            .filter(|path| path.extension().is_some_and(|end| end == "object"))
            .filter(|path| path.file_name().is_some_and(|name| name != "token.object"))
            .collect();
        Soft {
            config: no_modules(&stage.path("")),
            stage,
            foreign,
        }
    }
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
        self.keys()[Self::FOREIGN].clone()
    }

    fn disk(&self) -> Option<PathBuf> {
        Some(self.stage.token_folder().into())
    }

    fn heal(&self) {
        self.stage.heal();
    }

    /// A key whose other half is missing has no fingerprint.
    fn keys(&self) -> BTreeMap<String, String> {
        let listed = self.stage.pkcs11_tool(&["--list-objects"]);
        let mut private = BTreeSet::new();
        let mut public = BTreeMap::new();
        let (mut class, mut point) = ("", String::new());
        for line in listed.lines() {
            let said = |what| line.trim().strip_prefix(what).map(str::trim);
            if line.contains(" Object;") || line.contains(" object ") {
                (class, point) = (line, String::new());
            } else if let Some(value) = said("EC_POINT:") {
                point = value.into();
            } else if let Some(id) = said("ID:") {
                // Without the tag and the length of an OCTET STRING.
                let bytes = from_hex(&point).unwrap_or_default();
                let key = fingerprint(bytes.get(2..).unwrap_or_default());
                if class.starts_with("Private Key") {
                    private.insert(id.to_owned());
                } else if class.starts_with("Public Key") {
                    public.insert(id.to_owned(), key);
                }
            }
        }
        let mut keys = public.clone();
        for (id, key) in &mut keys {
            if !private.contains(id) {
                *key = "no private half".into();
            }
        }
        let without_public = private.into_iter().filter(|id| !public.contains_key(id));
        keys.extend(without_public.map(|id| (id, "no public half".into())));
        keys
    }

    fn foreign(&self) -> BTreeMap<String, Vec<u8>> {
        let content = |path: &PathBuf| fs::read(path).unwrap_or_default();
        let files = self.foreign.iter();
        files
            .map(|path| (path.display().to_string(), content(path)))
            .collect()
    }
}

/// A virtual YubiKey, which shows what is in it.
pub(crate) struct YubiKey {
    yubikey: Inserted,
    folder: TempDir,
    config: PathBuf,
}

impl YubiKey {
    pub(crate) const PIN: &str = "246802";
    const MANAGEMENT_KEY: [u8; 24] = [0xa5; 24];
    const THEIRS: [Slot; 2] = [Slot::AUTHENTICATION, Slot::KEY_MANAGEMENT];
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
        self.keys()["9a"].clone()
    }

    fn keys(&self) -> BTreeMap<String, String> {
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
        for slot in Self::THEIRS {
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
