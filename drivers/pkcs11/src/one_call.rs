//! Results in one call instead of two, of which the first only asks for their length.

use std::sync::OnceLock;

use claviger_pkcs11_once::Once;
use cryptoki::session::Session;

use crate::session::Connection;

/// The functions that end an operation in one call, where they know the sessions of
/// `cryptoki`; asked for when the first operation is to be ended.
#[derive(Default)]
pub(crate) struct OneCall(OnceLock<Option<Once>>);

impl OneCall {
    /// The module's functions, if they can be had.
    pub(crate) fn of(&self, connection: &Connection, session: &Session) -> Option<&Once> {
        if let Some(known) = self.0.get() {
            return known.as_ref();
        }
        let once = Once::of(connection.module_path()).ok();
        let once = once.filter(|once| once.know(session));
        // A session that has just died is known to none.
        if once.is_none() && session.get_session_info().is_err() {
            return None;
        }
        if once.is_none() {
            let module = connection.module_path();
            tracing::debug!(module = %module.display(), "every result takes two calls");
        }
        self.0.get_or_init(|| once).as_ref()
    }
}
