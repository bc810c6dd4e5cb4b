//! Notices that the age program has ended, while the daemon waits for a touch.

use std::io;
use std::thread;

use claviger_client::blocking::Cancel;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Calls `cancel` when nobody reads standard output any more. Standard input may end earlier: all
/// answers may have been sent.
pub(crate) fn watch(cancel: Cancel) {
    let watching = thread::Builder::new().spawn(move || {
        let output = io::stdout();
        // Only that the other end is closed is told, which needs not be asked for.
        let mut watched = [PollFd::new(&output, PollFlags::empty())];
        loop {
            match poll(&mut watched, None) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => break,
                Err(_) => return,
            }
        }
        cancel.cancel();
    });
    // Without it the answer is waited for, and cannot be given.
    drop(watching);
}
