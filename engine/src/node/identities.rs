//! Identity Management: making, connecting and deleting identities, and resolving what was left.
//!
//! A request is decided on first; then its token is opened, apart from everything else; then it
//! takes its turns at its identity and its token, and only then anything is done. Each step ends
//! at the request's deadline, up to what the token has begun. While a request waits for its turns
//! others go on, so what it was let in for is looked at again at its turn.
//! [`lifecycle`](crate::lifecycle) says why the order is that of the specification.

use std::collections::HashSet;
use std::sync::Arc;

use claviger_token::{Call, Deletion, Error, TokenId};

use super::{Node, interrupted};
use crate::adoption::{adopt, check_owners};
use crate::identity_management::{self, Connect, Delete};
use crate::inner::Inner;
use crate::lifecycle;
use crate::message::{RequestConnectIdentity, RequestDeleteIdentity, RequestGenerateIdentity};
use crate::opening::Wanted;
use crate::registry::Intent;
use crate::resolving::resolve_one;
use crate::turns::{Turn, in_time};
use crate::{EngineError, EngineId, Engines, IdentityInfo};

impl Node {
    /// Makes an identity for `who`.
    ///
    /// # Errors
    /// [`EngineError::NotAllowed`], [`EngineError::IdentityExists`], and what the token says.
    /// Then nothing is left on the token, or an intent says what is.
    pub async fn generate(
        &self,
        who: &EngineId,
        request: RequestGenerateIdentity,
        call: &Call,
    ) -> Result<Engines, EngineError> {
        let asker = who.clone();
        let wanted = self.decided(call, move |node| {
            identity_management::generate(&asker, request, &*node.policy, |id| node.entry(id))
        });
        let wanted = wanted.await?;
        let backend = wanted.backend.to_string();
        self.0.tokens.check_backend(who, &backend)?;
        let opened = self.0.open(Some(who), Wanted::any(&backend), call).await?;
        let turns = self.turns(who, opened.0.id(), call).await?;
        let (who, call) = (who.clone(), self.0.tokens.for_work(call));
        let token = Arc::clone(&opened.0);
        let made = self.carried(turns, move |node| {
            node.tokens.check_login(&opened.0, &who)?;
            lifecycle::generate(node, &who, opened, &wanted, &call)
        });
        made.await.inspect_err(|_| token.due.set())
    }

    /// Connects `who` to an identity, or to a key on a token.
    ///
    /// # Errors
    /// [`EngineError::NotAllowed`], [`EngineError::IdentityExists`],
    /// [`EngineError::ExternalIdentityNotFound`], [`EngineError::CapabilitiesNotAvailable`], and
    /// what the token says.
    pub async fn connect(
        &self,
        who: &EngineId,
        request: RequestConnectIdentity,
        call: &Call,
    ) -> Result<Engines, EngineError> {
        let asker = who.clone();
        let wanted = self.decided(call, move |node| {
            let entry = |id: &EngineId| node.entry(id);
            let wanted = identity_management::connect(&asker, request, &*node.policy, entry)?;
            if let Connect::Adopt { keys, .. } = &wanted {
                check_owners(node, keys)?;
            }
            Ok(wanted)
        });
        let (backend, keys) = match wanted.await? {
            Connect::Copy { original, info } => {
                let turn = self.0.turns.identities.take(who, call).await?;
                let who = who.clone();
                return self
                    .carried(turn, move |node| {
                        lifecycle::connect(node, &who, &original, info)
                    })
                    .await;
            }
            Connect::Adopt { backend, keys } => (backend, keys),
        };
        let reached_by = backend.to_string();
        self.0.tokens.check_backend(who, &reached_by)?;
        let opened = (self.0).open(Some(who), Wanted::any(&reached_by), call);
        let opened = opened.await?;
        let turns = self.turns(who, opened.0.id(), call).await?;
        let (who, call) = (who.clone(), self.0.tokens.for_work(call));
        self.carried(turns, move |node| {
            node.tokens.check_login(&opened.0, &who)?;
            adopt(node, &who, opened, (&backend, &keys), &call)
        })
        .await
    }

    /// Deletes an identity for `who`. What became of each key that was made for it: what the
    /// device confirmed.
    ///
    /// # Errors
    /// [`EngineError::NotAllowed`], [`EngineError::IdentityDoesNotExist`],
    /// [`EngineError::DeletionUnfinished`], and what the token says.
    pub async fn delete(
        &self,
        who: &EngineId,
        request: RequestDeleteIdentity,
        call: &Call,
    ) -> Result<Vec<Deletion>, EngineError> {
        let asker = who.clone();
        let wanted = self.decided(call, move |node| {
            let entry = |id: &EngineId| node.entry(id);
            let wanted = identity_management::delete(&asker, request, &*node.policy, entry)?;
            let backend = match &wanted {
                Delete::Destroy { identity, .. } => node.registry.reached_by(identity)?,
                Delete::Release { .. } => None,
            };
            Ok((wanted, backend))
        });
        let (identity, info, backend) = match wanted.await? {
            (Delete::Release { identity, info }, _) => {
                let turn = self.0.turns.identities.take(&identity, call).await?;
                return self
                    .carried(turn, move |node| lifecycle::release(node, &identity, &info))
                    .await;
            }
            (Delete::Destroy { .. }, None) => return Err(EngineError::IdentityDoesNotExist),
            (Delete::Destroy { identity, info }, Some(backend)) => (identity, info, backend),
        };
        let wanted = Wanted {
            backend: &backend,
            token: info.keys.first().map(|key| &key.token),
        };
        let who = self.0.tokens.login_for(who, &identity);
        let (token, _) = self.0.open(Some(who), wanted, call).await?;
        let turns = self.turns(&identity, token.id(), call).await?;
        let (who, call) = (who.clone(), self.0.tokens.for_work(call));
        let its_token = Arc::clone(&token);
        let deleted = self.carried(turns, move |node| {
            node.tokens.check_login(&its_token, &who)?;
            lifecycle::destroy(node, &identity, &info, (its_token, &backend), &call)
        });
        deleted.await.inspect_err(|_| token.due.set())
    }

    /// Resolves what was left open when a process died or a token went away. It opens
    /// the tokens concerned, and no others. Where there are several, a PIN that was given for
    /// whichever token asks goes to none.
    ///
    /// What could not be resolved is handed back with the reason, and stays open.
    ///
    /// # Errors
    /// [`EngineError::Registry`].
    pub async fn resolve_intents(
        &self,
        call: &Call,
    ) -> Result<Vec<(Intent, EngineError)>, EngineError> {
        self.resolve_all(None, call).await
    }

    /// As [`Node::resolve_intents`], and PINs go to `tokens` only: one that nobody means to use must
    /// not lose a try to another one's PIN.
    ///
    /// # Errors
    /// As [`Node::resolve_intents`].
    pub async fn resolve_intents_with_pins_for(
        &self,
        tokens: &[TokenId],
        call: &Call,
    ) -> Result<Vec<(Intent, EngineError)>, EngineError> {
        self.resolve_all(Some(tokens), call).await
    }

    async fn resolve_all(
        &self,
        with_pins: Option<&[TokenId]>,
        call: &Call,
    ) -> Result<Vec<(Intent, EngineError)>, EngineError> {
        let open = self.decided(call, |node| Ok(node.registry.open_intents()?));
        let open = open.await?;
        let may_have = |token: &TokenId| with_pins.is_none_or(|tokens| tokens.contains(token));
        let asked: HashSet<&TokenId> = (open.iter().map(|intent| &intent.token))
            .filter(|token| may_have(token))
            .collect();
        let is_for_one = asked.len() > 1 && self.0.tokens.has_one_pin_for_all(call);
        let mut left = Vec::new();
        for intent in &open {
            let call = match may_have(&intent.token) && !is_for_one {
                true => call.clone(),
                false => self.0.tokens.without_pin(call),
            };
            match self.resolve_intent(intent, &call).await {
                Ok(()) => {}
                Err(EngineError::Token(Error::PinNeeded { .. })) if is_for_one => {
                    let holders = Vec::new();
                    left.push((intent.clone(), EngineError::PinForSeveralTokens { holders }));
                }
                Err(error) => left.push((intent.clone(), error)),
            }
        }
        Ok(left)
    }

    /// Resolves one intent, for the node itself.
    async fn resolve_intent(&self, intent: &Intent, call: &Call) -> Result<(), EngineError> {
        let wanted = Wanted {
            backend: &intent.backend,
            token: Some(&intent.token),
        };
        let (token, _) = self.0.open(None, wanted, call).await?;
        if *token.id() != intent.token {
            return Err(EngineError::Token(Error::TokenUnavailable {
                token: intent.token.clone(),
                reason: format!("{} is there instead", token.id()),
            }));
        }
        let turn = self.0.turns.tokens.take(token.id(), call).await?;
        let (intent, call) = (intent.clone(), self.0.tokens.for_work(call));
        let resolved = self.carried(turn, move |node| {
            // A login that a sender's PIN made is not the node's.
            node.tokens.check_login(&token, &EngineId::program())?;
            resolve_one(node, &token, &intent, &call)
        });
        resolved.await.map(drop)
    }

    /// The turns at an identity and at a token.
    async fn turns(
        &self,
        who: &EngineId,
        token: &TokenId,
        call: &Call,
    ) -> Result<(Turn, Turn), Error> {
        let identity = self.0.turns.identities.take(who, call).await?;
        Ok((identity, self.0.turns.tokens.take(token, call).await?))
    }

    /// What is decided by what the registry says.
    pub(super) async fn decided<T: Send + 'static>(
        &self,
        call: &Call,
        decide: impl FnOnce(&Inner) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        call.check()?;
        let node = Arc::clone(&self.0);
        let decided = tokio::task::spawn_blocking(move || decide(&node));
        in_time(call, decided)
            .await?
            .unwrap_or_else(|_| Err(interrupted()))
    }

    /// Does what we have our turns for. Once begun it is carried through, even if the caller goes
    /// away; it is then undone or finished as the case may be, and the turns end with it.
    pub(super) async fn carried<T: Send + 'static>(
        &self,
        turns: impl Send + 'static,
        work: impl FnOnce(&Inner) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let node = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || {
            let _turns = turns;
            work(&node)
        })
        .await
        .unwrap_or_else(|_| Err(interrupted()))
    }
}

impl Inner {
    fn entry(&self, id: &EngineId) -> Result<Option<IdentityInfo>, EngineError> {
        Ok(self.registry.identity(id)?)
    }
}
