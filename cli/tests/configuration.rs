//! The file of defaults, and what is made from the command's own definition.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use common::{Outcome, Stage};
use serde_json::Value;

/// Writes the file where the command looks for it.
fn configure(stage: &Stage, text: &str) {
    fs::create_dir_all(stage.path("config/claviger")).unwrap();
    stage.write("config/claviger/config.toml", text);
}

/// A file with a PIN source, a short name for the token and other defaults.
fn configured() -> Stage {
    let stage = Stage::new();
    let text = format!(
        "pin-source = 'file:{}'\nparams = 'ed25519'\nformat = 'sshsig'\n[backends]\nbench = '{}'\n",
        stage.path("pin").display(),
        stage.token.backend(),
    );
    configure(&stage, &text);
    stage.write("letter", "Meet me\n");
    stage
}

fn setting<'a>(shown: &'a Value, name: &str) -> (Option<&'a str>, &'a str) {
    let settings = shown["settings"].as_array().unwrap();
    let it = settings.iter().find(|s| s["name"] == name).unwrap();
    (it["value"].as_str(), it["from"].as_str().unwrap())
}

#[test]
fn the_file_says_what_the_command_line_leaves_open() {
    let stage = configured();
    let words = [
        "generate",
        "alice",
        "--backend",
        "bench",
        "--capabilities",
        "commit",
    ];
    stage.run(words).succeeds();
    let alice = stage.json(&["show", "alice"]);
    assert_eq!(alice["keys"][0]["algorithm"], "ed25519");
    let signature = stage.run(["sign", "alice", "letter"]).succeeds().out();
    assert!(signature.starts_with("-----BEGIN SSH SIGNATURE-----"));
    let tokens = stage.json(&["tokens", "--backend", "bench"]);
    assert_eq!(tokens[0]["label"], stage.token.label());
}

#[test]
fn the_command_line_and_the_environment_win() {
    let stage = configured();
    let words = [
        "generate",
        "alice",
        "--backend",
        "bench",
        "--params",
        "p256",
    ];
    stage.run(words).succeeds();
    let alice = stage.json(&["show", "alice"]);
    assert_eq!(alice["keys"][0]["algorithm"], "p256");
    let raw = stage.run(["sign", "alice", "letter", "--format", "raw"]);
    assert_eq!(raw.succeeds().bytes().len(), 64);
    // The file's PIN is right, and this source has none.
    let source = ["--pin-source", "env:NOT_SET", "sign", "alice", "letter"];
    stage.run(source).fails(1, "NOT_SET");
    // The home of the environment, and not the file's.
    configure(&stage, "home = '/nonexistent'\n");
    assert_eq!(stage.names(), ["alice"]);
    let mut elsewhere = stage.claviger(["identities"]);
    elsewhere.env_remove("CLAVIGER_HOME");
    Outcome::of(&mut elsewhere).fails(1, "no registry in `/nonexistent`");
}

#[test]
fn what_is_set_is_shown_with_where_it_comes_from() {
    let stage = configured();
    let shown = stage.json(&["config", "show"]);
    let file = stage.path("config/claviger/config.toml");
    assert_eq!(setting(&shown, "file"), (file.to_str(), "read"));
    let home = stage.home();
    assert_eq!(setting(&shown, "home"), (home.to_str(), "CLAVIGER_HOME"));
    assert_eq!(setting(&shown, "params"), (Some("ed25519"), "file"));
    assert_eq!(setting(&shown, "management-key"), (None, "default"));
    let backend = stage.token.backend();
    assert_eq!(setting(&shown, "backends.bench"), (Some(&*backend), "file"));
    let shown = stage.json(&["--home", "/h", "--pin-source", "prompt", "config", "show"]);
    assert_eq!(setting(&shown, "home"), (Some("/h"), "--home"));
    assert_eq!(
        setting(&shown, "pin-source"),
        (Some("prompt"), "--pin-source")
    );
    // Without a file, and for people.
    let mut without = stage.claviger(["config", "show"]);
    let without = Outcome::of(without.env("CLAVIGER_CONFIG", "")).succeeds();
    assert!(
        without.out().contains("params          p256"),
        "{}",
        without.out()
    );
}

#[test]
fn a_file_that_others_can_write_or_that_makes_no_sense_stops_every_command() {
    let stage = configured();
    let file = stage.path("config/claviger/config.toml");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o620)).unwrap();
    let open = stage.run(["--json", "identities"]);
    assert_eq!(open.code(), Some(1));
    let error: Value = serde_json::from_str(&open.err()).unwrap();
    assert_eq!(error["error"]["code"], "bad-config");
    let hint = error["error"]["hint"].as_str().unwrap();
    assert!(
        hint.ends_with(&format!("chmod go-w {}", file.display())),
        "{hint}"
    );
    configure(&stage, "[backend]\n");
    stage
        .run(["identities"])
        .fails(1, "`backend` is no setting");
    configure(&stage, &"#".repeat(65 * 1024));
    stage.run(["tokens"]).fails(1, "longer than 65536 bytes");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    stage.run(["tokens"]).fails(1, "it is no file");
    // Where a shell starts nothing is read.
    stage.run(["completions", "bash"]).succeeds();
}

#[test]
fn a_shell_completes_the_commands_words() {
    let stage = Stage::new();
    let script = stage.run(["completions", "bash"]).succeeds();
    stage.write("completions", script.bytes());
    for (words, completed) in [
        (&["dec"][..], "decrypt"),
        (&["contact", "li"], "list"),
        (&["contact", "help", "li"], "list"),
        (&["help", "dec"], "decrypt"),
        (&["help", "contact", "li"], "list"),
        (&["help", "reads-for", "gr"], "grant"),
        (&["help", "config", "sh"], "show"),
        (&["help", "contact", "list", ""], ""),
    ] {
        let words = [&["claviger"][..], words].concat();
        let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let [.., before, last] = &words[..] else {
            unreachable!("{words:?}");
        };
        let line = format!(
            "source ./completions; COMP_WORDS=({}); COMP_CWORD={}; \
             _claviger claviger '{last}' '{before}'; echo \"${{COMPREPLY[@]}}\"",
            quoted.join(" "),
            words.len() - 1,
        );
        let mut bash = Command::new("bash");
        let bash = Outcome::of(bash.args(["-c", &line]).current_dir(stage.folder()));
        assert_eq!(bash.succeeds().out(), format!("{completed}\n"), "{words:?}");
    }
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let script = stage.run(["completions", shell]).succeeds();
        assert!(script.out().contains("decrypt"), "{shell}");
    }
}

#[test]
fn every_command_has_a_man_page() {
    let stage = Stage::new();
    fs::create_dir(stage.path("man")).unwrap();
    stage.run(["man-pages", "man"]).succeeds();
    let page = String::from_utf8(stage.read("man/claviger-sign.1")).unwrap();
    assert!(page.contains(".TH claviger-sign 1"), "{page}");
    for name in [
        "claviger.1",
        "claviger-reads-for-grant.1",
        "claviger-doctor.1",
    ] {
        assert!(stage.path(&format!("man/{name}")).is_file(), "{name}");
    }
    stage.run(["man-pages", "nowhere"]).fails(1, "nowhere");
}
