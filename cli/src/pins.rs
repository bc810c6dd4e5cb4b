//! Sources of PINs and management keys: `--pin-source`, `--management-key`, or a prompt.

use std::ffi::OsStr;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::{Arc, Once};
use std::time::Instant;

use claviger_token::pin::Verbatim;
use claviger_token::{Call, Error, Pin, PinSource, StoredPin, TokenId, TriesLeft, shell};

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::paths::is_stdin;
#[cfg(unix)]
use crate::pinentry;
use crate::prompt::{self, NoAnswer};
use crate::screen::Screen;

/// The kind of secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SecretKind {
    /// A token's PIN.
    Pin,
    /// A smartcard's management key, in hexadecimal. Nobody knows it by heart, so a person is
    /// prompted only on request.
    ManagementKey,
}

impl SecretKind {
    fn option(self) -> &'static str {
        match self {
            SecretKind::Pin => "--pin-source",
            SecretKind::ManagementKey => "--management-key",
        }
    }

    fn name(self) -> &'static str {
        match self {
            SecretKind::Pin => "PIN",
            SecretKind::ManagementKey => "management key",
        }
    }
}

/// The value of the option.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    /// Absent: a person is prompted, if there is one.
    Unsaid,
    /// A prompt at the terminal.
    Prompt,
    /// A prompt by a `pinentry`.
    #[cfg(unix)]
    Pinentry,
    /// A stored PIN.
    Stored(StoredPin),
}

impl Choice {
    /// The error does not quote the text, since it may be a PIN.
    fn parse(kind: SecretKind, text: Option<&OsStr>) -> Result<Self, Failure> {
        let Some(text) = text else {
            return Ok(Choice::Unsaid);
        };
        let choice = match text.to_str() {
            Some("prompt") => Some(Choice::Prompt),
            #[cfg(unix)]
            Some("pinentry") => Some(Choice::Pinentry),
            Some(text) => text.parse().ok().map(Choice::Stored),
            None => None,
        };
        choice.ok_or_else(|| {
            let (option, name) = (kind.option(), kind.name());
            Failure::usage(format!(
                "{option} is env:VAR, file:PATH, fd:N, prompt or pinentry"
            ))
            .hint(format!(
                "a {name} on the command line would be seen by everyone on this machine"
            ))
        })
    }
}

/// Whether the text names a PIN source.
pub(crate) fn is_source(text: &str) -> bool {
    Choice::parse(SecretKind::Pin, Some(OsStr::new(text))).is_ok()
}

/// Gives PINs to tokens.
pub(crate) struct Pins {
    kind: SecretKind,
    choice: Choice,
    /// Whether the stored content is used unchanged.
    verbatim: bool,
    /// Warns only once that others can read the PIN file.
    warned: Once,
    /// When a prompt ends.
    deadline: Option<Instant>,
    screen: Screen,
    interrupt: Arc<Interrupt>,
}

impl Pins {
    pub(crate) fn new(
        kind: SecretKind,
        source: Option<&OsStr>,
        verbatim: bool,
        deadline: Option<Instant>,
        screen: Screen,
        interrupt: Arc<Interrupt>,
    ) -> Result<Arc<Self>, Failure> {
        Ok(Arc::new(Pins {
            kind,
            choice: Choice::parse(kind, source)?,
            verbatim,
            warned: Once::new(),
            deadline,
            screen,
            interrupt,
        }))
    }

    /// Warns if others can read the file.
    fn warn_of_readers(&self, source: &StoredPin) {
        #[cfg(unix)]
        if let StoredPin::File(path) = source
            && let Ok(found) = path.metadata()
            && found.is_file()
            && std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o077 != 0
        {
            let path = path.display().to_string();
            crate::output::warn(
                &format!("other users can read the {} in `{path}`", self.kind.name()),
                &format!("chmod 600 {}", shell::quoted(&path)),
            );
        }
    }

    /// The file that it is read from, if any.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        match &self.choice {
            Choice::Stored(StoredPin::File(path)) => Some(path.clone()),
            Choice::Stored(StoredPin::Fd(number)) => Some(format!("/dev/fd/{number}").into()),
            _ => None,
        }
    }

    /// Whether nobody is asked for it: it is read from somewhere.
    pub(crate) fn asks_nobody(&self) -> bool {
        matches!(self.choice, Choice::Stored(_))
    }

    /// Whether it is read from standard input, so that nothing else can be.
    pub(crate) fn reads_stdin(&self) -> bool {
        match &self.choice {
            Choice::Stored(StoredPin::Fd(0)) => true,
            Choice::Stored(StoredPin::File(path)) => is_stdin(Some(path)),
            _ => false,
        }
    }

    /// Prompts a person.
    fn ask(
        &self,
        by: Asker,
        token: &TokenId,
        label: &str,
        tries: TriesLeft,
        call: &Call,
    ) -> Result<Pin, Error> {
        let deadline = self.deadline(call);
        let (name, token) = (self.kind.name(), shown(token, label));
        match by {
            Asker::Terminal => {
                let tries = left(tries)
                    .map(|left| format!(" ({left})"))
                    .unwrap_or_default();
                let question = format!("{name} for {token}{tries}: ");
                self.at_terminal(|| prompt::ask(&question, &self.interrupt, deadline))
            }
            #[cfg(unix)]
            Asker::Pinentry => {
                let tries = left(tries)
                    .map(|left| format!("\n{left}"))
                    .unwrap_or_default();
                let description = format!("Enter the {name} for {token}.{tries}");
                let prompt = match self.kind {
                    SecretKind::Pin => "PIN:",
                    SecretKind::ManagementKey => "Key:",
                };
                self.by_pinentry(|| pinentry::ask(prompt, &description, &self.interrupt, deadline))
            }
        }
    }

    /// Asks whether to send the typed PIN although the outcome of the last one is unknown.
    fn confirm_unsettled(
        &self,
        by: Asker,
        token: &TokenId,
        label: &str,
        call: &Call,
    ) -> Result<bool, Error> {
        let deadline = self.deadline(call);
        let question = format!(
            "A PIN was sent to {} before, and its answer never came: if it was wrong, it cost an \
             attempt.\nSend this PIN?",
            shown(token, label)
        );
        match by {
            Asker::Terminal => {
                let question = format!("{question} Type yes to send it: ");
                self.at_terminal(|| prompt::confirm(&question, &self.interrupt, deadline))
            }
            #[cfg(unix)]
            Asker::Pinentry => {
                let asked = (&*question, "Send it");
                let is_wanted = || true;
                self.by_pinentry(|| pinentry::confirm(asked, &self.interrupt, deadline, is_wanted))
            }
        }
    }

    /// When a prompt on behalf of `call` ends.
    fn deadline(&self, call: &Call) -> Option<Instant> {
        self.deadline.into_iter().chain(call.deadline()).min()
    }

    /// How to prompt a person, if there is one. A script that has a terminal must not wait for it
    /// forever.
    fn asker(&self) -> Option<Asker> {
        match self.choice {
            Choice::Prompt => Some(Asker::Terminal),
            #[cfg(unix)]
            Choice::Pinentry => Some(Asker::Pinentry),
            Choice::Unsaid if self.kind != SecretKind::Pin => None,
            Choice::Unsaid if io::stdin().is_terminal() || self.screen.is_terminal() => {
                Some(Asker::Terminal)
            }
            #[cfg(unix)]
            Choice::Unsaid if pinentry::is_at_hand(self.deadline) => Some(Asker::Pinentry),
            Choice::Unsaid | Choice::Stored(_) => None,
        }
    }

    fn at_terminal<T>(&self, ask: impl FnOnce() -> Result<T, NoAnswer>) -> Result<T, Error> {
        let _phase = self.interrupt.prompting();
        self.screen.aside(ask).map_err(|no| match no {
            NoAnswer::Interrupted => Error::Cancelled,
            NoAnswer::TooLate => Error::DeadlineExceeded,
            NoAnswer::Nothing => failed("prompt", "nothing was typed".into()),
            NoAnswer::NoText => failed(
                "prompt",
                "what was typed has a control character, as arrow keys make; it was not sent"
                    .into(),
            ),
            NoAnswer::Failed(e) => failed("prompt", format!("there is no terminal ({e})")),
        })
    }

    #[cfg(unix)]
    fn by_pinentry<T>(
        &self,
        ask: impl FnOnce() -> Result<T, pinentry::NoAnswer>,
    ) -> Result<T, Error> {
        let _phase = self.interrupt.prompting();
        // It may have the terminal for its screen.
        self.screen.aside(ask).map_err(|no| match no {
            pinentry::NoAnswer::Interrupted => Error::Cancelled,
            pinentry::NoAnswer::TooLate => Error::DeadlineExceeded,
            pinentry::NoAnswer::None(reason) => failed("pinentry", reason),
        })
    }
}

/// A way to prompt a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    Terminal,
    #[cfg(unix)]
    Pinentry,
}

fn failed(origin: &str, reason: String) -> Error {
    Error::PinSource {
        origin: origin.into(),
        reason,
    }
}

/// The remaining attempts, in words.
fn left(tries: TriesLeft) -> Option<String> {
    match tries {
        TriesLeft::Exactly(1) | TriesLeft::Final => Some("last attempt".into()),
        TriesLeft::Exactly(left) => Some(format!("{left} attempts remaining")),
        TriesLeft::Low => Some("few attempts remaining".into()),
        TriesLeft::All | TriesLeft::Unknown => None,
    }
}

fn shown(token: &TokenId, label: &str) -> String {
    let name = match label {
        "" => token.to_string(),
        label => format!("{label} ({} {})", token.manufacturer, token.serial),
    };
    crate::output::one_line(&name).into_owned()
}

/// The node owns its source, so this shares it.
pub(crate) struct SharedPins(pub(crate) Arc<Pins>);

impl PinSource for SharedPins {
    fn pin(&self, token: &TokenId, label: &str, call: &Call) -> Result<Pin, Error> {
        self.pin_with_tries(token, label, TriesLeft::Unknown, call)
    }

    fn pin_with_tries(
        &self,
        token: &TokenId,
        label: &str,
        tries: TriesLeft,
        call: &Call,
    ) -> Result<Pin, Error> {
        let SharedPins(pins) = self;
        if let Choice::Stored(source) = &pins.choice {
            pins.warned.call_once(|| pins.warn_of_readers(source));
            let _phase = pins.interrupt.reading();
            return match pins.verbatim {
                true => Verbatim(source.clone()).pin(token, label, call),
                false => source.pin(token, label, call),
            };
        }
        match pins.asker() {
            Some(by) => pins.ask(by, token, label, tries, call),
            None => Err(Error::PinNeeded {
                token: token.clone(),
            }),
        }
    }

    fn sends_unsettled(&self, token: &TokenId, label: &str, call: &Call) -> Result<bool, Error> {
        let SharedPins(pins) = self;
        match pins.asker() {
            Some(by) => pins.confirm_unsettled(by, token, label, call),
            None => Ok(false),
        }
    }

    fn is_one_for_all(&self) -> bool {
        matches!(self.0.choice, Choice::Stored(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart_and_what_is_none_is_not_repeated() {
        let parse = |text: &str| Choice::parse(SecretKind::Pin, Some(OsStr::new(text)));
        assert_eq!(
            Choice::parse(SecretKind::Pin, None).unwrap(),
            Choice::Unsaid
        );
        assert_eq!(parse("prompt").unwrap(), Choice::Prompt);
        assert_eq!(
            parse("env:PIN").unwrap(),
            Choice::Stored(StoredPin::Env("PIN".into()))
        );
        let failure = parse("tr0mb0ne").unwrap_err();
        assert!(!format!("{failure:?}").contains("tr0mb0ne"));
        assert_eq!(failure.status(), crate::failure::USAGE);
    }
}
