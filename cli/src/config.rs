//! The configuration file: defaults. The command line and the environment win.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use claviger_engine::IdParams;
use claviger_token::{StoredPin, shell};
use serde::Serialize;
use toml::{Table, Value};

use crate::args::{Args, Command, DEFAULT_PARAMS, Format};
use crate::failure::Failure;
use crate::{home, pins};

/// The most bytes that the file may have.
const LONGEST: u64 = 64 * 1024;

/// The file and its content.
#[derive(Debug, Default)]
pub(crate) struct Config {
    /// Its path; `None` if there is no place for one.
    pub(crate) path: Option<PathBuf>,
    /// Whether it exists.
    pub(crate) is_there: bool,
    pub(crate) settings: Settings,
}

/// The settings in the file.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Settings {
    pub(crate) home: Option<PathBuf>,
    pub(crate) pin_source: Option<String>,
    pub(crate) management_key: Option<String>,
    pub(crate) params: Option<IdParams>,
    pub(crate) format: Option<Format>,
    /// Short names for backends.
    pub(crate) backends: BTreeMap<String, String>,
    /// The table of the daemon, which was checked.
    serve: Option<Table>,
}

/// A setting, as `config show` prints it.
#[derive(Serialize)]
pub(crate) struct Setting {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
    /// An option, a variable, the file, or the default.
    pub(crate) from: String,
}

const FILE: &str = "file";
const DEFAULT: &str = "default";

impl Setting {
    fn option(
        name: &str,
        given: Option<String>,
        setting: Option<String>,
        default: Option<&str>,
    ) -> Self {
        let (value, from) = match (given, setting) {
            (Some(value), _) => (Some(value), format!("--{name}")),
            (None, Some(value)) => (Some(value), FILE.into()),
            (None, None) => (default.map(str::to_owned), DEFAULT.into()),
        };
        Setting {
            name: name.into(),
            value,
            from,
        }
    }
}

impl Config {
    /// Reads the file, if there is one.
    pub(crate) fn read() -> Result<Self, Failure> {
        let Some(path) = path(|name| std::env::var_os(name)) else {
            return Ok(Config::default());
        };
        let bad = |reason: String| {
            Failure::new(format!("the configuration `{}`: {reason}", path.display()))
                .coded("bad-config")
        };
        let text = match read(&path) {
            Ok(Some(text)) => text,
            Ok(None) => {
                return Ok(Config {
                    path: Some(path),
                    ..Config::default()
                });
            }
            Err(Unread::Io(error)) => return Err(bad(error.to_string())),
            Err(Unread::Others(reason)) => {
                let quoted = shell::quoted(&path.display().to_string()).into_owned();
                return Err(bad(reason).hint(format!(
                    "who can write it names a module that runs as you: chmod go-w {quoted}"
                )));
            }
        };
        Ok(Config {
            settings: Settings::parse(&text).map_err(bad)?,
            path: Some(path),
            is_there: true,
        })
    }

    /// Fills in defaults for what the command line leaves open, and expands short names of
    /// backends.
    pub(crate) fn apply(&self, args: &mut Args) {
        let settings = &self.settings;
        if args.home.is_none() && !is_set("CLAVIGER_HOME") {
            args.home.clone_from(&settings.home);
        }
        fill(&mut args.access.pin_source, settings.pin_source.as_ref());
        fill(
            &mut args.access.management_key,
            settings.management_key.as_ref(),
        );
        match &mut args.command {
            Command::Generate {
                backend, params, ..
            } => {
                *params = params.or(settings.params);
                self.write_out(backend);
            }
            Command::Sign { format, .. } => *format = format.or(settings.format),
            Command::Tokens {
                backend: Some(backend),
                ..
            }
            | Command::Connect {
                backend: Some(backend),
                ..
            }
            | Command::Unlock { token: backend, .. }
            | Command::Lock {
                token: Some(backend),
            }
            | Command::Doctor {
                forget_refused_pin: Some(backend),
                ..
            } => self.write_out(backend),
            _ => {}
        }
    }

    /// Reads the file again, which is to be there if it was.
    ///
    /// # Errors
    /// As [`Config::read`]; a file that is gone is no wish for the defaults.
    pub(crate) fn read_again(&self) -> Result<Self, Failure> {
        let again = Config::read()?;
        match &self.path {
            Some(path) if self.is_there && !again.is_there => {
                let what = format!(
                    "the configuration `{}` is not there any more",
                    path.display()
                );
                Err(Failure::new(what).coded("bad-config"))
            }
            _ => Ok(again),
        }
    }

    /// How the daemon serves.
    pub(crate) fn serve(&self) -> claviger_service::settings::Settings {
        let table = self.settings.serve.clone().unwrap_or_default();
        // It was checked when it was read.
        claviger_service::settings::Settings::of_table(table).unwrap_or_default()
    }

    /// Each setting, and where its value comes from.
    pub(crate) fn shown(&self, args: &Args) -> Vec<Setting> {
        let Settings {
            home,
            pin_source,
            management_key,
            params,
            format,
            backends,
            serve: _,
        } = &self.settings;
        let given = |option: &Option<OsString>| {
            let text = option.as_ref().map(|text| text.to_string_lossy());
            // What is no source may be a PIN.
            text.map(|text| match pins::is_source(&text) {
                true => text.into_owned(),
                false => "(malformed)".into(),
            })
        };
        let file = self.path.as_ref().map(|path| path.display().to_string());
        let from = match self.is_there {
            true => "read",
            false => "not there",
        };
        let mut shown = vec![
            Setting {
                name: "file".into(),
                value: file,
                from: from.into(),
            },
            self.home_shown(args, home.as_deref()),
            Setting::option(
                "pin-source",
                given(&args.access.pin_source),
                pin_source.clone(),
                None,
            ),
            Setting::option(
                "management-key",
                given(&args.access.management_key),
                management_key.clone(),
                None,
            ),
            Setting::option(
                "params",
                None,
                params.map(|params| params.name().into()),
                Some(DEFAULT_PARAMS.name()),
            ),
            Setting::option(
                "format",
                None,
                format.map(|format| format.name().into()),
                Some(Format::default().name()),
            ),
        ];
        shown.extend(backends.iter().map(|(name, whole)| Setting {
            name: format!("backends.{name}"),
            value: Some(whole.clone()),
            from: FILE.into(),
        }));
        shown
    }

    fn home_shown(&self, args: &Args, setting: Option<&Path>) -> Setting {
        let given = args.home.as_deref();
        let from = match (given, setting) {
            (Some(_), _) => "--home",
            (None, _) if is_set("CLAVIGER_HOME") => "CLAVIGER_HOME",
            (None, Some(_)) => FILE,
            (None, None) => DEFAULT,
        };
        let given = given.or(setting.filter(|_| from == FILE));
        let value = home::folder(given).ok();
        Setting {
            name: "home".into(),
            value: value.map(|path| path.display().to_string()),
            from: from.into(),
        }
    }

    fn write_out(&self, backend: &mut String) {
        if let Some(whole) = self.settings.backends.get(backend) {
            backend.clone_from(whole);
        }
    }
}

fn fill(option: &mut Option<OsString>, setting: Option<&String>) {
    if option.is_none() {
        *option = setting.map(OsString::from);
    }
}

/// Whether the variable is set and not empty.
pub(crate) fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

/// The path of the file: `CLAVIGER_CONFIG`, or else in the user's configuration folder (XDG Base
/// Directory Specification 0.8). An empty `CLAVIGER_CONFIG` means none.
fn path(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(named) = variable("CLAVIGER_CONFIG") {
        return Some(PathBuf::from(named)).filter(|path| !path.as_os_str().is_empty());
    }
    let absolute = |name| {
        let path = variable(name).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    let folder = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(folder.join("claviger/config.toml"))
}

/// Why a file was not read.
enum Unread {
    Io(io::Error),
    /// Somebody else owns it or can write to it.
    Others(String),
}

/// The text of the file; `None` if there is none.
fn read(path: &Path) -> Result<Option<String>, Unread> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Unread::Io(error)),
    };
    let found = file.metadata().map_err(Unread::Io)?;
    if !found.is_file() {
        return Err(Unread::Io(io::Error::other("it is no file")));
    }
    if let Some(reason) = who_else(&found) {
        return Err(Unread::Others(reason));
    }
    let mut text = String::new();
    file.take(LONGEST + 1)
        .read_to_string(&mut text)
        .map_err(Unread::Io)?;
    match text.len() as u64 > LONGEST {
        true => Err(Unread::Io(io::Error::other(format!(
            "it is longer than {LONGEST} bytes"
        )))),
        false => Ok(Some(text)),
    }
}

/// Who else can write to it, if anybody. The administrator may, since some install these files for
/// everybody.
#[cfg(unix)]
fn who_else(found: &std::fs::Metadata) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let owners = [rustix::process::geteuid().as_raw(), 0];
    let (owner, mode) = (found.uid(), found.mode() & 0o777);
    if !owners.contains(&owner) {
        return Some(format!("it belongs to the user {owner}"));
    }
    (mode & 0o022 != 0).then(|| format!("others can write to it (mode {mode:o})"))
}

#[cfg(not(unix))]
fn who_else(_: &std::fs::Metadata) -> Option<String> {
    None
}

impl Settings {
    /// The reason of a failure quotes no value, since one may be a PIN.
    fn parse(text: &str) -> Result<Self, String> {
        let mut table: Table = text.parse().map_err(|error| malformed(text, &error))?;
        let settings = Settings {
            home: take(&mut table, "home", absolute)?,
            pin_source: take(&mut table, "pin-source", source)?,
            management_key: take(&mut table, "management-key", source)?,
            params: take(&mut table, "params", |name| {
                name.parse().map_err(|_| {
                    let names = IdParams::ALL.map(IdParams::name);
                    format!("one of {}", names.join(", "))
                })
            })?,
            format: take(&mut table, "format", |name| {
                Format::from_str(name, false).map_err(|_| "raw, der or sshsig".into())
            })?,
            backends: backends(table.remove("backends"))?,
            serve: serve(table.remove("serve"))?,
        };
        match table.keys().next() {
            Some(key) => Err(format!("`{key}` is no setting")),
            None => Ok(settings),
        }
    }
}

fn malformed(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().and_then(|span| text.get(..span.start));
    let line = line.map_or(1, |before| before.matches('\n').count() + 1);
    format!("line {line}: {}", error.message())
}

/// The setting of this name, parsed by `read`, whose error says what it must be.
fn take<T>(
    table: &mut Table,
    name: &str,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, String> {
    let Some(value) = table.remove(name) else {
        return Ok(None);
    };
    let text = value.as_str().ok_or_else(|| "a string".to_owned());
    text.and_then(read)
        .map(Some)
        .map_err(|wanted| format!("`{name}` must be {wanted}"))
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    match Path::new(text).is_absolute() {
        true => Ok(text.into()),
        false => Err("an absolute path".into()),
    }
}

/// A PIN source that does not depend on where the command runs.
fn source(text: &str) -> Result<String, String> {
    let is_absolute = match text.parse() {
        Ok(StoredPin::File(path)) => path.is_absolute(),
        Ok(StoredPin::Fd(_)) => false,
        _ => pins::is_source(text),
    };
    match is_absolute {
        true => Ok(text.into()),
        false => Err("env:VAR, file:PATH with an absolute path, prompt or pinentry".into()),
    }
}

fn backends(value: Option<Value>) -> Result<BTreeMap<String, String>, String> {
    let Some(value) = value else {
        return Ok(BTreeMap::new());
    };
    let Value::Table(table) = value else {
        return Err("`backends` must be a table".into());
    };
    let entry = |(name, value): (String, Value)| {
        let whole = value.as_str().filter(|whole| whole.contains(':'));
        match whole {
            Some(_) if name.contains(':') => Err(format!(
                "the name `{name}` in `backends` must have no colon"
            )),
            Some(whole) => Ok((name, whole.to_owned())),
            None => Err(format!("`{name}` in `backends` must be a backend")),
        }
    };
    table.into_iter().map(entry).collect()
}

/// The table of the daemon. It is checked by every command: who made a mistake hears of it before
/// the daemon does not start.
fn serve(value: Option<Value>) -> Result<Option<Table>, String> {
    match value {
        None => Ok(None),
        Some(Value::Table(table)) => {
            claviger_service::settings::Settings::of_table(table.clone())?;
            Ok(Some(table))
        }
        Some(_) => Err("`serve` must be a table".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_read() {
        let settings = Settings::parse(
            "home = '/h'\npin-source = 'file:/pin'\nmanagement-key = 'env:KEY'\n\
             params = 'ed25519'\nformat = 'sshsig'\n[backends]\nbench = 'pkcs11:token=bench'\n",
        )
        .unwrap();
        assert_eq!(settings.home, Some("/h".into()));
        assert_eq!(settings.pin_source.as_deref(), Some("file:/pin"));
        assert_eq!(settings.management_key.as_deref(), Some("env:KEY"));
        assert_eq!(settings.params, Some(IdParams::Ed25519));
        assert_eq!(settings.format, Some(Format::Sshsig));
        assert_eq!(settings.backends["bench"], "pkcs11:token=bench");
        assert_eq!(Settings::parse("").unwrap(), Settings::default());
    }

    #[test]
    fn what_is_wrong_is_said_and_no_value_is_repeated() {
        for (text, reason) in [
            ("pin_source = 'prompt'", "`pin_source` is no setting"),
            ("home = 'h'", "`home` must be an absolute path"),
            ("pin-source = 482913", "`pin-source` must be a string"),
            (
                "pin-source = '482913'",
                "`pin-source` must be env:VAR, file:PATH with an absolute path, prompt or pinentry",
            ),
            (
                "pin-source = 'file:482913'",
                "`pin-source` must be env:VAR, file:PATH with an absolute path, prompt or pinentry",
            ),
            (
                "pin-source = 'fd:482913'",
                "`pin-source` must be env:VAR, file:PATH with an absolute path, prompt or pinentry",
            ),
            ("format = 'pgp'", "`format` must be raw, der or sshsig"),
            ("backends = 'piv:'", "`backends` must be a table"),
            ("serve = 482913", "`serve` must be a table"),
            ("[serve]\npin = '482913'", "`serve.pin` is no setting"),
            ("[backends]\na = 'b'", "`a` in `backends` must be a backend"),
            (
                "[backends]\n'a:' = 'piv:'",
                "the name `a:` in `backends` must have no colon",
            ),
        ] {
            assert_eq!(Settings::parse(text), Err(reason.into()), "{text}");
        }
        for text in [
            "\npin-source = 482913x",
            "\npin-source = '482913",
            "\npin-source = s482913",
            "\npin-source 482913",
            "\npin-source = \"\\q482913\"",
        ] {
            let reason = Settings::parse(text).unwrap_err();
            assert!(reason.starts_with("line 2: "), "{reason}");
            assert!(!reason.contains("482913"), "{reason}");
        }
        let params = Settings::parse("params = 'rot13'").unwrap_err();
        assert!(
            params.starts_with("`params` must be one of p256, "),
            "{params}"
        );
    }

    #[test]
    fn the_variable_goes_before_the_folder_and_an_empty_one_is_no_file() {
        let of = |variables: &[(&str, &str)]| {
            path(|name| {
                let found = variables.iter().find(|(n, _)| *n == name);
                found.map(|(_, value)| value.into())
            })
        };
        let all = [
            ("CLAVIGER_CONFIG", "c.toml"),
            ("XDG_CONFIG_HOME", "/x"),
            ("HOME", "/h"),
        ];
        assert_eq!(of(&all), Some("c.toml".into()));
        assert_eq!(of(&all[1..]), Some("/x/claviger/config.toml".into()));
        let home = Some("/h/.config/claviger/config.toml".into());
        assert_eq!(of(&all[2..]), home);
        assert_eq!(of(&[("XDG_CONFIG_HOME", "x"), ("HOME", "/h")]), home);
        assert_eq!(of(&[("CLAVIGER_CONFIG", ""), ("HOME", "/h")]), None);
    }
}
