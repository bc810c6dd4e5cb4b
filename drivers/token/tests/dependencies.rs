//! What a driver drags in with the contract.

use std::collections::BTreeSet;
use std::process::Command;

/// Before the formats had a crate of their own there were 174.
const MOST: usize = 86;

#[test]
fn a_driver_builds_with_few_crates_and_none_of_the_formats() {
    let mut tree = Command::new(env!("CARGO"));
    tree.args(["tree", "--edges", "normal", "--prefix", "none", "--offline"]);
    let output = tree.current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let output = output.unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    let tree = String::from_utf8(output.stdout).unwrap();
    // A line is a name, a version, and perhaps that it was shown before.
    let crates: BTreeSet<(&str, &str)> = (tree.lines())
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.next()?))
        })
        .collect();
    assert!(crates.iter().any(|(name, _)| *name == "p256"), "{tree}");
    assert!(crates.len() <= MOST, "{}: {tree}", crates.len());
    for format in [
        "age",
        "age-core",
        "bech32",
        "hpke",
        "ssh-key",
        "ssh-encoding",
    ] {
        assert!(!crates.iter().any(|(name, _)| *name == format), "{format}");
    }
}
