//! Certificates of the keys of identities: who may sign one may have it kept.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use claviger_client::wire::{self, daemon_reply::Reply};
use claviger_engine::policy::{Operation, Permission};
use claviger_engine::registry::CertificateEntryError;
use claviger_engine::{EngineError, EngineId, Policy, Purpose};
use tokio::task::spawn_blocking;

use crate::administration::coded;
use crate::audit::Outcome;
use crate::auditing::Noted;
use crate::replies::{self, Answer};
use crate::request::Request;

impl Request {
    /// Keeps a certificate, if the caller may sign certificates as the identity, and writes that
    /// down.
    pub(crate) async fn import_certificate(self, wanted: wire::ImportCertificate) -> Answer {
        let (shared, caller) = (&self.session.shared, &self.session.caller);
        let who = EngineId::local(wanted.identity);
        let noted = Noted::new("certificate-import", &who.name);
        let wants = Permission::Use {
            identity: &who,
            operation: Operation::Sign(&Purpose::Certificate),
        };
        if let Err(error) = self.session.policy.check(&who, wants) {
            noted.refused(&shared.audit, caller, error.code());
            return self.failed(&error);
        }
        let begun = match noted.begin(&shared.audit, caller).await {
            Ok(begun) => begun,
            Err(error) => return self.not_noted(&error),
        };
        let session = Arc::clone(&self.session);
        let entered = spawn_blocking(move || {
            let registry = session.node.registry();
            registry.set_certificate(&who, &wanted.certificates, now())
        });
        let Ok(entered) = entered.await else {
            return self.failed(&self.ended());
        };
        let outcome = match &entered {
            Ok(_) => Outcome::Done,
            Err(error) => Outcome::Failed(error.code()),
        };
        begun.end(outcome).await;
        match entered {
            Ok(chain) => {
                let certificates = chain.ders().to_vec();
                let reply = wire::ImportCertificateReply { certificates };
                replies::from_daemon(Reply::ImportCertificate(reply)).into()
            }
            Err(CertificateEntryError::Registry(error)) => self.failed(&EngineError::from(error)),
            Err(error) => coded(error.code(), error.to_string()),
        }
    }
}

/// In seconds since the beginning of 1970 (UTC).
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs())
}
