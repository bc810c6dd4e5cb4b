//! A session that is closed only while its handle is its own.

use std::ops::Deref;

use cryptoki::error::Error as Ck;
use cryptoki::session::Session;

use crate::gate::Entered;
use crate::module::Module;

/// A session, and how often the module had been initialised when it was opened. The next time
/// ends it, and the module may give its handle to another session: who closes it then closes
/// that one.
pub(super) struct Opened {
    session: Session,
    initialised: u64,
}

impl Opened {
    pub(super) fn new(
        module: &Module,
        open: impl FnOnce() -> Result<Session, Ck>,
        _: &Entered<'_>,
    ) -> Result<Self, Ck> {
        // Before, so that it is never taken for a later one than it is.
        let initialised = module.times_initialised();
        let session = open()?;
        Ok(Opened {
            session,
            initialised,
        })
    }

    pub(super) fn is_of(&self, module: &Module) -> bool {
        self.initialised == module.times_initialised()
    }

    /// The session, unless the module has ended it; then it is forgotten.
    pub(super) fn if_of(self, module: &Module) -> Option<Self> {
        if self.is_of(module) {
            return Some(self);
        }
        std::mem::forget(self.session);
        None
    }

    /// Closes it, unless the module has ended it.
    pub(super) fn close(self, module: &Module, _: &Entered<'_>) {
        drop(self.if_of(module));
    }
}

impl Deref for Opened {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trouble::Patience;
    use claviger_altered_module::AlteredModule;
    use claviger_tests::SoftHsm;
    use claviger_token::Call;

    #[test]
    fn a_session_that_the_module_has_ended_is_not_closed() {
        let _hsm = SoftHsm::new();
        let altered = AlteredModule::of(SoftHsm::module().as_ref());
        let call = Call::unlimited();
        let module = Module::load(&altered.path(), None, Patience::Now, &call).unwrap();
        let open = || {
            let entered = module.enter(&call).unwrap();
            let (slot, _) = module.sight(&entered).unwrap().tokens.remove(0);
            Opened::new(&module, || module.pkcs11.open_ro_session(slot), &entered).unwrap()
        };
        let (first, second) = (open(), open());
        first.close(&module, &module.enter(&call).unwrap());
        assert_eq!(altered.calls("C_CloseSession"), 1);
        module.restart();
        let successor = open();
        second.close(&module, &module.enter(&call).unwrap());
        assert_eq!(altered.calls("C_CloseSession"), 1);
        // It would have been this one that was closed.
        successor.get_session_info().unwrap();
    }
}
