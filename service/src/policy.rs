//! Judges callers: what their own user made, and what they are granted.
//!
//! | who | on the daemon of one user | on the daemon of the system |
//! | --- | --- | --- |
//! | the daemon's own user | everything | what they made, and what they are granted |
//! | anybody else, root included | what they made, and what they are granted | the same |
//!
//! Whoever made an identity through the daemon may use it for everything, delete it, connect to it
//! and grant in its name. There is one exception: to have digests signed needs a grant, whoever asks
//! ([`Purpose::Prehash`]). A grant to a group holds for its members by their *primary* group: that
//! is what a socket says of its peer. What root and the daemon's own user may besides, such as to
//! add grants, is no matter of the engines' and is decided where it is asked for.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use claviger_engine::grants::{Grant, Subject};
use claviger_engine::policy::{self, Operation, Permission, Policy};
use claviger_engine::registry::{Rights, RightsMark};
use claviger_engine::{EngineError, EngineId, Node, Purpose};
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
        })
    }

    /// The node as a caller sees it.
    pub fn view(self: &Arc<Self>, caller: &Caller) -> Node {
        self.node.seen_by(Arc::new(self.judge(caller)))
    }

    /// What judges a caller.
    pub fn judge(self: &Arc<Self>, caller: &Caller) -> CallerPolicy {
        CallerPolicy {
            caller: caller.clone(),
            rules: Arc::clone(self),
        }
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

impl Policy for CallerPolicy {
    fn check(&self, sender: &EngineId, wanted: Permission<'_>) -> Result<(), EngineError> {
        // Who unlocks for others chooses a backend there, too.
        let names_freely = wanted == Permission::AnyBackend && is_operator(&self.caller);
        let needs_grant = is_of_digests(wanted);
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
        // Neither who asks nor what about: what the identity is called was said by the caller.
        Err(EngineError::NotAllowed {
            sender: EngineId::local(format!("uid {}", self.caller.uid)),
            what: what(wanted),
        })
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

/// Whether a digest is to be signed. Whoever may have that can obtain any signature of the key, so
/// nobody may by default: neither who made it nor the daemon's own user.
fn is_of_digests(wanted: Permission<'_>) -> bool {
    let prehash = Operation::Sign(&Purpose::Prehash);
    matches!(wanted, Permission::Use { operation, .. } if operation == prehash)
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
