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
    /// The requests that are not answered, by their ids: each one's own number. The caller may use
    /// an id again, and a thread that outlives its request must not speak for the next one.
    requests: HashMap<u64, u64>,
    numbers: u64,
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

    /// A request begins that has this id.
    pub(crate) fn begin(self: &Arc<Self>, id: u64) -> Line {
        let mut inner = lock(&self.0);
        inner.numbers += 1;
        let number = inner.numbers;
        inner.requests.insert(id, number);
        drop(inner);
        Line {
            outbox: Arc::clone(self),
            id,
            number,
        }
    }

    /// The request is answered: nothing more is said of it, but the events that are returned.
    pub(crate) fn answered(&self, id: u64) -> Vec<Frame> {
        let mut inner = lock(&self.0);
        inner.requests.remove(&id);
        inner.asked.remove(&id);
        if inner.frames.is_empty() {
            return Vec::new();
        }
        let frames = mem::take(&mut inner.frames).into_iter();
        let (mut its, others): (Vec<Frame>, _) = frames.partition(|frame| frame.id == id);
        inner.frames = others;
        its.retain(|frame| matches!(frame.content, Some(Content::Event(_))));
        its
    }

    /// The answer to a request for a PIN. One that was not asked for is dropped.
    pub(crate) fn answer(&self, id: u64, secret: Option<SecretBytes>) {
        let asker = lock(&self.0).asked.remove(&id);
        if let Some(asker) = asker {
            let _ = asker.try_send(secret);
        }
    }
}

/// One request's way to its caller, as long as it is not answered.
#[derive(Clone)]
pub(crate) struct Line {
    outbox: Arc<Outbox>,
    id: u64,
    number: u64,
}

impl Line {
    /// The id of the request.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Sends a frame, if there is a place for it.
    pub(crate) fn send(&self, content: Content) -> bool {
        lock(&self.outbox.0).send(self, content)
    }

    /// Tells the caller what its request waits for.
    pub(crate) fn tell(&self, event: &claviger_token::Event) {
        if let Some(event) = replies::event(event) {
            let content: Event = event;
            self.send(Content::Event(content));
        }
    }

    fn ask_for_pin(&self, request: PinRequest) -> Option<Receiver<Option<SecretBytes>>> {
        let mut inner = lock(&self.outbox.0);
        if !inner.answers_pins || inner.asked.contains_key(&self.id) {
            return None;
        }
        if !inner.send(self, Content::PinRequest(request)) {
            return None;
        }
        let (sender, receiver) = sync_channel(1);
        inner.asked.insert(self.id, sender);
        Some(receiver)
    }

    fn forget(&self) {
        let mut inner = lock(&self.outbox.0);
        if inner.is_open(self) {
            inner.asked.remove(&self.id);
        }
    }
}

impl Inner {
    fn is_open(&self, line: &Line) -> bool {
        !self.is_over && self.requests.get(&line.id) == Some(&line.number)
    }

    fn send(&mut self, line: &Line, content: Content) -> bool {
        if !self.is_open(line) || self.frames.len() >= MOST_FRAMES {
            return false;
        }
        self.frames.push(Frame::new(line.id, content));
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
        true
    }
}

impl AskPin for Line {
    fn ask(
        &self,
        kind: SecretKind,
        token: &TokenId,
        label: &str,
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
            label: label.to_owned(),
            tries_left,
        };
        call.check().ok()?;
        let answer = self.ask_for_pin(request)?;
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
        self.forget();
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
            let line = outbox.begin(id);
            thread::spawn(move || {
                let call = Call::unlimited();
                line.ask(SecretKind::Pin, &token(), "label", Some(3), &call)
            })
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
        let line = outbox.begin(1);
        let ask = |call: &Call| line.ask(SecretKind::Pin, &token(), "", None, call);
        assert_eq!(ask(&Call::unlimited()), None, "the caller answers no PINs");
        outbox.answers_pins(true);
        assert_eq!(ask(&Call::within(Duration::from_millis(1))), None);
        let line = outbox.begin(2);
        let waiting = thread::spawn(move || {
            line.ask(SecretKind::Pin, &token(), "", None, &Call::unlimited())
        });
        while asks(&outbox) != 2 {}
        outbox.end();
        assert_eq!(waiting.join().unwrap(), None);
    }

    #[test]
    fn what_outlives_its_request_says_nothing_in_the_name_of_the_next_one() {
        let outbox = Arc::new(Outbox::default());
        outbox.answers_pins(true);
        let call = Call::unlimited();
        let chunk = || Content::Chunk(claviger_client::wire::Chunk::default());
        let first = outbox.begin(7);
        let line = first.clone();
        let asking = thread::spawn(move || {
            line.ask(SecretKind::Pin, &token(), "", None, &Call::unlimited())
        });
        assert_eq!(asks(&outbox), 7);
        assert!(first.send(chunk()));
        outbox.answered(7);
        assert_eq!(asking.join().unwrap(), None);
        let second = outbox.begin(7);
        assert!(!first.send(chunk()));
        assert_eq!(first.ask(SecretKind::Pin, &token(), "", None, &call), None);
        assert!(outbox.take(Waker::noop()).is_empty());
        assert!(second.send(chunk()));
        assert_eq!(outbox.take(Waker::noop()).len(), 1);
        // The end of the first one is not that of the second.
        let line = second;
        let asking = thread::spawn(move || {
            line.ask(SecretKind::Pin, &token(), "", None, &Call::unlimited())
        });
        assert_eq!(asks(&outbox), 7);
        first.forget();
        outbox.answer(7, Some(b"2222".to_vec().into()));
        let pin = asking.join().unwrap();
        assert_eq!(pin.as_deref().map(Vec::as_slice), Some(&b"2222"[..]));
    }

    #[test]
    fn what_was_told_of_a_request_comes_before_its_answer_and_what_was_asked_does_not() {
        let outbox = Arc::new(Outbox::default());
        let (line, other) = (outbox.begin(1), outbox.begin(2));
        let token = token();
        for line in [&line, &other] {
            let token = token.clone();
            line.tell(&claviger_token::Event::TouchNeeded { token });
            assert!(line.send(Content::Chunk(claviger_client::wire::Chunk::default())));
        }
        let its = outbox.answered(1);
        let kinds = |frames: &[Frame]| -> Vec<_> {
            frames.iter().map(|told| (told.id, told.kind())).collect()
        };
        assert_eq!(kinds(&its), [(1, "event")]);
        let left = outbox.take(Waker::noop());
        assert_eq!(kinds(&left), [(2, "event"), (2, "chunk")]);
    }

    #[test]
    fn who_gave_a_request_up_is_not_asked_for_a_pin() {
        let outbox = Arc::new(Outbox::default());
        outbox.answers_pins(true);
        let is_cancelled = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let call = Call::unlimited().cancelled_by(is_cancelled);
        let line = outbox.begin(1);
        assert_eq!(line.ask(SecretKind::Pin, &token(), "", None, &call), None);
        assert!(outbox.take(Waker::noop()).is_empty());
    }
}
