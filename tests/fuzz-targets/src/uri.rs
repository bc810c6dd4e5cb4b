//! Backend strings.

use crate::shared::driver;
use claviger_pkcs11::uri::Uri;
use claviger_token::Driver as _;

/// One input; what is no text is none.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let _ = driver(|_: &[u8]| None).named_slot(text);
    match Uri::parse(text) {
        Ok(uri) => assert_eq!(Uri::parse(&uri.to_string()).as_ref().ok(), Some(&uri)),
        Err(error) => drop(error.to_string()),
    }
}
