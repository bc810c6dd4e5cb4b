//! The commands in the documents are commands that there are.
#![allow(
    clippy::unwrap_used,
    reason = "a document that cannot be read is a test that fails"
)]

use std::fs;
use std::path::Path;

use clap::Parser;

use crate::args::Args;

/// The words of a line as a shell has them: quotes of one kind, and comments.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            '|' | '>' if !quoted => break,
            '#' if !quoted && words.last().unwrap().is_empty() => break,
            c => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The lines of the shell blocks that call the command, those in comments included.
fn commands(text: &str) -> impl Iterator<Item = &str> {
    let blocks = text.split("```sh\n").skip(1);
    let lines = blocks.flat_map(|block| block.split("```").next().unwrap().lines());
    lines
        .map(|line| line.trim_start_matches(['#', ' ']))
        .filter(|line| line.starts_with("claviger "))
}

#[test]
fn each_command_in_the_documents_is_one_that_there_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut documents = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
    let folder = fs::read_dir(root.join("docs")).unwrap();
    let paths = folder.map(|entry| entry.unwrap().path());
    documents.extend(paths.filter(|path| path.is_file()));
    let mut seen = 0;
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for line in commands(&text) {
            let parsed = Args::try_parse_from(words(line));
            let error = parsed.err().map(|error| error.to_string());
            assert_eq!(error, None, "{}: {line}", document.display());
            seen += 1;
        }
    }
    assert!(seen > 40, "{seen}");
}

#[test]
fn a_comment_and_a_pipe_are_no_words_of_the_command() {
    let line = "claviger show 'a b' --json | jq x    # shows";
    assert_eq!(words(line), ["claviger", "show", "a b", "--json"]);
    assert_eq!(
        words("claviger config show # all"),
        ["claviger", "config", "show"]
    );
}
