//! Logging in for others, and logging out: for a process that lives longer than its requests.

use std::sync::{Arc, Weak};
use std::time::Duration;

use claviger_token::sync::read;
use claviger_token::{Call, Error, Token, TokenId, TokenInfo};

use super::Node;
use crate::asking::Asking;
use crate::opening::Wanted;
use crate::tokens::OpenToken;
use crate::{EngineError, EngineId};

/// So often it is looked whether what was in flight has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

impl Node {
    /// Opens the token that `backend` names, and makes sure that `call` brings its PIN. Where the
    /// token is open, the PIN is compared with the one that it accepted, and not sent; where its
    /// backend says where the PIN is, or it wants none, none is compared.
    ///
    /// The login is that of `who`, as for every request. The policy is not asked: a backend can name
    /// a file that is run as code, so who calls this sees to it that `who` may choose one.
    ///
    /// # Errors
    /// [`EngineError::PinDiffers`], [`EngineError::Locked`], [`EngineError::NotAllowed`], and what
    /// the token or the source of the PIN says.
    pub async fn log_in(
        &self,
        who: &EngineId,
        backend: &str,
        call: &Call,
    ) -> Result<TokenInfo, EngineError> {
        let mut asking = Asking::of(&self.0.tokens, call);
        loop {
            let done = self.try_to_log_in(who, backend, asking.call()).await;
            if !asking.goes_on(&self.0.tokens, who, &done).await? {
                return done;
            }
        }
    }

    async fn try_to_log_in(
        &self,
        who: &EngineId,
        backend: &str,
        call: &Call,
    ) -> Result<TokenInfo, EngineError> {
        let (node, asker) = (Arc::clone(&self.0), who.clone());
        let (its_call, its_backend) = (call.clone(), backend.to_owned());
        let log_in = move |_opening| {
            its_call.check()?;
            let wanted = Wanted::any(&its_backend);
            let opened = node.tokens.open(Some(&asker), wanted, &its_call)?;
            let (token, _) = node.rename(opened, &its_call)?;
            node.tokens.check_pin(&token, &asker, &its_call)?;
            Ok(token.token.info().clone())
        };
        let (openings, wanted) = (&self.0.tokens.openings, Wanted::any(backend));
        let counted = self.0.tokens.counted(who);
        openings.run(Some(&counted), wanted, call, log_in).await?
    }

    /// The PINs that requests through this [view](Node::seen_by) gave for `token` do not count any
    /// more: they use its login if the policy allows that, or by giving the PIN again.
    pub fn let_go(&self, token: &TokenId) {
        self.0.tokens.let_go(token);
    }

    /// Locks one token, or all: closes each that may be logged in, as [`Node::close_token`] does, and
    /// what is being opened now, too, since its PIN was given before. The result is in the order of
    /// the tokens.
    pub fn lock_tokens(&self, token: Option<&TokenId>) -> Vec<ClosingToken> {
        let mut tokens = self.0.tokens.note_lock(token);
        tokens.sort();
        tokens
            .iter()
            .filter_map(|token| self.close_token(token))
            .collect()
    }

    /// Closes a token, which ends its login. What was begun on it comes to its end first; what
    /// begins from now on waits for that, and then opens the token anew, which takes its PIN.
    ///
    /// The token is closed when the [result](ClosingToken::done) says so. `None` if it is not open.
    pub fn close_token(&self, token: &TokenId) -> Option<ClosingToken> {
        let open = self.0.tokens.begin_closing(token);
        let closing = ClosingToken {
            token: open.as_ref().map(|open| Arc::downgrade(&open.token)),
            open,
            id: token.clone(),
            node: self.clone(),
        };
        // Also where it is not open any more: handles of a former opening are nobody's.
        closing.unbind();
        closing.open.is_some().then_some(closing)
    }
}

/// A token that is being closed.
#[must_use = "what was bound to the token meanwhile keeps it open"]
pub struct ClosingToken {
    node: Node,
    id: TokenId,
    /// Held, so that nobody closes it who must not wait for a device.
    open: Option<Arc<OpenToken>>,
    token: Option<Weak<dyn Token>>,
}

impl ClosingToken {
    /// The token.
    pub fn token(&self) -> &TokenId {
        &self.id
    }

    /// Waits until the token is closed. Its login has ended then.
    ///
    /// # Errors
    /// [`Error::DeadlineExceeded`], [`Error::Cancelled`]: then it is closed with what is still in
    /// flight.
    pub async fn done(mut self, call: &Call) -> Result<(), Error> {
        while (self.open.as_ref()).is_some_and(|open| Arc::strong_count(open) > 1) {
            self.pause(call).await?;
        }
        let open = self.open.take();
        if let Some(open) = &open {
            open.note_closed();
        }
        // It may call the device.
        let closed = tokio::task::spawn_blocking(move || drop(open));
        closed.await.map_err(|_| Error::Cancelled)?;
        while (self.token.as_ref()).is_some_and(|token| token.strong_count() > 0) {
            self.pause(call).await?;
        }
        Ok(())
    }

    async fn pause(&self, call: &Call) -> Result<(), Error> {
        call.check()?;
        tokio::time::sleep(call.at_most(LOOK_AGAIN)).await;
        // Who was opening it may have bound it since.
        self.unbind();
        Ok(())
    }

    fn unbind(&self) {
        for engine in read(&self.node.0.engines).values() {
            engine.unbind(&self.id);
        }
    }
}
