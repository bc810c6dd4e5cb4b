//! A new driver is added by the files that CONTRIBUTING.md lists, and by no others.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use claviger_conformance::{CHECKS, Outcome, Subject};
use claviger_engine::message::{RequestDeleteIdentity, RequestGenerateIdentity};
use claviger_engine::{Backend, Capabilities, EngineId, IdParams, Node, Registry};
use claviger_fifth_driver::FifthDriver;
use claviger_token::{Access, Call, Driver, Protection};

// --- one subject -------------------------------------------------------------------

struct Fifth(Arc<FifthDriver>);

impl Subject for Fifth {
    fn driver(&self) -> Arc<dyn Driver> {
        self.0.clone()
    }

    fn backend(&self) -> String {
        "fifth:".into()
    }

    fn access(&self) -> Access {
        Access::without_pin()
    }

    fn absent_backend(&self) -> Result<String, &'static str> {
        Ok("fifth:serial=0".into())
    }

    fn protection(&self) -> Protection {
        Protection::NONE
    }
}

#[test]
fn one_subject_brings_a_new_driver_every_check_of_the_suite() {
    let subject = Fifth(Arc::new(FifthDriver::new()));
    let (mut passed, mut skipped) = (0, 0);
    for check in CHECKS {
        match check.run(&subject) {
            Outcome::Passed => passed += 1,
            Outcome::Skipped(why) => {
                assert!(!why.is_empty(), "{}", check.name);
                skipped += 1;
            }
        }
    }
    assert_eq!(passed + skipped, CHECKS.len());
    assert!(passed >= 18, "{passed} passed, {skipped} skipped");
}

// --- one line ----------------------------------------------------------------------

#[test]
fn one_line_lets_a_node_list_and_use_a_new_driver() {
    let builder = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = builder.unwrap();
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(FifthDriver::new())
        .build();
    let call = Call::unlimited();
    let found = runtime
        .block_on(node.tokens(&EngineId::program(), None, &call))
        .unwrap();
    assert_eq!(found.len(), 1);
    let token = &found[0].0;
    assert_eq!(token.id.kind, "fifth");

    let alice = EngineId::local("alice");
    let backend = Backend::from(token.backend.clone());
    let request = RequestGenerateIdentity {
        backend: backend.clone(),
        params: IdParams::P256,
        capabilities: Capabilities::CommitAndDecrypt,
    };
    let made = runtime
        .block_on(node.generate(&alice, request, &call))
        .unwrap();
    assert!(made.commitment_engine.is_some() && made.decryption_engine.is_some());
    let request = RequestDeleteIdentity {
        external_identity: alice.clone(),
        backend,
    };
    runtime
        .block_on(node.delete(&alice, request, &call))
        .unwrap();
}

// --- no other file -----------------------------------------------------------------

/// The folder of the repository.
fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).unwrap().to_owned()
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// The files in `folder` with one of the extensions, as paths from the root.
fn files(folder: &str, extensions: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(folder)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = match folder {
            "" => name.clone(),
            _ => format!("{folder}/{name}"),
        };
        if entry.file_type().unwrap().is_dir() {
            if name != "target" && !name.starts_with('.') {
                found.extend(files(&path, extensions));
            }
        } else if extensions.iter().any(|extension| name.ends_with(extension)) {
            found.push(path);
        }
    }
    found
}

/// The first column of the table under the heading "A new driver" of CONTRIBUTING.md.
fn listed() -> Vec<String> {
    let text = read("CONTRIBUTING.md");
    let (_, section) = text.split_once("\n## A new driver\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| row.split('`').nth(1).unwrap().to_owned())
        .collect()
}

/// The drivers that the command has.
fn drivers() -> Vec<String> {
    let manifest = read("cli/Cargo.toml");
    let default = manifest
        .lines()
        .find(|line| line.starts_with("default = ["));
    let names = default.unwrap().split('"').skip(1).step_by(2);
    names.map(str::to_owned).collect()
}

#[test]
fn the_files_that_a_new_driver_touches_are_there_and_name_the_drivers_that_there_are() {
    let (listed, drivers) = (listed(), drivers());
    assert!(drivers.len() >= 3, "{drivers:?}");
    assert!(listed.len() >= 5, "{listed:?}");
    for file in listed {
        for driver in &drivers {
            let file = file.replace("NAME", driver);
            match root().join(&file).is_dir() {
                true => assert!(root().join(&file).join("Cargo.toml").is_file(), "{file}"),
                false => {
                    let text = read(&file).to_lowercase();
                    assert!(text.contains(driver.as_str()), "{file} has no {driver}");
                }
            }
        }
    }
}

#[test]
fn what_is_below_the_command_names_no_driver_and_the_command_only_where_it_is_put_together() {
    let listed = listed();
    let drivers = drivers();
    let folders = [
        "cli/src",
        "cli/streams/src",
        "engine/src",
        "formats/src",
        "drivers/token/src",
        "drivers/conformance/src",
        "xtask/src",
    ];
    for file in folders.iter().flat_map(|folder| files(folder, &[".rs"])) {
        if listed.contains(&file) {
            continue;
        }
        let text = read(&file);
        for driver in &drivers {
            // As a crate, in code: texts may speak of one.
            let used = format!("claviger_{driver}::");
            assert!(!text.contains(&used), "{file} uses {driver}");
        }
    }
}

#[test]
fn no_driver_knows_another_one() {
    let drivers = drivers();
    for driver in &drivers {
        let manifest = read(&format!("drivers/{driver}/Cargo.toml"));
        let needs = manifest.split("[dev-dependencies]").next().unwrap();
        for other in drivers.iter().filter(|other| *other != driver) {
            assert!(!needs.contains(&format!("\nclaviger-{other} ")), "{driver}");
        }
        assert!(!needs.contains("claviger-engine"), "{driver}");
    }
}

#[test]
fn nothing_else_knows_the_fifth_driver() {
    let may = |file: &str| {
        file.starts_with("tests/fifth-driver/")
            || [
                "Cargo.toml",
                "CONTRIBUTING.md",
                "ARCHITECTURE.md",
                "CHANGELOG.md",
            ]
            .contains(&file)
    };
    let named = files("", &[".rs", ".toml", ".md"])
        .into_iter()
        .filter(|file| {
            let text = read(file);
            text.contains("fifth-driver") || text.contains("FifthDriver")
        });
    let others: Vec<_> = named.filter(|file| !may(file)).collect();
    assert_eq!(others, Vec::<String>::new());
}
