//! A PIN for one operation (`CKA_ALWAYS_AUTHENTICATE`), with the rules of every login.

use std::path::Path;

use claviger_token::Call;
use cryptoki::session::Session;

use super::{Connection, Retained, is_refusal};
use crate::error::Fault;
use crate::login::{Door, Login, login_for_operation};
use claviger_token::sync::lock;

impl Connection {
    /// The file of the module.
    pub(crate) fn module_path(&self) -> &Path {
        &self.module.path
    }

    /// Gives the PIN that the token accepted before, for the operation that was begun with the
    /// session just now.
    pub(crate) fn authenticate_once(&self, session: &Session, call: &Call) -> Result<(), Fault> {
        let (slot, pin) = {
            let state = lock(&self.state);
            (state.slot, state.pin.clone())
        };
        let info = self.module.token_info(slot)?;
        let door = Door {
            module: &self.module,
            slot,
            info: &info,
            id: &self.id,
            quirks: self.quirks,
        };
        let how = Login {
            pins: &Retained(pin),
            last_try: false,
            any_length: true,
            refused: &self.refused,
            call,
        };
        login_for_operation(&door, session, &how).map_err(|error| {
            if is_refusal(&error) {
                lock(&self.state).pin = None;
            }
            Fault::Broken(error)
        })
    }
}
