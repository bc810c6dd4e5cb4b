//! Evidence in the registry. It is only ever added to.

use claviger_token::{PublicKey, Signature, SignatureScheme};
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::rows::{damaged, parsed};
use super::{RegistryError, Result};
use crate::evidence::{Evidence, KeysId, Party, PublicKeys};

/// A piece of evidence, as the index over all of them needs it.
pub(crate) struct Edge {
    pub(crate) id: i64,
    pub(crate) from: KeysId,
    pub(crate) to: KeysId,
}

impl super::Registry {
    /// Stores what is not there yet, all of it or nothing; how many those were.
    pub(crate) fn insert_evidence(&self, evidence: &[Evidence]) -> Result<usize> {
        self.write::<usize, RegistryError>(|db| {
            let mut added = 0;
            for piece in evidence {
                added += insert(db, piece)?;
            }
            Ok(added)
        })
    }

    /// The pieces that came after the one with this number, in order.
    pub(crate) fn evidence_after(&self, id: i64) -> Result<Vec<Edge>> {
        let db = self.db();
        let mut query = db.prepare_cached(
            "SELECT id, from_keys, to_keys FROM evidence WHERE id > ? ORDER BY id",
        )?;
        let rows = query.query_map([id], |row| {
            Ok(Edge {
                id: row.get(0)?,
                from: KeysId(row.get(1)?),
                to: KeysId(row.get(2)?),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The pieces with these numbers.
    pub(crate) fn evidence(&self, ids: &[i64]) -> Result<Vec<Evidence>> {
        self.read(|db| {
            let mut query = db.prepare_cached("SELECT * FROM evidence WHERE id = ?")?;
            let pieces = ids.iter().map(|id| query.query_row([id], piece));
            Ok(pieces.collect::<Result<_, _>>()?)
        })
    }

    /// Whether just this has been said.
    pub(crate) fn has_evidence(&self, statement: &[u8; 32]) -> Result<bool> {
        let db = self.db();
        let mut query = db.prepare_cached("SELECT 1 FROM evidence WHERE statement = ?")?;
        Ok(query
            .query_row([statement], |_| Ok(()))
            .optional()?
            .is_some())
    }

    /// All evidence, in the order in which it came.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn all_evidence(&self) -> Result<Vec<Evidence>> {
        let db = self.db();
        let mut query = db.prepare_cached("SELECT * FROM evidence ORDER BY id")?;
        let pieces = query.query_map([], piece)?;
        Ok(pieces.collect::<Result<_, _>>()?)
    }
}

fn insert(db: &Transaction<'_>, piece: &Evidence) -> rusqlite::Result<usize> {
    let text = |key: &Option<PublicKey>| key.as_ref().map(PublicKey::to_text);
    let (from, to) = (&piece.from_identity, &piece.to_identity);
    db.prepare_cached(
        "INSERT OR IGNORE INTO evidence (statement, from_name, from_sign, from_decrypt, \
         from_keys, to_name, to_sign, to_decrypt, to_keys, scheme, signature) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        piece.statement_id(),
        &*from.name,
        text(&from.keys.sign),
        text(&from.keys.decrypt),
        from.keys.id().0,
        &*to.name,
        text(&to.keys.sign),
        text(&to.keys.decrypt),
        to.keys.id().0,
        piece.proof.scheme().name(),
        piece.proof.as_bytes(),
    ])
}

fn piece(row: &Row<'_>) -> rusqlite::Result<Evidence> {
    let scheme: SignatureScheme = parsed(row, "scheme")?;
    Ok(Evidence {
        from_identity: party(row, "from_name", "from_sign", "from_decrypt")?,
        to_identity: party(row, "to_name", "to_sign", "to_decrypt")?,
        proof: Signature::new(scheme, row.get("signature")?).map_err(|_| damaged("signature"))?,
    })
}

/// An identity's name and keys, from the columns that they stand in.
pub(super) fn party(
    row: &Row<'_>,
    name: &str,
    sign: &str,
    decrypt: &str,
) -> rusqlite::Result<Party> {
    let key = |column: &str| {
        let text: Option<String> = row.get(column)?;
        let key = text.as_deref().map(PublicKey::from_text);
        key.transpose().map_err(|_| damaged(column))
    };
    Ok(Party {
        name: row.get::<_, String>(name)?.into(),
        keys: PublicKeys {
            sign: key(sign)?,
            decrypt: key(decrypt)?,
        },
    })
}
