//! The mark that a daemon leaves in its home, so that a command knows that home's daemon without
//! opening the registry: `run/daemon`, with the home's id and the inode of its folder. A copy of the
//! home has another inode. A mark that is missing or wrong costs time and nothing else: then the
//! registry is asked.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The most bytes that a mark has.
const LONGEST: u64 = 256;

/// Leaves the mark of a daemon whose home has this id.
///
/// # Errors
/// What the file system says.
pub(crate) fn leave(home: &Path, home_id: &str) -> io::Result<()> {
    let folder = home.join("run");
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)?;
    let content = content(home_id, fs::metadata(home)?.ino());
    let mut file = tempfile::NamedTempFile::new_in(&folder)?;
    file.write_all(content.as_bytes())?;
    file.persist(path_in(home))?;
    Ok(())
}

/// Whether the mark in `home` is of a daemon whose home has this id.
pub(crate) fn is_of(home: &Path, home_id: &str) -> bool {
    let inode = fs::metadata(home).map(|found| found.ino());
    let found = File::open(path_in(home)).and_then(|file| {
        let mut text = String::new();
        file.take(LONGEST).read_to_string(&mut text)?;
        Ok(text)
    });
    match (inode, found) {
        (Ok(inode), Ok(text)) => text == content(home_id, inode),
        _ => false,
    }
}

fn path_in(home: &Path) -> PathBuf {
    home.join("run/daemon")
}

fn content(home_id: &str, inode: u64) -> String {
    format!("{home_id} {inode}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_of_one_home_and_not_of_its_copies() {
        let folder = tempfile::tempdir().unwrap();
        let (home, copy) = (folder.path().join("home"), folder.path().join("copy"));
        fs::create_dir(&home).unwrap();
        assert!(!is_of(&home, "ab"));
        leave(&home, "ab").unwrap();
        assert!(is_of(&home, "ab"));
        assert!(!is_of(&home, "cd"));
        fs::create_dir_all(copy.join("run")).unwrap();
        fs::copy(path_in(&home), path_in(&copy)).unwrap();
        assert!(!is_of(&copy, "ab"));
        leave(&home, "cd").unwrap();
        assert!(is_of(&home, "cd"));
    }
}
