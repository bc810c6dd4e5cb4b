//! What the crates below the command say: nothing of them knows its options, its commands, or
//! which drivers there are. Only `cli/src/hints.rs` gives advice.
#![allow(clippy::unwrap_used, reason = "a test that cannot read a source fails")]

use std::fs;
use std::path::{Path, PathBuf};

use claviger_ledger::LedgerDriver;
use claviger_piv::PivDriver;
use claviger_pkcs11::Pkcs11Driver;
use proc_macro2::{Delimiter, Literal, TokenStream, TokenTree};

/// A text in a source, and its line.
type Text = (usize, String);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The Rust files of a crate, without its tests.
fn sources(krate: &str) -> Vec<PathBuf> {
    let mut folders = vec![root().join(krate).join("src")];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.ends_with("tests.rs") => {}
                false if path.extension().is_some_and(|end| end == "rs") => sources.push(path),
                false => {}
            }
        }
    }
    assert!(!sources.is_empty(), "{krate}");
    sources
}

/// The strings of a source that a person may read: those in attributes, too, but neither
/// comments nor what is for tests only.
fn texts(source: &str) -> Vec<Text> {
    let mut texts = Vec::new();
    collect(source.parse().unwrap(), &mut texts);
    texts
}

fn collect(tokens: TokenStream, texts: &mut Vec<Text>) {
    let mut for_tests = false;
    for token in tokens {
        match token {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket => {
                let words = group.stream().to_string();
                if words.starts_with("cfg") && words.contains("test") {
                    for_tests = true;
                } else if !words.starts_with("doc ") {
                    collect(group.stream(), texts);
                }
            }
            TokenTree::Group(group) => {
                if !for_tests {
                    collect(group.stream(), texts);
                }
                // The body ends the item.
                for_tests &= group.delimiter() != Delimiter::Brace;
            }
            TokenTree::Punct(mark) if mark.as_char() == ';' => for_tests = false,
            TokenTree::Literal(literal) if !for_tests => texts.extend(text(&literal)),
            _ => {}
        }
    }
}

fn text(literal: &Literal) -> Option<Text> {
    let text = literal.to_string();
    // Bytes are of formats, and nobody reads them.
    let is_text = text.starts_with(['"', 'r']) && text.contains('"');
    is_text.then(|| (literal.span().start().line, text))
}

/// Whether a text names an option: two dashes and a letter.
fn names_an_option(text: &str) -> bool {
    text.match_indices("--").any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let behind = text[at + 2..].chars().next();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '-')
            && behind.is_some_and(|c| c.is_ascii_lowercase())
    })
}

/// Whether a text names a command: `claviger`, a blank and a letter.
fn names_a_command(text: &str) -> bool {
    text.match_indices("claviger ").any(|(at, name)| {
        let behind = text[at + name.len()..].chars().next();
        behind.is_some_and(|c| c.is_ascii_lowercase())
    })
}

/// The texts of these crates that `is_bad` finds, with where they are.
fn found(crates: &[&str], is_bad: impl Fn(&str) -> bool) -> Vec<String> {
    let sources = crates.iter().flat_map(|krate| sources(krate));
    sources
        .flat_map(|path| {
            let texts = texts(&fs::read_to_string(&path).unwrap());
            let bad = texts.into_iter().filter(|(_, text)| is_bad(text));
            let named = bad.map(|(line, text)| format!("{}:{line}: {text}", path.display()));
            named.collect::<Vec<_>>()
        })
        .collect()
}

/// Those that know no driver.
const ABOVE_DRIVERS: [&str; 3] = ["drivers/token", "formats", "engine"];

const DRIVERS: [&str; 6] = [
    "drivers/conformance",
    "drivers/memory",
    "drivers/pkcs11",
    "drivers/pkcs11-once",
    "drivers/piv",
    "drivers/ledger",
];

#[test]
fn no_crate_below_the_command_names_an_option_or_a_command_of_it() {
    let below = [&ABOVE_DRIVERS[..], &DRIVERS].concat();
    let found = found(&below, |text| {
        names_an_option(text) || names_a_command(text)
    });
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn no_crate_that_serves_every_driver_names_one() {
    let about = [Pkcs11Driver::ABOUT, PivDriver::ABOUT, LedgerDriver::ABOUT];
    let schemes = about.map(|about| format!("{}:", about.scheme));
    let found = found(&ABOVE_DRIVERS, |text| {
        schemes.iter().any(|scheme| text.contains(scheme))
    });
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_search_finds_texts_in_code_and_attributes_and_leaves_comments_and_tests_alone() {
    let source = r##"
        //! `claviger tokens --watch`
        /// Say --yes.
        #[error("run `claviger doctor`")]
        struct A;
        fn a() -> &'static str { "add --last-try" }
        const B: &str = r#"--json"#;
        const DOMAIN: &[u8] = b"claviger reads-for grant";
        // "--comment"
        #[cfg(test)]
        mod tests { fn t() { assert_eq!(a(), "--in-a-test"); } }
        fn c() { say("--behind"); }
    "##;
    let bad: Vec<Text> = texts(source)
        .into_iter()
        .filter(|(_, text)| names_an_option(text) || names_a_command(text))
        .collect();
    let lines: Vec<usize> = bad.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [4, 6, 7, 12], "{bad:?}");
    for text in [
        "a -- b",
        "1--x",
        "claviger-unfinished-",
        "---",
        "of Claviger is",
    ] {
        assert!(!names_an_option(text) && !names_a_command(text), "{text}");
    }
}
