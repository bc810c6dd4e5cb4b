//! Speculos, as `cargo xtask setup` installs it into the target folder.

use std::path::PathBuf;

use crate::scratch::target_folder;

/// Where things are.
pub(crate) struct Speculos {
    /// A Python that finds Speculos.
    pub(crate) python: PathBuf,
    /// The Boilerplate app.
    pub(crate) boil: PathBuf,
}

/// Speculos, which has to be installed.
pub(crate) fn speculos() -> Speculos {
    let peers = target_folder().with_file_name("peers");
    let folder = peers.join("speculos");
    assert!(
        folder.join("installed").exists(),
        "{} is not installed: run `cargo xtask setup`",
        folder.display()
    );
    Speculos {
        python: folder.join("bin/python"),
        boil: folder.join("boil.elf"),
    }
}
