//! How much one caller may take, so that nothing is left over for none.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use claviger_token::sync::lock;

/// What connections and callers may take. A caller is a user, whichever sockets it uses.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one caller.
    pub connections_of_caller: usize,
    /// Requests in flight of one connection.
    pub requests_of_connection: usize,
    /// Requests in flight of one caller. Fewer than wait for one token at most, so that a caller
    /// leaves places for others. Connections that have none in flight may begin 32 more.
    pub requests_of_caller: usize,
    /// Requests in flight of one caller whose data comes in chunks; each holds a thread.
    pub long_requests_of_caller: usize,
    /// Devices that one caller attaches.
    pub devices_of_caller: usize,
    /// Data that is held whole and comes or goes in chunks, in bytes.
    pub gathered: usize,
    /// Replies that wait to be read by their caller, in bytes; above that nothing is read from it.
    pub unread: usize,
    /// The time until a connection's first frame.
    pub first_frame: Duration,
    /// Memory for frames that are not whole and for replies that are not read, of one caller, in
    /// bytes. Above that its connections are ended that hold more than 64 KiB.
    pub buffered_of_caller: usize,
    /// The time in which a frame that has begun must end, and in which waiting replies must be
    /// read, or [as many bytes](Limits::unread) of them. A caller that needs longer is cut off.
    pub stalled: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 4096,
            connections_of_caller: 2048,
            requests_of_connection: 64,
            requests_of_caller: 192,
            long_requests_of_caller: 8,
            devices_of_caller: 32,
            gathered: 16 << 20,
            unread: 1 << 20,
            buffered_of_caller: 256 << 20,
            first_frame: Duration::from_secs(10),
            stalled: Duration::from_secs(30),
        }
    }
}

/// What one caller takes at the moment.
#[derive(Debug, Default)]
pub(crate) struct Load {
    connections: AtomicUsize,
    requests: AtomicUsize,
    long_requests: AtomicUsize,
    devices: AtomicUsize,
    bytes: AtomicUsize,
    /// Held while a person is asked for one of its requests: others of it wait, and nobody else.
    pub(crate) confirming: Arc<tokio::sync::Mutex<()>>,
}

/// What is counted of a caller.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Counted {
    Connection,
    Request,
    LongRequest,
    Device,
}

impl Load {
    fn of(&self, what: Counted) -> &AtomicUsize {
        match what {
            Counted::Connection => &self.connections,
            Counted::Request => &self.requests,
            Counted::LongRequest => &self.long_requests,
            Counted::Device => &self.devices,
        }
    }

    /// One more, if there are fewer than `most`.
    pub(crate) fn take(self: &Arc<Self>, what: Counted, most: usize) -> Option<Taken> {
        let counter = self.of(what);
        if counter.fetch_add(1, Ordering::Relaxed) >= most {
            counter.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Taken {
            load: Arc::clone(self),
            what,
        })
    }

    /// One of its connections holds `now` bytes in place of `before`: those of all of them.
    pub(crate) fn holds(&self, before: usize, now: usize) -> usize {
        let more = now.wrapping_sub(before);
        // What is taken away was added before.
        let all = self.bytes.fetch_add(more, Ordering::Relaxed);
        all.wrapping_add(more)
    }

    fn is_idle(&self) -> bool {
        let counters = [
            &self.connections,
            &self.requests,
            &self.long_requests,
            &self.devices,
        ];
        counters
            .iter()
            .all(|counter| counter.load(Ordering::Relaxed) == 0)
    }
}

/// One of what is counted, as long as it lives.
#[derive(Debug)]
pub(crate) struct Taken {
    load: Arc<Load>,
    what: Counted,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.load.of(self.what).fetch_sub(1, Ordering::Relaxed);
    }
}

/// What each caller takes.
#[derive(Debug, Default)]
pub(crate) struct Loads(Mutex<HashMap<u32, Arc<Load>>>);

/// From so many callers on it is looked which of them are gone.
const MANY: usize = 64;

impl Loads {
    /// That of the caller `uid`.
    pub(crate) fn of(&self, uid: u32) -> Arc<Load> {
        let mut loads = lock(&self.0);
        if loads.len() >= MANY {
            loads.retain(|_, load| Arc::strong_count(load) > 1 || !load.is_idle());
        }
        Arc::clone(loads.entry(uid).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_caller_takes_is_counted_apart_and_given_back() {
        let loads = Loads::default();
        let (one, other) = (loads.of(1), loads.of(2));
        let taken = [(); 2].map(|()| one.take(Counted::Request, 2));
        assert!(taken.iter().all(Option::is_some));
        assert!(one.take(Counted::Request, 2).is_none());
        assert!(one.take(Counted::LongRequest, 1).is_some());
        assert!(other.take(Counted::Request, 2).is_some());
        drop(taken);
        assert!(loads.of(1).take(Counted::Request, 1).is_some());
        assert_eq!([one.holds(0, 70), one.holds(0, 30)], [70, 100]);
        assert_eq!([one.holds(70, 0), other.holds(0, 5)], [30, 5]);
    }

    #[test]
    fn callers_that_are_gone_take_no_memory() {
        let loads = Loads::default();
        let kept = loads.of(0).take(Counted::Connection, 1);
        for uid in 1..1000 {
            drop(loads.of(uid));
        }
        assert!(lock(&loads.0).len() <= MANY);
        assert!(loads.of(0).take(Counted::Connection, 1).is_none());
        drop(kept);
    }
}
