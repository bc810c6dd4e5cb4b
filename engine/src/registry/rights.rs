//! Who made which identity, and what others are granted: what a daemon judges its callers by.
//!
//! The user who made an identity is entered in the same step as the identity, and removed with it.
//! So are the grants that name it: who makes another identity of that name later starts without.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::digests::{GRANTS, OWNER, RowDigest, Sum, Table};
use super::rows::{damaged, key_of};
use super::{Registry, RegistryError, Result, entry_exists};
use crate::grants::{BadGrant, Grant, NewGrant, Right, Subject, confirmed};
use crate::{EngineId, EngineName};

/// What a daemon judges its callers by, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rights {
    /// The users who made the identities of this node, as far as a daemon was asked for them.
    pub makers: HashMap<EngineName, u32>,
    /// The grants, in the order in which they were added.
    pub grants: Vec<Grant>,
}

/// Tells one state of [`Rights`] from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RightsMark([RowDigest; 2]);

/// Why a grant was not added.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum GrantError {
    /// There is no identity of this name.
    #[error("there is no identity `{name}`")]
    NoIdentity {
        /// The name.
        name: String,
    },
    /// It does not say what can be granted.
    #[error(transparent)]
    Bad(#[from] BadGrant),
    /// The registry could not be read or written.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl GrantError {
    /// The stable name of the variant, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            GrantError::NoIdentity { .. } => "no-identity",
            GrantError::Bad(bad) => bad.code(),
            GrantError::Registry(error) => error.code(),
        }
    }
}

impl From<rusqlite::Error> for GrantError {
    fn from(error: rusqlite::Error) -> Self {
        GrantError::Registry(error.into())
    }
}

impl Registry {
    /// The user who made an identity, where a daemon was asked for it.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn maker_of(&self, who: &EngineId) -> Result<Option<u32>> {
        let (node, name) = key_of(who);
        let db = self.db();
        let mut query = db.prepare_cached(&OWNER.select("WHERE node = ? AND name = ?"))?;
        let found = query
            .query_row(params![node, name], |row| {
                Ok((owner(row)?, row.get("name")?))
            })
            .optional()?;
        match found {
            // A damaged index leads to another row.
            Some(((_, uid), found)) if name == <String as AsRef<str>>::as_ref(&found) => {
                Ok(Some(uid))
            }
            Some(_) => Err(damaged("name").into()),
            None => Ok(None),
        }
    }

    /// The grants, in the order in which they were added.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn grants(&self) -> Result<Vec<Grant>> {
        self.read(grants)
    }

    /// Adds a grant. The same grant a second time changes nothing, and has the number of the first.
    ///
    /// # Errors
    /// [`GrantError`].
    pub fn add_grant(&self, new: &NewGrant) -> Result<Grant, GrantError> {
        self.write(|db| {
            let known = grants(db)?;
            if let Some(known) = known.into_iter().find(|known| known.what == *new) {
                return Ok(known);
            }
            if let Some(name) = &new.identity
                && !entry_exists(db, &EngineId::local(name.clone()))?
            {
                let name = name.to_string();
                return Err(GrantError::NoIdentity { name });
            }
            let (kind, number) = match new.subject {
                Subject::Uid(uid) => ("uid", uid),
                Subject::Gid(gid) => ("gid", gid),
            };
            db.prepare_cached(
                "INSERT INTO grants (subject, number, socket, identity, operation, purpose) \
                 VALUES (?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                kind,
                number,
                new.socket.as_deref().unwrap_or_default(),
                new.identity.as_deref().unwrap_or_default(),
                new.operation(),
                new.right.purpose(),
            ])?;
            Ok(Grant {
                id: db.last_insert_rowid(),
                what: new.clone(),
            })
        })
    }

    /// Removes a grant by its number. Whether there was one.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn remove_grant(&self, id: i64) -> Result<bool> {
        self.write(|db| {
            let removed = db.execute("DELETE FROM grants WHERE id = ?", [id])?;
            Ok(removed > 0)
        })
    }

    /// All that callers are judged by, unless it is as it was when it had the mark `since`. That is
    /// found out by two rows.
    ///
    /// # Errors
    /// [`RegistryError`]. Then nobody is to be let do anything by what was read before.
    pub fn rights(&self, since: Option<RightsMark>) -> Result<Option<(RightsMark, Rights)>> {
        self.read(|db| {
            let mark = RightsMark([seal(db, &OWNER)?, seal(db, &GRANTS)?]);
            if since == Some(mark) {
                return Ok(None);
            }
            let makers = makers(db)?;
            let grants = grants(db)?;
            Ok(Some((mark, Rights { makers, grants })))
        })
    }

    /// How many times this process has written. Others' writes do not count.
    pub fn own_writes(&self) -> u64 {
        self.writes.load(std::sync::atomic::Ordering::Acquire)
    }
}

/// Enters the user who made an identity that is entered now. Nothing of a former one of that name
/// is left.
pub(super) fn enter_maker(db: &Connection, who: &EngineId, maker: Option<u32>) -> Result<()> {
    remove_rights(db, who)?;
    if let Some(uid) = maker {
        let (node, name) = key_of(who);
        db.prepare_cached("INSERT INTO owner (node, name, uid) VALUES (?, ?, ?)")?
            .execute(params![node, name, uid])?;
    }
    Ok(())
}

/// Removes what goes with an identity.
pub(super) fn remove_rights(db: &Connection, who: &EngineId) -> Result<()> {
    let (node, name) = key_of(who);
    db.prepare_cached("DELETE FROM owner WHERE node = ? AND name = ?")?
        .execute(params![node, name])?;
    if who.node.is_none() {
        db.prepare_cached("DELETE FROM grants WHERE identity = ?")?
            .execute([name])?;
    }
    Ok(())
}

fn seal(db: &Connection, table: &Table) -> Result<RowDigest> {
    let seal = db
        .prepare_cached("SELECT digests FROM seal WHERE name = ?")?
        .query_row([table.name], |row| row.get(0));
    Ok(seal?)
}

fn makers(db: &Connection) -> Result<HashMap<EngineName, u32>> {
    let mut sum = Sum::of(&OWNER);
    let mut query = db.prepare_cached(&OWNER.select(""))?;
    let mut rows = query.query([])?;
    let mut makers = HashMap::new();
    while let Some(row) = rows.next()? {
        sum.add(row)?;
        let (who, uid) = owner(row)?;
        if who.node.is_none() {
            makers.insert(who.name, uid);
        }
    }
    sum.check(db)?;
    Ok(makers)
}

fn grants(db: &Connection) -> Result<Vec<Grant>> {
    let mut sum = Sum::of(&GRANTS);
    let mut query = db.prepare_cached(&GRANTS.select("ORDER BY id"))?;
    let mut rows = query.query([])?;
    let mut grants = Vec::new();
    while let Some(row) = rows.next()? {
        sum.add(row)?;
        grants.push(grant(row)?);
    }
    sum.check(db)?;
    Ok(grants)
}

/// A row that [`OWNER`] selects.
pub(super) fn owner(row: &Row<'_>) -> rusqlite::Result<(EngineId, u32)> {
    OWNER.check(row)?;
    let who = super::engine_id(row, "node", "name")?;
    Ok((who, row.get("uid")?))
}

/// A row that [`GRANTS`] selects.
pub(super) fn grant(row: &Row<'_>) -> rusqlite::Result<Grant> {
    GRANTS.check(row)?;
    let text = |column: &str| row.get::<_, String>(column);
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    let number = row.get("number")?;
    let operation = text("operation")?;
    let (operation, is_confirmed) = confirmed(&operation);
    let right = Right::parse(operation, &text("purpose")?);
    Ok(Grant {
        id: row.get("id")?,
        what: NewGrant {
            subject: match text("subject")?.as_str() {
                "uid" => Subject::Uid(number),
                "gid" => Subject::Gid(number),
                _ => return Err(damaged("subject")),
            },
            socket: some(text("socket")?),
            identity: some(text("identity")?).map(EngineName::from),
            right: right.map_err(|_| damaged("operation"))?,
            is_confirmed,
        },
    })
}
