//! The registry file: its path, its permissions, its schema.

use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use super::backup::write_private;
use super::digests::{self, CERTIFICATE, GRANTS, OWNER, TABLES, Table};
use super::ours::Ours;
use super::{RegistryError, Result, home, snapshot};
use crate::lease::Lease;

/// `CLAV`: tells a registry from any other SQLite file.
const APPLICATION_ID: i32 = 0x434c_4156;
/// The version of the schema that this program writes.
const SCHEMA_VERSION: i32 = 6;
/// How long to wait for another process that is writing.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait for other processes before a registry of an older version is converted.
const ALONE_TIMEOUT: Duration = Duration::from_secs(2);
/// So often it is tried.
const TRY_AGAIN: Duration = Duration::from_millis(10);

pub(super) fn create_private_folder(path: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Opens the registry at `path`, or makes one there, as one of those who share it. It is of this
/// version then, or not to be converted.
///
/// A registry of an older version is converted by the only one who has it open: programs of
/// before would go on writing rows without digests to it.
///
/// # Errors
/// [`RegistryError::InUse`]: others have open what is to be converted. And what the file system
/// and SQLite say.
pub(super) fn open_shared(path: &Path, run: &Path) -> Result<(Lease, Ours, Connection)> {
    let give_up = Instant::now() + ALONE_TIMEOUT;
    loop {
        let lease = Lease::hold(run).map_err(|e| match e.kind() {
            ErrorKind::WouldBlock => RegistryError::Busy,
            _ => RegistryError::io(&e),
        })?;
        lease.sweep();
        if !path.exists() {
            make_new(path, &lease)?;
        }
        let file = Ours::check(path)?;
        let connection = open(path, &file)?;
        let shape = Shape::of(&connection)?;
        if !shape.is_older() {
            get_ready(&connection, &shape)?;
            return Ok((lease, file, connection));
        }
        drop(connection);
        drop(lease);
        match Lease::hold_alone(run) {
            Ok(_alone) => prepare(&open(path, &Ours::check(path)?)?)?,
            Err(e) if e.kind() != ErrorKind::WouldBlock => return Err(RegistryError::io(&e)),
            Err(_) if Instant::now() < give_up => std::thread::sleep(TRY_AGAIN),
            Err(_) => return Err(RegistryError::InUse),
        }
    }
}

/// Another connection to the file at `path`, which is `file`, to write to it.
pub(super) fn open_to_write(path: &Path, file: &Ours) -> Result<Connection> {
    file.is_still_there()?;
    let connection = open(path, file)?;
    prepare_to_write(&connection)?;
    Ok(connection)
}

/// A connection to the file at `path`, which is `file`.
fn open(path: &Path, file: &Ours) -> Result<Connection> {
    let connection = Connection::open(path)?;
    file.is_still_there()?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    check_pages(&connection)?;
    match connection.is_readonly(rusqlite::MAIN_DB)? {
        true => Err(RegistryError::ReadOnly),
        false => Ok(connection),
    }
}

/// Makes an empty registry at `path`, where there is nothing: in another place first, so that an
/// empty file is never there, and of two processes that come here one is first. The other place
/// is swept with the lease.
///
/// # Errors
/// [`RegistryError::Lost`]: SQLite would take what is left beside it for a part of the new one.
fn make_new(path: &Path, lease: &Lease) -> Result<()> {
    let io = |error: std::io::Error| RegistryError::io(&error);
    if let Some(left) = snapshot::journal(path)
        // Another process may have made the registry meanwhile, and written to it.
        && !path.exists()
    {
        let path = path.into();
        return Err(RegistryError::Lost { path, left });
    }
    let mut db = Connection::open_in_memory()?;
    prepare_new(&db)?;
    if let Some(home) = path.parent() {
        home::enter_new(&db, home)?;
    }
    let bytes = snapshot::to_bytes(&mut db)?;
    let beside = lease.path_for("registry").map_err(io)?;
    let beside = beside.ok_or(RegistryError::ReadOnly)?;
    // SQLite gives the files that it puts beside it the same permissions.
    let beside = tempfile::TempPath::try_from_path(beside).map_err(io)?;
    write_private(&beside, &bytes).map_err(io)?;
    match beside.persist_noclobber(path) {
        Ok(()) => Ok(()),
        Err(failed) if failed.error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(failed) => Err(io(failed.error)),
    }
}

/// Makes the tables in a file, or in memory, where there are none.
pub(super) fn prepare_new(db: &Connection) -> Result<()> {
    match Shape::of(db)? {
        shape @ Shape { is_empty: true, .. } => make_ready(db, &shape)?,
        _ => return Err(foreign(db)),
    }
    prepare_to_write(db)
}

/// Gets a registry ready that is there, also to write to it: one of an older version is converted.
pub(super) fn prepare(db: &Connection) -> Result<()> {
    get_ready(db, &Shape::of(db)?)?;
    prepare_to_write(db)
}

/// Gets a registry ready that is there and has this shape.
fn get_ready(db: &Connection, shape: &Shape) -> Result<()> {
    if shape.application != APPLICATION_ID {
        return Err(foreign(db));
    }
    if shape.version > SCHEMA_VERSION {
        return Err(RegistryError::Newer {
            found: shape.version,
            known: SCHEMA_VERSION,
        });
    }
    make_ready(db, shape)
}

fn make_ready(db: &Connection, shape: &Shape) -> Result<()> {
    switch_to_wal(db)?;
    check_pages(db)?;
    if !shape.lacks_nothing() {
        prepare_to_write(db)?;
        // Two processes may come here at once; the second finds the first's tables.
        db.execute_batch("BEGIN IMMEDIATE")?;
        match convert(db) {
            Ok(()) => db.execute_batch("COMMIT")?,
            Err(error) => {
                let _ = db.execute_batch("ROLLBACK");
                return Err(error);
            }
        }
    }
    Ok(())
}

/// What holds for a connection that writes.
fn prepare_to_write(db: &Connection) -> Result<()> {
    // An intent must be on the disk before the token is touched.
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "foreign_keys", true)?;
    // What is forgotten is overwritten.
    Ok(db.pragma_update(None, "secure_delete", true)?)
}

/// Has SQLite look closer at each page that it reads.
fn check_pages(db: &Connection) -> Result<()> {
    Ok(db.pragma_update(None, "cell_size_check", true)?)
}

/// Columns that tables of older versions lack.
const ADDED: [(&str, &str, &str); 7] = [
    ("key", "attestation", "TEXT"),
    ("key", "derived", "INTEGER NOT NULL DEFAULT 0"),
    ("intent", "keys", "TEXT"),
    ("evidence", "number", "BLOB"),
    ("evidence", "until", "INTEGER"),
    ("home", "first_account", "INTEGER"),
    ("refused_pin", "length_in", "INTEGER"),
];

/// Tables that came after the digests, each with the first version that has it. An older one has
/// the digests of all others.
const NEW: [(&Table, i32); 3] = [(&OWNER, 5), (&GRANTS, 5), (&CERTIFICATE, 6)];

/// Makes the tables and columns that are not there, and the digests of rows of before.
fn convert(db: &Connection) -> Result<()> {
    let shape = Shape::within(db)?;
    if shape.lacks_nothing() {
        return Ok(());
    }
    // Version 3 was never released; the last ones of it are as those of version 4. A program of
    // before may have set the number of a later one back.
    let has_digests = (3..SCHEMA_VERSION).contains(&shape.version);
    let as_in = |version: &i32| has_digests && shape.is_as_in(*version);
    if let Some(version) = (shape.version.max(4)..=SCHEMA_VERSION).find(as_in) {
        db.execute_batch(SCHEMA)?;
        for (table, _) in NEW.iter().filter(|(_, since)| *since > version) {
            digests::make_all(db, table)?;
        }
        return Ok(db.pragma_update(None, "user_version", SCHEMA_VERSION)?);
    }
    // Rows with digests are of this version: what such a registry lacks it has lost.
    if shape.has_digests() || (shape.version == 0 && !shape.is_empty) {
        return Err(RegistryError::Damaged {
            reason: "its tables differ from those of its version".into(),
        });
    }
    if !shape.is_empty {
        // The digests are to be those of rows that are whole.
        check_structure(db)?;
    }
    for (table, column, definition) in ADDED {
        if shape.has(table) && !shape.has_column(table, column) {
            db.execute_batch(&format!(
                "ALTER TABLE {table} ADD COLUMN {column} {definition}"
            ))?;
        }
    }
    for table in TABLES.iter().filter(|table| shape.has(table.name)) {
        db.execute_batch(&format!(
            "ALTER TABLE {} ADD COLUMN digest BLOB",
            table.name
        ))?;
    }
    db.execute_batch(SCHEMA)?;
    for table in TABLES {
        digests::make_all(db, table)?;
    }
    db.pragma_update(None, "application_id", APPLICATION_ID)?;
    Ok(db.pragma_update(None, "user_version", SCHEMA_VERSION)?)
}

/// Refuses a file whose pages, tables and indexes SQLite finds to be damaged. That takes some
/// 2 ms for each MiB.
pub(super) fn check_structure(db: &Connection) -> Result<()> {
    // `quick_check` takes half of that and does not compare the indexes with their tables; an
    // index that is damaged leads to another row.
    let found: String = db.query_row("PRAGMA main.integrity_check(1)", [], |row| row.get(0))?;
    match found.as_str() {
        "ok" => Ok(()),
        _ => Err(RegistryError::Damaged { reason: found }),
    }
}

/// The same of a small file, for one who looks up little in it later: few of its pages stay in
/// memory. Each that does is memory that the system has to find and to clear, and a process that
/// makes one signature has no use for most.
pub(super) fn check_small(db: &Connection) -> Result<()> {
    const FEW: i32 = 20;
    // In KiB, which is what negative numbers say: what SQLite itself begins with.
    const USUAL: i32 = -2000;
    db.pragma_update(None, "cache_size", FEW)?;
    let checked = check_structure(db);
    db.pragma_update(None, "cache_size", USUAL)?;
    checked
}

/// What is in a file, before anything is done to it.
struct Shape {
    application: i32,
    version: i32,
    is_empty: bool,
    tables: Tables,
}

/// Tables, each with its columns.
type Tables = Vec<(String, Vec<String>)>;

impl Shape {
    /// Whether it is a registry that this version converts.
    fn is_older(&self) -> bool {
        self.application == APPLICATION_ID && (1..SCHEMA_VERSION).contains(&self.version)
    }

    /// Looks at it, all at one moment: another process may be making the tables.
    fn of(db: &Connection) -> Result<Shape> {
        let moment = db.unchecked_transaction()?;
        Shape::within(&moment).map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => foreign(db),
            _ => error.into(),
        })
    }

    fn within(moment: &Connection) -> rusqlite::Result<Shape> {
        let number = |name| moment.pragma_query_value(None, name, |row| row.get(0));
        let tables = match is_as_made(moment)? {
            true => of_this_version(),
            false => tables(moment)?,
        };
        let nothing = "SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)";
        Ok(Shape {
            application: number("application_id")?,
            version: number("user_version")?,
            is_empty: tables.is_empty() && moment.query_row(nothing, [], |row| row.get(0))?,
            tables,
        })
    }

    fn columns(&self, table: &str) -> Option<&[String]> {
        let found = self.tables.iter().find(|(known, _)| known == table);
        found.map(|(_, columns)| &**columns)
    }

    fn has(&self, table: &str) -> bool {
        self.columns(table).is_some()
    }

    fn has_column(&self, table: &str, column: &str) -> bool {
        let columns = self.columns(table).unwrap_or_default();
        columns.iter().any(|known| known == column)
    }

    fn has_digests(&self) -> bool {
        let mut tables = self.tables.iter();
        tables.any(|(table, _)| table == "seal" || self.has_column(table, "digest"))
    }

    fn lacks_nothing(&self) -> bool {
        self.version == SCHEMA_VERSION && self.has_all()
    }

    /// Whether it has the tables and columns of this version.
    fn has_all(&self) -> bool {
        TABLES.iter().all(|table| self.has_whole(table)) && self.has("seal")
    }

    /// Whether it has those of this version, 4 or later, and none of those that came after it.
    fn is_as_in(&self, version: i32) -> bool {
        let is_later = |table: &Table| {
            let mut new = NEW.iter();
            new.any(|(new, since)| new.name == table.name && *since > version)
        };
        let as_then = |table: &Table| match is_later(table) {
            true => !self.has(table.name),
            false => self.has_whole(table),
        };
        TABLES.iter().all(|table| as_then(table)) && self.has("seal")
    }

    fn has_whole(&self, table: &Table) -> bool {
        let mut columns = table.columns.iter().chain([&"digest"]);
        columns.all(|column| self.has_column(table.name, column))
    }
}

/// What a new registry is made with.
const SCHEMA: &str = include_str!("schema.sql");

/// The tables of a new registry, as SQLite keeps them.
fn as_made() -> impl Iterator<Item = &'static str> {
    const ENDS: &str = ") STRICT";
    let statements = SCHEMA.split("CREATE TABLE IF NOT EXISTS ").skip(1);
    statements.filter_map(|rest| rest.get(..rest.find(ENDS)? + ENDS.len()))
}

/// Whether the tables are those that this version makes, to the letter. Then their columns need not
/// be looked up, which takes SQLite ten times as long.
fn is_as_made(moment: &Connection) -> rusqlite::Result<bool> {
    let mut query = moment.prepare(
        "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name <> 'sqlite_sequence'",
    )?;
    let mut rows = query.query([])?;
    for wanted in as_made() {
        let is_it = match rows.next()? {
            Some(row) => {
                let found = row.get_ref(0)?.as_str_or_null()?.unwrap_or_default();
                found.strip_prefix("CREATE TABLE ") == Some(wanted)
            }
            None => false,
        };
        if !is_it {
            return Ok(false);
        }
    }
    Ok(rows.next()?.is_none())
}

/// The tables of this version.
fn of_this_version() -> Tables {
    let columns = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let table = |table: &&Table| {
        let names = [table.columns, &["digest"]].concat();
        (table.name.to_owned(), columns(&names))
    };
    let seal = ("seal".to_owned(), columns(&["name", "digests"]));
    TABLES.iter().map(table).chain([seal]).collect()
}

/// The tables that are there.
fn tables(moment: &Connection) -> rusqlite::Result<Tables> {
    let mut query = moment.prepare(
        "SELECT t.name, c.name FROM sqlite_schema t JOIN pragma_table_info(t.name) c \
         WHERE t.type = 'table'",
    )?;
    let mut rows = query.query([])?;
    let mut tables = Tables::new();
    while let Some(row) = rows.next()? {
        let (table, column) = (row.get_ref(0)?.as_str()?, row.get(1)?);
        match tables.last_mut() {
            Some((last, columns)) if last == table => columns.push(column),
            _ => tables.push((table.into(), vec![column])),
        }
    }
    Ok(tables)
}

/// The file is that of another program.
fn foreign(db: &Connection) -> RegistryError {
    RegistryError::NotARegistry {
        path: db.path().unwrap_or_default().into(),
    }
}

/// Switches to the write-ahead log. SQLite itself does not wait here for another process
/// that does the same.
fn switch_to_wal(db: &Connection) -> Result<()> {
    let give_up = Instant::now() + BUSY_TIMEOUT;
    loop {
        match db
            .pragma_update(None, "journal_mode", "WAL")
            .map_err(RegistryError::from)
        {
            Err(RegistryError::Busy) if Instant::now() < give_up => {
                std::thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_of_a_new_registry_are_known_by_what_they_were_made_with() {
        let db = Connection::open_in_memory().unwrap();
        assert!(!is_as_made(&db).unwrap());
        prepare_new(&db).unwrap();
        assert!(is_as_made(&db).unwrap());
        let sorted = |mut tables: Tables| {
            tables.retain(|(table, _)| table != "sqlite_sequence");
            tables.iter_mut().for_each(|(_, columns)| columns.sort());
            tables.sort();
            tables
        };
        assert_eq!(sorted(of_this_version()), sorted(tables(&db).unwrap()));
        for change in [
            "ALTER TABLE contact ADD COLUMN more TEXT",
            "ALTER TABLE contact RENAME COLUMN more TO other",
            "DROP TABLE contact",
            "CREATE TABLE contact (name TEXT)",
        ] {
            db.execute_batch(change).unwrap();
            assert!(!is_as_made(&db).unwrap(), "{change}");
        }
        let larger = Connection::open_in_memory().unwrap();
        prepare_new(&larger).unwrap();
        larger.execute_batch("CREATE TABLE strange (x)").unwrap();
        assert!(!is_as_made(&larger).unwrap());
    }

    #[test]
    fn who_writes_waits_as_long_as_it_says_for_another_who_writes() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("r");
        let (_lease, file, _reader) = open_shared(&path, &home.path().join("run")).unwrap();
        let db = open_to_write(&path, &file).unwrap();
        let waits: i64 = db
            .pragma_query_value(None, "busy_timeout", |row| row.get(0))
            .unwrap();
        assert_eq!(i128::from(waits), BUSY_TIMEOUT.as_millis().cast_signed());
    }
}
