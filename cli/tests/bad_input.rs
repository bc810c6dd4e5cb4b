//! What cannot be done is refused with one cause and one hint, before anything changes.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use claviger_tests::SoftHsm;
use common::{Outcome, Stage, spy};

fn backend_with_module(stage: &Stage, module: &str) -> String {
    format!("pkcs11:token={}?module-path={module}", stage.token.label())
}

/// Runs the command with its calls to the module written down; answers how many times
/// a PIN was sent.
fn logins(stage: &Stage, words: &[&str]) -> (Outcome, usize) {
    let log = stage.path("spy.log");
    let mut command = stage.claviger(words);
    command
        .env("PKCS11SPY", SoftHsm::module())
        .env("PKCS11SPY_OUTPUT", &log);
    let outcome = Outcome::of(&mut command);
    let calls = fs::read_to_string(&log).unwrap();
    fs::remove_file(log).unwrap();
    assert!(calls.contains("C_Initialize"), "{calls}");
    (outcome, calls.matches(": C_Login\n").count())
}

#[test]
fn a_token_that_is_not_there_is_named_with_those_that_are() {
    let stage = Stage::new();
    let backend = SoftHsm::backend_for("nobody");
    let refused = stage.run_with_pin(&["generate", "a", "--backend", &backend]);
    let refused = refused.fails(1, "no attached token matches");
    assert!(
        refused.err().contains(stage.token.label()),
        "{}",
        refused.err()
    );
}

#[test]
fn of_two_tokens_that_fit_none_is_taken() {
    let stage = Stage::new();
    let other = SoftHsm::new();
    let backend = format!(
        "pkcs11:manufacturer=SoftHSM%20project?module-path={}",
        SoftHsm::module()
    );
    let refused = stage.run_with_pin(&["generate", "a", "--backend", &backend]);
    let refused = refused.fails(1, "tokens");
    for label in [stage.token.label(), other.label()] {
        assert!(
            refused.err().contains(&format!("token={label}")),
            "{}",
            refused.err()
        );
    }
    assert_eq!(stage.private_keys(), 0);
}

#[test]
fn what_is_no_module_is_said_to_be_none() {
    let stage = Stage::new();
    let text = stage.write("text.so", "not a library");
    for path in [
        "/nonexistent.so",
        "/etc/passwd",
        text.to_str().unwrap(),
        "/",
    ] {
        let backend = backend_with_module(&stage, path);
        stage
            .run_with_pin(&["generate", "a", "--backend", &backend])
            .fails(1, "cannot be used as a PKCS#11 module");
        stage
            .run(["tokens", "--backend", &backend])
            .fails(1, "cannot be used as a PKCS#11 module");
    }
}

#[test]
fn backends_that_are_none_are_refused() {
    let stage = Stage::new();
    for backend in [
        "",
        "bench",
        "pkcs11:token",
        "pkcs11:nonsense=x",
        "pkcs11:token=%zz",
    ] {
        stage
            .run_with_pin(&["generate", "a", "--backend", backend])
            .fails(2, "is not a backend");
    }
    stage
        .run_with_pin(&["generate", "a", "--backend", "memory:"])
        .fails(1, "keys end with the process");
    stage
        .run_with_pin(&["generate", "a", "--backend", "remote:bob"])
        .fails(1, "remote:");
    stage
        .run_with_pin(&["generate", "a", "--backend", "floppy:"])
        .fails(2, "no driver");
}

#[test]
fn a_pin_in_the_backend_or_on_the_command_line_is_refused_and_not_repeated() {
    let stage = Stage::new();
    let backend = format!("{}&pin-value=tr0mb0ne", stage.token.backend());
    let refused = stage.run(["generate", "a", "--backend", &backend]);
    let refused = refused.fails(2, "pin-source");
    assert!(!refused.err().contains("tr0mb0ne"), "{}", refused.err());
    let refused = stage.run(["--pin-source", "tr0mb0ne", "tokens"]);
    let refused = refused.fails(2, "--pin-source is");
    assert!(!refused.err().contains("tr0mb0ne"), "{}", refused.err());
}

#[test]
fn a_wrong_pin_is_sent_once() {
    let stage = Stage::new();
    stage.write("wrong", "tr0mb0nes");
    let backend = backend_with_module(&stage, spy().to_str().unwrap());
    let words = [
        "--pin-source",
        "file:wrong",
        "generate",
        "a",
        "--backend",
        &backend,
    ];
    let (refused, sent) = logins(&stage, &words);
    refused.fails(1, "rejected the PIN");
    assert_eq!(sent, 1);
    assert_eq!(stage.private_keys(), 0);
}

#[test]
fn a_refused_pin_is_sent_by_no_process_until_somebody_says_so() {
    let stage = Stage::with_alice();
    stage.write("letter", "x");
    let backend = backend_with_module(&stage, spy().to_str().unwrap());
    let sent = |pin: &str, words: &str| {
        stage.write("wrong", pin);
        let source = ["--pin-source", "file:wrong"];
        let make = ["generate", "a", "--backend", &backend];
        let (refused, sent) = logins(&stage, &[&source[..], &make].concat());
        (refused.fails(1, words).err(), sent)
    };
    assert_eq!(sent("tr0mb0nes", "rejected the PIN").1, 1);
    for _ in 0..3 {
        let (said, count) = sent("tr0mb0nes", "was not sent again");
        assert_eq!(count, 0);
        assert!(said.contains("--forget-refused-pin 'pkcs11:"), "{said}");
    }
    assert_eq!(sent("tr0mb0nez", "rejected the PIN").1, 1);
    let forget = |token: &str| stage.run(["doctor", "--forget-refused-pin", token]);
    let unknown = forget("nobody")
        .fails(1, "no rejected PIN of `nobody`")
        .err();
    assert!(unknown.contains("\n  pkcs11:SoftHSM project/"), "{unknown}");
    let said = forget(&stage.token.backend()).succeeds().out();
    assert!(said.contains("rejected 2 PINs"), "{said}");
    assert_eq!(sent("tr0mb0nes", "rejected the PIN").1, 1);
    // The right one clears what is on record.
    let sign = ["sign", "alice", "letter", "-o", "sig"];
    stage.run_with_pin(&sign).succeeds();
    forget("nobody").fails(1, "none are recorded");
}

#[test]
fn doctor_lists_a_damaged_record_of_a_pin_whose_token_is_not_known_and_forgets_it() {
    let stage = Stage::with_alice();
    let name = "pin-0123456789abcdef0123456789abcdef";
    let record = stage.home().join("pins").join(name);
    fs::write(&record, "damaged").unwrap();
    let forget = format!("claviger doctor --forget-refused-pin {name}");
    let said = stage.run(["doctor"]).out();
    assert!(said.contains(name) && said.contains(&forget), "{said}");
    let forgotten = stage.json(&["doctor", "--forget-refused-pin", name]);
    assert_eq!(forgotten["token"], name);
    let said = stage.run(["doctor"]).out();
    assert!(!said.contains(name), "{said}");
    stage
        .run(["doctor", "--forget-refused-pin", name])
        .fails(1, "no rejected PIN");
}

#[test]
fn a_pin_that_cannot_be_right_is_not_sent() {
    let stage = Stage::new();
    let backend = backend_with_module(&stage, spy().to_str().unwrap());
    for (pin, why) in [
        ("", "it is empty"),
        ("\n", "it is empty"),
        ("1", "length"),
        (&"1".repeat(300), "length"),
    ] {
        stage.write("odd", pin);
        let words = [
            "--pin-source",
            "file:odd",
            "generate",
            "a",
            "--backend",
            &backend,
        ];
        let (refused, sent) = logins(&stage, &words);
        refused.fails(1, why);
        assert_eq!(sent, 0, "{pin:?}");
    }
    stage.write("huge", "1".repeat(5000));
    let words = [
        "--pin-source",
        "file:huge",
        "generate",
        "a",
        "--backend",
        &backend,
    ];
    let (refused, sent) = logins(&stage, &words);
    refused.fails(1, "too long for a PIN");
    assert_eq!(sent, 0);
}

#[test]
fn a_pin_file_that_others_can_read_is_said_once() {
    let stage = Stage::with_alice();
    stage.write("letter", "x");
    let sign = ["sign", "alice", "letter", "-o", "sig"];
    assert_eq!(stage.run_with_pin(&sign).succeeds().err(), "");
    let open = fs::Permissions::from_mode(0o640);
    fs::set_permissions(stage.path("pin"), open).unwrap();
    let said = stage.run_with_pin(&sign).succeeds().err();
    assert_eq!(
        said,
        "warning: other users can read the PIN in `pin`\nhint: chmod 600 pin\n"
    );
}

#[test]
fn without_a_pin_source_and_a_terminal_the_command_says_what_it_needs() {
    let stage = Stage::new();
    let backend = stage.token.backend();
    let refused = stage.run(["generate", "a", "--backend", &backend]);
    let refused = refused.fails(1, "requires a PIN");
    assert!(refused.err().contains("--pin-source"), "{}", refused.err());
}

#[test]
fn a_pin_source_that_gives_nothing_is_named() {
    let stage = Stage::with_alice();
    stage.write("letter", "x");
    for (source, reason) in [
        ("env:CLAVIGER_NO_SUCH", "the variable is not set"),
        ("file:nothing", "No such file"),
        ("file:home", "directory"),
        ("fd:97", "fd:97"),
    ] {
        let refused = stage.run(["--pin-source", source, "sign", "alice", "letter"]);
        let refused = refused.fails(1, reason);
        assert!(refused.err().contains(source), "{}", refused.err());
    }
}

#[test]
fn a_pin_comes_from_the_environment_a_file_or_the_backend() {
    let stage = Stage::new();
    let backend = stage.token.backend();
    let words = [
        "--pin-source",
        "env:MY_PIN",
        "generate",
        "a",
        "--backend",
        &backend,
    ];
    let mut command = stage.claviger(words);
    Outcome::of(command.env("MY_PIN", SoftHsm::PIN)).succeeds();
    let own = format!("{backend}&pin-source=file:{}", stage.path("pin").display());
    stage.run(["generate", "b", "--backend", &own]).succeeds();
    stage.write("letter", "x");
    // The identity remembers where its token's PIN lies.
    stage.run(["sign", "b", "letter", "-o", "sig"]).succeeds();
}

#[cfg(unix)]
#[test]
fn standard_input_gives_a_pin_or_a_message_and_not_both() {
    let stage = Stage::with_alice();
    stage.write("letter", "x");
    stage
        .run(["encrypt", "alice", "letter", "-o", "sealed"])
        .succeeds();
    let with_pin = |words: &[&str]| {
        let mut command = stage.claviger(words);
        // A socket: its path cannot be opened.
        let (mut near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        near.write_all(format!("{}\n", SoftHsm::PIN).as_bytes())
            .unwrap();
        drop(near);
        Outcome::of(command.stdin(std::os::fd::OwnedFd::from(far)))
    };
    let sign = ["--pin-source", "fd:0", "sign", "alice"];
    with_pin(&[&sign[..], &["letter", "-o", "sig"]].concat()).succeeds();
    with_pin(&["--pin-source", "fd:0", "decrypt", "sealed"]).succeeds();
    for more in [&[][..], &["-"], &["/dev/stdin"]] {
        with_pin(&[&sign[..], more].concat()).fails(2, "cannot both come from");
    }
    for words in [
        &["--pin-source", "fd:0", "decrypt", "alice"][..],
        &["--pin-source", "file:/dev/stdin", "decrypt"],
        &["--pin-source", "fd:0", "--management-key", "fd:0", "tokens"],
    ] {
        with_pin(words).fails(2, "cannot both come from");
    }
}

#[test]
fn names_that_cannot_be_are_usage_errors() {
    let stage = Stage::new();
    let backend = stage.token.backend();
    let long = "x".repeat(10_000);
    for (name, words) in [
        ("", "empty"),
        (" a", "white space"),
        ("a\nb", "control characters"),
        ("SHA256:abc", "fingerprint"),
        (&long, "longer"),
    ] {
        for words_ in [
            ["generate", name, "--backend", &backend],
            ["connect", name, "--to", "alice"],
        ] {
            let refused = stage.run_with_pin(&words_).fails(2, words);
            assert!(refused.err().len() < 300, "{}", refused.err());
        }
    }
    let refused = Stage::with_alice().run(["show", &long]);
    let refused = refused.fails(1, "there is no identity");
    assert!(refused.err().len() < 300, "{}", refused.err());
    assert_eq!(stage.private_keys(), 0);
}

#[cfg(unix)]
#[test]
fn a_name_that_is_not_text_is_a_usage_error() {
    use std::os::unix::ffi::OsStrExt;
    let stage = Stage::new();
    let name = OsStr::from_bytes(b"a\xff");
    let backend = stage.token.backend();
    let words = ["generate", "--backend", &backend].map(OsStr::new);
    let words = words.into_iter().chain([name]);
    stage.run(words).fails(2, "UTF-8");
}

#[test]
fn a_name_that_is_taken_stays_as_it_is() {
    let stage = Stage::with_alice();
    let before = stage.json(&["show", "alice"]);
    stage
        .generate("alice", &[])
        .fails(1, "Identity already exists");
    stage
        .run(["connect", "alice", "--to", "alice"])
        .fails(1, "Identity already exists");
    assert_eq!(stage.json(&["show", "alice"]), before);
    assert_eq!(stage.private_keys(), 2);
}

#[test]
fn what_the_token_does_not_offer_is_refused_before_any_key_is_made() {
    let stage = Stage::new();
    let refused = stage.generate("a", &["--params", "bls"]);
    let refused = refused.fails(1, "does not offer bls12-381");
    assert!(
        refused.err().contains("what it offers: p256"),
        "{}",
        refused.err()
    );
    let refused = stage.generate("a", &["--params", "rsa2048"]);
    let refused = refused.fails(1, "does not offer rsa2048 (decrypt)");
    assert!(
        refused.err().contains("--capabilities commit"),
        "{}",
        refused.err()
    );
    stage
        .generate(
            "a",
            &["--params", "p384", "--capabilities", "commit,decrypt"],
        )
        .fails(1, "cannot decrypt");
    stage.generate("a", &["--params", "dsa"]).fails(2, "p384");
    stage
        .generate("a", &["--capabilities", "fly"])
        .fails(2, "capabilities are");
    assert_eq!(stage.private_keys(), 0);
    assert!(stage.names().is_empty());
}

#[test]
fn there_is_nothing_to_do_with_an_identity_that_does_not_exist() {
    let stage = Stage::with_alice();
    stage.write("letter", "x");
    for words in [
        &["show", "bob"][..],
        &["sign", "bob", "letter"],
        &["encrypt", "bob", "letter", "-o", "out"],
        &["decrypt", "bob", "letter", "-o", "out"],
        &["delete", "bob"],
        &["connect", "carol", "--to", "bob"],
    ] {
        stage.run(words).fails(1, "there is no identity `bob`");
    }
    let words = ["verify", "bob", "--signature", "letter", "letter"];
    stage.run(words).fails(3, "there is no identity `bob`");
    let unknown = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let backend = stage.token.backend();
    stage
        .run_with_pin(&["connect", "carol", "--to", unknown, "--backend", &backend])
        .fails(1, "External identity not found");
    stage
        .run_with_pin(&[
            "connect",
            "carol",
            "--to",
            "SHA256:x",
            "--backend",
            &backend,
        ])
        .fails(2, "a fingerprint is");
    assert_eq!(stage.files(), ["letter"]);
}

#[test]
fn capabilities_only_shrink() {
    let stage = Stage::new();
    stage
        .generate("alice", &["--capabilities", "commit"])
        .succeeds();
    stage
        .run([
            "connect",
            "bob",
            "--to",
            "alice",
            "--capabilities",
            "decrypt",
        ])
        .fails(1, "Capabilities not available");
    assert_eq!(stage.names(), ["alice"]);
}

#[test]
fn a_ciphertext_that_does_not_open_says_two_words_and_leaves_no_file() {
    let stage = Stage::with_alice();
    stage.generate("eve", &[]).succeeds();
    // Three chunks of payload.
    let plaintext = vec![0x5a; 150_000];
    let sealed = stage.feed(&["encrypt", "alice"], &plaintext).succeeds();
    let sealed = sealed.bytes();
    let header = sealed.windows(4).position(|w| w == b"\n---").unwrap();

    let mut bad: Vec<(String, Vec<u8>)> = vec![
        ("empty".into(), Vec::new()),
        ("no ciphertext".into(), b"Meet me\n".to_vec()),
        ("zeroes".into(), vec![0; 100_000]),
        ("something behind it".into(), [sealed, b"x"].concat()),
    ];
    for length in [
        1,
        21,
        header,
        header + 60,
        70_000,
        131_500,
        sealed.len() - 1,
    ] {
        bad.push((format!("cut at {length}"), sealed[..length].to_vec()));
    }
    for at in [
        0,
        22,
        40,
        header - 5,
        header + 10,
        header + 60,
        70_000,
        sealed.len() - 1,
    ] {
        let mut altered = sealed.to_vec();
        altered[at] ^= 1;
        bad.push((format!("altered at {at}"), altered));
    }
    for (what, ciphertext) in &bad {
        let refused = stage.feed(&["decrypt", "alice", "-o", "out"], ciphertext);
        assert_eq!(refused.err(), "error: Decryption Failed\n", "{what}");
        assert_eq!(refused.code(), Some(1), "{what}");
        assert!(stage.files().is_empty(), "{what}: {:?}", stage.files());
    }
    let refused = stage.feed(&["decrypt", "eve", "-o", "out"], sealed);
    assert_eq!(refused.err(), "error: Decryption Failed\n");
    assert!(stage.files().is_empty());

    // On standard output comes what is authentic, and no more, and a failure.
    let cut = stage.feed(&["decrypt", "alice"], &sealed[..140_000]);
    assert_eq!(
        (cut.code(), &*cut.err()),
        (Some(1), "error: Decryption Failed\n")
    );
    assert!(plaintext.starts_with(cut.bytes()));
    // What was there before is still there.
    stage.write("out", "old");
    stage.feed(&["decrypt", "alice", "-o", "out"], &sealed[..100]);
    assert_eq!(stage.read("out"), b"old");
}

#[test]
fn files_that_cannot_be_read_or_written_are_named_before_the_token_is_asked() {
    let stage = Stage::with_alice();
    stage.write("letter", "x");
    // No PIN: whoever gets as far as the token is told that it needs one.
    for words in [
        &["sign", "alice", "nothing"][..],
        &["encrypt", "alice", "nothing"],
        &["decrypt", "alice", "nothing"],
    ] {
        stage.run(words).fails(1, "`nothing` cannot be read");
    }
    let words = ["verify", "alice", "--signature", "nothing", "letter"];
    stage.run(words).fails(3, "`nothing` cannot be read");
    for words in [
        &["sign", "alice", "letter", "-o", "no/such/file"][..],
        &["encrypt", "alice", "letter", "-o", "no/such/file"],
        &["decrypt", "alice", "letter", "-o", "no/such/file"],
    ] {
        stage
            .run(words)
            .fails(1, "`no/such/file` cannot be written");
    }
    stage.run(["sign", "alice", "home"]).fails(1, "is a folder");
    stage
        .run(["encrypt", "alice", "letter", "-o", "config"])
        .fails(1, "`config` cannot be written");
    stage
        .run(["encrypt", "alice", "letter", "-o", "home"])
        .fails(1, "`home` is in the home folder");
    stage
        .run(["encrypt", "alice", "letter", "-o", "/dev/full"])
        .fails(1, "`/dev/full` cannot be written");
    assert_eq!(stage.files(), ["letter"]);
}

#[test]
fn a_home_that_is_none_is_refused() {
    let stage = Stage::new();
    stage.write("file", "x");
    for words in [
        &["--home", "file", "identities"][..],
        &["--home", "file/inner", "identities"],
    ] {
        let refused = stage.run(words).fails(1, "is not a folder");
        assert!(refused.err().contains("--home"), "{}", refused.err());
    }
    assert_eq!(stage.read("file"), b"x");
    let doctor = stage.run(["--home", "file", "doctor"]);
    assert_eq!(doctor.code(), Some(1));
    assert!(doctor.out().contains("is not a folder"), "{}", doctor.out());
    // Tokens can be looked at all the same.
    stage
        .run([
            "--home",
            "file",
            "tokens",
            "--backend",
            &stage.token.backend(),
        ])
        .succeeds();
}

#[test]
fn a_registry_of_a_newer_program_is_left_alone() {
    let stage = Stage::with_alice();
    let path = stage.home().join("registry.sqlite");
    let mut file = fs::read(&path).unwrap();
    // PRAGMA user_version (SQLite's file format, §1.3).
    file[60..64].copy_from_slice(&99_u32.to_be_bytes());
    fs::write(&path, &file).unwrap();
    for words in [
        &["identities"][..],
        &["show", "alice"],
        &["delete", "alice"],
    ] {
        stage.run(words).fails(1, "version 99");
    }
    assert!(stage.run(["doctor"]).out().contains("version 99"));
    assert_eq!(fs::read(&path).unwrap(), file);
    assert_eq!(stage.private_keys(), 2);
}

#[test]
fn a_file_that_is_no_registry_is_left_alone() {
    let stage = Stage::new();
    fs::create_dir(stage.home()).unwrap();
    let path = stage.home().join("registry.sqlite");
    fs::write(&path, "my diary, which is longer than a page ".repeat(200)).unwrap();
    let before = fs::read(&path).unwrap();
    stage.run(["identities"]).fails(1, "is not a registry");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_command_line_that_makes_no_sense_is_a_usage_error() {
    let stage = Stage::new();
    for words in [
        &["fly"][..],
        &["generate"],
        &["generate", "a"],
        &["show"],
        &["verify", "alice"],
        &["sign", "alice", "--format", "pgp"],
        &["--timeout", "0", "tokens"],
    ] {
        assert_eq!(stage.run(words).code(), Some(2), "{words:?}");
    }
    assert_eq!(stage.run(["--help"]).code(), Some(0));
    assert_eq!(stage.run(["--version"]).code(), Some(0));
}

#[test]
fn no_log_level_shows_a_pin() {
    let stage = Stage::new();
    let backend = stage.token.backend();
    let words = [
        "--pin-source",
        "file:pin",
        "generate",
        "a",
        "--backend",
        &backend,
    ];
    let mut command = stage.claviger(words);
    let outcome = Outcome::of(command.env("CLAVIGER_LOG", "trace")).succeeds();
    assert!(!outcome.err().contains(SoftHsm::PIN));
    assert!(!outcome.out().contains(SoftHsm::PIN));
}
