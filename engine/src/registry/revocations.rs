//! Revocations in the registry. They are only added, and win in any order.

use std::collections::HashSet;

use claviger_token::{PublicKey, Signature, SignatureScheme};
use rusqlite::{Connection, Row, Transaction, params};

use super::digests::{REVOCATION, Sum};
use super::rows::{damaged, parsed};
use super::{RegistryError, Result};
use crate::evidence::{Evidence, KeysId, Revocation};

/// A piece of evidence that was revoked, as the index over all of them needs it.
pub(crate) struct Revoked {
    /// The number of the revocation.
    pub(crate) by: i64,
    /// The piece, where it is there: its number, who reads, and for whom.
    pub(crate) evidence: Option<(i64, KeysId, KeysId)>,
}

impl super::Registry {
    /// Stores what is not there yet, all of it or nothing.
    pub(crate) fn insert_revocations(&self, revocations: &[Revocation]) -> Result<()> {
        self.write::<_, RegistryError>(|db| {
            for revocation in revocations {
                insert_revocation(db, revocation)?;
            }
            Ok(())
        })
    }

    /// What was revoked after the revocation with this number, in order.
    pub(crate) fn revoked_after(&self, id: i64) -> Result<Vec<Revoked>> {
        self.read(|db| {
            let mut query = db.prepare_cached(&REVOCATION.select("WHERE id > ? ORDER BY id"))?;
            let mut what = db.prepare_cached(
                "SELECT id, from_keys, to_keys FROM evidence WHERE statement = ? AND to_sign = ?",
            )?;
            let rows = query.query_map([id], |row| {
                REVOCATION.check(row)?;
                let signed = params![
                    row.get::<_, [u8; 32]>("statement")?,
                    row.get::<_, String>("signer")?
                ];
                let mut evidence = what.query_map(signed, |row| {
                    Ok((row.get(0)?, KeysId(row.get(1)?), KeysId(row.get(2)?)))
                })?;
                Ok(Revoked {
                    by: row.get("id")?,
                    evidence: evidence.next().transpose()?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// The revocations of these pieces, by the keys that signed them.
    pub(crate) fn revocations_of(&self, pieces: &[Evidence]) -> Result<Vec<Revocation>> {
        self.read(|db| {
            let any = db.query_row("SELECT EXISTS (SELECT 1 FROM revocation)", [], |row| {
                row.get(0)
            })?;
            let mut of_these = Vec::new();
            // Mostly there is none, and many pieces.
            if any {
                let of_one = REVOCATION.select("WHERE statement = ? AND signer = ?");
                let mut query = db.prepare_cached(&of_one)?;
                for piece in pieces {
                    let Some(signer) = &piece.to_identity.keys.sign else {
                        continue;
                    };
                    let signed = params![piece.statement_id(), signer.to_text()];
                    for found in query.query_map(signed, revocation)? {
                        of_these.push(found?);
                    }
                }
            }
            Ok(of_these)
        })
    }

    /// All revocations, in the order in which they came.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn all_revocations(&self) -> Result<Vec<Revocation>> {
        self.read(|db| all(db, revocation))
    }
}

/// What the revocations are of: a statement's digest and the key that signed, as text. Looked
/// up in the table one by one, a damaged index could hide a revocation.
pub(super) fn revoked(db: &Connection) -> Result<HashSet<([u8; 32], String)>> {
    all(db, |row| {
        REVOCATION.check(row)?;
        Ok((row.get("statement")?, row.get("signer")?))
    })
}

/// All rows, in the order in which they came.
fn all<T, All: FromIterator<T>>(
    db: &Connection,
    mut of_row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<All> {
    let mut sum = Sum::of(&REVOCATION);
    let mut query = db.prepare_cached(&REVOCATION.select("ORDER BY id"))?;
    let rows = query.query_map([], |row| {
        sum.add(row)?;
        of_row(row)
    })?;
    let all = rows.collect::<Result<_, _>>()?;
    sum.check(db)?;
    Ok(all)
}

/// Stores a revocation, if it is not there yet; whether it was not.
pub(super) fn insert_revocation(
    db: &Transaction<'_>,
    revocation: &Revocation,
) -> rusqlite::Result<bool> {
    db.prepare_cached(
        "INSERT OR IGNORE INTO revocation (statement, signer, scheme, signature) \
         VALUES (?, ?, ?, ?)",
    )?
    .execute(params![
        revocation.statement,
        revocation.by.to_text(),
        revocation.proof.scheme().name(),
        revocation.proof.as_bytes(),
    ])
    .map(|count| count > 0)
}

fn revocation(row: &Row<'_>) -> rusqlite::Result<Revocation> {
    REVOCATION.check(row)?;
    let scheme: SignatureScheme = parsed(row, "scheme", "scheme")?;
    let signer: String = row.get("signer")?;
    Ok(Revocation {
        statement: row.get("statement")?,
        by: PublicKey::from_text(&signer).map_err(|_| damaged("signer"))?,
        proof: Signature::new(scheme, row.get("signature")?).map_err(|_| damaged("signature"))?,
    })
}
