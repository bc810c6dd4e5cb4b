//! Both state machines, as the protocol says (C2SP `age-plugin`), without a daemon.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

mod common;

use std::cell::Cell;
use std::io::Write;
use std::process::{Command, Stdio};

use age_plugin_claviger::identity::{self, Keys, NotOpened};
use age_plugin_claviger::peer::{Broken, Peer};
use age_plugin_claviger::person::Person;
use age_plugin_claviger::recipient;
use claviger_formats::age_plugin::{Identity, recipient_text};
use claviger_formats::envelope::{Stanza, Stanzas, UnwrappedKey, recipient_text as native_text};
use claviger_token::{Algorithm, PublicKey};
use common::{ANY, FILE_KEY, handed, line, said, stanzas, wrapped};

fn p256() -> PublicKey {
    // A point of RFC 6979, A.2.5.
    PublicKey::from_text(
        "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEuOAyaLEPRLcfyclBJ9AJbVC40b+3
kqk6aPfFnclFwj86xLj0SAX12ceWWecCBZcYlu28bYRLYpv2ASGuEAZSrA==
-----END PUBLIC KEY-----",
    )
    .unwrap()
}

fn x25519() -> PublicKey {
    PublicKey::from_bytes(Algorithm::X25519, &[9; 32]).unwrap()
}

/// The answer to each file: its key, or why not. It tells and asks what it is told to.
struct Scripted<F: FnMut(&Identity, &dyn Person) -> Result<(), NotOpened>>(F);

impl<F: FnMut(&Identity, &dyn Person) -> Result<(), NotOpened>> Keys for Scripted<F> {
    fn open(
        &mut self,
        identity: &Identity,
        _: &Stanzas,
        person: &dyn Person,
    ) -> Result<UnwrappedKey, NotOpened> {
        (self.0)(identity, person)?;
        Ok(UnwrappedKey::from_bytes(&FILE_KEY))
    }
}

/// What is said to who decrypts like this, and hears this.
fn decrypt(
    heard: &[u8],
    open: impl FnMut(&Identity, &dyn Person) -> Result<(), NotOpened>,
) -> (Result<(), Broken>, Vec<Stanza>) {
    let mut out = Vec::new();
    let mut peer = Peer::new(heard, &mut out);
    let talked = identity::run(&mut peer, &mut Scripted(open));
    (talked, stanzas(&out))
}

fn encrypt(heard: &[u8]) -> (Result<(), Broken>, Vec<Stanza>) {
    let mut out = Vec::new();
    let mut peer = Peer::new(heard, &mut out);
    let talked = recipient::run(&mut peer);
    (talked, stanzas(&out))
}

fn lines(stanzas: &[Stanza]) -> Vec<String> {
    stanzas.iter().map(line).collect()
}

fn grease() -> Vec<u8> {
    said("xJ-grease", &["!", "~"], &[7; 96])
}

fn oks(count: usize) -> Vec<u8> {
    said("ok", &[], &[]).repeat(count)
}

/// What an age program says that encrypts two files to a recipient and an identity.
fn encrypts() -> Vec<u8> {
    [
        grease(),
        said("add-recipient", &[&recipient_text(&p256()).unwrap()], &[]),
        said("wrap-file-key", &[], &FILE_KEY),
        said("extension-labels", &[], &[]),
        grease(),
        said("add-identity", &[&common::identity(&x25519(), "bob")], &[]),
        said("wrap-file-key", &[], &[3; 16]),
        said("done", &[], &[]),
        oks(4),
    ]
    .concat()
}

#[test]
fn each_file_key_gets_a_native_stanza_for_each_recipient_and_identity() {
    let (talked, said) = encrypt(&encrypts());
    talked.unwrap();
    let kinds: Vec<_> = said.iter().map(|one| one.args.get(..2)).collect();
    let [zero, one] = ["0", "1"].map(str::to_owned);
    let [tag, x25519] = ["p256tag", "X25519"].map(str::to_owned);
    assert_eq!(said.len(), 5);
    assert_eq!(kinds[0], Some(&[zero.clone(), tag.clone()][..]));
    assert_eq!(kinds[1], Some(&[zero, x25519.clone()][..]));
    assert_eq!(kinds[2], Some(&[one.clone(), tag][..]));
    assert_eq!(kinds[3], Some(&[one, x25519][..]));
    assert_eq!(line(&said[4]), "done");
}

#[test]
fn a_native_recipient_that_an_older_age_takes_for_a_plugins_is_one() {
    let heard = [
        said("add-recipient", &[&native_text(&p256()).unwrap()], &[]),
        said("wrap-file-key", &[], &FILE_KEY),
        said("done", &[], &[]),
        oks(1),
    ];
    let (talked, said) = encrypt(&heard.concat());
    talked.unwrap();
    assert_eq!((said[0].tag.as_str(), said.len()), ("recipient-stanza", 2));
}

#[test]
fn with_one_bad_recipient_or_identity_nothing_is_wrapped() {
    let heard = [
        said("add-recipient", &[&recipient_text(&p256()).unwrap()], &[]),
        said("add-recipient", &["age1claviger1qqqq"], &[]),
        said("add-identity", &[ANY], &[]),
        said("wrap-file-key", &[], &FILE_KEY),
        said("wrap-file-key", &[], &[1; 15]),
        said("done", &[], &[]),
        oks(3),
    ];
    let (talked, said) = encrypt(&heard.concat());
    talked.unwrap();
    let said = lines(&said);
    assert!(
        said[0].starts_with("error recipient 1: not a recipient"),
        "{said:?}"
    );
    assert!(
        said[1].starts_with("error identity 0: nothing is encrypted"),
        "{said:?}"
    );
    assert_eq!(
        said[2..],
        ["error internal: a file key has 16 bytes", "done"]
    );
}

/// What an age program says that decrypts a file with a grease stanza and one of each native kind.
fn decrypts() -> Vec<u8> {
    let unknown = Stanza {
        tag: "grease".into(),
        args: vec!["a".into()],
        body: vec![1; 64],
    };
    [
        said("add-identity", &[&common::identity(&p256(), "alice")], &[]),
        grease(),
        handed("0", &unknown),
        handed("0", &wrapped(&x25519())),
        handed("0", &wrapped(&p256())),
        said("done", &[], &[]),
    ]
    .concat()
}

#[test]
fn a_file_key_is_given_once_and_what_is_unknown_is_ignored() {
    let asked = Cell::new(0);
    let heard = [decrypts(), oks(1)].concat();
    let (talked, said) = decrypt(&heard, |_, _| {
        asked.set(asked.get() + 1);
        Ok(())
    });
    talked.unwrap();
    assert_eq!(asked.get(), 1);
    assert_eq!(said[0].body, FILE_KEY);
    assert_eq!((line(&said[1]), said.len()), ("done".into(), 2));
    assert_eq!(
        (said[0].tag.as_str(), &said[0].args[..]),
        ("file-key", &["0".to_owned()][..])
    );
}

#[test]
fn messages_and_questions_go_to_the_user_of_the_age_program() {
    let heard = [
        decrypts(),
        said("fail", &[], &[]),
        said("ok", &[], b"123456"),
        said("ok", &["yes"], &[]),
        said("unsupported", &[], &[]),
        oks(1),
    ];
    let (talked, said) = decrypt(&heard.concat(), |_, person| {
        person.tell("Touch\u{1b} it");
        assert_eq!(
            person.secret("Enter the PIN").unwrap().as_slice(),
            b"123456"
        );
        assert_eq!(person.confirm("Attach it", "Go on", "Skip"), Some(true));
        assert_eq!(person.confirm("Attach it", "Go on", "Skip"), None);
        Ok(())
    });
    talked.unwrap();
    assert_eq!(
        lines(&said)[..4],
        [
            "msg: Touch\u{fffd} it",
            "request-secret: Enter the PIN",
            // Base64 of the two.
            "confirm R28gb24 U2tpcA: Attach it",
            "confirm R28gb24 U2tpcA: Attach it",
        ]
    );
}

#[test]
fn without_a_terminal_there_is_no_pin_and_the_plugin_goes_on() {
    let heard = [decrypts(), said("fail", &[], &[]), oks(1)];
    let (talked, said) = decrypt(&heard.concat(), |_, person| {
        assert!(person.secret("Enter the PIN").is_none());
        Err(NotOpened::Failed("it is locked".into()))
    });
    talked.unwrap();
    assert_eq!(
        lines(&said)[1..],
        ["error identity 0: it is locked", "done"]
    );
}

#[test]
fn a_stanza_that_lies_about_its_lengths_is_told_and_its_file_is_not_opened() {
    let good = wrapped(&p256());
    let altered = |alter: fn(&mut Stanza)| {
        let mut stanza = wrapped(&p256());
        alter(&mut stanza);
        stanza
    };
    for bad in [
        altered(|stanza| stanza.body.truncate(31)),
        altered(|stanza| stanza.body.push(0)),
        altered(|stanza| drop(stanza.args.pop())),
        altered(|stanza| stanza.args.push("more".into())),
        altered(|stanza| stanza.args[0] = "AAAA".into()),
        altered(|stanza| stanza.args[1] = "BA".into()),
    ] {
        let heard = [
            said("add-identity", &[&common::identity(&p256(), "alice")], &[]),
            handed("0", &good),
            handed("0", &bad),
            handed("7", &good),
            said("done", &[], &[]),
            oks(2),
        ];
        let (talked, said) = decrypt(&heard.concat(), |_, _| Ok(()));
        talked.unwrap();
        let said = lines(&said);
        assert_eq!(
            said[0], "error stanza 0 1: the stanza is malformed",
            "{bad:?}"
        );
        assert!(said[1].starts_with("file-key 7"), "{said:?}");
    }
}

#[test]
fn with_an_unknown_identity_nothing_is_opened() {
    let heard = [
        said("add-identity", &["AGE-PLUGIN-YUBIKEY-1QQQQ"], &[]),
        decrypts(),
        oks(1),
    ];
    let (talked, said) = decrypt(&heard.concat(), |_, _| panic!("it was opened"));
    talked.unwrap();
    let said = lines(&said);
    assert!(
        said[0].starts_with("error identity 0: not an identity"),
        "{said:?}"
    );
    assert_eq!(said[1..], ["done"]);
}

#[test]
fn files_out_of_order_and_commands_without_their_words_are_an_error() {
    let stanza = wrapped(&p256());
    for bad in [
        [handed("1", &stanza), handed("0", &stanza)].concat(),
        handed("-1", &stanza),
        handed("99999999999999999999", &stanza),
        said("recipient-stanza", &["0"], &[]),
        said("add-identity", &[], &[]),
    ] {
        let heard = [bad, said("done", &[], &[]), oks(1)].concat();
        let (talked, said) = decrypt(&heard, |_, _| panic!("it was opened"));
        talked.unwrap();
        assert_eq!((said[0].args[0].as_str(), said.len()), ("internal", 2));
    }
}

#[test]
fn what_is_told_of_an_identity_is_told_once() {
    let stanza = wrapped(&p256());
    let heard = [
        said("add-identity", &[&common::identity(&p256(), "alice")], &[]),
        handed("0", &stanza),
        handed("1", &stanza),
        handed("2", &stanza),
        said("done", &[], &[]),
        oks(2),
    ];
    let count = Cell::new(0);
    let (talked, said) = decrypt(&heard.concat(), |_, _| {
        count.set(count.get() + 1);
        Err(match count.get() {
            2 => NotOpened::Invalid,
            _ => NotOpened::Failed("no daemon listens".into()),
        })
    });
    talked.unwrap();
    let told = "error stanza 1 0: the stanza names the key, and the key does not open it";
    assert_eq!(
        lines(&said),
        ["error identity 0: no daemon listens", told, "done"]
    );
}

#[test]
fn a_program_that_breaks_off_at_any_byte_ends_both_machines() {
    let decrypts = [decrypts(), said("fail", &[], &[]), oks(1)].concat();
    for end in 0..decrypts.len() {
        let (talked, said) = decrypt(&decrypts[..end], |_, person| {
            person.secret("Enter the PIN");
            Ok(())
        });
        assert!(matches!(talked, Err(Broken::Ended)), "{end}: {talked:?}");
        assert!(said.iter().all(|one| one.tag != "done"), "{end}");
    }
    let encrypts = encrypts();
    for end in 0..encrypts.len() {
        let (talked, said) = encrypt(&encrypts[..end]);
        assert!(matches!(talked, Err(Broken::Ended)), "{end}: {talked:?}");
        assert!(said.iter().all(|one| one.tag != "done"), "{end}");
    }
}

#[test]
fn what_is_no_stanza_is_too_long_or_no_answer_breaks_the_conversation() {
    let no_end = [&b"-> add-identity "[..], &[b'a'; 2 << 20]].concat();
    let full_lines = [
        &b"-> x\n"[..],
        &[&[b'A'; 64][..], b"\n"].concat().repeat(40_000),
    ]
    .concat();
    let long_line = [&b"-> x\n"[..], &[b'A'; 65], b"\n\n"].concat();
    let answer = [decrypts(), said("okay", &[], &[])].concat();
    for (bad, why) in [
        (&b"hello\n\n"[..], "no stanza"),
        (b"->\n\n", "no stanza"),
        (b"-> x\nA\n", "malformed"),
        (b"-> x\nA===\n", "malformed"),
        (b"-> \xff\n\n", "malformed"),
        (&no_end, "too much"),
        (&full_lines, "too much"),
        (&long_line, "too long"),
        (&answer, "unknown answer"),
    ] {
        let (talked, _) = decrypt(bad, |_, _| Ok(()));
        let error = talked.unwrap_err();
        assert!(matches!(error, Broken::Protocol(_)), "{error:?}");
        assert!(error.to_string().contains(why), "{why}: {error}");
    }
}

/// Runs the program with these words and this input: its exit status, and what it says to people.
fn program(words: &[&str], input: &[u8]) -> (Option<i32>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_age-plugin-claviger"))
        .args(words)
        .env("CLAVIGER_DAEMON", "/nowhere/api.sock")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have ended already.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

#[test]
fn the_program_fails_where_it_is_broken_off_and_refuses_unknown_machines() {
    let decrypts = decrypts();
    for (machine, input) in [("recipient-v1", &b""[..]), ("identity-v1", &decrypts)] {
        let (status, said) = program(&[&format!("--age-plugin={machine}")], input);
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains("ended the conversation early"), "{said}");
    }
    for words in [&["--age-plugin=identity-v2"][..], &[], &["decrypt"]] {
        let (status, said) = program(words, b"");
        assert_eq!((status, said.lines().count()), (Some(2), 1), "{said}");
    }
    for words in ["--help", "--version"] {
        assert_eq!(program(&[words], b""), (Some(0), String::new()));
    }
}
