//! Whether a home is the original or a copy.
//!
//! An intent in a copy is about a token that the original still uses. Resolving it in the copy
//! could undo what the original has completed since. So the home has a random id, and records the
//! inode of its folder and the id of the machine (machine-id(5)). If one of them differs, abandoned
//! intents are shown and not resolved, until the operator says that this is the home. Device
//! numbers and host names are not compared, since they change with containers and reboots.
//!
//! Each home also has the number of its first account on tokens that derive keys from a seed. Two
//! independent homes use the same accounts only by chance. A home from before these numbers has 0.

use std::path::Path;

use claviger_token::key::to_hex;
use rand_core::{OsRng, RngCore};
use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest, Sha256};

/// How many starts there are for the accounts of homes.
pub const STARTS: u32 = 2_000;

/// How many accounts a home has before it comes to the next one's.
pub const ACCOUNTS: u32 = 1_000;

use super::digests::{self, HOME};
use super::{Registry, RegistryError, Result};

/// What tells a home from its copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HomeMark {
    inode: i64,
    machine: String,
}

impl HomeMark {
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
        Ok(HomeMark {
            inode,
            machine: digest.map(|d| to_hex(&d)).unwrap_or_default(),
        })
    }
}

impl Registry {
    /// Whether this home is a copy of another one, or was restored or moved here: then what was
    /// interrupted is not resolved until [`Registry::claim_home`].
    pub fn is_copy(&self) -> bool {
        self.is_copy.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The random id of this home, in hexadecimal; `None` in memory. A home that was copied has the
    /// same until [`Registry::claim_home`].
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn home_id(&self) -> Result<Option<String>> {
        if self.place.is_none() {
            return Ok(None);
        }
        let id = |row: &rusqlite::Row<'_>| {
            HOME.check(row)?;
            row.get("id")
        };
        let db = self.db();
        let mut query = db.prepare_cached(&HOME.select(""))?;
        Ok(query.query_row([], id).optional()?)
    }

    /// The first of the accounts that this home takes for identities on tokens that derive
    /// their keys: a multiple of [`ACCOUNTS`].
    pub fn first_account(&self) -> u32 {
        self.first_account
            .load(std::sync::atomic::Ordering::Relaxed)
    }

    /// This is the home from now on: no other that is in use has the same identities. Its
    /// accounts begin anew, since the other one may have given out those that come next.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn claim_home(&self) -> Result<()> {
        let Some(place) = &self.place else {
            return Ok(());
        };
        let was_copy = self.is_copy();
        let first_account = self.write::<_, RegistryError>(|db| {
            let kept = first_account(db)?;
            db.execute("DELETE FROM home", [])?;
            let first = match was_copy {
                true => random_start(),
                false => kept,
            };
            enter(db, place, first)?;
            Ok(first)
        })?;
        self.first_account
            .store(first_account, std::sync::atomic::Ordering::Relaxed);
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
            db.prepare_cached(&HOME.select(""))?
                .query_row([], |row| {
                    HOME.check(row)?;
                    let mark = HomeMark {
                        inode: row.get("inode")?,
                        machine: row.get("machine")?,
                    };
                    Ok((mark, row.get("first_account")?))
                })
                .optional()
        };
        let entered = noted(&self.db())?;
        let (found, first): (HomeMark, Option<u32>) = match entered {
            Some(found) => found,
            // It is entered when it can be.
            None if self.check_writable().is_err() => (place.clone(), None),
            // Another process may be entering it.
            None => self.write::<_, RegistryError>(|db| {
                if let Some(found) = noted(db)? {
                    return Ok(found);
                }
                enter(db, place, 0)?;
                Ok((place.clone(), None))
            })?,
        };
        self.first_account.store(
            first.unwrap_or_default(),
            std::sync::atomic::Ordering::Relaxed,
        );
        self.is_copy
            .store(found != *place, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}

/// Enters the home of a registry that is just being made.
pub(super) fn enter_new(db: &Connection, home: &Path) -> Result<()> {
    digests::keep(db)?;
    Ok(enter(db, &HomeMark::of(home)?, random_start())?)
}

/// Notes in a registry that it was restored: it is in no place that it knows.
pub(super) fn note_restored(db: &Connection) -> Result<()> {
    let first = first_account(db)?;
    db.execute("DELETE FROM home", [])?;
    let nowhere = HomeMark {
        inode: NOWHERE,
        machine: String::new(),
    };
    Ok(enter(db, &nowhere, first)?)
}

/// No file has this inode.
const NOWHERE: i64 = 0;

fn random_start() -> u32 {
    // 2^32 is no multiple of it: a start may be likelier than another by one in two million.
    OsRng.next_u32() % STARTS * ACCOUNTS
}

fn first_account(db: &Connection) -> rusqlite::Result<u32> {
    let found: Option<Option<u32>> = db
        .prepare_cached("SELECT first_account FROM home")?
        .query_row([], |row| row.get(0))
        .optional()?;
    Ok(found.flatten().unwrap_or_default())
}

fn enter(db: &Connection, place: &HomeMark, first_account: u32) -> rusqlite::Result<()> {
    let mut id = [0; 16];
    OsRng.fill_bytes(&mut id);
    db.execute(
        "INSERT INTO home (id, inode, machine, first_account) VALUES (?, ?, ?, ?)",
        params![to_hex(&id), place.inode, place.machine, first_account],
    )?;
    Ok(())
}
