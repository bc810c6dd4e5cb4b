//! Backup and restore of a registry.
//!
//! | step | Restore |
//! | --- | --- |
//! | 1 | lock the registry exclusively |
//! | 2 | read the backup into memory, check it, and record that it is a restored one |
//! | 3 | write it to a new file, completely |
//! | 4 | give the old registry, damaged or not, a second name |
//! | 5 | remove SQLite's files beside the registry, so that they are not applied to the new one |
//! | 6 | move the new file into place |
//!
//! If the process dies between steps, the registry is the old one or the new one. Between 5 and 6
//! the old one lacks the last writes, which its second name has.
//!
//! PINs that were rejected since the backup are kept as far as the old registry can be read, and so
//! are the slots of derived keys that were used; see [`takeover`].

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::ours::Ours;
use super::schema::{create_private_folder, prepare};
use super::{FILE, Registry, RegistryError, Result, check_rows, digests, home, snapshot, takeover};
use crate::lease::Lease;

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Content {
    /// How many identities.
    pub identities: usize,
    /// How many contacts.
    pub contacts: usize,
    /// How many pieces of evidence.
    pub evidence: usize,
    /// What was interrupted and is not resolved.
    pub open_intents: usize,
}

/// A registry as it was at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Backup {
    /// A file of SQLite's with all that is in the registry.
    pub file: Vec<u8>,
    /// What it holds.
    pub content: Content,
    /// The account from which on keys are derived for identities of the home.
    pub first_account: u32,
}

/// What a restore did.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Restored {
    /// What is in the registry now.
    pub content: Content,
    /// The registry that was there before, if any was.
    pub moved_aside: Option<PathBuf>,
}

impl Registry {
    /// All of the registry at one moment, whoever writes to it meanwhile, checked.
    ///
    /// # Errors
    /// [`RegistryError::Damaged`]: it is not worth keeping. And what SQLite says.
    pub fn backup(&self) -> Result<Backup> {
        let mut copy = snapshot::of(&self.db())?;
        check_rows(&copy)?;
        self.refused_pins.note_in(&copy)?;
        Ok(Backup {
            content: content(&copy)?,
            first_account: self.first_account(),
            file: snapshot::to_bytes(&mut copy)?,
        })
    }

    /// Makes the backup in the file `from` the registry of the folder `home`. What was there
    /// is moved aside under another name, whether it can be read or not.
    ///
    /// The home counts as restored from then on: what was interrupted is not resolved until
    /// [`Registry::claim_home`].
    ///
    /// # Errors
    /// [`RegistryError::InUse`]: another process has the registry open.
    /// [`RegistryError::NotARegistry`], [`RegistryError::Newer`], [`RegistryError::Damaged`],
    /// [`RegistryError::Empty`]: the backup is none. [`RegistryError::NotPrivate`]: others own
    /// the backup or can write to it. Then nothing was changed.
    pub fn restore(home: &Path, from: &Path) -> Result<Restored> {
        create_private_folder(home).map_err(|e| RegistryError::io(&e))?;
        if !home.is_dir() {
            return Err(RegistryError::NotAFolder { path: home.into() });
        }
        Ours::check(home)?;
        let lease = Lease::hold_alone(&home.join("run")).map_err(|e| match e.kind() {
            std::io::ErrorKind::WouldBlock => RegistryError::InUse,
            _ => RegistryError::io(&e),
        })?;
        let path = home.join(FILE);
        let mut new = read_backup(from)?;
        let home_of_backup = takeover::home_id(&new);
        home::note_restored(&new)?;
        if let Some(old) = what_is_there(&path) {
            let home_of_old = takeover::home_id(&old);
            let is_same_home = home_of_old.is_some() && home_of_old == home_of_backup;
            takeover::take_over(&old, &new, is_same_home)?;
        }
        let content = content(&new)?;
        let bytes = snapshot::to_bytes(&mut new)?;
        let io = |error: std::io::Error| RegistryError::io(&error);
        let fresh = lease.path_for("restored").map_err(io)?.unwrap_or_default();
        write_private(&fresh, &bytes).map_err(io)?;
        let moved_aside = set_aside(&path).map_err(io)?;
        fs::rename(&fresh, &path).map_err(io)?;
        sync_folder(home);
        Ok(Restored {
            content,
            moved_aside,
        })
    }
}

/// The backup, checked, in the form of this version.
fn read_backup(from: &Path) -> Result<Connection> {
    // What is no file is said with its name below.
    let ours = from.is_file().then(|| Ours::check(from)).transpose()?;
    let db = snapshot::of_file(from)?;
    ours.as_ref().map_or(Ok(()), Ours::is_still_there)?;
    prepare(&db).map_err(|error| match error {
        RegistryError::NotARegistry { .. } => RegistryError::NotARegistry { path: from.into() },
        other => other,
    })?;
    check_rows(&db)?;
    digests::keep(&db)?;
    Ok(db)
}

/// The registry that is replaced, if it can be read at all.
fn what_is_there(path: &Path) -> Option<Connection> {
    path.symlink_metadata().ok()?;
    let old = snapshot::of_file(path).and_then(|db| prepare(&db).map(|()| db));
    old.inspect_err(|error| {
        tracing::warn!(%error, "rejected PINs of the replaced registry are not taken over");
    })
    .ok()
}

fn content(db: &Connection) -> Result<Content> {
    let count = |table: &str| -> Result<usize> {
        let query = format!("SELECT count(*) FROM {table}");
        let count: i64 = db.query_row(&query, [], |row| row.get(0))?;
        Ok(usize::try_from(count).unwrap_or_default())
    };
    Ok(Content {
        identities: count("identity")?,
        contacts: count("contact")?,
        evidence: count("evidence")?,
        open_intents: count("intent")?,
    })
}

/// Writes a new file that is its owner's alone, down to the disk.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut options = fs::File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    std::io::Write::write_all(&mut file, bytes)?;
    file.sync_all()
}

/// Gives what is at `path`, and what SQLite keeps beside it, a second name, and removes what is
/// beside it under the first.
fn set_aside(path: &Path) -> std::io::Result<Option<PathBuf>> {
    if path.symlink_metadata().is_err() {
        // What a lost registry left beside it is nobody's.
        for end in BESIDE {
            remove(&snapshot::beside(path, end))?;
        }
        return Ok(None);
    }
    let aside = (1..)
        .map(|number| snapshot::beside(path, &format!(".before-restore-{number}")))
        .find(|aside| aside.symlink_metadata().is_err())
        .unwrap_or_default();
    for end in BESIDE {
        let beside = snapshot::beside(path, end);
        if beside.symlink_metadata().is_ok() {
            second_name(&beside, &snapshot::beside(&aside, end))?;
        }
    }
    second_name(path, &aside)?;
    for end in BESIDE {
        remove(&snapshot::beside(path, end))?;
    }
    Ok(Some(aside))
}

/// What SQLite keeps beside a database.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];

fn second_name(path: &Path, name: &Path) -> std::io::Result<()> {
    // Not every file system has second names.
    match fs::hard_link(path, name) {
        Err(_) if path.is_file() => fs::copy(path, name).map(drop),
        done => done,
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What was renamed is on the disk, where the file system can say so.
fn sync_folder(folder: &Path) {
    if let Err(error) = fs::File::open(folder).and_then(|folder| folder.sync_all()) {
        tracing::debug!(%error, "the folder is not synchronised");
    }
}
