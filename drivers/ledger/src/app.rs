//! The app that is open on a device: its name and its version.

use std::fmt;

use claviger_token::Error;

/// The name of the app.
pub(crate) const APP: &str = "Ethereum";
/// The first version that agrees on keys (EIP-1024).
pub(crate) const OLDEST: (u32, u32, u32) = (1, 9, 18);

/// The app that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct App {
    pub(crate) name: String,
    pub(crate) version: String,
}

impl App {
    /// `01`, then name, version and flags, each after its length in one byte.
    pub(crate) fn parse(data: &[u8]) -> Option<Self> {
        let (&1, data) = data.split_first()? else {
            return None;
        };
        let (name, data) = counted(data)?;
        let (version, data) = counted(data)?;
        // Old systems give no flags.
        if !data.is_empty() {
            counted(data).filter(|(_, rest)| rest.is_empty())?;
        }
        let printable = |bytes: &[u8]| {
            let text = std::str::from_utf8(bytes).ok()?;
            Some(text.chars().filter(|c| !c.is_control()).collect())
        };
        Some(App {
            name: printable(name)?,
            version: printable(version)?,
        })
    }

    /// The version as numbers; what follows them, such as `-dev`, does not count.
    pub(crate) fn number(&self) -> (u32, u32, u32) {
        let mut parts = self.version.splitn(3, '.').map(|part| {
            let end = part.find(|c: char| !c.is_ascii_digit());
            part[..end.unwrap_or(part.len())].parse().unwrap_or(0)
        });
        let mut next = || parts.next().unwrap_or(0);
        (next(), next(), next())
    }

    /// Whether it is from before the first version that agrees on keys.
    pub(crate) fn is_too_old(&self) -> bool {
        self.number() < OLDEST
    }

    /// The error for a key that this version knows nothing of.
    pub(crate) fn too_old(self, device: String) -> Error {
        let (major, minor, patch) = OLDEST;
        Error::AppTooOld {
            device,
            app: self.name,
            found: self.version,
            least: format!("{major}.{minor}.{patch}"),
        }
    }
}

impl fmt::Display for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the app {} {}", self.name, self.version)
    }
}

/// What a length in one byte counts, and the rest.
pub(crate) fn counted(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, data) = data.split_first()?;
    data.split_at_checked(length.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions_compare_as_numbers() {
        let number = |version: &str| {
            let (name, version) = (String::new(), version.into());
            App { name, version }.number()
        };
        assert_eq!(number("1.23.0-dev"), (1, 23, 0));
        assert!(number("1.9.18") >= OLDEST && number("1.10.0") > OLDEST);
        assert!(number("1.9.17") < OLDEST && number("1.9") < OLDEST && number("x") < OLDEST);
        assert!(number("99999999999999.1.1") < OLDEST);
    }

    #[test]
    fn an_app_is_read_strictly() {
        let data = b"\x01\x08Ethereum\x0a1.23.0-dev\x01\x00";
        let app = App::parse(data).unwrap();
        assert_eq!((&*app.name, &*app.version), (APP, "1.23.0-dev"));
        for cut in 0..data.len() {
            // Without the flags it is the reply of an old system.
            assert_eq!(App::parse(&data[..cut]).is_some(), cut == data.len() - 2);
        }
        assert!(App::parse(&[data.as_slice(), b"."].concat()).is_none());
        assert!(App::parse(b"\x02\x00\x00").is_none());
        assert!(App::parse(b"\x01\x01\xff\x00").is_none());
    }

    proptest! {
        #[test]
        fn no_reply_panics(data: Vec<u8>) {
            let _ = App::parse(&data);
            let _ = App::parse(&[&[1], data.as_slice()].concat());
        }
    }
}
