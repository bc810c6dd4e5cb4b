//! Standard streams that were closed when the process started, stopping like other commands, and
//! memory for a few short threads.
//!
//! The command needs this from the system, and no crate offers it. All `unsafe` code of the command
//! is here. Before `main`, Rust's standard library opens `/dev/null` in place of closed standard
//! streams, so that no file gets their numbers. Output to such a stream is lost without an error.
//! This crate looks before the standard library does: in a function that the loader runs first
//! (System V gABI, "Initialization and Termination Functions").

#[cfg(unix)]
mod job;
mod memory;

use std::sync::atomic::{AtomicU8, Ordering};

#[cfg(unix)]
pub use job::{is_ignored, stop};
pub use memory::share_memory;

/// A bit for each of the three.
static CLOSED: AtomicU8 = AtomicU8::new(0);

/// A standard stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Descriptor 0.
    Input = 0,
    /// Descriptor 1.
    Output = 1,
    /// Descriptor 2.
    Error = 2,
}

/// Whether the stream was closed when the process started. `false` on systems where that
/// cannot be told.
pub fn was_closed(stream: Stream) -> bool {
    CLOSED.load(Ordering::Relaxed) & (1 << stream as u8) != 0
}

#[cfg(any(target_os = "linux", target_vendor = "apple"))]
mod early {
    use super::{CLOSED, Ordering};

    // SAFETY: the section holds pointers to functions that are called before `main`; `look`
    // needs nothing that is set up later, and does not unwind.
    #[used]
    #[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
    #[cfg_attr(
        target_vendor = "apple",
        unsafe(link_section = "__DATA,__mod_init_func")
    )]
    static LOOK: extern "C" fn() = look;

    extern "C" fn look() {
        for descriptor in 0..3 {
            // SAFETY: this asks for the flags of a number, whether or not it is open, and
            // changes nothing.
            if unsafe { libc::fcntl(descriptor, libc::F_GETFD) } == -1 {
                CLOSED.fetch_or(1 << descriptor, Ordering::Relaxed);
            }
        }
    }
}
