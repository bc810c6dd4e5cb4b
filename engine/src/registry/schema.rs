//! The file: where it is, who may read it, and what is in it.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::{RegistryError, Result};

/// `CLAV`: tells a registry from any other SQLite file.
const APPLICATION_ID: i32 = 0x434c_4156;
/// The version of the schema that this program writes.
const SCHEMA_VERSION: i32 = 3;
/// How long to wait for another process that is writing.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn create_private_folder(path: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Makes an empty registry at `path`, where there is nothing: beside it first, so that an empty
/// file is never there, and of two processes that come here one is first.
pub(super) fn make_new(path: &Path) -> Result<()> {
    let io = |error: std::io::Error| RegistryError::io(&error);
    let beside = tempfile::Builder::new()
        .prefix("registry.")
        .suffix(".new")
        // SQLite gives the files that it puts beside it the same permissions.
        .tempfile_in(path.parent().unwrap_or(Path::new(".")))
        .map_err(io)?
        .into_temp_path();
    let db = Connection::open(&beside)?;
    prepare(&db)?;
    // With the last connection what is in the write-ahead log comes into the file.
    db.close().map_err(|(_, error)| error)?;
    match beside.persist_noclobber(path) {
        Ok(()) => Ok(()),
        Err(failed) if failed.error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(failed) => Err(io(failed.error)),
    }
}

/// Refuses a folder or a file that somebody else owns, or can write to, and a file that is
/// empty. It is not opened: closing a registry would take the locks away that SQLite has on it.
pub(super) fn check_private(path: &Path) -> Result<()> {
    let found = path.metadata().map_err(|e| RegistryError::io(&e))?;
    if found.is_file() && found.len() == 0 {
        return Err(RegistryError::Empty { path: path.into() });
    }
    match who_else(&found) {
        None => Ok(()),
        Some(reason) => Err(RegistryError::NotPrivate {
            path: path.into(),
            reason,
        }),
    }
}

/// Who else has a hand in it, if anybody.
#[cfg(unix)]
fn who_else(found: &std::fs::Metadata) -> Option<String> {
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
fn who_else(_: &std::fs::Metadata) -> Option<String> {
    None
}

pub(super) fn prepare(db: &Connection) -> Result<()> {
    db.busy_timeout(BUSY_TIMEOUT)?;
    let pragma = |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    // All from one moment: another process may be making the tables.
    db.execute_batch("BEGIN")?;
    let seen = pragma("application_id").and_then(|application| {
        let empty: bool = db.query_row(
            "SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)",
            [],
            |row| row.get(0),
        )?;
        Ok((application, pragma("user_version")?, empty))
    });
    // SQLite has rolled back by itself after some errors.
    let _ = db.execute_batch("ROLLBACK");
    let (application, version, empty) = seen?;
    if application != APPLICATION_ID && !empty {
        return Err(RegistryError::Damaged {
            reason: "another program's file".into(),
        });
    }
    if version > SCHEMA_VERSION {
        return Err(RegistryError::Newer {
            found: version,
            known: SCHEMA_VERSION,
        });
    }
    switch_to_wal(db)?;
    // An intent must be on the disk before the token is touched.
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "foreign_keys", true)?;
    // What is forgotten is overwritten.
    db.pragma_update(None, "secure_delete", true)?;
    if version < SCHEMA_VERSION {
        // Two processes may come here at once; the second finds the first's tables.
        db.execute_batch("BEGIN IMMEDIATE")?;
        let made = pragma("user_version")
            .map_err(RegistryError::from)
            .and_then(|version| {
                if version < SCHEMA_VERSION {
                    if version == 1 {
                        db.execute_batch(
                            "ALTER TABLE key ADD COLUMN derived INTEGER NOT NULL DEFAULT 0",
                        )?;
                    }
                    if (1..3).contains(&version) {
                        db.execute_batch("ALTER TABLE intent ADD COLUMN keys TEXT")?;
                    }
                    db.execute_batch(include_str!("schema.sql"))?;
                    db.pragma_update(None, "application_id", APPLICATION_ID)?;
                    db.pragma_update(None, "user_version", SCHEMA_VERSION)?;
                }
                Ok(())
            });
        match made {
            Ok(()) => db.execute_batch("COMMIT")?,
            Err(error) => {
                let _ = db.execute_batch("ROLLBACK");
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Switches to the write-ahead log. SQLite itself does not wait here for another process
/// that does the same.
fn switch_to_wal(db: &Connection) -> Result<()> {
    let give_up = Instant::now() + BUSY_TIMEOUT;
    loop {
        match db
            .pragma_update(None, "journal_mode", "WAL")
            .map_err(RegistryError::from)
        {
            Err(RegistryError::Busy) if Instant::now() < give_up => {
                std::thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
}
