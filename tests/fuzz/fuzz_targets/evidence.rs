//! Evidence of who reads for whom, as it comes from other machines.
#![no_main]

use claviger_engine::evidence::{from_text, to_text};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(evidence) = from_text(data) else {
        return;
    };
    for piece in &evidence {
        let _ = piece.verify();
    }
    let text = to_text(&evidence).unwrap();
    assert_eq!(from_text(text.as_bytes()).unwrap(), evidence);
});
