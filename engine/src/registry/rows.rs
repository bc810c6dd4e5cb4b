//! The rows of the tables.

use std::str::FromStr;
use std::sync::Arc;

use claviger_token::{KeyUse, PublicKey, SlotId, TokenId, Unfinished};
use rusqlite::{Row, RowIndex};
use serde::{Deserialize, Serialize};

use super::digests::{INTENT, KEY};
use super::{Action, Intent, KeyRecord};
use crate::EngineId;
use crate::types::{KeyInfo, NodeId, Origin};

/// An id as it stands in the tables.
pub(super) fn key_of(who: &EngineId) -> (String, &str) {
    (
        who.node
            .as_ref()
            .map(|node| node.0.to_text())
            .unwrap_or_default(),
        &who.name,
    )
}

pub(super) fn damaged(column: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(
        0,
        rusqlite::types::Type::Text,
        format!("`{column}` cannot be read").into(),
    )
}

/// A row that is not the one that was written, or not the one that was asked for.
#[derive(Debug, Clone, thiserror::Error)]
#[error("`{row}` of the table {table}")]
pub(crate) struct NotAsWritten {
    pub(crate) table: &'static str,
    /// What it is called.
    pub(crate) row: String,
}

impl NotAsWritten {
    pub(crate) fn error(table: &'static str, row: &str) -> rusqlite::Error {
        let row = row.into();
        let what = Box::new(NotAsWritten { table, row });
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, what)
    }

    /// What is said of a row, where the error is one of these.
    pub(super) fn of(error: &rusqlite::Error) -> Option<&Self> {
        match error {
            rusqlite::Error::FromSqlConversionFailure(_, _, why) => why.downcast_ref(),
            _ => None,
        }
    }
}

/// What the text at `at` says, in the column of this name.
pub(super) fn parsed<T: FromStr>(
    row: &Row<'_>,
    at: impl RowIndex,
    column: &str,
) -> rusqlite::Result<T> {
    let text = row.get_ref(at)?.as_str()?;
    text.parse().map_err(|_| damaged(column))
}

pub(super) fn engine_id<I: RowIndex>(
    row: &Row<'_>,
    node: I,
    name: I,
) -> rusqlite::Result<EngineId> {
    let id = match row.get_ref(node)?.as_str()? {
        "" => None,
        key => {
            let key = PublicKey::from_text(key).map_err(|_| damaged("node"))?;
            Some(NodeId(Arc::new(key)))
        }
    };
    Ok(EngineId {
        node: id,
        name: row.get::<_, String>(name)?.into(),
    })
}

pub(crate) fn token_id(row: &Row<'_>) -> rusqlite::Result<TokenId> {
    Ok(TokenId {
        kind: row.get("kind")?,
        manufacturer: row.get("manufacturer")?,
        serial: row.get("serial")?,
    })
}

/// A row that [`KEY`] selects.
pub(super) fn key_record(row: &Row<'_>) -> rusqlite::Result<KeyRecord> {
    KEY.check(row)?;
    let text = |at: usize| row.get_ref(at)?.as_str().map_err(rusqlite::Error::from);
    let public_key = text(const { KEY.at("public_key") })?;
    let owner = const { (KEY.at("owner_node"), KEY.at("owner_name")) };
    Ok(KeyRecord {
        id: row.get(const { KEY.at("id") })?,
        backend: row.get(const { KEY.at("backend") })?,
        info: KeyInfo {
            usage: match text(const { KEY.at("usage") })? {
                "sign" => KeyUse::Sign,
                "decrypt" => KeyUse::Decrypt,
                _ => return Err(damaged("usage")),
            },
            token: TokenId {
                kind: row.get(const { KEY.at("kind") })?,
                manufacturer: row.get(const { KEY.at("manufacturer") })?,
                serial: row.get(const { KEY.at("serial") })?,
            },
            slot: SlotId::new(text(const { KEY.at("slot") })?),
            public_key: PublicKey::from_text(public_key).map_err(|_| damaged("public_key"))?,
            origin: match text(const { KEY.at("origin") })? {
                "generated" => Origin::Generated,
                "adopted" => Origin::Adopted,
                _ => return Err(damaged("origin")),
            },
            protection: from_json(row, const { KEY.at("protection") }, "protection")?,
            attestation: from_json(row, const { KEY.at("attestation") }, "attestation")?,
            owner: engine_id(row, owner.0, owner.1)?,
            deleted: row.get(const { KEY.at("deleted") })?,
        },
    })
}

/// What is written of a structure: names and numbers, so it can be.
pub(super) fn json(value: &impl serde::Serialize) -> Option<String> {
    serde_json::to_string(value).ok()
}

pub(super) fn from_json<T: serde::de::DeserializeOwned>(
    row: &Row<'_>,
    at: usize,
    column: &str,
) -> rusqlite::Result<Option<T>> {
    let json = row.get_ref(at)?.as_str_or_null()?;
    json.map(|json| serde_json::from_str(json).map_err(|_| damaged(column)))
        .transpose()
}

pub(super) fn origin_name(origin: Origin) -> &'static str {
    match origin {
        Origin::Generated => "generated",
        Origin::Adopted => "adopted",
    }
}

/// A key of an intent as it stands in its row.
#[derive(Serialize, Deserialize)]
struct IntendedKey {
    slot: SlotId,
    mark: String,
    public_key: Option<String>,
}

/// What is written of the keys of an intent.
pub(super) fn keys_json(keys: &[Unfinished]) -> Option<String> {
    let rows: Vec<IntendedKey> = keys
        .iter()
        .map(|key| IntendedKey {
            slot: key.slot.clone(),
            mark: key.mark.clone(),
            public_key: key.public_key.as_ref().map(PublicKey::to_text),
        })
        .collect();
    json(&rows)
}

fn intended_keys(row: &Row<'_>) -> rusqlite::Result<Vec<Unfinished>> {
    let Some(keys) = from_json::<Vec<IntendedKey>>(row, const { INTENT.at("keys") }, "keys")?
    else {
        // Written by a version that noted the slots alone.
        let slots: Vec<SlotId> = from_json(row, const { INTENT.at("slots") }, "slots")?
            .ok_or_else(|| damaged("slots"))?;
        let of_slot = |slot| Unfinished {
            slot,
            mark: String::new(),
            public_key: None,
        };
        return Ok(slots.into_iter().map(of_slot).collect());
    };
    let read = |key: IntendedKey| {
        let public_key = key.public_key.map(|text| PublicKey::from_text(&text));
        Ok(Unfinished {
            slot: key.slot,
            mark: key.mark,
            public_key: public_key.transpose().map_err(|_| damaged("keys"))?,
        })
    };
    keys.into_iter().map(read).collect()
}

/// A row that [`INTENT`] selects.
pub(super) fn intent(row: &Row<'_>) -> rusqlite::Result<Intent> {
    INTENT.check(row)?;
    Ok(Intent {
        id: row.get("id")?,
        action: match row.get::<_, String>("action")?.as_str() {
            "generate" => Action::Generate,
            "delete" => Action::Delete,
            "name" => Action::Name,
            _ => return Err(damaged("action")),
        },
        identity: engine_id(row, "node", "name")?,
        token: token_id(row)?,
        backend: row.get("backend")?,
        keys: intended_keys(row)?,
    })
}
