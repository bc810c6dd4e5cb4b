//! One daemon for one home.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};

/// The file in a home that its daemon has locked.
pub const LOCK_FILE: &str = "daemon.lock";

/// Why a daemon does not serve a home.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HomeLockError {
    /// Another daemon serves it.
    #[error("a daemon{} serves `{}` already", running(*.pid), .home.display())]
    Taken {
        /// The home.
        home: PathBuf,
        /// The process of that daemon, where its lock says so.
        pid: Option<u32>,
    },
    /// The lock cannot be made or taken.
    #[error("`{}` cannot be locked: {error}", .path.display())]
    Failed {
        /// The lock.
        path: PathBuf,
        /// What the system says.
        #[source]
        error: io::Error,
    },
}

fn running(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

impl HomeLockError {
    /// A stable code: see ERRORS.md.
    pub fn code(&self) -> &'static str {
        match self {
            HomeLockError::Taken { .. } => "daemon-running",
            HomeLockError::Failed { .. } => "daemon-lock",
        }
    }
}

/// The lock of a home. The system takes it back when the process ends, however it ends.
#[derive(Debug)]
pub struct HomeLock {
    _file: File,
}

impl HomeLock {
    /// Takes the lock of `home`, which exists.
    ///
    /// # Errors
    /// [`HomeLockError`].
    pub fn take(home: &Path) -> Result<Self, HomeLockError> {
        let path = home.join(LOCK_FILE);
        let failed = |error| HomeLockError::Failed {
            path: path.clone(),
            error,
        };
        let mut file = open(&path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(HomeLockError::Taken {
                    home: home.to_owned(),
                    pid: noted(&mut file),
                });
            }
            Err(error) => return Err(failed(error.into())),
        }
        // Only people read it, and a full disk is no reason not to serve.
        if let Err(error) = note(&mut file) {
            tracing::debug!(%error, "the daemon's lock does not name its process");
        }
        Ok(HomeLock { _file: file })
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)
}

fn note(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn noted(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_on_one_home_is_refused_until_the_first_ends() {
        let home = tempfile::tempdir().unwrap();
        let first = HomeLock::take(home.path()).unwrap();
        let second = HomeLock::take(home.path()).unwrap_err();
        assert_eq!(second.code(), "daemon-running");
        let pid = std::process::id();
        assert!(
            second.to_string().contains(&format!("process {pid}")),
            "{second}"
        );
        drop(first);
        HomeLock::take(home.path()).unwrap();
    }

    #[test]
    fn a_lock_that_leads_elsewhere_is_not_followed() {
        let home = tempfile::tempdir().unwrap();
        let victim = home.path().join("victim");
        std::fs::write(&victim, "text").unwrap();
        std::os::unix::fs::symlink(&victim, home.path().join(LOCK_FILE)).unwrap();
        let refused = HomeLock::take(home.path()).unwrap_err();
        assert_eq!(refused.code(), "daemon-lock");
        assert_eq!(std::fs::read(&victim).unwrap(), b"text");
    }
}
