//! PINs and their sources.
//!
//! A [`Pin`] is wiped when dropped and prints as `[REDACTED]`. A source is asked when a token needs
//! a PIN, and the PIN is sent only to that token.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::OnceLock;

use secrecy::ExposeSecret;
use zeroize::{Zeroize, Zeroizing};

use crate::{Call, Error, Pin, PinVerdict, TokenId, TriesLeft};

/// Gives the PIN of a token.
pub trait PinSource: Send + Sync {
    /// The PIN for `token`, whose label is `label`.
    ///
    /// A source that waits for a person returns by the deadline of `call`, and soon after the call
    /// is cancelled.
    ///
    /// # Errors
    /// [`Error::PinNeeded`] if the source has none, [`Error::PinSource`] if it failed,
    /// [`Error::DeadlineExceeded`], [`Error::Cancelled`]. The caller asks again only after a person
    /// has changed something.
    fn pin(&self, token: &TokenId, label: &str, call: &Call) -> Result<Pin, Error>;

    /// [`PinSource::pin`] for a token that reports its remaining attempts. A source that prompts a
    /// person shows them.
    ///
    /// # Errors
    /// As [`PinSource::pin`].
    fn pin_with_tries(
        &self,
        token: &TokenId,
        label: &str,
        tries: TriesLeft,
        call: &Call,
    ) -> Result<Pin, Error> {
        let _ = tries;
        self.pin(token, label, call)
    }

    /// [`PinSource::pin_with_tries`] without waiting for a person; `None` if one has to be asked.
    /// For callers that hold a resource which others may need: they release it first, and then ask.
    ///
    /// By default it returns what [`PinSource::pin_with_tries`] returns, which is right for a source
    /// that never waits.
    ///
    /// # Errors
    /// As [`PinSource::pin`].
    fn pin_at_once(
        &self,
        token: &TokenId,
        label: &str,
        tries: TriesLeft,
        call: &Call,
    ) -> Result<Option<Pin>, Error> {
        self.pin_with_tries(token, label, tries, call).map(Some)
    }

    /// Whether to send the PIN that was just given for `token`, although the outcome of the last
    /// one is unknown. If that one was wrong, it cost an attempt, and this may be the same PIN.
    ///
    /// Only a person can decide this. A source into which a person types asks there, once; every
    /// other source returns false.
    ///
    /// # Errors
    /// As [`PinSource::pin`].
    fn sends_unsettled(&self, token: &TokenId, label: &str, call: &Call) -> Result<bool, Error> {
        let (_, _, _) = (token, label, call);
        Ok(false)
    }

    /// Whether the source gives the same PIN for every token. Such a PIN belongs to one unknown
    /// token, so if several tokens could be meant, it is sent to none.
    ///
    /// A source that knows which token asks, as a person does, returns false.
    fn is_one_for_all(&self) -> bool {
        true
    }

    /// Whether a PIN of this source may be compared with the one that a token accepted, where the
    /// token is open by somebody else's PIN. Who gives the same PIN may use the login; the token is
    /// not asked, and no attempt is spent.
    ///
    /// A comparison tells whether a guess is right. So a source that returns true limits how often
    /// it gives a wrong PIN, by what [`PinSource::compared`] is told. By default false.
    fn may_be_compared(&self) -> bool {
        false
    }

    /// The PIN that was given for `token` was compared with the one that it accepted: whether it is
    /// the same.
    fn compared(&self, token: &TokenId, is_same: bool) {
        let (_, _) = (token, is_same);
    }

    /// The PIN that was given for `token` was sent to it: what it answered. The token is named as
    /// for [`PinSource::pin`].
    fn answered(&self, token: &TokenId, verdict: PinVerdict) {
        let (_, _) = (token, verdict);
    }
}

/// A source without a PIN.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPin;

impl PinSource for NoPin {
    fn pin(&self, token: &TokenId, _label: &str, _: &Call) -> Result<Pin, Error> {
        Err(Error::PinNeeded {
            token: token.clone(),
        })
    }

    fn is_one_for_all(&self) -> bool {
        false
    }
}

/// The same PIN for every token, for tests and for programs that already have it.
#[derive(Clone)]
pub struct FixedPin(Pin);

impl FixedPin {
    /// A source of `pin`.
    pub fn new(pin: impl Into<String>) -> Self {
        FixedPin(Pin::from(pin.into()))
    }
}

impl fmt::Debug for FixedPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FixedPin([REDACTED])")
    }
}

impl PinSource for FixedPin {
    fn pin(&self, _token: &TokenId, _label: &str, _: &Call) -> Result<Pin, Error> {
        Ok(self.0.clone())
    }
}

/// A PIN in a place that the operator names: `env:VAR`, `file:PATH` or `fd:N`.
///
/// The PIN is the first line without its line break (LF or CRLF). Content that cannot be a PIN is
/// rejected before anything is sent: several lines, a byte order mark, a zero byte, leading or
/// trailing white space, an empty line. [`Verbatim`] accepts it. A file may have 4 KiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredPin {
    /// The value of an environment variable.
    Env(String),
    /// The content of a file.
    File(PathBuf),
    /// The content of an open file descriptor. A pipe can be read once.
    ///
    /// Linux before 5.6 and other systems open `/dev/fd/N`, which may require a permission that the
    /// process does not have.
    Fd(u32),
}

const LONGEST_SOURCE: u64 = 4096;

impl StoredPin {
    fn failed(&self, reason: impl fmt::Display) -> Error {
        Error::PinSource {
            origin: self.to_string(),
            reason: reason.to_string(),
        }
    }

    fn read_file(&self, path: &std::path::Path) -> Result<Pin, Error> {
        self.read(File::open(path).map_err(|e| self.failed(e))?)
    }

    /// The content of an open descriptor. The position in a file is restored, so that a second read
    /// gives the same.
    fn read_descriptor(&self, number: u32) -> Result<Pin, Error> {
        let inherited = INHERITED.get();
        if inherited.is_some_and(|inherited| !inherited.contains(&number)) {
            return Err(self.failed("the descriptor is not open"));
        }
        let mut file = descriptor(number).map_err(|e| self.failed(e))?;
        let before = file.stream_position();
        let pin = self.read(&file)?;
        match before {
            Ok(before) => {
                let back = file.seek(SeekFrom::Start(before));
                back.map_err(|e| self.failed(e))?;
            }
            Err(_) if pin.expose_secret().is_empty() => {
                return Err(self.failed("it is empty, or was already read"));
            }
            Err(_) => {}
        }
        Ok(pin)
    }

    fn read(&self, file: impl Read) -> Result<Pin, Error> {
        let mut text = Zeroizing::new(String::with_capacity(LONGEST_SOURCE as usize + 1));
        file.take(LONGEST_SOURCE + 1)
            .read_to_string(&mut text)
            .map_err(|e| self.failed(e))?;
        if text.len() as u64 > LONGEST_SOURCE {
            return Err(self.failed("it is too long for a PIN"));
        }
        Ok(Pin::from(text.as_str()))
    }

    /// The unchanged content.
    fn content(&self) -> Result<Pin, Error> {
        match self {
            StoredPin::Env(name) => {
                let mut value = std::env::var(name).map_err(|e| match e {
                    std::env::VarError::NotPresent => self.failed("the variable is not set"),
                    // The error's own text would show the value.
                    std::env::VarError::NotUnicode(_) => self.failed("the value is not UTF-8"),
                })?;
                let content = Pin::from(value.as_str());
                value.zeroize();
                Ok(content)
            }
            StoredPin::File(path) => self.read_file(path),
            StoredPin::Fd(number) => self.read_descriptor(*number),
        }
    }
}

/// Uses the content of a source as the PIN, without one trailing line break: for PINs that
/// [`StoredPin`] rejects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verbatim(pub StoredPin);

impl PinSource for Verbatim {
    fn pin(&self, _token: &TokenId, _label: &str, _: &Call) -> Result<Pin, Error> {
        let content = self.0.content()?;
        let text = content.expose_secret();
        let pin = text.strip_suffix('\n').unwrap_or(text);
        Ok(Pin::from(pin.strip_suffix('\r').unwrap_or(pin)))
    }
}

/// The descriptors that the process inherited, once they were recorded.
static INHERITED: OnceLock<Vec<u32>> = OnceLock::new();

/// Records the descriptors that the process inherited. After that, a PIN is read from no other
/// descriptor: one that the process opened itself, such as that of a database, has no PIN.
///
/// Call it before the process opens anything. Without `/proc/self/fd` or `/dev/fd` nothing is
/// recorded.
pub fn note_inherited_descriptors() {
    let list = |folder: &str| -> Option<Vec<u32>> {
        let numbers: Vec<u32> = std::fs::read_dir(folder)
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        // Among them was the one that the folder was read with.
        let is_open = |number: &u32| {
            std::path::Path::new(folder)
                .join(number.to_string())
                .symlink_metadata()
                .is_ok()
        };
        Some(numbers.into_iter().filter(is_open).collect())
    };
    if let Some(numbers) = list("/proc/self/fd").or_else(|| list("/dev/fd")) {
        let _ = INHERITED.set(numbers);
    }
}

/// A descriptor of this process. It is used directly, since it often cannot be opened again: behind
/// sudo, from systemd, or if it is a socket.
fn descriptor(number: u32) -> std::io::Result<File> {
    #[cfg(unix)]
    {
        use std::os::fd::AsFd;
        let standard = match number {
            0 => Some(std::io::stdin().as_fd().try_clone_to_owned()),
            1 => Some(std::io::stdout().as_fd().try_clone_to_owned()),
            2 => Some(std::io::stderr().as_fd().try_clone_to_owned()),
            _ => None,
        };
        if let Some(standard) = standard {
            return standard.map(File::from);
        }
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::io::Errno;
        use rustix::process::{
            ForeignRawFd, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open,
        };
        let own = pidfd_open(getpid(), PidfdFlags::empty());
        let number = ForeignRawFd::try_from(number).map_err(|_| Errno::BADF)?;
        match own.and_then(|own| pidfd_getfd(own, number, PidfdGetfdFlags::empty())) {
            Ok(copy) => return Ok(File::from(copy)),
            Err(Errno::BADF) => return Err(Errno::BADF.into()),
            // Linux before 5.6, and containers that do not let it.
            Err(_) => {}
        }
    }
    File::open(format!("/dev/fd/{number}"))
}

/// The first line, if it can be a PIN and nothing follows it.
///
/// # Errors
/// What is wrong, as the end of a sentence.
fn first_line(text: &str) -> Result<&str, &'static str> {
    let (line, rest) = text.split_once('\n').unwrap_or((text, ""));
    let line = line.strip_suffix('\r').unwrap_or(line);
    match line {
        _ if !rest.is_empty() => Err("something follows the first line"),
        _ if line.starts_with('\u{feff}') => Err("it begins with a byte order mark"),
        _ if line.contains('\0') => Err("it contains a zero byte"),
        _ if line.trim() != line => Err("it begins or ends with a space"),
        "" => Err("it is empty"),
        _ => Ok(line),
    }
}

impl PinSource for StoredPin {
    fn pin(&self, _token: &TokenId, _label: &str, _: &Call) -> Result<Pin, Error> {
        let content = self.content()?;
        match first_line(content.expose_secret()) {
            Ok(line) => Ok(Pin::from(line)),
            Err(odd) => Err(self.failed(format!("its content cannot be a PIN: {odd}"))),
        }
    }
}

impl fmt::Display for StoredPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoredPin::Env(name) => write!(f, "env:{name}"),
            StoredPin::File(path) => write!(f, "file:{}", path.display()),
            StoredPin::Fd(fd) => write!(f, "fd:{fd}"),
        }
    }
}

impl FromStr for StoredPin {
    type Err = BadPinSource;

    /// Parses `env:VAR`, `file:PATH`, `fd:N`, or an absolute path (RFC 7512 allows it).
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s.split_once(':') {
            Some(("env", name)) if !name.is_empty() => Ok(StoredPin::Env(name.into())),
            Some(("file", path)) if !path.is_empty() => {
                // `file:///p` and `file:/p` are the same file (RFC 8089).
                let path = path
                    .strip_prefix("//")
                    .filter(|p| p.starts_with('/'))
                    .unwrap_or(path);
                Ok(StoredPin::File(path.into()))
            }
            Some(("fd", number)) => number.parse().map(StoredPin::Fd).map_err(|_| BadPinSource),
            _ if s.starts_with('/') => Ok(StoredPin::File(s.into())),
            _ => Err(BadPinSource),
        }
    }
}

/// The string names no PIN source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a PIN source is env:VAR, file:PATH or fd:N")]
pub struct BadPinSource;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_the_pin_and_what_cannot_be_one_is_refused() {
        for text in ["1234", "1234\n", "1234\r\n"] {
            assert_eq!(first_line(text), Ok("1234"));
        }
        for (text, odd) in [
            ("1234\n\n", "follows"),
            ("1234\n# the PIN\n", "follows"),
            ("\u{feff}1234\n", "byte order mark"),
            ("12\x0034\n", "zero byte"),
            ("1234 \n", "space"),
            ("\t1234", "space"),
            ("1234\r\r\n", "space"),
            ("", "empty"),
            ("\r\n", "empty"),
        ] {
            let refused = first_line(text).unwrap_err();
            assert!(refused.contains(odd), "{text:?}: {refused}");
        }
    }

    #[test]
    fn a_pin_is_taken_as_it_is_where_that_is_asked_for() {
        let token = TokenId {
            kind: "k".into(),
            manufacturer: "m".into(),
            serial: "s".into(),
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pin");
        std::fs::write(&path, " 12\n34 \n").unwrap();
        let source = StoredPin::File(path);
        let refused = source
            .pin(&token, "", &Call::unlimited())
            .unwrap_err()
            .to_string();
        assert!(refused.contains("follows") && !refused.contains("34"));
        let pin = Verbatim(source)
            .pin(&token, "", &Call::unlimited())
            .unwrap();
        assert_eq!(pin.expose_secret(), " 12\n34 ");
    }

    #[test]
    fn sources_parse_and_show_the_same() {
        for text in ["env:PIN", "file:/etc/pin", "fd:3"] {
            assert_eq!(text.parse::<StoredPin>().unwrap().to_string(), text);
        }
        assert_eq!("file:///p".parse(), Ok(StoredPin::File("/p".into())));
        assert_eq!("/p".parse(), Ok(StoredPin::File("/p".into())));
        for text in ["", "env:", "fd:x", "prompt", "1234"] {
            assert_eq!(text.parse::<StoredPin>(), Err(BadPinSource));
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_descriptor_gives_what_it_is_open_on_and_a_file_gives_it_twice() {
        use std::io::Write;
        use std::os::fd::AsRawFd;
        let token = TokenId {
            kind: "k".into(),
            manufacturer: "m".into(),
            serial: "s".into(),
        };
        let read = |file: &dyn AsRawFd| {
            let number = file.as_raw_fd().try_into().unwrap();
            let pin = StoredPin::Fd(number).pin(&token, "", &Call::unlimited());
            pin.map(|pin| pin.expose_secret().to_owned())
        };
        // Its path leads to nothing any more.
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"no 1234\n").unwrap();
        file.seek(SeekFrom::Start(3)).unwrap();
        for _ in 0..2 {
            assert_eq!(read(&file).unwrap(), "1234");
        }
        let (mut near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        near.write_all(b"5678\n").unwrap();
        drop(near);
        if cfg!(target_os = "linux") {
            assert_eq!(read(&far).unwrap(), "5678");
            assert!(read(&far).is_err());
        }
    }

    #[test]
    fn no_debug_output_shows_a_pin() {
        let pin = FixedPin::new("tr0mb0ne");
        let access = crate::Access::with(pin.clone());
        let shown = format!("{pin:?} {access:?}");
        assert!(!shown.contains("tr0mb0ne"), "{shown}");
    }
}
