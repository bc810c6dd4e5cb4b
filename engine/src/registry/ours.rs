//! Whether the home and the registry are this user's alone: who can write there names a module
//! that runs as code.

use std::fs::{File, Metadata, OpenOptions};
use std::path::{Path, PathBuf};

use super::{RegistryError, Result};

/// A folder or a file that nobody else can write to.
///
/// It is held by a descriptor that neither reads nor writes (`O_PATH`, open(2)). Closing any
/// other would take away the locks that SQLite has on the file (fcntl(2)).
pub(super) struct Ours {
    path: PathBuf,
    held: Held,
}

#[cfg(target_os = "linux")]
type Held = File;
#[cfg(not(target_os = "linux"))]
type Held = Metadata;

impl Ours {
    /// Refuses what somebody else owns, or can write to, and a file that is empty.
    pub(super) fn check(path: &Path) -> Result<Self> {
        let held = hold(path).map_err(|e| RegistryError::io(&e))?;
        let ours = Ours {
            path: path.into(),
            held,
        };
        let found = ours.found()?;
        if found.is_file() && found.len() == 0 {
            return Err(RegistryError::Empty { path: path.into() });
        }
        match who_else(&found) {
            None => Ok(ours),
            Some(reason) => Err(ours.refused(reason)),
        }
    }

    /// Refuses another one that was put in its place since, which nobody has checked.
    pub(super) fn is_still_there(&self) -> Result<()> {
        let now = self.path.metadata().map_err(|e| RegistryError::io(&e))?;
        match is_same(&self.found()?, &now) {
            true => Ok(()),
            false => Err(self.refused("another one was put in its place just now".into())),
        }
    }

    #[cfg(target_os = "linux")]
    fn found(&self) -> Result<Metadata> {
        self.held.metadata().map_err(|e| RegistryError::io(&e))
    }

    #[cfg(not(target_os = "linux"))]
    fn found(&self) -> Result<Metadata> {
        Ok(self.held.clone())
    }

    fn refused(&self, reason: String) -> RegistryError {
        RegistryError::NotPrivate {
            path: self.path.clone(),
            reason,
        }
    }
}

#[cfg(target_os = "linux")]
fn hold(path: &Path) -> std::io::Result<Held> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::PATH.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

#[cfg(not(target_os = "linux"))]
fn hold(path: &Path) -> std::io::Result<Held> {
    path.metadata()
}

#[cfg(unix)]
fn is_same(one: &Metadata, other: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

#[cfg(not(unix))]
fn is_same(_: &Metadata, _: &Metadata) -> bool {
    true
}

/// Who else has a hand in it, if anybody.
#[cfg(unix)]
fn who_else(found: &Metadata) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let us = rustix::process::geteuid().as_raw();
    match (found.uid() == us, found.mode() & 0o022) {
        (true, 0) => None,
        (false, _) => Some(format!(
            "it belongs to the user {}, and this is {us}",
            found.uid()
        )),
        (true, _) => Some(format!(
            "others can write to it (mode {:o})",
            found.mode() & 0o777
        )),
    }
}

#[cfg(not(unix))]
fn who_else(_: &Metadata) -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_the_place_of_what_was_checked_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "ours").unwrap();
        let ours = Ours::check(&path).unwrap();
        ours.is_still_there().unwrap();
        let other = folder.path().join("other");
        std::fs::write(&other, "another").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert!(matches!(
            ours.is_still_there(),
            Err(RegistryError::NotPrivate { .. })
        ));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_registry_keeps_its_locks_when_it_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let db = rusqlite::Connection::open(&path).unwrap();
        db.execute_batch("PRAGMA journal_mode = DELETE; CREATE TABLE t (x); BEGIN EXCLUSIVE")
            .unwrap();
        drop(Ours::check(&path).unwrap());
        // Of the process's own locks only others can tell.
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        let inode = std::os::unix::fs::MetadataExt::ino(&path.metadata().unwrap());
        assert!(locks.contains(&format!(":{inode} ")), "{locks}");
    }
}
