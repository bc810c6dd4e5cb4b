//! Certificates: requests that others sign, certificates that come back, and what is refused.
#![cfg(unix)]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::process::Command;

use common::{Outcome, Stage};

/// Runs `openssl` in the folder of the stage.
fn openssl(stage: &Stage, words: &str) -> Outcome {
    let mut command = Command::new("openssl");
    command.current_dir(stage.folder());
    Outcome::of(command.args(words.split_whitespace()))
}

/// An authority, in the files `ca.key` and `ca.pem`.
fn authority(stage: &Stage) {
    openssl(
        stage,
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem \
         -subj /CN=authority -days 30",
    )
    .succeeds();
}

/// Has the authority sign `alice.csr` for a time; the certificate is in `alice.pem`.
fn issue(stage: &Stage, from: &str, to: &str) {
    stage.write("index.txt", "");
    stage.write("serial", "1000\n");
    stage.write(
        "ca.conf",
        "[ca]\ndefault_ca = own\n[own]\ndatabase = index.txt\nserial = serial\nnew_certs_dir = .\n\
         default_md = sha256\npolicy = any\ncopy_extensions = copy\nunique_subject = no\n\
         [any]\ncommonName = supplied\norganizationName = optional\n",
    );
    openssl(
        stage,
        &format!(
            "ca -config ca.conf -batch -notext -in alice.csr -out alice.pem -cert ca.pem \
             -keyfile ca.key -startdate {from} -enddate {to}"
        ),
    )
    .succeeds();
}

const LONG_PAST: [&str; 2] = ["20200101000000Z", "20200201000000Z"];
const FOR_LONG: [&str; 2] = ["20200101000000Z", "20490101000000Z"];

const REQUEST: [&str; 8] = [
    "certificate",
    "request",
    "alice",
    "--subject",
    "CN=alice,O=Example",
    "--san",
    "alice.example",
    "--san=IP:127.0.0.1",
];

fn request(stage: &Stage) {
    let request = [&REQUEST[..], &["-o", "alice.csr"]].concat();
    stage.run_with_pin(&request).succeeds();
}

#[test]
fn a_request_is_signed_by_the_key_and_what_an_authority_makes_of_it_is_kept() {
    let stage = Stage::with_alice();
    request(&stage);
    let shown = openssl(&stage, "req -in alice.csr -noout -verify -text").succeeds();
    let text = shown.out();
    for said in ["CN = alice", "DNS:alice.example", "IP Address:127.0.0.1"] {
        assert!(text.contains(said), "{text}");
    }
    authority(&stage);
    issue(&stage, FOR_LONG[0], FOR_LONG[1]);
    // The issuer may come first.
    let chain = [stage.read("ca.pem"), stage.read("alice.pem")].concat();
    stage.write("chain.pem", chain);
    let imported = stage.run(["--json", "certificate", "import", "alice", "chain.pem"]);
    let imported = imported.succeeds().json();
    assert_eq!(imported["issuer"], "CN=authority", "{imported}");
    assert_eq!(imported["names"][0], "DNS:alice.example", "{imported}");
    assert_eq!(imported["expired"], false, "{imported}");
    let shown = stage.json(&["certificate", "show", "alice"]);
    assert_eq!(shown, imported);
    // Programs that read PEM skip what people read.
    let text = stage.run(["certificate", "show", "alice"]).succeeds();
    stage.write("shown.pem", text.bytes());
    let verified = openssl(&stage, "verify -CAfile ca.pem shown.pem");
    assert!(verified.succeeds().out().contains("OK"));
    let doctor = stage.run(["doctor"]);
    assert!(
        doctor
            .out()
            .contains("the certificate of `alice` is valid until 2049")
    );
    // DER is taken, too, and replaces what was there.
    openssl(&stage, "x509 -in alice.pem -outform der -out alice.der").succeeds();
    stage
        .run(["certificate", "import", "alice", "alice.der"])
        .succeeds();
    let shown = stage.json(&["certificate", "show", "alice"]);
    assert_eq!(shown["chain"].as_str().unwrap().matches("BEGIN").count(), 1);
}

#[test]
fn a_self_signed_certificate_is_kept_and_goes_with_its_key() {
    let stage = Stage::with_alice();
    let words = [
        "certificate",
        "self-signed",
        "alice",
        "--subject",
        "CN=localhost",
        "--san",
        "localhost",
        "--days",
        "10",
    ];
    let made = stage.run_with_pin(&words).succeeds();
    stage.write("alice.pem", made.bytes());
    let verified = openssl(&stage, "verify -x509_strict -CAfile alice.pem alice.pem");
    assert!(verified.succeeds().out().contains("OK"));
    let shown = stage.json(&["certificate", "show", "alice"]);
    assert_eq!(shown["chain"].as_str().unwrap(), made.out());
    // Whoever is connected to the key has the same.
    stage.run(["connect", "bob", "--to", "alice"]).succeeds();
    let of_bob = stage.json(&["certificate", "show", "bob"]);
    assert_eq!(of_bob["chain"], shown["chain"]);
    let doctor = stage.run(["--json", "doctor"]).json();
    let findings = doctor["findings"].as_array().unwrap();
    let soon = findings.iter().filter(|finding| {
        let what = finding["what"].as_str().unwrap();
        what.starts_with("the certificate of `alice` expires on") && finding["level"] == "warning"
    });
    assert_eq!(soon.count(), 1, "{doctor}");
    stage.run(["delete", "bob"]).succeeds();
    stage.run_with_pin(&["delete", "alice", "--yes"]).succeeds();
    stage.generate("alice", &[]).succeeds();
    stage
        .run(["--json", "certificate", "show", "alice"])
        .fails(1, "\"code\":\"no-certificate\"");
}

#[test]
fn a_name_that_is_none_and_a_certificate_that_is_not_of_the_key_are_refused() {
    let stage = Stage::with_alice();
    let before = stage.objects();
    for (subject, san, code) in [
        ("", "a.example", "certificate-empty-subject"),
        ("alice", "a.example", "certificate-bad-subject"),
        ("CN=", "a.example", "certificate-bad-subject"),
        ("CN=alice", "a b", "certificate-bad-name"),
        ("CN=alice", "IP:alice", "certificate-bad-name"),
    ] {
        for kind in ["request", "self-signed"] {
            let words = [
                "--json",
                "certificate",
                kind,
                "alice",
                "--subject",
                subject,
                "--san",
                san,
            ];
            // Before the PIN is asked for.
            let code = format!("\"code\":\"{code}\"");
            stage.run(words).fails(1, &code);
        }
    }
    let import = |file: &str, code: &str| {
        let words = ["--json", "certificate", "import", "alice", file];
        let code = format!("\"code\":\"{code}\"");
        stage.run(words).fails(1, &code);
    };
    authority(&stage);
    import("ca.pem", "certificate-other-key");
    import("ca.key", "certificate-malformed");
    stage.write("empty", "");
    import("empty", "certificate-malformed");
    request(&stage);
    import("alice.csr", "certificate-malformed");
    issue(&stage, LONG_PAST[0], LONG_PAST[1]);
    import("alice.pem", "certificate-expired");
    issue(&stage, FOR_LONG[0], FOR_LONG[1]);
    let der = stage.read("alice.pem");
    let strangers = [der.clone(), stage.read("ca.pem"), der.clone(), der].concat();
    stage.write("strangers.pem", strangers);
    import("strangers.pem", "certificate-not-in-chain");
    stage
        .run(["--json", "certificate", "show", "alice"])
        .fails(1, "\"code\":\"no-certificate\"");
    assert_eq!(stage.objects(), before);
}

#[test]
fn a_key_that_is_for_tls_alone_may_sign_digests_and_it_is_said() {
    let stage = Stage::with_alice();
    let request = [&REQUEST[..], &["--tls-only", "-o", "alice.csr"]].concat();
    let made = stage.run_with_pin(&request).succeeds();
    assert!(made.err().contains("any signature"), "{}", made.err());
    let _daemon = match common::is_over_daemon() {
        true => None,
        false => Some(common::Daemon::start(&stage)),
    };
    let grants = stage.json(&["grant", "list"]);
    assert_eq!(grants.as_array().unwrap().len(), 1, "{grants}");
    assert_eq!(grants[0]["identity"], "alice", "{grants}");
    assert_eq!(grants[0]["purpose"], "prehash", "{grants}");
}

#[test]
fn keys_of_each_kind_sign_their_own_certificates() {
    let stage = Stage::new();
    for params in ["p384", "ed25519", "rsa2048"] {
        let commit = ["--params", params, "--capabilities", "commit"];
        stage.generate(params, &commit).succeeds();
        let subject = format!("CN={params}");
        let words = ["certificate", "self-signed", params, "--subject", &subject];
        let made = stage.run_with_pin(&words).succeeds();
        stage.write("made.pem", made.bytes());
        let verified = openssl(&stage, "verify -CAfile made.pem -check_ss_sig made.pem");
        assert!(verified.succeeds().out().contains("OK"), "{params}");
    }
}
