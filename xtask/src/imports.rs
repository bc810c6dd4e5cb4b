//! Which modules of a crate import which, and where that goes round in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::process;

/// Modules of a crate, each with those that it imports.
type Imports = BTreeMap<String, BTreeSet<String>>;

/// The code of a file: no comments, no tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let lines = text.lines().map(str::trim_start);
    let lines = lines.filter(|line| !line.starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The modules after `crate::` in a code.
fn imported(code: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let group = rest
            .strip_prefix('{')
            .and_then(|rest| rest.split('}').next());
        let mut paths = group.unwrap_or(rest).split(',');
        // Without a group the first path is the only one.
        let paths = paths
            .by_ref()
            .take(if group.is_some() { usize::MAX } else { 1 });
        for path in paths {
            let path = path.trim_start();
            found.insert(path[..path.find(|c| !is_name(c)).unwrap_or(path.len())].to_owned());
        }
    }
    found
}

fn read(folder: &Path, module: Option<&str>, imports: &mut Imports) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let module = module.unwrap_or(&name);
        if path.is_dir() {
            read(&path, Some(module), imports);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let code = code(&fs::read_to_string(&path).unwrap());
            imports
                .entry(module.to_owned())
                .or_default()
                .extend(imported(&code));
        }
    }
}

/// All that a module reaches.
fn reached<'a>(from: &str, imports: &'a Imports) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut next = vec![from];
    while let Some(module) = next.pop() {
        for import in imports.get(module).into_iter().flatten() {
            if imports.contains_key(import) && import != module && reached.insert(&**import) {
                next.push(import);
            }
        }
    }
    reached
}

/// The modules of a crate that reach themselves.
fn in_circles(source: &Path) -> BTreeSet<String> {
    let mut imports = Imports::new();
    read(source, None, &mut imports);
    // The root names what it makes public.
    imports.remove("lib");
    imports.remove("main");
    assert!(!imports.is_empty(), "{}", source.display());
    let circle = |module: &&String| reached(module, &imports).contains(&***module);
    imports.keys().filter(circle).cloned().collect()
}

#[test]
fn the_modules_of_a_crate_import_one_way() {
    for package in [
        "drivers/token",
        "drivers/conformance",
        "drivers/memory",
        "drivers/attached",
        "drivers/pkcs11",
        "drivers/pkcs11-once",
        "drivers/piv",
        "drivers/ledger",
        "formats",
        "engine",
        "client",
        "service",
        "cli",
        "hil",
    ] {
        let found = in_circles(&process::workspace().join(package).join("src"));
        assert!(found.is_empty(), "{package}: {found:?}");
    }
}

#[test]
fn what_a_module_imports_is_seen_alone_and_in_groups() {
    let text = "use crate::one::{A, B};\nuse crate::{two::C, three};\n// crate::four\n\
                fn f() { crate::five::g() }\n#[cfg(test)]\nmod tests { use crate::six; }";
    assert_eq!(
        imported(&code(text)),
        ["five", "one", "three", "two"].map(String::from).into()
    );
}
