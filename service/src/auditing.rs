//! Which requests use a key, and what the log has to say of them.
//!
//! The policy is asked before the first line is written: whoever is refused has one line, and no
//! use has begun. The engine asks it again.

use claviger_engine::message::{
    Msg, ReplyCommitment, ReplyConnectIdentity, ReplyDecryption, ReplyDeleteIdentity,
    ReplyGenerateIdentity,
};
use claviger_engine::policy::{Operation, Permission};
use claviger_engine::types::owner_by_name;
use claviger_engine::{EngineError, EngineId, Policy, Purpose};
use claviger_token::token::Secret;
use claviger_token::{Fingerprint, KeyUse, TokenId};
use tokio::task::spawn_blocking;

use crate::Caller;
use crate::audit::{Audit, AuditError, Entry, Outcome, Use, digest_of};
use crate::policy::CallerPolicy;

/// A use of a key, as the log has it.
#[derive(Debug, Clone)]
pub(crate) struct Noted {
    pub(crate) identity: String,
    pub(crate) operation: &'static str,
    pub(crate) purpose: String,
    pub(crate) digest: Option<Vec<u8>>,
    /// Whether a person was asked, and confirmed it.
    pub(crate) is_confirmed: bool,
}

impl Noted {
    pub(crate) fn new(operation: &'static str, identity: &str) -> Self {
        Noted {
            identity: identity.to_owned(),
            operation,
            purpose: String::new(),
            digest: None,
            is_confirmed: false,
        }
    }

    /// What `who` asks `target` for; `None` where that uses no key.
    pub(crate) fn of(who: &EngineId, target: &EngineId, msg: &Msg) -> Option<Self> {
        Some(match msg {
            Msg::RequestCommitment(request) => Noted {
                purpose: purpose(&request.purpose),
                ..Noted::new(signing(&request.purpose), &owner(KeyUse::Sign, target).name)
            },
            Msg::RequestDecryption(_) => {
                Noted::new("decrypt", &owner(KeyUse::Decrypt, target).name)
            }
            Msg::RequestGenerateIdentity(_) => Noted::new("generate", &who.name),
            Msg::RequestConnectIdentity(request) => Noted {
                purpose: request.external_identity.name.to_string(),
                ..Noted::new("connect", &who.name)
            },
            Msg::RequestDeleteIdentity(request) => {
                Noted::new("delete", &request.external_identity.name)
            }
            _ => return None,
        })
    }

    /// With what stands for what is signed. It takes time that only those get who may sign.
    #[must_use]
    pub(crate) fn with_digest(mut self, msg: &Msg) -> Self {
        if let Msg::RequestCommitment(request) = msg {
            self.digest = digest(&request.purpose, &request.data);
        }
        self
    }

    /// With whether a person was asked, and confirmed it.
    #[must_use]
    pub(crate) fn confirmed(mut self, is_confirmed: bool) -> Self {
        self.is_confirmed = is_confirmed;
        self
    }

    fn what(&self) -> Use<'_> {
        Use {
            identity: &self.identity,
            operation: self.operation,
            purpose: &self.purpose,
            digest: self.digest.as_deref(),
            token: None,
            is_confirmed: self.is_confirmed,
        }
    }

    /// Only signing and decrypting wait for no disk.
    fn is_quick(&self) -> bool {
        matches!(self.operation, "sign" | "decrypt")
    }

    /// Writes that it begins. What waits for the disk does so on another thread.
    ///
    /// # Errors
    /// [`AuditError`]: it must not be done.
    pub(crate) async fn begin(self, audit: &Audit, caller: &Caller) -> Result<Begun, AuditError> {
        let is_quick = self.is_quick();
        if is_quick {
            let entry = audit.begin(caller, &self.what())?;
            return Ok(Begun { entry, is_quick });
        }
        let (audit, caller) = (audit.clone(), caller.clone());
        let begun = spawn_blocking(move || audit.begin(&caller, &self.what()));
        match begun.await {
            Ok(entry) => Ok(Begun {
                entry: entry?,
                is_quick,
            }),
            Err(error) => Err(AuditError::Unavailable {
                path: "audit".into(),
                reason: error.to_string(),
            }),
        }
    }

    /// Writes that it was refused.
    pub(crate) fn refused(&self, audit: &Audit, caller: &Caller, code: &str) {
        if let Err(error) = audit.refused(caller, &self.what(), code) {
            tracing::error!(%error, "a refusal is not in the audit log");
        }
    }
}

/// A use that has begun. Dropped, its outcome is unknown.
pub(crate) struct Begun {
    entry: Entry,
    is_quick: bool,
}

impl Begun {
    /// The token with the key, where it is known.
    pub(crate) fn on(&mut self, token: Option<TokenId>) {
        if let Some(token) = token {
            self.entry.on(&token);
        }
    }

    /// Whose key it was, where that came in the end.
    pub(crate) fn by(&mut self, identity: &str) {
        self.entry.by(identity);
    }

    /// Whether a person was asked, and confirmed it, where that came in the end.
    pub(crate) fn confirmed(&mut self, is_confirmed: bool) {
        self.entry.confirmed(is_confirmed);
    }

    /// What was signed, where that came in the end.
    pub(crate) fn signed(&mut self, digest: [u8; 32]) {
        self.entry.signed(digest);
    }

    /// Writes its end, before the caller is told.
    pub(crate) async fn end(self, outcome: Outcome) {
        match self.is_quick {
            true => self.entry.end(outcome),
            false => {
                let _ = spawn_blocking(move || self.entry.end(outcome)).await;
            }
        }
    }
}

/// What came of a request, by its reply.
pub(crate) fn outcome(reply: Option<&Msg>) -> Outcome {
    let err = match reply {
        None => return Outcome::Failed("no-such-engine"),
        Some(Msg::ReplyCommitment(reply)) => &reply.err,
        Some(Msg::ReplyDecryption(reply)) => &reply.err,
        Some(Msg::ReplyGenerateIdentity(reply)) => &reply.err,
        Some(Msg::ReplyConnectIdentity(reply)) => &reply.err,
        Some(Msg::ReplyDeleteIdentity(reply)) => &reply.err,
        Some(_) => return Outcome::Done,
    };
    err.as_ref()
        .map_or(Outcome::Done, |error| Outcome::Failed(error.code()))
}

/// Asks the policy for what a request that uses a key wants.
///
/// # Errors
/// [`EngineError::NotAllowed`], [`EngineError::Registry`].
pub(crate) fn check(
    policy: &CallerPolicy,
    who: &EngineId,
    target: &EngineId,
    msg: &Msg,
) -> Result<(), EngineError> {
    let uses = |usage, operation| {
        let identity = &owner(usage, target);
        policy.check(
            who,
            Permission::Use {
                identity,
                operation,
            },
        )
    };
    match msg {
        Msg::RequestCommitment(request) => uses(KeyUse::Sign, Operation::Sign(&request.purpose)),
        Msg::RequestDecryption(_) => uses(KeyUse::Decrypt, Operation::Decrypt),
        Msg::RequestGenerateIdentity(request) => {
            let backend = &request.backend;
            policy.check(who, Permission::Generate { backend })
        }
        Msg::RequestConnectIdentity(request) => {
            let original = &request.external_identity;
            let wanted = match original.name.starts_with(Fingerprint::PREFIX) {
                true => Permission::Adopt,
                false => Permission::Connect(original),
            };
            policy.check(who, wanted)
        }
        Msg::RequestDeleteIdentity(request) => {
            policy.check(who, Permission::Delete(&request.external_identity))
        }
        _ => Ok(()),
    }
}

/// The reply to a request that is not carried out.
pub(crate) fn refusal(who: &EngineId, msg: &Msg, error: EngineError) -> Option<Msg> {
    let err = Some(error);
    Some(match msg {
        Msg::RequestCommitment(_) => Msg::ReplyCommitment(ReplyCommitment {
            commitment: None,
            err,
        }),
        Msg::RequestDecryption(_) => Msg::ReplyDecryption(ReplyDecryption {
            data: Secret::default(),
            err,
        }),
        Msg::RequestGenerateIdentity(_) => Msg::ReplyGenerateIdentity(ReplyGenerateIdentity {
            commitment_engine: None,
            decryption_engine: None,
            external_identity: who.clone(),
            err,
        }),
        Msg::RequestConnectIdentity(_) => Msg::ReplyConnectIdentity(ReplyConnectIdentity {
            commitment_engine: None,
            decryption_engine: None,
            err,
        }),
        Msg::RequestDeleteIdentity(_) => Msg::ReplyDeleteIdentity(ReplyDeleteIdentity {
            keys: Vec::new(),
            err,
        }),
        _ => return None,
    })
}

/// The identity whose engine is asked. A name that no engine has stands for itself.
pub(crate) fn owner(usage: KeyUse, target: &EngineId) -> EngineId {
    owner_by_name(usage, &target.name).unwrap_or_else(|| target.clone())
}

/// Evidence lets others read what is for somebody, or takes that back.
fn signing(purpose: &Purpose) -> &'static str {
    match purpose {
        Purpose::Evidence => "sign-evidence",
        _ => "sign",
    }
}

/// The name of the purpose, with what grants say of it.
pub(crate) fn purpose(purpose: &Purpose) -> String {
    match purpose {
        Purpose::SshLogin {
            host: Some(host), ..
        } => format!("{}:{host}", purpose.name()),
        Purpose::SshSig { namespace, .. } => format!("sshsig:{namespace}"),
        other => other.name().to_owned(),
    }
}

/// What stands for what is signed: a digest as it was given, of all else the SHA-256.
pub(crate) fn digest(purpose: &Purpose, data: &[u8]) -> Option<Vec<u8>> {
    match purpose {
        // It is empty, or comes later.
        _ if data.is_empty() => None,
        Purpose::SshSig { .. } | Purpose::Prehash if data.len() <= 64 => Some(data.to_vec()),
        _ => Some(digest_of(data).to_vec()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use claviger_engine::message::RequestCommitment;

    #[test]
    fn a_signature_under_evidence_has_an_operation_that_waits_for_the_disk() {
        let noted = |purpose| {
            let data = b"data".to_vec();
            let msg = Msg::RequestCommitment(RequestCommitment { data, purpose });
            let target = EngineId::local("alice_committer_alice");
            let noted = Noted::of(&EngineId::local("alice"), &target, &msg).unwrap();
            assert_eq!((&*noted.identity, &noted.digest), ("alice", &None));
            let noted = noted.with_digest(&msg);
            assert_eq!(noted.digest, Some(digest_of(b"data").to_vec()));
            (noted.operation, noted.is_quick())
        };
        assert_eq!(noted(Purpose::Evidence), ("sign-evidence", false));
        assert_eq!(noted(Purpose::Raw), ("sign", true));
    }
}
