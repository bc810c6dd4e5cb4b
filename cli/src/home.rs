//! The home folder.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// The file in it that remembers them.
pub(crate) const REGISTRY: &str = "registry.sqlite";

/// Whether there is a registry in the home folder, or something in the way of one.
pub(crate) fn has_registry(home: &Path) -> bool {
    match home.join(REGISTRY).symlink_metadata() {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// The home folder: `--home`, else `CLAVIGER_HOME`, else the XDG data folder.
pub(crate) fn folder(given: Option<&Path>) -> Result<PathBuf, Failure> {
    choose(given, |name| std::env::var_os(name))
}

fn choose(
    given: Option<&Path>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<PathBuf, Failure> {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    // The XDG specification: a relative path is invalid and to be ignored.
    let absolute = |name| set(name).map(PathBuf::from).filter(|p| p.is_absolute());
    match given {
        Some(path) if path.as_os_str().is_empty() => Err(Failure::usage("--home names no folder")),
        Some(path) => Ok(path.into()),
        None => set("CLAVIGER_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(absolute("XDG_DATA_HOME")?.join("claviger")))
            .or_else(|| Some(absolute("HOME")?.join(".local/share/claviger")))
            .ok_or_else(|| {
                Failure::new("there is no home folder")
                    .coded("no-home")
                    .hint("name one with --home or CLAVIGER_HOME")
            }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(given: Option<&str>, variables: &[(&str, &str)]) -> Option<PathBuf> {
        choose(given.map(Path::new), |name| {
            let found = variables.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| value.into())
        })
        .ok()
    }

    #[test]
    fn the_option_goes_before_the_variable_and_the_variable_before_the_data_folder() {
        let all = [
            ("CLAVIGER_HOME", "/v"),
            ("XDG_DATA_HOME", "/x"),
            ("HOME", "/h"),
        ];
        assert_eq!(chosen(Some("/o"), &all), Some("/o".into()));
        assert_eq!(chosen(None, &all), Some("/v".into()));
        assert_eq!(chosen(None, &all[1..]), Some("/x/claviger".into()));
        assert_eq!(
            chosen(None, &all[2..]),
            Some("/h/.local/share/claviger".into())
        );
        assert_eq!(chosen(None, &[]), None);
    }

    #[test]
    fn what_is_empty_or_relative_where_it_must_not_be_does_not_count() {
        let odd = [
            ("CLAVIGER_HOME", ""),
            ("XDG_DATA_HOME", "x"),
            ("HOME", "/h"),
        ];
        assert_eq!(chosen(None, &odd), Some("/h/.local/share/claviger".into()));
        assert_eq!(chosen(Some(""), &odd), None);
    }
}
