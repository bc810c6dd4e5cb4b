//! What the path of an input or an output stands for.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// The maximum number of links that are followed, as in Linux.
const MOST_LINKS: usize = 40;

/// Whether the path stands for standard input or output.
pub(crate) fn is_standard(path: Option<&Path>) -> bool {
    path.is_none_or(|path| path.as_os_str() == "-")
}

/// What a path leads to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// An open descriptor; with its number if it belongs to this process.
    Descriptor(Option<u32>),
    /// Any other path, with all links resolved; it need not exist.
    Path(PathBuf),
}

impl Target {
    /// Resolves all links; the last may lead to nothing. A descriptor is not resolved, since the
    /// file behind it must never be replaced.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let mut path = path.to_owned();
        for _ in 0..MOST_LINKS {
            let Some(name) = path.file_name() else {
                return Ok(Target::Path(fs::canonicalize(&path)?));
            };
            let folder = match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => fs::canonicalize(folder)?,
                _ => fs::canonicalize(".")?,
            };
            if let Some(process) = of_descriptors(&folder) {
                let is_ours = process == std::process::id().to_string();
                let number = name.to_str().and_then(|name| name.parse().ok());
                return Ok(Target::Descriptor(number.filter(|_| is_ours)));
            }
            let place = folder.join(name);
            match fs::read_link(&place) {
                // An absolute path replaces what it is joined to.
                Ok(link) => path = folder.join(link),
                Err(_) => return Ok(Target::Path(place)),
            }
        }
        Err(io::Error::other("too many links"))
    }
}

/// The process whose descriptors are in this folder, if any: `/proc/N/fd`, or `/proc/N/task/N/fd`.
/// If `/dev/fd` is not a link into `/proc`, it is this process.
fn of_descriptors(folder: &Path) -> Option<String> {
    let names: Option<Vec<&str>> = folder
        .components()
        .filter(|part| *part != Component::RootDir)
        .map(|part| part.as_os_str().to_str())
        .collect();
    match names?.as_slice() {
        ["dev", "fd"] => Some(std::process::id().to_string()),
        ["proc", process, "fd"] | ["proc", process, "task", _, "fd"] => Some((*process).into()),
        _ => None,
    }
}

/// Whether reading from the path is reading from standard input.
pub(crate) fn is_stdin(path: Option<&Path>) -> bool {
    match path {
        Some(path) if !is_standard(Some(path)) => {
            matches!(Target::of(path), Ok(Target::Descriptor(Some(0))))
        }
        _ => true,
    }
}

/// The file that a backend names as the source of its PIN (RFC 7512 §2.4, `pin-source`).
pub(crate) fn pin_file_of(backend: &str) -> Option<PathBuf> {
    let mut attributes = backend.split(['?', '&', ';']);
    let source = attributes.find_map(|text| text.strip_prefix("pin-source="))?;
    let mut bytes = Vec::new();
    let mut rest = source.bytes();
    while let Some(byte) = rest.next() {
        let hex = |byte: Option<u8>| char::from(byte?).to_digit(16);
        bytes.push(match byte {
            b'%' => u8::try_from(hex(rest.next())? << 4 | hex(rest.next())?).ok()?,
            byte => byte,
        });
    }
    let path = String::from_utf8(bytes).ok()?;
    let path = path.strip_prefix("file:").unwrap_or(&path);
    Some(path.strip_prefix("//").unwrap_or(path).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_link_to_itself_leads_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let circle = folder.path().join("circle");
        std::os::unix::fs::symlink("circle", &circle).unwrap();
        assert!(Target::of(&circle).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn descriptors_are_known_by_all_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/stdout", &link).unwrap();
        for (path, number) in [
            ("/dev/stdin", 0),
            ("/dev/stdout", 1),
            ("/dev/stderr", 2),
            ("/dev/fd/7", 7),
            ("/proc/self/fd/7", 7),
            ("/proc/thread-self/fd/1", 1),
            (link.to_str().unwrap(), 1),
        ] {
            let place = Target::of(Path::new(path)).unwrap();
            assert_eq!(place, Target::Descriptor(Some(number)), "{path}");
        }
        let of_another = Target::of(Path::new("/proc/1/fd/1"));
        assert!(!matches!(of_another, Ok(Target::Path(_))));
        assert!(is_stdin(None) && is_stdin(Some(Path::new("/dev/stdin"))));
        assert!(!is_stdin(Some(Path::new("stdin"))));
    }

    #[test]
    fn a_backend_says_which_file_its_pin_is_in() {
        let file = |backend| pin_file_of(backend).map(|path| path.display().to_string());
        for backend in [
            "pkcs11:token=a?module-path=/m.so&pin-source=file:/a%20b",
            "pkcs11:token=a?pin-source=/a b",
            "piv:serial=1;pin-source=file:///a%20b;slot=9c",
        ] {
            assert_eq!(file(backend).as_deref(), Some("/a b"), "{backend}");
        }
        assert_eq!(file("pkcs11:token=a"), None);
        assert_eq!(file("pkcs11:token=a?pin-source=%f"), None);
    }

    #[test]
    fn standard_input_has_two_names() {
        assert!(is_standard(None));
        assert!(is_standard(Some(Path::new("-"))));
        assert!(!is_standard(Some(Path::new("./-"))));
    }
}
