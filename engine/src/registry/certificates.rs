//! The certificates of keys. A certificate belongs to a key, whichever identities use it, and is
//! removed with it.

use claviger_formats::certificate::{CertificateError, Chain};
use claviger_token::{KeyUse, PublicKey};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::digests::CERTIFICATE;
use super::rows::damaged;
use super::{Registry, RegistryError, Result, identity, is_asked_for};
use crate::EngineId;

/// Why a certificate was not entered.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateEntryError {
    /// There is no identity of this name.
    #[error("there is no identity `{name}`")]
    NoIdentity {
        /// The name.
        name: String,
    },
    /// The identity has no key that signs, or it was deleted.
    #[error("`{name}` has no key that signs")]
    CannotSign {
        /// The name.
        name: String,
    },
    /// The certificate is not for the key, or is none.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The registry could not be read or written.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl CertificateEntryError {
    /// The stable name of the variant, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            CertificateEntryError::NoIdentity { .. } => "no-identity",
            CertificateEntryError::CannotSign { .. } => "cannot-sign",
            CertificateEntryError::Certificate(error) => error.code(),
            CertificateEntryError::Registry(error) => error.code(),
        }
    }
}

impl From<rusqlite::Error> for CertificateEntryError {
    fn from(error: rusqlite::Error) -> Self {
        CertificateEntryError::Registry(error.into())
    }
}

impl Registry {
    /// Enters a certificate of an identity's signing key, with those that issued it, in DER and in
    /// any order. It replaces an earlier one.
    ///
    /// # Errors
    /// [`CertificateEntryError`]; also if it is for another key, or its time is over at `now`, in
    /// seconds since the beginning of 1970 (UTC).
    pub fn set_certificate(
        &self,
        who: &EngineId,
        ders: &[Vec<u8>],
        now: u64,
    ) -> Result<Chain, CertificateEntryError> {
        self.write(|db| {
            let name = who.name.to_string();
            let Some((keys, _)) = identity(db, who)? else {
                return Err(CertificateEntryError::NoIdentity { name });
            };
            let mut signing = keys.iter().map(|key| &key.info);
            let key = signing.find(|key| key.usage == KeyUse::Sign && !key.deleted);
            let key = key.ok_or(CertificateEntryError::CannotSign { name })?;
            let chain = Chain::of(ders.to_vec(), &key.public_key)?;
            chain.check_time(now)?;
            db.prepare_cached(
                "INSERT OR REPLACE INTO certificate (fingerprint, chain) VALUES (?, ?)",
            )?
            .execute(params![
                key.public_key.fingerprint().to_string(),
                chain.ders().concat(),
            ])?;
            Ok(chain)
        })
    }

    /// The certificate of a key, with those that issued it.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn certificate(&self, key: &PublicKey) -> Result<Option<Chain>> {
        let asked = key.fingerprint().to_string();
        let db = self.db();
        let found = db
            .prepare_cached(&CERTIFICATE.select("WHERE fingerprint = ?"))?
            .query_row([&asked], |row| {
                is_asked_for(&asked, &row.get::<_, String>("fingerprint")?)?;
                chain(row, key)
            })
            .optional()?;
        Ok(found)
    }
}

/// A row that [`CERTIFICATE`] selects, for this key.
pub(super) fn chain(row: &Row<'_>, key: &PublicKey) -> rusqlite::Result<Chain> {
    CERTIFICATE.check(row)?;
    let all: Vec<u8> = row.get("chain")?;
    let ders = Chain::split(&all).ok_or_else(|| damaged("chain"))?;
    Chain::of(ders, key).map_err(|_| damaged("chain"))
}

/// Removes the certificates of keys that are not listed any more.
pub(super) fn remove_strays(db: &Connection) -> Result<()> {
    db.prepare_cached(
        "DELETE FROM certificate WHERE fingerprint NOT IN \
         (SELECT fingerprint FROM key WHERE NOT deleted)",
    )?
    .execute([])?;
    Ok(())
}
