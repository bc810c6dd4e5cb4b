//! Where PINs and management keys come from: what `--pin-source` and `--management-key`
//! say, or a person at a terminal.

use std::ffi::OsStr;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Instant;

use claviger_token::pin::Verbatim;
use claviger_token::{Error, PinSource, StoredPin, TokenId, shell};
use secrecy::SecretString;

use crate::failure::Failure;
use crate::files;
use crate::interrupt::Interrupt;
use crate::prompt::{self, NoAnswer};
use crate::screen::Screen;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A token's PIN.
    Pin,
    /// A smartcard's management key, in hexadecimal. Nobody knows theirs by heart: a person
    /// is asked only where that was said.
    ManagementKey,
}

impl Wanted {
    fn option(self) -> &'static str {
        match self {
            Wanted::Pin => "--pin-source",
            Wanted::ManagementKey => "--management-key",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Wanted::Pin => "PIN",
            Wanted::ManagementKey => "management key",
        }
    }
}

/// What the option says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    /// It is not there: a person is asked, if there is one.
    Unsaid,
    /// A person is asked.
    Prompt,
    /// The PIN lies somewhere.
    Stored(StoredPin),
}

impl Choice {
    /// The text is not repeated in the error: it may be a PIN.
    fn parse(wanted: Wanted, text: Option<&OsStr>) -> Result<Self, Failure> {
        let Some(text) = text else {
            return Ok(Choice::Unsaid);
        };
        let choice = match text.to_str() {
            Some("prompt") => Some(Choice::Prompt),
            Some(text) => text.parse().ok().map(Choice::Stored),
            None => None,
        };
        choice.ok_or_else(|| {
            let (option, name) = (wanted.option(), wanted.name());
            Failure::usage(format!("{option} is env:VAR, file:PATH, fd:N or prompt")).hint(format!(
                "a {name} on the command line would be seen by everyone on this machine"
            ))
        })
    }
}

/// Gives PINs to tokens, or to some of them only.
pub(crate) struct Pins {
    wanted: Wanted,
    choice: Choice,
    /// Whether what is stored is taken as it is.
    verbatim: bool,
    /// That others can read the file with the PIN is said once.
    warned: Once,
    /// The only tokens that get one, if set.
    only: Mutex<Option<Vec<TokenId>>>,
    /// When a person is waited for no longer.
    deadline: Option<Instant>,
    screen: Screen,
    interrupt: Arc<Interrupt>,
}

impl Pins {
    pub(crate) fn new(
        wanted: Wanted,
        source: Option<&OsStr>,
        verbatim: bool,
        deadline: Option<Instant>,
        screen: Screen,
        interrupt: Arc<Interrupt>,
    ) -> Result<Arc<Self>, Failure> {
        Ok(Arc::new(Pins {
            wanted,
            choice: Choice::parse(wanted, source)?,
            verbatim,
            warned: Once::new(),
            only: Mutex::default(),
            deadline,
            screen,
            interrupt,
        }))
    }

    /// Whether the same PIN would go to whichever token asks.
    pub(crate) fn is_one_for_all(&self) -> bool {
        matches!(self.choice, Choice::Stored(_))
    }

    /// Says that others can read the file, if they can.
    fn warn_of_readers(&self, source: &StoredPin) {
        #[cfg(unix)]
        if let StoredPin::File(path) = source
            && let Ok(found) = path.metadata()
            && found.is_file()
            && std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o077 != 0
        {
            let path = path.display().to_string();
            crate::output::warn(
                &format!(
                    "other users can read the {} in `{path}`",
                    self.wanted.name()
                ),
                &format!("chmod 600 {}", shell::quoted(&path)),
            );
        }
    }

    /// What it is read from, where that is a file.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        match &self.choice {
            Choice::Stored(StoredPin::File(path)) => Some(path.clone()),
            Choice::Stored(StoredPin::Fd(number)) => Some(format!("/dev/fd/{number}").into()),
            _ => None,
        }
    }

    /// Whether it is read from standard input, and so nothing else can be.
    pub(crate) fn reads_stdin(&self) -> bool {
        match &self.choice {
            Choice::Stored(StoredPin::Fd(0)) => true,
            Choice::Stored(StoredPin::File(path)) => files::is_stdin(Some(path)),
            _ => false,
        }
    }

    /// From now on only these tokens get a PIN; `None` is all. One that was not asked
    /// for by name must not lose a try to another token's PIN.
    pub(crate) fn only_for(&self, tokens: Option<&[TokenId]>) {
        *self.only.lock().unwrap_or_else(PoisonError::into_inner) = tokens.map(<[_]>::to_vec);
    }

    fn may_have(&self, token: &TokenId) -> bool {
        let only = self.only.lock().unwrap_or_else(PoisonError::into_inner);
        only.as_ref().is_none_or(|tokens| tokens.contains(token))
    }

    fn ask(&self, token: &TokenId, label: &str) -> Result<SecretString, Error> {
        let question = format!("{} for {}: ", self.wanted.name(), shown(token, label));
        self.at_terminal(|| prompt::ask(&question, &self.interrupt, self.deadline))
    }

    /// Asks whether to send what was typed, though it is not known what became of the last PIN.
    fn confirm_unsettled(&self, token: &TokenId, label: &str) -> Result<bool, Error> {
        let question = format!(
            "A PIN was sent to {} before, and its answer never came: if it was wrong, it cost an \
             attempt.\nSend this PIN? Type yes to send it: ",
            shown(token, label)
        );
        self.at_terminal(|| prompt::confirm(&question, &self.interrupt, self.deadline))
    }

    /// Whether a person is asked who is there. A script that has a terminal somewhere must
    /// not wait for it for ever.
    fn asks_a_person(&self) -> bool {
        match self.choice {
            Choice::Prompt => true,
            Choice::Unsaid => {
                self.wanted == Wanted::Pin
                    && (io::stdin().is_terminal() || self.screen.is_terminal())
            }
            Choice::Stored(_) => false,
        }
    }

    fn at_terminal<T>(&self, ask: impl FnOnce() -> Result<T, NoAnswer>) -> Result<T, Error> {
        let _phase = self.interrupt.prompting();
        let failed = |reason: String| Error::PinSource {
            origin: "prompt".into(),
            reason,
        };
        self.screen.aside(ask).map_err(|no| match no {
            NoAnswer::Interrupted => Error::Cancelled,
            NoAnswer::TooLate => Error::DeadlineExceeded,
            NoAnswer::Nothing => failed("nothing was typed".into()),
            NoAnswer::Failed(e) => failed(format!("there is no terminal ({e})")),
        })
    }
}

fn shown(token: &TokenId, label: &str) -> String {
    let name = match label {
        "" => token.to_string(),
        label => format!("{label} ({} {})", token.manufacturer, token.serial),
    };
    crate::output::one_line(&name).into_owned()
}

/// The node wants to own its source.
pub(crate) struct Handle(pub(crate) Arc<Pins>);

impl PinSource for Handle {
    fn pin(&self, token: &TokenId, label: &str) -> Result<SecretString, Error> {
        let Handle(pins) = self;
        let needed = || Error::PinNeeded {
            token: token.clone(),
        };
        if !pins.may_have(token) {
            return Err(needed());
        }
        match &pins.choice {
            Choice::Stored(source) => {
                pins.warned.call_once(|| pins.warn_of_readers(source));
                match pins.verbatim {
                    true => Verbatim(source.clone()).pin(token, label),
                    false => source.pin(token, label),
                }
            }
            Choice::Prompt | Choice::Unsaid if pins.asks_a_person() => pins.ask(token, label),
            Choice::Prompt | Choice::Unsaid => Err(needed()),
        }
    }

    fn sends_unsettled(&self, token: &TokenId, label: &str) -> Result<bool, Error> {
        let Handle(pins) = self;
        match pins.asks_a_person() {
            true => pins.confirm_unsettled(token, label),
            false => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart_and_what_is_none_is_not_repeated() {
        let parse = |text: &str| Choice::parse(Wanted::Pin, Some(OsStr::new(text)));
        assert_eq!(Choice::parse(Wanted::Pin, None).unwrap(), Choice::Unsaid);
        assert_eq!(parse("prompt").unwrap(), Choice::Prompt);
        assert_eq!(
            parse("env:PIN").unwrap(),
            Choice::Stored(StoredPin::Env("PIN".into()))
        );
        let failure = parse("tr0mb0ne").unwrap_err();
        assert!(!format!("{failure:?}").contains("tr0mb0ne"));
        assert_eq!(failure.status(), crate::failure::USAGE);
    }

    #[test]
    fn a_token_that_was_not_named_gets_no_pin() {
        let token = |serial: &str| TokenId {
            kind: "k".into(),
            manufacturer: "m".into(),
            serial: serial.into(),
        };
        let screen = Screen::new();
        let interrupt = Interrupt::listen(screen.clone());
        // Always set, and no secret.
        let path = Some(OsStr::new("env:PATH"));
        let pins = Pins::new(Wanted::Pin, path, false, None, screen, interrupt).unwrap();
        let source = Handle(Arc::clone(&pins));
        assert!(source.pin(&token("1"), "").is_ok());
        pins.only_for(Some(&[token("2")]));
        assert!(matches!(
            source.pin(&token("1"), ""),
            Err(Error::PinNeeded { .. })
        ));
        assert!(source.pin(&token("2"), "").is_ok());
    }
}
