//! Prompts through a pinentry, a program with its own window or screen.
//!
//! The crate starts the program and waits without a limit. So it runs on a thread of its own, and
//! the program is ended on a signal or when the time is over.

use std::env;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use claviger_token::Pin;
use pinentry::unix::Options;
use pinentry::{ConfirmationDialog, PassphraseInput};
use rustix::thread::gettid;
use secrecy::ExposeSecret;

use crate::interrupt::{AHEAD, Interrupt};
use crate::questions::Started;

/// The interval at which signals are checked.
const LOOK: Duration = Duration::from_millis(50);

/// The crate accepts no longer lines, and each byte may become three.
const LONGEST_TEXT: usize = 320;

/// Why there is no answer.
pub(crate) enum NoAnswer {
    /// A signal arrived.
    Interrupted,
    /// The time is over.
    TooLate,
    /// It failed; the text of an error.
    None(String),
}

/// Whether a pinentry may start without being asked for: there is a graphical screen, and the
/// prompt has a time limit. Neither holds for cron and CI.
pub(crate) fn is_at_hand(deadline: Option<Instant>) -> bool {
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    deadline.is_some()
        && (is_set("DISPLAY") || is_set("WAYLAND_DISPLAY"))
        && PassphraseInput::with_default_binary().is_some()
}

/// Asks for a secret.
pub(crate) fn ask(
    prompt: &'static str,
    description: &str,
    interrupt: &Interrupt,
    deadline: Option<Instant>,
) -> Result<Pin, NoAnswer> {
    let description = shortened(description);
    let until = Until {
        deadline,
        is_wanted: &|| true,
    };
    let answer = apart(interrupt, &until, move |surroundings| {
        let mut input = PassphraseInput::with_default_binary()?;
        input.with_title("Claviger").with_prompt(prompt);
        input.with_description(&description);
        if let Some(seconds) = surroundings.seconds {
            input.with_timeout(seconds);
        }
        input.with_unix_options(surroundings.options());
        Some(
            input
                .interact()
                .map(|secret| Pin::from(secret.expose_secret())),
        )
    })?;
    match answer.expose_secret() {
        "" => Err(NoAnswer::None("nothing was typed".into())),
        _ => Ok(answer),
    }
}

/// Asks a yes-or-no question, whose answers are `ok` and to cancel, for as long as `is_wanted`.
pub(crate) fn confirm(
    (question, ok): (&str, &'static str),
    interrupt: &Interrupt,
    deadline: Option<Instant>,
    is_wanted: impl Fn() -> bool,
) -> Result<bool, NoAnswer> {
    let question = shortened(question);
    let until = Until {
        deadline,
        is_wanted: &is_wanted,
    };
    apart(interrupt, &until, move |surroundings| {
        let mut dialog = ConfirmationDialog::with_default_binary()?;
        dialog
            .with_title("Claviger")
            .with_ok(ok)
            .with_cancel("Cancel");
        if let Some(seconds) = surroundings.seconds {
            dialog.with_timeout(seconds);
        }
        dialog.with_unix_options(surroundings.options());
        Some(dialog.confirm(&question))
    })
}

/// How long an answer is waited for.
struct Until<'a> {
    deadline: Option<Instant>,
    is_wanted: &'a dyn Fn() -> bool,
}

impl Until<'_> {
    fn is_over(&self) -> bool {
        let is_late = |deadline| Instant::now() + AHEAD >= deadline;
        self.deadline.is_some_and(is_late) || !(self.is_wanted)()
    }
}

/// The environment of the program.
struct Surroundings {
    /// Its time limit.
    seconds: Option<u16>,
    tty: Option<String>,
    tty_type: Option<String>,
}

impl Surroundings {
    fn new(deadline: Option<Instant>) -> Self {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // Nothing is no limit.
        let seconds = left.map(|left| u16::try_from(left.as_secs() + 1).unwrap_or(u16::MAX));
        let short = |name| {
            env::var(name)
                .ok()
                .filter(|value| value.len() <= LONGEST_TEXT)
        };
        Surroundings {
            seconds,
            tty: short("GPG_TTY").filter(|tty| !tty.is_empty()),
            tty_type: short("TERM"),
        }
    }

    fn options(&self) -> Options<'_> {
        let mut options = Options::builder();
        if let Some(tty) = &self.tty {
            options = options.tty_name(tty);
        }
        options
            .tty_type(self.tty_type.as_deref().unwrap_or("dumb"))
            .build()
    }
}

/// Runs a `pinentry` on a thread of its own, and ends it when nobody waits any longer.
fn apart<T: Send + 'static>(
    interrupt: &Interrupt,
    until: &Until<'_>,
    work: impl FnOnce(&Surroundings) -> Option<pinentry::Result<T>> + Send + 'static,
) -> Result<T, NoAnswer> {
    let surroundings = Surroundings::new(until.deadline);
    let ((begins, began), (answers, answered)) = (channel(), channel());
    std::thread::spawn(move || {
        let _ = begins.send(gettid());
        // Nobody may be listening any more.
        let _ = answers.send(work(&surroundings));
    });
    let started = began.recv().ok().map(Started::by);
    let _remembered = started.map(|started| Remembered::new(interrupt, started));
    let gives_up = |no| {
        if let Some(started) = started {
            started.end();
        }
        Err(no)
    };
    loop {
        match answered.recv_timeout(LOOK) {
            Ok(Some(Ok(answer))) => return Ok(answer),
            Ok(Some(Err(error))) => return Err(no_answer(&error)),
            Ok(None) => {
                return Err(NoAnswer::None("there is no program `pinentry`".into()));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(NoAnswer::None("it could not be spoken to".into()));
            }
            Err(RecvTimeoutError::Timeout) if interrupt.came() => {
                return gives_up(NoAnswer::Interrupted);
            }
            Err(RecvTimeoutError::Timeout) if until.is_over() => {
                return gives_up(NoAnswer::TooLate);
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// While it lives, the started program does not outlive the process.
struct Remembered<'a> {
    interrupt: &'a Interrupt,
    started: Started,
}

impl<'a> Remembered<'a> {
    fn new(interrupt: &'a Interrupt, started: Started) -> Self {
        interrupt.remember_pinentry(started);
        Remembered { interrupt, started }
    }
}

impl Drop for Remembered<'_> {
    fn drop(&mut self) {
        self.interrupt.forget_pinentry(self.started);
    }
}

/// What went wrong. An error of the conversation quotes it, and so perhaps a PIN.
fn no_answer(error: &pinentry::Error) -> NoAnswer {
    match error {
        pinentry::Error::Timeout => NoAnswer::TooLate,
        pinentry::Error::Cancelled => NoAnswer::None("it was cancelled".into()),
        pinentry::Error::Gpg(error) => NoAnswer::None(error.to_string()),
        pinentry::Error::Io(error) => NoAnswer::None(error.kind().to_string()),
        pinentry::Error::Encoding(_) => NoAnswer::None("what was typed is not UTF-8".into()),
    }
}

fn shortened(text: &str) -> String {
    let mut end = text.len().min(LONGEST_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
