//! Evidence in the registry. Pieces are only added.

use claviger_token::{PublicKey, Signature, SignatureScheme};
use rusqlite::{Row, Transaction, params};

use super::contacts::insert_contact;
use super::digests::{EVIDENCE, Sum};
use super::revocations::{insert_revocation, revoked};
use super::rows::{damaged, parsed};
use super::{RegistryError, Result};
use crate::evidence::{Evidence, EvidenceFile, KeysId, Party, PublicKeys, Terms};

/// A piece of evidence, as the index over all of them needs it.
pub(crate) struct Edge {
    pub(crate) id: i64,
    pub(crate) from: KeysId,
    pub(crate) to: KeysId,
    /// Before when it counts, in seconds since the beginning of 1970: never is
    /// [`Edge::NEVER`], and always [`Edge::ALWAYS`].
    pub(crate) until: i64,
}

impl Edge {
    /// Of what does not count: what is of version 1, what was revoked, and what is about a
    /// reader without a key that decrypts.
    pub(crate) const NEVER: i64 = i64::MIN;
    /// Of what has no end. Every end is before it.
    pub(crate) const ALWAYS: i64 = i64::MAX;

    /// [`Edge::until`] of a grant with this end.
    pub(crate) fn until(end: Option<u64>) -> i64 {
        end.map_or(Edge::ALWAYS, |end| {
            end.min(Edge::ALWAYS as u64 - 1).cast_signed()
        })
    }
}

impl super::Registry {
    /// Stores a piece, if it is not there yet; whether it was not.
    pub(crate) fn insert_evidence(&self, piece: &Evidence) -> Result<bool> {
        self.write::<_, RegistryError>(|db| Ok(insert(db, piece)?))
    }

    /// Stores what is not there yet, and enters contacts: all of it or nothing.
    pub(crate) fn insert_evidence_file(
        &self,
        file: &EvidenceFile,
        contacts: &[Party],
    ) -> Result<Inserted> {
        self.write::<_, RegistryError>(|db| {
            let mut inserted = Inserted::default();
            for piece in &file.evidence {
                if insert(db, piece)? {
                    inserted.evidence += 1;
                    inserted.of_version_1 += usize::from(piece.terms == Terms::V1);
                }
            }
            for revocation in &file.revocations {
                inserted.revocations += usize::from(insert_revocation(db, revocation)?);
            }
            for contact in contacts {
                insert_contact(db, contact)?;
            }
            Ok(inserted)
        })
    }

    /// The pieces that came after the one with this number, in order.
    pub(crate) fn evidence_after(&self, id: i64) -> Result<Vec<Edge>> {
        self.read(|db| {
            let mut any = db.prepare_cached("SELECT 1 FROM evidence WHERE id > ?")?;
            if id > 0 && !any.exists([id])? {
                return Ok(Vec::new());
            }
            let revoked = revoked(db)?;
            let mut sum = Sum::of(&EVIDENCE);
            let mut query = db.prepare_cached(&EVIDENCE.select("WHERE id > ? ORDER BY id"))?;
            let rows = query.query_map([id], |row| {
                EVIDENCE.check(row)?;
                sum.add(row)?;
                let signed = (row.get("statement")?, row.get("to_sign")?);
                let can_decrypt = row.get::<_, Option<String>>("from_decrypt")?.is_some();
                let until = match terms(row)? {
                    Terms::V2 { until, .. } if can_decrypt && !revoked.contains(&signed) => {
                        Edge::until(until)
                    }
                    _ => Edge::NEVER,
                };
                Ok(Edge {
                    id: row.get("id")?,
                    from: KeysId(row.get("from_keys")?),
                    to: KeysId(row.get("to_keys")?),
                    until,
                })
            })?;
            let edges = rows.collect::<Result<_, _>>()?;
            if id == 0 {
                sum.check(db)?;
            }
            Ok(edges)
        })
    }

    /// The pieces with these numbers.
    pub(crate) fn evidence(&self, ids: &[i64]) -> Result<Vec<Evidence>> {
        self.read(|db| {
            let mut query = db.prepare_cached(&EVIDENCE.select("WHERE id = ?"))?;
            let pieces = ids.iter().map(|id| query.query_row([id], piece));
            Ok(pieces.collect::<Result<_, _>>()?)
        })
    }

    /// What this key granted, ended or revoked or not, in the order in which it came; of
    /// version 1 nothing.
    pub(crate) fn granted_by(&self, signer: &PublicKey) -> Result<Vec<Evidence>> {
        self.read(|db| {
            let of_key = "WHERE to_sign = ? AND number IS NOT NULL ORDER BY id";
            let mut query = db.prepare_cached(&EVIDENCE.select(of_key))?;
            let pieces = query.query_map([signer.to_text()], piece)?;
            Ok(pieces.collect::<Result<_, _>>()?)
        })
    }

    /// All evidence, in the order in which it came.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn all_evidence(&self) -> Result<Vec<Evidence>> {
        self.read(|db| {
            let mut sum = Sum::of(&EVIDENCE);
            let mut query = db.prepare_cached(&EVIDENCE.select("ORDER BY id"))?;
            let pieces = query.query_map([], |row| {
                sum.add(row)?;
                piece(row)
            })?;
            let pieces = pieces.collect::<Result<_, _>>()?;
            sum.check(db)?;
            Ok(pieces)
        })
    }
}

/// What came of storing a file of evidence: how many were new.
#[derive(Default)]
pub(crate) struct Inserted {
    pub(crate) evidence: usize,
    /// Those among them that do not count.
    pub(crate) of_version_1: usize,
    pub(crate) revocations: usize,
}

fn insert(db: &Transaction<'_>, piece: &Evidence) -> rusqlite::Result<bool> {
    let text = |key: &Option<PublicKey>| key.as_ref().map(PublicKey::to_text);
    let (from, to) = (&piece.from_identity, &piece.to_identity);
    let (number, until) = match &piece.terms {
        Terms::V1 => (None, None),
        Terms::V2 { number, until } => (Some(number), *until),
    };
    db.prepare_cached(
        "INSERT OR IGNORE INTO evidence (statement, from_name, from_sign, from_decrypt, \
         from_keys, to_name, to_sign, to_decrypt, to_keys, scheme, signature, number, until) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
        number,
        until.map(u64::cast_signed),
    ])
    .map(|count| count > 0)
}

/// The terms of a row: version 1 had no number.
fn terms(row: &Row<'_>) -> rusqlite::Result<Terms> {
    let until: Option<i64> = row.get("until")?;
    Ok(match row.get("number")? {
        None => Terms::V1,
        Some(number) => Terms::V2 {
            number,
            until: until
                .map(u64::try_from)
                .transpose()
                .map_err(|_| damaged("until"))?,
        },
    })
}

/// A row that [`EVIDENCE`] selects.
pub(super) fn piece(row: &Row<'_>) -> rusqlite::Result<Evidence> {
    EVIDENCE.check(row)?;
    let scheme: SignatureScheme = parsed(row, "scheme", "scheme")?;
    Ok(Evidence {
        from_identity: party(row, "from_name", "from_sign", "from_decrypt")?,
        to_identity: party(row, "to_name", "to_sign", "to_decrypt")?,
        terms: terms(row)?,
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
