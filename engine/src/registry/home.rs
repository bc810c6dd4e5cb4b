//! Whether this is the home that was written to, or a copy of it.
//!
//! An intent in a copy is about a token that the original still uses: whoever settled it there
//! could undo what the original has finished since. So the home has a random id, and notes its
//! folder's inode and the machine's id (machine-id(5)); where one of them differs, what is open
//! is shown and not settled until somebody says that this is the home. Device numbers and host
//! names are not compared, since they change with containers and reboots.

use std::path::Path;

use claviger_token::key::to_hex;
use rand_core::{OsRng, RngCore};
use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest, Sha256};

use super::{Registry, RegistryError, Result};

/// What tells a home from its copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    inode: i64,
    machine: String,
}

impl Place {
    pub(super) fn of(home: &Path) -> Result<Self> {
        let found = home.metadata().map_err(|e| RegistryError::io(&e))?;
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(&found).cast_signed();
        #[cfg(not(unix))]
        let inode = i64::from(!found.is_dir());
        // The id itself is not to be given away (machine-id(5)).
        let machine = std::fs::read("/etc/machine-id")
            .ok()
            .filter(|id| !id.is_empty());
        let digest = machine.map(|id| Sha256::digest([b"claviger home\n", &*id].concat()));
        Ok(Place {
            inode,
            machine: digest.map(|d| to_hex(&d)).unwrap_or_default(),
        })
    }
}

impl Registry {
    /// Whether this home is a copy of another one, or was restored or moved here: then what was
    /// interrupted is not settled until [`Registry::claim_home`].
    pub fn is_copy(&self) -> bool {
        self.is_copy.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// This is the home from now on: no other that is in use has the same identities.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn claim_home(&self) -> Result<()> {
        let Some(place) = &self.place else {
            return Ok(());
        };
        self.write::<_, RegistryError>(|db| {
            db.execute("DELETE FROM home", [])?;
            Ok(enter(db, place)?)
        })?;
        self.is_copy
            .store(false, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }

    /// Compares where the registry is with where it was. One of before gets its id.
    pub(super) fn recognise_home(&self) -> Result<()> {
        let Some(place) = &self.place else {
            return Ok(());
        };
        let noted = |db: &Connection| {
            db.prepare_cached("SELECT inode, machine FROM home")?
                .query_row([], |row| {
                    Ok(Place {
                        inode: row.get(0)?,
                        machine: row.get(1)?,
                    })
                })
                .optional()
        };
        let found = match noted(&self.db())? {
            Some(found) => found,
            // Another process may be entering it.
            None => self.write::<_, RegistryError>(|db| {
                if let Some(found) = noted(db)? {
                    return Ok(found);
                }
                enter(db, place)?;
                Ok(place.clone())
            })?,
        };
        self.is_copy
            .store(found != *place, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}

fn enter(db: &Connection, place: &Place) -> rusqlite::Result<()> {
    let mut id = [0; 16];
    OsRng.fill_bytes(&mut id);
    db.execute(
        "INSERT INTO home (id, inode, machine) VALUES (?, ?, ?)",
        params![to_hex(&id), place.inode, place.machine],
    )?;
    Ok(())
}
