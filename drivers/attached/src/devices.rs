//! The devices that are attached.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use claviger_token::Watch;
use claviger_token::sync::lock;

use crate::description::Description;
use crate::link::Link;

/// So many devices are attached at most.
pub const MOST_DEVICES: usize = 256;

/// So long a device has to say what became of a change, after the request for it has ended.
const PATIENCE: Duration = Duration::from_secs(5);

/// The devices that programs have attached. Clones are the same.
#[derive(Clone)]
pub struct Devices(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    patience: Duration,
}

#[derive(Default)]
struct State {
    /// The schemes that some driver serves.
    kinds: BTreeSet<&'static str>,
    /// By serial.
    attached: BTreeMap<String, Attached>,
    /// How often it has changed.
    changes: u64,
}

/// A device that is attached.
#[derive(Clone)]
pub(crate) struct Attached {
    pub(crate) description: Arc<Description>,
    pub(crate) link: Arc<dyn Link>,
    /// Tells this attachment from a later one of the same device.
    number: u64,
}

/// Why a device is not attached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// No driver serves its kind.
    #[error("no driver serves devices of the kind `{kind}`")]
    UnknownKind {
        /// Its kind.
        kind: String,
    },
    /// A device of this serial is attached.
    #[error("the device {serial} is attached already")]
    Twice {
        /// Its serial.
        serial: String,
    },
    /// There are as many as there may be.
    #[error("too many devices are attached: at most {most}")]
    TooMany {
        /// The limit.
        most: usize,
    },
}

/// A device is attached as long as this lives.
pub struct Attachment {
    devices: Devices,
    serial: String,
    number: u64,
}

impl Default for Devices {
    fn default() -> Self {
        Devices::with_patience(PATIENCE)
    }
}

impl Devices {
    /// No device yet. When the request for a change on one has ended, the device may take so long
    /// to say what became of it. One that does not say is detached: nobody knows then what is on it.
    /// By default 5 s.
    pub fn with_patience(patience: Duration) -> Self {
        Devices(Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            patience,
        }))
    }

    pub(crate) fn patience(&self) -> Duration {
        self.0.patience
    }

    /// Attaches a device, whose identity key has answered a challenge.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach(
        &self,
        description: Description,
        link: Arc<dyn Link>,
    ) -> Result<Attachment, AttachError> {
        let mut state = lock(&self.0.state);
        if !state.kinds.contains(description.kind()) {
            let kind = description.kind().chars().take(32).collect();
            return Err(AttachError::UnknownKind { kind });
        }
        let serial = description.serial().to_owned();
        if state.attached.contains_key(&serial) {
            return Err(AttachError::Twice { serial });
        }
        if state.attached.len() >= MOST_DEVICES {
            let most = MOST_DEVICES;
            return Err(AttachError::TooMany { most });
        }
        state.changes += 1;
        let number = state.changes;
        let attached = Attached {
            description: Arc::new(description),
            link,
            number,
        };
        state.attached.insert(serial.clone(), attached);
        drop(state);
        self.0.changed.notify_all();
        tracing::info!(serial, "a device is attached");
        Ok(Attachment {
            devices: self.clone(),
            serial,
            number,
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        lock(&self.0.state).attached.len()
    }

    /// A driver serves this scheme from now on.
    pub(crate) fn serve(&self, kind: &'static str) {
        lock(&self.0.state).kinds.insert(kind);
    }

    /// Those of a kind, or the one of a serial.
    pub(crate) fn fitting(&self, kind: &str, serial: Option<&str>) -> Vec<Attached> {
        let state = lock(&self.0.state);
        let fits = |(its, device): &(&String, &Attached)| {
            device.description.kind() == kind && serial.is_none_or(|serial| serial == *its)
        };
        let fitting = state.attached.iter().filter(fits);
        fitting.map(|(_, device)| device.clone()).collect()
    }

    /// Waits until something has changed since `seen`, or the limit is over; what was seen last.
    fn wait(&self, seen: u64, limit: Duration) -> u64 {
        // A limit without an end is one of an hour: who waits looks again.
        let end = Instant::now() + limit.min(Duration::from_secs(3600));
        let mut state = lock(&self.0.state);
        while state.changes == seen {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.changes
    }

    /// Who waits for changes from now on.
    pub(crate) fn watch(&self) -> Box<dyn Watch> {
        Box::new(Watching {
            devices: self.clone(),
            // The first wait ends at once: something may have changed before.
            seen: None,
        })
    }
}

impl Attachment {
    /// The serial of the device.
    pub fn serial(&self) -> &str {
        &self.serial
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut state = lock(&self.devices.0.state);
        let its = state.attached.get(&self.serial);
        if its.is_some_and(|attached| attached.number == self.number) {
            let gone = state.attached.remove(&self.serial);
            state.changes += 1;
            drop(state);
            // Its link may want a lock of its own.
            drop(gone);
            self.devices.0.changed.notify_all();
            tracing::info!(serial = self.serial, "a device is detached");
        }
    }
}

struct Watching {
    devices: Devices,
    seen: Option<u64>,
}

impl Watch for Watching {
    fn wait(&mut self, limit: Duration) -> bool {
        let Some(seen) = self.seen else {
            self.seen = Some(lock(&self.devices.0.state).changes);
            return true;
        };
        let now = self.devices.wait(seen, limit);
        self.seen = Some(now);
        now != seen
    }
}
