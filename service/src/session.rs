//! What the requests of one connection share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use claviger_engine::Node;
use claviger_token::Call;

use crate::limits::Load;
use crate::outbox::{Asker, Outbox};
use crate::pins::Present;
use crate::policy::CallerPolicy;
use crate::service::Shared;
use crate::{AskPin, Caller, Keeper};

/// What the requests of one connection share.
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    pub(crate) caller: Caller,
    /// The node as the caller sees it.
    pub(crate) node: Node,
    /// What the node asks when the caller wants something.
    pub(crate) policy: CallerPolicy,
    pub(crate) keeper: Arc<Keeper>,
    /// The caller is there: what it gave is kept as long.
    pub(crate) _present: Present,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) load: Arc<Load>,
}

impl Session {
    /// The circumstances of the request `id`.
    pub(crate) fn call(&self, id: u64, deadline_ms: u32, cancelled: &Arc<AtomicBool>) -> Call {
        let call = match deadline_ms {
            0 => Call::unlimited(),
            limit => Call::within(Duration::from_millis(limit.into())),
        };
        let outbox = Arc::clone(&self.outbox);
        let access = self.keeper.access(&self.caller, self.asker(id));
        call.using(access)
            .cancelled_by(Arc::clone(cancelled))
            .watched_by(Arc::new(move |event| outbox.tell(id, event)))
    }

    /// Asks the caller of the request `id`.
    pub(crate) fn asker(&self, id: u64) -> Arc<dyn AskPin> {
        Arc::new(Asker::new(&self.outbox, id))
    }
}
