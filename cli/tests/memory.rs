//! What is in the command's memory, and who sees it.
#![cfg(target_os = "linux")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use age_core::format::{FileKey, Stanza};
use claviger_tests::{SoftHsm, as_user, is_powerless};
use common::Stage;
use secrecy::ExposeSecret;

/// No number that anything else has in its memory.
const PIN: &str = "864209753186420975";

/// Root reads the memory of each process, and these tests read it as root.
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("SKIPPED: only root reads the memory of a process that keeps it to itself");
    }
    is_root
}

/// A stage whose token has that PIN, with `alice`, and a file for her that is longer than pipes
/// are.
fn stage() -> Stage {
    let stage = Stage::with_alice();
    let done = Command::new("pkcs11-tool")
        .args(["--module", SoftHsm::module()])
        .args(["--token-label", stage.token.label(), "--login"])
        .args(["--pin", SoftHsm::PIN, "--change-pin", "--new-pin", PIN])
        .env(stage.token.environment().0, stage.token.environment().1)
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    stage.write("pin", PIN);
    stage.write("letter", vec![b'x'; 8 << 20]);
    stage
        .run(["encrypt", "alice", "letter", "-o", "letter.age"])
        .succeeds();
    stage
}

/// The command after it logged in and opened the file, while nobody takes what it decrypts.
struct Decrypting(Child);

impl Decrypting {
    fn start(mut command: Command) -> Self {
        let child = command.stdout(Stdio::piped()).spawn();
        let mut child = child.unwrap();
        let mut first = [0];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut first)
            .unwrap();
        Decrypting(child)
    }

    /// How often `wanted` is in its memory.
    fn count(&self, wanted: &[u8]) -> usize {
        let process = format!("/proc/{}", self.0.id());
        let memory = File::open(format!("{process}/mem")).unwrap();
        let maps = fs::read_to_string(format!("{process}/maps")).unwrap();
        let mut count = 0;
        let mut seen = 0;
        for line in maps.lines().filter(|line| line.contains(" rw")) {
            let (from, rest) = line.split_once('-').unwrap();
            let (to, _) = rest.split_once(' ').unwrap();
            let [from, to] = [from, to].map(|n| u64::from_str_radix(n, 16).unwrap());
            let mut bytes = vec![0; (to - from) as usize];
            // Not every page can be read, such as those of a device.
            if memory.read_exact_at(&mut bytes, from).is_ok() {
                seen += bytes.len();
                count += bytes.windows(wanted.len()).filter(|w| *w == wanted).count();
            }
        }
        assert!(seen > 1 << 20, "its memory was not read");
        count
    }

    fn ends(mut self) {
        let mut rest = self.0.stdout.take().unwrap();
        std::io::copy(&mut rest, &mut std::io::sink()).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

#[test]
fn after_a_login_there_is_one_copy_of_the_pin_and_it_is_not_swapped_out() {
    if !is_root() {
        return;
    }
    let stage = stage();
    let words = ["decrypt", "alice", "letter.age"];
    let from_file = [&["--pin-source", "file:pin"], &words[..]].concat();
    let running = Decrypting::start(stage.claviger(from_file));
    assert_eq!(running.count(PIN.as_bytes()), 1);
    let status = fs::read_to_string(format!("/proc/{}/status", running.0.id())).unwrap();
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    assert_ne!(locked.unwrap().trim(), "0 kB");
    running.ends();

    // In the environment it is another time, and stays.
    let from_environment = [&["--pin-source", "env:SECRET"], &words[..]].concat();
    let mut command = stage.claviger(from_environment);
    let running = Decrypting::start({
        command.env("SECRET", PIN);
        command
    });
    assert_eq!(running.count(PIN.as_bytes()), 2);
    running.ends();
}

/// A `pinentry` that gives the PIN.
const PINENTRY: &str = "#!/bin/sh
echo OK
while read -r line; do
    case \"$line\" in
        GETPIN) printf 'D %s\\nOK\\n' \"$(cat pin)\" ;;
        BYE) echo 'OK closing connection'; exit ;;
        *) echo OK ;;
    esac
done
";

#[test]
fn a_pinentry_leaves_no_other_copy_of_the_pin() {
    if !is_root() {
        return;
    }
    let stage = stage();
    fs::create_dir(stage.path("bin")).unwrap();
    let program = stage.write("bin/pinentry", PINENTRY);
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    let words = ["--pin-source", "pinentry", "decrypt", "alice", "letter.age"];
    let mut command = stage.claviger(words);
    let others = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{others}", stage.path("bin").display()));
    let running = Decrypting::start(command);
    assert_eq!(running.count(PIN.as_bytes()), 1);
    running.ends();
}

/// An age recipient that remembers the file key that it is shown.
struct Listener(age::x25519::Recipient, Mutex<Vec<u8>>);

impl age::Recipient for Listener {
    fn wrap_file_key(
        &self,
        key: &FileKey,
    ) -> Result<(Vec<Stanza>, std::collections::HashSet<String>), age::EncryptError> {
        *self.1.lock().unwrap() = key.expose_secret().to_vec();
        self.0.wrap_file_key(key)
    }
}

#[test]
fn a_file_key_is_wiped_when_the_file_is_open() {
    if !is_root() {
        return;
    }
    let stage = stage();
    let words = ["generate", "bob", "--params", "ed25519", "--backend"];
    let backend = stage.token.backend();
    stage
        .run_with_pin(&[&words[..], &[&backend]].concat())
        .succeeds();
    let bob = stage.run(["show", "bob", "--json"]).json();
    let keys = bob["keys"].as_array().unwrap();
    let recipient = keys.iter().find_map(|key| key["age_recipient"].as_str());
    let recipient = Listener(recipient.unwrap().parse().unwrap(), Mutex::default());
    let mut sealed = File::create(stage.path("bobs.age")).unwrap();
    let encryptor = age::Encryptor::with_recipients(std::iter::once(&recipient as _));
    let mut writer = encryptor.unwrap().wrap_output(&mut sealed).unwrap();
    writer.write_all(&vec![b'x'; 8 << 20]).unwrap();
    writer.finish().unwrap();
    let file_key = recipient.1.into_inner().unwrap();
    assert_eq!(file_key.len(), 16);
    let words = ["--pin-source", "file:pin", "decrypt", "bob", "bobs.age"];
    let running = Decrypting::start(stage.claviger(words));
    assert_eq!(running.count(&file_key), 0);
    running.ends();
}

/// Decrypts, and meanwhile opens the command's memory as a process of the same user, which
/// started it.
const LOOK: &str = "mkfifo pipe; \"$@\" > pipe & command=$!; exec 3< pipe
    head -c 1 <&3 > /dev/null
    if (: < /proc/$command/mem) 2> /dev/null; then echo open; else echo closed; fi
    grep 'Max core' /proc/$command/limits
    cat <&3 > /dev/null; rm pipe; wait $command";

#[test]
fn other_processes_of_the_user_do_not_see_the_memory_unless_a_variable_says_so() {
    let stage = stage();
    let words = ["--pin-source", "file:pin", "decrypt", "alice", "letter.age"];
    let looked = |value: &str| {
        let command = stage.claviger(words);
        let mut shell = as_user("sh");
        shell.args(["-c", LOOK, "sh", env!("CARGO_BIN_EXE_claviger")]);
        shell.args(words).current_dir(stage.folder());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        let done = shell
            .env("CLAVIGER_DEBUG_DUMPABLE", value)
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
        String::from_utf8(done.stdout).unwrap()
    };
    let shown = looked("");
    // Whoever has root's rights sees it anyhow.
    if is_powerless() {
        assert!(shown.starts_with("closed\n"), "{shown}");
    }
    let limit: Vec<_> = shown.split_whitespace().collect();
    assert_eq!(limit[5..7], ["0", "0"], "{shown}");
    // That it shows at all where it may is what makes the above say something.
    if is_powerless() {
        assert!(looked("1").starts_with("open\n"));
    }
}
