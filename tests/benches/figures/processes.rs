//! Figures of whole processes: one signature beside a bare process and `pkcs11-tool`, and a list
//! of 20,000 identities; and both beside another build of the command, where one is named.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use claviger_tests::SoftHsm;
use rusqlite::{Connection, Row};
use sha2::{Digest, Sha256};

use crate::Figure;
use crate::exchange::claviger;

/// The environment variable that names the command of another build.
const AGAINST: &str = "CLAVIGER_BENCH_AGAINST";

const SIGNATURES: usize = 101;
const LISTS: usize = 11;
const IDENTITIES: usize = 20_000;

/// A command with a home and a token of its own.
struct Side {
    claviger: PathBuf,
    folder: tempfile::TempDir,
    token: SoftHsm,
    /// The `CKA_ID` of the key that signs.
    key: String,
}

pub(crate) fn figures() -> Vec<Figure> {
    let ours = Side::new(claviger());
    let other = std::env::var_os(AGAINST).map(|path| Side::new(path.into()));
    let mut figures = one_signature(&ours, other.as_ref());
    figures.extend(identities(&ours, other.as_ref()));
    figures
}

impl Side {
    fn new(claviger: PathBuf) -> Self {
        let mut side = Side {
            claviger,
            folder: tempfile::tempdir_in(crate::folder()).unwrap(),
            token: SoftHsm::new(),
            key: String::new(),
        };
        side.write("pin", SoftHsm::PIN.as_bytes());
        side.write("message", crate::MESSAGE);
        side.write("digest", &Sha256::digest(crate::MESSAGE));
        let backend = side.token.backend();
        let made = side
            .command(&["generate", "me", "--backend", &backend])
            .stdout(Stdio::piped())
            .output();
        let made = String::from_utf8(made.unwrap().stdout).unwrap();
        let line = made.lines().find(|l| l.trim().starts_with("sign"));
        side.key = line
            .and_then(|l| l.split("slot ").nth(1))
            .unwrap()
            .trim()
            .into();
        side
    }

    fn write(&self, name: &str, content: &[u8]) {
        std::fs::write(self.folder.path().join(name), content).unwrap();
    }

    fn place(&self, mut command: Command) -> Command {
        let (variable, conf) = self.token.environment();
        command
            .env(variable, conf)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.place(Command::new(&self.claviger));
        command.env("CLAVIGER_HOME", self.folder.path().join("home"));
        command.args(["--pin-source", "file:pin"]).args(words);
        command
    }

    fn signs(&self) -> Command {
        self.command(&[
            "sign",
            "me",
            "message",
            "--format",
            "raw",
            "-o",
            "signature",
        ])
    }

    /// Each process waits for the disk once: this one for its signature, ours for the note that a
    /// PIN is being sent. `pkcs11-tool` waits for nothing.
    fn signs_barely(&self) -> Command {
        let beside = claviger().with_file_name("examples").join("bare_sign");
        let mut command = self.place(Command::new(beside));
        let (module, label) = (SoftHsm::module(), self.token.label());
        command.args([module, label, "pin", "message", "bare"]);
        command
    }

    fn signs_by_tool(&self) -> Command {
        let mut command = self.place(Command::new("pkcs11-tool"));
        command.args(["--module", SoftHsm::module()]);
        command.args(["--token-label", self.token.label()]);
        command.args(["--login", "--pin", SoftHsm::PIN, "--id", &self.key]);
        command.args(["--sign", "--mechanism", "ECDSA"]);
        command.args(["--input-file", "digest", "--output-file", "by-tool"]);
        command
    }

    fn lists(&self) -> Command {
        let mut command = self.command(&["identities"]);
        command.env("CLAVIGER_HOME", self.folder.path().join("many"));
        command
    }
}

/// The name of an identity that [`multiply`] makes; the first is number 1.
pub(crate) fn name(number: usize) -> String {
    format!("somebody-{number:05}")
}

/// Makes in `folder`, from its `home`, the home `many` with so many identities, all with the keys of
/// `me`. Their rows have no digests, as those of early versions: the command makes them when it
/// opens the home first.
pub(crate) fn multiply(folder: &Path, count: usize) {
    let home = folder.join("many");
    std::fs::create_dir(&home).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&home, private).unwrap();
    let file = home.join("registry.sqlite");
    std::fs::copy(folder.join("home/registry.sqlite"), &file).unwrap();
    let db = Connection::open(file).unwrap();
    without_digests(&db);
    db.execute_batch(&format!(
        "PRAGMA synchronous = OFF; BEGIN;
         CREATE TEMP TABLE number AS
           WITH RECURSIVE n (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM n WHERE n < {count})
           SELECT n, printf('somebody-%05d', n) AS name FROM n;
         CREATE TEMP TABLE one AS SELECT * FROM key;
         CREATE TEMP TABLE me AS SELECT * FROM identity;"
    ))
    .unwrap();
    for (usage, step) in [("sign", 0), ("decrypt", count)] {
        copy(
            &db,
            "key",
            "one, number",
            &|column| match column {
                "id" => format!("1000 + {step} + n"),
                "engine" => "replace(engine, 'me', number.name)".into(),
                "owner_name" => "number.name".into(),
                other => format!("one.{other}"),
            },
            &format!("usage = '{usage}'"),
        );
    }
    copy(
        &db,
        "identity",
        "me, number",
        &|column| match column {
            "name" => "number.name".into(),
            "sign_key" => "1000 + n".into(),
            "decrypt_key" => format!("1000 + {count} + n"),
            other => format!("me.{other}"),
        },
        "TRUE",
    );
    db.execute_batch("COMMIT").unwrap();
}

fn texts(db: &Connection, query: &str) -> Vec<String> {
    let mut query = db.prepare(query).unwrap();
    let rows = query.query_map([], |row: &Row<'_>| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

/// Inserts into a table what `from` gives, each column by an expression of its own.
fn copy(db: &Connection, table: &str, from: &str, value: &dyn Fn(&str) -> String, only: &str) {
    let columns = texts(
        db,
        &format!("SELECT name FROM pragma_table_info('{table}')"),
    );
    let values: Vec<String> = columns.iter().map(|column| value(column)).collect();
    let (columns, values) = (columns.join(", "), values.join(", "));
    let insert =
        format!("INSERT INTO {table} ({columns}) SELECT {values} FROM {from} WHERE {only}");
    db.execute_batch(&insert).unwrap();
}

/// Takes from a registry what version 2 of it did not have.
fn without_digests(db: &Connection) {
    let has = |column: &str| {
        texts(
            db,
            &format!(
                "SELECT t.name FROM sqlite_schema t JOIN pragma_table_info(t.name) c \
                 WHERE t.type = 'table' AND c.name = '{column}'"
            ),
        )
    };
    let tables = has("digest");
    if tables.is_empty() {
        return;
    }
    for table in has("length_in") {
        let drop = format!("ALTER TABLE {table} DROP COLUMN length_in");
        db.execute_batch(&drop).unwrap();
    }
    for table in tables {
        let drop = format!("ALTER TABLE {table} DROP COLUMN digest");
        db.execute_batch(&drop).unwrap();
    }
    db.execute_batch("DROP TABLE seal").unwrap();
    db.pragma_update(None, "user_version", 2).unwrap();
}

/// Runs it to its end.
fn took(mut command: Command) -> Duration {
    let begun = Instant::now();
    let status = command.status().unwrap();
    let took = begun.elapsed();
    assert!(status.success(), "{command:?}");
    took
}

/// Runs the first and all others in turn; the medians of the ratios of the first to each other,
/// and of the first's own time in milliseconds.
pub(crate) fn side_by_side(rounds: usize, commands: &[&dyn Fn() -> Command]) -> (Vec<f64>, f64) {
    let median = |mut samples: Vec<f64>| {
        samples.sort_by(f64::total_cmp);
        samples[samples.len() / 2]
    };
    commands.iter().for_each(|command| {
        took(command());
    });
    let samples: Vec<Vec<f64>> = (0..rounds)
        .map(|_| {
            let took = commands.iter().map(|command| took(command()).as_secs_f64());
            took.collect()
        })
        .collect();
    let ratios = (1..commands.len())
        .map(|other| median(samples.iter().map(|took| took[0] / took[other]).collect()))
        .collect();
    let first = median(samples.iter().map(|took| took[0] * 1e3).collect());
    (ratios, first)
}

fn one_signature(ours: &Side, other: Option<&Side>) -> Vec<Figure> {
    let (barely, by_tool) = (|| ours.signs_barely(), || ours.signs_by_tool());
    let ours_signs = || ours.signs();
    let other_signs = other.map(|other| || other.signs());
    let mut commands: Vec<&dyn Fn() -> Command> = vec![&ours_signs, &barely, &by_tool];
    if let Some(other) = &other_signs {
        commands.push(other);
    }
    let (ratios, first) = side_by_side(SIGNATURES, &commands);
    let names = [
        (
            "sign_process_ratio",
            "≤ 1.15",
            "a bare process that does the same",
        ),
        ("sign_process_tool_ratio", "≤ 1.00", "`pkcs11-tool --sign`"),
        ("sign_process_against", "", "that of the other build"),
    ];
    let figure = |(value, (name, wanted, than)): (f64, _)| Figure {
        name,
        value,
        wanted,
        what: format!("`claviger sign` as a process {first:.1} ms / {than}"),
    };
    ratios.into_iter().zip(names).map(figure).collect()
}

fn identities(ours: &Side, other: Option<&Side>) -> Vec<Figure> {
    multiply(ours.folder.path(), IDENTITIES);
    let ours_lists = || ours.lists();
    let other_lists = other.map(|other| {
        multiply(other.folder.path(), IDENTITIES);
        || other.lists()
    });
    let mut commands: Vec<&dyn Fn() -> Command> = vec![&ours_lists];
    if let Some(other) = &other_lists {
        commands.push(other);
    }
    let (ratios, first) = side_by_side(LISTS, &commands);
    let what = "`claviger identities` with 20,000 identities";
    let mut figures = vec![Figure {
        name: "identities_20k_ms",
        value: first,
        wanted: "",
        what: format!("{what}, in ms"),
    }];
    figures.extend(ratios.into_iter().map(|value| Figure {
        name: "identities_20k_against",
        value,
        wanted: "≤ 1.05",
        what: format!("{what} / that of the other build"),
    }));
    figures
}
