//! Debian packages in the target folder: unpacked, not installed. Installed, they would be
//! there for every program on this machine, as modules for PKCS#11 and as services.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::folder;

/// The folder `name` in the target folder with the content of `packages`. Of several
/// processes one fetches them while the others wait.
///
/// # Panics
/// Where they cannot be had.
pub(crate) fn unpacked(name: &str, packages: &[&str]) -> PathBuf {
    let parent = folder::target().unwrap_or_else(std::env::temp_dir);
    let folder = parent.join(name);
    let lock = File::create(parent.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    if !folder.exists() {
        let half_done = parent.join(format!("{name}.part"));
        let _ = fs::remove_dir_all(&half_done);
        unpack(packages, &half_done);
        fs::rename(&half_done, &folder).unwrap();
    }
    folder
}

/// The library `name` in one of the folders for libraries below `root`, which is `/` for
/// what is installed.
pub(crate) fn library(root: &Path, name: &str) -> Option<PathBuf> {
    let lib = root.join("usr/lib");
    let mut folders = folder::content(&lib);
    folders.insert(0, lib);
    (folders.into_iter())
        .map(|folder| folder.join(name))
        .find(|file| file.exists())
}

/// Where Debian's packages have the library `name`, whether it is there or not.
pub(crate) fn place(name: &str) -> PathBuf {
    format!("/usr/lib/{}-linux-gnu/{name}", std::env::consts::ARCH).into()
}

/// What this system's archive calls a package: `apt-get download` takes none that is only
/// provided by another one.
fn name(package: &str) -> String {
    let mut showpkg = Command::new("apt-cache");
    showpkg.env("LC_ALL", "C").args(["showpkg", package]);
    let said = showpkg.output().map_or_else(|_| Vec::new(), |o| o.stdout);
    let said = String::from_utf8_lossy(&said).into_owned();
    let is_virtual = said.contains("\nVersions: \n\n");
    let provider = (said.split_once("Reverse Provides: \n"))
        .and_then(|(_, providers)| providers.split_whitespace().next())
        .filter(|_| is_virtual);
    provider.unwrap_or(package).to_owned()
}

fn unpack(packages: &[&str], into: &Path) {
    fs::create_dir_all(into).unwrap();
    let run = |command: &mut Command| {
        let output = command.current_dir(into).output();
        let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        assert!(
            output.status.success(),
            "{command:?} failed; `cargo xtask setup` and `sudo apt-get update` may help\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let names = packages.iter().map(|package| name(package));
    run(Command::new("apt-get").arg("download").args(names));
    for package in folder::content(into) {
        run(Command::new("dpkg-deb")
            .arg("--extract")
            .arg(package)
            .arg("."));
    }
}
