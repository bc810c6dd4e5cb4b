//! Claims: which process uses a device, and whether the device shows a review.
//!
//! A command that arrives during a review loses its answer: the app answers the command instead.
//! So processes take turns. Each shared device has a file in a folder of the user, and the process
//! that uses the device holds a lock on it. The lock ends with the process. While the file is not
//! empty, the device shows a review.
//!
//! | the file is | and | then |
//! | --- | --- | --- |
//! | locked | empty | the process waits for its turn |
//! | locked | not empty | the device is busy with a review |
//! | free | not empty, for [`LEFT_BEHIND`] at most | a process ended meanwhile: the review may still be on the screen |
//! | free | empty, or older | there is no review |
//!
//! Without such a folder there are no claims, as with a single process.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use claviger_token::key::to_hex;
use sha2::{Digest, Sha256};

/// How long a review that nobody waits for is taken to be on the screen. When it ends
/// nobody may be there to see it.
pub(crate) const LEFT_BEHIND: Duration = Duration::from_secs(30);

/// The right to talk to a device.
#[derive(Debug)]
pub(crate) struct Claim {
    /// None where nothing is claimed.
    file: Option<File>,
}

/// Somebody else has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    /// A person is being asked.
    pub(crate) reviewing: bool,
}

impl Claim {
    /// Claims the device that processes know by `name`, if no other process has it. A
    /// device without a name is this process's alone.
    pub(crate) fn take(name: Option<&str>) -> Result<Claim, Taken> {
        let Some(name) = name else {
            return Ok(Claim { file: None });
        };
        let file = match open(name) {
            Ok(file) => file,
            Err(error) => {
                tracing::debug!(%error, "other processes cannot be told");
                return Ok(Claim { file: None });
            }
        };
        match file.try_lock() {
            Ok(()) => Ok(Claim { file: Some(file) }),
            Err(TryLockError::WouldBlock) => Err(Taken {
                reviewing: is_marked(&file),
            }),
            Err(TryLockError::Error(error)) => {
                tracing::debug!(%error, "other processes cannot be told");
                Ok(Claim { file: None })
            }
        }
    }

    /// Whether other processes wait for it.
    pub(crate) fn is_shared(&self) -> bool {
        self.file.is_some()
    }

    /// For how long a review may still be there that a process left behind.
    pub(crate) fn left_behind(&self) -> Option<Duration> {
        let file = self.file.as_ref().filter(|file| is_marked(file))?;
        let since = file.metadata().ok()?.modified().ok()?.elapsed();
        // A clock that was put back makes it new.
        let left = LEFT_BEHIND.checked_sub(since.unwrap_or_default());
        left.filter(|left| !left.is_zero())
    }

    /// Others are told that a person is being asked, from now on.
    pub(crate) fn begin_review(&self) {
        self.change(|mut file| {
            file.set_len(0)?;
            io::Seek::rewind(&mut file)?;
            file.write_all(b"review\n")
        });
    }

    /// The review is over.
    pub(crate) fn end_review(&self) {
        self.change(|file| match file.metadata()?.len() {
            0 => Ok(()),
            _ => file.set_len(0),
        });
    }

    fn change(&self, change: impl FnOnce(&File) -> io::Result<()>) {
        if let Some(file) = &self.file
            && let Err(error) = change(file)
        {
            tracing::debug!(%error, "other processes are not told of a review");
        }
    }
}

fn is_marked(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.len() > 0)
}

/// The file of the device that processes know by `name`.
fn open(name: &str) -> io::Result<File> {
    let mut digest = to_hex(&Sha256::digest(name));
    digest.truncate(32);
    let path = folder()?.join(format!("ledger-{digest}"));
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// A folder of the user's own that does not outlast the system.
#[cfg(unix)]
fn folder() -> io::Result<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};

    let user = rustix::process::geteuid().as_raw();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let path = match runtime.filter(|folder| folder.is_absolute() && folder.is_dir()) {
        Some(runtime) => runtime.join("claviger"),
        None => std::env::temp_dir().join(format!("claviger-{user}")),
    };
    match std::fs::DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // In a folder that everybody writes to it may be anybody's, or a link to anywhere.
    let metadata = std::fs::symlink_metadata(&path)?;
    let own = metadata.is_dir() && metadata.uid() == user && metadata.mode() & 0o022 == 0;
    match own {
        true => Ok(path),
        false => Err(io::Error::other(
            "the folder for claims is not the user's own",
        )),
    }
}

#[cfg(not(unix))]
fn folder() -> io::Result<PathBuf> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name that no other test has.
    fn name(test: &str) -> String {
        format!("{test} {}", std::process::id())
    }

    #[test]
    fn a_device_has_one_claim_and_a_review_is_seen_by_others() {
        let name = name("one claim");
        let claim = Claim::take(Some(&name)).unwrap();
        let reviewing = || Claim::take(Some(&name)).map(drop).unwrap_err().reviewing;
        assert!(!reviewing());
        claim.begin_review();
        assert!(reviewing());
        claim.end_review();
        assert!(!reviewing());
        drop(claim);
        let claim = Claim::take(Some(&name)).unwrap();
        assert_eq!(claim.left_behind(), None);
        // Other devices are not concerned, nor those that only one process can reach.
        Claim::take(Some(&format!("{name}, another"))).unwrap();
        Claim::take(None).unwrap();
    }

    #[test]
    fn a_review_that_was_left_behind_is_remembered_for_a_while() {
        let name = name("left behind");
        Claim::take(Some(&name)).unwrap().begin_review();
        let claim = Claim::take(Some(&name)).unwrap();
        let left = claim.left_behind().unwrap();
        assert!(left > LEFT_BEHIND / 2 && left <= LEFT_BEHIND);
        let file = claim.file.as_ref().unwrap();
        let long_ago = std::time::SystemTime::now() - LEFT_BEHIND * 2;
        file.set_modified(long_ago).unwrap();
        assert_eq!(claim.left_behind(), None);
        claim.begin_review();
        assert!(claim.left_behind().is_some());
        claim.end_review();
        assert_eq!(claim.left_behind(), None);
    }
}
