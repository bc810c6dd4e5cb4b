//! Real age programs start the plugin: Debian's `age`, `rage` and pyrage.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use claviger_engine::IdParams;
use claviger_formats::age_plugin::recipient_text;
use claviger_formats::envelope;
use claviger_tests::peers;
use claviger_token::PublicKey;
use common::{Daemon, folder_with_plugin, identity};

const LETTER: &[u8] = b"Meet me where the keys are kept.\n";

/// A daemon, two identities of it, and a folder with the plugin and their files.
struct Stage {
    daemon: Daemon,
    alice: PublicKey,
    bob: PublicKey,
    folder: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let daemon = Daemon::new();
        let alice = daemon.in_memory("alice", IdParams::P256);
        let bob = daemon.in_memory("bob", IdParams::Ed25519);
        let folder = tempfile::tempdir().unwrap();
        let stage = Stage {
            daemon,
            alice,
            bob,
            folder,
        };
        fs::create_dir(stage.path("bin")).unwrap();
        folder_with_plugin(&stage.path("bin"), "age-plugin-claviger");
        for (name, key) in [("alice", &stage.alice), ("bob", &stage.bob)] {
            let text = format!("# identity: {name}\n{}\n", identity(key, name));
            fs::write(stage.path(&format!("{name}.txt")), text).unwrap();
        }
        fs::write(stage.path("letter"), LETTER).unwrap();
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a program that finds the plugin, and has no terminal.
    fn run(&self, program: &Path, words: &[&str]) -> Output {
        let path = std::env::var("PATH").unwrap();
        let bin = self.path("bin");
        let mut command = Command::new("setsid");
        command
            .arg("--wait")
            .arg(program)
            .args(words)
            .current_dir(self.folder.path())
            .env("PATH", format!("{}:{path}", bin.display()))
            .env("CLAVIGER_DAEMON", &self.daemon.socket)
            .stdin(Stdio::null());
        command.output().unwrap()
    }

    fn succeeds(&self, program: &Path, words: &[&str]) -> Vec<u8> {
        let output = self.run(program, words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program:?} {words:?}: {said}");
        output.stdout
    }

    /// What is encrypted to both, natively, by nobody's plugin.
    fn native(&self) {
        for (name, key) in [("alice", &self.alice), ("bob", &self.bob)] {
            let file = envelope::encrypt(&[key], LETTER).unwrap();
            fs::write(self.path(&format!("{name}.age")), file).unwrap();
        }
    }

    /// The file is what any age program makes for the key: its only stanza is of this type.
    fn is_native(&self, file: &str, kind: &str) {
        let bytes = fs::read(self.path(file)).unwrap();
        let header = String::from_utf8_lossy(&bytes);
        let kinds = header.lines().filter_map(|line| line.strip_prefix("-> "));
        let kinds: Vec<_> = kinds.filter_map(|line| line.split(' ').next()).collect();
        let known = kinds.iter().filter(|kind| !kind.ends_with("-grease"));
        assert_eq!(known.collect::<Vec<_>>(), [&kind], "{header}");
    }

    /// Both kinds, in both directions, with this program.
    fn works_with(&self, program: &Path) {
        self.native();
        for (name, key, kind) in [
            ("alice", &self.alice, "p256tag"),
            ("bob", &self.bob, "X25519"),
        ] {
            let [identities, native, made] =
                [".txt", ".age", ".made"].map(|end| format!("{name}{end}"));
            let opened = self.succeeds(program, &["-d", "-i", &identities, &native]);
            assert_eq!(opened, LETTER, "{name}");
            let recipient = recipient_text(key).unwrap();
            self.succeeds(program, &["-r", &recipient, "-o", &made, "letter"]);
            self.is_native(&made, kind);
            let opened = self.succeeds(program, &["-d", "-i", &identities, &made]);
            assert_eq!(opened, LETTER, "{name}");
            // To an identity file, and with whichever identity needs no person.
            self.succeeds(program, &["-e", "-i", &identities, "-o", &made, "letter"]);
            self.is_native(&made, kind);
            let opened = self.succeeds(program, &["-d", "-j", "claviger", &made]);
            assert_eq!(opened, LETTER, "{name}");
        }
    }
}

#[test]
fn debians_age_encrypts_and_decrypts_through_the_plugin() {
    let stage = Stage::new();
    let age = Path::new("age");
    stage.works_with(age);
    // A file for somebody else is not opened, and nobody is asked for anything.
    let output = stage.run(age, &["-d", "-i", "bob.txt", "alice.age"]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no identity matched"), "{said}");
}

#[test]
fn debians_age_encrypts_to_a_native_recipient_through_a_link_to_the_plugin() {
    let stage = Stage::new();
    folder_with_plugin(&stage.path("bin"), "age-plugin-tag");
    let recipient = envelope::recipient_text(&stage.alice).unwrap();
    let words = ["-r", &recipient, "-o", "made", "letter"];
    stage.succeeds(Path::new("age"), &words);
    stage.is_native("made", "p256tag");
    let opened = stage.succeeds(Path::new("age"), &["-d", "-i", "alice.txt", "made"]);
    assert_eq!(opened, LETTER);
}

#[test]
fn debians_age_tells_why_a_file_was_not_opened() {
    let stage = Stage::new();
    stage.native();
    let strange = Daemon::new().in_memory("carol", IdParams::P256);
    fs::write(stage.path("carol.txt"), identity(&strange, "carol")).unwrap();
    let file = envelope::encrypt(&[&strange], LETTER).unwrap();
    fs::write(stage.path("carol.age"), file).unwrap();
    let output = stage.run(Path::new("age"), &["-d", "-i", "carol.txt", "carol.age"]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("no identity with the key of `carol`"),
        "{said}"
    );
}

#[test]
fn rage_encrypts_and_decrypts_through_the_plugin() {
    if peers::quick("rage_encrypts_and_decrypts_through_the_plugin") {
        return;
    }
    Stage::new().works_with(&peers::rage());
}

#[test]
fn pyrage_encrypts_and_decrypts_through_the_plugin() {
    const SCRIPT: &str = "
import sys
import pyrage
from pyrage import plugin

class Nobody:
    def display_message(self, message): pass
    def confirm(self, message, yes, no): return None
    def request_public_string(self, description): return None
    def request_passphrase(self, description): return None

recipient, identity, native, letter = sys.argv[1:]
recipients = plugin.RecipientPluginV1(
    'claviger', [plugin.Recipient.from_str(recipient)], [], Nobody())
identities = plugin.IdentityPluginV1(
    'claviger', [plugin.Identity.from_str(identity)], Nobody())
text = open(letter, 'rb').read()
made = pyrage.encrypt(text, [recipients])
assert pyrage.decrypt(made, [identities]) == text
assert pyrage.decrypt(open(native, 'rb').read(), [identities]) == text
open('made', 'wb').write(made)
";
    if peers::quick("pyrage_encrypts_and_decrypts_through_the_plugin") {
        return;
    }
    let stage = Stage::new();
    stage.native();
    let python = peers::python_with_pyrage();
    for (name, key, kind) in [
        ("alice", &stage.alice, "p256tag"),
        ("bob", &stage.bob, "X25519"),
    ] {
        let (recipient, identity) = (recipient_text(key).unwrap(), identity(key, name));
        let native = format!("{name}.age");
        let words = ["-c", SCRIPT, &recipient, &identity, &native, "letter"];
        stage.succeeds(&python, &words);
        stage.is_native("made", kind);
    }
}
