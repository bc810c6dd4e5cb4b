//! Backend strings.
#![no_main]

use claviger_fuzz::driver;
use claviger_pkcs11::uri::Uri;
use claviger_token::Driver as _;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = driver(|_: &[u8]| None).named_slot(text);
    match Uri::parse(text) {
        Ok(uri) => assert_eq!(Uri::parse(&uri.to_string()).as_ref().ok(), Some(&uri)),
        Err(error) => drop(error.to_string()),
    }
});
