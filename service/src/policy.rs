//! Judges callers: what their own user made, and what they are granted.
//!
//! | who | on the daemon of one user | on the daemon of the system |
//! | --- | --- | --- |
//! | the daemon's own user | everything | what they made, and what they are granted |
//! | anybody else, root included | what they made, and what they are granted | the same |
//!
//! Whoever made an identity through the daemon may use it for everything, delete it, connect to it
//! and grant in its name. There are two exceptions, which need a grant, whoever asks: to have
//! digests signed ([`Purpose::Prehash`]), and OpenSSH certificates ([`Purpose::SshCertificate`]). A grant to a group holds for its members by their *primary* group: that
//! is what a socket says of its peer. What root and the daemon's own user may besides, such as to
//! add grants, is no matter of the engines' and is decided where it is asked for.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use claviger_engine::grants::{Grant, Right, Subject};
use claviger_engine::policy::{self, Operation, Permission, Policy};
use claviger_engine::registry::{Rights, RightsMark};
use claviger_engine::{EngineError, EngineId, EngineName, Node, Purpose};
use rustix::process::getuid;

use crate::Caller;
use crate::caller::is_operator;

/// So long the grants count that were read last, if another process changed them. What this
/// process changes counts at once.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What callers of one daemon are judged by.
pub struct Rules {
    node: Node,
    /// The user who may do everything, if there is one.
    own: Option<u32>,
    seen: RwLock<Option<Seen>>,
    /// The identities of which a person confirms each use, whoever asks.
    confirmed: ArcSwap<HashSet<EngineName>>,
}

/// The rights as they were read.
struct Seen {
    at: Instant,
    /// The number of writes of this process before that.
    writes: u64,
    mark: RightsMark,
    rights: Arc<Rights>,
}

impl Rules {
    /// Those of a daemon for `node`. One of the system serves nobody by default; any other one
    /// serves the user whom it runs as.
    pub fn new(node: &Node, is_system: bool) -> Arc<Self> {
        let own = (!is_system).then(|| getuid().as_raw());
        Rules::of(node, own)
    }

    /// The same where the user is named who may do everything.
    pub fn of(node: &Node, own: Option<u32>) -> Arc<Self> {
        Arc::new(Rules {
            node: node.clone(),
            own,
            seen: RwLock::default(),
            confirmed: ArcSwap::default(),
        })
    }

    /// The node as a caller sees it.
    pub fn view(self: &Arc<Self>, caller: &Caller) -> Node {
        self.node.seen_by(Arc::new(self.judge(caller)))
    }

    /// The node as a caller sees it through an agent.
    pub(crate) fn agent_view(self: &Arc<Self>, caller: &Caller) -> Node {
        self.node.seen_by(Arc::new(AgentPolicy(self.judge(caller))))
    }

    /// What judges a caller.
    pub fn judge(self: &Arc<Self>, caller: &Caller) -> CallerPolicy {
        CallerPolicy {
            caller: caller.clone(),
            rules: Arc::clone(self),
        }
    }

    /// From now on a person confirms each use of these identities.
    pub fn confirm(&self, identities: &[String]) {
        let names = identities
            .iter()
            .map(|name| EngineName::from(name.as_str()));
        self.confirmed.store(Arc::new(names.collect()));
    }

    /// What other processes changed counts from now on.
    pub fn read_again(&self) {
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        *seen = None;
    }

    /// The rights as they are now, up to [`LOOK_AGAIN`].
    fn rights(&self) -> Result<Arc<Rights>, EngineError> {
        let registry = self.node.registry();
        let is_fresh =
            |seen: &Seen| seen.writes == registry.own_writes() && seen.at.elapsed() < LOOK_AGAIN;
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = seen.as_ref().filter(|seen| is_fresh(seen)) {
            return Ok(Arc::clone(&seen.rights));
        }
        drop(seen);
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = seen.as_ref().filter(|seen| is_fresh(seen)) {
            return Ok(Arc::clone(&seen.rights));
        }
        let (at, writes) = (Instant::now(), registry.own_writes());
        let before = seen.take();
        // What cannot be read grants nothing.
        let changed = registry.rights(before.as_ref().map(|seen| seen.mark))?;
        let (mark, rights) = match (changed, before) {
            (Some((mark, rights)), _) => (mark, Arc::new(rights)),
            (None, Some(before)) => (before.mark, before.rights),
            (None, None) => return Ok(Arc::default()),
        };
        *seen = Some(Seen {
            at,
            writes,
            mark,
            rights: Arc::clone(&rights),
        });
        Ok(rights)
    }
}

/// Judges one caller.
pub struct CallerPolicy {
    caller: Caller,
    rules: Arc<Rules>,
}

impl CallerPolicy {
    /// Whether the caller may learn that an identity of this node is there: its own user made it,
    /// or is granted something about it.
    ///
    /// # Errors
    /// [`EngineError::Registry`].
    pub fn may_see(&self, identity: &EngineId) -> Result<bool, EngineError> {
        if self.may_everything() {
            return Ok(true);
        }
        let rights = self.rules.rights()?;
        let is_named = |grant: &&Grant| grant.what.identity.as_ref() == Some(&identity.name);
        Ok(identity.node.is_none()
            && (self.made(&rights, identity) || self.grants(&rights).any(|grant| is_named(&grant))))
    }

    fn may_everything(&self) -> bool {
        self.rules.own == Some(self.caller.uid)
    }

    fn made(&self, rights: &Rights, identity: &EngineId) -> bool {
        identity.node.is_none() && rights.makers.get(&identity.name) == Some(&self.caller.uid)
    }

    /// The grants to this caller.
    fn grants<'a>(&'a self, rights: &'a Rights) -> impl Iterator<Item = &'a Grant> {
        rights.grants.iter().filter(|grant| {
            let is_it = match grant.what.subject {
                Subject::Uid(uid) => uid == self.caller.uid,
                Subject::Gid(gid) => gid == self.caller.gid,
            };
            let on = grant.what.socket.as_deref();
            is_it && on.is_none_or(|on| on == &*self.caller.socket)
        })
    }

    /// Whether who made an identity may do this with it.
    fn is_makers(&self, rights: &Rights, wanted: Permission<'_>) -> bool {
        match wanted {
            Permission::Use { identity, .. }
            | Permission::Connect(identity)
            | Permission::Delete(identity)
            | Permission::Grant { by: identity, .. }
            | Permission::Revoke { by: identity, .. }
            | Permission::Encrypt(identity)
            | Permission::ReadEvidence(identity) => self.made(rights, identity),
            _ => false,
        }
    }
}

/// Which uses of keys a person confirms.
impl CallerPolicy {
    /// Whether some use may have to be confirmed.
    pub(crate) fn may_want_confirmation(&self) -> bool {
        !self.may_everything() || !self.rules.confirmed.load().is_empty()
    }

    /// Whether a person confirms this use of a key before it: if the configuration says so of the
    /// identity, or if every grant does that allows it to the caller. To be asked if the caller may
    /// use the key.
    ///
    /// # Errors
    /// [`EngineError::Registry`].
    pub(crate) fn wants_confirmation(
        &self,
        identity: &EngineId,
        operation: Operation<'_>,
    ) -> Result<bool, EngineError> {
        if self.is_configured(identity) {
            return Ok(true);
        }
        let wanted = Permission::Use {
            identity,
            operation,
        };
        let needs_grant = must_be_granted(wanted);
        if self.may_everything() && !needs_grant {
            return Ok(false);
        }
        let rights = self.rules.rights()?;
        if self.is_makers(&rights, wanted) && !needs_grant {
            return Ok(false);
        }
        Ok(are_confirmed(self.grants(&rights), identity, wanted))
    }

    /// The same for a signature through an agent, whose grants are those of
    /// [`CallerPolicy::check_agent`].
    ///
    /// # Errors
    /// [`EngineError::Registry`].
    pub(crate) fn agent_wants_confirmation(
        &self,
        identity: &EngineId,
        purpose: &Purpose,
    ) -> Result<bool, EngineError> {
        let operation = Operation::Sign(purpose);
        let rights = self.rules.rights()?;
        let mut of_socket = self
            .grants(&rights)
            .filter(|grant| is_of_socket(grant))
            .peekable();
        if of_socket.peek().is_none() || self.is_configured(identity) {
            return self.wants_confirmation(identity, operation);
        }
        let wanted = Permission::Use {
            identity,
            operation,
        };
        Ok(are_confirmed(of_socket, identity, wanted))
    }

    fn is_configured(&self, identity: &EngineId) -> bool {
        identity.node.is_none() && self.rules.confirmed.load().contains(&identity.name)
    }
}

/// Whether some of the grants allow this, and a person confirms the uses of all that do.
fn are_confirmed<'a>(
    grants: impl Iterator<Item = &'a Grant>,
    identity: &EngineId,
    wanted: Permission<'_>,
) -> bool {
    let mut allowing = grants.filter(|grant| grant.what.allows(&identity.name, wanted));
    let first = allowing.next().is_some_and(|grant| grant.what.is_confirmed);
    first && allowing.all(|grant| grant.what.is_confirmed)
}

/// In which order an agent shows identities.
pub(crate) struct Order {
    /// Those that grants name.
    pub(crate) named: Vec<EngineName>,
    /// Whether there are no others, since the grants are for the caller's socket.
    pub(crate) is_all: bool,
}

/// What an agent does for a caller, whose programs have it sign whatever they like.
impl CallerPolicy {
    /// Refuses what the caller's grants do not allow through an agent. Where grants name its socket,
    /// only those count, also for who may use an identity anyway. What has no purpose is refused
    /// unless a grant names that.
    ///
    /// # Errors
    /// [`EngineError::NotAllowed`], [`EngineError::Registry`].
    pub(crate) fn check_agent(
        &self,
        identity: &EngineId,
        purpose: &Purpose,
    ) -> Result<(), EngineError> {
        let operation = Operation::Sign(purpose);
        let wanted = Permission::Use {
            identity,
            operation,
        };
        let rights = self.rules.rights()?;
        let must_be_named = matches!(purpose, Purpose::Raw | Purpose::SshCertificate);
        let limits = self.grants(&rights).any(is_of_socket);
        if !must_be_named && !limits {
            return self.check(identity, wanted);
        }
        let allowed = self.grants(&rights).any(|grant| {
            (!limits || is_of_socket(grant))
                && (!must_be_named || grant.what.right.names(purpose))
                && grant.what.allows(&identity.name, wanted)
        });
        match allowed {
            true => Ok(()),
            false => Err(self.refusal(wanted)),
        }
    }

    /// In which order an agent shows identities.
    ///
    /// # Errors
    /// [`EngineError::Registry`].
    pub(crate) fn order(&self) -> Result<Order, EngineError> {
        let rights = self.rules.rights()?;
        let is_all = self.grants(&rights).any(is_of_socket);
        let mut named: Vec<EngineName> = Vec::new();
        for grant in self.grants(&rights) {
            let counts = (!is_all || is_of_socket(grant)) && signs(grant);
            if let Some(name) = grant.what.identity.as_ref().filter(|_| counts)
                && !named.contains(name)
            {
                named.push(name.clone());
            }
        }
        Ok(Order { named, is_all })
    }

    /// Whether the caller may use an identity without a grant.
    ///
    /// # Errors
    /// [`EngineError::Registry`].
    pub(crate) fn uses_freely(&self, identity: &EngineId) -> Result<bool, EngineError> {
        Ok(self.may_everything() || self.made(&*self.rules.rights()?, identity))
    }

    /// Neither who asks nor what about: what the identity is called was said by the caller.
    fn refusal(&self, wanted: Permission<'_>) -> EngineError {
        EngineError::NotAllowed {
            sender: EngineId::local(format!("uid {}", self.caller.uid)),
            what: what(wanted),
        }
    }
}

/// Whether it is a grant to sign, and for one socket.
fn is_of_socket(grant: &Grant) -> bool {
    signs(grant) && grant.what.socket.is_some()
}

fn signs(grant: &Grant) -> bool {
    matches!(grant.what.right, Right::Sign(_))
}

impl Policy for CallerPolicy {
    fn check(&self, sender: &EngineId, wanted: Permission<'_>) -> Result<(), EngineError> {
        // Who unlocks for others chooses a backend there, too.
        let names_freely = wanted == Permission::AnyBackend && is_operator(&self.caller);
        let needs_grant = must_be_granted(wanted);
        if names_freely || (self.may_everything() && !needs_grant) {
            return Ok(());
        }
        let rights = self.rules.rights()?;
        let mut grants = self.grants(&rights);
        if (self.is_makers(&rights, wanted) && !needs_grant)
            || grants.any(|grant| grant.what.allows(&sender.name, wanted))
        {
            return Ok(());
        }
        Err(self.refusal(wanted))
    }

    fn may_see(&self, identity: &EngineId) -> Result<bool, EngineError> {
        CallerPolicy::may_see(self, identity)
    }

    fn subject(&self) -> Option<policy::Subject> {
        Some(policy::Subject {
            name: self.caller.to_string().into(),
            uid: self.caller.uid,
        })
    }
}

/// Judges one caller that comes through an agent: what an agent signs is
/// [limited](CallerPolicy::check_agent) whenever it is asked, also right before the device is.
struct AgentPolicy(CallerPolicy);

impl Policy for AgentPolicy {
    fn check(&self, sender: &EngineId, wanted: Permission<'_>) -> Result<(), EngineError> {
        match wanted {
            Permission::Use {
                identity,
                operation: Operation::Sign(purpose),
            } => self.0.check_agent(identity, purpose),
            _ => self.0.check(sender, wanted),
        }
    }

    fn may_see(&self, identity: &EngineId) -> Result<bool, EngineError> {
        self.0.may_see(identity)
    }

    fn subject(&self) -> Option<policy::Subject> {
        self.0.subject()
    }
}

/// Whether a digest or an OpenSSH certificate is to be signed. By the one any signature of the key
/// can be had, by the other others log in: so nobody may by default, neither who made it nor the
/// daemon's own user.
fn must_be_granted(wanted: Permission<'_>) -> bool {
    matches!(
        wanted,
        Permission::Use {
            operation: Operation::Sign(Purpose::Prehash | Purpose::SshCertificate),
            ..
        }
    )
}

/// What was not allowed, as the end of a sentence.
fn what(wanted: Permission<'_>) -> &'static str {
    match wanted {
        Permission::Generate { .. } => "have keys made",
        Permission::Use {
            operation: Operation::Sign(Purpose::Prehash),
            ..
        } => "have digests signed by this identity",
        Permission::Use {
            operation: Operation::Sign(Purpose::SshLogin { .. }),
            ..
        } => "log in as this identity to this host",
        Permission::Use {
            operation: Operation::Sign(Purpose::SshCertificate),
            ..
        } => "have OpenSSH certificates issued by this identity",
        Permission::Use {
            operation: Operation::Sign(_),
            ..
        } => "sign as this identity for this purpose",
        Permission::Use { .. } => "decrypt as this identity",
        Permission::Connect(_) => "connect to this identity",
        Permission::Adopt => "adopt a key",
        Permission::Delete(_) => "delete this identity",
        Permission::Grant { .. } => "grant in the name of this identity",
        Permission::Revoke { .. } => "revoke in the name of this identity",
        Permission::ListTokens => "list the tokens",
        Permission::Encrypt(_) => "encrypt to this identity",
        Permission::ReadEvidence(_) => "read the evidence about this identity",
        Permission::SubmitEvidence => "have evidence stored",
        Permission::AttachDevice => "attach devices",
        Permission::UseLogin { .. } => "use a token that is open by somebody else's PIN",
        _ => "do this",
    }
}
