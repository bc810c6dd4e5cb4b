//! What the requests of one connection share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use claviger_engine::{EngineId, Node};
use claviger_token::Call;

use crate::devices::Channel;
use crate::limits::Load;
use crate::outbox::{Line, Outbox};
use crate::pins::Present;
use crate::policy::CallerPolicy;
use crate::shared::Shared;
use crate::{Caller, Keeper};

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
    /// The devices that the program attaches.
    pub(crate) devices: Arc<Channel>,
    pub(crate) load: Arc<Load>,
}

impl Session {
    /// The circumstances of the request of `line`, which uses the key of `owner`.
    pub(crate) fn call(
        &self,
        line: &Line,
        owner: Option<EngineId>,
        deadline_ms: u32,
        cancelled: &Arc<AtomicBool>,
    ) -> Call {
        let call = match deadline_ms {
            0 => Call::unlimited(),
            limit => Call::within(Duration::from_millis(limit.into())),
        };
        let line = line.clone();
        let asker = Arc::new(line.clone());
        let access = self.keeper.access(&self.caller, owner, asker);
        call.using(access)
            .cancelled_by(Arc::clone(cancelled))
            .watched_by(Arc::new(move |event| line.tell(event)))
    }
}
