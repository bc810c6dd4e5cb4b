//! Other people's programs that read and write age files, as `cargo xtask setup` puts them
//! into the target folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::folder;

/// Whether these programs, which come from the network, are not to be asked. Says so.
pub fn quick(test: &str) -> bool {
    let quick = std::env::var_os("CLAVIGER_TEST_QUICK").is_some_and(|value| value == "1");
    if quick {
        eprintln!("SKIPPED {test}: CLAVIGER_TEST_QUICK is 1, and it takes programs of others");
    }
    quick
}

/// The program `rage`.
///
/// # Panics
/// Where it is not installed.
pub fn rage() -> PathBuf {
    installed("rage/bin/rage")
}

/// The program `rage`, built as its users have it.
///
/// # Panics
/// Where it is not installed, which `cargo xtask bench` does.
pub fn optimised_rage() -> PathBuf {
    installed("rage-optimised/bin/rage")
}

/// The Python that has protobuf.
///
/// # Panics
/// Where it is not installed.
pub fn python_with_protobuf() -> PathBuf {
    installed("protobuf/bin/python")
}

/// The Python that has pyrage.
///
/// # Panics
/// Where it is not installed.
pub fn python_with_pyrage() -> PathBuf {
    installed("pyrage/bin/python")
}

/// Has the npm package `age-encryption` encrypt a file to a recipient.
///
/// # Panics
/// Where it is not installed, or fails.
pub fn age_encryption(recipient: &str, from: &Path, to: &Path) {
    const SCRIPT: &str = "
        import { Encrypter } from 'age-encryption';
        import { readFileSync, writeFileSync } from 'node:fs';
        const [recipient, from, to] = process.argv.slice(1);
        const encrypter = new Encrypter();
        encrypter.addRecipient(recipient);
        writeFileSync(to, await encrypter.encrypt(readFileSync(from)));";
    let package = installed("age-encryption/node_modules/age-encryption/package.json");
    let folder = package.ancestors().nth(3).unwrap_or(&package);
    let output = Command::new("node")
        .args(["--input-type=module", "--eval", SCRIPT, recipient])
        .args([from, to])
        .current_dir(folder)
        .output()
        .unwrap_or_else(|e| panic!("node does not start: {e}: run `cargo xtask setup`"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "age-encryption: {said}");
}

/// A file in the folder that `cargo xtask setup` installs into.
fn installed(name: &str) -> PathBuf {
    let target = folder::target().unwrap_or_else(|| "target".into());
    let file = target.join("peers").join(name);
    assert!(
        file.exists(),
        "{} is not installed: run `cargo xtask setup`",
        file.display()
    );
    file
}
