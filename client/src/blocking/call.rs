//! What a caller says about one request: how long, who is told, and how it is given up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use zeroize::Zeroizing;

use super::connection::Connection;
use crate::wire::{self, Event, Frame, PinRequest, frame::Content};

/// Hears of a request that waits for somebody, and gives PINs. It is called on the thread that made
/// the request.
pub trait Listener {
    /// The request waits for somebody: a touch, an approval …
    fn event(&self, event: &Event) {
        let _ = event;
    }

    /// The request needs a PIN; `None` if there is none. Other requests of the connection go on
    /// meanwhile.
    fn pin(&self, request: &PinRequest) -> Option<Zeroizing<Vec<u8>>> {
        let _ = request;
        None
    }
}

/// Hears nothing and has no PIN.
impl Listener for () {}

/// How a request is made.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// How long it may take; `None` is without limit.
    pub deadline: Option<Duration>,
    /// Gives it up from another thread.
    pub cancel: Option<&'a Cancel>,
    /// Who is told of events, and asked for PINs.
    pub listener: &'a dyn Listener,
    /// The most bytes that a long answer may have.
    pub longest_reply: usize,
}

impl Default for Call<'_> {
    /// No deadline, nobody who listens, and answers of at most 64 MiB.
    fn default() -> Self {
        Call {
            deadline: None,
            cancel: None,
            listener: &(),
            longest_reply: 64 << 20,
        }
    }
}

impl<'a> Call<'a> {
    /// As usual, with a deadline.
    pub fn within(deadline: Duration) -> Call<'a> {
        Call {
            deadline: Some(deadline),
            ..Call::default()
        }
    }
}

/// Gives up the request that it was handed to. Its clones are the same.
#[derive(Clone, Default)]
pub struct Cancel(Arc<Inner>);

#[derive(Default)]
struct Inner {
    is_cancelled: AtomicBool,
    request: Mutex<Option<(Weak<Connection>, u64)>>,
}

impl Cancel {
    /// For a request.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Gives the request up, and each one that is made with this later. A key may be used
    /// nevertheless, if the daemon has begun.
    pub fn cancel(&self) {
        self.0.is_cancelled.store(true, Ordering::SeqCst);
        let request = self.request().take();
        if let Some((connection, id)) = request
            && let Some(connection) = connection.upgrade()
        {
            connection.cancel(id);
        }
    }

    /// Whether it was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Ordering::SeqCst)
    }

    /// The daemon is to be told, if the request is given up from now on. Whether it already is.
    pub(super) fn aim(&self, connection: &Arc<Connection>, id: u64) -> bool {
        *self.request() = Some((Arc::downgrade(connection), id));
        self.is_cancelled()
    }

    pub(super) fn aim_nowhere(&self) {
        self.request().take();
    }

    fn request(&self) -> std::sync::MutexGuard<'_, Option<(Weak<Connection>, u64)>> {
        let request = self.0.request.lock();
        request.unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Cancel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_tuple("Cancel");
        shown.field(&self.is_cancelled()).finish()
    }
}

impl Connection {
    /// Tells the daemon that nobody waits for this request.
    pub(super) fn cancel(&self, id: u64) {
        // If it cannot be told, the connection has ended.
        let _ = self.send(&Frame::new(id, Content::Cancel(wire::Cancel {})), None);
    }
}
