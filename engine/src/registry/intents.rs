//! Intents: changes to a token, recorded before they are made.
//!
//! An intent belongs to the process whose lease it bears, as long as its [`Claim`] is held there.
//! An abandoned intent is *open*, and any process may claim it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use claviger_token::sync::lock;
use claviger_token::{Fingerprint, KeyUse, SlotId, TokenId, Unfinished};
use rusqlite::{Connection, OptionalExtension, params};

use super::digests::{INTENT, KEY, SPENT_SLOT, Sum, Table};
use super::rows::{intent, json, key_of, keys_json};
use super::{
    Registry, RegistryError, Result, check_engines, check_new, entry_exists, identity, remove_entry,
};
use crate::EngineId;

/// The lease of an intent that was left open.
const NOBODY: &str = "";

pub(super) type UnderWay = Arc<Mutex<HashSet<i64>>>;

/// The right to work on an intent. As long as somebody in this process holds it, nobody
/// resolves the intent.
#[derive(Debug)]
pub(crate) struct Claim {
    id: i64,
    under_way: UnderWay,
}

impl Claim {
    fn new(id: i64, under_way: &UnderWay) -> Arc<Self> {
        lock(under_way).insert(id);
        Arc::new(Claim {
            id,
            under_way: Arc::clone(under_way),
        })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.under_way).remove(&self.id);
    }
}

/// What a process is about to do on a token, or was when it died.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Intent {
    pub(crate) id: i64,
    /// What.
    pub action: Action,
    /// For which identity.
    pub identity: EngineId,
    /// On which token.
    pub token: TokenId,
    /// How the token is reached.
    pub backend: String,
    /// Which keys.
    pub keys: Vec<Unfinished>,
}

/// What an [`Intent`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Keys are being made.
    Generate,
    /// Keys are being destroyed.
    Delete,
    /// The keys of an identity that was entered are being given its name.
    Name,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Action::Generate => "generate",
            Action::Delete => "delete",
            Action::Name => "name",
        }
    }
}

/// Why an intent was not written.
#[derive(Debug)]
pub(crate) enum BeginError {
    Exists,
    /// A contact has the name.
    IsContact,
    /// The identity to be connected to does not have these capabilities any more.
    NotAvailable,
    /// A key of the identity to be connected to was deleted.
    Deleted {
        owner: EngineId,
    },
    InProgress,
    /// The key belongs to an identity.
    HasOwner {
        fingerprint: Fingerprint,
        owner: EngineId,
    },
    /// Somebody else was given one of the slots in the meantime.
    SlotTaken {
        token: TokenId,
        slot: SlotId,
    },
    Registry(RegistryError),
}

impl<E: Into<RegistryError>> From<E> for BeginError {
    fn from(error: E) -> Self {
        BeginError::Registry(error.into())
    }
}

impl Registry {
    /// Writes down that `keys` are about to be made, or destroyed.
    pub(crate) fn begin(
        &self,
        action: Action,
        who: &EngineId,
        token: &TokenId,
        backend: &str,
        keys: &[Unfinished],
    ) -> Result<(Intent, Arc<Claim>), BeginError> {
        let slots: Vec<&SlotId> = keys.iter().map(|key| &key.slot).collect();
        let claim = self.write::<_, BeginError>(|db| {
            let (node, name) = key_of(who);
            match action {
                Action::Generate => {
                    check_new(db, who)?;
                    check_engines(db, who, &[KeyUse::Sign, KeyUse::Decrypt])?;
                }
                // A dead entry that another process is just removing.
                Action::Delete if !entry_exists(db, who)? => return Err(BeginError::InProgress),
                _ => {}
            }
            let others: Vec<(i64, String)> = db
                .prepare_cached("SELECT id, lease FROM intent WHERE node = ? AND name = ?")?
                .query_map(params![node, name], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<Result<_, _>>()?;
            if others
                .iter()
                .any(|(id, lease)| self.is_under_way(*id, lease))
            {
                return Err(BeginError::InProgress);
            }
            if action == Action::Generate {
                let taken = taken_slots(db, token)?;
                let is_taken = |slot: &SlotId| taken.contains(slot);
                if let Some(slot) = slots.iter().find(|slot| is_taken(slot)) {
                    return Err(BeginError::SlotTaken {
                        token: token.clone(),
                        slot: (*slot).clone(),
                    });
                }
            }
            db.prepare_cached(
                "INSERT INTO intent \
                 (action, lease, node, name, kind, manufacturer, serial, backend, slots, keys) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                action.name(),
                self.shown_lease()?,
                node,
                name,
                token.kind,
                token.manufacturer,
                token.serial,
                backend,
                json(&slots),
                keys_json(keys),
            ])?;
            Ok(Claim::new(db.last_insert_rowid(), &self.under_way))
        })?;
        let intent = Intent {
            id: claim.id,
            action,
            identity: who.clone(),
            token: token.clone(),
            backend: backend.into(),
            keys: keys.into(),
        };
        Ok((intent, claim))
    }

    /// Writes down what has become known of the keys that are being made.
    pub(crate) fn note_keys(&self, intent: &Intent) -> Result<()> {
        self.write::<_, RegistryError>(|db| {
            db.prepare_cached("UPDATE intent SET keys = ? WHERE id = ?")?
                .execute(params![keys_json(&intent.keys), intent.id])?;
            Ok(())
        })
    }

    /// The right to resolve an intent; none where somebody else has it, or has resolved it.
    pub(crate) fn claim(&self, intent: &Intent) -> Result<Option<Arc<Claim>>> {
        self.write(|db| {
            let lease: Option<String> = db
                .prepare_cached("SELECT lease FROM intent WHERE id = ?")?
                .query_row([intent.id], |row| row.get(0))
                .optional()?;
            match lease {
                Some(lease) if !self.is_under_way(intent.id, &lease) => {}
                _ => return Ok(None),
            }
            db.prepare_cached("UPDATE intent SET lease = ? WHERE id = ?")?
                .execute(params![self.shown_lease()?, intent.id])?;
            Ok(Some(Claim::new(intent.id, &self.under_way)))
        })
    }

    /// The slots of `token` that were given to keys, now or before.
    pub(crate) fn taken_slots(&self, token: &TokenId) -> Result<Vec<SlotId>> {
        self.read(|db| Ok(taken_slots(db, token)?))
    }

    fn is_under_way(&self, id: i64, lease: &str) -> bool {
        match lease {
            NOBODY => false,
            _ if self.is_own(lease) => lock(&self.under_way).contains(&id),
            _ => self.lease.is_alive(lease),
        }
    }

    /// Nothing of the intent is left on the token: forgets it.
    pub(crate) fn abandon(&self, intent: &Intent) -> Result<()> {
        self.write(|db| remove_intent(db, intent).map(drop))
    }

    /// This process stops working on an intent that it leaves open, for any process to
    /// resolve. Where that cannot be written down, others wait until this one ends.
    pub(crate) fn leave_open(&self, intent: &Intent) {
        let left = self.write::<_, RegistryError>(|db| {
            db.prepare_cached("UPDATE intent SET lease = ? WHERE id = ? AND lease = ?")?
                .execute(params![NOBODY, intent.id, self.lease.name()])?;
            Ok(())
        });
        if let Err(error) = left {
            tracing::debug!(identity = %intent.identity, %error, "an intent stays ours");
        }
    }

    /// The keys are destroyed: removes the entry and forgets the intent, in one step.
    pub(crate) fn finish_delete(&self, intent: &Intent) -> Result<()> {
        self.write::<_, RegistryError>(|db| {
            // An entry with other keys is another identity, made since.
            let is_it = identity(db, &intent.identity)?.is_some_and(|(keys, _)| {
                keys.iter().all(|k| {
                    let is_this = |key: &Unfinished| match &key.public_key {
                        Some(public_key) => *public_key == k.info.public_key,
                        None => key.slot == k.info.slot,
                    };
                    k.info.token == intent.token && intent.keys.iter().any(is_this)
                })
            });
            if is_it {
                remove_entry(db, &intent.identity)?;
            }
            remove_intent(db, intent)?;
            Ok(())
        })
    }

    /// The intents that nobody works on any more.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn open_intents(&self) -> Result<Vec<Intent>> {
        let all: Vec<(Intent, String)> = self.read(|db| {
            let mut sum = Sum::of(&INTENT);
            let mut query = db.prepare_cached(&INTENT.select("ORDER BY id"))?;
            let all = query.query_map([], |row| {
                sum.add(row)?;
                Ok((intent(row)?, row.get("lease")?))
            })?;
            let all = all.collect::<Result<_, _>>()?;
            sum.check(db)?;
            Ok(all)
        })?;
        Ok(all
            .into_iter()
            .filter(|(intent, lease)| !self.is_under_way(intent.id, lease))
            .map(|(intent, _)| intent)
            .collect())
    }
}

/// The rows about one token.
const OF_TOKEN: &str = "WHERE kind = ? AND manufacturer = ? AND serial = ?";

fn taken_slots(db: &Connection, token: &TokenId) -> rusqlite::Result<Vec<SlotId>> {
    let of_token = params![token.kind, token.manufacturer, token.serial];
    let slots = |query: &str, table: Option<Table>| -> rusqlite::Result<Vec<SlotId>> {
        db.prepare_cached(query)?
            .query_map(of_token, |row| {
                table.as_ref().map_or(Ok(()), |table| table.check(row))?;
                Ok(SlotId::new(row.get::<_, String>("slot")?))
            })?
            .collect()
    };
    // A token that does not derive its keys says itself which slots are taken: of it there may
    // be many rows, and none is looked at closely.
    let mut taken = slots(
        &format!("SELECT slot FROM key {OF_TOKEN} AND NOT derived"),
        None,
    )?;
    let derived = KEY.select(&format!("{OF_TOKEN} AND derived"));
    taken.extend(slots(&derived, Some(KEY))?);
    taken.extend(slots(&SPENT_SLOT.select(OF_TOKEN), Some(SPENT_SLOT))?);
    let intents = intents_of(db, token)?;
    let keys = intents.into_iter().flat_map(|intent| intent.keys);
    taken.extend(keys.map(|key| key.slot));
    Ok(taken)
}

pub(super) fn intents_of(db: &Connection, token: &TokenId) -> rusqlite::Result<Vec<Intent>> {
    let of_token = params![token.kind, token.manufacturer, token.serial];
    db.prepare_cached(&INTENT.select(OF_TOKEN))?
        .query_map(of_token, intent)?
        .collect()
}

/// Makes of a generation whose identity is entered what is left to be done: to name its
/// keys. Whether it was still there.
pub(super) fn entered(db: &Connection, intent: &Intent) -> rusqlite::Result<bool> {
    let changed = db
        .prepare_cached("UPDATE intent SET action = 'name' WHERE id = ? AND action = 'generate'")?
        .execute([intent.id])?;
    Ok(changed > 0)
}

/// Whether it was still there.
pub(super) fn remove_intent(db: &Connection, intent: &Intent) -> Result<bool> {
    let removed = db
        .prepare_cached("DELETE FROM intent WHERE id = ?")?
        .execute([intent.id])?;
    Ok(removed > 0)
}
