//! A real app in Ledger's emulator, over its own protocol: Ledger's Boilerplate, which is
//! not the app that is wanted. What the right app does, the conformance suite shows.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

use std::process::ExitCode;
use std::time::Duration;

use claviger_ledger::LedgerDriver;
use claviger_ledger_emulator::{App, Emulator};
use claviger_token::{Call, Driver, Error};
use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let skipped = Emulator::skipped();
    if let Some(why) = skipped {
        eprintln!("SKIPPED the emulator: {why}");
    }
    let name = "an_emulated_device_with_another_app_says_which_is_open";
    let trial = Trial::test(name, || {
        another_app();
        Ok(())
    });
    let trials = vec![trial.with_ignored_flag(skipped.is_some())];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn another_app() {
    let emulator = Emulator::start(App::Boil);
    let backend = format!("ledger:tcp={}", emulator.apdu_address());
    let driver = LedgerDriver::new();
    let tokens = driver.tokens(&backend, &Call::unlimited()).unwrap();
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].backend, backend);
    let (note, value) = &tokens[0].notes[0];
    assert_eq!(note, "state");
    assert!(value.ends_with("is open: open the app Ethereum"), "{value}");

    let call = Call::within(Duration::from_millis(700));
    let opened = driver.open(&backend, &call);
    match opened.map(drop) {
        Err(Error::AppNotOpen { running, .. }) => assert!(running.is_some()),
        other => panic!("{other:?}"),
    }
}
