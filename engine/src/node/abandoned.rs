//! Resolving what was abandoned on a token that a request has just used.

use std::sync::Arc;

use claviger_token::Call;

use super::Node;
use crate::key_engine::KeyEngine;
use crate::lane::PATIENCE;
use crate::resolving::resolve;
use crate::tokens::OpenToken;
use crate::{EngineError, EngineId};

impl Node {
    /// Resolves what was abandoned on the token of a key that a request of `asker` has used, with
    /// the login that the request used, and beside it. Only through a view: who serves nobody else
    /// says itself when it does that.
    pub(crate) fn resolve_beside(&self, asker: &EngineId, engine: &KeyEngine) {
        if !self.0.is_view() {
            return;
        }
        let Some(token) = engine.token_to_resolve() else {
            return;
        };
        let who = self.0.tokens.login_for(asker, &engine.key.info.owner);
        let (node, who) = (self.clone(), who.clone());
        tokio::spawn(async move {
            if let Err(error) = node.resolve_on(&token, &who).await {
                token.due.failed();
                tracing::warn!(token = %token.id(), %error, "what was abandoned there is left");
            }
        });
    }

    /// Resolves what is open on a token, where `who` may use its login.
    async fn resolve_on(&self, token: &Arc<OpenToken>, who: &EngineId) -> Result<(), EngineError> {
        let call = self.0.tokens.for_work(&Call::within(PATIENCE));
        let id = token.id().clone();
        let has_some = self.decided(&call, move |node| {
            let open = node.registry.open_intents()?;
            Ok(open.iter().any(|intent| intent.token == id))
        });
        if !has_some.await? {
            return Ok(());
        }
        let turn = self.0.turns.tokens.take(token.id(), &call).await?;
        let (token, who) = (Arc::clone(token), who.clone());
        self.carried(turn, move |node| {
            node.tokens.check_login(&token, &who)?;
            let mut resolved = resolve(node, &token, &call)?.into_iter();
            let failed = resolved.find_map(|one| one.result.err());
            failed.map_or(Ok(()), Err)
        })
        .await
    }
}
