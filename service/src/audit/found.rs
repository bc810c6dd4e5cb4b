//! A log as an earlier process left it.
//!
//! What a crash left behind the last whole line is moved to `FILE.cut-N`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::process::getuid;

use super::line::{Hash, LONGEST, NOTHING, Read, hash_of};

/// How much is read at once. After a power cut there may be any number of bytes behind the last
/// line; there is nothing to be said of it before the whole file was read.
const BLOCK: u64 = 4 * LONGEST as u64;

/// A log as it was left.
pub(super) struct Found {
    pub(super) file: File,
    pub(super) length: u64,
    /// The number of the next line.
    pub(super) next: u64,
    /// The hash of the last one.
    pub(super) last: Hash,
    /// The number of bytes at its end that were moved aside.
    pub(super) cut: u64,
}

impl Found {
    /// Opens it, or makes it.
    ///
    /// # Errors
    /// Also if it is no log, others own it or can write to it, or another process writes to it.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        let length = file.metadata()?.len();
        let Some(last) = Last::of(&file, length)? else {
            return Found::without_line(path, file, length);
        };
        set_aside(path, &file, last.behind, length)?;
        Ok(Found {
            file,
            length: last.behind,
            next: last.number + 1,
            last: last.hash,
            cut: length - last.behind,
        })
    }

    /// A new one, or one whose first line was cut short: no other one is a beginning of it.
    fn without_line(path: &Path, file: File, length: u64) -> io::Result<Self> {
        if !is_beginning(&file)? {
            return Err(io::Error::other("it is not a log of this program"));
        }
        set_aside(path, &file, 0, length)?;
        let (next, last) = before(path)?;
        Ok(Found {
            file,
            length: 0,
            next,
            last,
            cut: length,
        })
    }
}

/// The last whole line of a file.
struct Last {
    number: u64,
    hash: Hash,
    /// Where what is behind it begins.
    behind: u64,
}

impl Last {
    fn of(file: &File, length: u64) -> io::Result<Option<Self>> {
        let mut end = length;
        loop {
            let from = end.saturating_sub(BLOCK);
            let mut block = vec![0; usize::try_from(end - from).map_err(io::Error::other)?];
            file.read_exact_at(&mut block, from)?;
            if let Some((line, read, behind)) = last_line(&block) {
                return Ok(Some(Last {
                    number: read.n,
                    hash: hash_of(line),
                    behind: from + behind as u64,
                }));
            }
            if from == 0 {
                return Ok(None);
            }
            // A line may begin before this block and end in it.
            end = from + LONGEST as u64;
        }
    }
}

/// The last whole line that is one of ours, without its end, and where what is behind it begins.
fn last_line(end: &[u8]) -> Option<(&[u8], Read, usize)> {
    let mut behind = end.len();
    loop {
        behind = end[..behind].iter().rposition(|byte| *byte == b'\n')? + 1;
        let begins = end[..behind - 1].iter().rposition(|byte| *byte == b'\n');
        let line = &end[begins.map_or(0, |at| at + 1)..behind - 1];
        if let Some(read) = Read::of(line) {
            return Some((line, read, behind));
        }
        // After a power cut there may be other bytes, with ends of lines among them.
        behind -= 1;
    }
}

/// Whether it is empty, zeros, or the beginning of a first line with anything but an end behind.
fn is_beginning(mut file: &File) -> io::Result<bool> {
    const BEGINS: &[u8] = b"{\"n\":";
    let (mut at, mut is_ours, mut is_zero) = (0, true, true);
    let mut block = vec![0; LONGEST];
    file.seek(SeekFrom::Start(0))?;
    loop {
        let length = file.read(&mut block)?;
        let read = &block[..length];
        is_zero &= read.iter().all(|byte| *byte == 0);
        is_ours &= !read.contains(&b'\n');
        let rest = BEGINS.get(at..).unwrap_or_default();
        is_ours &= read.iter().zip(rest).all(|(one, other)| one == other);
        at += length;
        if length == 0 || !(is_ours || is_zero) {
            return Ok(is_ours || is_zero);
        }
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
    let file = File::open(newest)?;
    let length = file.metadata()?.len();
    let last = Last::of(&file, length)?
        .ok_or_else(|| io::Error::other("the end of the file before it is damaged"))?;
    Ok((last.number + 1, last.hash))
}

/// Moves what is behind the last line to a file of its own, and cuts it off.
fn set_aside(path: &Path, mut file: &File, behind: u64, length: u64) -> io::Result<()> {
    if behind == length {
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
    file.seek(SeekFrom::Start(behind))?;
    io::copy(&mut file.take(length - behind), &mut moved)?;
    moved.sync_all()?;
    file.set_len(behind)
}

/// Opens the file for this process alone.
pub(super) fn open(path: &Path) -> io::Result<File> {
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

/// The path of another file of this log.
pub(super) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(end);
    name.into()
}
