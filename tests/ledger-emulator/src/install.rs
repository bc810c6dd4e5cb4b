//! Speculos, installed from PyPI into the target folder the first time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::scratch::target_folder;

const VERSION: &str = "0.27.1";

/// What is installed, at versions that were tried.
const REQUIREMENTS: &str = include_str!("../data/speculos.txt");

/// The one app that Speculos' source package carries: Ledger's Boilerplate.
const BOIL: &str = "apps/nanox#boil#2.1.0.elf";

/// Where things are after the installation.
pub(crate) struct Speculos {
    /// A Python that finds Speculos.
    pub(crate) python: PathBuf,
    /// The Boilerplate app.
    pub(crate) boil: PathBuf,
}

/// Speculos, which is installed first if need be. Of several processes one installs it
/// while the others wait.
pub(crate) fn speculos() -> &'static Speculos {
    static SPECULOS: OnceLock<Speculos> = OnceLock::new();
    SPECULOS.get_or_init(|| {
        let folder = target_folder().join(format!("speculos-{VERSION}"));
        let speculos = Speculos {
            python: folder.join("bin/python"),
            boil: folder.join("boil.elf"),
        };
        let lock = target_folder().join(format!("speculos-{VERSION}.lock"));
        let lock = fs::File::create(lock).unwrap();
        lock.lock().unwrap();
        // It comes last.
        if !speculos.boil.exists() {
            install(&folder, &speculos);
        }
        speculos
    })
}

fn install(folder: &Path, speculos: &Speculos) {
    run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(folder));
    let requirements = folder.join("speculos.txt");
    fs::write(&requirements, REQUIREMENTS).unwrap();
    let pip = |verb: &str| {
        let mut pip = Command::new(&speculos.python);
        pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check", verb]);
        pip.arg("--no-deps");
        pip
    };
    run(pip("install").arg("--requirement").arg(&requirements));

    let name = format!("speculos-{VERSION}");
    run(pip("download")
        .args(["--no-binary", "speculos", &format!("speculos=={VERSION}")])
        .arg("--dest")
        .arg(folder));
    run(Command::new("tar")
        .arg("--extract")
        .arg("--file")
        .arg(folder.join(format!("{name}.tar.gz")))
        .arg("--directory")
        .arg(folder)
        .arg(format!("{name}/{BOIL}")));
    fs::rename(folder.join(name).join(BOIL), &speculos.boil).unwrap();
}

fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}: run `cargo xtask setup`"));
    assert!(
        output.status.success(),
        "{command:?} failed; Speculos comes from PyPI, and takes what `cargo xtask setup` \
         installs. It said:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
}
