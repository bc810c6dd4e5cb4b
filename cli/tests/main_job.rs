//! The main job, with the real command on a real (soft) token, judged by other programs.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::fs;
use std::io::Write;
use std::process::Stdio;

use common::{Stage, program};
use serde_json::Value;

const LETTER: &[u8] = b"Meet me where the keys are kept.\n";

fn key_of(identity: &Value, usage: &str) -> Value {
    let keys = identity["keys"].as_array().unwrap();
    keys.iter().find(|key| key["use"] == usage).unwrap().clone()
}

/// The part of the README that everybody types first.
#[test]
fn the_readmes_screen_of_use_works_as_written() {
    let readme = include_str!("../../README.md");
    let (_, section) = readme.split_once("\n## Use\n").expect("a section on use");
    let mut blocks = section.split("```sh\n").skip(1);
    let script = blocks.find(|block| block.starts_with("claviger")).unwrap();
    let script = script.split("```").next().unwrap();
    // The token by the name that it has here.
    assert_eq!(
        script.matches("'pkcs11:token=bench'").count(),
        1,
        "{script}"
    );

    let stage = Stage::new();
    stage.write("letter.txt", LETTER);
    let label = format!("'{}'", stage.token.backend());
    let script = script.replace("'pkcs11:token=bench'", &label);
    let output = stage.script(&script, "--pin-source file:pin").output();
    let output = output.unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.contains("valid\n"), "{out}");
    assert!(out.contains(&*String::from_utf8_lossy(LETTER)), "{out}");
    assert_eq!(stage.private_keys(), 0);
}

#[test]
fn an_identity_lives_from_generation_to_deletion() {
    let stage = Stage::new();
    let made = stage.generate("alice", &[]).succeeds();
    assert!(made.out().contains("generated alice"), "{}", made.out());
    assert_eq!(stage.private_keys(), 2);
    stage.write("letter", LETTER);

    stage
        .run_with_pin(&["sign", "alice", "letter", "--format", "der", "-o", "sig"])
        .succeeds();
    let shown = stage.json(&["show", "alice"]);
    let pem = key_of(&shown, "sign")["public_key"]
        .as_str()
        .unwrap()
        .to_owned();
    stage.write("alice.pem", pem);
    let words = [
        "dgst",
        "-sha256",
        "-verify",
        "alice.pem",
        "-signature",
        "sig",
        "letter",
    ];
    let folder = stage.path("");
    program("openssl", &words, &folder, None).succeeds();

    stage
        .run(["encrypt", "alice", "letter", "-o", "letter.age"])
        .succeeds();
    let opened = stage
        .run_with_pin(&["decrypt", "alice", "letter.age"])
        .succeeds();
    assert_eq!(opened.bytes(), LETTER);

    stage
        .run_with_pin(&[
            "connect",
            "bob",
            "--to",
            "alice",
            "--capabilities",
            "decrypt",
        ])
        .succeeds();
    let opened = stage
        .run_with_pin(&["decrypt", "bob", "letter.age"])
        .succeeds();
    assert_eq!(opened.bytes(), LETTER);
    stage
        .run_with_pin(&["sign", "bob", "letter"])
        .fails(1, "cannot sign");

    let released = stage.run(["--json", "delete", "bob"]).succeeds().json();
    assert_eq!(released["keys"][0]["outcome"], "released");
    assert_eq!(stage.private_keys(), 2);
    let words = ["--json", "--pin-source", "file:pin", "delete", "alice"];
    let deleted = stage.run(words).succeeds().json();
    assert_eq!(deleted["keys"][0]["outcome"], "destroyed");
    assert_eq!(deleted["keys"][1]["outcome"], "destroyed");
    assert!(!stage.objects().contains("Object"), "{}", stage.objects());
    assert!(stage.names().is_empty());
}

#[test]
fn every_cryptosystem_signs_in_every_form_that_it_has() {
    let stage = Stage::new();
    stage.write("letter", LETTER);
    let all = [
        ("p256", "-sha256", true),
        ("p384", "-sha384", true),
        ("ed25519", "", true),
        ("secp256k1", "-sha256", false),
        ("rsa2048", "-sha256", true),
        ("rsa3072", "-sha256", true),
    ];
    for (params, digest, has_ssh) in all {
        let words = ["--params", params, "--capabilities", "commit"];
        stage.generate(params, &words).succeeds();
        for format in ["raw", "der", "sshsig"] {
            let words = ["sign", params, "letter", "--format", format, "-o", "sig"];
            let signed = stage.run_with_pin(&words);
            if format == "sshsig" && !has_ssh {
                signed.fails(1, "SSH knows no signatures");
                continue;
            }
            signed.succeeds();
            let words = ["--json", "verify", params, "--signature", "sig", "letter"];
            let verdict = stage.run(words).succeeds().json();
            assert_eq!(verdict["valid"], true, "{params} {format}");
            let out = stage.run(["verify", params, "--signature", "sig", "pin"]);
            out.fails(1, "not valid");
            judge(&stage, params, digest, format);
        }
        stage.run_with_pin(&["delete", params]).succeeds();
    }
    assert_eq!(stage.private_keys(), 0);
}

/// Lets `openssl` and `ssh-keygen` look at the signature in `sig`.
fn judge(stage: &Stage, name: &str, digest: &str, format: &str) {
    let folder = stage.path("");
    let key = key_of(&stage.json(&["show", name]), "sign");
    stage.write("key.pem", key["public_key"].as_str().unwrap());
    match (format, digest) {
        ("sshsig", _) => {
            let line = format!("{name} {}\n", key["ssh"].as_str().unwrap());
            stage.write("allowed", line);
            let words = [
                "-Y", "verify", "-f", "allowed", "-I", name, "-n", "file", "-s", "sig",
            ];
            program("ssh-keygen", &words, &folder, Some(&stage.path("letter"))).succeeds();
        }
        ("der", "") => {
            let words = [
                "pkeyutl", "-verify", "-pubin", "-inkey", "key.pem", "-rawin", "-in", "letter",
                "-sigfile", "sig",
            ];
            program("openssl", &words, &folder, None).succeeds();
        }
        ("der", digest) => {
            let words = [
                "dgst",
                digest,
                "-verify",
                "key.pem",
                "-signature",
                "sig",
                "letter",
            ];
            program("openssl", &words, &folder, None).succeeds();
        }
        _ => {}
    }
}

#[test]
fn every_cryptosystem_that_decrypts_on_this_token_does() {
    let stage = Stage::new();
    for params in ["p256", "ed25519", "secp256k1"] {
        stage.generate(params, &["--params", params]).succeeds();
        let sealed = stage.feed(&["encrypt", params], LETTER).succeeds();
        let opened = stage
            .feed(&["decrypt", params, "-"], sealed.bytes())
            .succeeds();
        assert_eq!(opened.bytes(), LETTER, "{params}");
        let nothing = stage.feed(&["encrypt", params], b"").succeeds();
        let opened = stage.feed(&["decrypt", params], nothing.bytes()).succeeds();
        assert_eq!(opened.bytes(), b"", "{params}");
    }
    stage.generate("p384", &["--params", "p384"]).succeeds();
    stage.write("letter", LETTER);
    stage
        .run(["encrypt", "p384", "letter", "-o", "letter.age"])
        .fails(1, "no key that decrypts");
}

#[test]
fn standard_input_is_signed_and_verified_too() {
    let stage = Stage::with_alice();
    let signature = stage.feed(&["sign", "alice", "-o", "-"], LETTER).succeeds();
    assert_eq!(signature.bytes().len(), 64);
    stage.write("sig", signature.bytes());
    stage
        .feed(&["verify", "alice", "--signature", "sig", "-"], LETTER)
        .succeeds();
    stage
        .run(["verify", "alice", "--signature", "-"])
        .fails(2, "cannot both");
    // In another namespace an SSH signature is another signature.
    let words = [
        "sign",
        "alice",
        "--format",
        "sshsig",
        "--namespace",
        "git",
        "-o",
        "sig",
    ];
    stage.feed(&words, LETTER).succeeds();
    let verify = ["verify", "alice", "--signature", "sig"];
    let unjudged = stage.feed(&verify, LETTER);
    unjudged.fails(3, "is for the namespace `git`");
    let verify = [
        "verify",
        "alice",
        "--signature",
        "sig",
        "--namespace",
        "git",
    ];
    stage.feed(&verify, LETTER).succeeds();
}

/// Feeds `bytes` to the command and says how much memory it had taken by then, in KiB.
fn memory_while_reading(stage: &Stage, words: &[&str], bytes: &[u8]) -> u64 {
    let mut command = stage.claviger([&["--pin-source", "file:pin"], words].concat());
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(bytes).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success());
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.unwrap().trim().strip_suffix(" kB").unwrap();
    number.parse().unwrap()
}

#[test]
fn a_file_larger_than_the_memory_that_is_used_goes_through() {
    let stage = Stage::with_alice();
    // 96 MiB and a bit, so that no chunk ends where the file does.
    let plaintext: Vec<u8> = (0..(96 << 20) + 7).map(|i: u32| (i >> 3) as u8).collect();
    let words = ["encrypt", "alice", "-o", "big.age"];
    let used = memory_while_reading(&stage, &words, &plaintext);
    assert!(used < 32 << 10, "encrypt took {used} KiB");
    let words = ["decrypt", "alice", "-o", "big"];
    let used = memory_while_reading(&stage, &words, &stage.read("big.age"));
    assert!(used < 48 << 10, "decrypt took {used} KiB");
    assert!(stage.read("big") == plaintext);
}

#[cfg(unix)]
#[test]
fn a_plaintext_in_a_file_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let stage = Stage::with_alice();
    stage.write("letter", LETTER);
    stage
        .run(["encrypt", "alice", "letter", "-o", "letter.age"])
        .succeeds();
    stage
        .run_with_pin(&["decrypt", "alice", "letter.age", "-o", "copy"])
        .succeeds();
    let mode = fs::metadata(stage.path("copy"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let mode = fs::metadata(stage.home()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_key_that_somebody_else_made_is_adopted_and_released_untouched() {
    let stage = Stage::new();
    stage.write("letter", LETTER);
    let words = [
        "--keypairgen",
        "--key-type",
        "EC:prime256v1",
        "--label",
        "old",
        "--id",
        "0a",
    ];
    stage.pkcs11_tool(&[&words[..], &["--usage-sign"]].concat());
    let before = stage.objects();
    let tokens = stage.json(&["tokens", "--backend", &stage.token.backend()]);
    let slot = &tokens[0]["slots"][0];
    assert_eq!(slot["slot"], "0a");
    let fingerprint = slot["fingerprint"].as_str().unwrap();

    let backend = stage.token.backend();
    let words = ["connect", "old", "--to", fingerprint, "--backend", &backend];
    stage.run_with_pin(&words).succeeds();
    let shown = stage.json(&["show", "old"]);
    assert_eq!(shown["keys"][0]["origin"], "adopted");
    assert_eq!(shown["capabilities"], serde_json::json!(["commit"]));
    stage
        .run_with_pin(&[
            "connect",
            "again",
            "--to",
            fingerprint,
            "--backend",
            &backend,
        ])
        .fails(1, "belongs to the identity `old`");
    let words = ["sign", "old", "letter", "--format", "der", "-o", "sig"];
    stage.run_with_pin(&words).succeeds();
    judge(&stage, "old", "-sha256", "der");

    let words = ["--json", "--pin-source", "file:pin", "delete", "old"];
    let deleted = stage.run(words).succeeds().json();
    assert_eq!(deleted["keys"][0]["outcome"], "released");
    assert_eq!(stage.objects(), before);
    assert!(stage.names().is_empty());
}

#[test]
fn what_is_connected_to_a_deleted_identity_says_so() {
    let stage = Stage::with_alice();
    stage.write("letter", LETTER);
    stage.run(["connect", "bob", "--to", "alice"]).succeeds();
    stage.run_with_pin(&["delete", "alice"]).succeeds();
    let shown = stage.run(["show", "bob"]).succeeds();
    assert!(
        shown.out().contains("can no longer be used: `alice`"),
        "{}",
        shown.out()
    );
    assert_eq!(stage.json(&["show", "bob"])["keys"][0]["deleted"], true);
    stage
        .run_with_pin(&["sign", "bob", "letter"])
        .fails(1, "`alice` was deleted");
    stage
        .run(["encrypt", "bob", "letter", "-o", "x"])
        .fails(1, "was deleted with `alice`");
    let doctor = stage.run(["--json", "doctor"]);
    assert_eq!(doctor.code(), Some(1));
    assert_eq!(doctor.json()["ok"], false);
    stage.run(["delete", "bob"]).succeeds();
    assert_eq!(stage.run(["doctor"]).code(), Some(0));
}

#[test]
fn doctor_finds_a_key_beside_which_another_program_has_put_its_own() {
    let stage = Stage::with_alice();
    let keys = stage.json(&["show", "alice"])["keys"].clone();
    for key in keys.as_array().unwrap() {
        let pair = ["--keypairgen", "--key-type", "EC:prime256v1", "--id"];
        stage.pkcs11_tool(&[&pair[..], &[key["slot"].as_str().unwrap()]].concat());
    }
    let doctor = stage.run(["doctor"]);
    assert_eq!(doctor.code(), Some(0), "{}", doctor.out());
}

#[test]
fn the_json_has_the_fields_that_scripts_rely_on() {
    let stage = Stage::with_alice();
    let backend = stage.token.backend();
    let tokens = stage.json(&["tokens", "--backend", &backend]);
    let token = &tokens[0];
    for field in [
        "kind",
        "manufacturer",
        "model",
        "serial",
        "label",
        "backend",
    ] {
        assert!(token[field].is_string(), "{field} in {token}");
    }
    assert_eq!(token["kind"], "pkcs11");
    assert_eq!(token["label"], stage.token.label());
    assert_eq!(token["slots"].as_array().unwrap().len(), 2);
    for slot in token["slots"].as_array().unwrap() {
        assert_eq!(slot["state"], "occupied");
        assert_eq!(slot["algorithm"], "p256");
        assert!(slot["slot"].is_string());
        assert!(slot["fingerprint"].as_str().unwrap().starts_with("SHA256:"));
    }
    // What a token is listed with names just this token.
    let again = stage.json(&["tokens", "--backend", token["backend"].as_str().unwrap()]);
    assert_eq!(again, tokens);

    let identities = stage.json(&["identities"]);
    let alice = &identities[0];
    assert_eq!(alice["name"], "alice");
    assert_eq!(alice["backend"], token["backend"]);
    assert_eq!(
        alice["capabilities"],
        serde_json::json!(["commit", "decrypt"])
    );
    assert_eq!(alice["commitment_engine"], "alice_committer_alice");
    assert_eq!(alice["decryption_engine"], "alice_decryptor_alice");
    for usage in ["sign", "decrypt"] {
        let key = key_of(alice, usage);
        assert_eq!(key["algorithm"], "p256");
        assert_eq!(key["origin"], "generated");
        assert!(key["token"].as_str().unwrap().starts_with("pkcs11:"));
        let pem = key["public_key"].as_str().unwrap();
        assert!(pem.starts_with("-----BEGIN PUBLIC KEY-----\n"), "{pem}");
        let slots = token["slots"].as_array().unwrap();
        let slot = slots
            .iter()
            .find(|slot| slot["slot"] == key["slot"])
            .unwrap();
        assert_eq!(slot["fingerprint"], key["fingerprint"]);
        assert_eq!(slot["public_key"], key["public_key"]);
    }
    let shown = stage.json(&["show", "alice"]);
    let ssh = key_of(&shown, "sign")["ssh"].as_str().unwrap().to_owned();
    assert!(ssh.starts_with("ecdsa-sha2-nistp256 ") && ssh.ends_with(" alice"));
    let age = key_of(&shown, "decrypt")["age_recipient"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(age.starts_with("age1tag1"), "{age}");

    let only_decrypts = stage.json(&[
        "connect",
        "bob",
        "--to",
        "alice",
        "--capabilities",
        "decrypt",
    ]);
    assert_eq!(only_decrypts["commitment_engine"], Value::Null);
    assert_eq!(only_decrypts["keys"].as_array().unwrap().len(), 1);

    let doctor = stage.json(&["doctor"]);
    assert_eq!(doctor["ok"], true);
    for finding in doctor["findings"].as_array().unwrap() {
        assert!(["info", "note", "warning", "error"].contains(&finding["level"].as_str().unwrap()));
        assert!(finding["what"].is_string() && finding["hint"].is_string());
    }
}

#[test]
fn a_reader_who_goes_away_hears_no_complaint() {
    let stage = Stage::with_alice();
    let plaintext = vec![7; 4 << 20];
    stage
        .feed(&["encrypt", "alice", "-o", "big.age"], &plaintext)
        .succeeds();
    let words = ["--pin-source", "file:pin", "decrypt", "alice", "big.age"];
    let mut command = stage.claviger(words);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(1));
}
