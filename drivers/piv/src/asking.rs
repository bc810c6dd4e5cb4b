//! Asking a source for a PIN, whose answer may take any time.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use claviger_token::{Error, Pin, PinSource, TokenId, TriesLeft};

/// A PIN that somebody was asked for, once.
pub(crate) struct Asking {
    answers: Receiver<Result<Pin, Error>>,
    /// What was answered, once it was.
    answer: Option<Result<Pin, Error>>,
}

impl Asking {
    /// Asks, on a thread of its own: whoever answers may be a person.
    pub(crate) fn begin(pins: &Arc<dyn PinSource>, token: &TokenId, tries: TriesLeft) -> Self {
        let (sender, answers) = channel();
        let (pins, token) = (Arc::clone(pins), token.clone());
        std::thread::spawn(move || {
            // Nobody may be listening any more.
            let _ = sender.send(pins.pin_with_tries(&token, "", tries));
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

    /// The answer, whenever it comes.
    pub(crate) fn answer(&mut self) -> Result<Pin, Error> {
        match &self.answer {
            Some(answer) => answer.clone(),
            None => {
                // Its thread panicked.
                let nothing = Err(Error::PinSource {
                    origin: "the PIN's source".into(),
                    reason: "it gave no answer".into(),
                });
                self.keep(self.answers.recv().unwrap_or(nothing))
            }
        }
    }

    fn keep(&mut self, answer: Result<Pin, Error>) -> Result<Pin, Error> {
        self.answer.insert(answer).clone()
    }
}
