//! The file that lines are appended to.
//!
//! One process writes to it: it holds a lock. A write that fails is undone, so that a later one
//! does not stand behind half a line. What a crash left at the end is moved to `FILE.cut-N`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use rustix::process::getuid;

use super::AuditError;
use super::line::{Content, Hash, LONGEST, Line, NOTHING, Read, hash_of};

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
            is_dirty: false,
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

    /// Brings it to the disk.
    pub(super) fn sync(&mut self) -> Result<(), AuditError> {
        let synced = self.file.sync_data();
        self.synced(&synced);
        synced.map_err(|error| unavailable(&self.path, &error))
    }

    /// The file, if anything was written since it was on the disk.
    pub(super) fn take_unsynced(&mut self) -> Option<Arc<File>> {
        std::mem::take(&mut self.is_dirty).then(|| Arc::clone(&self.file))
    }

    /// Notes what came of it.
    pub(super) fn synced(&mut self, synced: &io::Result<()>) {
        if let Err(error) = synced {
            self.is_dirty = true;
            self.failed(error);
        }
    }

    /// Moves the file aside, unless somebody else did already, and begins another one.
    pub(super) fn rotate(&mut self) -> Result<(), AuditError> {
        let moved = (|| -> io::Result<()> {
            self.file.sync_data()?;
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
            self.length = 0;
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
        // Its lock is let go of first.
        let number = self.next;
        self.file = Arc::new(File::open("/dev/null").map_err(|e| unavailable(&self.path, &e))?);
        let again = LogFile::open(&self.path, self.longest)
            .inspect_err(|error| self.failure = Some(error.to_string()))?;
        if again.next < number {
            let lost = io::Error::other("lines that were written are not there");
            return Err(self.failed(&lost));
        }
        *self = again;
        Ok(())
    }

    fn failed(&mut self, error: &io::Error) -> AuditError {
        self.failure = Some(error.to_string());
        unavailable(&self.path, error)
    }
}

/// A log as it was left.
struct Found {
    file: File,
    length: u64,
    next: u64,
    last: Hash,
    /// The number of bytes at its end that were moved aside.
    cut: u64,
}

impl Found {
    fn at(path: &Path) -> io::Result<Self> {
        let mut file = open(path)?;
        let length = file.metadata()?.len();
        // The end of it has the last whole line, and what may stand behind it.
        let from = length.saturating_sub(4 * LONGEST as u64);
        let mut end = Vec::new();
        file.seek(SeekFrom::Start(from))?;
        file.read_to_end(&mut end)?;
        let Some((last, behind)) = last_line(&end) else {
            if from == 0 && !end.contains(&b'\n') {
                return Found::without_line(path, file, &end);
            }
            return Err(io::Error::other("it is not a log of this program"));
        };
        let read = Read::of(last).ok_or_else(|| io::Error::other("its last line is damaged"))?;
        let (hash, cut) = (hash_of(last), end.len() - behind);
        let length = length - cut as u64;
        set_aside(path, &file, &end[behind..], length)?;
        Ok(Found {
            file,
            length,
            next: read.n + 1,
            last: hash,
            cut: cut as u64,
        })
    }

    /// A new one, or one whose first line was cut short: no other one is a beginning of it.
    fn without_line(path: &Path, file: File, end: &[u8]) -> io::Result<Self> {
        const BEGINS: &[u8] = b"{\"n\":";
        let is_ours = end.iter().zip(BEGINS).all(|(one, other)| one == other);
        if !is_ours && !end.iter().all(|byte| *byte == 0) {
            return Err(io::Error::other("it is not a log of this program"));
        }
        set_aside(path, &file, end, 0)?;
        let (next, last) = before(path)?;
        Ok(Found {
            file,
            length: 0,
            next,
            last,
            cut: end.len() as u64,
        })
    }
}

/// The number of the next line and the hash of the last one, in the newest of the files that were
/// moved aside.
fn before(path: &Path) -> io::Result<(u64, Hash)> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let mut newest: Option<(u64, PathBuf)> = None;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let other = entry.file_name().to_string_lossy().into_owned();
        let number = other
            .strip_prefix(&name)
            .and_then(|rest| rest.strip_prefix('.'));
        let Some(number) = number.and_then(|number| number.parse().ok()) else {
            continue;
        };
        if newest.as_ref().is_none_or(|(known, _)| *known < number) {
            newest = Some((number, entry.path()));
        }
    }
    let Some((_, newest)) = newest else {
        return Ok((1, NOTHING));
    };
    let mut file = File::open(newest)?;
    let from = file.metadata()?.len().saturating_sub(4 * LONGEST as u64);
    let mut end = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    file.read_to_end(&mut end)?;
    let last = last_line(&end).and_then(|(last, _)| Some((Read::of(last)?.n, hash_of(last))));
    let (number, hash) =
        last.ok_or_else(|| io::Error::other("the end of the file before it is damaged"))?;
    Ok((number + 1, hash))
}

/// Moves what is behind the last line to a file of its own, and cuts it off.
fn set_aside(path: &Path, file: &File, behind: &[u8], length: u64) -> io::Result<()> {
    if behind.is_empty() {
        return Ok(());
    }
    let aside = (1..)
        .map(|number| beside(path, &format!("cut-{number}")))
        .find(|aside| aside.symlink_metadata().is_err())
        .unwrap_or_default();
    let mut moved = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(aside)?;
    moved.write_all(behind)?;
    moved.sync_all()?;
    file.set_len(length)
}

/// The last whole line that is one of ours, without its end, and where what is behind it begins.
fn last_line(end: &[u8]) -> Option<(&[u8], usize)> {
    let mut behind = end.len();
    loop {
        behind = end[..behind].iter().rposition(|byte| *byte == b'\n')? + 1;
        let begins = end[..behind - 1].iter().rposition(|byte| *byte == b'\n');
        let line = &end[begins.map_or(0, |at| at + 1)..behind - 1];
        if Read::of(line).is_some() {
            return Some((line, behind));
        }
        // After a power cut there may be other bytes, with ends of lines among them.
        behind -= 1;
    }
}

/// Opens the file for this process alone.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    if found.uid() != getuid().as_raw() || found.mode() & 0o022 != 0 {
        return Err(io::Error::other("others own it or can write to it"));
    }
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(io::Error::other("another process writes to it")),
        Err(error) => Err(error.into()),
    }
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(end);
    name.into()
}

fn unavailable(path: &Path, error: &io::Error) -> AuditError {
    AuditError::Unavailable {
        path: path.into(),
        reason: error.to_string(),
    }
}
