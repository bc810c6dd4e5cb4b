//! Programs that speak PKCS#11 use identities through the module and the daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Daemon, Stage};

/// The module, as cargo put it beside the command. Where only this package is built, it is built
/// now.
fn module() -> PathBuf {
    const NAME: &str = "libclaviger_pkcs11_module.so";
    let folder = Path::new(env!("CARGO_BIN_EXE_claviger")).parent().unwrap();
    // Where the tests of the module are built, it is among what they link.
    let mut places = [folder.join("deps").join(NAME), folder.join(NAME)].into_iter();
    places.find(|path| path.is_file()).unwrap_or_else(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "claviger-pkcs11-module"]);
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().unwrap().success(), "{NAME} is not built");
        folder.join(NAME)
    })
}

/// The example in the guide, as it stands there, and what the audit log says after it.
#[test]
fn the_guides_example_of_tls_works_as_written() {
    let guide = include_str!("../../../docs/tls.md");
    let (_, section) = guide.split_once("\n## Example\n").expect("an example");
    let script = section.split("```sh\n").nth(1).unwrap();
    let script = script.split("```").next().unwrap();
    let stage = Stage::with_alice();
    let audit = stage.path("audit.jsonl");
    let config = stage.path("config/claviger");
    fs::create_dir_all(&config).unwrap();
    let text = format!("[serve.audit]\nfile = '{}'\n", audit.display());
    fs::write(config.join("config.toml"), text).unwrap();
    let daemon = Daemon::start(&stage);
    stage.write("letter.txt", "Meet me where the keys are kept.\n");
    let label = format!("'{}'", stage.token.backend());
    let script = script.replace("'pkcs11:token=bench'", &label);
    // Only `unlock` may need the PIN.
    let script = script.replace("claviger unlock", "claviger unlock --pin-source file:pin");
    let mut command = stage.script(&script, "");
    let output = command.env("MODULE", module()).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    let out = String::from_utf8_lossy(&output.stdout);
    for said in ["Certificate Object", "Verified OK", "alice:alice"] {
        assert!(out.contains(said), "no {said:?} in {out}{err}");
    }
    assert!(daemon.stop().success());
    let log = fs::read_to_string(&audit).unwrap();
    let lines: Vec<serde_json::Value> = (log.lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let purposes: Vec<&str> = lines
        .iter()
        .filter(|line| line["kind"] == "begin" && line["operation"] == "sign")
        .filter_map(|line| line["purpose"].as_str())
        .collect();
    assert_eq!(purposes, ["certificate", "certificate", "raw"], "{log}");
    stage.run(["audit", "verify", "audit.jsonl"]).succeeds();
}
