//! Using keys: the requests to Commitment and Decryption engines.

use std::sync::Arc;

use claviger_token::sync::{lock, read, write};
use claviger_token::token::Secret;
use claviger_token::{Call, Decryptor, Error, KeyUse};
use tokio::task::spawn_blocking;

use super::Node;
use crate::key_engine::{KeyEngine, Request};
use crate::policy::{self, Operation};
use crate::purpose::ToSign;
use crate::registry::{KeyRecord, RegistryError};
use crate::tokens::Tokens;
use crate::types::owner_by_name;
use crate::wants::Wants;
use crate::{Commitment, EngineError, EngineId, EngineName};

impl Node {
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
        let found = self.usable(who, engine, Operation::Decrypt, call).await?;
        let found = found.ok_or_else(|| no_such(engine))?;
        let work = (Work::Open(Arc::new(data)), Operation::Decrypt);
        match self.work(who, engine, found, work, call).await? {
            Done::Opened(data) => Ok(data),
            Done::Signed(_) => Err(no_such(engine)),
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
        let found = found.ok_or_else(|| no_such(engine))?;
        let by = self.request(who, &found, Operation::Decrypt, call);
        found.decryptor(&self.0.tokens, by).await
    }

    /// A request of `asker` to an engine. Through a view it uses the login of whose key it is,
    /// whatever identity the caller says that it is about.
    pub(crate) fn request<'a>(
        &'a self,
        asker: &'a EngineId,
        engine: &'a KeyEngine,
        operation: Operation<'a>,
        call: &'a Call,
    ) -> Request<'a> {
        Request {
            who: (self.0.tokens).login_for(asker, &engine.key.info.owner),
            call,
            wants: Wants {
                policy: &self.0.policy,
                asker,
                operation,
            },
        }
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
        self.usable_as((sender, sender), name, operation, call)
            .await
    }

    /// The same for `asker`, who has it done for the identity `who`: the policy is asked for the
    /// one, and the key must be the living one of the other.
    pub(crate) async fn usable_as(
        &self,
        (asker, who): (&EngineId, &EngineId),
        name: &EngineId,
        operation: Operation<'_>,
        call: &Call,
    ) -> Result<Option<Arc<KeyEngine>>, EngineError> {
        if name.node.is_some() {
            return Ok(None);
        }
        let usage = usage_of(operation);
        let found = match self.find_engine(who, &name.name, call).await {
            // Who is denied does not learn that there is something that cannot be read.
            Err(error) if self.0.is_secret_from(asker) => {
                if owner_by_name(usage, &name.name).is_none() {
                    return Ok(None);
                }
                self.may_use_absent(asker, name, operation)?;
                return Err(error);
            }
            // On this machine, too, it is to them as if nothing were there.
            Err(error) => match self.may_use_absent(asker, name, operation) {
                Ok(()) => return Err(error),
                Err(_) => return Ok(None),
            },
            found => found?,
        };
        let Some(engine) = found.filter(|engine| engine.usage() == usage) else {
            return match self.0.is_secret_from(asker) {
                false => Ok(None),
                true => self.may_use_absent(asker, name, operation).map(|()| None),
            };
        };
        // Who is denied does not learn that it was deleted.
        self.may_use(asker, &engine, operation)?;
        engine.check_alive(who)?;
        Ok(Some(engine))
    }

    /// Asks the policy whether `who` may have the key used.
    ///
    /// # Errors
    /// [`EngineError::NotAllowed`].
    pub(crate) fn may_use(
        &self,
        who: &EngineId,
        engine: &KeyEngine,
        operation: Operation<'_>,
    ) -> Result<(), EngineError> {
        let access = policy::Permission::Use {
            identity: &engine.key.info.owner,
            operation,
        };
        self.0.policy.check(who, access)
    }

    /// Asks the policy about an engine that is not there as if it were: who comes from outside and
    /// is denied the one must not be told more of the other.
    ///
    /// # Errors
    /// [`EngineError::NotAllowed`].
    pub(crate) fn may_use_absent(
        &self,
        asker: &EngineId,
        engine: &EngineId,
        operation: Operation<'_>,
    ) -> Result<(), EngineError> {
        let owner = owner_by_name(usage_of(operation), &engine.name);
        let Some(identity) = owner.filter(|_| engine.node.is_none()) else {
            return Ok(());
        };
        let access = policy::Permission::Use {
            identity: &identity,
            operation,
        };
        self.0.policy.check(asker, access)
    }

    /// Lets a Commitment or Decryption engine work, on this task.
    pub(crate) async fn work(
        &self,
        sender: &EngineId,
        name: &EngineId,
        engine: Arc<KeyEngine>,
        (work, operation): (Work, Operation<'_>),
        call: &Call,
    ) -> Result<Done, EngineError> {
        let name = &name.name;
        let by = self.request(sender, &engine, operation, call);
        let result = work.clone().run(&engine, &self.0.tokens, by).await;
        self.0.note_move(&engine);
        let Err(EngineError::Token(error)) = &result else {
            self.resolve_beside(sender, &engine);
            return result;
        };
        let is_missing = matches!(error, Error::KeyNotFound { .. });
        if !is_missing && !matches!(error, Error::KeyMismatch { .. }) {
            return result;
        }
        // Another process may have deleted the identity, or made it anew since.
        write(&self.0.engines).remove(name);
        let now = self.find_engine(sender, name, call).await?;
        if let Some(now) = &now {
            // It may be somebody else's by now.
            self.may_use(sender, now, operation)?;
            now.check_alive(sender)?;
        }
        match now {
            Some(now) if now.key.id != engine.key.id => {
                let by = self.request(sender, &now, operation, call);
                work.run(&now, &self.0.tokens, by).await
            }
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
        let mut missed = lock(&self.0.missed);
        if missed.insert(key.id) {
            let info = &key.info;
            tracing::warn!(
                identity = %info.owner, token = %info.token, slot = %info.slot,
                "the identity's key is not on its token any more; the identity is kept"
            );
        }
    }

    /// The engine called `name`. Where the one that is known is not
    /// [alive](KeyEngine::check_alive) for `sender`, what the registry says now; that may not be
    /// alive either.
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
        let look = move || node.registry.engine(&wanted);
        let looked = match call.deadline() {
            None if call.is_in_place() => Ok(look()),
            None => spawn_blocking(look).await,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), spawn_blocking(look))
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
        by: Request<'_>,
    ) -> Result<Done, EngineError> {
        match self {
            Work::Sign(text) => engine.sign(tokens, text, by).await.map(Done::Signed),
            Work::Open(data) => engine.decrypt(tokens, data, by).await.map(Done::Opened),
        }
    }
}

fn usage_of(operation: Operation<'_>) -> KeyUse {
    match operation {
        Operation::Sign(_) => KeyUse::Sign,
        Operation::Decrypt => KeyUse::Decrypt,
    }
}

/// That there is no engine of this name that does this.
pub(crate) fn no_such(engine: &EngineId) -> EngineError {
    EngineError::NoSuchEngine {
        engine: engine.clone(),
    }
}
