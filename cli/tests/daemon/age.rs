//! Other age programs use identities through the plugin and the daemon.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use claviger_formats::{age_plugin, envelope};

use crate::common::{Daemon, Stage};

const LETTER: &[u8] = b"Meet me where the keys are kept.\n";

/// The plugin, as cargo put it beside the command. Where only this package is built, it is built
/// now.
fn plugin() -> PathBuf {
    const NAME: &str = "age-plugin-claviger";
    let folder = Path::new(env!("CARGO_BIN_EXE_claviger")).parent().unwrap();
    let plugin = folder.join(NAME);
    if !plugin.is_file() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", NAME]);
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().unwrap().success(), "{NAME} is not built");
    }
    plugin
}

/// The example in the guide, as it stands there, and what the audit log says after it.
#[test]
fn the_guides_example_of_age_works_as_written() {
    let guide = include_str!("../../../docs/age.md");
    let (_, section) = guide.split_once("\n## Example\n").expect("an example");
    let script = section.split("```sh\n").nth(1).unwrap();
    let script = script.split("```").next().unwrap();
    assert_eq!(
        script.matches("'pkcs11:token=bench'").count(),
        1,
        "{script}"
    );

    let stage = Stage::with_alice();
    let audit = stage.path("audit.jsonl");
    let config = stage.path("config/claviger");
    fs::create_dir_all(&config).unwrap();
    let text = format!("[serve.audit]\nfile = '{}'\n", audit.display());
    fs::write(config.join("config.toml"), text).unwrap();
    let daemon = Daemon::start(&stage);
    stage.write("letter.txt", LETTER);
    let label = format!("'{}'", stage.token.backend());
    let script = script.replace("'pkcs11:token=bench'", &label);
    // Only `unlock` may need the PIN.
    let script = script.replace("claviger unlock", "claviger unlock --pin-source file:pin");
    let mut command = stage.script(&script, "");
    symlink(plugin(), stage.path("bin/age-plugin-claviger")).unwrap();
    let output = command.output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    // It is decrypted four times.
    let text = String::from_utf8_lossy(LETTER);
    let out = String::from_utf8_lossy(&output.stdout);
    assert_eq!(out.matches(&*text).count(), 4, "{out}{err}");

    assert!(daemon.stop().success());
    let log = fs::read_to_string(&audit).unwrap();
    let lines: Vec<serde_json::Value> = (log.lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let begun = lines
        .iter()
        .filter(|line| line["kind"] == "begin" && line["operation"] == "decrypt");
    // Of whichever identity opens it the end says which one did.
    let named = begun.clone().filter(|line| line["identity"] == "alice");
    assert_eq!((begun.count(), named.count()), (4, 3), "{log}");
    let ends = lines.iter().filter(|line| line["kind"] == "end");
    assert!(ends.clone().all(|line| line["outcome"] == "done"), "{log}");
    stage.run(["audit", "verify", "audit.jsonl"]).succeeds();
}

#[test]
fn the_lines_for_age_programs_are_those_of_the_decryption_key() {
    let stage = Stage::with_alice();
    let shown = stage.json(&["show", "alice"]);
    let keys = shown["keys"].as_array().unwrap();
    let key = keys.iter().find(|key| key["use"] == "decrypt").unwrap();
    let native = key["age_recipient"].as_str().unwrap();

    let view = stage.json(&["age-identity", "alice"]);
    assert_eq!(view["native_recipient"], native);
    let recipient = view["recipient"].as_str().unwrap();
    let public = age_plugin::parse_recipient(recipient).unwrap();
    assert_eq!(public, envelope::parse_recipient(native).unwrap());
    let identity = view["identity"].as_str().unwrap();
    let name = "alice".to_owned();
    let wanted = age_plugin::Identity::Key { key: public, name };
    assert_eq!(age_plugin::parse_identity(identity), Ok(wanted));

    let printed = stage.run(["age-identity", "alice"]).succeeds();
    let lines = [
        "# identity: alice".to_owned(),
        format!("# public key: {recipient}"),
        format!("# native public key: {native}"),
        identity.to_owned(),
    ];
    assert_eq!(printed.out().lines().collect::<Vec<_>>(), lines);
}

#[test]
fn an_identity_that_does_not_decrypt_has_no_line_for_age_programs() {
    let stage = Stage::new();
    stage
        .generate("signer", &["--capabilities", "commit"])
        .succeeds();
    let refused = stage.run(["--json", "age-identity", "signer"]);
    refused.fails(1, "no-encryption-key");
    stage.run(["age-identity", "nobody"]).fails(1, "nobody");
}
