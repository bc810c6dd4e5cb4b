//! A snapshot of a registry in memory.
//!
//! SQLite's online backup makes it, so others may write meanwhile. It writes nothing, so it also
//! works on a full disk and on a read-only file.

use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, MAIN_DB, OpenFlags};

use super::schema::BUSY_TIMEOUT;
use super::{RegistryError, Result};

/// How long a step waits for those who write.
const TRY_AGAIN: Duration = Duration::from_millis(5);

/// How often a file is read that changes meanwhile.
const ATTEMPTS: usize = 5;

/// Where the header says how the file is journaled: 1 without, 2 with a write-ahead log
/// (SQLite's file format, §1.3.3).
const JOURNALED: std::ops::Range<usize> = 18..20;

/// What a connection reads.
///
/// # Errors
/// [`RegistryError::Busy`] and what SQLite says.
pub(super) fn of(from: &Connection) -> Result<Connection> {
    let mut to = Connection::open_in_memory()?;
    {
        let backup = Backup::new(from, &mut to)?;
        let give_up = Instant::now() + BUSY_TIMEOUT;
        // All pages at once, so that all are from one moment.
        while backup.step(-1)? != StepResult::Done {
            if Instant::now() > give_up {
                return Err(RegistryError::Busy);
            }
            std::thread::sleep(TRY_AGAIN);
        }
    }
    Ok(to)
}

/// What is in a file, which need not be writable. Nothing is written beside it where nobody
/// has it open.
///
/// # Errors
/// [`RegistryError::NotARegistry`] where it is no file of SQLite's, [`RegistryError::Empty`],
/// and what SQLite or the file system say.
pub(super) fn of_file(path: &Path) -> Result<Connection> {
    for _ in 0..ATTEMPTS {
        let found = fs::metadata(path).map_err(|e| RegistryError::reading(path, &e))?;
        if !found.is_file() {
            return Err(RegistryError::NotARegistry { path: path.into() });
        }
        if found.len() == 0 {
            return Err(RegistryError::Empty { path: path.into() });
        }
        if journal(path).is_some() {
            // What was written last is not in the file itself, and SQLite knows where it is.
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let db = Connection::open_with_flags(path, flags)?;
            db.busy_timeout(BUSY_TIMEOUT)?;
            return of(&db);
        }
        let bytes = fs::read(path).map_err(|e| RegistryError::reading(path, &e))?;
        let after = fs::metadata(path).map_err(|e| RegistryError::reading(path, &e))?;
        if is_same(&found, &after) && journal(path).is_none() {
            return of_bytes(bytes);
        }
    }
    Err(RegistryError::Busy)
}

/// The file that holds what a connection in memory reads.
///
/// # Errors
/// What SQLite says.
pub(super) fn to_bytes(db: &mut Connection) -> Result<Vec<u8>> {
    let mut bytes = db.serialize(MAIN_DB)?.to_vec();
    without_log(&mut bytes);
    Ok(bytes)
}

fn of_bytes(mut bytes: Vec<u8>) -> Result<Connection> {
    // In memory there is no log.
    without_log(&mut bytes);
    let mut db = Connection::open_in_memory()?;
    db.deserialize_read_exact(MAIN_DB, bytes.as_slice(), bytes.len(), false)?;
    Ok(db)
}

fn without_log(bytes: &mut [u8]) {
    if let Some(journaled) = bytes.get_mut(JOURNALED)
        && journaled == [2, 2]
    {
        journaled.fill(1);
    }
}

/// What is beside the file and belongs to its content, if anything is.
pub(super) fn journal(path: &Path) -> Option<PathBuf> {
    let beside = ["-wal", "-journal"].map(|end| beside(path, end));
    let is_there = |path: &PathBuf| fs::metadata(path).is_ok_and(|found| found.len() > 0);
    beside.into_iter().find(is_there)
}

/// The file that SQLite keeps beside a database under this name.
pub(super) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    #[cfg(unix)]
    let is_it = {
        use std::os::unix::fs::MetadataExt;
        (one.dev(), one.ino()) == (other.dev(), other.ino())
    };
    #[cfg(not(unix))]
    let is_it = true;
    is_it && one.len() == other.len() && one.modified().ok() == other.modified().ok()
}
