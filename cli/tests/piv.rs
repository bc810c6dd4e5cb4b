//! The command on a YubiKey that is virtual, behind a pcscd that is real: what comes of
//! it, and what the card holds afterwards.
#![cfg(target_os = "linux")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use claviger_tests::as_user;
use claviger_token::PublicKey;
use claviger_virtual_yubikey::{
    Algorithm, Builder, Card, Fault, Firmware, Inserted, ManagementAlgorithm, ObjectId, Pcscd,
    PrivateKey, Rule, Slot, ins, object,
};
use common::{Outcome, program};
use serde_json::Value;
use tempfile::TempDir;

const LETTER: &[u8] = b"Meet me where the keys are kept.\n";
const PIN: &str = "246802";
const MANAGEMENT_KEY: [u8; 24] = [0xa5; 24];
const RIGHT: &[&str] = &[
    "--pin-source",
    "file:pin",
    "--management-key",
    "file:management-key",
];
/// What somebody else keeps in a slot beside a key: a certificate that nobody can read.
const CERTIFICATE: &[u8] = &[0x70, 3, 1, 2, 3, 0x71, 1, 0, 0xfe, 0];

/// A YubiKey with a PIN and a management key of its own, a home folder, and a folder to
/// work in.
struct Bench {
    yubikey: Inserted,
    folder: TempDir,
}

/// What is on a card: the public halves of its keys, and its objects.
type Content = (Vec<(Slot, Vec<u8>)>, Vec<(ObjectId, Vec<u8>)>);

fn ours() -> Builder {
    Card::builder()
        .pin(PIN)
        .management_key(ManagementAlgorithm::Aes192, &MANAGEMENT_KEY)
}

/// A card that others use as well.
fn shared() -> Builder {
    ours()
        .generated(Slot::AUTHENTICATION, Algorithm::P256)
        .imported(
            Slot::KEY_MANAGEMENT,
            PrivateKey::generate(Algorithm::X25519),
        )
        .object(object::certificate(Slot::AUTHENTICATION), CERTIFICATE)
        .object(object::certificate(Slot::new(0x83).unwrap()), CERTIFICATE)
        .object(object::CHUID, &[0x34, 2, 1, 2])
        .object(object::CAPABILITY, &[0xf0, 1, 1])
        .object(object::PRINTED, &[1, 2, 3])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pem(der: &[u8]) -> Vec<u8> {
    let mut command = Command::new("openssl");
    let mut child = command
        .args(["x509", "-inform", "DER"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(der).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// What `tokens` says of something.
#[track_caller]
fn row<'a>(text: &'a str, what: &str) -> &'a str {
    let mut values = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix(what));
    values
        .next()
        .unwrap_or_else(|| panic!("no {what} in {text}"))
        .trim()
}

impl Bench {
    fn new(card: Builder) -> Bench {
        let bench = Bench {
            yubikey: Pcscd::insert(card.build()),
            folder: tempfile::tempdir().unwrap(),
        };
        // No PKCS#11 module is asked: OpenSC would look at the cards, too.
        fs::create_dir_all(bench.path("config/pkcs11")).unwrap();
        bench.write("config/pkcs11/pkcs11.conf", "user-config: only\n");
        bench.write("pin", PIN);
        bench.write("management-key", hex(&MANAGEMENT_KEY));
        bench.write("letter", LETTER);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Readable for its owner alone: it may be a PIN.
    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        use std::os::unix::fs::PermissionsExt;
        fs::write(self.path(name), content).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn backend(&self) -> String {
        format!("piv:serial={}", self.yubikey.card().serial())
    }

    /// The backend with something more.
    fn backend_with(&self, more: &str) -> String {
        format!("{};{more}", self.backend())
    }

    fn claviger(&self, words: &[&str]) -> Command {
        let (variable, socket) = Pcscd::environment();
        let mut command = as_user(env!("CARGO_BIN_EXE_claviger"));
        command
            .args(words)
            .current_dir(self.folder.path())
            .env(variable, socket)
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("CLAVIGER_HOME", self.path("home"))
            .env("CLAVIGER_DAEMON", "")
            .env_remove("CLAVIGER_LOG")
            .stdin(Stdio::null());
        command
    }

    /// Without PIN and management key.
    fn run(&self, words: &[&str]) -> Outcome {
        Outcome::of(&mut self.claviger(words))
    }

    /// With the right PIN and the right management key.
    fn run_as_owner(&self, words: &[&str]) -> Outcome {
        self.run(&[RIGHT, words].concat())
    }

    fn generate(&self, more: &[&str]) -> Outcome {
        let backend = self.backend();
        self.run_as_owner(&[&["generate", "alice", "--backend", &backend], more].concat())
    }

    fn json(&self, words: &[&str]) -> Value {
        self.run(&[&["--json"], words].concat()).succeeds().json()
    }

    fn token(&self) -> Value {
        self.json(&["tokens", "--backend", &self.backend()])[0].take()
    }

    /// How many slots are in this state.
    fn slots(&self, state: &str) -> usize {
        let token = self.token();
        let slots = token["slots"].as_array().unwrap().iter();
        slots.filter(|slot| slot["state"] == state).count()
    }

    fn fingerprint(&self, slot: &str) -> String {
        let token = self.token();
        let mut slots = token["slots"].as_array().unwrap().iter();
        let slot = slots.find(|found| found["slot"] == slot).unwrap();
        slot["fingerprint"].as_str().unwrap().to_owned()
    }

    fn content(&self) -> Content {
        let card = self.yubikey.card();
        let key = |slot: Slot| Some((slot, card.key(slot)?.spki()));
        let others = [
            object::CHUID,
            object::CAPABILITY,
            object::PRINTED,
            object::ADMIN_DATA,
        ];
        let names = Slot::all().map(object::certificate).chain(others);
        let object = |id: ObjectId| Some((id, card.object(id)?.to_vec()));
        (
            Slot::all().filter_map(key).collect(),
            names.filter_map(object).collect(),
        )
    }

    fn pin_tries(&self) -> u8 {
        self.yubikey.card().pin_tries()
    }

    /// Has openssl look at the signature that `name` makes of the letter.
    fn sign_and_let_openssl_check(&self, name: &str) -> Outcome {
        let words = ["sign", name, "letter", "--format", "der", "-o", "sig"];
        let signed = self.run_as_owner(&words).succeeds();
        let shown = self.json(&["show", name]);
        self.write("key.pem", shown["keys"][0]["public_key"].as_str().unwrap());
        let check = [
            "dgst",
            "-sha256",
            "-verify",
            "key.pem",
            "-signature",
            "sig",
            "letter",
        ];
        program("openssl", &check, self.folder.path(), None).succeeds();
        signed
    }

    /// What was interrupted is known, and settled when the owner says so.
    #[track_caller]
    fn is_repaired(&self, before: &Content) {
        let seen = self.run(&["--json", "doctor"]);
        assert!(seen.out().contains("was interrupted"), "{}", seen.out());
        assert_eq!(seen.code(), Some(1));
        self.run_as_owner(&["doctor", "--repair"]).succeeds();
        assert_eq!(self.content(), *before);
        assert_eq!(self.json(&["identities"]), serde_json::json!([]));
        self.run(&["doctor"]).succeeds();
        assert_eq!(self.pin_tries(), 3);
    }
}

#[test]
fn an_identity_lives_on_a_yubikey_from_generation_to_deletion() {
    let bench = Bench::new(shared());
    let (before, serial) = (bench.content(), bench.yubikey.card().serial());
    assert_eq!((bench.slots("free"), bench.slots("occupied")), (21, 3));

    bench.generate(&[]).succeeds();
    let text = bench.run(&["tokens", "--backend", &bench.backend()]).out();
    let free = "9c 9e 85 86 87 88 89 8a 8b 8c 8d 8e 8f 90 91 92 93 94 95";
    assert_eq!(row(&text, "free slots"), free);
    let ours = text
        .lines()
        .filter(|line| line.contains("alice  PIN once, touch never"));
    assert_eq!(ours.count(), 2, "{text}");
    assert_eq!((bench.slots("free"), bench.slots("occupied")), (19, 5));

    let root = pem(bench.yubikey.card().root_certificate());
    bench.write("root.pem", root);
    bench.write(
        "other.pem",
        pem(Card::builder()
            .of_another_maker()
            .build()
            .root_certificate()),
    );
    for (roots, believed) in [("root.pem", true), ("other.pem", false)] {
        let shown = bench.json(&["show", "alice", "--attestation-root", roots]);
        for key in shown["keys"].as_array().unwrap() {
            let attestation = &key["attestation"];
            let facts = attestation["facts"].to_string();
            for fact in [
                format!(r#"["serial","{serial}"]"#),
                r#"["firmware","5.7.1"]"#.into(),
                r#"["pin_policy","once"]"#.into(),
                r#"["touch_policy","never"]"#.into(),
            ] {
                assert!(facts.contains(&fact), "{facts}");
            }
            assert_eq!(attestation["chain_ends_in_given_root"], believed);
            assert_eq!(key["protection"]["never_extractable"], true);
        }
    }
    let shown = bench.run(&["show", "alice", "--attestation-root", "other.pem"]);
    assert!(shown.succeeds().out().contains("NOT BELIEVED"));

    let signed = bench.sign_and_let_openssl_check("alice");
    assert_eq!(signed.err(), "", "nobody is to touch anything");
    bench
        .run(&["encrypt", "alice", "letter", "-o", "letter.age"])
        .succeeds();
    let opened = bench
        .run_as_owner(&["decrypt", "alice", "letter.age"])
        .succeeds();
    assert_eq!(opened.bytes(), LETTER);

    let deleted = bench.run_as_owner(&["--json", "delete", "alice"]);
    let deleted = deleted.succeeds().json();
    for key in deleted["keys"].as_array().unwrap() {
        assert_eq!(key["outcome"], "destroyed");
    }
    assert_eq!(bench.content(), before);
    assert_eq!(bench.pin_tries(), 3);
    bench.run(&["doctor"]).succeeds();
}

#[test]
fn who_is_to_touch_the_yubikey_is_told() {
    let bench = Bench::new(ours());
    let backend = bench.backend_with("touch-policy=always");
    let words = ["generate", "alice", "--backend", &backend];
    bench.run_as_owner(&words).succeeds();
    let line = format!(
        "touch your YubiKey (serial {})\n",
        bench.yubikey.card().serial()
    );
    assert_eq!(bench.sign_and_let_openssl_check("alice").err(), line);
    bench
        .run(&["encrypt", "alice", "letter", "-o", "letter.age"])
        .succeeds();
    let opened = bench.run_as_owner(&["decrypt", "alice", "letter.age"]);
    assert_eq!(opened.succeeds().err(), line);
}

#[test]
fn a_key_that_was_found_is_used_and_released_as_it_was() {
    let bench = Bench::new(shared());
    let before = bench.content();
    let fingerprint = bench.fingerprint("9a");
    let elsewhere = bench.backend_with("slot=9d");
    let words = |backend: &str| {
        let words = ["connect", "bob", "--to", &fingerprint, "--backend", backend];
        bench.run_as_owner(&words)
    };
    words(&elsewhere).fails(1, "slot 9d");
    assert_eq!(bench.json(&["identities"]), serde_json::json!([]));
    for backend in [bench.backend(), bench.backend_with("slot=9a")] {
        words(&backend).succeeds();
        bench.sign_and_let_openssl_check("bob");
        let released = bench.run(&["--json", "delete", "bob"]).succeeds().json();
        assert_eq!(released["keys"][0]["outcome"], "released");
        assert_eq!(bench.content(), before);
    }
}

#[test]
fn a_wrong_pin_costs_one_try_and_the_last_one_is_kept() {
    let bench = Bench::new(ours());
    bench.generate(&[]).succeeds();
    let sign = |more: &[&str], pin: &str| {
        bench.write("pin", pin);
        bench.run_as_owner(&[more, &["sign", "alice", "letter"]].concat())
    };
    // Too short or too long for a card: not sent.
    for pin in ["12345", "123456789", ""] {
        sign(&[], pin).fails(1, "PIN");
        assert_eq!(bench.pin_tries(), 3, "{pin}");
    }
    sign(&[], "135791").fails(1, "rejected the PIN (2 attempts remaining)");
    assert_eq!(bench.pin_tries(), 2);
    sign(&[], "135792").fails(1, "rejected the PIN (one attempt remaining)");
    assert_eq!(bench.pin_tries(), 1);
    for pin in ["135791", PIN] {
        sign(&[], pin).fails(1, "one PIN attempt remaining");
        assert_eq!(bench.pin_tries(), 1);
    }
    let doctor = bench.run(&["doctor"]);
    assert!(
        doctor.out().contains("one PIN attempt remaining"),
        "{}",
        doctor.out()
    );
    sign(&["--last-try"], PIN).succeeds();
    assert_eq!(bench.pin_tries(), 3);
    sign(&[], PIN).succeeds();
}

/// So often a PIN was sent to the card.
fn pins_sent(bench: &Bench) -> usize {
    let log = bench.yubikey.faults().log();
    let sent = log
        .iter()
        .filter(|exchange| matches!(exchange.command[..], [_, ins::VERIFY, 0, _, 8, ..]));
    sent.count()
}

#[test]
fn a_refused_pin_is_sent_by_no_process_until_somebody_says_so() {
    let bench = Bench::new(ours());
    bench.generate(&[]).succeeds();
    let sign = |pin: &str| {
        bench.write("pin", pin);
        bench.run_as_owner(&["sign", "alice", "letter", "-o", "sig"])
    };
    let forget = |token: &str| bench.run(&["doctor", "--forget-refused-pin", token]);
    let serial = bench.yubikey.card().serial().to_string();
    forget(&serial).fails(1, "none are recorded");
    sign("135791").fails(1, "rejected the PIN (2 attempts remaining)");
    for _ in 0..3 {
        let again = sign("135791").fails(1, "was not sent again");
        let command = format!("claviger doctor --forget-refused-pin 'piv:Yubico/{serial}'");
        assert!(again.err().contains(&command), "{}", again.err());
    }
    assert_eq!(bench.pin_tries(), 2);
    let doctor = bench.run(&["doctor"]).succeeds().out();
    assert!(
        doctor.contains("rejected a PIN; no such PIN is sent"),
        "{doctor}"
    );

    let unknown = forget("4711").fails(1, "no rejected PIN of `4711`");
    assert!(
        unknown.err().contains(&format!("piv:Yubico/{serial}")),
        "{}",
        unknown.err()
    );
    let said = forget(&serial).succeeds().out();
    assert!(said.contains("rejected a PIN"), "{said}");
    sign("135791").fails(1, "rejected the PIN (one attempt remaining)");
    assert_eq!(bench.pin_tries(), 1);
    forget(&format!("piv:Yubico/{serial}")).succeeds();
    bench.write("pin", PIN);
    bench
        .run_as_owner(&["--last-try", "sign", "alice", "letter", "-o", "sig"])
        .succeeds();

    sign("135791").fails(1, "2 attempts remaining");
    sign("135792").fails(1, "one attempt remaining");
    bench.yubikey.card().change_pin("135791");
    sign("135791").fails(1, "was not sent again");
    let forgotten = ["doctor", "--forget-refused-pin", &bench.backend()];
    assert_eq!(bench.json(&forgotten)["refused_pins"], 2);
    sign("135791").succeeds();
    let doctor = bench.run(&["doctor"]).succeeds().out();
    assert!(!doctor.contains("refused"), "{doctor}");
}

#[test]
fn a_process_that_starts_again_and_again_with_a_wrong_pin_costs_one_try() {
    let bench = Bench::new(ours());
    bench.generate(&[]).succeeds();
    bench.write("pin", "135791");
    let before = pins_sent(&bench);
    for _ in 0..20 {
        bench
            .run_as_owner(&["sign", "alice", "letter"])
            .fails(1, "PIN");
    }
    assert_eq!((bench.pin_tries(), pins_sent(&bench) - before), (2, 1));
}

#[test]
fn of_many_processes_with_a_wrong_pin_one_sends_it() {
    let bench = Bench::new(ours());
    bench.generate(&[]).succeeds();
    bench.write("pin", "135791");
    let before = pins_sent(&bench);
    let words = [RIGHT, &["sign", "alice", "letter"]].concat();
    let start = || {
        let mut command = bench.claviger(&words);
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    };
    let children: Vec<_> = (0..8).map(|_| start()).collect();
    for mut child in children {
        assert_eq!(child.wait().unwrap().code(), Some(1));
    }
    assert_eq!((bench.pin_tries(), pins_sent(&bench) - before), (2, 1));
}

#[test]
fn of_many_processes_with_other_wrong_pins_none_takes_the_last_try() {
    let bench = Bench::new(ours());
    bench.generate(&[]).succeeds();
    let start = |number: usize| {
        let source = format!("file:wrong{number}");
        bench.write(&format!("wrong{number}"), format!("13579{number}"));
        let words = ["--pin-source", &source, "sign", "alice", "letter"];
        let mut command = bench.claviger(&words);
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    };
    let children: Vec<_> = (0..8).map(start).collect();
    for mut child in children {
        assert_eq!(child.wait().unwrap().code(), Some(1));
    }
    assert_eq!(bench.pin_tries(), 1);
}

#[test]
fn a_process_that_is_killed_before_the_card_has_answered_burns_one_try() {
    let bench = Bench::new(ours());
    bench.generate(&[]).succeeds();
    let words = ["sign", "alice", "letter", "-o", "sig"];
    // How many other VERIFYs go before the one with the PIN.
    let faults = bench.yubikey.faults();
    faults.clear_log();
    bench.run_as_owner(&words).succeeds();
    let log = faults.log();
    let verifies = log.iter().filter(|e| e.instruction() == Some(ins::VERIFY));
    let skip = { verifies }
        .position(|exchange| exchange.command.get(4) == Some(&8))
        .unwrap();
    let killed = |pin: &str| {
        bench.write("pin", pin);
        faults.clear_log();
        let late = Rule::new(Fault::Delay(Duration::from_millis(1500)));
        faults.add(late.on(ins::VERIFY).after(skip));
        let mut child = bench.claviger(&[RIGHT, &words].concat()).spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while faults.count(ins::VERIFY) <= skip {
            assert!(Instant::now() < end, "no PIN is sent");
            sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success());
    };
    killed(PIN);
    bench.run_as_owner(&words).succeeds();
    killed("135791");
    for pin in ["135791", "135791", PIN] {
        bench.write("pin", pin);
        let refused = bench.run_as_owner(&words);
        let refused = refused.fails(1, "it is not known whether it was rejected");
        assert!(
            refused.err().contains("--forget-refused-pin"),
            "{}",
            refused.err()
        );
    }
    assert_eq!(bench.pin_tries(), 2);
    // That comes before all else.
    let doctor = bench.run(&["doctor"]).succeeds();
    let first = doctor.out().lines().next().unwrap().to_owned();
    assert!(first.starts_with("note     a PIN was sent to "), "{first}");
    assert!(first.contains("is not known whether"), "{first}");
    bench
        .run(&["doctor", "--forget-refused-pin", &bench.backend()])
        .succeeds();
    bench.run_as_owner(&words).succeeds();
    assert_eq!(bench.pin_tries(), 3);
}

#[test]
fn a_card_that_is_pulled_out_before_it_has_answered_is_asked_when_it_is_back() {
    let bench = Bench::new(ours());
    bench.generate(&[]).succeeds();
    for (pin, tries) in [(PIN, 3), ("135791", 2)] {
        bench.write("pin", pin);
        let rule = Rule::new(Fault::RemoveAfter).on(ins::VERIFY).after(1);
        bench.yubikey.faults().add(rule);
        let words = ["sign", "alice", "letter", "-o", "sig"];
        bench.run_as_owner(&words).fails(1, "is not available");
        bench.yubikey.insert();
        assert_eq!(bench.pin_tries(), tries);
        match tries {
            3 => drop(bench.run_as_owner(&words).succeeds()),
            _ => drop(bench.run_as_owner(&words).fails(1, "it is not known")),
        }
        assert_eq!(bench.pin_tries(), tries);
    }
}

#[test]
fn a_signature_takes_nine_commands_to_the_card() {
    let bench = Bench::new(ours());
    bench.generate(&["--capabilities", "commit"]).succeeds();
    bench.yubikey.faults().clear_log();
    let words = ["sign", "alice", "letter", "-o", "sig"];
    bench.run_as_owner(&words).succeeds();
    let sent: Vec<String> = (bench.yubikey.faults().log().iter())
        .map(|exchange| format!("{:02x}", exchange.instruction().unwrap()))
        .collect();
    assert!(sent.len() <= 9, "{sent:?}");
}

#[test]
fn a_blocked_pin_is_said() {
    let bench = Bench::new(ours());
    bench.yubikey.card().block_pin();
    let refused = bench.generate(&[]).fails(1, "is locked");
    assert!(refused.err().contains("PUK"), "{}", refused.err());
    bench.generate(&["--last-try"]).fails(1, "is locked");
    assert_eq!(bench.pin_tries(), 0);
}

#[test]
fn doctor_says_that_a_puk_is_blocked() {
    let bench = Bench::new(ours().tries(3, 0));
    let doctor = bench.run(&["doctor"]);
    assert!(doctor.out().contains("PUK of"), "{}", doctor.out());
    assert_eq!(doctor.code(), Some(1));
}

#[test]
fn without_the_right_management_key_nothing_is_made() {
    let bench = Bench::new(ours());
    let before = bench.content();
    let backend = bench.backend();
    let generate = |more: &[&str]| {
        let words = ["--pin-source", "file:pin", "generate", "alice", "--backend"];
        bench.run(&[&words[..], &[&*backend], more].concat())
    };
    generate(&[]).fails(1, "requires its management key");
    generate(&["--factory-defaults"]).fails(1, "requires its management key");
    for (key, words) in [
        (hex(&[0x5a; 24]), "rejected the management key"),
        (hex(&[0xa5; 16]), "rejected the management key"),
        (hex(&[0xa5; 32]), "rejected the management key"),
        ("not hexadecimal".into(), "not hexadecimal"),
    ] {
        bench.write("management-key", key);
        let refused = generate(&["--management-key", "file:management-key"]).fails(1, words);
        assert!(!refused.err().contains("a5a5"), "{}", refused.err());
        assert_eq!(bench.content(), before);
        assert_eq!(bench.json(&["identities"]), serde_json::json!([]));
    }
    bench.run(&["doctor"]).succeeds();
    assert_eq!(bench.pin_tries(), 3);
}

#[test]
fn factory_defaults_are_tried_only_when_that_is_said() {
    let bench = Bench::new(Card::builder());
    let before = bench.content();
    let backend = bench.backend();
    let words = ["generate", "alice", "--backend", &backend];
    bench.run(&words).fails(1, "requires a PIN");
    bench.write("pin", "123456");
    bench
        .run(&[&["--pin-source", "file:pin"], &words[..]].concat())
        .fails(1, "requires its management key");
    assert_eq!(bench.content(), before);
    let text = bench.run(&["tokens", "--backend", &backend]).out();
    assert_eq!(row(&text, "pin is default"), "true");
    let defaults = |words: &[&str]| bench.run(&[&["--factory-defaults"], words].concat());
    defaults(&words).succeeds();
    defaults(&["sign", "alice", "letter"]).succeeds();
    defaults(&["delete", "alice"]).succeeds();
    assert_eq!(bench.content(), before);
}

#[test]
fn of_two_yubikeys_none_is_guessed() {
    let one = Bench::new(ours());
    let other = Bench::new(ours());
    let words = ["generate", "alice", "--backend", "piv:"];
    let refused = one.run_as_owner(&words).fails(1, "tokens");
    for bench in [&one, &other] {
        assert!(
            refused.err().contains(&bench.backend()),
            "{}",
            refused.err()
        );
        assert_eq!(bench.yubikey.faults().count(ins::VERIFY), 0);
    }
    one.generate(&[]).succeeds();
    assert_eq!((one.slots("free"), other.slots("free")), (22, 24));
}

#[test]
fn a_full_card_is_said_to_be_full() {
    let mut card = ours();
    for reference in 0x82..=0x95 {
        let slot = Slot::new(reference).unwrap();
        card = match reference % 2 {
            0 => card.object(object::certificate(slot), CERTIFICATE),
            _ => card.generated(slot, Algorithm::P256),
        };
    }
    let bench = Bench::new(card);
    let before = bench.content();
    bench.generate(&[]).fails(1, "no free slots except");
    let taken = bench.backend_with("slot=83");
    let commit = |backend: &str| {
        let words = ["--capabilities", "commit", "--backend", backend];
        bench.run_as_owner(&[&["generate", "alice"], &words[..]].concat())
    };
    commit(&taken).fails(1, "slot 83 of");
    assert_eq!(bench.content(), before);
    // The other four slots are for who names them.
    commit(&bench.backend_with("slot=9c")).succeeds();
    bench.sign_and_let_openssl_check("alice");
    let text = bench.run(&["tokens", "--backend", &bench.backend()]).out();
    assert_eq!(row(&text, "free slots"), "9a 9d 9e");
}

#[test]
fn what_the_firmware_does_not_have_is_refused_before_anything_happens() {
    let bench = Bench::new(ours_before_aes().firmware(Firmware::V5_2_4));
    let before = bench.content();
    let words = ["--params", "ed25519", "--capabilities", "commit"];
    let refused = bench.generate(&words).fails(1, "does not offer");
    for supported in ["p256", "p384", "rsa2048"] {
        assert!(refused.err().contains(supported), "{}", refused.err());
    }
    assert_eq!(bench.content(), before);
    for instruction in [ins::PUT_DATA, ins::GENERATE] {
        assert_eq!(bench.yubikey.faults().count(instruction), 0);
    }
    bench.generate(&[]).succeeds();
}

#[test]
fn without_a_command_to_delete_a_key_is_overwritten_and_its_slot_is_free_again() {
    for firmware in [Firmware::V4_3_5, Firmware::V5_2_4] {
        let bench = Bench::new(ours_before_aes().firmware(firmware));
        let free = bench.slots("free");
        bench.generate(&[]).succeeds();
        assert_eq!(bench.slots("free"), free - 2);
        let keys = bench.json(&["show", "alice"])["keys"].take();
        let of_alice: Vec<_> = keys.as_array().unwrap().iter().collect();
        assert_eq!(of_alice.len(), 2);

        let said = bench.run_as_owner(&["delete", "alice"]).succeeds().out();
        assert!(said.contains("destroyed"), "{said}");
        assert_eq!(bench.slots("free"), free);
        let (left, _) = bench.content();
        for key in of_alice {
            let its = key["public_key"].as_str().unwrap();
            let is_it = |spki: &[u8]| PublicKey::from_der(spki).unwrap().to_text() == its;
            assert!(!left.iter().any(|(_, spki)| is_it(spki)));
        }
        bench.generate(&[]).succeeds();
    }
}

/// Before 5.4.2 management keys are of triple DES.
fn ours_before_aes() -> Builder {
    ours().management_key(ManagementAlgorithm::TripleDes, &MANAGEMENT_KEY)
}

#[test]
fn a_yubikey_that_is_pulled_out_while_keys_are_made_is_put_right_when_it_is_back() {
    let bench = Bench::new(shared());
    let before = bench.content();
    for (instruction, skip) in [(ins::PUT_DATA, 0), (ins::GENERATE, 0), (ins::GENERATE, 1)] {
        for fault in [Fault::RemoveBefore, Fault::RemoveAfter] {
            let rule = Rule::new(fault).on(instruction).after(skip);
            bench.yubikey.faults().add(rule);
            let pulled = bench.generate(&[]).fails(1, "is not available");
            assert!(pulled.err().contains("doctor --repair"), "{}", pulled.err());
            assert!(!bench.yubikey.is_inserted());
            // Nothing is forgotten meanwhile.
            bench
                .run_as_owner(&["doctor", "--repair"])
                .fails_to_repair();
            bench.yubikey.insert();
            bench.is_repaired(&before);
        }
    }
    bench.generate(&[]).succeeds();
}

trait FailsToRepair {
    fn fails_to_repair(self);
}

impl FailsToRepair for Outcome {
    #[track_caller]
    fn fails_to_repair(self) {
        assert_eq!(self.code(), Some(1));
        assert!(self.out().contains("is not resolved"), "{}", self.out());
    }
}

#[test]
fn a_process_that_is_killed_while_keys_are_made_leaves_what_can_be_put_right() {
    let bench = Bench::new(shared());
    let before = bench.content();
    let backend = bench.backend();
    let words = ["generate", "alice", "--backend", &backend];
    let command = [RIGHT, &words].concat();
    for (instruction, skip) in [
        (ins::PUT_DATA, 0),
        (ins::GENERATE, 0),
        (ins::PUT_DATA, 1),
        (ins::GENERATE, 1),
    ] {
        let faults = bench.yubikey.faults();
        faults.clear_log();
        // The card has done it, and the process never learns.
        let late = Rule::new(Fault::Delay(Duration::from_millis(1500)));
        faults.add(late.on(instruction).after(skip));
        let mut child = bench.claviger(&command);
        let mut child = child
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while faults.count(instruction) <= skip {
            assert!(
                Instant::now() < end,
                "it does not come to {instruction:02x}"
            );
            sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success());
        bench.is_repaired(&before);
    }
    bench.generate(&[]).succeeds();
}

#[test]
fn without_the_smartcard_service_it_is_said_what_is_missing() {
    let bench = Bench::new(ours());
    let without = |words: &[&str]| {
        let mut command = bench.claviger(&[RIGHT, words].concat());
        Outcome::of(command.env(Pcscd::environment().0, bench.path("no-socket")))
    };
    let none = without(&["tokens"]).succeeds();
    assert_eq!(none.out(), "no tokens\n");
    assert!(
        none.err().contains("pcscd is not running"),
        "{}",
        none.err()
    );
    without(&["tokens", "--backend", "piv:"]).fails(1, "pcscd is not running");
    let backend = bench.backend();
    let words = ["generate", "alice", "--backend", &backend];
    without(&words).fails(1, "pcscd is not running");

    // Nobody needs it yet.
    let doctor = without(&["--json", "doctor"]).succeeds().json();
    assert_eq!((&doctor["ok"], level(&doctor)), (&true.into(), "note"));
    bench.generate(&[]).succeeds();
    let doctor = bench.run(&["--json", "doctor"]).succeeds().json();
    assert_eq!((&doctor["ok"], level(&doctor)), (&true.into(), "info"));
    let doctor = without(&["--json", "doctor"]);
    assert_eq!(doctor.code(), Some(1));
    assert_eq!(level(&doctor.json()), "error");
    without(&["sign", "alice", "letter"]).fails(1, "pcscd is not running");
    bench.sign_and_let_openssl_check("alice");
}

/// What `doctor` thinks of the smartcard service.
fn level(doctor: &Value) -> &str {
    let mut findings = doctor["findings"].as_array().unwrap().iter();
    let about = |f: &&Value| f["what"].as_str().unwrap().contains("smartcard service");
    findings.find(about).unwrap()["level"].as_str().unwrap()
}

#[test]
fn who_watches_sees_a_yubikey_come_and_go_at_once() {
    let bench = Bench::new(ours());
    let mut watching = bench.claviger(&["--json", "tokens", "--watch", "--backend", "piv:"]);
    let mut watching = watching.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let serial = bench.yubikey.card().serial().to_string();
    let mut next = || loop {
        let change: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        if change["serial"] == *serial {
            return (change["before"].to_string(), change["state"].to_string());
        }
    };
    let [absent, present] = ["absent", "present"].map(|state| format!("\"{state}\""));
    assert_eq!(next(), (absent.clone(), present.clone()));
    for _ in 0..3 {
        bench.yubikey.remove();
        assert_eq!(next(), (present.clone(), absent.clone()));
        bench.yubikey.insert();
        assert_eq!(next(), (absent.clone(), present.clone()));
    }
    watching.kill().unwrap();
    watching.wait().unwrap();
}

#[test]
fn a_signature_waits_for_its_yubikey_as_long_as_it_may() {
    let bench = Bench::new(ours());
    bench.generate(&[]).succeeds();
    bench.yubikey.remove();
    let words = ["--timeout", "2", "sign", "alice", "letter"];
    bench
        .run_as_owner(&words)
        .fails(1, "no attached token matches");

    let words = [
        RIGHT,
        &["--timeout", "30", "sign", "alice", "letter", "-o", "sig"],
    ]
    .concat();
    let mut signing = bench.claviger(&words);
    let mut signing = signing.stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut lines = BufReader::new(signing.stderr.take().unwrap());
    lines.read_line(&mut said).unwrap();
    assert!(said.contains("insert it"), "{said}");
    bench.yubikey.insert();
    assert!(signing.wait().unwrap().success());
    assert_eq!(bench.pin_tries(), 3);
}
