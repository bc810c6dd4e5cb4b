//! The table `[serve]` of `config.toml`: how a daemon serves. `service/claviger.toml.example` has
//! every setting.
//!
//! The reason of a failure names the setting and quotes no value, since one may be a PIN.

use std::path::PathBuf;
use std::time::Duration;

use toml::{Table, Value};

use crate::Limits;

/// Where the configuration of the system's daemon is.
pub const SYSTEM_CONFIG: &str = "/etc/claviger/config.toml";

/// How a daemon serves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens; empty: where the command line or the service manager says.
    pub sockets: Vec<SocketSettings>,
    /// The log of who did what.
    pub audit: AuditSettings,
    /// What callers may take.
    pub limits: Limits,
    /// Figures for Prometheus, if they are wanted.
    pub metrics: Option<MetricsSettings>,
    /// Where PINs come from.
    pub pins: PinsTable,
    /// How long requests that were begun may take once the daemon is told to end.
    pub drain: Duration,
    /// The form of its log.
    pub log: LogFormat,
    /// What its log has.
    pub log_level: LogLevel,
    /// The identities of which a person confirms each use, whoever asks.
    pub confirm: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            sockets: Vec::new(),
            audit: AuditSettings::default(),
            limits: Limits::default(),
            metrics: None,
            pins: PinsTable::default(),
            drain: Duration::from_secs(30),
            log: LogFormat::Text,
            log_level: LogLevel::Info,
            confirm: Vec::new(),
        }
    }
}

/// A socket to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketSettings {
    /// What grants call it.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Who may connect.
    pub mode: u32,
    /// The group that it belongs to, by its name; `None`: that of the daemon.
    pub group: Option<String>,
}

/// The log of who did what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditSettings {
    /// The file; `None`: the journal alone.
    pub file: Option<PathBuf>,
    /// What happens if it cannot be written. `None`: what cannot be noted is refused, where there is
    /// a place for the log.
    pub mode: Option<AuditMode>,
    /// The identity whose key seals it.
    pub seal: Option<String>,
    /// Whether it goes to the journal, too.
    pub journal: bool,
}

impl Default for AuditSettings {
    fn default() -> Self {
        AuditSettings {
            file: None,
            mode: None,
            seal: None,
            journal: true,
        }
    }
}

/// What happens to a request that cannot be noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditMode {
    /// It is refused.
    Required,
    /// It is carried out.
    BestEffort,
    /// Nothing is noted.
    Off,
}

/// Figures for Prometheus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsSettings {
    /// The socket, which only the daemon's user can connect to.
    pub socket: Option<PathBuf>,
    /// The port on the loopback interface.
    pub port: Option<u16>,
    /// Whether figures name tokens.
    pub names: bool,
}

/// Where PINs come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinsTable {
    /// Whether credentials of systemd are used.
    pub credentials: bool,
    /// Whether a pinentry asks, where no connection gives a PIN.
    pub pinentry: bool,
    /// How long a connection or a person is waited for.
    pub answer_within: Duration,
    /// How long a token stays unlocked at most.
    pub longest_unlock: Option<Duration>,
}

impl Default for PinsTable {
    fn default() -> Self {
        PinsTable {
            credentials: true,
            pinentry: false,
            answer_within: Duration::from_secs(120),
            longest_unlock: None,
        }
    }
}

/// The form of the daemon's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// A JSON object on each line.
    Json,
}

/// What the daemon's log has: this, and what is more important.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    const ALL: [(&str, LogLevel); 5] = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];

    /// As the configuration has it.
    pub fn name(self) -> &'static str {
        let known = LogLevel::ALL.iter().find(|(_, level)| *level == self);
        known.map_or("info", |(name, _)| name)
    }
}

impl Settings {
    /// Reads the table `[serve]`.
    ///
    /// # Errors
    /// What is wrong, as the end of a sentence. An unknown setting is wrong, too.
    pub fn of_table(table: Table) -> Result<Self, String> {
        let by_default = Settings::default();
        let mut serve = Part::new("serve", table);
        let sockets = serve.parts("socket")?.into_iter().map(socket);
        let settings = Settings {
            sockets: sockets.collect::<Result<_, _>>()?,
            audit: audit(serve.part("audit")?)?,
            limits: limits(serve.part("limits")?)?,
            metrics: serve.part("metrics")?.map(metrics).transpose()?,
            pins: pins(serve.part("pins")?)?,
            drain: serve.duration("drain")?.unwrap_or(by_default.drain),
            log: serve
                .one_of(
                    "log",
                    &[("text", LogFormat::Text), ("json", LogFormat::Json)],
                )?
                .unwrap_or(by_default.log),
            log_level: serve
                .one_of("log-level", &LogLevel::ALL)?
                .unwrap_or(by_default.log_level),
            confirm: serve.texts("confirm")?,
        };
        serve.end()?;
        Ok(settings)
    }
}

fn socket(mut part: Part) -> Result<SocketSettings, String> {
    let (name, path) = (part.text("name")?, part.path("path")?);
    let missing = |what| format!("`serve.socket` needs a `{what}`");
    let mode = part.parsed("mode", "an octal mode such as \"0660\"", |text| {
        u32::from_str_radix(text, 8)
            .ok()
            .filter(|mode| *mode <= 0o777)
    })?;
    let socket = SocketSettings {
        name: name.ok_or_else(|| missing("name"))?,
        path: path.ok_or_else(|| missing("path"))?,
        mode: mode.unwrap_or(0o600),
        group: part.text("group")?,
    };
    part.end()?;
    Ok(socket)
}

fn audit(part: Option<Part>) -> Result<AuditSettings, String> {
    let by_default = AuditSettings::default();
    let Some(mut part) = part else {
        return Ok(by_default);
    };
    let modes = [
        ("required", AuditMode::Required),
        ("best-effort", AuditMode::BestEffort),
        ("off", AuditMode::Off),
    ];
    let audit = AuditSettings {
        file: part.path("file")?,
        mode: part.one_of("mode", &modes)?,
        seal: part.text("seal")?,
        journal: part.flag("journal")?.unwrap_or(by_default.journal),
    };
    part.end()?;
    Ok(audit)
}

fn limits(part: Option<Part>) -> Result<Limits, String> {
    let mut limits = Limits::default();
    let Some(mut part) = part else {
        return Ok(limits);
    };
    for (name, limit) in [
        ("connections", &mut limits.connections),
        ("connections-of-caller", &mut limits.connections_of_caller),
        ("requests-of-connection", &mut limits.requests_of_connection),
        ("requests-of-caller", &mut limits.requests_of_caller),
        (
            "long-requests-of-caller",
            &mut limits.long_requests_of_caller,
        ),
        ("devices-of-caller", &mut limits.devices_of_caller),
        ("gathered-bytes", &mut limits.gathered),
        ("unread-bytes", &mut limits.unread),
    ] {
        if let Some(value) = part.count(name)? {
            *limit = value;
        }
    }
    for (name, limit) in [
        ("first-frame", &mut limits.first_frame),
        ("stalled", &mut limits.stalled),
    ] {
        if let Some(value) = part.duration(name)? {
            *limit = value;
        }
    }
    part.end()?;
    Ok(limits)
}

fn metrics(mut part: Part) -> Result<MetricsSettings, String> {
    let port = part.count("port")?.map(u16::try_from);
    let metrics = MetricsSettings {
        socket: part.path("socket")?,
        port: port
            .transpose()
            .map_err(|_| "`serve.metrics.port` must be a port".to_owned())?,
        names: part.flag("names")?.unwrap_or_default(),
    };
    part.end()?;
    Ok(metrics)
}

fn pins(part: Option<Part>) -> Result<PinsTable, String> {
    let by_default = PinsTable::default();
    let Some(mut part) = part else {
        return Ok(by_default);
    };
    let pins = PinsTable {
        credentials: part.flag("credentials")?.unwrap_or(by_default.credentials),
        pinentry: part.flag("pinentry")?.unwrap_or(by_default.pinentry),
        answer_within: (part.duration("answer-within")?).unwrap_or(by_default.answer_within),
        longest_unlock: part.duration("longest-unlock")?,
    };
    part.end()?;
    Ok(pins)
}

/// A time as people write it: `90s`, `10m`, `8h`, `2d`.
pub fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return None,
    };
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = number
        .parse()
        .ok()
        .filter(|number| is_number && *number > 0)?;
    number.checked_mul(seconds).map(Duration::from_secs)
}

/// A table, from which the settings are taken one after the other.
struct Part {
    name: String,
    table: Table,
}

impl Part {
    fn new(name: &str, table: Table) -> Self {
        Part {
            name: name.into(),
            table,
        }
    }

    fn part(&mut self, name: &str) -> Result<Option<Part>, String> {
        match self.table.remove(name) {
            None => Ok(None),
            Some(Value::Table(table)) => Ok(Some(Part::new(&self.full(name), table))),
            Some(_) => Err(self.wrong(name, "a table")),
        }
    }

    /// A list of tables, or one.
    fn parts(&mut self, name: &str) -> Result<Vec<Part>, String> {
        let values = match self.table.remove(name) {
            None => Vec::new(),
            Some(Value::Array(values)) => values,
            Some(one) => vec![one],
        };
        let part = |value| match value {
            Value::Table(table) => Ok(Part::new(&self.full(name), table)),
            _ => Err(self.wrong(name, "a list of tables")),
        };
        values.into_iter().map(part).collect()
    }

    fn parsed<T>(
        &mut self,
        name: &str,
        wanted: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, String> {
        match self.table.remove(name) {
            None => Ok(None),
            Some(value) => match value.as_str().and_then(parse) {
                Some(parsed) => Ok(Some(parsed)),
                None => Err(self.wrong(name, wanted)),
            },
        }
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, String> {
        self.parsed(name, "a text that is not empty", |text| {
            (!text.is_empty()).then(|| text.to_owned())
        })
    }

    /// A list of texts; none where there is none.
    fn texts(&mut self, name: &str) -> Result<Vec<String>, String> {
        let wrong = self.wrong(name, "a list of texts that are not empty");
        let values = match self.table.remove(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values,
            Some(_) => return Err(wrong),
        };
        let text = |value: Value| match value {
            Value::String(text) if !text.is_empty() => Ok(text),
            _ => Err(wrong.clone()),
        };
        values.into_iter().map(text).collect()
    }

    fn path(&mut self, name: &str) -> Result<Option<PathBuf>, String> {
        self.parsed(name, "an absolute path", |text| {
            Some(PathBuf::from(text)).filter(|path| path.is_absolute())
        })
    }

    fn duration(&mut self, name: &str) -> Result<Option<Duration>, String> {
        self.parsed(
            name,
            "a time such as \"90s\", \"10m\", \"8h\" or \"2d\"",
            duration,
        )
    }

    fn one_of<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> Result<Option<T>, String> {
        let names: Vec<String> = choices
            .iter()
            .map(|(name, _)| format!("\"{name}\""))
            .collect();
        let wanted = format!("one of {}", names.join(", "));
        self.parsed(name, &wanted, |text| {
            let choice = choices.iter().find(|(name, _)| *name == text)?;
            Some(choice.1)
        })
    }

    fn flag(&mut self, name: &str) -> Result<Option<bool>, String> {
        match self.table.remove(name) {
            None => Ok(None),
            Some(Value::Boolean(flag)) => Ok(Some(flag)),
            Some(_) => Err(self.wrong(name, "true or false")),
        }
    }

    fn count(&mut self, name: &str) -> Result<Option<usize>, String> {
        match self.table.remove(name) {
            None => Ok(None),
            Some(value) => {
                let count = value.as_integer().and_then(|count| count.try_into().ok());
                match count.filter(|count| *count > 0) {
                    Some(count) => Ok(Some(count)),
                    None => Err(self.wrong(name, "a number above 0")),
                }
            }
        }
    }

    /// Nothing is left.
    fn end(self) -> Result<(), String> {
        match self.table.keys().next() {
            Some(key) => Err(format!("`{}` is no setting", self.full(key))),
            None => Ok(()),
        }
    }

    fn wrong(&self, name: &str, wanted: &str) -> String {
        format!("`{}` must be {wanted}", self.full(name))
    }

    fn full(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<Settings, String> {
        let mut table: Table = text.parse().unwrap();
        match table.remove("serve") {
            Some(Value::Table(serve)) => Settings::of_table(serve),
            _ => panic!("no table [serve]: {text}"),
        }
    }

    /// The example with each `#` taken away that stands before a setting.
    fn whole_example() -> String {
        let example = include_str!("../claviger.toml.example");
        let lines = example.lines().map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') => setting,
            _ => line,
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_example_is_read_as_it_stands_and_with_every_setting() {
        let plain = settings(include_str!("../claviger.toml.example")).unwrap();
        assert_eq!(format!("{plain:?}"), format!("{:?}", Settings::default()));
        let whole = settings(&whole_example()).unwrap();
        let [api, ci] = &whole.sockets[..] else {
            panic!("{:?}", whole.sockets);
        };
        assert_eq!(
            (&*api.name, api.mode, api.group.as_deref()),
            ("api", 0o660, Some("claviger"))
        );
        assert_eq!((&*ci.name, ci.mode), ("ci", 0o600));
        assert_eq!(whole.audit.seal.as_deref(), Some("audit"));
        assert_eq!(
            whole.audit.file,
            Some("/var/log/claviger/audit.jsonl".into())
        );
        assert_eq!(whole.confirm, ["alice"]);
        let metrics = whole.metrics.unwrap();
        assert_eq!((metrics.port, metrics.names), (Some(9464), false));
        assert_eq!(
            whole.pins.longest_unlock,
            Some(Duration::from_secs(10 * 3600))
        );
    }

    #[test]
    fn the_example_shows_the_defaults_and_no_setting_is_missing_from_it() {
        let example = whole_example();
        let mut table: Table = example.parse().unwrap();
        let Some(Value::Table(mut serve)) = table.remove("serve") else {
            panic!("{example}");
        };
        let limits = format!("{:?}", settings(&example).unwrap().limits);
        assert_eq!(limits, format!("{:?}", Limits::default()));
        // As many as the code reads.
        for (part, count) in [("audit", 4), ("limits", 10), ("metrics", 3), ("pins", 4)] {
            let settings = serve.remove(part);
            let settings = settings.as_ref().and_then(Value::as_table);
            assert_eq!(settings.map(Table::len), Some(count), "{part}");
        }
        let mut left: Vec<&String> = serve.keys().collect();
        left.sort();
        assert_eq!(left, ["confirm", "drain", "log", "log-level", "socket"]);
    }

    #[test]
    fn what_is_wrong_is_named_and_no_value_is_repeated() {
        for (text, reason) in [
            ("[serve]\npin = '482913'", "`serve.pin` is no setting"),
            (
                "[serve.pins]\nunlock = 1",
                "`serve.pins.unlock` is no setting",
            ),
            (
                "[serve.audit]\nsealed = 1",
                "`serve.audit.sealed` is no setting",
            ),
            (
                "[serve.limits]\nrequests = 1",
                "`serve.limits.requests` is no setting",
            ),
            (
                "[serve.metrics]\naddress = 1",
                "`serve.metrics.address` is no setting",
            ),
            ("[serve]\naudit = 482913", "`serve.audit` must be a table"),
            (
                "[serve]\nsocket = '482913'",
                "`serve.socket` must be a list of tables",
            ),
            (
                "[[serve.socket]]\npath = '/s'",
                "`serve.socket` needs a `name`",
            ),
            (
                "[[serve.socket]]\nname = 's'",
                "`serve.socket` needs a `path`",
            ),
            (
                "[[serve.socket]]\nname = 's'\npath = '/s'\nowner = 's'",
                "`serve.socket.owner` is no setting",
            ),
            (
                "[[serve.socket]]\nname = 's'\npath = 's482913'",
                "`serve.socket.path` must be an absolute path",
            ),
            ("[[serve.socket]]\nname = 's'\npath = '/s'\nmode = 0660", ""),
            (
                "[[serve.socket]]\nname = 's'\npath = '/s'\nmode = '1777'",
                "`serve.socket.mode` must be an octal mode such as \"0660\"",
            ),
            (
                "[serve]\ndrain = '482913'",
                "`serve.drain` must be a time such as \"90s\", \"10m\", \"8h\" or \"2d\"",
            ),
            (
                "[serve]\nconfirm = '482913'",
                "`serve.confirm` must be a list of texts that are not empty",
            ),
            (
                "[serve]\nconfirm = ['a', 482913]",
                "`serve.confirm` must be a list of texts that are not empty",
            ),
            (
                "[serve]\nlog = 'xml'",
                "`serve.log` must be one of \"text\", \"json\"",
            ),
            (
                "[serve]\nlog-level = 'loud'",
                "`serve.log-level` must be one of \"error\", \"warn\", \"info\", \"debug\", \"trace\"",
            ),
            (
                "[serve.metrics]\nport = '0.0.0.0:9464'",
                "`serve.metrics.port` must be a number above 0",
            ),
            (
                "[serve.audit]\nmode = 'on'",
                "`serve.audit.mode` must be one of \"required\", \"best-effort\", \"off\"",
            ),
            (
                "[serve.pins]\npinentry = 'yes'",
                "`serve.pins.pinentry` must be true or false",
            ),
            (
                "[serve.limits]\nconnections = 0",
                "`serve.limits.connections` must be a number above 0",
            ),
            (
                "[serve.metrics]\nport = 482913",
                "`serve.metrics.port` must be a port",
            ),
        ] {
            // TOML has no octal numbers of this form: that is said before.
            if reason.is_empty() {
                assert!(text.parse::<Table>().is_err());
                continue;
            }
            assert_eq!(settings(text).unwrap_err(), reason, "{text}");
        }
    }

    #[test]
    fn times_are_whole_numbers_with_a_unit() {
        for (text, seconds) in [("90s", 90), ("10m", 600), ("8h", 28_800), ("2d", 172_800)] {
            assert_eq!(duration(text), Some(Duration::from_secs(seconds)));
        }
        for text in [
            "",
            "8",
            "h",
            "0s",
            "-1s",
            "+1s",
            "1.5h",
            "1é",
            "8 h",
            "99999999999999999d",
        ] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
