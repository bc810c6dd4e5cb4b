//! What all parts of a node share: its registry, its tokens, its engines and who takes part.

use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::sync::{Arc, Mutex, RwLock};

use claviger_token::sync::{read, write};
use claviger_token::{Call, KeyUse};

use crate::asking::Asking;
use crate::exchange_state::Exchange;
use crate::key_engine::KeyEngine;
use crate::mailboxes::{Mailboxes, SendError};
use crate::message::EngineMsg;
use crate::opening::Wanted;
use crate::policy::Policy;
use crate::registry::Registry;
use crate::tokens::{Opened, Tokens};
use crate::turns::ManagementTurns;
use crate::types::engine_name;
use crate::{EngineError, EngineId, EngineName, IdentityInfo};

/// The name of the Identity Management engine of every node.
pub const IDENTITY_MANAGEMENT: &str = "identity_management";

/// The name of the Encryption engine of every node.
pub const ENCRYPTION: &str = "encryption";

/// The name of the Reads For engine of every node.
pub const READS_FOR: &str = "reads_for";

/// A node as one asks it: the node itself, or a view of it that another policy judges.
pub(crate) struct Inner {
    shared: Arc<Shared>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) policy: Arc<dyn Policy>,
    /// The node itself, of a view: it outlives the view.
    whole: Option<Arc<Inner>>,
}

impl Deref for Inner {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

/// What all views of a node share.
pub(crate) struct Shared {
    pub(crate) registry: Registry,
    pub(crate) exchange: Exchange,
    /// The engines that have been asked for, by name.
    pub(crate) engines: RwLock<HashMap<EngineName, Arc<KeyEngine>>>,
    pub(crate) participants: RwLock<HashMap<EngineName, Arc<Mailboxes>>>,
    /// The keys of which it was said that they are not on their tokens any more.
    pub(crate) missed: Mutex<HashSet<i64>>,
    pub(crate) turns: ManagementTurns,
}

impl Inner {
    /// The node itself.
    pub(crate) fn new(shared: Shared, tokens: Tokens, policy: Arc<dyn Policy>) -> Self {
        Inner {
            shared: Arc::new(shared),
            tokens: Arc::new(tokens),
            policy,
            whole: None,
        }
    }

    /// The same node, whose requests ask `policy`.
    pub(crate) fn seen_by(self: &Arc<Self>, policy: Arc<dyn Policy>) -> Self {
        Inner {
            shared: Arc::clone(&self.shared),
            tokens: Arc::new(self.tokens.seen_by(&policy)),
            policy,
            whole: Some(Arc::clone(self.whole())),
        }
    }

    /// The node itself, for what goes on after a view is gone.
    pub(crate) fn whole(self: &Arc<Self>) -> &Arc<Self> {
        self.whole.as_ref().unwrap_or(self)
    }

    /// Whether this is a view of the node.
    pub(crate) fn is_view(&self) -> bool {
        self.whole.is_some()
    }

    /// Whether who asks must not learn of what there is more than the policy lets it use: whoever
    /// asks from outside, and whoever asks through a view.
    pub(crate) fn is_secret_from(&self, asker: &EngineId) -> bool {
        self.is_view() || asker.node.is_some()
    }

    /// The user who is entered as the maker of an identity.
    pub(crate) fn maker(&self) -> Option<u32> {
        self.policy.subject().map(|subject| subject.uid)
    }

    /// Opens a token for `who`, or for the node itself. What is noted of it under a name that
    /// earlier versions gave it is noted under its own from now on.
    ///
    /// # Errors
    /// What its driver says; as [`in_time`](crate::turns::in_time). An opening that nobody waits for any more goes on,
    /// and the next one finds the token open.
    pub(crate) async fn open(
        self: &Arc<Self>,
        who: Option<&EngineId>,
        wanted: Wanted<'_>,
        call: &Call,
    ) -> Result<Opened, EngineError> {
        let mut asking = Asking::of(&self.tokens, call);
        let opened = loop {
            let opened = self.try_to_open(who, wanted, asking.call()).await;
            match who {
                Some(who) if asking.goes_on(&self.tokens, who, &opened).await? => {}
                _ => break opened?,
            }
        };
        drop(asking);
        if let Some(who) = who {
            self.tokens.admit(&opened.0, who, call).await?;
        }
        Ok(opened)
    }

    async fn try_to_open(
        self: &Arc<Self>,
        who: Option<&EngineId>,
        wanted: Wanted<'_>,
        call: &Call,
    ) -> Result<Opened, EngineError> {
        let (node, asker, its_call) = (Arc::clone(self), who.cloned(), call.clone());
        let (backend, token) = (wanted.backend.to_owned(), wanted.token.cloned());
        let counted = who.map(|who| self.tokens.counted(who));
        let opened = self
            .tokens
            .openings
            .run(counted.as_ref(), wanted, call, move |_opening| {
                its_call.check()?;
                let wanted = Wanted {
                    backend: &backend,
                    token: token.as_ref(),
                };
                let opened = node.tokens.open(asker.as_ref(), wanted, &its_call)?;
                node.rename(opened, &its_call)
            });
        opened.await?
    }

    /// What is noted of a token that was opened under a name that earlier versions gave it is
    /// noted under its own from now on.
    pub(crate) fn rename(&self, opened: Opened, call: &Call) -> Result<Opened, EngineError> {
        let info = opened.0.token.info();
        for former in &info.formerly {
            if self.registry.knows_token(former)? && self.tokens.is_only_one(info, former, call) {
                self.registry.rename_token(former, &info.id)?;
                write(&self.engines).clear();
            }
        }
        Ok(opened)
    }

    pub(crate) fn participant(&self, id: &EngineId) -> Option<Arc<Mailboxes>> {
        if id.node.is_some() {
            return None;
        }
        read(&self.participants).get(&id.name).cloned()
    }

    /// Puts a message into the mailbox of a participant; one for nobody is dropped.
    pub(crate) fn deliver(&self, message: EngineMsg) -> Result<(), SendError> {
        if let Some(mailboxes) = self.participant(&message.target) {
            let place = mailboxes.reserve()?;
            place.put(message.mailbox.unwrap_or(0), message);
        }
        Ok(())
    }

    /// Corrects the registry where another tool gave the engine's key another place.
    pub(crate) fn note_move(&self, engine: &KeyEngine) {
        let Some(slot) = engine.moved_to() else {
            return;
        };
        let info = &engine.key.info;
        tracing::info!(identity = %info.owner, token = %info.token, from = %info.slot, to = %slot, "the key has moved");
        if let Err(error) = self.registry.key_moved(engine.key.id, &slot) {
            tracing::warn!(identity = %info.owner, %error, "its new slot was not recorded");
        }
        self.refresh(&info.owner);
    }

    /// Forgets the engines that work for an identity, so that they are looked up anew.
    pub(crate) fn refresh(&self, identity: &EngineId) {
        let mut engines = write(&self.engines);
        for usage in [KeyUse::Sign, KeyUse::Decrypt] {
            engines.remove(&engine_name(usage, identity));
        }
    }

    /// Forgets the engines that an identity refers to.
    pub(crate) fn refresh_engines(&self, info: &IdentityInfo) {
        let mut engines = write(&self.engines);
        for engine in [&info.commitment_engine, &info.decryption_engine]
            .into_iter()
            .flatten()
        {
            engines.remove(&engine.name);
        }
    }
}
