//! `verify`: what OpenSSH signs is checked, and what cannot be judged is no forgery.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::fs;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use common::{Outcome, Stage, program};
use serde_json::Value;

/// Valid: exit status 0.
const VALID: i32 = 0;
/// Not valid.
const NOT_VALID: i32 = 1;
/// It cannot be said.
const UNJUDGED: i32 = 3;

/// Runs `verify`, and sees that standard output has a word only where there is a verdict of
/// valid.
#[track_caller]
fn verify(stage: &Stage, words: &[&str]) -> Outcome {
    let outcome = stage.run([&["verify"], words].concat());
    let is_said = outcome.out().contains("valid");
    assert_eq!(is_said, outcome.code() == Some(VALID), "{}", outcome.out());
    if outcome.code() != Some(VALID) {
        assert_eq!(outcome.out(), "");
        let json = stage.run([&["--json", "verify"], words].concat());
        assert_eq!((json.code(), json.out()), (outcome.code(), String::new()));
        let error: Value = serde_json::from_str(&json.err()).unwrap();
        assert!(error["error"]["code"].is_string(), "{error}");
    }
    outcome
}

#[track_caller]
fn judges(stage: &Stage, words: &[&str], code: i32) -> Outcome {
    let outcome = verify(stage, words);
    assert_eq!(outcome.code(), Some(code), "{}", outcome.err());
    outcome
}

fn ssh_keygen(stage: &Stage, words: &[&str]) -> Outcome {
    program("ssh-keygen", words, stage.folder(), None)
}

/// A key of OpenSSH, and `me` for a contact that has it.
fn with_key(stage: &Stage, name: &str, kind: &[&str]) {
    let words = [&["-q", "-N", "", "-f", name], kind].concat();
    ssh_keygen(stage, &words).succeeds();
    let public = format!("{name}.pub");
    stage.run(["contact", "add", name, &public]).succeeds();
}

fn sign(stage: &Stage, name: &str, more: &[&str]) {
    let _ = fs::remove_file(stage.path("letter.sig"));
    let words = [
        &["-q", "-Y", "sign", "-f", name, "-n", "file"],
        more,
        &["letter"],
    ]
    .concat();
    ssh_keygen(stage, &words).succeeds();
}

#[test]
fn every_signature_that_openssh_makes_for_a_key_that_can_be_held_is_valid() {
    let stage = Stage::new();
    stage.write("letter", "Meet me\n");
    stage.write("other", "Do not\n");
    for (name, kind) in [
        ("ed25519", &["-t", "ed25519"][..]),
        ("p256", &["-t", "ecdsa", "-b", "256"]),
        ("p384", &["-t", "ecdsa", "-b", "384"]),
        ("rsa2048", &["-t", "rsa", "-b", "2048"]),
        ("rsa3072", &["-t", "rsa", "-b", "3072"]),
    ] {
        with_key(&stage, name, kind);
        for hash in [
            &[][..],
            &["-O", "hashalg=sha256"],
            &["-O", "hashalg=sha512"],
        ] {
            sign(&stage, name, hash);
            let words = [name, "--signature", "letter.sig", "letter"];
            let valid = judges(&stage, &words, VALID);
            let said = match name.starts_with("rsa") {
                true => "valid (rsa-pkcs1-sha512)\n",
                false => "valid\n",
            };
            assert_eq!(valid.out(), said);
            let other = [name, "--signature", "letter.sig", "other"];
            judges(&stage, &other, NOT_VALID);
        }
    }
}

#[test]
fn armor_that_ssh_keygen_takes_is_taken() {
    let stage = Stage::new();
    stage.write("letter", "Meet me\n");
    with_key(&stage, "me", &["-t", "ed25519"]);
    sign(&stage, "me", &[]);
    let armored = String::from_utf8(stage.read("letter.sig")).unwrap();
    let lines: Vec<&str> = armored.lines().collect();
    let body = lines[1..lines.len() - 1].concat();
    let (first, last) = (lines[0], lines[lines.len() - 1]);
    let folded = |width: usize, end: &str| {
        let parts = (0..body.len()).step_by(width);
        let parts: Vec<_> = parts.map(|i| &body[i..body.len().min(i + width)]).collect();
        format!("{first}{end}{}{end}{last}{end}", parts.join(end))
    };
    let line = String::from_utf8(stage.read("me.pub")).unwrap();
    stage.write("allowed", format!("me {line}"));
    for text in [
        folded(64, "\n"),
        folded(76, "\n"),
        folded(1000, "\n"),
        folded(70, "\n\n"),
        format!("{armored}\n"),
        format!("{armored}behind it"),
    ] {
        stage.write("wide.sig", &text);
        let words = [
            "-Y", "verify", "-f", "allowed", "-I", "me", "-n", "file", "-s", "wide.sig",
        ];
        let letter = stage.path("letter");
        program("ssh-keygen", &words, stage.folder(), Some(&letter)).succeeds();
        judges(&stage, &["me", "--signature", "wide.sig", "letter"], VALID);
        let allowed = [
            "me",
            "--allowed-signers",
            "allowed",
            "--signature",
            "wide.sig",
            "letter",
        ];
        judges(&stage, &allowed, VALID);
    }
    // As Windows writes it.
    stage.write("crlf.sig", folded(70, "\r\n"));
    judges(&stage, &["me", "--signature", "crlf.sig", "letter"], VALID);
}

#[test]
fn what_cannot_be_judged_is_not_called_a_forgery() {
    let stage = Stage::with_alice();
    stage.write("letter", "Meet me\n");
    for format in ["raw", "der"] {
        let words = ["sign", "alice", "letter", "--format", format, "-o", "sig"];
        stage.run_with_pin(&words).succeeds();
        let signature = stage.read("sig");
        judges(&stage, &["alice", "--signature", "sig", "letter"], VALID);
        judges(&stage, &["alice", "--signature", "sig", "pin"], NOT_VALID);
        let base64 = BASE64_STANDARD.encode(&signature);
        let hex: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
        for (text, says) in [
            (base64, "base64 -d"),
            (hex, "xxd -r -p"),
            (String::new(), "raw"),
        ] {
            stage.write("text.sig", format!("{text}\n"));
            let words = ["alice", "--signature", "text.sig", "letter"];
            let unjudged = judges(&stage, &words, UNJUDGED);
            assert!(unjudged.err().contains(says), "{}", unjudged.err());
        }
        stage.write("cut.sig", &signature[..signature.len() - 1]);
        judges(
            &stage,
            &["alice", "--signature", "cut.sig", "letter"],
            UNJUDGED,
        );
    }
    for words in [
        ["alice", "--signature", "nowhere", "letter"],
        ["alice", "--signature", "sig", "nowhere"],
        ["alice", "--signature", ".", "letter"],
        ["alice", "--signature", "sig", "."],
        ["nobody", "--signature", "sig", "letter"],
    ] {
        judges(&stage, &words, UNJUDGED);
    }
    stage.write("long.sig", vec![b'A'; 1 << 20]);
    judges(
        &stage,
        &["alice", "--signature", "long.sig", "letter"],
        UNJUDGED,
    );
    let home = stage.path("home").join("registry.sqlite");
    fs::write(home, "no registry").unwrap();
    judges(&stage, &["alice", "--signature", "sig", "letter"], UNJUDGED);
}

#[test]
fn an_ssh_signature_says_what_it_is_for_and_whose_it_is() {
    let stage = Stage::new();
    stage.write("letter", "Meet me\n");
    for name in ["me", "you"] {
        with_key(&stage, name, &["-t", "ed25519"]);
    }
    sign(&stage, "me", &[]);
    let words = ["you", "--signature", "letter.sig", "letter"];
    let another = judges(&stage, &words, NOT_VALID);
    assert!(another.err().contains("another key"), "{}", another.err());
    let words = [
        "me",
        "--signature",
        "letter.sig",
        "letter",
        "--namespace",
        "git",
    ];
    let other = judges(&stage, &words, UNJUDGED);
    assert!(other.err().contains("--namespace file"), "{}", other.err());
    let armored = String::from_utf8(stage.read("letter.sig")).unwrap();
    stage.write("cut.sig", &armored[..armored.len() / 2]);
    judges(
        &stage,
        &["me", "--signature", "cut.sig", "letter"],
        UNJUDGED,
    );
}

#[test]
fn an_ssh_signature_that_cannot_be_judged_says_what_to_ask_for() {
    let stage = Stage::new();
    stage.write("letter", "Meet me\n");
    with_key(&stage, "me", &["-t", "ed25519"]);
    sign(&stage, "me", &[]);
    let armored = String::from_utf8(stage.read("letter.sig")).unwrap();
    let body: String = armored.lines().filter(|l| !l.starts_with("---")).collect();
    let signature = BASE64_STANDARD.decode(body).unwrap();
    let at = signature.windows(6).position(|w| w == b"sha512").unwrap();
    let altered = |at: usize, to: &[u8]| {
        let mut altered = signature.clone();
        altered[at..at + to.len()].copy_from_slice(to);
        let body = BASE64_STANDARD.encode(altered);
        let armored =
            format!("-----BEGIN SSH SIGNATURE-----\n{body}\n-----END SSH SIGNATURE-----\n");
        stage.write("altered.sig", armored);
        let words = ["me", "--signature", "altered.sig", "letter"];
        judges(&stage, &words, UNJUDGED).err()
    };
    // The version is the four bytes after the magic ones.
    let newer = altered(6, &2_u32.to_be_bytes());
    assert!(newer.contains("a signature of version 1"), "{newer}");
    let other_hash = altered(at, b"sha384");
    assert!(other_hash.contains("hashalg=sha512"), "{other_hash}");
}

#[test]
fn allowed_signers_are_those_of_ssh_keygen() {
    let stage = Stage::new();
    stage.write("letter", "Meet me\n");
    for name in ["me", "you"] {
        with_key(&stage, name, &["-t", "ed25519"]);
    }
    let key = |name: &str| {
        let line = String::from_utf8(stage.read(&format!("{name}.pub"))).unwrap();
        line.trim().to_owned()
    };
    sign(&stage, "me", &[]);
    let (mine, yours) = (key("me"), key("you"));
    for (list, code) in [
        (format!("me@x.org {mine}\n"), VALID),
        (
            format!("# who\n\nyou@x.org {yours}\n*@x.org,!you@x.org {mine}"),
            VALID,
        ),
        (format!("me@x.org namespaces=\"git,file\" {mine}"), VALID),
        (
            format!("me@x.org valid-after=\"20200101\",valid-before=\"29990101Z\" {mine}"),
            VALID,
        ),
        (format!("me@x.org {yours}\n"), NOT_VALID),
        (format!("you@x.org {mine}\n"), UNJUDGED),
        (format!("me@x.org namespaces=\"git\" {mine}"), UNJUDGED),
        (
            format!("me@x.org valid-before=\"20200101\" {mine}"),
            UNJUDGED,
        ),
        (
            format!("me@x.org valid-after=\"29990101120000Z\" {mine}"),
            UNJUDGED,
        ),
        ("me@x.org".into(), UNJUDGED),
        (String::new(), UNJUDGED),
    ] {
        stage.write("allowed", &list);
        let words = [
            "me@x.org",
            "--allowed-signers",
            "allowed",
            "--signature",
            "letter.sig",
        ];
        let outcome = verify(&stage, &[&words[..], &["letter"]].concat());
        assert_eq!(outcome.code(), Some(code), "{list}: {}", outcome.err());
        // ssh-keygen knows two verdicts.
        let words = [
            "-Y", "verify", "-f", "allowed", "-I", "me@x.org", "-n", "file",
        ];
        let words = [&words[..], &["-s", "letter.sig"]].concat();
        let letter = stage.path("letter");
        let other = program("ssh-keygen", &words, stage.folder(), Some(&letter));
        assert_eq!(
            other.code() == Some(0),
            code == VALID,
            "{list}: {}",
            other.err()
        );
    }
    stage.write("raw", [7; 64]);
    let words = [
        "me@x.org",
        "--allowed-signers",
        "allowed",
        "--signature",
        "raw",
        "letter",
    ];
    judges(&stage, &words, UNJUDGED);
}

/// The most memory that a command took, in KiB, as the kernel counted it.
#[cfg(target_os = "linux")]
fn peak_memory(stage: &Stage, words: &[&str]) -> u64 {
    let claviger = stage.claviger([&["--pin-source", "file:pin"], words].concat());
    let script = "import resource,subprocess,sys;\
                  r=subprocess.run(sys.argv[1:],stdout=subprocess.DEVNULL).returncode;\
                  print(r,resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)";
    let mut command = std::process::Command::new("python3");
    command.args(["-c", script]).arg(claviger.get_program());
    command
        .args(claviger.get_args())
        .current_dir(stage.folder());
    for (name, value) in claviger.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    let said = Outcome::of(&mut command).succeeds().out();
    let (code, peak) = said.trim().split_once(' ').unwrap();
    assert_eq!(code, "0");
    peak.parse().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn a_long_message_takes_no_more_memory_than_a_short_one() {
    let stage = Stage::with_alice();
    stage.write("short", "x");
    let long = fs::File::create(stage.path("long")).unwrap();
    long.set_len(300 << 20).unwrap();
    let mut peaks = Vec::new();
    for message in ["short", "long"] {
        let mut of_message = Vec::new();
        for format in ["sshsig", "raw", "der"] {
            let sign = ["sign", "alice", message, "--format", format, "-o", "sig"];
            of_message.push(peak_memory(&stage, &sign));
            let verify = ["verify", "alice", "--signature", "sig", message];
            of_message.push(peak_memory(&stage, &verify));
        }
        peaks.push(of_message);
    }
    for (short, long) in peaks[0].iter().zip(&peaks[1]) {
        assert!(*long < short + (8 << 10), "{peaks:?} KiB");
    }
    // What signs the message itself says so, where that is much.
    stage.generate("ed", &["--params", "ed25519"]).succeeds();
    let words = ["sign", "ed", "long", "--format", "raw", "-o", "sig"];
    let signed = stage.run_with_pin(&words).succeeds();
    assert!(
        signed.err().contains("into memory: 300 MiB"),
        "{}",
        signed.err()
    );
    judges(&stage, &["ed", "--signature", "sig", "long"], VALID);
    let words = ["sign", "ed", "long", "--format", "sshsig", "-o", "sig"];
    assert_eq!(stage.run_with_pin(&words).succeeds().err(), "");
}
