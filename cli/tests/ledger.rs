//! The command on a Ledger that is simulated: over the emulator's protocol, and over a
//! USB that is not there, through the real HID library.
#![cfg(target_os = "linux")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use claviger_ledger_emulator::{Approval, Ethereum, Fault, Running, Server, Usb};
use claviger_tests::as_user;
use claviger_token::signing::eip191_digest;
use common::{Outcome, program};
use tempfile::TempDir;

const LETTER: &[u8] = b"Meet me where the keys are kept.\n";
/// Of the simulated device's seed.
const SERIAL: &str = "8374458579327a58";

/// A Ledger, a home folder, and a folder to work in.
struct Bench {
    app: Ethereum,
    server: Server,
    folder: TempDir,
}

impl Bench {
    fn new() -> Bench {
        let app = Ethereum::new();
        let bench = Bench {
            server: app.serve(),
            app,
            folder: tempfile::tempdir().unwrap(),
        };
        fs::write(bench.folder.path().join("letter"), LETTER).unwrap();
        bench
    }

    fn backend(&self) -> String {
        format!("ledger:tcp={}", self.server.address())
    }

    fn claviger(&self, words: &[&str]) -> Command {
        let mut command = as_user(env!("CARGO_BIN_EXE_claviger"));
        command
            .args(words)
            .current_dir(self.folder.path())
            .env("CLAVIGER_HOME", self.folder.path().join("home"))
            .env("CLAVIGER_DAEMON", "")
            .env_remove("CLAVIGER_LOG")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Outcome {
        Outcome::of(&mut self.claviger(words))
    }

    fn generate(&self, name: &str, backend: &str) -> Outcome {
        self.run(&[
            "generate",
            name,
            "--backend",
            backend,
            "--params",
            "secp256k1",
        ])
    }

    /// The account at which those of the home begin.
    fn first_account(&self, name: &str) -> u64 {
        let shown = self.run(&["--json", "show", name]).succeeds().json();
        let first = shown["first_account"].as_u64().unwrap();
        assert!(first.is_multiple_of(1000) && first < 2_000_000, "{first}");
        first
    }

    /// Runs the command; `meanwhile` is done when the user of the device is asked, or
    /// when the command has said `words`.
    fn with_person(&self, words: &[&str], meanwhile: impl FnOnce()) -> Outcome {
        let errors = self.folder.path().join("errors");
        let mut command = self.claviger(words);
        command.stderr(fs::File::create(&errors).unwrap());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while fs::read(&errors).unwrap().is_empty() {
            assert!(Instant::now() < end, "nobody is told anything");
            assert!(child.try_wait().unwrap().is_none());
            sleep(Duration::from_millis(5));
        }
        meanwhile();
        let mut output = child.wait_with_output().unwrap();
        output.stderr = fs::read(&errors).unwrap();
        Outcome::from(output)
    }
}

#[test]
fn an_identity_lives_from_generate_to_delete() {
    let bench = Bench::new();
    let backend = bench.backend();
    let tokens = bench.run(&["--json", "tokens", "--backend", &backend]);
    let tokens = tokens.succeeds().json();
    assert_eq!(tokens[0]["serial"], SERIAL);
    assert_eq!(tokens[0]["slots"].as_array().unwrap().len(), 10);
    bench.generate("alice", &backend).succeeds();

    let sign = |format, to| bench.run(&["sign", "alice", "letter", "--format", format, "-o", to]);
    sign("der", "letter.der").succeeds();
    sign("raw", "letter.raw").succeeds();
    sign("sshsig", "letter.ssh").fails(1, "SSH knows no signatures of secp256k1");
    let folder = bench.folder.path();
    for signature in ["letter.der", "letter.raw"] {
        let verify = ["verify", "alice", "--signature", signature, "letter"];
        assert_eq!(
            bench.run(&verify).succeeds().out(),
            "valid (eip191-secp256k1)\n"
        );
        let verify = ["verify", "alice", "--signature", signature, signature];
        bench.run(&verify).fails(1, "not valid");
    }
    let shown = bench.run(&["--json", "show", "alice"]).succeeds().json();
    let key = shown["keys"][0]["public_key"].as_str().unwrap();
    fs::write(folder.join("key.pem"), key).unwrap();
    fs::write(folder.join("digest"), eip191_digest(LETTER)).unwrap();
    let openssl = "pkeyutl -verify -pubin -inkey key.pem -in digest -sigfile letter.der";
    let words: Vec<&str> = openssl.split(' ').collect();
    program("openssl", &words, folder, None).succeeds();

    let encrypt = ["encrypt", "alice", "letter", "-o", "letter.age"];
    bench.run(&encrypt).succeeds();
    let decrypted = bench.run(&["decrypt", "alice", "letter.age"]).succeeds();
    assert_eq!(decrypted.bytes(), LETTER);

    let deleted = bench.run(&["delete", "alice"]).succeeds().out();
    assert_eq!(
        deleted
            .matches("can be derived again from the token's seed")
            .count(),
        2
    );
    // Its account is not given to another.
    bench.generate("bob", &backend).succeeds();
    let shown = bench.run(&["--json", "show", "bob"]).succeeds().json();
    let first = bench.first_account("bob");
    let second = format!("{}/secp256k1", first + 1);
    assert_eq!(shown["keys"][0]["slot"], second);
    let again = format!("{backend};account={first}");
    let slot = format!("{first}/secp256k1");
    bench.generate("carol", &again).fails(1, &slot);
    let seventh = format!("{backend};account=7");
    bench.generate("carol", &seventh).succeeds();
    let shown = bench.run(&["--json", "show", "carol"]).succeeds().json();
    assert_eq!(shown["keys"][1]["slot"], "7/x25519");
}

#[test]
fn a_person_is_told_what_to_do() {
    let bench = Bench::new();
    bench.generate("alice", &bench.backend()).succeeds();
    let sign = [
        "sign",
        "alice",
        "letter",
        "--format",
        "raw",
        "-o",
        "letter.sig",
    ];

    bench.app.set_approval(Approval::Hang);
    let signed = bench.with_person(&sign, || bench.app.set_approval(Approval::Approve));
    let line = format!("look at your Ledger ({SERIAL}) and approve\n");
    assert_eq!(signed.succeeds().err(), line);

    bench.app.set_approval(Approval::Reject);
    bench.run(&sign).fails(1, "rejected");
    bench.app.set_approval(Approval::Approve);

    bench.app.set_locked(true);
    let signed = bench.with_person(&sign, || bench.app.set_locked(false));
    assert_eq!(signed.succeeds().err(), "unlock the Ledger emulator\n");

    bench.app.open(Running::Other {
        name: "BOLOS".into(),
        refusal: 0x6e00,
    });
    let signed = bench.with_person(&sign, || bench.app.open(Running::Ethereum));
    let line = "open the app Ethereum on the Ledger emulator\n";
    assert_eq!(signed.succeeds().err(), line);

    bench.app.set_locked(true);
    let in_time = [&["--timeout", "1"], &sign[..]].concat();
    bench
        .run(&in_time)
        .fails(1, "the Ledger emulator is locked");
    let backend = bench.backend();
    let tokens = bench.run(&["tokens", "--backend", &backend]).succeeds();
    assert!(
        tokens.out().contains("locked: unlock it"),
        "{}",
        tokens.out()
    );
}

/// Whether a text was sent to the device.
fn was_sent(app: &Ethereum, text: &str) -> bool {
    let sent = app.exchanges();
    let has = |apdu: &Vec<u8>| apdu.windows(text.len()).any(|part| part == text.as_bytes());
    sent.iter().any(has)
}

#[test]
fn a_key_proves_itself_before_it_is_entered_and_the_person_knows_why() {
    let bench = Bench::new();
    let backend = bench.backend();
    let words = [
        "generate",
        "alice",
        "--backend",
        &backend,
        "--params",
        "secp256k1",
    ];
    bench.app.set_approval(Approval::Hang);
    let generated = bench.with_person(&words, || bench.app.set_approval(Approval::Approve));
    let line =
        format!("look at your Ledger ({SERIAL}) and approve (to prove that the key can sign)");
    let said = generated.succeeds().err();
    assert!(said.contains(&line), "{said}");
    assert_eq!(bench.app.prompts(), 2);
    // In letters that the device shows.
    assert!(was_sent(&bench.app, "Claviger: proof of possession "));

    let tokens = bench.run(&["--json", "tokens", "--backend", &backend]);
    let tokens = tokens.succeeds().json();
    let slots = tokens[0]["slots"].as_array().unwrap();
    let occupied = slots.iter().filter(|slot| slot["state"] == "occupied");
    let names: Vec<&str> = occupied
        .map(|slot| slot["slot"].as_str().unwrap())
        .collect();
    let first = bench.first_account("alice");
    let own = ["secp256k1", "x25519"].map(|algorithm| format!("{first}/{algorithm}"));
    assert_eq!(names, own);
    let shown = bench.run(&["show", "alice"]).succeeds().out();
    assert!(shown.contains("may be on paper"), "{shown}");
    assert!(!shown.contains("cannot leave it"), "{shown}");

    let fingerprint = slots[2]["fingerprint"].as_str().unwrap();
    let adopt = ["connect", "bob", "--to", fingerprint, "--backend", &backend];
    bench.app.set_approval(Approval::Reject);
    bench.run(&adopt).fails(1, "rejected");
    bench.run(&["show", "bob"]).fails(1, "bob");
    bench.app.set_approval(Approval::Approve);
    bench.run(&adopt).succeeds();
    assert_eq!(bench.app.prompts(), 4);
}

#[test]
fn who_declines_gets_no_identity() {
    let bench = Bench::new();
    let backend = bench.backend();
    for approvals in [
        &[Approval::Reject][..],
        &[Approval::Approve, Approval::Reject],
    ] {
        for approval in approvals {
            bench.app.approve_next(*approval);
        }
        bench.generate("alice", &backend).fails(1, "rejected");
        bench.run(&["show", "alice"]).fails(1, "alice");
        let doctor = bench.run(&["--json", "doctor"]).out();
        assert!(!doctor.contains("\"intent\""), "{doctor}");
    }
    assert_eq!(bench.app.prompts(), 3);
    bench.generate("alice", &backend).succeeds();
    let shown = bench.run(&["--json", "show", "alice"]).succeeds().json();
    let first = bench.first_account("alice");
    assert_eq!(shown["keys"][0]["slot"], format!("{first}/secp256k1"));
}

#[test]
fn a_device_that_shows_a_review_is_listed_as_busy_and_left_alone() {
    let bench = Bench::new();
    let backend = bench.backend();
    bench.generate("alice", &backend).succeeds();
    let sign = [
        "sign",
        "alice",
        "letter",
        "--format",
        "raw",
        "-o",
        "letter.sig",
    ];
    let tokens = || {
        let listed = bench.run(&["tokens", "--backend", &backend]);
        listed.succeeds().out()
    };
    bench.app.set_approval(Approval::Hang);
    let signed = bench.with_person(&sign, || {
        let listed = tokens();
        assert!(listed.contains("busy with a review"), "{listed}");
        assert_eq!(bench.app.interruptions(), 0);
        bench.app.set_approval(Approval::Approve);
    });
    signed.succeeds();
    assert!(!tokens().contains("busy"));

    // A review that its command no longer waits for.
    bench.app.set_approval(Approval::Hang);
    let in_time = [&["--timeout", "1"], &sign[..]].concat();
    bench.run(&in_time).fails(1, "");
    let listed = tokens();
    assert!(listed.contains("busy with a review"), "{listed}");
    let signed = bench.with_person(&sign, || bench.app.set_approval(Approval::Approve));
    let said = signed.succeeds().err();
    assert!(said.contains("approve or reject what it shows"), "{said}");
    assert_eq!(bench.app.interruptions(), 0);
}

#[test]
fn on_usb_a_bad_frame_is_an_error_and_the_next_command_works() {
    let bench = Bench::new();
    let usb = Usb::new();
    let device = usb.plug(bench.app.answerer());
    let run = |words: &[&str]| Outcome::of(usb.show_to(&mut bench.claviger(words)));
    let generate = [
        "generate",
        "alice",
        "--backend",
        "ledger:",
        "--params",
        "secp256k1",
    ];
    run(&generate).succeeds();
    let sign = [
        "sign",
        "alice",
        "letter",
        "--format",
        "raw",
        "-o",
        "letter.sig",
    ];
    run(&sign).succeeds();
    for (fault, words) in [
        (Fault::Truncated(3), "a frame of 3 bytes"),
        (Fault::OutOfOrder, "instead of frame 0"),
        (Fault::OtherChannel, "another channel"),
        (Fault::LyingLength(0xffff), "an APDU of 65535 bytes"),
        (Fault::LyingLength(1), "an APDU of 1 bytes"),
        (Fault::LyingLength(200), "does not answer"),
        (Fault::Silence, "does not answer"),
    ] {
        device.fail_next(fault);
        run(&sign).fails(1, words);
        run(&sign).succeeds();
    }
    assert_eq!(device.complaints(), [""; 0]);

    // Two of them.
    let _other = usb.plug(bench.app.answerer());
    run(&sign).succeeds();
    device.fail_next(Fault::Unplug);
    run(&sign).succeeds();
    run(&["decrypt", "alice", "letter"]).fails(1, "Decryption Failed");
}

#[test]
fn a_second_home_does_not_give_out_the_accounts_of_the_first() {
    let bench = Bench::new();
    let backend = bench.backend();
    let said = bench.generate("alice", &backend).succeeds().out();
    let first = bench.first_account("alice");
    let line = format!("accounts of this home begin at {first}\n");
    assert!(said.contains(&line), "{said}");
    let shown = bench.run(&["show", "alice"]).succeeds().out();
    assert!(shown.contains(&line), "{shown}");
    let backup = bench.run(&["backup", "file"]).succeeds().out();
    assert!(backup.contains(&line), "{backup}");

    // Seven homes: that all begin at one place has a chance of 2,000 to the power of -6.
    let starts: std::collections::BTreeSet<u64> = (0..7)
        .map(|number| {
            let home = format!("home-{number}");
            bench
                .run(&["--home", &home, "contact", "list"])
                .fails(1, "no registry");
            let seventh = format!("{backend};account=7");
            let words = ["--home", &home, "generate", "bob", "--params", "secp256k1"];
            bench
                .run(&[&words[..], &["--backend", &seventh]].concat())
                .succeeds();
            let shown = bench.run(&["--json", "--home", &home, "show", "bob"]);
            shown.succeeds().json()["first_account"].as_u64().unwrap()
        })
        .collect();
    assert!(starts.len() > 1, "{starts:?}");
}

#[test]
fn a_copy_of_a_home_derives_no_keys_until_it_is_the_home() {
    let bench = Bench::new();
    let backend = bench.backend();
    bench.generate("alice", &backend).succeeds();
    let first = bench.first_account("alice");
    let copy = program("cp", &["-r", "home", "copy"], bench.folder.path(), None);
    copy.succeeds();
    let in_copy = |words: &[&str]| bench.run(&[&["--home", "copy"], words].concat());
    let generate = [
        "generate",
        "bob",
        "--params",
        "secp256k1",
        "--backend",
        &backend,
    ];
    in_copy(&generate).fails(1, "this home is a copy");
    let named = format!("{backend};account=7");
    let words = [
        "generate",
        "carol",
        "--params",
        "secp256k1",
        "--backend",
        &named,
    ];
    in_copy(&words).succeeds();
    in_copy(&["doctor", "--this-is-the-home"]);
    in_copy(&generate).succeeds();
    let shown = in_copy(&["--json", "show", "bob"]).succeeds().json();
    let begins = shown["first_account"].as_u64().unwrap();
    // It begins elsewhere, or, once in two thousand times, goes on behind what it knows.
    let next = if begins == first { first + 1 } else { begins };
    assert_eq!(shown["keys"][0]["slot"], format!("{next}/secp256k1"));
    assert_eq!(bench.first_account("alice"), first);
}

#[test]
fn keys_of_a_lost_registry_are_found_by_what_others_have_of_them() {
    let bench = Bench::new();
    let backend = bench.backend();
    bench.generate("alice", &backend).succeeds();
    bench.generate("bob", &backend).succeeds();
    bench
        .run(&["encrypt", "bob", "letter", "-o", "letter.age"])
        .succeeds();
    let first = bench.first_account("alice");
    let folder = bench.folder.path();
    let [alice, bob] = ["alice", "bob"].map(|name| {
        let shown = bench.run(&["--json", "show", name]).succeeds().json();
        shown["keys"].clone()
    });
    fs::write(
        folder.join("alice"),
        alice[1]["age_recipient"].as_str().unwrap(),
    )
    .unwrap();
    let fingerprints = [0, 1].map(|at| bob[at]["fingerprint"].as_str().unwrap());
    fs::write(folder.join("bob"), fingerprints.join("\n")).unwrap();
    fs::remove_dir_all(folder.join("home")).unwrap();

    let words = ["--backend", &backend, "--find-accounts", "alice", "bob"];
    let found = bench.run(&[&["--json", "doctor"], &words[..]].concat());
    let found = found.succeeds().json();
    assert_eq!(found["missing"], serde_json::json!([]));
    let of = |account: u64| {
        let address = bench.server.address();
        format!("ledger:serial={SERIAL};tcp={address};account={account}")
    };
    let backends = found["found"].as_array().unwrap().iter();
    let backends: Vec<&str> = backends
        .map(|key| key["backend"].as_str().unwrap())
        .collect();
    assert_eq!(backends, [of(first), of(first + 1), of(first + 1)]);
    let (account, to) = (of(first + 1), fingerprints.join(","));
    bench
        .run(&["connect", "bob", "--to", &to, "--backend", &account])
        .succeeds();
    let opened = bench.run(&["decrypt", "bob", "letter.age"]).succeeds();
    assert_eq!(opened.bytes(), LETTER);
    // Nobody else is given them.
    let deleted = bench.run(&["delete", "bob"]).succeeds().out();
    assert!(!deleted.contains("destroyed"), "{deleted}");
    bench
        .generate("carol", &account)
        .fails(1, &format!("{}/secp256k1", first + 1));
}

#[test]
fn a_search_for_accounts_ends_when_it_is_told_to() {
    let bench = Bench::new();
    let nowhere = format!("SHA256:{}", "A".repeat(43));
    let backend = bench.backend();
    let words = [
        "--timeout",
        "1",
        "doctor",
        "--backend",
        &backend,
        "--find-accounts",
        &nowhere,
    ];
    let begun = Instant::now();
    bench.run(&words).fails(1, "deadline");
    assert!(begun.elapsed() < Duration::from_secs(60));
    bench
        .run(&["doctor", "--backend", &backend, "--find-accounts", "letter"])
        .fails(1, "`letter` cannot be used");
    bench
        .run(&[
            "doctor",
            "--backend",
            "memory:",
            "--find-accounts",
            &nowhere,
        ])
        .fails(1, "memory:");
}
