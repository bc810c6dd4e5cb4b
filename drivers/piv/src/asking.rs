//! Asking a source for a PIN, whose answer may take any time.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use claviger_token::{Call, Error, Pin, TokenId, TriesLeft};

/// So often it is looked whether the call was given up.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A PIN that somebody was asked for, once.
pub(crate) struct Asking {
    answers: Receiver<Result<Pin, Error>>,
    /// What was answered, once it was.
    answer: Option<Result<Pin, Error>>,
}

impl Asking {
    /// Asks, on a thread of its own: whoever answers may be a person.
    pub(crate) fn begin(token: &TokenId, tries: TriesLeft, call: &Call) -> Self {
        let (sender, answers) = channel();
        let pins = Arc::clone(&call.access().pins);
        let (token, call) = (token.clone(), call.clone());
        std::thread::spawn(move || {
            // Nobody may be listening any more.
            let _ = sender.send(pins.pin_with_tries(&token, "", tries, &call));
        });
        Asking {
            answers,
            answer: None,
        }
    }

    /// The answer, if it comes within `limit`.
    pub(crate) fn within(&mut self, limit: Duration) -> Option<Result<Pin, Error>> {
        match &self.answer {
            Some(answer) => Some(answer.clone()),
            None => Some(self.keep(self.answers.recv_timeout(limit).ok()?)),
        }
    }

    /// The answer, if it comes before `call` is over.
    pub(crate) fn answer(&mut self, call: &Call) -> Result<Pin, Error> {
        if let Some(answer) = &self.answer {
            return answer.clone();
        }
        loop {
            match self.answers.recv_timeout(call.at_most(LOOK_AGAIN)) {
                Ok(answer) => return self.keep(answer),
                Err(RecvTimeoutError::Timeout) => call.check()?,
                // Its thread panicked.
                Err(RecvTimeoutError::Disconnected) => {
                    return self.keep(Err(Error::PinSource {
                        origin: "the PIN's source".into(),
                        reason: "it did not answer".into(),
                    }));
                }
            }
        }
    }

    fn keep(&mut self, answer: Result<Pin, Error>) -> Result<Pin, Error> {
        self.answer.insert(answer).clone()
    }
}
