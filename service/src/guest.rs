//! Callers that speak another protocol than the daemon's wire: what a front-end for them may do.
//!
//! A [`FrontEnd`] reads and writes the connection. A [`Guest`] judges, limits and logs what it asks
//! for, as a connection of the wire does.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_engine::message::RequestCommitment;
use claviger_engine::{EngineError, EngineId, IdentityInfo, Purpose};
use claviger_token::{Call, KeyUse, PublicKey, Signature, SignatureScheme, TokenId};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::asking::{AskPin, SecretBytes, SecretKind};
use crate::audit::{AuditError, Outcome};
use crate::auditing::{self, Noted};
use crate::confirming::confirm_for_agent;
use crate::limits::{Counted, Taken};
use crate::session::Session;
use crate::shared::{InFlight, State};
use crate::{Caller, Refusal};

/// How long a lock waits for what is in flight.
const LOCKING: Duration = Duration::from_secs(10);

/// As what a signature by a key is refused that is none of the caller's.
const UNKNOWN_KEY: &str = "no-such-engine";

/// Serves the connections of some sockets in a protocol of its own.
pub trait FrontEnd: Send + Sync {
    /// Whether it serves the socket of this name.
    fn serves(&self, socket: &str) -> bool;

    /// Serves a connection until it is over, or until the daemon [ends](Guest::ending).
    fn serve(&self, stream: UnixStream, guest: Guest) -> Serving;
}

/// A connection that is served.
pub type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A caller on a connection that a front-end serves.
pub struct Guest {
    session: Session,
    state: watch::Receiver<State>,
}

/// A key that a guest may have used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GuestKey {
    /// The identity that the key was made or adopted for.
    pub owner: EngineId,
    /// The engine that signs with it.
    pub engine: EngineId,
    /// The public key.
    pub public_key: PublicKey,
}

/// What a guest has signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToBeSigned {
    /// The data, as the purpose requires.
    pub data: Vec<u8>,
    /// The purpose.
    pub purpose: Purpose,
    /// The scheme, where it is not the usual one of the key.
    pub scheme: Option<SignatureScheme>,
}

/// Why a guest does not get what it asks for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// The daemon does not begin it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What the engine answers.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// It cannot be written down.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

impl GuestError {
    /// The stable name of the variant, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            GuestError::Refused(refusal) => refusal.code(),
            GuestError::Engine(error) => error.code(),
            GuestError::Audit(error) => error.code(),
        }
    }
}

impl Guest {
    pub(crate) fn new(mut session: Session) -> Self {
        session.node = session.shared.rules.agent_view(&session.caller);
        let state = session.shared.state.subscribe();
        Guest { session, state }
    }

    /// Who calls.
    pub fn caller(&self) -> &Caller {
        &self.session.caller
    }

    /// The time in which a message that has begun must end, and a reply must be read.
    pub fn patience(&self) -> Duration {
        self.session.shared.limits().stalled
    }

    /// Returns when the daemon begins nothing new.
    pub async fn ending(&self) {
        let mut state = self.state.clone();
        // An error is an end, too.
        let _ = state.wait_for(|state| *state != State::Running).await;
    }

    /// The keys that the caller may have sign through an agent, each once: those that are granted,
    /// in the order of the grants, and then those that it may use anyway, by name. Where grants name
    /// the caller's socket, there are those only.
    ///
    /// This is a request like any other one.
    ///
    /// # Errors
    /// [`Refusal::Draining`], [`Refusal::Busy`], [`EngineError::Registry`].
    pub async fn keys(&self) -> Result<Vec<GuestKey>, GuestError> {
        let (_counted, begun) = (self.admitted()?, Instant::now());
        let listed = self.listed().await.map_err(GuestError::from);
        self.answered("list-identities", &listed, None, begun);
        listed
    }

    async fn listed(&self) -> Result<Vec<GuestKey>, EngineError> {
        let (node, order) = (self.session.node.clone(), self.session.policy.order()?);
        let found = spawn_blocking(move || node.registry().identities()).await;
        let mut found = found.map_err(|_| interrupted())??;
        let place = |owner: &EngineId| order.named.iter().position(|name| *name == owner.name);
        found.sort_by_key(|(who, _)| place(who).unwrap_or(usize::MAX));
        let mut seen = HashSet::new();
        let mut keys = Vec::new();
        for (_, info) in &found {
            let Some(key) = key_of(info) else {
                continue;
            };
            let is_listed = place(&key.owner).is_some()
                || (!order.is_all && self.session.policy.uses_freely(&key.owner)?);
            if is_listed && seen.insert(key.owner.clone()) {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    /// Has a key sign. `call` has what ends the request early, and who is told that it waits for a
    /// person.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn sign(
        &self,
        key: &GuestKey,
        what: ToBeSigned,
        call: Call,
    ) -> Result<Signature, GuestError> {
        let (_counted, begun) = (self.admitted()?, Instant::now());
        let signed = self.sign_noted(key, what, call).await;
        self.answered("sign", &signed, Some(&key.engine), begun);
        signed
    }

    /// Counts a request as long as the result lives.
    fn admitted(&self) -> Result<(Taken, InFlight), Refusal> {
        let Session { shared, load, .. } = &self.session;
        if shared.is_draining() {
            return Err(Refusal::Draining);
        }
        let most = shared.limits().requests_of_caller;
        let taken = load.take(Counted::Request, most).ok_or(Refusal::Busy {
            what: "requests of one caller",
            most,
        })?;
        Ok((taken, shared.begun()))
    }

    fn answered<T>(
        &self,
        operation: &'static str,
        came: &Result<T, GuestError>,
        engine: Option<&EngineId>,
        begun: Instant,
    ) {
        let Session { shared, node, .. } = &self.session;
        shared.answered();
        if let Some(metrics) = &shared.metrics {
            let outcome = came.as_ref().map_or_else(GuestError::code, |_| "ok");
            let token = engine.and_then(|engine| node.token_of(engine));
            metrics.answered(operation, outcome, token.as_ref(), begun.elapsed());
        }
    }

    async fn sign_noted(
        &self,
        key: &GuestKey,
        what: ToBeSigned,
        call: Call,
    ) -> Result<Signature, GuestError> {
        let Session { shared, caller, .. } = &self.session;
        let noted = Noted {
            purpose: auditing::purpose(&what.purpose),
            digest: auditing::digest(&what.purpose, &what.data),
            ..Noted::new("sign", &key.owner.name)
        };
        let noted = match self
            .check_and_confirm(&key.owner, &what.purpose, &call)
            .await
        {
            Ok(is_confirmed) => noted.confirmed(is_confirmed),
            Err(error) => {
                self.note_refused(&noted, error.code());
                return Err(error.into());
            }
        };
        let begun = match shared.audits {
            true => Some(noted.begin(&shared.audit, caller).await?),
            false => None,
        };
        let owner = Some(key.owner.clone());
        let keeper = &self.session.keeper;
        let call = call.using(keeper.access(caller, owner, Arc::new(Nobody)));
        let mut request = RequestCommitment::raw(what.data);
        request.purpose = what.purpose;
        let node = &self.session.node;
        let signed = node.commit_in(&key.owner, &key.engine, request, what.scheme, &call);
        let signed = signed.await;
        if let Some(mut begun) = begun {
            begun.on(node.token_of(&key.engine));
            begun.end(Outcome::of(&signed)).await;
        }
        Ok(signed?)
    }

    /// Whether a signature that is allowed was also confirmed by a person. Meanwhile the right may
    /// be taken back.
    async fn check_and_confirm(
        &self,
        identity: &EngineId,
        purpose: &Purpose,
        call: &Call,
    ) -> Result<bool, EngineError> {
        let policy = &self.session.policy;
        policy.check_agent(identity, purpose)?;
        let is_confirmed = confirm_for_agent(&self.session, identity, purpose, call).await?;
        if is_confirmed {
            policy.check_agent(identity, purpose)?;
        }
        Ok(is_confirmed)
    }

    /// Writes that something was refused that the front-end did not let come to a key. `what` is
    /// the purpose, or the kind of request.
    pub fn refused(&self, identity: &str, what: &str, code: &str) {
        let noted = Noted {
            purpose: what.to_owned(),
            ..Noted::new("sign", identity)
        };
        self.note_refused(&noted, code);
    }

    /// Writes that a signature was refused since its key is none that the caller may use, or none
    /// of this node. `what` is the kind of request.
    pub fn refused_unknown_key(&self, what: &str) {
        self.refused("", what, UNKNOWN_KEY);
    }

    fn note_refused(&self, noted: &Noted, code: &str) {
        let Session { shared, caller, .. } = &self.session;
        if shared.audits {
            noted.refused(&shared.audit, caller, code);
        }
    }

    /// Locks tokens, as `claviger lock` does.
    pub async fn lock(&self) -> Vec<TokenId> {
        let Session {
            shared,
            caller,
            keeper,
            ..
        } = &self.session;
        let locked = keeper.lock(caller, None, &Call::within(LOCKING)).await;
        if shared.audits {
            // Only now: it is locked whether that can be written down or not.
            match Noted::new("lock", "").begin(&shared.audit, caller).await {
                Ok(begun) => begun.end(Outcome::Done).await,
                Err(error) => tracing::error!(%error, "a lock is not in the audit log"),
            }
        }
        locked
    }
}

fn key_of(info: &IdentityInfo) -> Option<GuestKey> {
    let key = info.key(KeyUse::Sign).filter(|key| !key.deleted)?;
    Some(GuestKey {
        owner: key.owner.clone(),
        engine: info.commitment_engine.clone()?,
        public_key: key.public_key.clone(),
    })
}

fn interrupted() -> EngineError {
    EngineError::Token(claviger_token::Error::Cancelled)
}

/// A connection that cannot be asked for a PIN: its protocol has no words for that.
struct Nobody;

impl AskPin for Nobody {
    fn ask(
        &self,
        _: SecretKind,
        _: &TokenId,
        _: &str,
        _: Option<u32>,
        _: &Call,
    ) -> Option<SecretBytes> {
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use claviger_engine::grants::{NewGrant, Subject};
    use claviger_engine::message::RequestGenerateIdentity;
    use claviger_engine::{Backend, Capabilities, IdParams, Node, Registry};
    use claviger_memory::MemoryDriver;

    use super::*;
    use crate::policy::Rules;

    #[tokio::test]
    async fn the_engine_itself_asks_what_an_agent_may_do() {
        let node = Node::builder(Registry::in_memory().unwrap())
            .driver(MemoryDriver::new())
            .build();
        let request = RequestGenerateIdentity {
            backend: Backend::LocalMemory,
            params: IdParams::P256,
            capabilities: Capabilities::Commit,
        };
        let (alice, call) = (EngineId::local("alice"), Call::unlimited());
        node.generate(&alice, request, &call).await.unwrap();
        let caller = Caller {
            uid: 7,
            gid: 7,
            socket: "agent".into(),
        };
        let rules = Rules::of(&node, Some(7));
        let [own, agent] = [rules.view(&caller), rules.agent_view(&caller)];
        let engine = EngineId::local("alice_committer_alice");
        let signs = async |node: &Node| {
            let signed = node.commit(&alice, &engine, b"message".to_vec(), &call);
            signed.await.map_or_else(|error| error.code(), |_| "ok")
        };
        assert_eq!(
            (signs(&own).await, signs(&agent).await),
            ("ok", "not-allowed")
        );
        let grant = NewGrant::parse(Subject::Uid(7), "", "alice", "sign", "raw").unwrap();
        let grant = node.registry().add_grant(&grant).unwrap();
        assert_eq!(signs(&agent).await, "ok");
        node.registry().remove_grant(grant.id).unwrap();
        assert_eq!(signs(&agent).await, "not-allowed");
    }
}
