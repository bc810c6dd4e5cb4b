//! What a signature says: documents that hold statements, grants with an end, revocations,
//! what is left of the old format, and to whom data is disclosed.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use claviger_engine::evidence::{Statement, from_text, now, statement};
use claviger_engine::{Evidence, Terms};
use claviger_formats::sshsig;
use claviger_token::key::from_hex;
use claviger_token::{Signature, SignatureScheme};
use common::{Outcome, Stage};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const LETTER: &[u8] = b"Meet me where the keys are kept.\n";

/// A stage with a letter and P-256 identities of these names.
fn with(names: &[&str]) -> Stage {
    let stage = Stage::new();
    stage.write("letter", LETTER);
    for name in names {
        stage.generate(name, &[]).succeeds();
    }
    stage
}

fn grant(stage: &Stage, reader: &str, by: &str, more: &[&str]) -> Outcome {
    stage.run_with_pin(&[&["reads-for", "grant", reader, "--by", by], more].concat())
}

fn reads(stage: &Stage, reader: &str, identity: &str) -> bool {
    let code = stage.run(["reads-for", "check", reader, identity]).code();
    assert!(matches!(code, Some(0 | 1)), "{code:?}");
    code == Some(0)
}

/// The evidence that a stage knows.
fn exported(stage: &Stage) -> Vec<Evidence> {
    stage.run(["reads-for", "export", "exported"]).succeeds();
    from_text(&stage.read("exported")).unwrap().evidence
}

fn copy(from: &Stage, file: &str, to: &Stage) {
    to.write(file, from.read(file));
}

/// A contact of the same name for an identity of another machine.
fn introduce(from: &Stage, name: &str, to: &Stage) {
    to.write(
        "shown",
        from.run(["--json", "show", name]).succeeds().bytes(),
    );
    to.run(["contact", "add", name, "shown"]).succeeds();
}

/// The names of those who can read what `encrypt` makes with these words.
fn recipients(stage: &Stage, words: &[&str]) -> Vec<String> {
    let words = [&["encrypt"], words, &["letter", "-o", "sealed"]].concat();
    let view = stage.json(&words);
    let to = view["to"].as_array().unwrap().iter();
    to.map(|to| to["name"].as_str().unwrap().to_owned())
        .collect()
}

// --- Documents -----------------------------------------------------------------------

#[test]
fn a_file_that_holds_a_statement_is_no_document_to_sign() {
    let stage = with(&["yk", "mallory"]);
    grant(&stage, "mallory", "yk", &[]).succeeds();
    let piece = exported(&stage).remove(0);
    let (from, to) = (&piece.from_identity, &piece.to_identity);
    let by = to.keys.sign.clone().unwrap();
    let revocation = Statement::Revocation {
        statement: piece.statement_id(),
        by,
    };
    for (what, document) in [
        ("old", statement(from, to, &Terms::V1)),
        ("new", statement(from, to, &Terms::new(None))),
        ("revocation", revocation.to_bytes()),
        ("ssh", sshsig::signed_data("file", LETTER).unwrap()),
    ] {
        stage.write("document", &document);
        for format in ["raw", "der"] {
            // It is said before a PIN is asked for, and by whatever way the file comes.
            let words = ["sign", "yk", "document", "--format", format, "-o", "sig"];
            let refused = stage.run(words).fails(1, "is not signed as a document");
            assert!(!refused.err().contains("PIN"), "{what}: {}", refused.err());
            let words = ["sign", "yk", "--format", format, "-o", "sig"];
            stage.feed(&words, &document).fails(1, "is not signed");
            let words = [
                "--json", "sign", "yk", "document", "--format", format, "-o", "sig",
            ];
            let error: Value = serde_json::from_str(&stage.run(words).err()).unwrap();
            assert_eq!(error["error"]["code"], "reserved-message", "{what}");
            assert!(!stage.path("sig").exists(), "{what}");
        }
        // In an SSH signature it is a document as any: what is signed begins otherwise.
        let words = ["sign", "yk", "document", "--format", "sshsig", "-o", "ok"];
        stage.run_with_pin(&words).succeeds();
    }
    stage.write(
        "document",
        [b"\n", &statement(from, to, &Terms::V1)[..]].concat(),
    );
    for document in ["letter", "document"] {
        for format in ["raw", "der", "sshsig"] {
            let words = ["sign", "yk", document, "--format", format, "-o", "sig"];
            stage.run_with_pin(&words).succeeds();
            let words = ["verify", "yk", "--signature", "sig", document];
            stage.run(words).succeeds();
        }
    }
}

/// What the attack was: a document whose signature is taken for evidence. It is made here with
/// another program, which signs anything.
#[test]
fn a_signature_of_the_old_format_that_was_had_as_a_document_grants_nothing() {
    let stage = with(&["yk", "mallory"]);
    grant(&stage, "mallory", "yk", &[]).succeeds();
    let piece = exported(&stage).remove(0);
    stage
        .run_with_pin(&["reads-for", "revoke", "mallory", "--by", "yk"])
        .succeeds();
    let said = statement(&piece.from_identity, &piece.to_identity, &Terms::V1);
    let shown = stage.json(&["show", "yk"]);
    let keys = shown["keys"].as_array().unwrap();
    let key = keys.iter().find(|key| key["use"] == "sign").unwrap();
    let slot = key["slot"].clone();
    let document = stage.write("document", Sha256::digest(said));
    let signed = stage.path("signed");
    stage.pkcs11_tool(&[
        "--sign",
        "--mechanism",
        "ECDSA",
        "--id",
        slot.as_str().unwrap(),
        "--input-file",
        document.to_str().unwrap(),
        "--output-file",
        signed.to_str().unwrap(),
    ]);
    let scheme = SignatureScheme::EcdsaP256Sha256;
    let stolen = Evidence {
        terms: Terms::V1,
        proof: Signature::new(scheme, stage.read("signed")).unwrap(),
        ..piece
    };
    assert_eq!(stolen.verify(), Ok(()));
    let file = json!({"claviger_evidence": 1, "evidence": [stolen]});
    stage.write("stolen", file.to_string());
    let imported = stage.run(["reads-for", "import", "stolen"]).succeeds();
    assert!(imported.err().contains("old format"), "{}", imported.err());
    assert!(!reads(&stage, "mallory", "yk"));
    assert_eq!(recipients(&stage, &["yk", "--reads-for"]), ["yk"]);
    // It is kept, and listed with the command that grants it anew.
    let list = stage.json(&["reads-for", "list"]);
    assert_eq!(list[1]["standing"], "old-format");
    assert_eq!(list[1]["again"], "claviger reads-for grant mallory --by yk");
    let list = stage.run(["reads-for", "list"]).succeeds().out();
    assert!(list.contains("old format, not relied on"), "{list}");
    let check = stage.run(["reads-for", "check", "mallory", "yk"]);
    assert!(check.out().contains("old format"), "{}", check.out());
    grant(&stage, "mallory", "yk", &[]).succeeds();
    assert!(reads(&stage, "mallory", "yk"));
}

// --- Ends and revocations ------------------------------------------------------------

#[test]
fn a_grant_has_an_end_if_it_is_given_one() {
    let stage = with(&["safe", "yk"]);
    for bad in ["yesterday", "2001-01-01", "2100-02-30", ""] {
        grant(&stage, "safe", "yk", &["--until", bad]).fails(2, "--until");
    }
    let view = stage.run_with_pin(&[
        "--json",
        "reads-for",
        "grant",
        "safe",
        "--by",
        "yk",
        "--until",
        "2100-01-01",
    ]);
    assert_eq!(view.succeeds().json()["until"], "2100-01-01T00:00:00Z");
    assert!(reads(&stage, "safe", "yk"));
    let list = stage.run(["reads-for", "list"]).succeeds().out();
    assert!(list.contains("2100-01-01T00:00:00Z"), "{list}");
    stage
        .run_with_pin(&["reads-for", "revoke", "safe", "--by", "yk"])
        .succeeds();

    let mut lasts = 3;
    let end = loop {
        let end = now() + lasts;
        grant(&stage, "safe", "yk", &["--until", &chrono_text(end)]).succeeds();
        let counts = reads(&stage, "safe", "yk");
        if now() < end {
            assert!(counts);
            break end;
        }
        // It ended while it was looked at, on a machine that is busy.
        lasts *= 4;
        assert!(lasts < 200);
    };
    while now() < end {
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    assert!(!reads(&stage, "safe", "yk"));
    let check = stage.run(["reads-for", "check", "safe", "yk"]);
    assert!(check.out().contains("has ended"), "{}", check.out());
    let list = stage.json(&["reads-for", "list"]);
    let last = list.as_array().and_then(|list| list.last());
    assert_eq!(last.unwrap()["standing"], "ended");
    assert_eq!(recipients(&stage, &["yk", "--reads-for"]), ["yk"]);
}

fn chrono_text(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap();
    let time = chrono::DateTime::from_timestamp(seconds, 0).unwrap();
    time.to_rfc3339()
}

#[test]
fn what_was_granted_is_revoked_here_and_where_the_revocation_is_imported() {
    let (mine, theirs) = (with(&["safe", "yk"]), with(&[]));
    for name in ["safe", "yk"] {
        introduce(&mine, name, &theirs);
    }
    grant(&mine, "safe", "yk", &[]).succeeds();
    mine.run(["reads-for", "export", "before"]).succeeds();
    copy(&mine, "before", &theirs);
    theirs.run(["reads-for", "import", "before"]).succeeds();
    assert!(reads(&theirs, "safe", "yk"));

    let revoke = ["reads-for", "revoke", "safe", "--for", "yk"];
    mine.run(revoke).fails(1, "PIN");
    let revoked = mine.run_with_pin(&[&["--json"], &revoke[..]].concat());
    let expected = json!({"reader": "safe", "reads_for": "yk", "revoked": 1});
    assert_eq!(revoked.succeeds().json(), expected);
    assert!(!reads(&mine, "safe", "yk"));
    let check = mine.run(["reads-for", "check", "safe", "yk"]);
    assert!(check.out().contains("revoked"), "{}", check.out());
    let verdict = mine
        .run(["--json", "reads-for", "check", "safe", "yk"])
        .json();
    assert_eq!(verdict["not_relied_on"], json!(["revoked"]));
    mine.run_with_pin(&revoke).fails(1, "no grant of `yk`");
    let nobody = ["reads-for", "revoke", "nobody", "--by", "yk"];
    mine.run_with_pin(&nobody).fails(1, "no grant of `yk`");
    let of_another = ["reads-for", "revoke", "yk", "--by", "safe"];
    mine.run_with_pin(&of_another)
        .fails(1, "no grant of `safe`");

    mine.run(["reads-for", "export", "after"]).succeeds();
    copy(&mine, "after", &theirs);
    let imported = theirs.json(&["reads-for", "import", "after"]);
    assert_eq!(
        (&imported["added"], &imported["revocations"]),
        (&json!(0), &json!(1))
    );
    assert!(!reads(&theirs, "safe", "yk"));
    // The file of before brings nothing back, here or where nothing was known.
    let others = with(&[]);
    for name in ["safe", "yk"] {
        introduce(&mine, name, &others);
    }
    copy(&mine, "after", &others);
    copy(&mine, "before", &others);
    for file in ["after", "before"] {
        for stage in [&theirs, &others] {
            stage.run(["reads-for", "import", file]).succeeds();
            assert!(!reads(stage, "safe", "yk"), "{file}");
        }
    }
    grant(&mine, "safe", "yk", &[]).succeeds();
    assert!(reads(&mine, "safe", "yk"));
}

#[test]
fn who_still_reads_through_another_is_said() {
    let stage = with(&["safe", "yk", "deputy"]);
    for (reader, by) in [("safe", "yk"), ("deputy", "yk"), ("safe", "deputy")] {
        grant(&stage, reader, by, &[]).succeeds();
    }
    let revoked = stage.run_with_pin(&["reads-for", "revoke", "safe", "--by", "yk"]);
    let revoked = revoked.succeeds().err();
    assert!(
        revoked.contains("still reads for `yk`, through `deputy`"),
        "{revoked}"
    );
}

// --- To whom -------------------------------------------------------------------------

#[test]
fn nobody_reads_who_was_not_named() {
    let stage = with(&["bob", "safe", "heir"]);
    for name in ["team", "mallory"] {
        stage.generate(name, &["--params", "ed25519"]).succeeds();
    }
    for (reader, by) in [
        ("bob", "team"),
        ("bob", "mallory"),
        ("safe", "bob"),
        ("heir", "safe"),
    ] {
        grant(&stage, reader, by, &[]).succeeds();
    }
    for (words, expected) in [
        (&["bob"][..], &["bob"][..]),
        (&["bob", "--reads-for"], &["bob", "safe", "heir"]),
        (&["bob", "--reads-for", "--depth", "1"], &["bob", "safe"]),
        (&["bob", "--via", "team"], &["team"]),
        (&["bob", "--via", "mallory"], &["mallory"]),
        (&["bob", "--via-any"], &["team"]),
        (
            &["bob", "--via", "team", "--reads-for", "--depth", "1"],
            &["team", "safe"],
        ),
    ] {
        assert_eq!(recipients(&stage, words), expected, "{words:?}");
        // Whom evidence adds is listed, whoever listens.
        let words = [&["encrypt"], words, &["letter", "-o", "sealed"]].concat();
        let told = stage.run(&words).succeeds().err();
        let listed = told.lines().filter(|line| line.starts_with("recipient: "));
        let count = if words.len() == 5 { 0 } else { expected.len() };
        assert_eq!(listed.count(), count, "{words:?}: {told}");
        for name in expected.iter().take(count) {
            assert!(told.contains(&format!("recipient: {name} (")), "{told}");
        }
    }
    stage
        .run(["encrypt", "bob", "letter", "--via", "heir", "-o", "x"])
        .fails(1, "nothing proves that `bob` reads for `heir`");
    stage
        .run(["encrypt", "bob", "letter", "--depth", "1", "-o", "x"])
        .fails(2, "--depth bounds");
    stage
        .run([
            "encrypt",
            "bob",
            "letter",
            "--via-any",
            "--via",
            "team",
            "-o",
            "x",
        ])
        .fails(2, "");
    stage
        .run([
            "encrypt",
            "bob",
            "letter",
            "--reads-for",
            "--depth",
            "0",
            "-o",
            "x",
        ])
        .fails(2, "");
    assert!(!stage.path("x").exists());
}

#[test]
fn a_third_party_makes_nobody_a_recipient_of_what_is_for_one_who_only_signs() {
    let stage = with(&["mallory"]);
    stage.generate("bob", &["--params", "p384"]).succeeds();
    grant(&stage, "bob", "mallory", &[]).fails(1, "no key that decrypts");
    for more in [
        &[][..],
        &["--reads-for"],
        &["--via-any"],
        &["--via", "mallory"],
    ] {
        let words = [&["encrypt", "bob", "letter", "-o", "x"], more].concat();
        stage.run(words).fails(1, "no key that decrypts");
    }
    assert!(!stage.path("x").exists());
}

#[test]
fn a_file_that_is_too_long_for_evidence_is_not_read_into_memory() {
    let stage = with(&[]);
    let file = std::fs::File::create(stage.path("endless")).unwrap();
    // It has holes, and takes no room.
    file.set_len(1 << 40).unwrap();
    let words = ["--json", "reads-for", "import", "endless"];
    let error: Value = serde_json::from_str(&stage.run(words).err()).unwrap();
    assert_eq!(error["error"]["code"], "too-long");
}

// --- Names ---------------------------------------------------------------------------

#[test]
fn a_name_that_stands_for_somebody_else_here_comes_in_under_another() {
    let (mine, theirs) = (with(&["safe", "yk"]), with(&["safe"]));
    grant(&mine, "safe", "yk", &[]).succeeds();
    mine.run(["reads-for", "export", "evidence"]).succeeds();
    copy(&mine, "evidence", &theirs);
    introduce(&mine, "yk", &theirs);
    let imported = theirs.run(["--json", "reads-for", "import", "evidence"]);
    let imported = imported.succeeds();
    let view: Value = imported.json();
    let name = view["contacts"][0].as_str().unwrap().to_owned();
    assert!(name.starts_with("safe@") && name.len() == 13, "{name}");
    assert!(
        imported.err().contains("contact rename"),
        "{}",
        imported.err()
    );
    assert!(reads(&theirs, &name, "yk") && !reads(&theirs, "safe", "yk"));
    assert_eq!(
        theirs.json(&["reads-for", "list"])[0]["reader"]["name"],
        *name
    );
    assert_eq!(recipients(&theirs, &["yk", "--reads-for"]), ["yk", &name]);
    let rename = |old: &str, new: &str| theirs.run(["contact", "rename", old, new]);
    rename(&name, "yk").fails(1, "a contact `yk` already");
    rename(&name, "safe").fails(1, "is an identity here");
    rename(&name, " ").fails(2, "cannot be the name");
    rename("nobody", "x").fails(1, "no contact `nobody`");
    rename(&name, "their safe").succeeds();
    assert!(reads(&theirs, "their safe", "yk"));
    let again = theirs.json(&["reads-for", "import", "evidence"]);
    assert_eq!(again["contacts"], json!([]));
}

#[test]
fn hexadecimal_is_read_as_it_is_written() {
    // The numbers in a file of evidence are text: nothing else than hexadecimal is one.
    let stage = with(&["safe", "yk"]);
    grant(&stage, "safe", "yk", &[]).succeeds();
    stage.run(["reads-for", "export", "good"]).succeeds();
    let good: Value = serde_json::from_slice(&stage.read("good")).unwrap();
    let number = good["evidence"][0]["number"].as_str().unwrap();
    assert_eq!(from_hex(number).unwrap().len(), 16);
    for bad in [json!("00"), json!("zz"), json!(7), json!(null)] {
        let mut file = good.clone();
        file["evidence"][0]["number"] = bad.clone();
        stage.write("bad", file.to_string());
        let refused = stage.run(["reads-for", "import", "bad"]);
        // Without a number it is of the old format, whose signature is another.
        assert_eq!(refused.code(), Some(1), "{bad}");
    }
}
