//! Contact files as other programs make them, and names that look like others.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::collections::BTreeMap;

use common::{Outcome, Stage, program};

/// Adds the file as a contact of the same name: for each use the algorithm.
fn added(stage: &Stage, file: &str) -> BTreeMap<String, String> {
    let view = stage.json(&["contact", "add", file, file]);
    let keys = view["keys"].as_array().unwrap().iter();
    let text = |key: &serde_json::Value, name: &str| key[name].as_str().unwrap().to_owned();
    keys.map(|key| (text(key, "use"), text(key, "algorithm")))
        .collect()
}

fn refused(stage: &Stage, file: &str) -> String {
    let outcome = stage.run(["contact", "add", file, file]);
    outcome.fails(1, "cannot be used").err()
}

#[track_caller]
fn openssl(stage: &Stage, words: &str) -> Outcome {
    let words: Vec<&str> = words.split(' ').collect();
    program("openssl", &words, stage.folder(), None).succeeds()
}

fn uses(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter()
        .map(|(usage, algorithm)| ((*usage).into(), (*algorithm).into()))
        .collect()
}

#[test]
fn what_openssl_writes_is_taken_for_what_it_can_do() {
    let stage = Stage::new();
    openssl(
        &stage,
        "ecparam -name prime256v1 -genkey -noout -out p256.key",
    );
    openssl(&stage, "genrsa -out rsa.key 2048");
    openssl(&stage, "genpkey -algorithm ed25519 -out ed.key");
    openssl(&stage, "pkey -in p256.key -pubout -out p256");
    openssl(&stage, "rsa -in rsa.key -RSAPublicKey_out -out pkcs1");
    let p256 = uses(&[("sign", "p256"), ("decrypt", "p256")]);
    assert_eq!(added(&stage, "p256"), p256);
    let rsa = uses(&[("sign", "rsa2048"), ("decrypt", "rsa2048")]);
    assert_eq!(added(&stage, "pkcs1"), rsa);
    // A certificate, with all that openssl says of it in front.
    openssl(
        &stage,
        "req -x509 -new -key p256.key -subj /CN=x -days 1 -text -out cert",
    );
    assert_eq!(added(&stage, "cert"), p256);
    let usage = "req -x509 -new -key rsa.key -subj /CN=x -days 1 -out signs \
                 -addext keyUsage=digitalSignature -addext basicConstraints=CA:FALSE";
    openssl(&stage, usage);
    assert_eq!(added(&stage, "signs"), uses(&[("sign", "rsa2048")]));
    openssl(
        &stage,
        &usage
            .replace("digitalSignature", "keyEncipherment")
            .replace("signs", "opens"),
    );
    assert_eq!(added(&stage, "opens"), uses(&[("decrypt", "rsa2048")]));
    openssl(
        &stage,
        &usage
            .replace("digitalSignature", "keyCertSign")
            .replace("signs", "ca"),
    );
    assert!(refused(&stage, "ca").contains("neither sign nor decrypt"));
    // With its authority behind it, as servers have it.
    let leaf = [stage.read("signs"), stage.read("cert")].concat();
    stage.write("chain", leaf);
    let chained = stage
        .run(["--json", "contact", "add", "chain", "chain"])
        .succeeds();
    assert_eq!(chained.json()["keys"].as_array().unwrap().len(), 1);
    assert!(chained.err().contains("authority"), "{}", chained.err());
    let text = String::from_utf8(stage.read("signs")).unwrap();
    stage.write(
        "trusted",
        text.replace("CERTIFICATE", "TRUSTED CERTIFICATE"),
    );
    assert_eq!(added(&stage, "trusted"), uses(&[("sign", "rsa2048")]));
}

#[test]
fn what_ssh_keygen_writes_is_taken() {
    let stage = Stage::new();
    let keygen = |words: &[&str]| program("ssh-keygen", words, stage.folder(), None).succeeds();
    keygen(&["-q", "-t", "ed25519", "-N", "", "-f", "ed"]);
    keygen(&["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", "rsa"]);
    for (form, file) in [("RFC4716", "rfc4716"), ("PKCS8", "pkcs8"), ("PEM", "pem")] {
        let exported = keygen(&["-e", "-m", form, "-f", "rsa.pub"]);
        stage.write(file, exported.bytes());
        let rsa = uses(&[("sign", "rsa2048"), ("decrypt", "rsa2048")]);
        assert_eq!(added(&stage, file), rsa, "{form}");
    }
    let line = |name: &str| String::from_utf8(stage.read(name)).unwrap();
    let options = "from=\"*.example.org, x\",command=\"echo \\\"a b\\\"\",no-pty";
    stage.write("options", format!("# mine\n{options} {}", line("ed.pub")));
    assert_eq!(added(&stage, "options"), uses(&[("sign", "ed25519")]));
    // Each is taken for what it can do.
    stage.write("both", format!("{}{}", line("rsa.pub"), line("ed.pub")));
    let both = uses(&[("sign", "ed25519"), ("decrypt", "rsa2048")]);
    assert_eq!(added(&stage, "both"), both);
    keygen(&["-q", "-t", "ed25519", "-N", "", "-f", "other"]);
    stage.write("two", format!("{}{}", line("other.pub"), line("ed.pub")));
    assert!(refused(&stage, "two").contains("more than one key in it that signs: SHA256:"));
    stage.write("authority", format!("cert-authority {}", line("ed.pub")));
    assert!(refused(&stage, "authority").contains("authority"));
}

#[test]
fn a_key_of_a_kind_that_cannot_be_used_is_named() {
    let stage = Stage::new();
    for (words, name) in [
        (
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:secp521r1",
            "P-521",
        ),
        (
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:brainpoolP256r1",
            "brainpoolP256r1",
        ),
        ("genpkey -algorithm ed448", "Ed448"),
        ("genpkey -algorithm x448", "X448"),
        (
            "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024",
            "RSA key of 1024 bits",
        ),
        (
            "genpkey -algorithm RSA -pkeyopt rsa_keygen_pubexp:3",
            "exponent 3",
        ),
        ("genpkey -algorithm RSA-PSS", "RSASSA-PSS"),
    ] {
        openssl(&stage, &format!("{words} -out key"));
        openssl(&stage, "pkey -in key -pubout -out odd");
        let said = refused(&stage, "odd");
        assert!(said.contains(name), "{name}: {said}");
    }
    let keygen = |words: &[&str]| program("ssh-keygen", words, stage.folder(), None).succeeds();
    keygen(&["-q", "-t", "ecdsa", "-b", "521", "-N", "", "-f", "p521"]);
    assert!(refused(&stage, "p521.pub").contains("P-521"));
    let pgp = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDMEAAAA\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n";
    for (text, name) in [
        (
            "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29t",
            "security key",
        ),
        ("ssh-dss AAAAB3NzaC1kc3M=", "DSA"),
        ("age1pq1qqqqqq", "age1pq"),
        (
            "age1yubikey1qwt50d05nh5vutpdzmlg5wn80xq5negm4uj9ghv0snvdd3yysf5yw3rhl3t",
            "age1yubikey",
        ),
        (pgp, "OpenPGP"),
    ] {
        stage.write("odd", text);
        let said = refused(&stage, "odd");
        assert!(said.contains(name), "{name}: {said}");
    }
}

#[test]
fn a_key_that_is_not_safe_is_refused_and_nothing_panics() {
    let stage = Stage::with_alice();
    // u = 1, which gives zero with every private key (RFC 7748 §6.1).
    let small = "age1qyqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqj7vrya";
    let spki = |u: u8| {
        let mut der = vec![0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x6e, 3, 0x21, 0, u];
        der.extend([0; 31]);
        use base64::Engine as _;
        let text = base64::prelude::BASE64_STANDARD.encode(der);
        format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
    };
    for text in [small.to_owned(), spki(0), spki(1)] {
        stage.write("bad", &text);
        let said = refused(&stage, "bad");
        assert!(!said.contains("panicked"), "{said}");
        let shown = serde_json::json!({"keys": [{"use": "decrypt", "public_key": text}]});
        stage.write("bad", shown.to_string());
        refused(&stage, "bad");
    }
    // The same with the base point.
    stage.write(
        "age",
        "age1pyqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq8r66x",
    );
    assert_eq!(added(&stage, "age"), uses(&[("decrypt", "x25519")]));
    stage.write("good", spki(9));
    assert_eq!(added(&stage, "good"), uses(&[("decrypt", "x25519")]));
}

#[test]
fn a_contact_file_is_read_to_its_64th_kibibyte() {
    let stage = Stage::new();
    let long = std::fs::File::create(stage.path("long")).unwrap();
    long.set_len(1 << 30).unwrap();
    let begun = std::time::Instant::now();
    let refused = stage.run(["contact", "add", "long", "long"]);
    refused.fails(1, "is longer than 64 KiB");
    assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
}

#[test]
fn a_name_that_looks_like_another_is_said_and_one_that_is_not_seen_is_refused() {
    let stage = Stage::new();
    openssl(&stage, "ecparam -name prime256v1 -genkey -noout -out key");
    openssl(&stage, "pkey -in key -pubout -out pem");
    let add = |name: &str| stage.run(["contact", "add", name, "pem"]);
    assert_eq!(add("alice").succeeds().err(), "");
    // A Cyrillic а.
    let alike = add("\u{430}lice").succeeds();
    assert!(
        alike.err().contains("looks like `alice`"),
        "{}",
        alike.err()
    );
    for name in [
        "al\u{200b}ice",
        "\u{202e}ecila",
        "ali\u{ad}ce",
        "Rene\u{301}",
        "a\u{2028}b",
    ] {
        add(name).fails(2, "this cannot be the name");
    }
    assert_eq!(add("Ren\u{e9}").succeeds().err(), "");
}
