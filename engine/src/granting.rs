//! Grants, revokes and imports evidence: connects the signing keys, the registry, and the names
//! of keys in it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use claviger_token::{Call, Error, KeyUse, PublicKey};

use crate::encryption::Recipient;
use crate::evidence::{Evidence, EvidenceFile, Party, Revocation, Statement, Terms, now};
use crate::inner::Inner;
use crate::message::RequestCommitment;
use crate::node::Node;
use crate::policy;
use crate::reads_for::{self, EvidenceAbout, as_reader};
use crate::registry::RegistryError;
use crate::types::LONGEST_NAME;
use crate::{Commitment, EngineError, EngineId, EngineName, Purpose};

/// The number of characters of a fingerprint that distinguish two bearers of one name.
const TELLING: usize = 8;

/// The outcome of an import of evidence.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Imported {
    /// The number of new pieces of evidence.
    pub added: usize,
    /// The number of pieces that were known already.
    pub known: usize,
    /// The number of new pieces of version 1, which are kept and not relied on.
    pub of_version_1: usize,
    /// The number of new revocations.
    pub revocations: usize,
    /// Names that belong to other keys here, and the contacts that were entered for the keys in the
    /// file.
    pub renamed: Vec<(EngineName, EngineName)>,
}

/// Whether a piece of evidence is relied on, apart from its signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// It is.
    Counts,
    /// No: it is of version 1, and must be granted again.
    OldFormat,
    /// No: the reader has no decryption key.
    ReaderCannotDecrypt,
    /// No longer: it has ended.
    Ended,
    /// No longer: the granter has revoked it.
    Revoked,
}

/// A piece of evidence was refused, so nothing was imported.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{error}")]
#[non_exhaustive]
pub struct NotImported {
    /// The index of the piece, from 0; revocations are counted after the evidence. `None` if the
    /// error concerns no piece.
    pub piece: Option<usize>,
    /// Why not.
    pub error: EngineError,
}

impl Node {
    /// Grants `reader` to read for `by`, whose signing key signs this, and stores the evidence. It
    /// counts before the moment `until`, in seconds since the beginning of 1970 (UTC).
    ///
    /// # Errors
    /// [`EngineError::EvidenceExists`] before the key is used, if that is granted already for as
    /// long; [`EngineError::NoEncryptionKey`] if `reader` has no decryption key, and so reads for
    /// nobody; [`EngineError::ExternalIdentityNotFound`]; [`EngineError::CapabilitiesNotAvailable`]
    /// if `by` cannot sign here; and those of signing.
    pub async fn grant_reads_for(
        &self,
        who: &EngineId,
        reader: &EngineId,
        by: &EngineId,
        until: Option<u64>,
        call: &Call,
    ) -> Result<Evidence, EngineError> {
        let sign = async |engine: EngineId, request| {
            self.commit_as((who, by), &engine, request, call).await
        };
        self.grant_reads_for_signed(who, reader, by, until, sign)
            .await
    }

    /// The same where another process has the token, which `sign` asks: for the signature of an
    /// engine of this node. It is verified before the evidence is stored.
    ///
    /// # Errors
    /// As [`Node::grant_reads_for`], and those of `sign`.
    pub async fn grant_reads_for_signed<E: From<EngineError>>(
        &self,
        who: &EngineId,
        reader: &EngineId,
        by: &EngineId,
        until: Option<u64>,
        sign: impl AsyncFnOnce(EngineId, RequestCommitment) -> Result<Commitment, E>,
    ) -> Result<Evidence, E> {
        (self.0.policy).check(who, policy::Permission::Grant { reader, by })?;
        let engine = self.signs_for(by)?;
        let (from, to) = (self.0.must_know(reader)?, self.0.must_know(by)?);
        if from.party.keys.decrypt.is_none() {
            let error = match &from.deleted_with {
                Some(owner) => EngineError::IdentityDeleted {
                    identity: owner.clone(),
                },
                None => EngineError::NoEncryptionKey {
                    identity: reader.clone(),
                },
            };
            return Err(error.into());
        }
        let (from, to) = (from.party.clone(), to.party.clone());
        let lasts = |terms: &Terms| match terms {
            Terms::V2 { until: None, .. } => true,
            Terms::V2 { until: end, .. } => until.is_some() && *end >= until,
            Terms::V1 => false,
        };
        let granted = self.grants(by)?;
        let mut same = granted.iter().filter(|piece| {
            piece.from_identity.keys == from.keys && piece.to_identity.keys == to.keys
        });
        if same.any(|piece| lasts(&piece.terms)) {
            return Err(EngineError::EvidenceExists.into());
        }
        let terms = Terms::new(until);
        let statement = Statement::Grant {
            from: from.clone(),
            to: to.clone(),
            terms,
        };
        let proof = sign(engine, to_be_signed(&statement)).await?;
        let evidence = Evidence {
            from_identity: from,
            to_identity: to,
            terms,
            proof,
        };
        self.0.submit(&evidence)?;
        Ok(evidence)
    }

    /// Revokes every grant of `by` to `reader`. The signing key of `by` signs once for each grant,
    /// and the revocations are stored. `reader` is the name in the grant, or the name that its keys
    /// have here. Expired grants are revoked, too, since the clock of another machine may be
    /// behind.
    ///
    /// # Errors
    /// [`EngineError::NoSuchGrant`]; otherwise as [`Node::grant_reads_for`]. Grants that were
    /// revoked before the error stay revoked.
    pub async fn revoke_reads_for(
        &self,
        who: &EngineId,
        reader: &EngineId,
        by: &EngineId,
        call: &Call,
    ) -> Result<Vec<Revocation>, EngineError> {
        let sign = async |engine: EngineId, request| {
            self.commit_as((who, by), &engine, request, call).await
        };
        self.revoke_reads_for_signed(who, reader, by, sign).await
    }

    /// The same where another process has the token: see [`Node::grant_reads_for_signed`].
    ///
    /// # Errors
    /// As [`Node::revoke_reads_for`], and those of `sign`.
    pub async fn revoke_reads_for_signed<E: From<EngineError>>(
        &self,
        who: &EngineId,
        reader: &EngineId,
        by: &EngineId,
        mut sign: impl AsyncFnMut(EngineId, RequestCommitment) -> Result<Commitment, E>,
    ) -> Result<Vec<Revocation>, E> {
        (self.0.policy).check(who, policy::Permission::Revoke { reader, by })?;
        let engine = self.signs_for(by)?;
        let known = self.0.know(reader).map_err(EngineError::from)?;
        let keys: Vec<_> = (known.iter())
            .flat_map(|known| as_reader(&known.party.keys))
            .collect();
        let mut revocations = Vec::new();
        for piece in self.to_revoke(by)? {
            let from = &piece.from_identity;
            let is_it = keys.contains(&from.keys.id())
                || *self.name_here(from)? == *reader.name
                || (known.is_none() && from.name == reader.name);
            let Some(signer) = piece.to_identity.keys.sign.clone().filter(|_| is_it) else {
                continue;
            };
            let statement = Statement::Revocation {
                statement: piece.statement_id(),
                by: signer.clone(),
            };
            let revocation = Revocation {
                statement: piece.statement_id(),
                by: signer,
                proof: sign(engine.clone(), to_be_signed(&statement)).await?,
            };
            revocation.verify().map_err(reads_for::invalid)?;
            let registry = &self.0.registry;
            let inserted = registry.insert_revocations(std::slice::from_ref(&revocation));
            inserted.map_err(EngineError::from)?;
            revocations.push(revocation);
        }
        match revocations.is_empty() {
            false => Ok(revocations),
            true => Err(EngineError::NoSuchGrant {
                reader: reader.clone(),
                by: by.clone(),
            }
            .into()),
        }
    }

    /// The grants of an identity that count now.
    fn grants(&self, by: &EngineId) -> Result<Vec<Evidence>, EngineError> {
        let signer = self.0.must_know(by)?.party.keys.sign.clone();
        let mut grants = self.0.evidence_about(by)?;
        grants.onward.clear();
        let mut grants = self.0.what_counts(grants)?;
        grants.retain(|piece| piece.to_identity.keys.sign == signer);
        Ok(grants)
    }

    /// The grants of an identity's signing key that are not revoked, whatever the identity's other
    /// keys were then, and whenever they end.
    fn to_revoke(&self, by: &EngineId) -> Result<Vec<Evidence>, EngineError> {
        let signer = self.0.must_know(by)?.party.keys.sign.clone();
        let signer = signer.ok_or(EngineError::CapabilitiesNotAvailable)?;
        let mut grants = self.0.registry.granted_by(&signer)?;
        let revoked = self.0.revoked(&grants, Vec::new())?;
        grants.retain(|piece| !revoked.has(piece));
        Ok(grants)
    }

    /// The signing engine of an identity, which must be a living one of this machine.
    fn signs_for(&self, by: &EngineId) -> Result<EngineId, EngineError> {
        let info = self.0.registry.identity(by)?;
        let info = info.ok_or(EngineError::ExternalIdentityNotFound)?;
        if let Some(key) = info.key(KeyUse::Sign).filter(|key| key.deleted) {
            return Err(EngineError::IdentityDeleted {
                identity: key.owner.clone(),
            });
        }
        info.commitment_engine
            .ok_or(EngineError::CapabilitiesNotAvailable)
    }

    /// Imports a file of evidence: all of it, or nothing. If a name belongs to other keys here, the
    /// keys in the file become a contact with another name, which ends in the beginning of a
    /// fingerprint: `safe@Zm9vYmFy`.
    ///
    /// # Errors
    /// [`NotImported`] names the first piece that is invalid.
    pub async fn import_evidence(
        &self,
        who: &EngineId,
        file: impl Into<EvidenceFile>,
    ) -> Result<Imported, NotImported> {
        let may = (self.0.policy).check(who, policy::Permission::SubmitEvidence);
        may.map_err(NotImported::whole)?;
        let (node, file) = (self.clone(), file.into());
        tokio::task::spawn_blocking(move || node.import(&file))
            .await
            .unwrap_or_else(|_| Err(NotImported::whole(Error::Cancelled)))
    }

    fn import(&self, file: &EvidenceFile) -> Result<Imported, NotImported> {
        let evidence = file.evidence.iter().map(Evidence::verify);
        let revocations = file.revocations.iter().map(Revocation::verify);
        for (piece, verdict) in evidence.chain(revocations).enumerate() {
            verdict.map_err(|reason| NotImported {
                piece: Some(piece),
                error: reads_for::invalid(reason),
            })?;
        }
        let (contacts, renamed) = self.clashing(file).map_err(NotImported::whole)?;
        let inserted = self.0.registry.insert_evidence_file(file, &contacts);
        let inserted = inserted.map_err(NotImported::whole)?;
        Ok(Imported {
            added: inserted.evidence,
            known: file.evidence.len() - inserted.evidence,
            of_version_1: inserted.of_version_1,
            revocations: inserted.revocations,
            renamed,
        })
    }

    /// The contacts to enter for keys whose name is taken here, with their old and new names.
    #[allow(clippy::type_complexity, reason = "two lists that belong together")]
    fn clashing(
        &self,
        file: &EvidenceFile,
    ) -> Result<(Vec<Party>, Vec<(EngineName, EngineName)>), EngineError> {
        let (mut contacts, mut renamed) = (Vec::new(), Vec::new());
        let mut seen = HashSet::new();
        let parties = file.evidence.iter();
        let parties = parties.flat_map(|piece| [&piece.from_identity, &piece.to_identity]);
        for party in parties {
            let name = self.name_here(party)?;
            if name == party.name
                || !seen.insert(name.clone())
                || self.0.know(&EngineId::local(name.clone()))?.is_some()
            {
                continue;
            }
            renamed.push((party.name.clone(), name.clone()));
            contacts.push(Party {
                name,
                keys: party.keys.clone(),
            });
        }
        Ok((contacts, renamed))
    }

    /// Whether pieces of evidence are relied on now.
    ///
    /// # Errors
    /// [`EngineError::Registry`].
    pub fn standing(&self, evidence: &[Evidence]) -> Result<Vec<Standing>, EngineError> {
        let revoked = self.0.revoked(evidence, Vec::new())?;
        let moment = now();
        let of = |piece: &Evidence| match piece.terms {
            Terms::V1 => Standing::OldFormat,
            _ if revoked.has(piece) => Standing::Revoked,
            _ if !piece.reader_can_decrypt() => Standing::ReaderCannotDecrypt,
            terms if !terms.hold_at(moment) => Standing::Ended,
            _ => Standing::Counts,
        };
        Ok(evidence.iter().map(of).collect())
    }

    /// The name here of a party in evidence: the one in the evidence, unless that belongs to other
    /// keys; then that of an identity or contact with exactly these keys, or the name with the
    /// beginning of a fingerprint.
    ///
    /// # Errors
    /// [`EngineError::Registry`].
    pub fn name_here(&self, party: &Party) -> Result<EngineName, EngineError> {
        match self.0.keys_of(&party.name)? {
            Some(keys) if keys.contradict(&party.keys) => {}
            _ => return Ok(party.name.clone()),
        }
        let contacts = self.0.registry.contacts()?;
        if let Some(contact) = contacts.into_iter().find(|c| c.keys == party.keys) {
            return Ok(contact.name);
        }
        let key = party.keys.sign.as_ref().or(party.keys.decrypt.as_ref());
        let fingerprint = key.map(|key| key.fingerprint().to_string());
        let fingerprint = fingerprint.unwrap_or_default();
        let (_, base64) = fingerprint.split_once(':').unwrap_or_default();
        let telling: Vec<char> = base64.chars().filter(char::is_ascii_alphanumeric).collect();
        // Longer, where somebody has found another key with the same beginning.
        for length in [TELLING, telling.len()] {
            let end: String = telling.iter().take(length).collect();
            let mut begin = party.name.to_string();
            while begin.len() + 1 + end.len() > LONGEST_NAME {
                begin.pop();
            }
            let name = format!("{begin}@{end}");
            match self.0.keys_of(&name)? {
                Some(keys) if keys.contradict(&party.keys) => {}
                _ => return Ok(name.into()),
            }
        }
        Ok(party.name.clone())
    }
}

/// A request to sign a statement.
fn to_be_signed(statement: &Statement) -> RequestCommitment {
    RequestCommitment {
        data: statement.to_bytes(),
        purpose: Purpose::Evidence,
    }
}

impl NotImported {
    fn whole(error: impl Into<EngineError>) -> Self {
        NotImported {
            piece: None,
            error: error.into(),
        }
    }
}

/// The revoked statements, each with the key that revoked it.
struct RevokedStatements(HashSet<([u8; 32], PublicKey)>);

impl RevokedStatements {
    fn has(&self, piece: &Evidence) -> bool {
        let signer = piece.to_identity.keys.sign.as_ref();
        !self.0.is_empty()
            && signer.is_some_and(|key| self.0.contains(&(piece.statement_id(), key.clone())))
    }
}

impl Inner {
    /// Stores a piece of evidence if it verifies and is new.
    pub(crate) fn submit(&self, evidence: &Evidence) -> Result<(), EngineError> {
        reads_for::check(evidence, |name| self.keys_of(name))?;
        match self.registry.insert_evidence(evidence)? {
            true => Ok(()),
            false => Err(EngineError::EvidenceExists),
        }
    }

    /// The evidence in a reply that counts: it has not ended, and neither the reply nor this
    /// registry has a revocation of it. Whoever uses it verifies it.
    pub(crate) fn what_counts(&self, about: EvidenceAbout) -> Result<Vec<Evidence>, RegistryError> {
        let EvidenceAbout {
            direct,
            revocations: told,
            onward,
        } = about;
        let mut all = direct;
        all.extend(onward);
        let revoked = self.revoked(&all, told)?;
        let moment = now();
        all.retain(|piece| piece.terms.hold_at(moment) && !revoked.has(piece));
        Ok(all)
    }

    /// The revoked ones of `pieces`, as far as this registry or the reply knows. Other revocations
    /// are not verified, since that takes most of a millisecond each.
    fn revoked(
        &self,
        pieces: &[Evidence],
        mut told: Vec<Revocation>,
    ) -> Result<RevokedStatements, RegistryError> {
        let mut all = self.registry.revocations_of(pieces)?;
        if !told.is_empty() {
            let signers: HashMap<[u8; 32], Option<&PublicKey>> = (pieces.iter())
                .map(|piece| (piece.statement_id(), piece.to_identity.keys.sign.as_ref()))
                .collect();
            told.retain(|r| signers.get(&r.statement) == Some(&Some(&r.by)));
            all.append(&mut told);
        }
        let mut revoked = HashSet::new();
        for revocation in all {
            let pair = (revocation.statement, revocation.by.clone());
            if !revoked.contains(&pair) && revocation.verify().is_ok() {
                revoked.insert(pair);
            }
        }
        Ok(RevokedStatements(revoked))
    }

    /// The recipients by their names here.
    pub(crate) fn named_here(
        self: &Arc<Self>,
        parties: Vec<Party>,
    ) -> Result<Vec<Recipient>, EngineError> {
        let node = Node(Arc::clone(self));
        let named = parties.into_iter().filter_map(|party| {
            let name = node.name_here(&party);
            let key = party.keys.decrypt?;
            Some(name.map(|name| Recipient { name, key }))
        });
        named.collect()
    }
}
