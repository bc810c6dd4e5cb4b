//! Builds Kryoptic, a PKCS#11 token in software, from what its authors published.

use crate::{Result, process};

/// Puts the module into the target folder, for tests to find: a minute on two cores, and
/// nothing to do where it is there already.
///
/// It has a lock file of its own, so its dependencies are none of the workspace's.
pub(crate) fn build() -> Result<()> {
    let mut cargo = process::cargo();
    cargo.args(["build", "--quiet", "--locked"]);
    cargo.args(["--manifest-path", "tests/kryoptic/Cargo.toml"]);
    cargo
        .arg("--target-dir")
        .arg(process::target()?.join("kryoptic"));
    process::run(&mut cargo)
}
