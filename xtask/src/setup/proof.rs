//! What shows that a package is there: the thing itself, wherever it came from.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use crate::process;

/// What shows that a package's content is there.
pub(super) enum Proof {
    Program(&'static str),
    AnyProgram(&'static [&'static str]),
    /// The program, and the module for PKCS#11 beside it.
    SoftHsm(&'static str),
    /// The file that pkg-config reads. It is looked for without pkg-config, which may be
    /// missing itself.
    PkgConfigFile(&'static str),
    /// A file in one of the compiler's folders for headers.
    Header(&'static str),
    /// One of these files, where no `PATH` leads.
    AnyFile(&'static [&'static str]),
    /// A file in one of the folders for libraries.
    Library(&'static str),
    /// Clang as a library, in its own folder, one for each version.
    ClangLibrary,
    /// A module that Python finds.
    PythonModule(&'static str),
}

impl Proof {
    /// Whether it is there.
    pub(super) fn holds(&self) -> bool {
        let installed = |program: &str| process::find_program(program).is_some();
        match self {
            Self::Program(program) => installed(program),
            Self::AnyProgram(programs) => programs.iter().any(|program| installed(program)),
            Self::SoftHsm(program) => installed(program) && softhsm_module().is_some(),
            Self::PkgConfigFile(name) => pkg_config_folders()
                .iter()
                .any(|folder| folder.join(name).is_file()),
            Self::Header(name) => {
                ["/usr/include", "/usr/local/include"]
                .map(Path::new)
                .iter()
                .any(|folder| folder.join(name).is_file())
                // A system without these folders brings its headers with its compiler.
                || !cfg!(target_os = "linux")
            }
            Self::AnyFile(files) => files.iter().any(|file| Path::new(file).is_file()),
            Self::Library(name) => ["/usr/lib", "/usr/lib64", "/usr/local/lib"]
                .map(Path::new)
                .iter()
                .any(|lib| {
                    lib.join(name).is_file()
                        || subfolders(lib).any(|folder| folder.join(name).is_file())
                }),
            Self::ClangLibrary => subfolders(Path::new("/usr/lib"))
                .any(|folder| folder.join("lib/libclang.so").is_file()),
            Self::PythonModule(name) => {
                process::succeeds(Command::new("python3").args(["-c", &format!("import {name}")]))
            }
        }
    }

    /// A regular expression for the path of what is looked for, as `apt-file` takes it.
    pub(super) fn file_pattern(&self) -> String {
        let quoted = |name: &str| name.replace('.', r"\.").replace('+', r"\+");
        let any = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| quoted(name)).collect();
            format!("({})", names.join("|"))
        };
        match self {
            Self::Program(name) | Self::SoftHsm(name) => format!("/s?bin/{}$", quoted(name)),
            Self::AnyProgram(names) => format!("/s?bin/{}$", any(names)),
            Self::PkgConfigFile(name) => format!("/pkgconfig/{}$", quoted(name)),
            Self::Header(name) => format!("/usr/include/([^/]+/)?{}$", quoted(name)),
            Self::AnyFile(files) => format!("{}$", any(files)),
            Self::Library(name) => format!("/lib(64)?/([^/]+/)?{}$", quoted(name)),
            Self::ClangLibrary => r"/lib/llvm-[0-9]+/lib/libclang\.so$".into(),
            Self::PythonModule(name) => {
                format!(r"/python3[^/]*/{}(/__init__)?\.py$", quoted(name))
            }
        }
    }
}

fn pkg_config_folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = ["PKG_CONFIG_PATH", "PKG_CONFIG_LIBDIR"]
        .iter()
        .filter_map(env::var_os)
        .flat_map(|value| env::split_paths(&value).collect::<Vec<_>>())
        .collect();
    for root in ["/usr", "/usr/local"].map(Path::new) {
        for lib in ["lib", "lib64", "share"].map(|name| root.join(name)) {
            folders.push(lib.join("pkgconfig"));
            folders.extend(subfolders(&lib).map(|folder| folder.join("pkgconfig")));
        }
    }
    folders
}

/// Debian keeps libraries in a folder for each architecture.
fn subfolders(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
}

/// SoftHSM2's module, in the places that distributions put it.
pub(crate) fn softhsm_module() -> Option<PathBuf> {
    let mut folders = Vec::new();
    for lib in [
        "/usr/lib",
        "/usr/lib64",
        "/usr/local/lib",
        "/opt/homebrew/lib",
    ]
    .map(Path::new)
    {
        folders.push(lib.join("softhsm"));
        folders.push(lib.join("pkcs11"));
        folders.extend(subfolders(lib).map(|folder| folder.join("softhsm")));
    }
    folders
        .into_iter()
        .map(|folder| folder.join("libsofthsm2.so"))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_found_and_what_is_not_is_not() {
        assert!(Proof::Program("sh").holds());
        assert!(!Proof::Program("claviger-no-such-program").holds());
        assert!(Proof::AnyProgram(&["claviger-no-such-program", "sh"]).holds());
        assert!(!Proof::PkgConfigFile("claviger-no-such-library.pc").holds());
        assert!(Proof::AnyFile(&["/no/such/file", "/bin/sh"]).holds());
        assert!(!Proof::AnyFile(&["/no/such/file"]).holds());
        assert!(!Proof::Library("libclaviger-no-such.so").holds());
        assert!(!Proof::PythonModule("claviger_no_such_module").holds());
    }

    #[test]
    fn a_file_is_searched_by_a_pattern_that_only_its_own_path_matches() {
        let pattern = |proof: &Proof| proof.file_pattern();
        assert_eq!(pattern(&Proof::Program("age")), "/s?bin/age$");
        assert_eq!(
            pattern(&Proof::AnyProgram(&["chromium", "chromium-browser"])),
            "/s?bin/(chromium|chromium-browser)$"
        );
        assert_eq!(
            pattern(&Proof::PkgConfigFile("libudev.pc")),
            r"/pkgconfig/libudev\.pc$"
        );
    }
}
