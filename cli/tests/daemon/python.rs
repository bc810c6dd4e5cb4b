//! Other languages speak to the daemon, too: the example in `docs/examples`.

use std::path::Path;
use std::process::{Command, Output};

use claviger_client::wire::DESCRIPTORS;
use claviger_tests::peers;

use super::common::{Daemon, Stage};

/// Runs the example.
fn sign(stage: &Stage, identity: &str) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    Command::new(peers::python_with_protobuf())
        .arg(root.join("docs/examples/sign.py"))
        .arg(stage.write("claviger.pb", DESCRIPTORS))
        .arg(stage.runtime().join("claviger/api.sock"))
        .args([identity, "letter"])
        .current_dir(stage.folder())
        .output()
        .unwrap()
}

#[test]
fn the_example_in_python_signs_with_an_identity_of_the_daemon() {
    if peers::quick("the_example_in_python_signs_with_an_identity_of_the_daemon") {
        return;
    }
    let stage = Stage::new();
    let _daemon = Daemon::start(&stage);
    stage.write("letter", "Meet me where the keys are kept.\n");
    let generate = ["generate", "brief", "--backend", "memory:"];
    stage.run(generate).succeeds();

    let signed = sign(&stage, "brief");
    let errors = String::from_utf8_lossy(&signed.stderr).into_owned();
    assert!(signed.status.success(), "{errors}");
    assert!(errors.starts_with("home "), "{errors}");
    let text = String::from_utf8(signed.stdout).unwrap();
    let (_scheme, signature) = text.trim_end().rsplit_once(' ').unwrap();
    let bytes: Vec<u8> = (0..signature.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&signature[at..at + 2], 16).unwrap())
        .collect();
    stage.write("sig", bytes);
    let verify = ["verify", "brief", "--signature", "sig", "letter"];
    assert_eq!(stage.run(verify).succeeds().out(), "valid\n");

    let refused = sign(&stage, "nobody");
    assert!(!refused.status.success());
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(errors.contains("no-such-engine: "), "{errors}");
}
