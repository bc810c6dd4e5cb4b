//! Contacts in the registry: public keys of others, under names.

use claviger_token::PublicKey;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::digests::{CONTACT, Sum};
use super::evidence::party;
use super::rows::NotAsWritten;
use super::{RegistryError, Result, entry_exists, identity};
use crate::EngineId;
use crate::evidence::{Party, PublicKeys};

/// Why a contact was not entered.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ContactError {
    /// An identity of this machine has the name.
    #[error("`{name}` is an identity here")]
    IsIdentity {
        /// The name.
        name: String,
    },
    /// Another contact has the name.
    #[error("a contact `{name}` already exists")]
    Exists {
        /// The name.
        name: String,
    },
    /// The registry could not be read or written.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl ContactError {
    /// The stable name of the variant, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            ContactError::IsIdentity { .. } => "name-is-identity",
            ContactError::Exists { .. } => "contact-exists",
            ContactError::Registry(error) => error.code(),
        }
    }
}

impl From<rusqlite::Error> for ContactError {
    fn from(error: rusqlite::Error) -> Self {
        ContactError::Registry(error.into())
    }
}

/// Somebody known here by name: an identity of this machine or a contact.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) party: Party,
    /// The identity that was deleted together with its keys, if any.
    pub(crate) deleted_with: Option<EngineId>,
}

/// Two of them are equal as long as nothing was written in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Revision {
    others: i64,
    own: u64,
}

impl super::Registry {
    /// Enters the public keys of somebody else's identity under a name.
    ///
    /// # Errors
    /// [`ContactError`]; a name belongs to one identity only.
    pub fn add_contact(&self, contact: &Party) -> Result<(), ContactError> {
        self.write(|db| {
            let name = contact.name.to_string();
            if entry_exists(db, &EngineId::local(contact.name.clone()))? {
                return Err(ContactError::IsIdentity { name });
            }
            if contact_of(db, &name)?.is_some() {
                return Err(ContactError::Exists { name });
            }
            Ok(insert_contact(db, contact)?)
        })
    }

    /// Renames a contact. Returns whether there was one of the old name.
    ///
    /// # Errors
    /// As [`Registry::add_contact`](super::Registry::add_contact), for the new name.
    pub fn rename_contact(&self, old: &str, new: &str) -> Result<bool, ContactError> {
        self.write(|db| {
            if contact_of(db, old)?.is_none() {
                return Ok(false);
            }
            let name = new.to_owned();
            if entry_exists(db, &EngineId::local(new))? {
                return Err(ContactError::IsIdentity { name });
            }
            if contact_of(db, new)?.is_some() {
                return Err(ContactError::Exists { name });
            }
            db.prepare_cached("UPDATE contact SET name = ? WHERE name = ?")?
                .execute([new, old])?;
            Ok(true)
        })
    }

    /// The contacts, by name.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn contacts(&self) -> Result<Vec<Party>> {
        self.read(|db| {
            let mut sum = Sum::of(&CONTACT);
            let mut query = db.prepare_cached(&CONTACT.select("ORDER BY name"))?;
            let contacts = query.query_map([], |row| {
                sum.add(row)?;
                contact(row)
            })?;
            let contacts = contacts.collect::<Result<_, _>>()?;
            sum.check(db)?;
            Ok(contacts)
        })
    }

    /// Removes a contact. Returns whether there was one. Evidence about it stays.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn remove_contact(&self, name: &str) -> Result<bool> {
        self.write(|db| {
            let removed = db
                .prepare_cached("DELETE FROM contact WHERE name = ?")?
                .execute([name])?;
            Ok(removed > 0)
        })
    }

    /// The contact of this name.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn contact(&self, name: &str) -> Result<Option<Party>> {
        Ok(contact_of(&self.db(), name)?)
    }

    /// The identity, or else the contact, with this id.
    pub(crate) fn known(&self, who: &EngineId) -> Result<Option<Known>> {
        self.read(|db| {
            if let Some((keys, _)) = identity(db, who)? {
                let deleted = keys.iter().find(|key| key.info.deleted);
                let living = |usage| {
                    let mut keys = keys.iter().map(|key| &key.info);
                    let key = keys.find(|key| key.usage == usage && !key.deleted);
                    key.map(|key| key.public_key.clone())
                };
                return Ok(Some(Known {
                    party: Party {
                        name: who.name.clone(),
                        keys: PublicKeys {
                            sign: living(claviger_token::KeyUse::Sign),
                            decrypt: living(claviger_token::KeyUse::Decrypt),
                        },
                    },
                    deleted_with: deleted.map(|key| key.info.owner.clone()),
                }));
            }
            let contact = match who.node {
                None => contact_of(db, &who.name)?,
                Some(_) => None,
            };
            Ok(contact.map(|party| Known {
                party,
                deleted_with: None,
            }))
        })
    }

    /// A value that changes whenever the registry does.
    pub(crate) fn revision(&self) -> Result<Revision> {
        let db = self.db();
        Ok(Revision {
            others: data_version(&db)?,
            own: self.writes.load(std::sync::atomic::Ordering::Relaxed),
        })
    }
}

/// Enters a contact. The name must not be taken.
pub(super) fn insert_contact(db: &Connection, contact: &Party) -> rusqlite::Result<()> {
    let text = |key: &Option<PublicKey>| key.as_ref().map(PublicKey::to_text);
    db.prepare_cached("INSERT INTO contact (name, sign, decrypt) VALUES (?, ?, ?)")?
        .execute(params![
            &*contact.name,
            text(&contact.keys.sign),
            text(&contact.keys.decrypt)
        ])
        .map(drop)
}

pub(super) fn contact_of(db: &Connection, name: &str) -> rusqlite::Result<Option<Party>> {
    let found = db
        .prepare_cached(&CONTACT.select("WHERE name = ?"))?
        .query_row([name], contact)
        .optional()?;
    match found {
        Some(party) if *party.name != *name => Err(NotAsWritten::error("contact", &party.name)),
        found => Ok(found),
    }
}

/// A row that [`CONTACT`] selects.
pub(super) fn contact(row: &Row<'_>) -> rusqlite::Result<Party> {
    CONTACT.check(row)?;
    party(row, "name", "sign", "decrypt")
}

/// A value that changes whenever another process has written to the registry.
fn data_version(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached("PRAGMA data_version")?
        .query_row([], |row| row.get(0))
}
