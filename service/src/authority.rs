//! Who may have the daemon's PINs used, by the rules of the daemon.

use std::sync::Arc;

use claviger_engine::policy::Permission;
use claviger_engine::{EngineId, Node, Policy};
use claviger_token::TokenId;

pub(crate) use crate::caller::is_operator;
use crate::policy::Rules;
use crate::{Authority, Caller};

/// The rules as a [`Keeper`](crate::Keeper) asks them.
pub(crate) struct ByRules(pub(crate) Arc<Rules>);

impl Authority for ByRules {
    fn is_operator(&self, caller: &Caller) -> bool {
        is_operator(caller)
    }

    fn may_use_login(&self, caller: &Caller, owner: Option<&EngineId>, token: &TokenId) -> bool {
        let of = &EngineId::program();
        let wanted = Permission::UseLogin { token, of };
        self.0
            .judge(caller)
            .check(owner.unwrap_or(of), wanted)
            .is_ok()
    }

    fn view(&self, caller: &Caller) -> Node {
        self.0.view(caller)
    }
}
