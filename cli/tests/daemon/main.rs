//! The daemon, as commands and programs use it, on a real (soft) token.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

#[path = "../common/mod.rs"]
mod common;

mod age;
mod choice;
mod load;
mod operations;
mod python;
mod rights;
mod sameness;
mod sockets;
mod ssh;
mod tls;
#[cfg(target_os = "linux")]
mod unplugged;
mod use_of_it;
mod versions;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use claviger_client::blocking::{Client, Listener};
use claviger_client::{Options, wire};
use claviger_token::Zeroizing;
use common::Stage;

/// Who gives the PIN of a stage's token.
struct Pin;

impl Listener for Pin {
    fn pin(&self, _: &wire::PinRequest) -> Option<Zeroizing<Vec<u8>>> {
        let pin = claviger_tests::SoftHsm::PIN;
        Some(Zeroizing::new(pin.as_bytes().to_vec()))
    }
}

/// A program that speaks to the daemon of `stage`.
fn program(stage: &Stage) -> Client {
    Client::connect(options(stage)).unwrap()
}

fn options(stage: &Stage) -> Options {
    Options {
        // The commands of a stage may be those of another user.
        expected: claviger_client::peer::Expected::Anyone,
        answers_pins: true,
        patience: std::time::Duration::from_secs(60),
        ..Options::new(stage.runtime().join("claviger/api.sock"))
    }
}

/// Runs so many at once; what each answers.
fn at_once<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let work = &work;
    thread::scope(|scope| {
        let all: Vec<_> = (0..count)
            .map(|number| scope.spawn(move || work(number)))
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

/// Ends what goes on beside a test, also if that fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits until it is so, for two minutes at most.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let late = Instant::now() + Duration::from_secs(120);
    while !is_so() {
        assert!(Instant::now() < late, "{what} does not happen");
        thread::sleep(Duration::from_millis(2));
    }
}
