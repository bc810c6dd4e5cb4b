//! Asking a person for a secret at the terminal.

use std::io;
use std::time::Instant;

use secrecy::{ExposeSecret, SecretString};

use crate::interrupt::Interrupt;

/// Why there is no answer.
pub(crate) enum NoAnswer {
    /// A signal came.
    Interrupted,
    /// The time is over.
    TooLate,
    /// Nothing was typed before the end of the input.
    Nothing,
    /// There is no terminal, or it does not work.
    Failed(io::Error),
}

impl From<io::Error> for NoAnswer {
    fn from(error: io::Error) -> Self {
        NoAnswer::Failed(error)
    }
}

/// Asks at the terminal of this process, and does not show what is typed.
#[cfg(unix)]
pub(crate) fn ask(
    question: &str,
    interrupt: &Interrupt,
    deadline: Option<Instant>,
) -> Result<SecretString, NoAnswer> {
    use std::io::Write;
    let tty = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/tty")?;
    let _silence = Silence::keep(&tty, interrupt)?;
    (&tty).write_all(question.as_bytes())?;
    let answer = unix::line(&tty, interrupt, deadline);
    if answer.is_err() {
        // What is said next begins on a line of its own.
        let _ = (&tty).write_all(b"\n");
    }
    answer
}

/// Asks a yes-or-no question at the terminal of this process. Only `yes` is a yes.
#[cfg(unix)]
pub(crate) fn confirm(
    question: &str,
    interrupt: &Interrupt,
    deadline: Option<Instant>,
) -> Result<bool, NoAnswer> {
    use std::io::Write;
    let tty = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/tty")?;
    (&tty).write_all(question.as_bytes())?;
    let answer = unix::line(&tty, interrupt, deadline);
    if answer.is_err() {
        let _ = (&tty).write_all(b"\n");
    }
    answer.map(|answer| is_yes(&answer))
}

#[cfg(not(unix))]
pub(crate) fn confirm(
    question: &str,
    interrupt: &Interrupt,
    deadline: Option<Instant>,
) -> Result<bool, NoAnswer> {
    ask(question, interrupt, deadline).map(|answer| is_yes(&answer))
}

fn is_yes(answer: &SecretString) -> bool {
    answer.expose_secret().trim() == "yes"
}

#[cfg(not(unix))]
pub(crate) fn ask(
    question: &str,
    interrupt: &Interrupt,
    _deadline: Option<Instant>,
) -> Result<SecretString, NoAnswer> {
    match rpassword::prompt_password(question) {
        Ok(text) => Ok(SecretString::from(text)),
        Err(_) if interrupt.came() => Err(NoAnswer::Interrupted),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(NoAnswer::Nothing),
        Err(e) => Err(e.into()),
    }
}

#[cfg(unix)]
use unix::Silence;
#[cfg(unix)]
pub(crate) use unix::Silenced;

#[cfg(unix)]
mod unix {
    use std::fs::File;
    use std::io::{self, Read};
    use std::time::{Duration, Instant};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::getpgrp;
    use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};
    use secrecy::SecretString;
    use zeroize::Zeroizing;

    use super::NoAnswer;
    use crate::interrupt::Interrupt;

    /// How often it is looked whether a signal came.
    const LOOK: Duration = Duration::from_millis(50);

    /// More than terminals take on one line.
    const LONGEST_LINE: usize = 1 << 13;

    /// A terminal that does not show what is typed, and how it was before.
    pub(crate) struct Silenced {
        tty: File,
        before: Termios,
    }

    impl Silenced {
        pub(crate) fn restore(self) {
            // Who is in the background would be stopped for it; then the shell, which has
            // the terminal, has put it right.
            if tcgetpgrp(&self.tty).is_ok_and(|group| group == getpgrp()) {
                let _ = tcsetattr(&self.tty, OptionalActions::Now, &self.before);
            }
        }
    }

    /// As long as it lives, the terminal does not show what is typed.
    pub(super) struct Silence<'a>(&'a Interrupt);

    impl<'a> Silence<'a> {
        pub(super) fn keep(tty: &File, interrupt: &'a Interrupt) -> io::Result<Self> {
            let before = tcgetattr(tty)?;
            let mut silent = before.clone();
            silent.local_modes.remove(LocalModes::ECHO);
            silent.local_modes.insert(LocalModes::ECHONL);
            interrupt.remember_terminal(Silenced {
                tty: tty.try_clone()?,
                before,
            });
            let silence = Silence(interrupt);
            tcsetattr(tty, OptionalActions::Now, &silent)?;
            Ok(silence)
        }
    }

    impl Drop for Silence<'_> {
        fn drop(&mut self) {
            self.0.restore_terminal();
        }
    }

    /// A line, without its end.
    pub(super) fn line(
        mut tty: &File,
        interrupt: &Interrupt,
        deadline: Option<Instant>,
    ) -> Result<SecretString, NoAnswer> {
        // It does not grow: that would leave copies of it behind.
        let mut typed = Zeroizing::new(vec![0; LONGEST_LINE]);
        let mut length = 0;
        while length < typed.len() {
            wait(tty, interrupt, deadline)?;
            match tty.read(&mut typed[length..]) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if interrupt.came() => return Err(NoAnswer::Interrupted),
                Err(e) => return Err(e.into()),
            }
            if typed[..length].ends_with(b"\n") {
                let text = std::str::from_utf8(&typed[..length - 1])
                    .map_err(|_| io::Error::other("what was typed is not UTF-8"))?;
                return Ok(SecretString::from(text));
            }
        }
        Err(NoAnswer::Nothing)
    }

    /// Waits until something was typed.
    fn wait(tty: &File, interrupt: &Interrupt, deadline: Option<Instant>) -> Result<(), NoAnswer> {
        loop {
            if interrupt.came() {
                return Err(NoAnswer::Interrupted);
            }
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(NoAnswer::TooLate);
            }
            let look = left.unwrap_or(LOOK).min(LOOK);
            let look = Timespec::try_from(look).ok();
            // A system that cannot wait for a terminal says so, and then reading waits.
            match poll(&mut [PollFd::new(tty, PollFlags::IN)], look.as_ref()) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                _ => return Ok(()),
            }
        }
    }
}
