//! Other people's programs that read and write age files, installed into the target folder
//! for tests and benches to find: `rage`, and the npm package `age-encryption`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Failure, Result, process};

/// Versions that were tried.
const RAGE: &str = "0.12.1";
const AGE_ENCRYPTION: &str = "0.3.1";

/// Installs both: a few minutes on two cores, and nothing to do where they are there
/// already.
pub(crate) fn install() -> Result<()> {
    let folder = folder()?;
    rage(&folder)?;
    age_encryption(&folder)
}

/// `peers` in the folder that this program was built in: the tests are built there, too.
fn folder() -> Result<PathBuf> {
    let program = env::current_exe().unwrap_or_default();
    let target = (program.ancestors())
        .find(|folder| folder.join("CACHEDIR.TAG").exists())
        .ok_or_else(|| Failure::new("xtask does not run from a target folder"))?;
    Ok(target.join("peers"))
}

/// Installs `rage`.
fn rage(folder: &Path) -> Result<()> {
    let listed = fs::read_to_string(folder.join(".crates.toml")).unwrap_or_default();
    if folder.join("bin/rage").is_file() && listed.contains(&format!("rage {RAGE} ")) {
        return Ok(());
    }
    let build = folder.join("build");
    let mut cargo = process::cargo();
    cargo.args(["install", "--quiet", "--locked", "--force"]);
    cargo.args(["--version", RAGE, "rage", "--root"]);
    cargo.arg(folder).arg("--target-dir").arg(&build);
    process::run(&mut cargo)?;
    // What it was built from is of no use any more.
    let _ = fs::remove_dir_all(build);
    Ok(())
}

/// Installs `age-encryption`; nobody's npm configuration is touched.
fn age_encryption(folder: &Path) -> Result<()> {
    let package = folder.join("node_modules/age-encryption/package.json");
    let is_it = fs::read_to_string(&package)
        .is_ok_and(|text| text.contains(&format!("\"version\": \"{AGE_ENCRYPTION}\"")));
    if is_it {
        return Ok(());
    }
    let cache = folder.join("npm-cache");
    let mut npm = Command::new("npm");
    npm.args(["install", "--silent", "--no-audit", "--no-fund"]);
    npm.args(["--no-save", "--no-package-lock", "--ignore-scripts"]);
    npm.arg("--prefix").arg(folder).arg("--cache").arg(&cache);
    npm.arg(format!("age-encryption@{AGE_ENCRYPTION}"));
    npm.stdout(Stdio::from(std::io::stderr()));
    fs::create_dir_all(folder)
        .map_err(|e| Failure::new(format!("{} cannot be made: {e}", folder.display())))?;
    process::run(&mut npm)?;
    let _ = fs::remove_dir_all(cache);
    Ok(())
}
