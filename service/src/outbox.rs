//! What is sent to a caller beside replies: events, requests for PINs, and requests for more data.
//!
//! They come from threads that serve tokens, and the connection sends them. It also brings back the
//! answers.

use std::collections::HashMap;
use std::mem;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Duration;

use claviger_client::wire::{Event, Frame, PinRequest, frame::Content, pin_request};
use claviger_token::sync::lock;
use claviger_token::{Call, TokenId};

use crate::asking::{AskPin, SecretBytes, SecretKind};
use crate::replies;

/// So many frames wait at most; an event for which there is no place is not told.
const MOST_FRAMES: usize = 256;

/// So often it is looked whether the request has ended meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What one connection has to send beside replies.
#[derive(Default)]
pub(crate) struct Outbox(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    frames: Vec<Frame>,
    waker: Option<Waker>,
    /// Those who wait for a secret, by request.
    asked: HashMap<u64, SyncSender<Option<SecretBytes>>>,
    answers_pins: bool,
    is_over: bool,
}

impl Outbox {
    /// Whether the caller can be asked for PINs.
    pub(crate) fn answers_pins(&self, it_does: bool) {
        lock(&self.0).answers_pins = it_does;
    }

    /// What is to be sent; the task is woken when there is more.
    pub(crate) fn take(&self, waker: &Waker) -> Vec<Frame> {
        let mut inner = lock(&self.0);
        if !inner
            .waker
            .as_ref()
            .is_some_and(|known| known.will_wake(waker))
        {
            inner.waker = Some(waker.clone());
        }
        mem::take(&mut inner.frames)
    }

    /// Wakes the connection, which looks at what has changed.
    pub(crate) fn wake(&self) {
        if let Some(waker) = &lock(&self.0).waker {
            waker.wake_by_ref();
        }
    }

    /// The connection has ended: nobody waits any more.
    pub(crate) fn end(&self) {
        let mut inner = lock(&self.0);
        inner.is_over = true;
        inner.frames.clear();
        inner.asked.clear();
        inner.waker = None;
    }

    /// Sends a frame, if there is a place for it.
    pub(crate) fn send(&self, id: u64, content: Content) -> bool {
        lock(&self.0).send(id, content)
    }

    /// Tells the caller of the request `id` what it waits for.
    pub(crate) fn tell(&self, id: u64, event: &claviger_token::Event) {
        if let Some(event) = replies::event(event) {
            let content: Event = event;
            self.send(id, Content::Event(content));
        }
    }

    /// The answer to a request for a PIN. One that was not asked for is dropped.
    pub(crate) fn answer(&self, id: u64, secret: Option<SecretBytes>) {
        let asker = lock(&self.0).asked.remove(&id);
        if let Some(asker) = asker {
            let _ = asker.try_send(secret);
        }
    }

    fn ask(&self, id: u64, request: PinRequest) -> Option<Receiver<Option<SecretBytes>>> {
        let mut inner = lock(&self.0);
        if !inner.answers_pins || inner.asked.contains_key(&id) {
            return None;
        }
        if !inner.send(id, Content::PinRequest(request)) {
            return None;
        }
        let (sender, receiver) = sync_channel(1);
        inner.asked.insert(id, sender);
        Some(receiver)
    }

    fn forget(&self, id: u64) {
        lock(&self.0).asked.remove(&id);
    }
}

impl Inner {
    fn send(&mut self, id: u64, content: Content) -> bool {
        if self.is_over || self.frames.len() >= MOST_FRAMES {
            return false;
        }
        self.frames.push(Frame::new(id, content));
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
        true
    }
}

/// Asks the caller of one request.
pub(crate) struct Asker {
    outbox: Arc<Outbox>,
    id: u64,
}

impl Asker {
    pub(crate) fn new(outbox: &Arc<Outbox>, id: u64) -> Self {
        Asker {
            outbox: Arc::clone(outbox),
            id,
        }
    }
}

impl AskPin for Asker {
    fn ask(
        &self,
        kind: SecretKind,
        token: &TokenId,
        tries_left: Option<u32>,
        call: &Call,
    ) -> Option<SecretBytes> {
        let kind = match kind {
            SecretKind::Pin => pin_request::Kind::Pin,
            SecretKind::ManagementKey => pin_request::Kind::ManagementKey,
        };
        let request = PinRequest {
            kind: kind.into(),
            token: Some(replies::token(token)),
            label: String::new(),
            tries_left,
        };
        let answer = self.outbox.ask(self.id, request)?;
        let secret = loop {
            if call.check().is_err() {
                break None;
            }
            match answer.recv_timeout(call.at_most(LOOK_AGAIN)) {
                Ok(secret) => break secret,
                Err(RecvTimeoutError::Disconnected) => break None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        };
        self.outbox.forget(self.id);
        secret
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn token() -> TokenId {
        TokenId {
            kind: "k".into(),
            manufacturer: "m".into(),
            serial: "s".into(),
        }
    }

    fn asks(outbox: &Outbox) -> u64 {
        loop {
            if let Some(frame) = outbox.take(Waker::noop()).pop() {
                assert_eq!(frame.kind(), "pin-request");
                return frame.id;
            }
            thread::yield_now();
        }
    }

    #[test]
    fn each_request_gets_its_own_answer_and_no_other_one() {
        let outbox = Arc::new(Outbox::default());
        outbox.answers_pins(true);
        let ask = |id| {
            let asker = Asker::new(&outbox, id);
            thread::spawn(move || asker.ask(SecretKind::Pin, &token(), Some(3), &Call::unlimited()))
        };
        let first = ask(1);
        assert_eq!(asks(&outbox), 1);
        let second = ask(2);
        assert_eq!(asks(&outbox), 2);
        outbox.answer(3, Some(b"0000".to_vec().into()));
        outbox.answer(2, Some(b"2222".to_vec().into()));
        outbox.answer(2, Some(b"0000".to_vec().into()));
        outbox.answer(1, None);
        assert_eq!(
            second.join().unwrap().as_deref().map(Vec::as_slice),
            Some(&b"2222"[..])
        );
        assert_eq!(first.join().unwrap(), None);
    }

    #[test]
    fn a_question_ends_with_its_request_and_with_the_connection() {
        let outbox = Arc::new(Outbox::default());
        let ask = |call: &Call| Asker::new(&outbox, 1).ask(SecretKind::Pin, &token(), None, call);
        assert_eq!(ask(&Call::unlimited()), None, "the caller answers no PINs");
        outbox.answers_pins(true);
        assert_eq!(ask(&Call::within(Duration::from_millis(1))), None);
        let ended = Arc::clone(&outbox);
        let waiting = thread::spawn(move || {
            Asker::new(&ended, 2).ask(SecretKind::Pin, &token(), None, &Call::unlimited())
        });
        while asks(&outbox) != 2 {}
        outbox.end();
        assert_eq!(waiting.join().unwrap(), None);
    }
}
