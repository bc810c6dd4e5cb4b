//! The documents name what there is: files, sections and tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::process;

/// Every document of the repository.
fn documents() -> Vec<PathBuf> {
    let mut documents = Vec::new();
    let mut folders = vec![process::workspace()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy();
            if name.starts_with('.') || name == "target" || name == "artifacts" {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".md") {
                documents.push(path);
            }
        }
    }
    documents
}

/// The text without what stands in blocks of code.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// Where the links of a text lead.
fn links(text: &str) -> Vec<String> {
    let targets = text.split("](").skip(1);
    let targets = targets.filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()));
    targets.filter(|target| !target.contains("://")).collect()
}

/// The names by which a site shows the sections of a document.
fn anchors(text: &str) -> BTreeSet<String> {
    let titles = prose(text);
    let titles = titles.lines().filter(|line| line.starts_with('#'));
    titles
        .map(|title| {
            let title = title.trim_start_matches('#').trim().to_lowercase();
            let kept = title
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn each_link_in_the_documents_leads_somewhere() {
    let mut seen = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for link in links(&prose(&text)) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => document.clone(),
                file => document.parent().unwrap().join(file),
            };
            let place = format!("{}: {link}", document.display());
            assert!(target.exists(), "{place}");
            if !anchor.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                assert!(anchors(&text).contains(anchor), "{place}");
            }
            seen += 1;
        }
    }
    assert!(seen > 60, "{seen}");
}

#[test]
fn each_test_that_a_guide_names_is_there() {
    let root = process::workspace();
    let sources = crate::tests::sources(&root);
    let mut named = 0;
    let is_guide = |path: &PathBuf| path.starts_with(root.join("docs")) || is_page(&root, path);
    for document in documents().iter().filter(|path| is_guide(path)) {
        let text = prose(&fs::read_to_string(document).unwrap());
        for name in text.split('`').skip(1).step_by(2) {
            // Alone, or behind the command that runs it. Names of figures are shorter.
            let name = name.rsplit(' ').next().unwrap();
            let is_name = name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            if is_name && name.matches('_').count() > 3 {
                assert!(
                    sources.contains(&format!("fn {name}(")),
                    "{}: {name}",
                    document.display()
                );
                named += 1;
            }
        }
    }
    assert!(named > 8, "{named}");
}

fn is_page(root: &Path, path: &Path) -> bool {
    ["README.md", "ARCHITECTURE.md"]
        .iter()
        .any(|name| path == root.join(name))
}
