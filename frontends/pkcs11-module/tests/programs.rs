//! Programs of others use the module.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use claviger_engine::IdParams;
use claviger_formats::ssh;
use claviger_tests::SoftHsm;
use claviger_token::{Signature, SignatureScheme};
use common::{Stage, module};

/// Runs a program that finds the daemon; whether it succeeded, and what it said.
fn run(stage: &Stage, words: &[&str]) -> (bool, String) {
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .current_dir(stage.folder.path())
        .env("CLAVIGER_DAEMON", stage.socket())
        .env_remove("SSH_AUTH_SOCK")
        .env_remove("DISPLAY");
    let output = command.output().unwrap_or_else(|e| {
        panic!(
            "{} does not run: {e}; cargo xtask setup installs it",
            words[0]
        )
    });
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.success(), said)
}

fn succeeds(stage: &Stage, words: &[&str]) -> String {
    let (is_well, said) = run(stage, words);
    assert!(is_well, "{words:?}: {said}");
    said
}

/// OpenSC's tool, with our module and a token.
fn pkcs11_tool<'a>(path: &'a str, label: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [
        &["pkcs11-tool", "--module", path, "--token-label", label],
        more,
    ]
    .concat()
}

#[test]
fn the_module_exports_the_functions_that_give_its_lists_and_nothing_else() {
    let path = module();
    let output = Command::new("nm")
        .args(["-D", "--defined-only", "--format=just-symbols"])
        .arg(path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    let mut names: Vec<&str> = said.lines().map(str::trim).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["C_GetFunctionList", "C_GetInterface", "C_GetInterfaceList"]
    );
}

#[test]
fn opensc_lists_the_objects_of_an_identity_and_signs_with_its_key() {
    let stage = Stage::new();
    let key = stage.in_memory("alice", IdParams::P256);
    let pem = stage.certify("alice");
    let _daemon = stage.serve();
    let path = module();
    let path = path.to_str().unwrap();
    let tokens = succeeds(&stage, &["pkcs11-tool", "--module", path, "-L"]);
    assert!(tokens.contains("token label        : alice"), "{tokens}");
    assert!(!tokens.contains("login required"), "{tokens}");
    let listed = succeeds(&stage, &pkcs11_tool(path, "alice", &["-O"]));
    for kind in [
        "Public Key Object; EC",
        "Private Key Object; EC",
        "Certificate Object",
    ] {
        assert!(listed.contains(kind), "{listed}");
    }
    // What is read is what is kept.
    let read = [
        "--read-object",
        "--type",
        "cert",
        "--label",
        "alice",
        "-o",
        "read.der",
    ];
    succeeds(&stage, &pkcs11_tool(path, "alice", &read));
    let words = ["openssl", "x509", "-inform", "der", "-in", "read.der"];
    let shown = succeeds(&stage, &words);
    assert_eq!(shown.trim(), pem.trim());

    stage.write("letter", "Meet me at the bridge.\n");
    let sign = |mechanism, input| {
        let words = ["--sign", "-m", mechanism, "-i", input, "-o", "signature"];
        run(&stage, &pkcs11_tool(path, "alice", &words))
    };
    let (is_signed, said) = sign("ECDSA-SHA256", "letter");
    assert!(is_signed, "{said}");
    let bytes = std::fs::read(stage.folder.path().join("signature")).unwrap();
    let signature = Signature::new(SignatureScheme::EcdsaP256Sha256, bytes).unwrap();
    key.verify(b"Meet me at the bridge.\n", &signature).unwrap();
    // What a login signs is no document.
    let login = [
        &[b' '; 64][..],
        b"TLS 1.3, client CertificateVerify\0",
        &[7; 32],
    ]
    .concat();
    stage.write("login", login);
    assert!(!sign("ECDSA-SHA256", "login").0);
    // A digest needs a grant.
    stage.write("digest", [7; 32]);
    assert!(!sign("ECDSA", "digest").0);
    stage.grant_digests("alice");
    let (is_signed, said) = sign("ECDSA", "digest");
    assert!(is_signed, "{said}");
    let tested = succeeds(&stage, &pkcs11_tool(path, "alice", &["--test"]));
    assert!(tested.contains("No errors"), "{tested}");
}

#[test]
fn a_pin_that_is_typed_in_a_program_unlocks_the_one_token() {
    let (stage, token) = (Stage::new(), SoftHsm::new());
    stage.generate("hard", &token.backend(), IdParams::P256, token.access());
    stage.generate("rsa", &token.backend(), IdParams::Rsa2048, token.access());
    stage.lock();
    let _daemon = stage.serve();
    let path = module();
    let path = path.to_str().unwrap();
    stage.write("letter", "Meet me\n");
    let sign = |label, mechanism, more: &[&str]| {
        let words = ["--sign", "-m", mechanism, "-i", "letter", "-o", "signature"];
        run(&stage, &pkcs11_tool(path, label, &[&words, more].concat()))
    };
    let (is_signed, said) = sign("hard", "ECDSA-SHA256", &["--login", "--pin", "999999"]);
    assert!(!is_signed && said.contains("CKR_PIN_INCORRECT"), "{said}");
    let (is_signed, said) = sign("hard", "ECDSA-SHA256", &["--login", "--pin", SoftHsm::PIN]);
    assert!(is_signed, "{said}");
    // From now on nobody needs it, whatever the key.
    let (is_signed, said) = sign("rsa", "SHA256-RSA-PKCS", &[]);
    assert!(is_signed, "{said}");
    let words = [
        "openssl",
        "dgst",
        "-sha256",
        "-verify",
        "rsa.pem",
        "-signature",
        "signature",
    ];
    let read = [
        "--read-object",
        "--type",
        "pubkey",
        "--label",
        "rsa",
        "-o",
        "rsa.der",
    ];
    succeeds(&stage, &pkcs11_tool(path, "rsa", &read));
    let convert = "openssl pkey -pubin -inform der -in rsa.der -out rsa.pem";
    succeeds(&stage, &convert.split(' ').collect::<Vec<_>>());
    let verified = succeeds(&stage, &[&words[..], &["letter"]].concat());
    assert!(verified.contains("Verified OK"), "{verified}");
}

#[test]
fn ssh_lists_the_keys_and_its_agent_signs_with_them() {
    let stage = Stage::new();
    let key = stage.in_memory("alice", IdParams::P256);
    stage.in_memory("edna", IdParams::Ed25519);
    stage.grant_digests("alice");
    let _daemon = stage.serve();
    let path = module();
    let path = path.to_str().unwrap();
    let line = ssh::to_line(&key, "alice").unwrap();
    let blob = line.split(' ').nth(1).unwrap();
    let listed = succeeds(&stage, &["ssh-keygen", "-D", path]);
    assert!(listed.contains(blob), "{listed}");
    stage.write("alice.pub", &line);
    let askpass = stage.write("askpass", "#!/bin/sh\necho\n");
    executable(&askpass);
    // The agent starts a helper, which loads the module; no PIN is needed.
    let script = "export SSH_ASKPASS=$PWD/askpass SSH_ASKPASS_REQUIRE=force; \
                  ssh-add -s \"$0\" && ssh-add -L && ssh-add -T alice.pub";
    let allowed = format!("{}/*", Path::new(path).parent().unwrap().display());
    let words = ["ssh-agent", "-P", &allowed, "sh", "-c", script, path];
    let said = succeeds(&stage, &words);
    assert!(said.contains(blob), "{said}");
}

#[test]
fn nss_shows_the_certificate_of_an_identity_to_a_server_of_tls() {
    let stage = Stage::new();
    stage.in_memory("alice", IdParams::P256);
    let pem = stage.certify("alice");
    stage.write("alice.pem", pem);
    stage.grant_digests("alice");
    let _daemon = stage.serve();
    let path = module();
    let path = path.to_str().unwrap();
    let words = |text: &'static str| text.split(' ').collect::<Vec<_>>();
    succeeds(
        &stage,
        &words(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem \
             -out server.pem -subj /CN=localhost -addext subjectAltName=DNS:localhost -days 2",
        ),
    );
    std::fs::create_dir(stage.folder.path().join("nss")).unwrap();
    succeeds(&stage, &words("certutil -N -d sql:nss --empty-password"));
    succeeds(
        &stage,
        &words("certutil -A -d sql:nss -n server -t C,, -i server.pem"),
    );
    let add = words("modutil -force -dbdir sql:nss -add claviger -libfile");
    succeeds(&stage, &[&add[..], &[path]].concat());

    // It serves one client, and ends; or after a minute.
    let serve = "60 openssl s_server -accept 127.0.0.1:0 -cert server.pem -key key.pem -tls1_3 \
                 -Verify 1 -CAfile alice.pem -verify_return_error -naccept 1";
    let mut server = Command::new("timeout")
        .args(serve.split(' ').filter(|word| !word.is_empty()))
        .current_dir(stage.folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(server.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("ACCEPT ") {
        line.clear();
        assert_ne!(said.read_line(&mut line).unwrap(), 0, "the server ended");
    }
    let (_, port) = line.trim().rsplit_once(':').unwrap();
    let client =
        "60 tstclnt -d sql:nss -h localhost -4 -a localhost -n alice:alice -V tls1.3:tls1.3 -Q -p";
    let (is_well, client_said) = run(
        &stage,
        &[&["timeout"], &words(client)[..], &[port]].concat(),
    );
    let mut more = String::new();
    said.read_to_string(&mut more).unwrap();
    server.wait().unwrap();
    assert!(is_well, "{client_said}{more}");
    assert!(
        more.contains("1 server accepts that finished"),
        "{client_said}{more}"
    );
}

fn executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
}
