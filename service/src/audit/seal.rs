//! Signatures over the chain: who rewrites what a seal covers needs its key.

use std::sync::Arc;
use std::time::Duration;

use claviger_engine::message::RequestCommitment;
use claviger_engine::{EngineId, IdentityInfo, KeyInfo, Node, Purpose};
use claviger_token::sync::lock;
use claviger_token::{Call, KeyUse, PublicKey};

use super::line::{Content, Hash, Seal, hex};
use super::{Audit, AuditError, Shared};

/// After so long the log is sealed, if anything was written.
const SEAL_EACH: Duration = Duration::from_secs(600);

/// A seal that failed is not tried again before: each try is an error in the log of the daemon, and
/// may be a request to a device.
const PAUSE: Duration = Duration::from_secs(60);

/// What is signed of a chain: the number of its last line, and the hash of that.
pub(super) fn statement(upto: u64, hash: &Hash) -> String {
    format!("{upto} {}", hex(hash))
}

/// Seals the log with the key of an identity, which no person has to touch or approve.
pub struct Sealer {
    log: Option<Arc<Shared>>,
    node: Node,
    identity: EngineId,
    engine: EngineId,
    key: PublicKey,
    call: Box<dyn Fn() -> Call + Send + Sync>,
}

impl Sealer {
    /// Seals `audit` as `identity`; `call` makes the circumstances of each signature, such as where
    /// the PIN comes from.
    ///
    /// # Errors
    /// [`AuditError::CannotSeal`]: there is no such identity, it does not sign, or a person has to
    /// touch or to approve when it does.
    pub fn new(
        audit: &Audit,
        node: &Node,
        identity: &str,
        call: impl Fn() -> Call + Send + Sync + 'static,
    ) -> Result<Self, AuditError> {
        let cannot = |reason: &str| AuditError::CannotSeal {
            identity: identity.into(),
            reason: reason.into(),
        };
        let who = EngineId::local(identity);
        let info: IdentityInfo = node
            .registry()
            .identity(&who)
            .map_err(|error| cannot(&error.to_string()))?
            .ok_or_else(|| cannot("there is no such identity"))?;
        let key = info.key(KeyUse::Sign).filter(|key| !key.deleted);
        let (Some(key), Some(engine)) = (key, &info.commitment_engine) else {
            return Err(cannot("it has no key that signs"));
        };
        if may_need_person(key) {
            return Err(cannot("a person may have to touch or approve"));
        }
        Ok(Sealer {
            log: audit.file.clone(),
            node: node.clone(),
            identity: who,
            engine: engine.clone(),
            key: key.public_key.clone(),
            call: Box::new(call),
        })
    }

    /// Seals the log every 10,000 lines and every ten minutes, until it is dropped. A seal that
    /// fails is told in the log of the daemon, and tried again a minute later.
    pub async fn run(&self) {
        let Some(log) = &self.log else {
            return std::future::pending().await;
        };
        loop {
            tokio::select! {
                () = log.is_time.notified() => {}
                () = tokio::time::sleep(SEAL_EACH) => {}
            }
            while let Err(error) = self.seal().await {
                tracing::error!(%error, "the audit log is not sealed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Seals what was written, if anything was.
    ///
    /// # Errors
    /// [`AuditError`].
    pub async fn seal(&self) -> Result<(), AuditError> {
        let Some(log) = &self.log else { return Ok(()) };
        let Some((upto, hash)) = lock(&log.file).to_seal() else {
            return Ok(());
        };
        let request = RequestCommitment {
            data: statement(upto, &hash).into_bytes(),
            purpose: Purpose::Seal,
        };
        let call = (self.call)();
        let signed = (self.node).commit_for(&self.identity, &self.engine, request, &call);
        let signature = signed.await.map_err(|error| AuditError::CannotSeal {
            identity: self.identity.to_string(),
            reason: error.to_string(),
        })?;
        let seal = Seal {
            upto,
            hash: hex(&hash),
            key: self.key.fingerprint().to_string(),
            scheme: signature.scheme().name().into(),
            signature: hex(signature.as_bytes()),
        };
        let mut file = lock(&log.file);
        let at = file.append(|_| Content::seal(&seal))?;
        file.sealed(upto, at);
        Ok(())
    }
}

/// Whether a person has to touch or approve when the key is used, or may have to.
fn may_need_person(key: &KeyInfo) -> bool {
    let attested = key.attestation.as_ref().map_or(&[][..], |a| &a.facts);
    match attested.iter().find(|(what, _)| what == "touch_policy") {
        Some((_, policy)) => policy != "never",
        None => matches!(&*key.token.kind, "piv" | "ledger"),
    }
}
