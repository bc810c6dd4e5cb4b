//! With a daemon, commands fail as they do without.

use super::common::{Daemon, Outcome, Stage};

/// What a command said, on every way that it speaks.
fn said(outcome: &Outcome) -> (Option<i32>, String, String) {
    (outcome.code(), outcome.out(), outcome.err())
}

#[test]
fn a_failure_is_the_same_with_a_daemon_and_without() {
    let stage = Stage::with_alice();
    stage.write("letter", "Meet me\n");
    let made = ["--capabilities", "commit", "--params", "ed25519"];
    stage.generate("signer", &made).succeeds();
    let backend = stage.token.backend();
    let reader = [
        "connect",
        "reader",
        "--to",
        "alice",
        "--capabilities",
        "decrypt",
    ];
    stage.run(reader).succeeds();
    stage
        .run(["encrypt", "alice", "letter", "-o", "letter.age"])
        .succeeds();
    let _daemon = Daemon::start(&stage);
    let none = format!("SHA256:{}", "A".repeat(43));
    let p384 = [
        "generate",
        "x",
        "--backend",
        &backend,
        "--params",
        "p384",
        "--capabilities",
        "decrypt",
    ];
    let commands: [(&[&str], bool); 20] = [
        (&["sign", "nobody", "letter"], false),
        (&["sign", "alice", "letter"], false),
        (&["sign", "alice", "absent"], false),
        (&["sign", "reader", "letter"], false),
        (
            &[
                "sign",
                "alice",
                "letter",
                "--namespace",
                "",
                "--format",
                "sshsig",
            ],
            false,
        ),
        (&["generate", "alice", "--backend", &backend], true),
        (&["generate", "", "--backend", &backend], true),
        (&["generate", "x", "--backend", "piv:nonsense"], true),
        (&["generate", "x", "--backend", "pkcs11:nonsense"], true),
        (&["generate", "x", "--backend", "remote:bob"], true),
        (
            &[
                "generate",
                "x",
                "--backend",
                &backend,
                "--params",
                "bls12-381",
            ],
            true,
        ),
        (&p384, true),
        (&["connect", "x", "--to", "nobody"], true),
        (
            &["connect", "x", "--to", &none, "--backend", &backend],
            true,
        ),
        (&["connect", "alice", "--to", "signer"], true),
        (&["delete", "nobody"], true),
        (&["decrypt", "signer", "letter.age"], true),
        (&["decrypt", "letter"], true),
        (&["decrypt", "nobody", "letter.age"], true),
        (&["tokens", "--backend", "pkcs11:nonsense"], false),
    ];
    for (words, with_pin) in commands {
        for json in [&[][..], &["--json"]] {
            let pin = match with_pin {
                true => &["--pin-source", "file:pin"][..],
                false => &[],
            };
            let words = [json, pin, words].concat();
            let there = stage.run(&words);
            let here = stage.run([&["--no-daemon"], &words[..]].concat());
            assert_ne!(here.code(), Some(0), "{words:?}");
            assert_eq!(said(&there), said(&here), "{words:?}");
        }
    }
}

#[test]
fn what_succeeds_is_the_same_with_a_daemon_and_without() {
    let stage = Stage::with_alice();
    let _daemon = Daemon::start(&stage);
    let backend = stage.token.backend();
    for words in [
        &["tokens", "--backend", &backend][..],
        &["--json", "tokens", "--backend", &backend],
        &["identities"],
        &["--json", "identities"],
        &["show", "alice"],
        &["--json", "show", "alice"],
    ] {
        let there = stage.run(words).succeeds();
        let here = stage.run([&["--no-daemon"], words].concat()).succeeds();
        assert_eq!(said(&there), said(&here), "{words:?}");
    }
}
