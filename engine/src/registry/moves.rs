//! Which keys on a token are ours, and updates of rows after a key has moved or a token's name has
//! changed.

use claviger_token::{SlotId, SlotInfo, SlotState, TokenId, TokenInfo};
use rusqlite::params;

use super::digests::KEY;
use super::rows::key_record;
use super::{KeyRecord, Registry, RegistryError, Result};
use crate::EngineId;

/// The tables that name tokens.
pub(super) const TABLES: [&str; 5] = ["key", "intent", "refused_pin", "sent_pin", "spent_slot"];

impl Registry {
    /// Notes with each slot which identity uses the key in it. A token that derives its keys
    /// does not know which are in use: those that are, and that it does not list, are added.
    /// Identities that `is_shown` does not show stay unnamed.
    pub(crate) fn note_owners(
        &self,
        token: &TokenInfo,
        slots: &mut Vec<SlotInfo>,
        is_shown: impl Fn(&EngineId) -> bool,
    ) -> Result<()> {
        let of_token = params![token.id.kind, token.id.manufacturer, token.id.serial];
        let ours: Vec<KeyRecord> =
            self.read(|db| {
                Ok(db
                    .prepare_cached(&KEY.select(
                        "WHERE kind = ? AND manufacturer = ? AND serial = ? AND NOT deleted",
                    ))?
                    .query_map(of_token, key_record)?
                    .collect::<rusqlite::Result<_>>()?)
            })?;
        for KeyRecord { info: key, .. } in ours {
            let fingerprint = key.public_key.fingerprint().to_string();
            let is_it = |slot: &SlotInfo| match &slot.fingerprint {
                Some(found) => *found == fingerprint,
                None => key.slot.is_in(&slot.slot),
            };
            let at = match slots.iter().position(is_it) {
                Some(at) => at,
                None if token.derives => {
                    let slot = SlotInfo::occupied(&key.slot).with_key(key.public_key.clone());
                    slots.push(slot);
                    let at = slots.len() - 1;
                    slots[at].uses = vec![key.usage];
                    at
                }
                None => continue,
            };
            if token.derives {
                slots[at].state = SlotState::Occupied;
            }
            if is_shown(&key.owner) {
                let owner = ("identity".into(), key.owner.to_string());
                slots[at].notes.push(owner);
            }
        }
        Ok(())
    }

    /// Another tool gave the key `id` another place on its token.
    pub(crate) fn key_moved(&self, id: i64, slot: &SlotId) -> Result<()> {
        self.write_here::<_, RegistryError>(|db| {
            db.prepare_cached("UPDATE key SET slot = ? WHERE id = ?")?
                .execute(params![slot.as_str(), id])?;
            Ok(())
        })
    }

    /// Whether anything is noted of a token.
    pub(crate) fn knows_token(&self, token: &TokenId) -> Result<bool> {
        if self.refused_pins.has_note_of(token)? {
            return Ok(true);
        }
        self.read(|db| {
            for table in TABLES {
                let query = format!(
                    "SELECT 1 FROM {table} WHERE kind = ? AND manufacturer = ? AND serial = ?"
                );
                let of_token = params![token.kind, token.manufacturer, token.serial];
                if db.prepare_cached(&query)?.exists(of_token)? {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// What is noted of the token `former` is of the token `now`, which was called so by an
    /// earlier version.
    pub(crate) fn rename_token(&self, former: &TokenId, now: &TokenId) -> Result<()> {
        self.write_here::<_, RegistryError>(|db| {
            for table in TABLES {
                // What is noted under both names is the same.
                db.execute(
                    &format!(
                        "UPDATE OR REPLACE {table} SET kind = ?, manufacturer = ?, serial = ? \
                         WHERE kind = ? AND manufacturer = ? AND serial = ?"
                    ),
                    params![
                        now.kind,
                        now.manufacturer,
                        now.serial,
                        former.kind,
                        former.manufacturer,
                        former.serial,
                    ],
                )?;
            }
            Ok(())
        })?;
        self.refused_pins.rename_note(former, now)
    }
}
