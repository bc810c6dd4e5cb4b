//! What this system's package archive calls a package: names differ between Debian 12,
//! Debian 13 and Ubuntu 24.04.

use std::io;
use std::process::{Command, Stdio};

use super::{Need, Privilege};
use crate::screen::{self, Style};
use crate::{Failure, Result, process};

/// What an archive is asked for.
pub(super) trait Archive {
    /// Whether a package of this name can be installed.
    fn has(&self, package: &str) -> bool;

    /// The packages that take the place of this one.
    fn providers(&self, package: &str) -> Vec<String>;

    /// The packages with a file whose path matches a regular expression.
    fn with_file(&self, pattern: &str) -> Result<Vec<String>>;
}

/// The name under which the archive has what `need` lacks: ours, that of a package that
/// provides it, or that of one with the file that is looked for.
pub(super) fn name(need: &Need, archive: &impl Archive) -> Result<String> {
    if archive.has(need.package) {
        return Ok(need.package.into());
    }
    let mut names = archive.providers(need.package);
    if names.is_empty() {
        names = archive.with_file(&need.proof.file_pattern())?;
    }
    closest(need.package, names).ok_or_else(|| {
        Failure::new(format!(
            "the package archive has no {}, and no other package with its file ({})",
            need.package, need.purpose
        ))
        .hint("add the part of the archive that has it (on Ubuntu: universe), and try again")
    })
}

/// The name that has most in common with `wanted`, from the beginning; of several, the
/// shortest.
fn closest(wanted: &str, names: Vec<String>) -> Option<String> {
    let in_common = |name: &str| {
        let pairs = wanted.bytes().zip(name.bytes());
        pairs.take_while(|(ours, theirs)| ours == theirs).count()
    };
    (names.into_iter()).min_by_key(|name| (usize::MAX - in_common(name), name.len()))
}

/// apt's archive.
pub(super) struct Apt(pub(super) Privilege);

impl Archive for Apt {
    fn has(&self, package: &str) -> bool {
        has_candidate(&apt_cache("policy", package))
    }

    fn providers(&self, package: &str) -> Vec<String> {
        reverse_provides(&apt_cache("showpkg", package))
    }

    fn with_file(&self, pattern: &str) -> Result<Vec<String>> {
        if process::find_program("apt-file").is_none() {
            screen::note(
                Style::Heading,
                "apt-file is installed, to look up a package by its file:",
            );
            process::run(self.0.apt_get().args(["install", "-y", "apt-file"]))?;
        }
        // Its lists of files are downloaded with the other lists once it is installed.
        self.0.update();
        let mut search = Command::new("apt-file");
        search.args(["search", "--package-only", "--regexp", pattern]);
        // It fails where it finds nothing.
        let found = search.stderr(Stdio::from(io::stderr())).output();
        let found = found.map_err(|e| process::could_not_start(&search, &e))?;
        let found = String::from_utf8_lossy(&found.stdout);
        Ok(found.lines().map(|line| line.trim().to_owned()).collect())
    }
}

/// What `apt-cache` says, or nothing.
fn apt_cache(verb: &str, package: &str) -> String {
    let mut command = Command::new("apt-cache");
    let output = command.env("LC_ALL", "C").args([verb, package]).output();
    output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

/// Whether `apt-cache policy` names a version that would be installed.
fn has_candidate(policy: &str) -> bool {
    let mut lines = policy.lines().map(str::trim);
    lines.any(|line| {
        line.strip_prefix("Candidate: ")
            .is_some_and(|version| version != "(none)")
    })
}

/// The packages under the last heading of `apt-cache showpkg`.
fn reverse_provides(showpkg: &str) -> Vec<String> {
    let (_, listed) = showpkg.split_once("Reverse Provides:").unwrap_or_default();
    let names = listed.lines().filter_map(|line| line.split(' ').next());
    names
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::Proof;
    use super::*;

    /// An archive with these packages: name, what it provides, what it has.
    struct Some(&'static [(&'static str, &'static str, &'static str)]);

    impl Archive for Some {
        fn has(&self, package: &str) -> bool {
            self.0.iter().any(|(name, ..)| *name == package)
        }

        fn providers(&self, package: &str) -> Vec<String> {
            let packages = self.0.iter();
            let found = packages.filter(|(_, provided, _)| *provided == package);
            found.map(|(name, ..)| (*name).to_owned()).collect()
        }

        fn with_file(&self, pattern: &str) -> Result<Vec<String>> {
            let packages = self.0.iter();
            let found = packages.filter(|(.., file)| *file == pattern);
            Ok(found.map(|(name, ..)| (*name).to_owned()).collect())
        }
    }

    const NEED: Need = Need {
        package: "libtss2-esys-3.0.2-0",
        purpose: "a TPM",
        proof: Proof::Library("libtss2-esys.so.0"),
    };

    #[test]
    fn a_package_goes_by_its_name_in_the_archive_or_by_its_file() {
        let debian_12 = Some(&[("libtss2-esys-3.0.2-0", "", "")]);
        assert_eq!(name(&NEED, &debian_12).unwrap(), "libtss2-esys-3.0.2-0");
        let debian_13 = Some(&[("libtss2-esys-3.0.2-0t64", "libtss2-esys-3.0.2-0", "")]);
        assert_eq!(name(&NEED, &debian_13).unwrap(), "libtss2-esys-3.0.2-0t64");
        let later = Some(&[
            ("mingw-tss2", "", r"/lib(64)?/([^/]+/)?libtss2-esys\.so\.0$"),
            (
                "libtss2-esys4",
                "",
                r"/lib(64)?/([^/]+/)?libtss2-esys\.so\.0$",
            ),
        ]);
        assert_eq!(name(&NEED, &later).unwrap(), "libtss2-esys4");
        let refused = name(&NEED, &Some(&[])).unwrap_err().to_string();
        assert!(refused.contains("has no libtss2-esys-3.0.2-0"), "{refused}");
    }

    #[test]
    fn what_apt_says_of_a_package_on_debian_13_is_understood() {
        let policy = "x:\n  Installed: (none)\n  Candidate: 4:14.2.0-1\n  Version table:\n";
        assert!(has_candidate(policy));
        assert!(!has_candidate(
            "x:\n  Installed: (none)\n  Candidate: (none)\n"
        ));
        assert!(!has_candidate(""));
        let showpkg = "Package: libtss2-esys-3.0.2-0\nVersions: \n\nReverse Depends: \n  \
                       libtss2-esys-3.0.2-0t64,libtss2-esys-3.0.2-0\nDependencies: \nProvides: \n\
                       Reverse Provides: \nlibtss2-esys-3.0.2-0t64 4.1.3-1.2 (= 4.1.3-1.2)\n";
        assert_eq!(reverse_provides(showpkg), ["libtss2-esys-3.0.2-0t64"]);
        assert_eq!(reverse_provides(""), Vec::<String>::new());
    }
}
