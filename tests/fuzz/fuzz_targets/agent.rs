#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| claviger_fuzz_targets::agent::run(data));
