//! Tells whether the process that wrote something down is still alive.
//!
//! Each node holds a lock on a file of its own for as long as it lives; the system
//! releases it when the process ends, however it ends. A name in the registry whose
//! file can be locked is the name of a dead one. Process numbers are not used: they
//! come again.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use claviger_token::key::to_hex;
use rand_core::{OsRng, RngCore};

/// How many hexadecimal digits a lease's name has.
const NAME: usize = 24;

/// The sign of life of one node.
#[derive(Debug)]
pub(crate) struct Lease {
    name: String,
    file: Option<(PathBuf, File)>,
}

impl Lease {
    /// Takes a lease in `folder`.
    pub(crate) fn hold(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let name = random_name();
        let fresh = folder.join(format!("{name}.new"));
        let path = folder.join(&name);
        let file = File::create_new(&fresh)?;
        file.lock()?;
        // Under its own name the file is never seen unlocked.
        fs::rename(&fresh, &path)?;
        Ok(Lease {
            name,
            file: Some((path, file)),
        })
    }

    /// Removes the files of the dead.
    pub(crate) fn sweep(&self) {
        let folder = self.file.as_ref().and_then(|(path, _)| path.parent());
        let entries = folder.and_then(|folder| fs::read_dir(folder).ok());
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name();
            // There are files of others here, too.
            if let Some(name) = name.to_str().filter(|name| is_lease(name)) {
                self.is_alive(name);
            }
        }
    }

    /// A lease that no other process can see.
    pub(crate) fn unseen() -> Self {
        Lease {
            name: random_name(),
            file: None,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the holder of the lease `name` lives. What cannot be found out is taken for
    /// alive: nothing is lost by waiting.
    pub(crate) fn is_alive(&self, name: &str) -> bool {
        if name == self.name {
            return true;
        }
        let Some(folder) = self.file.as_ref().and_then(|(path, _)| path.parent()) else {
            return false;
        };
        let path = folder.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) => return error.kind() != io::ErrorKind::NotFound,
        };
        match file.try_lock() {
            Ok(()) => {
                // Nobody takes this name again, so the file is of no more use.
                let _ = fs::remove_file(&path);
                false
            }
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => true,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.file {
            let _ = fs::remove_file(path);
        }
    }
}

fn random_name() -> String {
    let mut bytes = [0; NAME / 2];
    OsRng.fill_bytes(&mut bytes);
    to_hex(&bytes)
}

fn is_lease(name: &str) -> bool {
    name.len() == NAME && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lives_as_long_as_its_holder() {
        let folder = tempfile::tempdir().unwrap();
        let here = Lease::hold(folder.path()).unwrap();
        let there = Lease::hold(folder.path()).unwrap();
        let name = there.name().to_owned();
        assert!(here.is_alive(&name));
        drop(there);
        assert!(!here.is_alive(&name));
    }

    #[test]
    fn files_of_the_dead_are_swept_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let here = Lease::hold(folder.path()).unwrap();
        let there = Lease::hold(folder.path()).unwrap();
        let dead = folder.path().join("0123456789abcdef01234567");
        let other = folder.path().join("pin-0123");
        fs::write(&dead, "").unwrap();
        fs::write(&other, "").unwrap();
        here.sweep();
        assert!(!dead.exists() && other.exists());
        assert!(here.is_alive(there.name()) && here.is_alive(here.name()));
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_taken_for_a_sign_of_life() {
        let folder = tempfile::tempdir().unwrap();
        let here = Lease::hold(folder.path()).unwrap();
        // Opening it fails, and not because it is not there.
        let name = "x".repeat(300);
        assert!(here.is_alive(&name));
    }

    #[test]
    fn a_file_left_behind_by_a_dead_process_is_no_sign_of_life() {
        let folder = tempfile::tempdir().unwrap();
        let here = Lease::hold(folder.path()).unwrap();
        fs::write(folder.path().join("0123"), "").unwrap();
        assert!(!here.is_alive("0123"));
        assert!(!folder.path().join("0123").exists());
    }
}
