//! Listening for the end of a review that its caller gave up.
//!
//! The device shows such a review until a person answers it. Other processes wait as long, and this
//! process may ask for nothing meanwhile. So a thread listens for the answer, and ends with the
//! review, or with the driver.

use std::io;
use std::thread;
use std::time::Duration;

/// How soon the end of the review is noticed.
const EVERY: Duration = Duration::from_millis(100);

/// Listens as long as the review `goes_on`.
///
/// # Errors
/// Where there is no thread for it.
pub(crate) fn listen(goes_on: impl Fn() -> bool + Send + 'static) -> io::Result<()> {
    let listen = move || {
        loop {
            thread::sleep(EVERY);
            if !goes_on() {
                return;
            }
        }
    };
    let thread = thread::Builder::new().name("claviger-review".into());
    thread.spawn(listen).map(drop)
}
