//! Other people's programs, installed into the target folder for tests and benches to find.
//!
//! Each is pinned by files in `tests/peers`, which have the hash of everything that is
//! downloaded. What is installed is kept until one of these files changes.

mod python;

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Failure, Result, process};

/// A program of others.
struct Peer {
    /// What its folder is called.
    name: &'static str,
    /// The files of `tests/peers` that say what is installed.
    locks: &'static [&'static str],
    /// Installs it into an empty folder, from the locks in another one.
    install: fn(folder: &Path, locks: &Path) -> Result<()>,
}

const SPECULOS: Peer = Peer {
    name: "speculos",
    locks: &["build.txt", "speculos.txt", "speculos-source.txt"],
    install: python::speculos,
};

const OPTIMISED_RAGE: Peer = Peer {
    name: "rage-optimised",
    locks: &["rage.sha256"],
    install: optimised_rage,
};

const PEERS: [Peer; 6] = [
    Peer {
        name: "rage",
        locks: &["rage.sha256"],
        install: rage,
    },
    Peer {
        name: "age-encryption",
        locks: &["package.json", "package-lock.json"],
        install: age_encryption,
    },
    Peer {
        name: "ykman",
        locks: &["build.txt", "ykman.txt"],
        install: python::ykman,
    },
    Peer {
        name: "protobuf",
        locks: &["protobuf.txt"],
        install: python::protobuf,
    },
    Peer {
        name: "pyrage",
        locks: &["pyrage.txt"],
        install: python::pyrage,
    },
    SPECULOS,
];

/// Installs all: a few minutes on two cores, and nothing to do where they are there
/// already.
pub(crate) fn install() -> Result<()> {
    PEERS.iter().try_for_each(Peer::have)
}

/// Installs what the bench measures beside.
pub(crate) fn install_measured() -> Result<()> {
    OPTIMISED_RAGE.have()
}

/// Installs Speculos, Ledger's emulator.
pub(crate) fn install_speculos() -> Result<()> {
    SPECULOS.have()
}

impl Peer {
    /// Installs it where it is not there as the locks say.
    fn have(&self) -> Result<()> {
        let peers = process::target()?.join("peers");
        self.have_in(&peers, &process::workspace().join("tests/peers"))
    }

    fn have_in(&self, peers: &Path, locks: &Path) -> Result<()> {
        let wanted = self.wanted(locks)?;
        let folder = peers.join(self.name);
        let cannot = |e| Failure::new(format!("{} cannot be made: {e}", folder.display()));
        fs::create_dir_all(peers).map_err(cannot)?;
        let alone = File::create(peers.join(format!("{}.lock", self.name))).map_err(cannot)?;
        alone.lock().map_err(cannot)?;
        // It is written last.
        let installed = folder.join("installed");
        if fs::read_to_string(&installed).is_ok_and(|text| text == wanted) {
            return Ok(());
        }
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(cannot)?;
        }
        fs::create_dir(&folder).map_err(cannot)?;
        (self.install)(&folder, locks)?;
        fs::write(installed, wanted).map_err(cannot)
    }

    /// What its locks say.
    fn wanted(&self, locks: &Path) -> Result<String> {
        self.locks
            .iter()
            .map(|lock| text(&locks.join(lock)))
            .collect()
    }
}

/// Installs `rage` for tests: without optimisation it is built in half the time.
fn rage(folder: &Path, locks: &Path) -> Result<()> {
    build_rage(folder, locks, &["--profile", "dev"])
}

/// Installs `rage` as its users have it, to measure beside it.
fn optimised_rage(folder: &Path, locks: &Path) -> Result<()> {
    build_rage(folder, locks, &["--profile", "release"])
}

/// Installs `rage`, after comparing the package's hash. The package has a lock file of its own
/// for what it is built from.
fn build_rage(folder: &Path, locks: &Path, profile: &[&str]) -> Result<()> {
    let pinned = text(&locks.join("rage.sha256"))?;
    let version = pinned
        .trim_end()
        .rsplit_once("rage-")
        .and_then(|(_, file)| file.strip_suffix(".crate"))
        .ok_or_else(|| Failure::new("tests/peers/rage.sha256 names no rage-VERSION.crate"))?;
    // It downloads the package, and runs nothing of it.
    let mut info = process::cargo();
    info.args(["info", "--quiet", "--registry", "crates-io"]);
    process::run(info.arg(format!("rage@{version}")).stdout(Stdio::null()))?;
    check_hash(&pinned, &downloaded(&format!("rage-{version}.crate"))?)?;

    let build = folder.join("build");
    let mut cargo = process::cargo();
    cargo.args(["install", "--quiet", "--locked", "--version", version]);
    cargo.args(profile).env("CARGO_PROFILE_DEV_DEBUG", "0");
    cargo.args(["rage", "--root"]).arg(folder);
    process::run(cargo.arg("--target-dir").arg(&build))?;
    // What it was built from is of no use any more.
    let _ = fs::remove_dir_all(build);
    Ok(())
}

/// The folder in which cargo keeps the package `file`.
fn downloaded(file: &str) -> Result<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cargo")));
    let cache = home.unwrap_or_default().join("registry/cache");
    let registries = fs::read_dir(&cache).into_iter().flatten().flatten();
    (registries.map(|entry| entry.path()))
        .find(|folder| folder.join(file).is_file())
        .ok_or_else(|| Failure::new(format!("{file} is not in {}", cache.display())))
}

/// Compares files in `folder` with `pinned`, which is as `sha256sum` writes it.
fn check_hash(pinned: &str, folder: &Path) -> Result<()> {
    let mut sum = Command::new("sha256sum");
    sum.args(["--check", "--strict", "--quiet"])
        .current_dir(folder);
    sum.stdin(Stdio::piped())
        .stdout(Stdio::from(std::io::stderr()));
    let mut child = sum
        .spawn()
        .map_err(|e| process::could_not_start(&sum, &e))?;
    if let Some(mut input) = child.stdin.take() {
        // If it does not read, it fails.
        let _ = std::io::Write::write_all(&mut input, pinned.as_bytes());
    }
    match child.wait().is_ok_and(|status| status.success()) {
        true => Ok(()),
        false => Err(Failure::new(format!(
            "what was downloaded into {} has another hash than tests/peers says",
            folder.display()
        ))),
    }
}

/// Installs `age-encryption`; nobody's npm configuration is touched.
fn age_encryption(folder: &Path, locks: &Path) -> Result<()> {
    for file in ["package.json", "package-lock.json"] {
        fs::copy(locks.join(file), folder.join(file))
            .map_err(|e| Failure::new(format!("{}/{file}: {e}", folder.display())))?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--silent", "--no-audit", "--no-fund"]);
    npm.args(["--ignore-scripts", "--prefix"]).arg(folder);
    npm.stdout(Stdio::from(std::io::stderr()));
    process::run(&mut npm)
}

fn text(file: &Path) -> Result<String> {
    fs::read_to_string(file).map_err(|e| Failure::new(format!("{}: {e}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_download_with_another_hash_is_refused() {
        let scratch = Scratch::new("peers").unwrap();
        scratch.write("a.crate", "abc").unwrap();
        // FIPS 180-2, B.1.
        let pinned = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a.crate\n";
        assert!(check_hash(pinned, scratch.path()).is_ok());
        let other = pinned.replacen("ba", "bb", 1);
        let refused = check_hash(&other, scratch.path()).unwrap_err().to_string();
        assert!(refused.contains("has another hash"), "{refused}");
        assert!(check_hash("", scratch.path()).is_err());
    }

    #[test]
    fn a_peer_is_installed_once_and_again_when_its_lock_changes() {
        let peer = Peer {
            name: "peer",
            locks: &["lock.txt"],
            install: |folder, _| {
                assert_eq!(folder.read_dir().unwrap().count(), 0);
                fs::write(folder.join("made"), "").unwrap();
                Ok(())
            },
        };
        let scratch = Scratch::new("peers").unwrap();
        let made = scratch.path().join("peer/made");
        let lock = scratch.write("lock.txt", "1").unwrap();
        peer.have_in(scratch.path(), scratch.path()).unwrap();
        fs::remove_file(&made).unwrap();
        peer.have_in(scratch.path(), scratch.path()).unwrap();
        assert!(!made.exists());
        fs::write(lock, "2").unwrap();
        peer.have_in(scratch.path(), scratch.path()).unwrap();
        assert!(made.exists());
    }

    #[test]
    fn everything_that_is_installed_is_pinned_by_a_hash() {
        let locks = process::workspace().join("tests/peers");
        for lock in PEERS.iter().flat_map(|peer| peer.locks) {
            let text = text(&locks.join(lock)).unwrap();
            if lock.ends_with(".txt") {
                let entries = text.split("\n").filter(|line| line.contains("=="));
                assert!(entries.clone().count() > 0, "{lock}");
                let unpinned = entries.filter(|line| !line.ends_with('\\'));
                assert_eq!(unpinned.collect::<Vec<_>>(), Vec::<&str>::new(), "{lock}");
            }
            if *lock == "package-lock.json" {
                let versions = text.matches("\"version\":").count();
                assert_eq!(text.matches("\"integrity\": \"sha512-").count(), versions);
            }
        }
    }
}
