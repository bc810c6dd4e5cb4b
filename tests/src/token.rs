//! What all PKCS#11 tokens for tests have in common: how they are made.

use claviger_token::key::to_hex;
use cryptoki::context::Pkcs11;
use cryptoki::session::UserType;
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use rand_core::{OsRng, RngCore};

/// The user PIN of every token.
pub(crate) const PIN: &str = "tr0mb0ne";
/// The security officer's PIN of every token.
pub(crate) const SO_PIN: &str = "0ph1cle1de";

/// A label that no other token has.
pub(crate) fn label() -> String {
    format!("test-{}", to_hex(&OsRng.next_u64().to_be_bytes()))
}

/// Makes a slot whose token is not initialised into one with a token.
pub(crate) fn initialise(module: &Pkcs11, slot: Slot, label: &str) {
    assert!(!module.get_token_info(slot).unwrap().token_initialized());
    let so_pin = AuthPin::new(SO_PIN.into());
    module.init_token(slot, &so_pin, label).unwrap();
    let session = module.open_rw_session(slot).unwrap();
    session.login(UserType::So, Some(&so_pin)).unwrap();
    session.init_pin(&AuthPin::new(PIN.into())).unwrap();
    session.logout().unwrap();
}
