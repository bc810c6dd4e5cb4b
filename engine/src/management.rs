//! Whose management key makes, names and destroys the keys of a request.
//!
//! | the management key came from | it serves |
//! | --- | --- |
//! | what the request [carries](claviger_token::Call::using) | this request |
//! | the node's own access | every request that the policy allows, also one that carries none of its own |
//!
//! The same holds for the leave to try published defaults. Drivers are handed both with each call
//! that changes something on a token, and no PIN: that is for openings
//! ([`whose_pin`](crate::whose_pin)).
//!
//! A management key that a token accepted is kept with the request that brought it, and wiped when
//! the request ends. The node's own stays in memory as long as the node.

use std::sync::Arc;

use claviger_token::{Access, Call, Error, NoPin, Pin, PinSource, TokenId};

/// What a request that carries `own` may use on a token that is open, on a node that has `node`.
pub(crate) fn at_work(own: Option<&Access>, node: &Access) -> Access {
    let Some(own) = own else {
        return node.clone().with_pins(Arc::new(NoPin));
    };
    let mut access = own.clone().with_pins(Arc::new(NoPin));
    access.management_keys = Arc::new(OwnOrNodes {
        own: Arc::clone(&own.management_keys),
        node: Arc::clone(&node.management_keys),
    });
    // The node's key may be among them, which is not for the next request.
    access.accepted_keys = Arc::default();
    access.factory_defaults |= node.factory_defaults;
    access
}

/// The management key of a request, or else the node's.
struct OwnOrNodes {
    own: Arc<dyn PinSource>,
    node: Arc<dyn PinSource>,
}

impl PinSource for OwnOrNodes {
    fn pin(&self, token: &TokenId, label: &str, call: &Call) -> Result<Pin, Error> {
        match self.own.pin(token, label, call) {
            Err(Error::PinNeeded { .. } | Error::ManagementKeyNeeded { .. }) => {
                self.node.pin(token, label, call)
            }
            given => given,
        }
    }
}
