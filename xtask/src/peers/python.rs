//! What comes from PyPI: each in a virtual environment of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Failure, Result, process};

/// The one app that Speculos' source package carries: Ledger's Boilerplate.
const BOIL: &str = "apps/nanox#boil#2.1.0.elf";

/// Installs ykman.
pub(super) fn ykman(folder: &Path, locks: &Path) -> Result<()> {
    let python = environment(folder, locks)?;
    process::run(pip(&python, "install", locks.join("ykman.txt")).arg("--no-deps"))
}

/// Installs protobuf, which needs nothing to be built with.
pub(super) fn protobuf(folder: &Path, locks: &Path) -> Result<()> {
    let python = bare_environment(folder)?;
    process::run(pip(&python, "install", locks.join("protobuf.txt")).arg("--no-deps"))
}

/// Installs pyrage, which needs nothing to be built with.
pub(super) fn pyrage(folder: &Path, locks: &Path) -> Result<()> {
    let python = bare_environment(folder)?;
    process::run(pip(&python, "install", locks.join("pyrage.txt")).arg("--no-deps"))
}

/// Installs Speculos, and the app that comes with its source as `boil.elf`.
pub(super) fn speculos(folder: &Path, locks: &Path) -> Result<()> {
    let python = environment(folder, locks)?;
    process::run(pip(&python, "install", locks.join("speculos.txt")).arg("--no-deps"))?;

    let source = folder.join("source");
    let mut download = pip(&python, "download", locks.join("speculos-source.txt"));
    download.args(["--no-deps", "--no-binary", "speculos", "--dest"]);
    process::run(download.arg(&source))?;
    let cannot = |e| Failure::new(format!("{}: {e}", source.display()));
    for archive in fs::read_dir(&source).map_err(cannot)?.flatten() {
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--strip-components", "2", "--directory"]);
        tar.arg(&source).arg("--file").arg(archive.path());
        process::run(tar.args(["--wildcards", &format!("*/{BOIL}")]))?;
    }
    let name = Path::new(BOIL).file_name().unwrap_or_default();
    fs::rename(source.join(name), folder.join("boil.elf")).map_err(cannot)?;
    fs::remove_dir_all(&source).map_err(cannot)
}

/// A virtual environment with what packages are built with. Returns its Python.
fn environment(folder: &Path, locks: &Path) -> Result<PathBuf> {
    let python = bare_environment(folder)?;
    process::run(pip(&python, "install", locks.join("build.txt")).arg("--no-deps"))?;
    Ok(python)
}

/// A virtual environment. Returns its Python.
fn bare_environment(folder: &Path) -> Result<PathBuf> {
    process::run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
    Ok(folder.join("bin/python"))
}

/// `pip`, which takes only what has a hash in `lock`, and builds with what is there.
fn pip(python: &Path, verb: &str, lock: PathBuf) -> Command {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check", verb]);
    pip.args(["--require-hashes", "--no-build-isolation", "--requirement"]);
    pip.arg(lock).stdout(Stdio::from(std::io::stderr()));
    pip
}
