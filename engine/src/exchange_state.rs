//! What the Encryption and Reads For engines of a node are made of, and their states.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use claviger_token::sync::lock;
use tokio::sync::oneshot;

use crate::EngineId;
use crate::encryption::{Answer, Pending};
use crate::reads_for::ReadsFor;
use crate::registry::{Known, Revision};

/// The default time limit of the Reads For engine.
pub const READS_FOR_DEADLINE: Duration = Duration::from_secs(10);

/// The parts of the two engines, and their states.
pub(crate) struct Exchange {
    /// The configured Reads For engine; replies of others do not count.
    pub(crate) reads_for: EngineId,
    pub(crate) deadline: Duration,
    pub(crate) pending: Mutex<Pending<oneshot::Sender<Answer>>>,
    pub(crate) relation: Mutex<ReadsFor>,
    /// The looked-up parties, valid until the registry changes.
    pub(crate) known: RwLock<(Revision, HashMap<EngineId, Arc<Known>>)>,
}

impl Exchange {
    pub(crate) fn new(reads_for: EngineId, deadline: Duration) -> Self {
        Exchange {
            reads_for,
            deadline,
            pending: Mutex::default(),
            relation: Mutex::default(),
            known: RwLock::default(),
        }
    }

    pub(crate) fn pending(&self) -> MutexGuard<'_, Pending<oneshot::Sender<Answer>>> {
        // Each change of it is one call, so it is whole after a panic elsewhere.
        lock(&self.pending)
    }
}
