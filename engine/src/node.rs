//! The node: routing, mailboxes, and the calls of a program.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use claviger_token::{
    Access, Call, Decryptor, Driver, Error, KeyUse, SlotId, SlotInfo, TokenId, TokenInfo,
};
use tokio::sync::Notify;

use crate::accounts::{self, FoundKey, Search, SoughtKey};
use crate::exchange::{Exchange, READS_FOR_DEADLINE};
use crate::identity_management::{refuse_connect, refuse_delete, refuse_generate};
use crate::key_engine::KeyEngine;
use crate::lifecycle;
use crate::message::{
    EngineMsg, Msg, ReplyCommitment, ReplyConnectIdentity, ReplyDecryption, ReplyDeleteIdentity,
    ReplyGenerateIdentity, RequestConnectIdentity, RequestDecryption, RequestDeleteIdentity,
    RequestGenerateIdentity,
};
use crate::policy::{self, Operation, OwnersOnly, Policy};
use crate::purpose::ToSign;
use crate::registry::{Intent, KeyRecord, Registry, RegistryError};
use crate::settling::settle_all;
use crate::tokens::{Found, OpenToken, Tokens};
use crate::types::engine_name;
use crate::unnoted::Tell;
use crate::{
    Commitment, EngineError, EngineId, EngineName, IdentityInfo, TokenChanges, TokenState,
};
use claviger_token::token::Secret;

/// The name of the Identity Management engine of every node.
pub const IDENTITY_MANAGEMENT: &str = "identity_management";

/// The name of the Encryption engine of every node.
pub const ENCRYPTION: &str = "encryption";

/// The name of the Reads For engine of every node.
pub const READS_FOR: &str = "reads_for";

/// How many messages a participant's mailboxes hold together.
pub const MAILBOX_CAPACITY: usize = 1024;

/// A node: its engines, its registry and its tokens. Clones are the same node.
///
/// Messages are sent with [`Node::send`], the replies then lie in the sender's mailbox;
/// or with [`Node::ask`] and the methods named after the requests, which hand the reply
/// back. Either way the same engine sees the same message.
///
/// A node works within a tokio runtime that has its timers enabled.
#[derive(Clone)]
pub struct Node(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) registry: Registry,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) policy: Box<dyn Policy>,
    pub(crate) exchange: Exchange,
    /// The engines that have been asked for, by name.
    engines: RwLock<HashMap<EngineName, Arc<KeyEngine>>>,
    participants: RwLock<HashMap<EngineName, Arc<Mailboxes>>>,
    /// The keys of which it was said that they are not on their tokens any more.
    missed: Mutex<HashSet<i64>>,
    /// Identity Management has state: it handles one message at a time, in order.
    management: Arc<tokio::sync::Mutex<()>>,
}

/// What a node is made of.
pub struct NodeBuilder {
    registry: Registry,
    drivers: Vec<Arc<dyn Driver>>,
    access: Access,
    policy: Box<dyn Policy>,
    reads_for: EngineId,
    reads_for_deadline: Duration,
    unnoted_pins: Option<Tell>,
}

impl NodeBuilder {
    /// Adds a driver; there is one for each scheme of backends.
    #[must_use]
    pub fn driver(mut self, driver: impl Driver + 'static) -> Self {
        self.drivers.push(Arc::new(driver));
        self
    }

    /// How tokens are opened. Without it no PIN is given to any. Which PINs were refused is
    /// remembered in the node's registry, whatever `access` says.
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Lets PINs be sent also where the registry cannot be written to, so that a refusal is
    /// not remembered: `tell` hears of each token before. Without it no PIN is sent then. One
    /// that was refused like this is the last in this process.
    #[must_use]
    pub fn unnoted_pins(mut self, tell: impl Fn(&TokenId) + Send + Sync + 'static) -> Self {
        self.unnoted_pins = Some(Arc::new(tell));
        self
    }

    /// Who may do what. Without it [`OwnersOnly`].
    #[must_use]
    pub fn policy(mut self, policy: impl Policy + 'static) -> Self {
        self.policy = Box::new(policy);
        self
    }

    /// Which Reads For engine the Encryption engine asks. Without it the node's own.
    #[must_use]
    pub fn reads_for(mut self, engine: EngineId) -> Self {
        self.reads_for = engine;
        self
    }

    /// How long the Reads For engine may take. Without it [`READS_FOR_DEADLINE`].
    #[must_use]
    pub fn reads_for_deadline(mut self, deadline: Duration) -> Self {
        self.reads_for_deadline = deadline;
        self
    }

    /// The node.
    pub fn build(self) -> Node {
        let mut refused_pins = self.registry.refused_pins().clone();
        if let Some(tell) = self.unnoted_pins {
            refused_pins = refused_pins.unnoted(tell);
        }
        let access = Access {
            refused_pins: Arc::new(refused_pins),
            first_account: self.registry.first_account(),
            ..self.access
        };
        Node(Arc::new(Inner {
            registry: self.registry,
            tokens: Arc::new(Tokens::new(self.drivers, access)),
            policy: self.policy,
            exchange: Exchange::new(self.reads_for, self.reads_for_deadline),
            engines: RwLock::default(),
            participants: RwLock::default(),
            missed: Mutex::default(),
            management: Arc::default(),
        }))
    }
}

impl Node {
    /// A node whose identities are in `registry`.
    pub fn builder(registry: Registry) -> NodeBuilder {
        NodeBuilder {
            registry,
            drivers: Vec::new(),
            access: Access::without_pin(),
            policy: Box::new(OwnersOnly),
            reads_for: EngineId::local(READS_FOR),
            reads_for_deadline: READS_FOR_DEADLINE,
            unnoted_pins: None,
        }
    }

    /// The identities.
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// The id of this node's Identity Management engine.
    pub fn identity_management(&self) -> EngineId {
        EngineId::local(IDENTITY_MANAGEMENT)
    }

    /// Takes part in the node under `name`: messages to it come to the result's mailboxes.
    ///
    /// # Errors
    /// [`SendError::NameTaken`] where an engine or another participant has the name.
    pub fn attach(&self, name: impl Into<EngineName>) -> Result<Participant, SendError> {
        let name = name.into();
        let is_engine = [IDENTITY_MANAGEMENT, ENCRYPTION, READS_FOR].contains(&&*name);
        if is_engine || self.0.registry.engine(&name)?.is_some() {
            return Err(SendError::NameTaken);
        }
        let mut participants = write(&self.0.participants);
        if participants.contains_key(&name) {
            return Err(SendError::NameTaken);
        }
        let mailboxes = Arc::new(Mailboxes::default());
        participants.insert(name.clone(), Arc::clone(&mailboxes));
        Ok(Participant {
            node: Arc::clone(&self.0),
            id: EngineId::local(name),
            mailboxes,
        })
    }

    /// Sends a message. Returns when it is handled; the reply, if any, is then in
    /// mailbox 0 of the sender, if it is [attached](Node::attach). A message that no
    /// engine accepts is dropped.
    ///
    /// # Errors
    /// [`SendError::MailboxFull`]: the target's mailbox, or the sender's, for whom there
    /// would be a reply; then nothing was done.
    pub async fn send(&self, message: EngineMsg, call: &Call) -> Result<(), SendError> {
        let EngineMsg {
            sender,
            target,
            mailbox,
            msg,
        } = message;
        if self.0.participant(&target).is_some() {
            return self.0.deliver(EngineMsg {
                sender,
                target,
                mailbox,
                msg,
            });
        }
        let mailboxes = self.0.participant(&sender);
        let place = mailboxes.as_ref().map(|m| m.reserve()).transpose()?;
        let reply = self.ask(&sender, &target, msg, call).await;
        if let (Some(place), Some(msg)) = (place, reply) {
            place.put(
                0,
                EngineMsg {
                    sender: target,
                    target: sender,
                    mailbox: Some(0),
                    msg,
                },
            );
        }
        Ok(())
    }

    /// Sends a message to an engine and hands back what it replies to the sender.
    ///
    /// `None`: no engine of that name accepts such a message, and it was dropped.
    pub async fn ask(
        &self,
        sender: &EngineId,
        target: &EngineId,
        msg: Msg,
        call: &Call,
    ) -> Option<Msg> {
        if target.node.is_some() {
            return None;
        }
        match &*target.name {
            IDENTITY_MANAGEMENT => return self.manage(sender, msg, call).await,
            ENCRYPTION => return self.to_encryption(sender, msg, call).await,
            READS_FOR => return self.to_reads_for(msg).await,
            _ => {}
        }
        match msg {
            Msg::RequestCommitment(request) => {
                let result = self.to_commitment(sender, target, request, call).await?;
                let (commitment, err) = match result {
                    Ok(commitment) => (Some(commitment), None),
                    Err(err) => (None, Some(err)),
                };
                Some(Msg::ReplyCommitment(ReplyCommitment { commitment, err }))
            }
            Msg::RequestDecryption(request) => {
                let engine = self.usable(sender, target, Operation::Decrypt, call).await;
                let result = match engine.transpose()? {
                    Ok(engine) => {
                        let work = Work::Open(Arc::new(request.data));
                        self.work(sender, target, engine, work, call).await
                    }
                    Err(err) => Err(err),
                };
                let (data, err) = match result {
                    Ok(Done::Opened(data)) => (data, None),
                    Ok(Done::Signed(_)) => return None,
                    Err(err) => (Secret::default(), Some(err)),
                };
                Some(Msg::ReplyDecryption(ReplyDecryption { data, err }))
            }
            _ => None,
        }
    }

    /// Hands a message to Identity Management. Once begun it is carried through, even
    /// if the caller goes away; it is then undone or finished as the case may be.
    async fn manage(&self, sender: &EngineId, msg: Msg, call: &Call) -> Option<Msg> {
        let turn = Arc::clone(&self.0.management).lock_owned();
        let turn = match call.deadline() {
            None => turn.await,
            Some(deadline) => match tokio::time::timeout_at(deadline.into(), turn).await {
                Ok(turn) => turn,
                // Somebody else's message takes long.
                Err(_) => return refuse(sender, &msg, Error::DeadlineExceeded.into()),
            },
        };
        let (node, sender, call) = (Arc::clone(&self.0), sender.clone(), call.clone());
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            lifecycle::handle(&node, &sender, msg, &call)
        })
        .await
        .ok()
        .flatten()
    }

    /// Makes an identity for `who`.
    pub async fn generate(
        &self,
        who: &EngineId,
        request: RequestGenerateIdentity,
        call: &Call,
    ) -> ReplyGenerateIdentity {
        match self
            .manage(who, Msg::RequestGenerateIdentity(request), call)
            .await
        {
            Some(Msg::ReplyGenerateIdentity(reply)) => reply,
            _ => ReplyGenerateIdentity {
                commitment_engine: None,
                decryption_engine: None,
                external_identity: who.clone(),
                err: Some(interrupted()),
            },
        }
    }

    /// Connects `who` to an identity, or to a key on a token.
    pub async fn connect(
        &self,
        who: &EngineId,
        request: RequestConnectIdentity,
        call: &Call,
    ) -> ReplyConnectIdentity {
        match self
            .manage(who, Msg::RequestConnectIdentity(request), call)
            .await
        {
            Some(Msg::ReplyConnectIdentity(reply)) => reply,
            _ => ReplyConnectIdentity {
                commitment_engine: None,
                decryption_engine: None,
                err: Some(interrupted()),
            },
        }
    }

    /// Deletes an identity for `who`.
    pub async fn delete(
        &self,
        who: &EngineId,
        request: RequestDeleteIdentity,
        call: &Call,
    ) -> ReplyDeleteIdentity {
        match self
            .manage(who, Msg::RequestDeleteIdentity(request), call)
            .await
        {
            Some(Msg::ReplyDeleteIdentity(reply)) => reply,
            _ => ReplyDeleteIdentity {
                keys: Vec::new(),
                err: Some(interrupted()),
            },
        }
    }

    /// Opens the age file `data` with the Decryption engine `engine`.
    ///
    /// # Errors
    /// What the engine answers; [`EngineError::NoSuchEngine`] where there is none.
    pub async fn decrypt(
        &self,
        who: &EngineId,
        engine: &EngineId,
        data: Vec<u8>,
        call: &Call,
    ) -> Result<Secret, EngineError> {
        let msg = Msg::RequestDecryption(RequestDecryption { data });
        match self.ask(who, engine, msg, call).await {
            Some(Msg::ReplyDecryption(ReplyDecryption { data, err: None })) => Ok(data),
            Some(Msg::ReplyDecryption(ReplyDecryption { err: Some(err), .. })) => Err(err),
            _ => Err(EngineError::NoSuchEngine {
                engine: engine.clone(),
            }),
        }
    }

    /// The key of the Decryption engine `engine`, for ciphertexts that are too long for
    /// a message: to be given to [`decrypt_stream`](claviger_formats::envelope::decrypt_stream).
    /// Its operations run where the token wants them, and block the caller.
    ///
    /// # Errors
    /// As [`Node::decrypt`].
    pub async fn decryptor(
        &self,
        who: &EngineId,
        engine: &EngineId,
        call: &Call,
    ) -> Result<Arc<dyn Decryptor>, EngineError> {
        let found = self.usable(who, engine, Operation::Decrypt, call).await?;
        let engine = found.ok_or_else(|| EngineError::NoSuchEngine {
            engine: engine.clone(),
        })?;
        engine.decryptor(&self.0.tokens, call).await
    }

    /// The changes of the tokens' states, as they happen: those of every token that is or
    /// comes to be attached, from being absent on; where `backend` is given, those of its
    /// kind, it included. As long as the result lives the devices are watched, by events
    /// where their system has them.
    ///
    /// # Errors
    /// [`EngineError::NoDriver`], or what the driver says of `backend`.
    pub fn token_changes(&self, backend: Option<&str>) -> Result<TokenChanges, EngineError> {
        TokenChanges::subscribe(&self.0.tokens, backend)
    }

    /// How the tokens stand that this node has seen so far.
    pub fn token_states(&self) -> Vec<(TokenId, TokenState)> {
        self.0.tokens.standings.all()
    }

    /// The attached tokens with what can be seen of their slots without a PIN: those
    /// that fit `backend`, or all.
    ///
    /// # Errors
    /// [`EngineError::NoDriver`], or what a driver says.
    pub async fn tokens(
        &self,
        backend: Option<&str>,
        call: &Call,
    ) -> Result<Vec<(TokenInfo, Vec<SlotInfo>)>, EngineError> {
        Ok(self.look(backend, call).await?.tokens)
    }

    /// The same, with the places where there is something that cannot be read.
    ///
    /// A token's statement is corrected by what was tried on it here before, and its slots say
    /// which of them identities of this registry use (the note `identity`).
    ///
    /// # Errors
    /// As [`Node::tokens`].
    pub async fn look(&self, backend: Option<&str>, call: &Call) -> Result<Found, EngineError> {
        let (node, backend) = (Arc::clone(&self.0), backend.map(str::to_owned));
        let call = call.clone();
        tokio::task::spawn_blocking(move || {
            let mut found = node.tokens.list(backend.as_deref(), &call)?;
            for (token, slots) in &mut found.tokens {
                let noted = node.registry.take_account(token);
                // Tokens can be seen also where the registry cannot.
                let noted = noted
                    .and_then(|()| node.registry.take_account_of_slots(token, slots))
                    .and_then(|()| node.registry.note_owners(token, slots));
                if let Err(error) = noted {
                    tracing::warn!(%error, token = %token.id, "what is noted of it is not shown");
                }
            }
            Ok(found)
        })
        .await
        .unwrap_or_else(|_| Err(interrupted()))
    }

    /// Looks on the token that `backend` names, which derives its keys, for keys that some home
    /// made there: in the first accounts of all places where homes begin. `tell` hears of each
    /// account that was looked at; `call` ends the search at any of them.
    ///
    /// # Errors
    /// [`EngineError::DerivesNothing`], and what the token says.
    pub async fn find_accounts(
        &self,
        backend: &str,
        sought: Vec<SoughtKey>,
        call: &Call,
        tell: impl Fn(Search<'_>) + Send + 'static,
    ) -> Result<Vec<FoundKey>, EngineError> {
        let (node, backend, call) = (Arc::clone(&self.0), backend.to_owned(), call.clone());
        tokio::task::spawn_blocking(move || accounts::find(&node, &backend, &sought, &call, &tell))
            .await
            .unwrap_or_else(|_| Err(interrupted()))
    }

    /// Settles what was left open when a process died or a token went away. It opens
    /// the tokens concerned, and no others. Where there are several, a PIN that was given for
    /// whichever token asks goes to none.
    ///
    /// What could not be settled is handed back with the reason, and stays open.
    ///
    /// # Errors
    /// [`EngineError::Registry`].
    pub async fn settle(&self, call: &Call) -> Result<Vec<(Intent, EngineError)>, EngineError> {
        self.settle_all(None, call).await
    }

    /// As [`Node::settle`], and PINs go to `tokens` only: one that nobody means to use must
    /// not lose a try to another one's PIN.
    ///
    /// # Errors
    /// As [`Node::settle`].
    pub async fn settle_with_pins_for(
        &self,
        tokens: &[TokenId],
        call: &Call,
    ) -> Result<Vec<(Intent, EngineError)>, EngineError> {
        self.settle_all(Some(tokens.to_vec()), call).await
    }

    async fn settle_all(
        &self,
        with_pins: Option<Vec<TokenId>>,
        call: &Call,
    ) -> Result<Vec<(Intent, EngineError)>, EngineError> {
        let turn = Arc::clone(&self.0.management).lock_owned().await;
        let (node, call) = (Arc::clone(&self.0), call.clone());
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            settle_all(&node, with_pins.as_deref(), &call)
        })
        .await
        .unwrap_or_else(|_| Err(interrupted()))
    }

    /// The Commitment or Decryption engine called `name`, if there is one that does this, and
    /// if the policy lets `sender` have it done.
    pub(crate) async fn usable(
        &self,
        sender: &EngineId,
        name: &EngineId,
        operation: Operation<'_>,
        call: &Call,
    ) -> Result<Option<Arc<KeyEngine>>, EngineError> {
        if name.node.is_some() {
            return Ok(None);
        }
        let usage = match operation {
            Operation::Sign(_) => KeyUse::Sign,
            Operation::Decrypt => KeyUse::Decrypt,
        };
        let found = self.find_engine(sender, &name.name, call).await?;
        let Some(engine) = found.filter(|engine| engine.usage() == usage) else {
            return Ok(None);
        };
        let identity = &engine.key.info.owner;
        let access = policy::Access::Use {
            identity,
            operation,
        };
        self.0.policy.check(sender, access)?;
        Ok(Some(engine))
    }

    /// Lets a Commitment or Decryption engine work, on this task.
    pub(crate) async fn work(
        &self,
        sender: &EngineId,
        name: &EngineId,
        engine: Arc<KeyEngine>,
        work: Work,
        call: &Call,
    ) -> Result<Done, EngineError> {
        let name = &name.name;
        let result = work.clone().run(&engine, &self.0.tokens, call).await;
        self.0.note_move(&engine);
        let Err(EngineError::Token(error)) = &result else {
            return result;
        };
        let is_missing = matches!(error, Error::KeyNotFound { .. });
        if !is_missing && !matches!(error, Error::KeyMismatch { .. }) {
            return result;
        }
        // Another process may have deleted the identity, or made it anew since.
        write(&self.0.engines).remove(name);
        match self.find_engine(sender, name, call).await? {
            Some(now) if now.key.id != engine.key.id => work.run(&now, &self.0.tokens, call).await,
            Some(_) => {
                if is_missing {
                    self.miss(&engine.key);
                }
                result
            }
            None => Err(EngineError::IdentityDeleted {
                identity: engine.key.info.owner.clone(),
            }),
        }
    }

    /// Says in the log that the key has gone: once, since each request is told, too.
    fn miss(&self, key: &KeyRecord) {
        let mut missed = self.0.missed.lock().unwrap_or_else(PoisonError::into_inner);
        if missed.insert(key.id) {
            let info = &key.info;
            tracing::warn!(
                identity = %info.owner, token = %info.token, slot = %info.slot,
                "the identity's key is not on its token any more; the identity is kept"
            );
        }
    }

    /// The engine called `name`, alive for `sender`.
    pub(crate) async fn find_engine(
        &self,
        sender: &EngineId,
        name: &EngineName,
        call: &Call,
    ) -> Result<Option<Arc<KeyEngine>>, EngineError> {
        let known = read(&self.0.engines).get(name).cloned();
        let known = known.filter(|engine| engine.check_alive(sender).is_ok());
        if let Some(engine) = &known
            && !engine.is_due()
        {
            return Ok(known);
        }
        // Not asked for yet, or made by another process, or not alive when last seen; or it
        // is time to see whether it still is.
        let (node, wanted) = (Arc::clone(&self.0), name.clone());
        let looked = tokio::task::spawn_blocking(move || node.registry.engine(&wanted));
        let looked = match call.deadline() {
            None => looked.await,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), looked)
                .await
                .map_err(|_| Error::DeadlineExceeded)?,
        };
        let record = match looked.unwrap_or_else(|e| {
            Err(RegistryError::Other {
                reason: e.to_string(),
            })
        }) {
            // A registry that cannot be read does not end what works.
            Err(error) if known.is_some() => {
                tracing::debug!(%error, "an engine is not looked up");
                return Ok(known);
            }
            record => record?,
        };
        let Some((key, stale)) = record else {
            write(&self.0.engines).remove(name);
            return Ok(None);
        };
        if let Some(engine) = known.filter(|engine| engine.is_still(&key, &stale)) {
            return Ok(Some(engine));
        }
        let engine = Arc::new(KeyEngine::new(key, stale));
        write(&self.0.engines).insert(name.clone(), Arc::clone(&engine));
        engine.check_alive(sender)?;
        Ok(Some(engine))
    }
}

/// What a key engine is asked to do.
#[derive(Clone)]
pub(crate) enum Work {
    Sign(Arc<ToSign>),
    Open(Arc<Vec<u8>>),
}

pub(crate) enum Done {
    Signed(Commitment),
    Opened(Secret),
}

impl Work {
    async fn run(
        self,
        engine: &Arc<KeyEngine>,
        tokens: &Arc<Tokens>,
        call: &Call,
    ) -> Result<Done, EngineError> {
        match self {
            Work::Sign(text) => engine.sign(tokens, text, call).await.map(Done::Signed),
            Work::Open(data) => engine.decrypt(tokens, data, call).await.map(Done::Opened),
        }
    }
}

impl Inner {
    fn participant(&self, id: &EngineId) -> Option<Arc<Mailboxes>> {
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

    /// Opens the token that `backend` names; also the slot that it names, if any. What is
    /// noted of the token under a name that earlier versions gave it is noted under its own
    /// from now on.
    pub(crate) fn open(
        &self,
        backend: &str,
        call: &Call,
    ) -> Result<(Arc<OpenToken>, Option<SlotId>), EngineError> {
        self.rename(self.tokens.open(backend, call)?, call)
    }

    /// The same for a token that is known: another one that `backend` fits gets no PIN.
    pub(crate) fn open_this(
        &self,
        token: &TokenId,
        backend: &str,
        call: &Call,
    ) -> Result<(Arc<OpenToken>, Option<SlotId>), EngineError> {
        self.rename(self.tokens.open_this(token, backend, call)?, call)
    }

    fn rename(
        &self,
        opened: (Arc<OpenToken>, Option<SlotId>),
        call: &Call,
    ) -> Result<(Arc<OpenToken>, Option<SlotId>), EngineError> {
        let info = opened.0.token.info();
        for former in &info.formerly {
            if self.registry.knows_token(former)? && self.tokens.is_only_one(info, former, call) {
                self.registry.rename_token(former, &info.id)?;
                write(&self.engines).clear();
            }
        }
        Ok(opened)
    }

    /// Corrects the registry where another tool gave the engine's key another place.
    pub(crate) fn note_move(&self, engine: &KeyEngine) {
        let Some(slot) = engine.moved_to() else {
            return;
        };
        let info = &engine.key.info;
        tracing::info!(identity = %info.owner, token = %info.token, from = %info.slot, to = %slot, "the key has another place");
        if let Err(error) = self.registry.key_moved(engine.key.id, &slot) {
            tracing::warn!(identity = %info.owner, %error, "its new place is not noted");
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

/// The reply of Identity Management that a message gets that it has no time for.
fn refuse(sender: &EngineId, msg: &Msg, error: EngineError) -> Option<Msg> {
    match msg {
        Msg::RequestGenerateIdentity(_) => Some(refuse_generate(sender, error)),
        Msg::RequestConnectIdentity(_) => Some(refuse_connect(error)),
        Msg::RequestDeleteIdentity(_) => Some(refuse_delete(error)),
        _ => None,
    }
}

fn interrupted() -> EngineError {
    EngineError::Token(Error::Cancelled)
}

/// Why a message was not taken.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The mailbox that the message, or its reply, would go to holds too many.
    #[error("the mailbox is full")]
    MailboxFull,
    /// Somebody else has the name.
    #[error("the name is taken")]
    NameTaken,
    /// The registry could not be read.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// One who takes part in a node: an id and its mailboxes. Dropping it leaves the node.
pub struct Participant {
    node: Arc<Inner>,
    id: EngineId,
    mailboxes: Arc<Mailboxes>,
}

impl Participant {
    /// The id that others send to, and under which its identity is entered.
    pub fn id(&self) -> &EngineId {
        &self.id
    }

    /// The next message in a mailbox; waits for one.
    pub async fn receive(&self, mailbox: u64) -> EngineMsg {
        loop {
            let arrived = self.mailboxes.arrived.notified();
            if let Some(message) = self.try_receive(mailbox) {
                return message;
            }
            arrived.await;
        }
    }

    /// The next message in a mailbox, if there is one.
    pub fn try_receive(&self, mailbox: u64) -> Option<EngineMsg> {
        let mut held = lock(&self.mailboxes.held);
        let message = held.boxes.get_mut(&mailbox)?.pop_front()?;
        held.count -= 1;
        Some(message)
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        write(&self.node.participants).remove(&self.id.name);
    }
}

#[derive(Default)]
struct Mailboxes {
    held: Mutex<Held>,
    arrived: Notify,
}

#[derive(Default)]
struct Held {
    boxes: HashMap<u64, VecDeque<EngineMsg>>,
    /// Messages in all boxes, and places reserved for more.
    count: usize,
}

impl Mailboxes {
    fn reserve(&self) -> Result<Place<'_>, SendError> {
        let mut held = lock(&self.held);
        if held.count >= MAILBOX_CAPACITY {
            return Err(SendError::MailboxFull);
        }
        held.count += 1;
        Ok(Place {
            mailboxes: self,
            taken: false,
        })
    }
}

/// A place for one message, kept free while its reply is being made.
struct Place<'a> {
    mailboxes: &'a Mailboxes,
    taken: bool,
}

impl Place<'_> {
    fn put(mut self, mailbox: u64, message: EngineMsg) {
        self.taken = true;
        lock(&self.mailboxes.held)
            .boxes
            .entry(mailbox)
            .or_default()
            .push_back(message);
        self.mailboxes.arrived.notify_waiters();
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.taken {
            lock(&self.mailboxes.held).count -= 1;
        }
    }
}

// What these guard is whole at every moment, so a panic elsewhere does not matter.

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
