//! Requests to the daemon itself: how it is, what there is, grants, and unlocking.

use std::sync::Arc;
use std::time::Duration;

use claviger_client::wire::{self, daemon_reply::Reply, daemon_request::Request as ToDaemon};
use claviger_engine::grants::{Grant, NewGrant, Subject};
use claviger_engine::policy::Permission;
use claviger_engine::registry::GrantError;
use claviger_engine::{EngineError, EngineId, IdentityInfo, Policy};
use claviger_token::{KeyUse, TokenId};
use tokio::task::spawn_blocking;

use crate::Refusal;
use crate::audit::Outcome;
use crate::auditing::Noted;
use crate::authority::is_operator;
use crate::replies::{self, Answer};
use crate::request::Request;
use crate::session::Session;

/// So long a lock looks which token it is for.
const LONGEST_LOOK: Duration = Duration::from_secs(2);

impl Request {
    pub(crate) async fn ask_daemon(self, request: wire::DaemonRequest) -> Result<Answer, Refusal> {
        let request = request
            .request
            .ok_or(Refusal::BadRequest("its message is unknown"))?;
        match request {
            ToDaemon::Status(_) => Ok(self.status()),
            ToDaemon::ListIdentities(wanted) => Ok(self.identities(wanted.name).await),
            ToDaemon::ListTokens(wanted) => Ok(self.tokens(wanted.backend).await),
            ToDaemon::Unlock(wanted) => Ok(self.unlock(wanted).await),
            ToDaemon::Lock(wanted) => Ok(self.lock(wanted.backend).await),
            ToDaemon::AddGrant(wanted) => self.add_grant(wanted.grant).await,
            ToDaemon::ListGrants(_) => self.list_grants().await,
            ToDaemon::RemoveGrant(wanted) => self.remove_grant(wanted.id).await,
            ToDaemon::AttachDevice(wanted) => self.attach_device(wanted).await,
            ToDaemon::DetachDevice(wanted) => self.detach_device(&wanted),
            ToDaemon::ImportCertificate(wanted) => Ok(self.import_certificate(wanted).await),
        }
    }

    /// Who may not list tokens sees none.
    fn status(&self) -> Answer {
        let mut status = self.session.shared.status();
        // This one is not what is asked about.
        status.requests_in_flight = status.requests_in_flight.saturating_sub(1);
        let asker = EngineId::program();
        let may_list = self.session.policy.check(&asker, Permission::ListTokens);
        if may_list.is_err() && !is_operator(&self.session.caller) {
            status.tokens.clear();
        }
        replies::from_daemon(Reply::Status(status)).into()
    }

    async fn identities(self, name: String) -> Answer {
        let session = Arc::clone(&self.session);
        let listed = spawn_blocking(move || {
            let registry = session.node.registry();
            if !name.is_empty() {
                return one_identity(&session, EngineId::local(name));
            }
            let mut found = registry.identities()?;
            let mut failed = Ok(());
            found.retain(|(id, _)| {
                session.policy.may_see(id).unwrap_or_else(|error| {
                    failed = Err(error);
                    false
                })
            });
            failed.map(|()| (found, Vec::new()))
        });
        match listed.await {
            Ok(Ok((identities, certificates))) => replies::identities(&identities, &certificates),
            Ok(Err(error)) => self.failed(&error),
            Err(_) => self.failed(&self.ended()),
        }
    }

    async fn tokens(self, backend: String) -> Answer {
        let backend = Some(backend).filter(|backend| !backend.is_empty());
        let asker = EngineId::program();
        let looked = self
            .session
            .node
            .look(&asker, backend.as_deref(), &self.call);
        match looked.await {
            Ok(found) => {
                let mut chunks = Vec::new();
                let json = (self.session.shared.tokens_json)(&found).into_bytes();
                let json = replies::split(json, &mut chunks);
                let hints = self.session.shared.hints;
                let unreadable = found.unreadable.into_iter();
                let unreadable = unreadable.map(|place| replies::unreadable(place, hints));
                let reply = wire::TokensReply {
                    // It was text before it was split.
                    json: String::from_utf8(json).unwrap_or_default(),
                    data_follows: !chunks.is_empty(),
                    unreadable: unreadable.collect(),
                };
                Answer {
                    first: replies::from_daemon(Reply::Tokens(reply)),
                    then: chunks,
                }
            }
            Err(error) => self.failed(&error),
        }
    }

    async fn unlock(self, wanted: wire::Unlock) -> Answer {
        let (shared, caller) = (&self.session.shared, &self.session.caller);
        let noted = Noted {
            purpose: wanted.backend.clone(),
            ..Noted::new("unlock", "")
        };
        if let Err(refusal) = self.operator("unlock tokens for others") {
            noted.refused(&shared.audit, caller, refusal.code());
            return refusal.into();
        }
        let begun = match noted.begin(&shared.audit, caller).await {
            Ok(begun) => begun,
            Err(error) => return self.not_noted(&error),
        };
        let limit = (wanted.for_s != 0).then(|| Duration::from_secs(wanted.for_s));
        let asker = Arc::new(self.line.clone());
        let keeper = &self.session.keeper;
        let unlocked = keeper.unlock(caller, &wanted.backend, limit, asker, &self.call);
        let unlocked = unlocked.await;
        begun.end(Outcome::of(&unlocked)).await;
        match unlocked {
            Ok(token) => {
                let token = Some(replies::token(&token.id));
                replies::from_daemon(Reply::Unlock(wire::UnlockReply { token })).into()
            }
            Err(error) => self.failed(&error),
        }
    }

    async fn lock(self, backend: String) -> Answer {
        let (shared, caller) = (&self.session.shared, &self.session.caller);
        let noted = Noted {
            purpose: backend.clone(),
            ..Noted::new("lock", "")
        };
        let only = match backend.is_empty() {
            true => None,
            false => match self.token_of(&backend).await {
                Ok(token) => Some(token),
                Err(error) => {
                    tracing::warn!(%error, "all tokens are locked, since one cannot be found");
                    None
                }
            },
        };
        let keeper = &self.session.keeper;
        let locked = keeper.lock(caller, only.as_ref(), &self.call).await;
        // Only now: it is locked whether that can be written down or not.
        match noted.begin(&shared.audit, caller).await {
            Ok(begun) => begun.end(Outcome::Done).await,
            Err(error) => tracing::error!(%error, "a lock is not in the audit log"),
        }
        let tokens = locked.iter().map(replies::token).collect();
        replies::from_daemon(Reply::Lock(wire::LockReply { tokens })).into()
    }

    /// The one token that a backend names, if that is known or soon found.
    async fn token_of(&self, backend: &str) -> Result<TokenId, EngineError> {
        if let Some(token) = self.session.keeper.named(backend) {
            return Ok(token);
        }
        let asker = EngineId::program();
        let call = self.call.clone().no_longer_than(LONGEST_LOOK);
        let looked = self.session.node.look(&asker, Some(backend), &call);
        let found = looked.await?;
        let mut ids: Vec<TokenId> = found
            .tokens
            .into_iter()
            .map(|(token, _)| token.id)
            .collect();
        match (ids.pop(), ids.is_empty()) {
            (Some(id), true) => Ok(id),
            (None, _) => Err(claviger_token::Error::NoToken {
                wanted: backend.to_owned(),
                present: Vec::new(),
            }
            .into()),
            (Some(last), false) => Err(claviger_token::Error::AmbiguousToken {
                wanted: backend.to_owned(),
                candidates: ids
                    .into_iter()
                    .chain([last])
                    .map(|id| id.to_string())
                    .collect(),
            }
            .into()),
        }
    }

    async fn add_grant(self, grant: Option<wire::Grant>) -> Result<Answer, Refusal> {
        let grant = grant.ok_or(Refusal::BadRequest("there is no grant"))?;
        let subject = match grant.subject {
            Some(wire::grant::Subject::Uid(uid)) => Subject::Uid(uid),
            Some(wire::grant::Subject::Gid(gid)) => Subject::Gid(gid),
            None => return Err(Refusal::BadRequest("the grant has no subject")),
        };
        let noted = Noted {
            purpose: format!("{} {} to {subject:?}", grant.operation, grant.purpose),
            ..Noted::new("grant-add", &grant.identity)
        };
        let parsed = NewGrant::parse(
            subject,
            &grant.socket,
            &grant.identity,
            &grant.operation,
            &grant.purpose,
        );
        self.change_grants("grant to others", noted, move |registry| {
            registry.add_grant(&parsed?).map(|grant| Some(vec![grant]))
        })
        .await
    }

    async fn remove_grant(self, id: u64) -> Result<Answer, Refusal> {
        let noted = Noted {
            purpose: format!("grant {id}"),
            ..Noted::new("grant-remove", "")
        };
        self.change_grants("remove grants", noted, move |registry| {
            let Ok(number) = i64::try_from(id) else {
                return Ok(None);
            };
            let its = registry.grants()?.into_iter();
            let its = its.filter(|grant| grant.id == number).collect();
            Ok(registry.remove_grant(number)?.then_some(its))
        })
        .await
    }

    async fn list_grants(self) -> Result<Answer, Refusal> {
        self.operator("list the grants")?;
        let session = Arc::clone(&self.session);
        let listed = spawn_blocking(move || session.node.registry().grants());
        match listed.await {
            Ok(Ok(grants)) => Ok(grants_answer(&grants)),
            Ok(Err(error)) => Ok(self.failed(&error.into())),
            Err(_) => Ok(self.failed(&self.ended())),
        }
    }

    /// Changes grants, if the caller may, and writes that down.
    async fn change_grants(
        self,
        what: &'static str,
        noted: Noted,
        change: impl FnOnce(&claviger_engine::Registry) -> Result<Option<Vec<Grant>>, GrantError>
        + Send
        + 'static,
    ) -> Result<Answer, Refusal> {
        let (shared, caller) = (&self.session.shared, &self.session.caller);
        if let Err(refusal) = self.operator(what) {
            noted.refused(&shared.audit, caller, refusal.code());
            return Err(refusal);
        }
        let begun = match noted.begin(&shared.audit, caller).await {
            Ok(begun) => begun,
            Err(error) => return Ok(self.not_noted(&error)),
        };
        let session = Arc::clone(&self.session);
        let changed = spawn_blocking(move || change(session.node.registry())).await;
        let Ok(changed) = changed else {
            return Ok(self.failed(&self.ended()));
        };
        let outcome = match &changed {
            Ok(Some(_)) => Outcome::Done,
            Ok(None) => Outcome::Failed(Refusal::NoGrant.code()),
            Err(error) => Outcome::Failed(error.code()),
        };
        begun.end(outcome).await;
        Ok(match changed {
            Ok(Some(grants)) => grants_answer(&grants),
            Ok(None) => Refusal::NoGrant.into(),
            Err(GrantError::Registry(error)) => self.failed(&error.into()),
            Err(error) => coded(error.code(), error.to_string()),
        })
    }

    /// # Errors
    /// [`Refusal::NotAllowed`], to all but the daemon's own user and root.
    fn operator(&self, what: &'static str) -> Result<(), Refusal> {
        match is_operator(&self.session.caller) {
            true => Ok(()),
            false => Err(Refusal::NotAllowed {
                uid: self.session.caller.uid,
                what,
            }),
        }
    }
}

/// Identities, and the certificates of the only one.
type Listed = (Vec<(EngineId, IdentityInfo)>, Vec<Vec<u8>>);

/// The identity of this name, with the certificates of its signing key. Who may not see it does not
/// learn that its entry is damaged.
fn one_identity(session: &Session, id: EngineId) -> Result<Listed, EngineError> {
    let registry = session.node.registry();
    if !session.policy.may_see(&id)? {
        return Ok(Listed::default());
    }
    let Some(info) = registry.identity(&id)? else {
        return Ok(Listed::default());
    };
    let chain = match info.key(KeyUse::Sign) {
        Some(key) => registry.certificate(&key.public_key)?,
        None => None,
    };
    let certificates = chain.map(|chain| chain.ders().to_vec());
    Ok((vec![(id, info)], certificates.unwrap_or_default()))
}

/// An error of neither an engine nor the daemon's core.
pub(crate) fn coded(code: &str, message: String) -> Answer {
    let error = wire::Error {
        code: code.to_owned(),
        message,
        ..wire::Error::default()
    };
    wire::frame::Content::Error(error).into()
}

/// So many grants fit into a frame, however long their names are.
const GRANTS_A_FRAME: usize = 1000;

fn grants_answer(grants: &[Grant]) -> Answer {
    let reply = |grants: &[Grant], more| {
        let grants = grants.iter().map(grant).collect();
        replies::from_daemon(Reply::Grants(wire::GrantsReply { grants, more }))
    };
    let mut parts = grants.chunks(GRANTS_A_FRAME);
    let more = parts.len();
    let first = reply(parts.next().unwrap_or_default(), more > 1);
    let then = parts
        .enumerate()
        .map(|(index, part)| reply(part, index + 2 < more));
    Answer {
        first,
        then: then.collect(),
    }
}

fn grant(grant: &Grant) -> wire::Grant {
    let what = &grant.what;
    wire::Grant {
        // Numbers of rows are positive.
        id: grant.id.unsigned_abs(),
        subject: Some(match what.subject {
            Subject::Uid(uid) => wire::grant::Subject::Uid(uid),
            Subject::Gid(gid) => wire::grant::Subject::Gid(gid),
        }),
        socket: what.socket.clone().unwrap_or_default(),
        identity: what.identity.as_deref().unwrap_or_default().to_owned(),
        operation: what.operation(),
        purpose: what.right.purpose(),
    }
}
