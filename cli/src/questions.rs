//! What a question to a person leaves behind if the process ends meanwhile: a silent terminal,
//! a program with a window.

use std::fs::File;

use rustix::process::{Pid, Signal, getpgrp, kill_process};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetpgrp, tcsetattr};

/// A terminal without echo, and its modes before.
pub(crate) struct Silenced {
    tty: File,
    before: Termios,
}

impl Silenced {
    /// `tty` as it was `before`.
    pub(crate) fn new(tty: File, before: Termios) -> Self {
        Silenced { tty, before }
    }

    /// Turns echo on again.
    pub(crate) fn show(&self) {
        // Who is in the background would be stopped for it; then the shell, which has
        // the terminal, has put it right.
        if tcgetpgrp(&self.tty).is_ok_and(|group| group == getpgrp()) {
            let _ = tcsetattr(&self.tty, OptionalActions::Now, &self.before);
        }
    }

    /// Whether it echoed before.
    pub(crate) fn showed(&self) -> bool {
        self.before.local_modes.contains(LocalModes::ECHO)
    }
}

/// The programs that a thread started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Started {
    thread: Pid,
}

impl Started {
    /// By this thread.
    pub(crate) fn by(thread: Pid) -> Self {
        Started { thread }
    }

    /// Ends them, if the system lists them: their windows would stay.
    pub(crate) fn end(self) {
        let list = format!("/proc/self/task/{}/children", self.thread.as_raw_nonzero());
        let started = std::fs::read_to_string(list).unwrap_or_default();
        for program in started.split_whitespace() {
            if let Some(program) = program.parse().ok().and_then(Pid::from_raw) {
                let _ = kill_process(program, Signal::TERM);
            }
        }
    }
}
