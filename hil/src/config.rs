//! `hil.toml`: which devices may be written to, and how they are opened.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use claviger_token::sync::lock;
use claviger_token::{Access, Call, Error, NoPin, Pin, PinSource, StoredPin, TokenId};
use serde::Deserialize;

use crate::error::HilError;

/// What `hil.toml` says.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The devices that may be written to.
    #[serde(default, rename = "device")]
    pub devices: Vec<Listed>,
    /// PKCS#11 modules to look into besides those that p11-kit knows.
    #[serde(default)]
    pub modules: Vec<String>,
}

/// A device whose owner says: keys may be made on it, and deleted.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Listed {
    /// The serial, as `claviger tokens` shows it.
    pub serial: String,
    /// What reports call it; its kind and serial, if nothing is said.
    pub name: Option<String>,
    /// Whether the keys that are on it may be deleted, to make room.
    #[serde(default)]
    pub wipe: bool,
    /// Whether the suite may give it one wrong PIN, followed by the right one.
    #[serde(default)]
    pub wrong_pin: bool,
    /// Where the PIN is.
    #[serde(default)]
    pub pin: Source,
    /// Where the management key of a smartcard is.
    #[serde(default)]
    pub management_key: Source,
    /// How the device is taken out and put back.
    #[serde(default)]
    pub removal: Removal,
    /// The most keys that the bench makes on it at a time.
    pub max_keys: Option<usize>,
    /// The longest message in bytes that it signs, where that is another than its model is
    /// known for.
    pub longest_message: Option<usize>,
}

/// Where a secret is: `env:VAR`, `file:PATH`, or `prompt`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Source {
    /// A person is asked, if there is one.
    #[default]
    Prompt,
    /// It lies somewhere.
    Stored(StoredPin),
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The text is not repeated: it may be a PIN.
        let bad = || serde::de::Error::custom("a secret is env:VAR, file:PATH or prompt");
        match &*String::deserialize(deserializer).map_err(|_| bad())? {
            "prompt" => Ok(Source::Prompt),
            text => text.parse().map(Source::Stored).map_err(|_| bad()),
        }
    }
}

/// How a device is taken out and put back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Removal {
    /// Not at all.
    #[default]
    Never,
    /// A person is asked to.
    Ask,
    /// `uhubctl` switches the power of its USB port.
    Uhubctl {
        /// The hub, such as `1-1.2`.
        hub: String,
        /// The port's number.
        port: u8,
    },
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// [`HilError::NoConfig`], [`HilError::BadConfig`].
    pub fn read(path: &Path) -> Result<Config, HilError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Config::parse(&text).map_err(|reason| HilError::BadConfig {
                path: path.into(),
                reason,
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(HilError::NoConfig(path.into())),
            Err(e) => Err(HilError::BadConfig {
                path: path.into(),
                reason: e.to_string(),
            }),
        }
    }

    /// Parses a configuration; the error says what is wrong, and repeats no secret.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|e| {
            let line = e
                .span()
                .map(|span| text[..span.start].lines().count().max(1));
            // Without the line itself, which toml's own words would show.
            match line {
                Some(line) => format!("line {line}: {}", e.message()),
                None => e.message().to_owned(),
            }
        })?;
        let mut seen = Vec::new();
        for listed in &config.devices {
            if listed.serial.trim().is_empty() {
                return Err("a device has an empty serial".into());
            }
            for name in std::iter::once(&listed.serial).chain(&listed.name) {
                if seen.contains(&name) {
                    return Err(format!("`{name}` is there twice"));
                }
                seen.push(name);
            }
        }
        Ok(config)
    }

    /// What the configuration says of the device with this serial.
    pub fn listed(&self, serial: &str) -> Option<&Listed> {
        // A token without a serial is nobody's.
        (self.devices.iter()).find(|listed| !serial.is_empty() && listed.serial == serial)
    }
}

impl Listed {
    /// How the device is opened. The last PIN try is never risked.
    pub(crate) fn access(&self) -> Access {
        Access {
            pins: source(&self.pin, "PIN"),
            management_keys: source(&self.management_key, "management key"),
            ..Access::without_pin()
        }
    }
}

fn source(source: &Source, what: &'static str) -> Arc<dyn PinSource> {
    match source {
        Source::Stored(stored) => Arc::new(stored.clone()),
        Source::Prompt if crate::screen::someone_is_there() => Arc::new(Asked::new(what)),
        Source::Prompt => Arc::new(NoPin),
    }
}

/// Asks a person, once: a run opens a device many times.
struct Asked {
    what: &'static str,
    answer: std::sync::Mutex<Option<Pin>>,
}

impl Asked {
    fn new(what: &'static str) -> Self {
        Asked {
            what,
            answer: std::sync::Mutex::default(),
        }
    }
}

impl PinSource for Asked {
    fn pin(&self, token: &TokenId, label: &str, _: &Call) -> Result<Pin, Error> {
        let mut answer = lock(&self.answer);
        if let Some(known) = &*answer {
            return Ok(known.clone());
        }
        let prompt = format!("{} for {token} {label}: ", self.what);
        let asked = crate::screen::aside(|| rpassword::prompt_password(prompt));
        let asked = asked.map_err(|e| Error::PinSource {
            origin: "prompt".into(),
            reason: e.to_string(),
        })?;
        Ok(answer.insert(Pin::from(asked)).clone())
    }
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Removal::Never => f.write_str("hil.toml names no way to remove it"),
            Removal::Ask => f.write_str("by hand"),
            Removal::Uhubctl { hub, port } => write!(f, "uhubctl, hub {hub}, port {port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_a_configuration() {
        let config = Config::parse(include_str!("../hil.example.toml")).unwrap();
        assert_eq!(config.devices.len(), 3);
        assert!(config.devices.iter().all(|listed| !listed.wipe));
        let uncommented: String = include_str!("../hil.example.toml")
            .lines()
            .map(|line| {
                line.strip_prefix("# ")
                    .filter(|l| l.contains(" = "))
                    .unwrap_or(line)
            })
            .collect::<Vec<_>>()
            .join("\n");
        // What is commented out is one, too.
        let config = Config::parse(&uncommented).unwrap();
        assert!(config.devices.iter().any(|listed| listed.wipe));
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_a_pin_is_not_repeated() {
        for (text, words) in [
            ("[[device]]\n", "serial"),
            ("[[device]]\nserial = \" \"", "empty"),
            ("[[device]]\nserial = 5", "line 2"),
            ("[[device]]\nserial = \"1\"\nwipes = true", "wipes"),
            (
                "[[device]]\nserial = \"1\"\n[[device]]\nserial = \"1\"",
                "twice",
            ),
            ("[[device]]\nserial = \"1\"\nname = \"1\"", "twice"),
            ("[[device]]\nserial = \"1\"\npin = \"271828\"", "env:VAR"),
            ("[[device]]\nserial = \"1\"\npin = 271828", "env:VAR"),
            ("wipe = true", "wipe"),
        ] {
            let reason = Config::parse(text).unwrap_err();
            assert!(reason.contains(words), "{text}: {reason}");
            assert!(!reason.contains("271828"), "{reason}");
        }
    }

    #[test]
    fn a_token_without_a_serial_is_never_listed() {
        let config = Config::parse("[[device]]\nserial = \"1\"").unwrap();
        assert!(config.listed("1").is_some());
        assert!(config.listed("").is_none());
        assert!(config.listed("11").is_none());
    }
}
