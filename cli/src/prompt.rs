//! Prompts for a secret on the terminal.

use std::io;
use std::time::Instant;

use claviger_token::Pin;
use secrecy::ExposeSecret;

use crate::interrupt::Interrupt;

/// Why there is no answer.
pub(crate) enum NoAnswer {
    /// A signal arrived.
    Interrupted,
    /// The time is over.
    TooLate,
    /// Nothing was typed before the end of the input.
    Nothing,
    /// Keys were pressed that type no text.
    NoText,
    /// There is no terminal, or it does not work.
    Failed(io::Error),
}

impl From<io::Error> for NoAnswer {
    fn from(error: io::Error) -> Self {
        NoAnswer::Failed(error)
    }
}

/// Prompts at the terminal of this process without echo. Input that was typed before the prompt is
/// discarded.
#[cfg(unix)]
pub(crate) fn ask(
    question: &str,
    interrupt: &Interrupt,
    deadline: Option<Instant>,
) -> Result<Pin, NoAnswer> {
    let typed = unix::answer(question, unix::Typing::Hidden, interrupt, deadline)?;
    match typed.expose_secret().contains(char::is_control) {
        true => Err(NoAnswer::NoText),
        false => Ok(typed),
    }
}

/// Asks a yes-or-no question at the terminal of this process. Only `yes` counts, and only if it was
/// typed after the question.
#[cfg(unix)]
pub(crate) fn confirm(
    question: &str,
    interrupt: &Interrupt,
    deadline: Option<Instant>,
) -> Result<bool, NoAnswer> {
    let answer = unix::answer(question, unix::Typing::Shown, interrupt, deadline);
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

fn is_yes(answer: &Pin) -> bool {
    answer.expose_secret().trim() == "yes"
}

#[cfg(not(unix))]
pub(crate) fn ask(
    question: &str,
    interrupt: &Interrupt,
    _deadline: Option<Instant>,
) -> Result<Pin, NoAnswer> {
    match rpassword::prompt_password(question) {
        Ok(text) if text.contains(char::is_control) => Err(NoAnswer::NoText),
        Ok(text) => Ok(Pin::from(text)),
        Err(_) if interrupt.came() => Err(NoAnswer::Interrupted),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(NoAnswer::Nothing),
        Err(e) => Err(e.into()),
    }
}

#[cfg(unix)]
mod unix {
    use std::fs::File;
    use std::io::{self, Read, Write};
    use std::time::{Duration, Instant};

    use claviger_token::Pin;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::termios::{
        InputModes, LocalModes, OptionalActions, QueueSelector, tcflush, tcgetattr, tcsetattr,
    };
    use zeroize::Zeroizing;

    use super::NoAnswer;
    use crate::interrupt::{AHEAD, Interrupt};
    use crate::questions::Silenced;

    /// The interval at which signals are checked.
    const LOOK: Duration = Duration::from_millis(50);

    /// More than a terminal accepts on one line.
    const LONGEST_LINE: usize = 1 << 13;

    /// Whether the terminal echoes.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub(super) enum Typing {
        Shown,
        Hidden,
    }

    /// The line that is typed after the prompt, without its end.
    pub(super) fn answer(
        question: &str,
        typing: Typing,
        interrupt: &Interrupt,
        deadline: Option<Instant>,
    ) -> Result<Pin, NoAnswer> {
        let tty = File::options().read(true).write(true).open("/dev/tty")?;
        let _silence = (typing == Typing::Hidden).then_some(Silence(interrupt));
        let put = || {
            come_to_the_foreground(&tty)?;
            // From now on: what stopped the process before stopped no question.
            interrupt.take_went_on();
            if typing == Typing::Hidden {
                silence(&tty, interrupt)?;
            }
            (&tty).write_all(question.as_bytes())
        };
        let answer = line(&tty, put, interrupt, deadline);
        if answer.is_err() {
            // What is said next begins on a line of its own.
            let _ = (&tty).write_all(b"\n");
        }
        answer
    }

    /// When it is dropped, the terminal echoes again.
    struct Silence<'a>(&'a Interrupt);

    impl Drop for Silence<'_> {
        fn drop(&mut self) {
            self.0.restore_terminal();
        }
    }

    /// Discards input that was typed already. A background process is stopped for that until it is
    /// in the foreground; until then the terminal is as its shell left it.
    fn come_to_the_foreground(tty: &File) -> io::Result<()> {
        again(|| tcflush(tty, QueueSelector::IFlush))
    }

    /// Turns echo off and discards input that was typed already. The terminal is set to whole
    /// lines, which Enter ends, and to Ctrl-C, whatever its modes were.
    fn silence(tty: &File, interrupt: &Interrupt) -> io::Result<()> {
        let before = tcgetattr(tty)?;
        let mut silent = before.clone();
        let lines = LocalModes::ICANON | LocalModes::ISIG | LocalModes::ECHONL;
        silent.local_modes.remove(LocalModes::ECHO);
        silent.local_modes.insert(lines);
        (silent.input_modes).remove(InputModes::IGNCR | InputModes::INLCR);
        silent.input_modes.insert(InputModes::ICRNL);
        interrupt.remember_terminal(Silenced::new(tty.try_clone()?, before));
        again(|| tcsetattr(tty, OptionalActions::Flush, &silent))
    }

    /// Repeats it if the process was stopped in the background and continued.
    fn again(change: impl Fn() -> rustix::io::Result<()>) -> io::Result<()> {
        loop {
            match change() {
                Err(rustix::io::Errno::INTR) => {}
                done => return Ok(done?),
            }
        }
    }

    /// Prompts, again if the process was stopped and continued; then reads a line, without its end.
    fn line(
        mut tty: &File,
        put: impl Fn() -> io::Result<()>,
        interrupt: &Interrupt,
        deadline: Option<Instant>,
    ) -> Result<Pin, NoAnswer> {
        // It does not grow: that would leave copies of it behind.
        let mut typed = Zeroizing::new(vec![0; LONGEST_LINE]);
        let mut length = 0;
        // What nobody waits for any longer is not asked.
        left(interrupt, deadline)?;
        put()?;
        while length < typed.len() {
            if let Event::WentOn = wait(tty, interrupt, deadline)? {
                typed.fill(0);
                length = 0;
                put()?;
                continue;
            }
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
                return Ok(Pin::from(text));
            }
        }
        Err(NoAnswer::Nothing)
    }

    enum Event {
        Typed,
        WentOn,
    }

    /// Waits until there is input, or the process was stopped and continued.
    fn wait(
        tty: &File,
        interrupt: &Interrupt,
        deadline: Option<Instant>,
    ) -> Result<Event, NoAnswer> {
        loop {
            let left = left(interrupt, deadline)?;
            if interrupt.take_went_on() {
                return Ok(Event::WentOn);
            }
            let look = Timespec::try_from(left.min(LOOK)).ok();
            // A system that cannot wait for a terminal says so, and then reading waits.
            match poll(&mut [PollFd::new(tty, PollFlags::IN)], look.as_ref()) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                _ => return Ok(Event::Typed),
            }
        }
    }

    /// The time left to answer.
    fn left(interrupt: &Interrupt, deadline: Option<Instant>) -> Result<Duration, NoAnswer> {
        if interrupt.came() {
            return Err(NoAnswer::Interrupted);
        }
        let left = deadline.map_or(Duration::MAX, |deadline| {
            (deadline.saturating_duration_since(Instant::now())).saturating_sub(AHEAD)
        });
        match left.is_zero() {
            true => Err(NoAnswer::TooLate),
            false => Ok(left),
        }
    }
}
