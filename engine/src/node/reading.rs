//! What a node shows: tokens, how they stand, and keys on them that were lost.

use std::sync::Arc;

use claviger_token::sync::read;
use claviger_token::{Call, SlotInfo, TokenId, TokenInfo};

use super::{Node, interrupted};
use crate::accounts::{self, FoundKey, Search, SoughtKey};
use crate::opening::Wanted;
use crate::policy;
use crate::tokens::FoundTokens;
use crate::{EngineError, EngineId, TokenChanges, TokenState};

impl Node {
    /// The changes of the tokens' states, as they happen: those of every token that is or
    /// comes to be attached, from being absent on; where `backend` is given, those of its
    /// kind, it included. As long as the result lives the devices are watched, by events
    /// where their system has them.
    ///
    /// A bad `backend` is refused at once: it is looked at first, for as long as `call` lasts,
    /// whatever its devices do.
    ///
    /// # Errors
    /// [`EngineError::NoDriver`], or what the driver says of `backend`; what
    /// [`Call::check`] says.
    pub async fn token_changes(
        &self,
        backend: Option<&str>,
        call: &Call,
    ) -> Result<TokenChanges, EngineError> {
        let tokens = &self.0.tokens;
        if let Some(backend) = backend {
            let driver = Arc::clone(tokens.pool.driver(backend)?);
            let (asked, its_call) = (backend.to_owned(), call.clone());
            let look = move |_opening| driver.tokens(&asked, &its_call).map(drop);
            let token = None;
            let wanted = Wanted { backend, token };
            tokens.looks.run(None, wanted, call, look).await??;
        }
        TokenChanges::subscribe(&tokens.pool, backend)
    }

    /// The changes of the tokens that this node has seen so far, as [`Node::token_changes`] has
    /// them; no others are looked for.
    pub fn known_token_changes(&self) -> TokenChanges {
        TokenChanges::of_known(&self.0.tokens.pool)
    }

    /// The token of the key that an engine uses which was asked for before.
    pub fn token_of(&self, engine: &EngineId) -> Option<TokenId> {
        let engines = read(&self.0.engines);
        let engine = engines.get(&engine.name).filter(|_| engine.node.is_none());
        engine.map(|engine| engine.key.info.token.clone())
    }

    /// How the tokens stand that this node has seen so far.
    pub fn token_states(&self) -> Vec<(TokenId, TokenState)> {
        self.0.tokens.standings.all()
    }

    /// How many operations wait for each token that is open. A quick token has no queue: what it is
    /// asked for is done at once, by whoever asks.
    pub fn token_queues(&self) -> Vec<(TokenId, usize)> {
        self.0.tokens.queues()
    }

    /// The attached tokens with what can be seen of their slots without a PIN: those
    /// that fit `backend`, or all.
    ///
    /// # Errors
    /// [`EngineError::NotAllowed`], [`EngineError::BackendNamesMore`], [`EngineError::NoDriver`], or
    /// what a driver says.
    pub async fn tokens(
        &self,
        who: &EngineId,
        backend: Option<&str>,
        call: &Call,
    ) -> Result<Vec<(TokenInfo, Vec<SlotInfo>)>, EngineError> {
        Ok(self.look(who, backend, call).await?.tokens)
    }

    /// The same, with the places where there is something that cannot be read.
    ///
    /// A token's statement is corrected by what was tried on it here before, and its slots say
    /// which of them identities of this registry use (the note `identity`).
    ///
    /// # Errors
    /// As [`Node::tokens`].
    pub async fn look(
        &self,
        who: &EngineId,
        backend: Option<&str>,
        call: &Call,
    ) -> Result<FoundTokens, EngineError> {
        self.0.policy.check(who, policy::Permission::ListTokens)?;
        if let Some(backend) = backend {
            self.0.tokens.check_backend(who, backend)?;
        }
        self.look_for(who, backend, None, call).await
    }

    /// [`Node::look`] on behalf of a request that was allowed as a whole; it may be about one
    /// token.
    pub(crate) async fn look_for(
        &self,
        who: &EngineId,
        backend: Option<&str>,
        token: Option<&TokenId>,
        call: &Call,
    ) -> Result<FoundTokens, EngineError> {
        let (node, asked) = (Arc::clone(&self.0), backend.map(str::to_owned));
        let its_call = call.clone();
        let look = move |_opening| {
            let mut found = node.tokens.list(asked.as_deref(), &its_call)?;
            // What cannot be judged is not shown.
            let is_shown = |owner: &EngineId| node.policy.may_see(owner).unwrap_or(false);
            for (token, slots) in &mut found.tokens {
                let noted = node.registry.take_account(token);
                // Tokens can be seen also where the registry cannot.
                let noted = noted
                    .and_then(|()| node.registry.take_account_of_slots(token, slots))
                    .and_then(|()| node.registry.note_owners(token, slots, is_shown));
                if let Err(error) = noted {
                    tracing::warn!(%error, token = %token.id, "what is noted of it is not shown");
                }
            }
            Ok(found)
        };
        // Nothing is called so, and all tokens are looked for by it.
        let backend = backend.unwrap_or_default();
        let wanted = Wanted { backend, token };
        self.0
            .tokens
            .looks
            .run(Some(&self.0.tokens.counted(who)), wanted, call, look)
            .await?
    }

    /// Looks on the token that `backend` names, which derives its keys, for keys that some home
    /// made there: in the first accounts of all places where homes begin. `tell` hears of each
    /// account that was looked at; `call` ends the search at any of them.
    ///
    /// # Errors
    /// [`EngineError::NotAllowed`], [`EngineError::DerivesNothing`], and what the token says.
    pub async fn find_accounts(
        &self,
        who: &EngineId,
        backend: &str,
        sought: Vec<SoughtKey>,
        call: &Call,
        tell: impl Fn(Search<'_>) + Send + 'static,
    ) -> Result<Vec<FoundKey>, EngineError> {
        self.0.policy.check(who, policy::Permission::ListTokens)?;
        self.0.tokens.check_backend(who, backend)?;
        let opened = self.0.open(Some(who), Wanted::any(backend), call);
        let ((token, _), call) = (opened.await?, call.clone());
        tokio::task::spawn_blocking(move || accounts::find(&token, &sought, &call, &tell))
            .await
            .unwrap_or_else(|_| Err(interrupted()))
    }
}
