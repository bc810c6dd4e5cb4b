//! Help, completions and man pages: each command shows the options that it can use.
#![allow(
    clippy::unwrap_used,
    reason = "a program that cannot be run is a test that fails"
)]

use std::fs;
use std::process::{Command, Output};

/// Those of commands that log in to a token, but for the last, which `tokens` has, too.
const OF_TOKENS: [&str; 8] = [
    "--pin-source",
    "--pin-verbatim",
    "--management-key",
    "--factory-defaults",
    "--last-try",
    "--any-pin-length",
    "--no-pin-ledger",
    "--timeout",
];

const LOG_IN: [&str; 11] = [
    "unlock",
    "generate",
    "connect",
    "delete",
    "sign",
    "decrypt",
    "doctor",
    "reads-for grant",
    "reads-for revoke",
    "certificate request",
    "certificate self-signed",
];

const NEED_NO_TOKEN: [&str; 36] = [
    "agent-env",
    "ssh-key",
    "allowed-signers",
    "serve",
    "status",
    "lock",
    "grant",
    "grant add",
    "grant list",
    "grant remove",
    "audit",
    "audit verify",
    "identities",
    "show",
    "age-identity",
    "verify",
    "encrypt",
    "contact",
    "contact add",
    "contact list",
    "contact rename",
    "contact remove",
    "reads-for",
    "reads-for list",
    "reads-for check",
    "reads-for export",
    "reads-for import",
    "certificate",
    "certificate import",
    "certificate show",
    "backup",
    "restore",
    "config",
    "config show",
    "completions",
    "man-pages",
];

/// Runs the command in a folder where there is no home and no configuration.
fn claviger(words: &str) -> Output {
    let nowhere = std::env::temp_dir().join("claviger-no-such-home");
    Command::new(env!("CARGO_BIN_EXE_claviger"))
        .args(words.split_whitespace())
        .env("CLAVIGER_HOME", nowhere)
        .env("CLAVIGER_CONFIG", "")
        .env("CLAVIGER_DAEMON", "")
        .output()
        .unwrap()
}

fn help(command: &str) -> String {
    let output = claviger(&format!("{command} --help"));
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The options of tokens that a text names as options of its command: with a blank before.
fn options_in(help: &str) -> Vec<&'static str> {
    let is_listed = |option: &&str| {
        help.lines()
            .any(|line| line.trim_start().split([' ', '=']).next() == Some(option))
    };
    OF_TOKENS.into_iter().filter(is_listed).collect()
}

#[test]
fn each_command_shows_only_options_that_it_can_use() {
    for command in LOG_IN {
        assert_eq!(options_in(&help(command)), OF_TOKENS, "{command}");
    }
    assert_eq!(options_in(&help("tokens")), ["--timeout"]);
    for command in NEED_NO_TOKEN {
        let help = help(command);
        assert_eq!(options_in(&help), [""; 0], "{command}");
        assert!(
            help.contains("--home") && help.contains("--json"),
            "{command}"
        );
    }
}

#[test]
fn every_command_is_one_of_those_that_are_looked_at() {
    let help = help("");
    let listed = help.split("Commands:\n").nth(1).unwrap();
    let listed = listed.lines().take_while(|line| !line.is_empty());
    let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let mut seen = 0;
    for name in names.filter_map(|line| line.split_whitespace().next()) {
        let is_known = ["tokens", "help"].contains(&name)
            || LOG_IN.contains(&name)
            || NEED_NO_TOKEN.contains(&name);
        assert!(is_known, "{name}");
        seen += 1;
    }
    assert!(seen >= 16, "{seen}");
}

#[test]
fn an_option_that_a_command_cannot_use_is_refused_without_what_may_be_a_pin() {
    for words in [
        "contact list --pin-source tr0mb0ne",
        "contact list --pin-source=tr0mb0ne",
        "--json verify a --signature s --pin-source=tr0mb0ne",
    ] {
        let output = claviger(words);
        assert_eq!(output.status.code(), Some(2), "{words}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("--pin-source"), "{said}");
        assert!(!said.contains("tr0mb0ne"), "{said}");
    }
}

#[test]
fn before_a_command_that_cannot_use_it_an_option_is_taken() {
    let output = claviger("--json --pin-source env:PIN --last-try --timeout 5 config show");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn help_lists_the_backends_of_the_drivers_and_a_malformed_one_is_answered_with_its_syntax() {
    let help = help("tokens");
    for scheme in ["pkcs11:", "piv:", "ledger:"] {
        assert!(help.contains(&format!("\n  {scheme}")), "{help}");
        let output = claviger(&format!("tokens --backend {scheme}nonsense"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let syntax = format!("hint: write it as {scheme}[");
        assert!(said.contains(&syntax), "{said}");
        let syntax = said.split("hint: write it as ").nth(1).unwrap();
        assert!(help.contains(syntax.trim()), "{syntax}");
    }
    let output = claviger("tokens --backend nfc:");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("begin the backend with ledger:, piv: or pkcs11:"),
        "{said}"
    );
}

#[test]
fn completions_and_man_pages_have_the_same_options_as_help() {
    let script = claviger("completions bash").stdout;
    let script = String::from_utf8(script).unwrap();
    let options_of = |command: &str| {
        let part = script
            .split(&format!("claviger__subcmd__{command})\n"))
            .nth(1);
        let part = part.unwrap_or_else(|| panic!("{command} is not in:\n{script}"));
        part.lines().next().unwrap().to_owned()
    };
    assert!(options_of("sign").contains("--pin-source"));
    assert!(!options_of("identities").contains("--pin-source"));
    assert!(!options_of("contact__subcmd__list").contains("--timeout"));
    let folder = tempfile::tempdir().unwrap();
    let output = claviger(&format!("man-pages {}", folder.path().display()));
    assert!(output.status.success(), "{output:?}");
    let page = |name: &str| {
        let path = folder.path().join(name);
        let text = fs::read_to_string(&path).unwrap();
        text.replace("\\-", "-")
    };
    assert!(page("claviger-sign.1").contains("--pin-source"));
    assert!(page("claviger-reads-for-grant.1").contains("--last-try"));
    assert!(!page("claviger-contact-list.1").contains("--pin-source"));
    assert!(!page("claviger-reads-for-list.1").contains("--timeout"));
}
