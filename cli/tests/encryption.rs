//! Encrypting to several and through evidence, contacts, and finding who opens a file,
//! with the real command on real (soft and virtual) tokens.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::process::Stdio;

use claviger_tests::SoftHsm;
use claviger_token::sync::lock;
use common::{Outcome, Stage, program};
use serde_json::{Value, json};

const LETTER: &[u8] = b"Meet me where the keys are kept.\n";

fn key_of(identity: &Value, usage: &str) -> Value {
    let keys = identity["keys"].as_array().unwrap();
    keys.iter().find(|key| key["use"] == usage).unwrap().clone()
}

/// The text of a field of an identity's key.
fn field(stage: &Stage, name: &str, usage: &str, field: &str) -> String {
    let shown = stage.json(&["show", name]);
    key_of(&shown, usage)[field].as_str().unwrap().to_owned()
}

/// A stage with a letter and identities of these names and cryptosystems.
fn with(identities: &[(&str, &str)]) -> Stage {
    let stage = Stage::new();
    stage.write("letter", LETTER);
    for (name, params) in identities {
        stage.generate(name, &["--params", params]).succeeds();
    }
    stage
}

/// What `show --json` prints of an identity, in a file, for another machine.
fn hand_over(from: &Stage, name: &str, to: &Stage) -> String {
    let file = format!("{name}.json");
    let shown = from.run(["--json", "show", name]).succeeds();
    to.write(&file, shown.bytes());
    file
}

#[track_caller]
fn opens(stage: &Stage, words: &[&str]) {
    let opened = stage.run_with_pin(&[&["decrypt"], words].concat());
    assert_eq!(opened.succeeds().bytes(), LETTER);
}

// --- Contacts ------------------------------------------------------------------------

#[test]
fn a_contact_is_entered_from_whatever_form_its_keys_come_in() {
    let theirs = with(&[("p256", "p256"), ("ed", "ed25519"), ("p384", "p384")]);
    let mine = Stage::new();
    mine.write("letter", LETTER);
    for (identity, usage, form) in [
        ("p256", "sign", "public_key"),
        ("p256", "sign", "ssh"),
        ("p256", "decrypt", "public_key"),
        ("p256", "decrypt", "age_recipient"),
        ("ed", "sign", "public_key"),
        ("ed", "sign", "ssh"),
        ("ed", "decrypt", "public_key"),
        ("ed", "decrypt", "age_recipient"),
        ("p384", "sign", "public_key"),
        ("p384", "sign", "ssh"),
    ] {
        mine.write("keys", field(&theirs, identity, usage, form));
        mine.run(["contact", "add", "them", "keys"]).succeeds();
        if usage == "decrypt" {
            let sealed = mine.run(["encrypt", "them", "letter"]).succeeds();
            theirs.write("sealed", sealed.bytes());
            opens(&theirs, &[identity, "sealed"]);
        } else {
            let words = ["sign", identity, "letter", "-o", "sig"];
            theirs.run_with_pin(&words).succeeds();
            mine.write("sig", theirs.read("sig"));
            let verify = ["verify", "them", "--signature", "sig", "letter"];
            mine.run(verify).succeeds();
            mine.write("letter.2", "another");
            let verify = ["verify", "them", "--signature", "sig", "letter.2"];
            assert_eq!(mine.run(verify).code(), Some(1));
        }
        mine.run(["contact", "remove", "them"]).succeeds();
    }
    // All of it at once.
    let file = hand_over(&theirs, "ed", &mine);
    mine.run(["contact", "add", "ed", &file]).succeeds();
    let contacts = mine.json(&["contact", "list"]);
    assert_eq!(contacts[0]["name"], "ed");
    for usage in ["sign", "decrypt"] {
        let expected = field(&theirs, "ed", usage, "fingerprint");
        assert_eq!(key_of(&contacts[0], usage)["fingerprint"], expected);
    }
    assert!(
        mine.run(["contact", "list"])
            .succeeds()
            .out()
            .contains("ed")
    );
    mine.run(["contact", "add", "more", "-"])
        .fails(1, "no public key");
    mine.run(["contact", "remove", "nobody"])
        .fails(1, "no contact");
}

#[test]
fn what_is_no_contact_is_refused_and_nothing_is_lost() {
    let stage = with(&[("alice", "p256"), ("signer", "p384")]);
    stage.write("nothing", "");
    stage.write("garbage", [0xff, 0, 1]);
    stage.write("secret", "AGE-SECRET-KEY-1QQQQ");
    stage.write("plugin", "age1yubikey1qqqqqqqq");
    stage.write("good", field(&stage, "alice", "decrypt", "age_recipient"));
    for (words, complaint) in [
        (["contact", "add", "bob", "nothing"], "no public key"),
        (["contact", "add", "bob", "garbage"], "not text"),
        (["contact", "add", "bob", "secret"], "private key"),
        (["contact", "add", "bob", "plugin"], "age recipient"),
        (["contact", "add", "bob", "missing"], "cannot be read"),
        (["contact", "add", "alice", "good"], "is an identity here"),
    ] {
        stage.run(words).fails(1, complaint);
    }
    stage
        .run(["contact", "add", " ", "good"])
        .fails(2, "cannot be the name");
    assert_eq!(stage.json(&["contact", "list"]), json!([]));

    stage.run(["contact", "add", "bob", "good"]).succeeds();
    stage
        .run(["contact", "add", "bob", "good"])
        .fails(1, "a contact `bob` already");
    // A name stands for one only.
    stage
        .generate("bob", &[])
        .fails(1, "a contact has this name");
    stage
        .run_with_pin(&["connect", "bob", "--to", "alice"])
        .fails(1, "a contact has this name");
    assert_eq!(stage.private_keys(), 3);
    // Recipients that are unknown or have no key that decrypts.
    stage
        .run(["encrypt", "nobody", "letter"])
        .fails(1, "no identity `nobody`");
    for more in [&[][..], &["--reads-for"]] {
        let words = [&["encrypt", "signer", "letter"], more].concat();
        stage.run(words).fails(1, "no key that decrypts");
        let words = [&["encrypt", "bob", "letter", "--also", "signer"], more].concat();
        stage.run(words).fails(1, "no key that decrypts");
    }
    stage.write("sig", "x");
    let words = ["verify", "bob", "--signature", "sig", "letter"];
    stage.run(words).fails(3, "no key of the contact");
    stage.run(["decrypt", "bob"]).fails(1, "is a contact");
}

// --- Several recipients and evidence -------------------------------------------------

#[test]
fn one_file_is_for_several_recipients() {
    let stage = with(&[("a", "p256"), ("b", "ed25519"), ("c", "p256")]);
    let words = [
        "encrypt", "a", "letter", "--also", "b", "--also", "a", "-o", "out",
    ];
    let view = stage
        .run([&["--json"], &words[..]].concat())
        .succeeds()
        .json();
    assert_eq!(view["recipients"].as_array().unwrap().len(), 2);
    opens(&stage, &["a", "out"]);
    opens(&stage, &["b", "out"]);
    stage
        .run_with_pin(&["decrypt", "c", "out"])
        .fails(1, "Decryption Failed");
}

#[test]
fn evidence_travels_and_decides_who_can_open() {
    let (mine, theirs) = (
        with(&[("yk", "p256"), ("lone", "p384")]),
        with(&[("safe", "ed25519")]),
    );
    let file = hand_over(&theirs, "safe", &mine);
    mine.run(["contact", "add", "safe", &file]).succeeds();
    let check = ["reads-for", "check", "safe", "yk"];
    let no = mine.run(check);
    assert_eq!((no.code(), no.out().starts_with("no")), (Some(1), true));

    mine.run(["reads-for", "grant", "safe", "--by", "yk"])
        .fails(1, "PIN");
    let granted = mine.run_with_pin(&["--json", "reads-for", "grant", "safe", "--by", "yk"]);
    let granted = granted.succeeds().json();
    assert_eq!(granted["reader"]["name"], "safe");
    assert_eq!(granted["reads_for"]["name"], "yk");
    assert_eq!(granted["scheme"], "ecdsa-p256-sha256");
    assert!(mine.run(check).succeeds().out().starts_with("yes"));
    let verdict = mine.json(&check);
    assert_eq!(verdict["reads_for"], true);
    assert_eq!(verdict["chain"], json!(["safe", "yk"]));
    // It is said before the PIN is asked for.
    mine.run(["reads-for", "grant", "safe", "--by", "yk"])
        .fails(1, "Evidence already exists.");
    mine.run(["reads-for", "grant", "yk", "--by", "yk"])
        .fails(1, "reads for it anyway");
    mine.run(["reads-for", "grant", "yk", "--by", "safe"])
        .fails(1, "no identity `safe`");
    mine.run(["reads-for", "grant", "nobody", "--by", "yk"])
        .fails(1, "no identity `nobody`");

    // Without evidence being used the file is for one, with it for both.
    mine.run(["encrypt", "yk", "letter", "-o", "one"])
        .succeeds();
    mine.run(["encrypt", "yk", "letter", "--reads-for", "-o", "both"])
        .succeeds();
    for file in ["one", "both"] {
        theirs.write(file, mine.read(file));
        opens(&mine, &["yk", file]);
    }
    theirs
        .run_with_pin(&["decrypt", "safe", "one"])
        .fails(1, "Decryption Failed");
    opens(&theirs, &["safe", "both"]);

    // Nobody becomes a recipient in place of an identity without a key that decrypts.
    mine.run_with_pin(&["reads-for", "grant", "lone", "--by", "yk"])
        .fails(1, "no key that decrypts");
    for more in [&[][..], &["--reads-for"]] {
        mine.run([&["encrypt", "lone", "letter", "-o", "through"], more].concat())
            .fails(1, "no key that decrypts");
    }
    assert!(!mine.path("through").exists());

    mine.run(["reads-for", "export", "evidence"]).succeeds();
    assert!(mine.read("evidence").len() < 10_000);
    theirs.write("evidence", mine.read("evidence"));
    theirs.write("yk.json", mine.run(["--json", "show", "yk"]).bytes());
    theirs.run(["contact", "add", "yk", "yk.json"]).succeeds();
    let imported = theirs.json(&["reads-for", "import", "evidence"]);
    assert_eq!([&imported["added"], &imported["known"]], [1, 0]);
    let imported = theirs.json(&["reads-for", "import", "evidence"]);
    assert_eq!([&imported["added"], &imported["known"]], [0, 1]);
    theirs.run(check).succeeds();
    let list = theirs.json(&["reads-for", "list"]);
    assert_eq!(list.as_array().unwrap().len(), 1);
    let list = theirs.json(&["reads-for", "list", "safe"]);
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(list[0]["current"], true);
    assert!(
        theirs
            .run(["reads-for", "list"])
            .succeeds()
            .out()
            .contains("safe")
    );
    // Whoever knows it can use it, too.
    theirs
        .run(["encrypt", "yk", "letter", "--reads-for", "-o", "back"])
        .succeeds();
    mine.write("back", theirs.read("back"));
    opens(&mine, &["yk", "back"]);
    opens(&theirs, &["safe", "back"]);
}

#[test]
fn what_is_granted_to_one_who_is_made_anew_is_granted_anew() {
    let stage = with(&[("a", "p256"), ("b", "p256")]);
    let grant = ["reads-for", "grant", "a", "--by", "b"];
    stage.run_with_pin(&grant).succeeds();
    stage.run(["reads-for", "export", "old"]).succeeds();
    stage.run_with_pin(&["delete", "a"]).succeeds();
    stage.generate("a", &[]).succeeds();
    let check = ["reads-for", "check", "a", "b"];
    assert_eq!(stage.run(check).code(), Some(1));
    assert_eq!(stage.json(&["reads-for", "list"])[0]["current"], false);
    let again = stage.json(&["reads-for", "import", "old"]);
    assert_eq!([&again["added"], &again["known"]], [0, 1]);
    stage.run_with_pin(&grant).succeeds();
    stage.run(check).succeeds();
}

#[test]
fn evidence_that_is_not_what_it_says_is_refused_as_a_whole() {
    let stage = with(&[("a", "p256"), ("b", "p256"), ("c", "ed25519")]);
    for (reader, by) in [("a", "b"), ("b", "c"), ("c", "a")] {
        let words = ["reads-for", "grant", reader, "--by", by];
        stage.run_with_pin(&words).succeeds();
    }
    stage.run(["reads-for", "export", "good"]).succeeds();
    let good: Value = serde_json::from_slice(&stage.read("good")).unwrap();

    let elsewhere = Stage::new();
    let altered = |change: &dyn Fn(&mut Value)| {
        let mut bad = good.clone();
        change(&mut bad);
        elsewhere.write("bad", bad.to_string());
        let refused = elsewhere.run(["reads-for", "import", "bad"]);
        assert_eq!(elsewhere.json(&["reads-for", "list"]), json!([]));
        refused
    };
    let invalid = "Invalid evidence provided.";
    // A wrong signature, other keys, another name, another scheme, the other way round.
    altered(&|e| {
        let other = e["evidence"][0]["signature"].clone();
        e["evidence"][1]["signature"] = other;
    })
    .fails(1, invalid)
    .fails(1, "claviger reads-for grant; nothing was imported");
    altered(&|e| e["evidence"][0]["reader"] = good["evidence"][2]["reader"].clone())
        .fails(1, invalid);
    altered(&|e| e["evidence"][2]["reader"]["name"] = json!("mallory"))
        .fails(1, "number 3, that `mallory` reads for `a`");
    altered(&|e| e["evidence"][0]["scheme"] = json!("ed25519")).fails(1, invalid);
    altered(&|e| {
        let reader = e["evidence"][0]["reader"].clone();
        e["evidence"][0]["reader"] = e["evidence"][0]["reads_for"].clone();
        e["evidence"][0]["reads_for"] = reader;
    })
    .fails(1, invalid);
    altered(&|e| {
        let party = e["evidence"][0]["reads_for"].as_object_mut();
        party.unwrap().remove("sign");
    })
    .fails(1, invalid);
    // Malformed.
    for change in [
        &(|e: &mut Value| e["evidence"][0]["signature"] = json!("zz")) as &dyn Fn(&mut Value),
        &|e| e["evidence"][0]["scheme"] = json!("rot13"),
        &|e| e["evidence"][0]["reader"]["decrypt"] = json!("no key"),
        &|e| e["claviger_evidence"] = json!(1),
        &|e| e["claviger_evidence"] = json!(3),
        &|e| e["evidence"][0]["until"] = json!(-1),
        &|e| e["revocations"] = json!([{}]),
        &|e| *e = json!([]),
    ] {
        altered(change).fails(1, "is not a file of evidence");
    }
    elsewhere.write("bad", b"\xff\xfe");
    let refused = elsewhere.run(["reads-for", "import", "bad"]);
    refused.fails(1, "is not a file of evidence");
    let refused = elsewhere.run(["reads-for", "import", "missing"]);
    refused.fails(1, "cannot be read");

    // The cycle itself is good, in any order, and everyone in it reads for everyone.
    elsewhere.write("good", stage.read("good"));
    elsewhere.run(["reads-for", "import", "good"]).succeeds();
    for reader in ["a", "b", "c"] {
        for identity in ["a", "b", "c"] {
            stage
                .run(["reads-for", "check", reader, identity])
                .succeeds();
        }
    }
    stage
        .run(["encrypt", "a", "letter", "--reads-for", "-o", "all"])
        .succeeds();
    for name in ["a", "b", "c"] {
        opens(&stage, &[name, "all"]);
    }
}

// --- Finding who opens ---------------------------------------------------------------

#[test]
fn decrypt_takes_no_one_or_two_words() {
    let stage = with(&[("alice", "p256"), ("bob", "ed25519")]);
    stage
        .run(["encrypt", "alice", "letter", "-o", "file"])
        .succeeds();
    let sealed = stage.read("file");
    // None: any identity, standard input. A name: standard input. A file: any identity.
    for words in [
        &["decrypt"][..],
        &["decrypt", "alice"],
        &["decrypt", "-"],
        &["decrypt", "alice", "-"],
    ] {
        assert_eq!(
            stage.feed(words, &sealed).succeeds().bytes(),
            LETTER,
            "{words:?}"
        );
    }
    opens(&stage, &["file"]);
    opens(&stage, &["alice", "file"]);
    // A name goes before a file of the same name.
    stage.write("bob", &sealed);
    stage
        .feed(&["decrypt", "bob"], &sealed)
        .fails(1, "Decryption Failed");
    opens(&stage, &["./bob"]);
    stage
        .run_with_pin(&["decrypt", "missing"])
        .fails(1, "no identity `missing`, and no such file");
    stage.run_with_pin(&["decrypt", "a", "b", "c"]).fails(2, "");
    stage
        .run_with_pin(&["decrypt", "nobody", "file"])
        .fails(1, "no identity `nobody`");

    // X25519 stanzas do not say for whom they are.
    stage
        .run(["encrypt", "bob", "letter", "-o", "file"])
        .succeeds();
    opens(&stage, &["file"]);
    // For nobody here: no PIN is needed to say so.
    let others = with(&[("eve", "p256")]);
    others
        .run(["encrypt", "eve", "letter", "-o", "file"])
        .succeeds();
    stage.write("file", others.read("file"));
    stage
        .run(["decrypt", "file"])
        .fails(1, "no identity here can open the file");
    for bad in [&b""[..], b"no age file", &sealed[..100]] {
        let refused = stage.feed(&["decrypt"], bad);
        assert_eq!(refused.err(), "error: Decryption Failed\n");
    }
}

#[test]
fn one_pin_is_not_tried_on_several_tokens() {
    // There a token may still be open for the command before.
    if common::needs_own_process() {
        return;
    }
    let stage = with(&[("near", "p256"), ("near-x", "ed25519")]);
    let other = SoftHsm::new();
    for (name, params) in [("far", "p256"), ("far-x", "ed25519")] {
        let backend = other.backend();
        let words = ["generate", name, "--backend", &backend, "--params", params];
        stage.run_with_pin(&words).succeeds();
    }
    // The stanza says for whom the file is: the other token is left alone.
    stage
        .run(["encrypt", "far", "letter", "-o", "file"])
        .succeeds();
    opens(&stage, &["file"]);
    // Either of two could open it, or the stanza says nothing: the PIN might be the other's.
    for words in [
        &["encrypt", "near", "letter", "--also", "far", "-o", "file"][..],
        &["encrypt", "far-x", "letter", "-o", "file"],
    ] {
        stage.run(words).succeeds();
        let refused = stage.run_with_pin(&["decrypt", "file"]);
        let refused = refused.fails(1, "keys on several tokens could open the file");
        assert!(refused.err().contains("far"), "{}", refused.err());
    }
    opens(&stage, &["far-x", "file"]);
    // One stanza says for whom it is, the other might be for anybody: the first counts.
    let words = ["encrypt", "near", "letter", "--also", "far-x", "-o", "file"];
    stage.run(words).succeeds();
    opens(&stage, &["file"]);
    // The PIN may be that of one that is not attached, too.
    stage
        .run(["encrypt", "near", "letter", "--also", "far", "-o", "file"])
        .succeeds();
    other.remove();
    let refused = stage.run_with_pin(&["decrypt", "file"]);
    let refused = refused
        .fails(1, "keys on several tokens could open the file")
        .err();
    assert!(refused.contains("(not attached)"), "{refused}");
    opens(&stage, &["near", "file"]);
    stage
        .run(["encrypt", "far", "letter", "-o", "file"])
        .succeeds();
    let refused = stage.run_with_pin(&["decrypt", "file"]);
    let refused = refused.fails(1, "no attached token can open");
    assert!(
        refused.err().contains("far on pkcs11:"),
        "{}",
        refused.err()
    );
    other.insert();
}

#[cfg(target_os = "linux")]
mod with_a_yubikey {
    use std::sync::{Mutex, MutexGuard};

    use super::*;
    use claviger_virtual_yubikey::{Builder, Card, Inserted, ManagementAlgorithm, Pcscd};

    const MANAGEMENT_KEY: [u8; 24] = [0xa5; 24];

    /// Held by whoever wants to be alone with the one YubiKey that there is.
    static ALONE: Mutex<()> = Mutex::new(());

    /// A SoftHSM token and a YubiKey with the same PIN.
    pub(super) struct Both {
        pub(super) stage: Stage,
        pub(super) yubikey: Inserted,
        _alone: MutexGuard<'static, ()>,
    }

    fn card() -> Builder {
        Card::builder()
            .pin(SoftHsm::PIN)
            .management_key(ManagementAlgorithm::Aes192, &MANAGEMENT_KEY)
    }

    impl Both {
        pub(super) fn new() -> Self {
            let both = Both {
                _alone: lock(&ALONE),
                stage: Stage::new(),
                yubikey: Pcscd::insert(card().build()),
            };
            let hex = |b: &u8| format!("{b:02x}");
            let key: String = MANAGEMENT_KEY.iter().map(hex).collect();
            both.stage.write("management-key", key);
            both.stage.write("letter", LETTER);
            both
        }

        pub(super) fn run(&self, words: &[&str]) -> Outcome {
            let all = [
                "--pin-source",
                "file:pin",
                "--management-key",
                "file:management-key",
            ];
            let (variable, socket) = Pcscd::environment();
            let mut command = self.stage.claviger([&all, words].concat());
            Outcome::of(command.env(variable, socket))
        }

        fn generate(&self, name: &str, params: &str, touch: &str) {
            let serial = self.yubikey.card().serial();
            let backend = format!("piv:serial={serial};touch-policy={touch}");
            let words = ["generate", name, "--backend", &backend, "--params", params];
            self.run(&words).succeeds();
        }
    }

    #[test]
    fn what_needs_no_touch_is_tried_before_what_does_and_no_pin_is_spent() {
        if common::needs_own_process() {
            return;
        }
        let both = Both::new();
        both.generate("touched", "p256", "always");
        both.generate("untouched", "p256", "never");
        for name in ["touched", "untouched"] {
            let words = [
                "encrypt",
                "touched",
                "letter",
                "--also",
                "untouched",
                "-o",
                "file",
            ];
            both.run(&words).succeeds();
            let opened = both.run(&["decrypt", "file"]).succeeds();
            assert_eq!((opened.bytes(), opened.err()), (LETTER, String::new()));
            // Where there is no other way the touch is asked for.
            both.run(&["encrypt", name, "letter", "-o", "file"])
                .succeeds();
            let opened = both.run(&["decrypt", "file"]).succeeds();
            assert_eq!(opened.bytes(), LETTER);
            assert_eq!(
                opened.err().contains("touch your YubiKey"),
                name == "touched"
            );
        }

        // The PIN of one token is spent on no other to find out.
        both.stage
            .generate("soft", &["--params", "ed25519"])
            .succeeds();
        both.generate("hard", "ed25519", "never");
        both.stage.write("pin", "0ther-pin");
        both.run(&["encrypt", "soft", "letter", "-o", "file"])
            .succeeds();
        let refused = both.run(&["decrypt", "file"]);
        refused.fails(1, "keys on several tokens could open the file");
        assert_eq!(both.yubikey.card().pin_tries(), 3);
    }

    /// The worked example in the guide, as it stands there.
    #[test]
    fn the_guides_file_that_either_of_two_tokens_can_open_works_as_written() {
        if common::needs_own_process() {
            return;
        }
        let guide = include_str!("../../docs/encryption.md");
        let (_, section) = guide
            .split_once("## A file that either of two tokens can open\n")
            .expect("the guide has no such section");
        let section = section.split("\n## ").next().unwrap();
        let blocks = section.split("```sh\n").skip(1);
        let script: String = blocks.map(|b| b.split("```").next().unwrap()).collect();
        assert!(script.contains("reads-for grant"), "{script}");

        let both = Both::new();
        both.stage.write("letter.txt", LETTER);
        // The token in the safe, and its module, by the names of this machine.
        let label = format!("'{}'", both.stage.token.backend());
        assert!(script.contains("'pkcs11:token=safe'"), "{script}");
        let script = script.replace("'pkcs11:token=safe'", &label);
        // Nobody is there to be asked.
        assert!(script.contains(" --management-key prompt"), "{script}");
        let script = script.replace(" --management-key prompt", "");
        let options = "--pin-source file:pin --management-key file:management-key";
        let (variable, socket) = Pcscd::environment();
        let mut script = both.stage.script(&script, options);
        let output = script.env(variable, socket).output().unwrap();
        let (out, err) = (output.stdout, String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{err}");
        // Both opened it.
        let out = String::from_utf8_lossy(&out);
        let letter = String::from_utf8_lossy(LETTER);
        assert_eq!(out.matches(&*letter).count(), 2, "{out}{err}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_ledger_grants_and_is_asked_last() {
    let app = claviger_ledger_emulator::Ethereum::new();
    let server = app.serve();
    let stage = with(&[("soft", "p256")]);
    let backend = format!("ledger:tcp={}", server.address());
    let words = [
        "generate",
        "ledger",
        "--backend",
        &backend,
        "--params",
        "secp256k1",
    ];
    stage.run_with_pin(&words).succeeds();
    let granted = stage.run(["--json", "reads-for", "grant", "soft", "--by", "ledger"]);
    assert_eq!(granted.succeeds().json()["scheme"], "eip191-secp256k1");
    stage
        .run(["reads-for", "check", "soft", "ledger"])
        .succeeds();
    stage.run(["reads-for", "export", "evidence"]).succeeds();
    let imported = Stage::new();
    imported.write("evidence", stage.read("evidence"));
    imported.run(["reads-for", "import", "evidence"]).succeeds();

    stage
        .run(["encrypt", "ledger", "letter", "--reads-for", "-o", "file"])
        .succeeds();
    let opened = stage.run_with_pin(&["decrypt", "file"]).succeeds();
    assert_eq!((opened.bytes(), opened.err()), (LETTER, String::new()));
    opens(&stage, &["ledger", "file"]);
    // Without a PIN there is still the Ledger.
    let opened = stage.run(["decrypt", "file"]).succeeds();
    assert_eq!(opened.bytes(), LETTER);
}

// --- Bad files and pipes -------------------------------------------------------------

#[test]
fn a_bad_file_leaves_nothing_in_the_output() {
    let stage = with(&[("alice", "p256")]);
    let long = vec![7; 1 << 20];
    let sealed = stage.feed(&["encrypt", "alice"], &long).succeeds();
    let sealed = sealed.bytes();
    let header = sealed.windows(4).position(|part| part == b"\n---").unwrap();
    let mut wrong_mac = sealed.to_vec();
    wrong_mac[header + 10] ^= 1;
    let lines: Vec<&[u8]> = sealed[..header].split(|b| *b == b'\n').collect();
    let none = [lines[0], &sealed[header..]].concat();
    let stanza: Vec<u8> = [b"\n".to_vec(), lines[1..3].join(&b'\n')].concat();
    // A copy of a stanza is as good as the stanza, but the MAC is over one.
    let many = [lines[0], &stanza.repeat(10_000), &sealed[header..]].concat();
    stage.write("out", "as it was");
    for (what, bad) in [
        ("truncated", &sealed[..sealed.len() - 1]),
        (
            "cut between chunks",
            &sealed[..header + 1 + 48 + 16 + 2 * 65_552],
        ),
        ("wrong MAC", &wrong_mac),
        ("no stanza", &none),
        ("ten thousand stanzas", &many),
    ] {
        for words in [
            &["decrypt", "alice", "-o", "out"][..],
            &["decrypt", "-o", "out"],
        ] {
            let refused = stage.feed(words, bad);
            assert_eq!(refused.code(), Some(1), "{what}");
            let is_many = what == "ten thousand stanzas";
            assert!(
                refused.err().contains("Decryption Failed")
                    || refused.err().contains("no identity here can open the file")
                    || (is_many && refused.err().contains("longer than 1024 KiB")),
                "{what}: {}",
                refused.err()
            );
        }
        assert_eq!(stage.read("out"), b"as it was", "{what}");
        assert_eq!(stage.files(), ["letter", "out"], "{what}");
    }
    stage.feed(&["decrypt", "-o", "out"], sealed).succeeds();
    assert_eq!(stage.read("out"), long);
}

#[test]
fn nobody_complains_when_the_reader_of_a_ciphertext_goes_away() {
    let stage = with(&[("alice", "p256")]);
    stage.write("big", vec![7; 4 << 20]);
    let mut command = stage.claviger(["encrypt", "alice", "big"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(1));
}

// --- Other people's programs ---------------------------------------------------------

mod peers {
    use super::*;
    use claviger_tests::peers;

    /// An identity file for `age` and `rage`, and its recipient.
    fn keygen(stage: &Stage) -> String {
        let key = program("age-keygen", &[], &stage.path(""), None).succeeds();
        stage.write("key.txt", key.bytes());
        let key = key.out();
        let line = key.lines().find_map(|l| l.strip_prefix("# public key: "));
        line.unwrap().to_owned()
    }

    #[test]
    fn what_is_encrypted_to_an_age_recipient_opens_with_age_and_rage() {
        if peers::quick("what_is_encrypted_to_an_age_recipient_opens_with_age_and_rage") {
            return;
        }
        let stage = with(&[("alice", "p256")]);
        stage.write("recipient", keygen(&stage));
        stage
            .run(["contact", "add", "friend", "recipient"])
            .succeeds();
        let words = [
            "encrypt", "friend", "letter", "--also", "alice", "-o", "file",
        ];
        stage.run(words).succeeds();
        let rage = peers::rage();
        for age in ["age", rage.to_str().unwrap()] {
            let words = ["--decrypt", "-i", "key.txt", "file"];
            let opened = program(age, &words, &stage.path(""), None).succeeds();
            assert_eq!(opened.bytes(), LETTER, "{age}");
        }
        opens(&stage, &["file"]);
    }

    #[test]
    fn what_rage_and_npms_age_encryption_make_opens_on_tokens() {
        if peers::quick("what_rage_and_npms_age_encryption_make_opens_on_tokens") {
            return;
        }
        let stage = with(&[("p256", "p256"), ("x25519", "ed25519")]);
        makes_and_opens(&stage, &["p256", "x25519"], &|words| {
            stage.run_with_pin(words)
        });
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_rage_and_npms_age_encryption_make_opens_on_a_yubikey() {
        if common::needs_own_process()
            || peers::quick("what_rage_and_npms_age_encryption_make_opens_on_a_yubikey")
        {
            return;
        }
        let both = with_a_yubikey::Both::new();
        let serial = both.yubikey.card().serial();
        for (name, params) in [("p256", "p256"), ("x25519", "ed25519")] {
            let backend = format!("piv:serial={serial}");
            let words = ["generate", name, "--backend", &backend, "--params", params];
            both.run(&words).succeeds();
        }
        makes_and_opens(&both.stage, &["p256", "x25519"], &|words| both.run(words));
    }

    /// Has both programs encrypt to each identity, and opens it.
    fn makes_and_opens(stage: &Stage, names: &[&str], claviger: &dyn Fn(&[&str]) -> Outcome) {
        let rage = peers::rage();
        for name in names {
            let recipient = field(stage, name, "decrypt", "age_recipient");
            for armor in [&[][..], &["--armor"]] {
                let words = [&["-r", &recipient, "-o", "made", "letter"], armor].concat();
                program(rage.to_str().unwrap(), &words, &stage.path(""), None).succeeds();
                let opened = claviger(&["decrypt", name, "made"]).succeeds();
                assert_eq!(opened.bytes(), LETTER, "rage to {name}");
            }
            peers::age_encryption(&recipient, &stage.path("letter"), &stage.path("made"));
            for words in [&["decrypt", name, "made"][..], &["decrypt", "made"]] {
                let opened = claviger(words).succeeds();
                assert_eq!(opened.bytes(), LETTER, "age-encryption to {name}");
            }
        }
    }
}
