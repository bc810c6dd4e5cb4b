//! Waiting for a token that is away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use claviger_token::sync::lock;
use claviger_token::{Error, Event, TokenId};

use crate::EngineError;
use crate::asking::Asking;
use crate::key_engine::Request;
use crate::opening::Wanted;
use crate::standings::Awaited;
use crate::token_state::is_absence;
use crate::tokens::{OpenToken, Tokens};

/// How long a request waits at least before it is made again.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);
/// How long is waited at most between two tries to open a token that is away.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// How long at first after its devices changed: a card is seen before it answers.
const RETRY_SOON: Duration = Duration::from_millis(10);

/// What a look for a token showed.
enum Looked {
    Back,
    Away {
        /// Whether something happened to the devices since.
        changed: bool,
    },
}

/// Whether it is `sought`, by its name or by one that earlier versions gave it.
fn is_it(found: &OpenToken, sought: &TokenId) -> bool {
    found.id() == sought || found.token.info().formerly.contains(sought)
}

impl Tokens {
    /// Waits until `token`, which is reached by `backend`, can be opened again.
    ///
    /// # Errors
    /// `absence`, when the deadline of `call` is over, or where it has none; what else
    /// keeps the token from being opened.
    pub(crate) async fn wait_for(
        self: &Arc<Self>,
        wanted: Wanted<'_>,
        Request { who, call, .. }: Request<'_>,
        absence: EngineError,
    ) -> Result<(), EngineError> {
        let (Some(token), backend) = (wanted.token, wanted.backend) else {
            return Err(absence);
        };
        let Some(deadline) = call.deadline() else {
            return Err(absence);
        };
        call.tell(&Event::TokenNeeded {
            token: token.clone(),
        });
        // Where the token is there and gone again at once, this is not to be a busy loop.
        tokio::time::sleep(SHORTEST_WAIT).await;
        let awaited = self.awaited(token);
        let returns = awaited.returns.load(Ordering::Acquire);
        let mut pause = RETRY_INTERVAL;
        loop {
            let turn = Arc::clone(&awaited.turn).lock_owned();
            let Ok(mut turn) = tokio::time::timeout_at(deadline.into(), turn).await else {
                return Err(absence);
            };
            if awaited.returns.load(Ordering::Acquire) != returns {
                return Ok(());
            }
            match call.check() {
                Ok(()) => {}
                Err(Error::DeadlineExceeded) => return Err(absence),
                Err(error) => return Err(error.into()),
            }
            let (tokens, awaited, sought) = (Arc::clone(self), Arc::clone(&awaited), token.clone());
            let asking = Asking::of(self, call);
            let (reached_by, its_call) = (backend.to_owned(), asking.call().clone());
            let (asker, counted) = (who.clone(), self.counted(who));
            let limit = pause.min(deadline.saturating_duration_since(Instant::now()));
            // The turn goes along: where a device does not answer, one thread waits for it,
            // however many requests give up meanwhile.
            let look = move |opening| {
                let wanted = Wanted {
                    backend: &reached_by,
                    token: Some(&sought),
                };
                let opened = tokens.open(Some(&asker), wanted, &its_call);
                drop(opening);
                match opened {
                    Ok((found, _)) if is_it(&found, &sought) => {
                        awaited.returns.fetch_add(1, Ordering::Release);
                        return Ok(Looked::Back);
                    }
                    // It is there; a person is asked when the turns are over.
                    Err(_) if asking.has_question() => return Ok(Looked::Back),
                    Err(error) if !is_absence(&error) => return Err(error),
                    _ => {}
                }
                if turn.is_none() {
                    *turn = Some(tokens.driver(&reached_by)?.watch());
                }
                let changed = turn.as_mut().is_some_and(|watch| watch.wait(limit));
                Ok(Looked::Away { changed })
            };
            let looked = self.openings.run(Some(&counted), wanted, call, look).await;
            pause = match looked {
                Err(Error::DeadlineExceeded) => return Err(absence),
                Err(error) => return Err(error.into()),
                Ok(looked) => match looked? {
                    Looked::Back => return Ok(()),
                    Looked::Away { changed: true } => RETRY_SOON,
                    Looked::Away { changed: false } => RETRY_INTERVAL.min(2 * pause),
                },
            };
        }
    }

    fn awaited(&self, token: &TokenId) -> Arc<Awaited> {
        let mut awaited = lock(&self.standings.awaited);
        // What nobody waits for any more is let go, and its watch with it.
        awaited.retain(|_, awaited| Arc::strong_count(awaited) > 1);
        let entry = awaited.entry(token.clone()).or_insert_with(|| {
            Arc::new(Awaited {
                turn: Arc::default(),
                returns: AtomicU64::default(),
            })
        });
        Arc::clone(entry)
    }
}
