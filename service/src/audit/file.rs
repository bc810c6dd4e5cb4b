//! The file that lines are appended to.
//!
//! One process writes to it: it holds a lock. A write that fails is undone, so that a later one
//! does not stand behind half a line. After a sync that failed nothing is written until what may
//! not be on the disk was written once more and synced: the system reports such a failure once, and
//! takes the pages for written afterwards.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, OFlags, fcntl_getfl, fcntl_setfl, flock};

use super::AuditError;
use super::found::{Found, beside, open};
use super::line::{Content, Hash, Line, Read, hash_of, hex};

/// After so many lines it is time for a seal.
const SEAL_AFTER: u64 = 10_000;

pub(super) struct LogFile {
    path: PathBuf,
    longest: u64,
    file: Arc<File>,
    /// How long the file is.
    length: u64,
    /// The number of the next line.
    next: u64,
    /// The hash of the last one.
    last: Hash,
    /// The number of the last line that a seal covers.
    sealed: u64,
    is_dirty: bool,
    /// How much of the file is on the disk.
    on_disk: u64,
    /// Whether a sync failed: what is behind `on_disk` may be on no disk, whatever a later one says.
    is_lost: bool,
    /// How often a sync failed.
    losses: u64,
    /// Why nothing can be written.
    failure: Option<String>,
    /// Whether what is in the file is not known.
    is_unknown: bool,
    line: Vec<u8>,
}

impl LogFile {
    pub(super) fn open(path: &Path, longest: u64) -> Result<Self, AuditError> {
        let found = Found::at(path).map_err(|error| unavailable(path, &error))?;
        let mut log = LogFile {
            path: path.into(),
            longest,
            file: Arc::new(found.file),
            length: found.length,
            next: found.next,
            last: found.last,
            // A seal covers all that is before it: also what a crash left without one.
            sealed: 0,
            // What was there before may have been written by a process that was killed.
            is_dirty: true,
            on_disk: 0,
            is_lost: false,
            losses: 0,
            failure: None,
            is_unknown: false,
            line: Vec::with_capacity(512),
        };
        if found.length == 0 {
            log.append(|_| Content::open())?;
        }
        if found.cut > 0 {
            log.append(|_| Content::recovered(found.cut))?;
        }
        Ok(log)
    }

    /// Why nothing could be written when it was tried last.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.clone()
    }

    /// Writes a line, whose number it hands to `content` and back.
    pub(super) fn append<'a>(
        &mut self,
        content: impl FnOnce(u64) -> Content<'a>,
    ) -> Result<u64, AuditError> {
        self.is_not_lost()?;
        if self.is_unknown {
            self.reopen()?;
        }
        if self.length >= self.longest {
            self.rotate()?;
        }
        self.append_here(content)
    }

    fn append_here<'a>(
        &mut self,
        content: impl FnOnce(u64) -> Content<'a>,
    ) -> Result<u64, AuditError> {
        let number = self.next;
        let line = Line::now(number, &self.last, content(number));
        self.line.clear();
        serde_json::to_writer(&mut self.line, &line)
            .map_err(|error| unavailable(&self.path, &error.into()))?;
        let hash = hash_of(&self.line);
        self.line.push(b'\n');
        if let Err(error) = (&*self.file).write_all(&self.line) {
            // Half a line may be there.
            self.is_unknown = self.file.set_len(self.length).is_err();
            return Err(self.failed(&error));
        }
        self.failure = None;
        self.is_dirty = true;
        self.length += self.line.len() as u64;
        self.next += 1;
        self.last = hash;
        Ok(number)
    }

    /// What is to be synced, if anything was written since it was on the disk. After a failure it
    /// is written once more before.
    ///
    /// # Errors
    /// [`AuditError::Unavailable`]: it is not in the file any more, or cannot be written there.
    pub(super) fn take_unsynced(&mut self) -> Result<Option<Unsynced>, AuditError> {
        if !self.is_dirty {
            return Ok(None);
        }
        if self.is_lost {
            self.write_once_more()
                .map_err(|error| self.failed(&error))?;
        }
        self.is_dirty = false;
        Ok(Some(Unsynced {
            file: Arc::clone(&self.file),
            length: self.length,
            losses: self.losses,
        }))
    }

    /// Notes what came of it.
    ///
    /// # Errors
    /// That of the sync.
    pub(super) fn synced(
        &mut self,
        what: &Unsynced,
        synced: &io::Result<()>,
    ) -> Result<(), AuditError> {
        if let Err(error) = synced {
            self.is_dirty = true;
            self.is_lost = true;
            self.losses += 1;
            return Err(self.failed(error));
        }
        // One that began before a failure does not say what failed.
        if what.losses == self.losses && Arc::ptr_eq(&what.file, &self.file) {
            self.on_disk = what.length;
            if std::mem::take(&mut self.is_lost) {
                self.failure = None;
            }
        }
        Ok(())
    }

    fn is_not_lost(&self) -> Result<(), AuditError> {
        let failure = self.failure.as_ref().filter(|_| self.is_lost);
        failure.map_or(Ok(()), |reason| {
            Err(AuditError::Unavailable {
                path: self.path.clone(),
                reason: reason.clone(),
            })
        })
    }

    /// Writes what may be on no disk over itself, if it is what was written.
    fn write_once_more(&self) -> io::Result<()> {
        let length = self.length.saturating_sub(self.on_disk);
        let mut lines = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut lines, self.on_disk)?;
        if !is_chain(&lines, &self.last) {
            return Err(io::Error::other("lines that were written are not there"));
        }
        // Else it would be appended.
        let flags = fcntl_getfl(&self.file)?;
        fcntl_setfl(&self.file, flags - OFlags::APPEND)?;
        let written = self.file.write_all_at(&lines, self.on_disk);
        fcntl_setfl(&self.file, flags)?;
        written
    }

    /// Moves the file aside, unless somebody else did already, and begins another one.
    pub(super) fn rotate(&mut self) -> Result<(), AuditError> {
        self.is_not_lost()?;
        if let Some(what) = self.take_unsynced()? {
            let synced = what.sync();
            self.synced(&what, &synced)?;
        }
        let moved = (|| -> io::Result<()> {
            let ours = self.file.metadata()?;
            let is_there =
                |found: std::fs::Metadata| (found.ino(), found.dev()) == (ours.ino(), ours.dev());
            if self.path.symlink_metadata().is_ok_and(is_there) {
                // Sorted by name they are in order.
                let aside = beside(&self.path, &format!("{:012}", self.next.saturating_sub(1)));
                std::fs::rename(&self.path, aside)?;
            }
            let file = open(&self.path)?;
            let length = file.metadata()?.len();
            if length > 0 {
                return Err(io::Error::other("there is another file in its place"));
            }
            self.file = Arc::new(file);
            (self.length, self.on_disk) = (0, 0);
            Ok(())
        })();
        moved.map_err(|error| self.failed(&error))?;
        self.append_here(|_| Content::open()).map(drop)
    }

    /// Whether it is time for a seal.
    pub(super) fn wants_seal(&self) -> bool {
        self.next.saturating_sub(self.sealed) > SEAL_AFTER
    }

    /// What a seal covers now: the number of the last line, and its hash; none where there is
    /// nothing new but the last seal.
    pub(super) fn to_seal(&self) -> Option<(u64, Hash)> {
        let last = self.next.checked_sub(1)?;
        (last > self.sealed).then_some((last, self.last))
    }

    /// A seal was written that covers the lines up to this one, and is itself the line `at`.
    pub(super) fn sealed(&mut self, upto: u64, at: u64) {
        // A seal needs no seal.
        self.sealed = if at == upto + 1 { at } else { upto };
    }

    fn reopen(&mut self) -> Result<(), AuditError> {
        // Its lock is let go of first, also where it is being synced.
        let number = self.next;
        flock(&self.file, FlockOperation::Unlock)
            .map_err(|error| unavailable(&self.path, &error.into()))?;
        self.file = Arc::new(File::open("/dev/null").map_err(|e| unavailable(&self.path, &e))?);
        let again = LogFile::open(&self.path, self.longest)
            .inspect_err(|error| self.failure = Some(error.to_string()))?;
        if again.next < number {
            let lost = io::Error::other("lines that were written are not there");
            return Err(self.failed(&lost));
        }
        let losses = self.losses;
        *self = LogFile { losses, ..again };
        Ok(())
    }

    fn failed(&mut self, error: &io::Error) -> AuditError {
        self.failure = Some(error.to_string());
        unavailable(&self.path, error)
    }
}

/// What is to be synced.
pub(super) struct Unsynced {
    file: Arc<File>,
    length: u64,
    losses: u64,
}

impl Unsynced {
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Whether these are whole lines that follow each other, and the last has this hash.
fn is_chain(lines: &[u8], last: &Hash) -> bool {
    let mut before: Option<Hash> = None;
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or_default();
        let follows = |read: Read| before.is_none_or(|before| read.prev == hex(&before));
        if !Read::of(line).is_some_and(follows) {
            return false;
        }
        before = Some(hash_of(line));
    }
    before.is_none_or(|before| before == *last)
}

fn unavailable(path: &Path, error: &io::Error) -> AuditError {
    AuditError::Unavailable {
        path: path.into(),
        reason: error.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn log() -> (tempfile::TempDir, LogFile) {
        let folder = tempfile::tempdir().unwrap();
        let log = LogFile::open(&folder.path().join("log"), 64 << 20).unwrap();
        (folder, log)
    }

    fn full() -> io::Result<()> {
        Err(io::Error::from_raw_os_error(5))
    }

    #[test]
    fn after_a_failed_sync_nothing_is_written_until_the_lines_are_on_the_disk() {
        let (folder, mut log) = log();
        let what = log.take_unsynced().unwrap().unwrap();
        log.synced(&what, &what.sync()).unwrap();
        log.append(|_| Content::close()).unwrap();
        let what = log.take_unsynced().unwrap().unwrap();
        // The system says it once.
        log.synced(&what, &full()).unwrap_err();
        assert!(log.append(|_| Content::close()).is_err());
        assert!(log.rotate().is_err());
        // What another sync says, which began before, is not about this one.
        log.synced(&what, &Ok(())).unwrap();
        assert!(log.append(|_| Content::close()).is_err());
        assert!(log.failure().is_some());
        // Again it fails.
        let again = log.take_unsynced().unwrap().unwrap();
        log.synced(&again, &full()).unwrap_err();
        assert!(log.append(|_| Content::close()).is_err());
        // Then it does not.
        let again = log.take_unsynced().unwrap().unwrap();
        log.synced(&again, &again.sync()).unwrap();
        assert_eq!(log.failure(), None);
        log.append(|_| Content::close()).unwrap();
        let text = std::fs::read(folder.path().join("log")).unwrap();
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 3);
        assert!(is_chain(&text, &log.last));
    }

    #[test]
    fn lines_that_a_failed_sync_lost_are_not_taken_for_written() {
        let (folder, mut log) = log();
        let what = log.take_unsynced().unwrap().unwrap();
        log.synced(&what, &full()).unwrap_err();
        // The disk had nothing of it.
        let path = folder.path().join("log");
        std::fs::write(&path, vec![0; std::fs::read(&path).unwrap().len()]).unwrap();
        assert!(log.take_unsynced().is_err());
        assert!(log.append(|_| Content::close()).is_err());
    }
}
