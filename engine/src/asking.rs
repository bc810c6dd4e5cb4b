//! Asking a person for a PIN before a token is opened, and not while it is.
//!
//! Who opens a token has a turn at it. A person may never answer, and would keep the token from
//! everybody else meanwhile. So a source that [says](PinSource::pin_at_once) that it has to ask is
//! not asked in the turn: the opening ends, the person is asked, and the token is opened again with
//! the PIN. Who asks for a token's PIN on behalf of one caller keeps only that caller waiting.

use std::sync::{Arc, Mutex};

use claviger_token::sync::lock;
use claviger_token::{Call, Error, Pin, PinSource, PinVerdict, TokenId, TriesLeft};

use crate::opening::{Opening, Wanted};
use crate::tokens::{Pool, Tokens};
use crate::turns::apart;
use crate::{EngineError, EngineId};

/// A request that opens a token, and the question for its PIN.
pub(crate) struct Asking {
    call: Call,
    ahead: Option<Arc<Ahead>>,
    /// The token that is asked about. Held until it is open: others of the same caller need not be
    /// asked then.
    turn: Option<(TokenId, Arc<Opening>)>,
}

impl Asking {
    /// Nothing is asked ahead where the request brings no PINs of its own.
    pub(crate) fn of(tokens: &Tokens, call: &Call) -> Self {
        let Some(own) = call.own_access() else {
            return Asking {
                call: call.clone(),
                ahead: None,
                turn: None,
            };
        };
        let ahead = Arc::new(Ahead {
            pins: Arc::clone(&own.pins),
            pool: Arc::clone(&tokens.pool),
            known: Mutex::default(),
            question: Mutex::default(),
        });
        let access = (**own).clone();
        let pins = Arc::clone(&ahead) as Arc<dyn PinSource>;
        Asking {
            call: call.clone().using(access.with_pins(pins)),
            ahead: Some(ahead),
            turn: None,
        }
    }

    /// The request, for which no person is asked.
    pub(crate) fn call(&self) -> &Call {
        &self.call
    }

    /// Whether a token wanted a PIN for which a person has to be asked.
    pub(crate) fn has_question(&self) -> bool {
        let question = |ahead: &Arc<Ahead>| lock(&ahead.question).is_some();
        self.ahead.as_ref().is_some_and(question)
    }

    /// Whether to open the token once more for `who`, since that failed only for want of a PIN that
    /// a person has given now.
    ///
    /// # Errors
    /// What the source of the PIN says.
    pub(crate) async fn goes_on<T>(
        &mut self,
        tokens: &Tokens,
        who: &EngineId,
        done: &Result<T, EngineError>,
    ) -> Result<bool, EngineError> {
        let question = self.ahead.as_ref().and_then(|ahead| ahead.take_question());
        let (Some(ahead), Some(question), Err(_)) = (&self.ahead, question, done) else {
            return Ok(false);
        };
        let held = self.turn.take();
        let held = held.filter(|(token, _)| *token == question.token);
        let turn = match held {
            Some((_, turn)) => turn,
            None => {
                let place = tokens.place_of_question(who, &question.token);
                let counted = tokens.counted(who);
                let questions = &tokens.questions;
                let turn = questions.begin(Some(&counted), Wanted::any(&place), &self.call);
                let turn = Arc::new(turn.await?);
                // Who had the turn before may have opened it.
                if tokens.is_open(&question.token) {
                    self.turn = Some((question.token, turn));
                    return Ok(true);
                }
                turn
            }
        };
        self.turn = Some((question.token.clone(), Arc::clone(&turn)));
        let (ahead, call) = (Arc::clone(ahead), self.call.clone());
        let ask = move || {
            // Also where nobody waits for the answer any more.
            let _turn = turn;
            ahead.ask(question, &call)
        };
        apart(&self.call, ask).await??;
        Ok(true)
    }
}

/// The PINs of a request whose source is asked only outside of the turn at the token.
struct Ahead {
    pins: Arc<dyn PinSource>,
    pool: Arc<Pool>,
    known: Mutex<Option<Known>>,
    question: Mutex<Option<Question>>,
}

/// What a person answered, who was asked after the lock of this number.
struct Known {
    token: TokenId,
    pin: Pin,
    lock: u64,
}

/// What a person has to be asked.
struct Question {
    token: TokenId,
    label: String,
    tries: TriesLeft,
}

impl Ahead {
    fn take_question(&self) -> Option<Question> {
        lock(&self.question).take()
    }

    fn ask(&self, question: Question, call: &Call) -> Result<(), Error> {
        let Question {
            token,
            label,
            tries,
        } = question;
        call.check()?;
        let asked_after = self.pool.locks.now();
        let pin = self.pins.pin_with_tries(&token, &label, tries, call)?;
        *lock(&self.known) = Some(Known {
            token,
            pin,
            lock: asked_after,
        });
        Ok(())
    }
}

impl PinSource for Ahead {
    fn pin(&self, token: &TokenId, label: &str, call: &Call) -> Result<Pin, Error> {
        self.pin_with_tries(token, label, TriesLeft::Unknown, call)
    }

    fn pin_with_tries(
        &self,
        token: &TokenId,
        label: &str,
        tries: TriesLeft,
        call: &Call,
    ) -> Result<Pin, Error> {
        let known = lock(&self.known);
        let known = known.as_ref().filter(|known| known.token == *token);
        // A lock ends what was begun before it.
        if known.is_some_and(|known| self.pool.locks.came_since(known.lock, token)) {
            return Err(Error::PinNeeded {
                token: token.clone(),
            });
        }
        // Also where one is known: its source says whether it may still be used.
        let at_once = self.pins.pin_at_once(token, label, tries, call)?;
        if let Some(pin) = at_once.or_else(|| known.map(|known| known.pin.clone())) {
            return Ok(pin);
        }
        *lock(&self.question) = Some(Question {
            token: token.clone(),
            label: label.into(),
            tries,
        });
        // No driver tries anything else then.
        Err(Error::PinSource {
            origin: "the request".into(),
            reason: format!("a person has to be asked for the PIN of {token} first"),
        })
    }

    fn sends_unsettled(&self, token: &TokenId, label: &str, call: &Call) -> Result<bool, Error> {
        self.pins.sends_unsettled(token, label, call)
    }

    fn is_one_for_all(&self) -> bool {
        self.pins.is_one_for_all()
    }

    fn may_be_compared(&self) -> bool {
        self.pins.may_be_compared()
    }

    fn compared(&self, token: &TokenId, is_same: bool) {
        self.pins.compared(token, is_same);
    }

    fn answered(&self, token: &TokenId, verdict: PinVerdict) {
        self.pins.answered(token, verdict);
    }
}
