//! A digest of each row, over the whole row, so that damage is detected before the row is used.
//!
//! SQLite detects a malformed page, but no changed byte within a value. So each row has a SHA-256
//! of the table's name and of each column that is not NULL, all of them with their length in
//! front. The digest of an identity also covers the digests of its keys, which binds its name to
//! its keys and their slots. Triggers of the writing connection make the digests (they are TEMP:
//! the file has none), so that no statement can omit them. [`Table::check`] and
//! [`Unchecked::check`] compare them wherever a row is used.
//!
//! A page that was not written leaves an older state behind, with each row intact. So the table
//! `seal` has, for each other table, the XOR of the digests of all its rows. Whoever lists a whole
//! table compares it ([`Sum`]), and so does [`Registry::check`](super::Registry::check): rows that
//! are missing, twice there or came back are detected.
//!
//! This defends against damage, and against programs that change a row without knowing about
//! digests. Whoever can write the file and knows this page can also make a digest.

use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, params};
use sha2::{Digest as _, Sha256};

use super::RegistryError;
use super::rows::NotAsWritten;

/// The SQL function that makes a digest: of the table's name, its columns and what they are
/// bound to, in the order of [`Table`].
const FUNCTION: &str = "claviger_digest";

/// The SQL function that adds two digests without carry. One that is NULL adds nothing.
const ADD: &str = "claviger_add";

pub(super) type RowDigest = [u8; 32];

/// Most rows are shorter, in bytes.
const USUAL: usize = 1024;

/// A table with what its digests are over.
pub(crate) struct Table {
    pub(super) name: &'static str,
    /// All but `digest`. New ones, which may be NULL, go to the end of it: the digests of rows
    /// without them stay as they are.
    pub(super) columns: &'static [&'static str],
    /// The column that names a row to people.
    called: &'static str,
    /// What else the digest is over: a name for it, and the column with the key whose digest
    /// it is.
    bound: &'static [(&'static str, &'static str)],
}

pub(super) const KEY: Table = Table {
    name: "key",
    columns: &[
        "id",
        "usage",
        "engine",
        "kind",
        "manufacturer",
        "serial",
        "backend",
        "slot",
        "public_key",
        "fingerprint",
        "origin",
        "protection",
        "attestation",
        "owner_node",
        "owner_name",
        "deleted",
        "derived",
    ],
    called: "engine",
    bound: &[],
};

pub(super) const IDENTITY: Table = Table {
    name: "identity",
    columns: &[
        "node",
        "name",
        "backend",
        "capabilities",
        "sign_key",
        "decrypt_key",
        "lease",
    ],
    called: "name",
    bound: &[
        ("digest of sign_key", "sign_key"),
        ("digest of decrypt_key", "decrypt_key"),
    ],
};

pub(super) const INTENT: Table = Table {
    name: "intent",
    columns: &[
        "id",
        "action",
        "lease",
        "node",
        "name",
        "kind",
        "manufacturer",
        "serial",
        "backend",
        "slots",
        "keys",
    ],
    called: "name",
    bound: &[],
};

pub(super) const HOME: Table = Table {
    name: "home",
    columns: &["id", "inode", "machine", "first_account"],
    called: "id",
    bound: &[],
};

pub(super) const TRIED: Table = Table {
    name: "tried",
    columns: &["model", "what", "works"],
    called: "what",
    bound: &[],
};

pub(crate) const REFUSED_PIN: Table = Table {
    name: "refused_pin",
    columns: &[
        "kind",
        "manufacturer",
        "serial",
        "salt",
        "log_n",
        "r",
        "p",
        "hash",
        "length_in",
    ],
    called: "serial",
    bound: &[],
};

pub(crate) const SENT_PIN: Table = Table {
    name: "sent_pin",
    columns: &["kind", "manufacturer", "serial", "tries"],
    called: "serial",
    bound: &[],
};

pub(super) const SPENT_SLOT: Table = Table {
    name: "spent_slot",
    columns: &["kind", "manufacturer", "serial", "slot"],
    called: "slot",
    bound: &[],
};

pub(super) const EVIDENCE: Table = Table {
    name: "evidence",
    columns: &[
        "id",
        "statement",
        "from_name",
        "from_sign",
        "from_decrypt",
        "from_keys",
        "to_name",
        "to_sign",
        "to_decrypt",
        "to_keys",
        "scheme",
        "signature",
        "number",
        "until",
    ],
    called: "id",
    bound: &[],
};

pub(super) const REVOCATION: Table = Table {
    name: "revocation",
    columns: &["id", "statement", "signer", "scheme", "signature"],
    called: "id",
    bound: &[],
};

pub(super) const CONTACT: Table = Table {
    name: "contact",
    columns: &["name", "sign", "decrypt"],
    called: "name",
    bound: &[],
};

pub(super) const OWNER: Table = Table {
    name: "owner",
    columns: &["node", "name", "uid"],
    called: "name",
    bound: &[],
};

pub(super) const GRANTS: Table = Table {
    name: "grants",
    columns: &[
        "id",
        "subject",
        "number",
        "socket",
        "identity",
        "operation",
        "purpose",
    ],
    called: "id",
    bound: &[],
};

pub(super) const CERTIFICATE: Table = Table {
    name: "certificate",
    columns: &["fingerprint", "chain"],
    called: "fingerprint",
    bound: &[],
};

/// All tables; a table comes after those that it is bound to.
pub(super) const TABLES: [&Table; 14] = [
    &KEY,
    &IDENTITY,
    &INTENT,
    &HOME,
    &TRIED,
    &REFUSED_PIN,
    &SENT_PIN,
    &SPENT_SLOT,
    &EVIDENCE,
    &REVOCATION,
    &CONTACT,
    &OWNER,
    &GRANTS,
    &CERTIFICATE,
];

impl Table {
    /// Where a column stands in what [`Table::select`] gives. To be asked for when the program is
    /// built (`const { … }`): looked up by name for each row it takes a third of reading them all.
    pub(super) const fn at(&self, column: &str) -> usize {
        let mut at = 0;
        while at < self.columns.len() && !is_same(self.columns[at], column) {
            at += 1;
        }
        assert!(at < self.columns.len(), "the table has no such column");
        at
    }

    /// Where the digest stands in it.
    pub(super) const fn digest_at(&self) -> usize {
        self.columns.len()
    }

    /// A query for whole rows, as [`Table::check`] wants them; `rest` follows the table's name.
    pub(crate) fn select(&self, rest: &str) -> String {
        format!(
            "SELECT {}, digest FROM {} {rest}",
            self.columns.join(", "),
            self.name
        )
    }

    /// Refuses a row that is not as it was written. It is one of [`Table::select`].
    pub(crate) fn check(&self, row: &Row<'_>) -> rusqlite::Result<()> {
        match self.unchecked(row)?.is_whole() {
            true => Ok(()),
            false => Err(NotAsWritten::error(self.name, &self.shown(row))),
        }
    }

    /// A row whose digest is over more than the row.
    pub(super) fn unchecked(&self, row: &Row<'_>) -> rusqlite::Result<Unchecked> {
        let mut content = self.content();
        for (column, name) in self.columns.iter().enumerate() {
            add(&mut content, name, row.get_ref(column)?);
        }
        Ok(Unchecked {
            content,
            // What has none was not written by us.
            digest: row.get(self.digest_at()).ok(),
        })
    }

    /// The row as people are told of it: it may hold anything.
    fn shown(&self, row: &Row<'_>) -> String {
        let text = match row.get_ref(self.called) {
            Ok(ValueRef::Integer(number)) => number.to_string(),
            Ok(ValueRef::Text(text)) => String::from_utf8_lossy(text).into_owned(),
            _ => String::new(),
        };
        text.chars().take(64).collect()
    }

    /// What a digest is over, up to the first column.
    fn content(&self) -> Vec<u8> {
        let mut content = Vec::with_capacity(USUAL);
        field(&mut content, self.name.as_bytes());
        content
    }

    /// The SQL expression of a row's digest. `row` stands in front of its columns: `old.`, or
    /// nothing; `of_key` has the SQL expression of a bound key's digest.
    fn expression(&self, row: &str, of_key: impl Fn(&str) -> String) -> String {
        let columns = self.columns.iter().map(|column| format!("{row}{column}"));
        let bound = self.bound.iter();
        let bound = bound.map(|(_, column)| of_key(&format!("{row}{column}")));
        let values: Vec<String> = columns.chain(bound).collect();
        format!("{FUNCTION}('{}', {})", self.name, values.join(", "))
    }

    /// The SQL statement that adds these digests to the table's seal.
    fn seal(&self, digests: &[&str]) -> String {
        let sum = { digests.iter() }.fold("digests".to_owned(), |sum, digest| {
            format!("{ADD}({sum}, {digest})")
        });
        format!(
            "UPDATE seal SET digests = {sum} WHERE name = '{}';",
            self.name
        )
    }

    fn update(&self, rest: &str) -> String {
        format!(
            "UPDATE {} SET digest = {} {rest};",
            self.name,
            self.expression("", digest_of_key)
        )
    }
}

const fn is_same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

/// The SQL expression of the digest of the key in this column.
fn digest_of_key(column: &str) -> String {
    format!("(SELECT digest FROM key WHERE id = {column})")
}

/// The same in a trigger, before the key was changed that is `old` and `new` there.
fn digest_of_key_before(column: &str) -> String {
    let else_now = digest_of_key(column);
    format!("CASE {column} WHEN new.id THEN old.digest ELSE {else_now} END")
}

/// A row before it was compared with its digest.
pub(super) struct Unchecked {
    content: Vec<u8>,
    digest: Option<RowDigest>,
}

impl Unchecked {
    /// Adds the digest of a row that it is bound to.
    pub(super) fn bind(&mut self, (name, _): (&str, &str), digest: Option<&RowDigest>) {
        let value = digest.map_or(ValueRef::Null, |digest| ValueRef::Blob(digest));
        add(&mut self.content, name, value);
    }

    /// Whether it is as it was written.
    pub(super) fn is_whole(&self) -> bool {
        self.digest == Some(Sha256::digest(&self.content).into())
    }
}

/// Where the digest of an identity takes those of its keys.
pub(super) const OF_SIGN_KEY: (&str, &str) = IDENTITY.bound[0];
pub(super) const OF_DECRYPT_KEY: (&str, &str) = IDENTITY.bound[1];

/// Has each row that this connection writes get its digest. To be called before it writes; the
/// first time takes a millisecond or two, which those who only read are spared.
pub(crate) fn keep(db: &Connection) -> rusqlite::Result<()> {
    let triggers = "SELECT 1 FROM temp.sqlite_schema WHERE type = 'trigger'";
    if db.prepare_cached(triggers)?.exists([])? {
        return Ok(());
    }
    register(db)?;
    // No file for what is temporary: there may be no space, or no way to write one.
    db.pragma_update(None, "temp_store", "MEMORY")?;
    // Also where a row is deleted because another one replaces it.
    db.pragma_update(None, "recursive_triggers", true)?;
    let mut triggers = String::new();
    for table in TABLES {
        let name = table.name;
        let own = table.update("WHERE rowid = new.rowid");
        // A row that was not whole before stays so: its digest is left as it is.
        let was_whole = format!("old.digest IS {}", table.expression("old.", digest_of_key));
        // Whoever is bound to the row has another digest then.
        let bound = match name {
            "key" => IDENTITY.update(&format!(
                "WHERE (sign_key = new.id OR decrypt_key = new.id) AND digest IS {}",
                IDENTITY.expression("", digest_of_key_before)
            )),
            _ => String::new(),
        };
        // A row may come with a digest, which is added and taken off again with the right one.
        for (what, after, when, then) in [
            (
                "new",
                "INSERT".to_owned(),
                "TRUE",
                format!("{} {own}", table.seal(&["new.digest"])),
            ),
            (
                "changed",
                format!("UPDATE OF {}", table.columns.join(", ")),
                &was_whole,
                format!("{own} {bound}"),
            ),
            (
                "sealed",
                "UPDATE OF digest".to_owned(),
                "TRUE",
                table.seal(&["old.digest", "new.digest"]),
            ),
            (
                "deleted",
                "DELETE".to_owned(),
                "TRUE",
                table.seal(&["old.digest"]),
            ),
        ] {
            triggers.push_str(&format!(
                "CREATE TEMP TRIGGER {what}_{name} AFTER {after} ON main.{name} \
                 WHEN {when} BEGIN {then} END;"
            ));
        }
    }
    // All of them or none: it is asked above whether there is one.
    let all = db.unchecked_transaction()?;
    all.execute_batch(&triggers)?;
    all.commit()
}

/// Gives all rows of a table that has had none their digests, and the table its seal.
pub(super) fn make_all(db: &Connection, table: &Table) -> rusqlite::Result<()> {
    register(db)?;
    db.execute_batch(&table.update(""))?;
    db.execute(
        "INSERT INTO seal (name, digests) VALUES (?, ?)",
        params![table.name, sum_of(db, table)?],
    )?;
    Ok(())
}

/// The digests of the rows of a table that were read, added up.
pub(super) struct Sum {
    table: &'static Table,
    digests: RowDigest,
}

impl Sum {
    pub(super) fn of(table: &'static Table) -> Self {
        Sum {
            table,
            digests: RowDigest::default(),
        }
    }

    /// Adds a row, which is to be compared with its digest by itself. It is one of
    /// [`Table::select`].
    pub(super) fn add(&mut self, row: &Row<'_>) -> rusqlite::Result<()> {
        self.digests = added(self.digests, row.get(self.table.digest_at())?);
        Ok(())
    }

    /// Refuses rows that are not all that were written, or more: a page of the table or of an
    /// index can be an older or another one, and each row of it intact.
    pub(super) fn check(&self, db: &Connection) -> Result<(), RegistryError> {
        match is_seal(db, self.table, self.digests)? {
            true => Ok(()),
            false => Err(not_sealed(self.table)),
        }
    }
}

/// Whether the rows of a table are all that were written, and no more. Each is to be compared
/// with its digest by itself.
pub(super) fn is_sealed(db: &Connection, table: &Table) -> rusqlite::Result<bool> {
    is_seal(db, table, sum_of(db, table)?)
}

fn is_seal(db: &Connection, table: &Table, digests: RowDigest) -> rusqlite::Result<bool> {
    let seal: Option<RowDigest> = db
        .prepare_cached("SELECT digests FROM seal WHERE name = ?")?
        .query_row([table.name], |row| row.get(0))
        .optional()?;
    Ok(seal == Some(digests))
}

pub(super) fn not_sealed(table: &Table) -> RegistryError {
    RegistryError::Damaged {
        reason: format!(
            "rows of the table {} are missing, added or replaced",
            table.name
        ),
    }
}

fn sum_of(db: &Connection, table: &Table) -> rusqlite::Result<RowDigest> {
    let mut query = db.prepare(&format!("SELECT digest FROM {} NOT INDEXED", table.name))?;
    let mut rows = query.query([])?;
    let mut sum = RowDigest::default();
    while let Some(row) = rows.next()? {
        sum = added(sum, row.get(0)?);
    }
    Ok(sum)
}

fn added(mut sum: RowDigest, more: Option<RowDigest>) -> RowDigest {
    for (byte, more) in sum.iter_mut().zip(more.unwrap_or_default()) {
        *byte ^= more;
    }
    sum
}

fn register(db: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8
        | FunctionFlags::SQLITE_DETERMINISTIC
        | FunctionFlags::SQLITE_INNOCUOUS;
    db.create_scalar_function(FUNCTION, -1, flags, digest)?;
    db.create_scalar_function(ADD, 2, flags, |context| {
        Ok(added(context.get(0)?, context.get(1)?))
    })
}

/// What [`FUNCTION`] does.
fn digest(context: &Context<'_>) -> rusqlite::Result<RowDigest> {
    let name = context.get_raw(0);
    let table = TABLES
        .into_iter()
        .find(|table| name == ValueRef::Text(table.name.as_bytes()))
        .ok_or(rusqlite::Error::InvalidFunctionParameterType(
            0,
            name.data_type(),
        ))?;
    let bound = table.bound.iter().map(|(name, _)| *name);
    let names = table.columns.iter().copied().chain(bound);
    let mut content = table.content();
    for (value, name) in (1..context.len()).zip(names) {
        add(&mut content, name, context.get_raw(value));
    }
    Ok(Sha256::digest(&content).into())
}

/// A column. One that is NULL is as one that is not there.
fn add(content: &mut Vec<u8>, name: &str, value: ValueRef<'_>) {
    let number: [u8; 8];
    let (kind, bytes) = match value {
        ValueRef::Null => return,
        ValueRef::Integer(value) => {
            number = value.to_be_bytes();
            (b'i', &number[..])
        }
        ValueRef::Real(value) => {
            number = value.to_be_bytes();
            (b'r', &number[..])
        }
        ValueRef::Text(text) => (b't', text),
        ValueRef::Blob(blob) => (b'b', blob),
    };
    field(content, name.as_bytes());
    content.push(kind);
    field(content, bytes);
}

/// Its length, and itself.
fn field(content: &mut Vec<u8>, bytes: &[u8]) {
    content.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
    content.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::schema::prepare_new;
    use super::*;

    #[test]
    fn each_column_of_each_table_is_in_a_digest() {
        let db = Connection::open_in_memory().unwrap();
        prepare_new(&db).unwrap();
        let mut query = db
            .prepare(
                "SELECT t.name, c.name FROM main.sqlite_schema t \
                 JOIN pragma_table_info(t.name) c \
                 WHERE t.type = 'table' AND t.name NOT IN ('sqlite_sequence', 'seal')",
            )
            .unwrap();
        let there: BTreeSet<(String, String)> = query
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .collect::<rusqlite::Result<_>>()
            .unwrap();
        let covered: BTreeSet<(String, String)> = TABLES
            .into_iter()
            .flat_map(|table| {
                let columns = table.columns.iter().chain([&"digest"]);
                columns.map(|column| (table.name.to_owned(), (*column).to_owned()))
            })
            .collect();
        assert_eq!(there, covered);
    }

    /// Two keys of `alice` and one of `bob`, who also decrypts with the second of `alice`.
    fn with_keys(db: &Connection) {
        let mut rows = String::new();
        for (id, owner) in [(1, "alice"), (2, "alice"), (3, "bob")] {
            rows.push_str(&format!(
                "INSERT INTO key (id, usage, engine, kind, manufacturer, serial, backend, slot, \
                 public_key, fingerprint, origin, owner_node, owner_name) VALUES \
                 ({id}, 'sign', '', '', '', '', '', 's', '', '', '', '', '{owner}');"
            ));
        }
        db.execute_batch(&format!(
            "{rows} INSERT INTO identity VALUES \
             ('', 'alice', '', '', 1, 2, NULL, NULL), ('', 'bob', '', '', 3, 2, NULL, NULL)"
        ))
        .unwrap();
        db.execute_batch("DELETE FROM seal").unwrap();
        for table in TABLES {
            make_all(db, table).unwrap();
        }
    }

    /// The numbers of keys and the names of identities whose digests are not theirs.
    fn altered(db: &Connection) -> Vec<String> {
        let mut altered = Vec::new();
        for (table, called) in [(&KEY, "id"), (&IDENTITY, "name")] {
            let query = format!(
                "SELECT CAST({called} AS TEXT) FROM {} WHERE digest IS NOT {} ORDER BY {called}",
                table.name,
                table.expression("", digest_of_key)
            );
            let mut query = db.prepare(&query).unwrap();
            let rows = query.query_map([], |row| row.get(0)).unwrap();
            altered.extend(rows.map(Result::unwrap));
        }
        altered
    }

    #[test]
    fn a_row_that_was_altered_stays_so_whatever_is_written_to_it() {
        let changes = "UPDATE key SET slot = 'other'; UPDATE identity SET lease = 'x'; \
                       UPDATE key SET deleted = 1; UPDATE identity SET backend = 'y'";
        for (alter, is_altered) in [
            ("SELECT 1", vec![]),
            // Who is bound to its digest, which nobody changed, is whole.
            ("UPDATE key SET public_key = 'x' WHERE id = 1", vec!["1"]),
            ("UPDATE key SET public_key = 'x' WHERE id = 2", vec!["2"]),
            (
                "UPDATE key SET digest = NULL WHERE id = 3",
                vec!["3", "bob"],
            ),
            (
                "UPDATE key SET digest = (SELECT digest FROM key WHERE id = 1) WHERE id = 2",
                vec!["2", "alice", "bob"],
            ),
            (
                "UPDATE identity SET sign_key = 3 WHERE name = 'alice'",
                vec!["alice"],
            ),
        ] {
            let db = Connection::open_in_memory().unwrap();
            prepare_new(&db).unwrap();
            with_keys(&db);
            db.execute_batch(alter).unwrap();
            assert_eq!(altered(&db), is_altered, "{alter}");
            keep(&db).unwrap();
            for change in changes.split(';') {
                db.execute_batch(change).unwrap();
                assert_eq!(altered(&db), is_altered, "{alter}, then {change}");
            }
            let is_sealed = [&KEY, &IDENTITY].map(|table| is_sealed(&db, table).unwrap());
            let touches_digests = alter.contains("digest");
            assert_eq!(is_sealed, [!touches_digests, true], "{alter}");
            // What replaces a row has nothing of it.
            db.execute_batch(
                "INSERT OR REPLACE INTO identity (node, name, backend, capabilities) \
                 VALUES ('', 'alice', '', '')",
            )
            .unwrap();
            assert!(!altered(&db).contains(&"alice".to_owned()), "{alter}");
        }
    }

    #[test]
    fn sql_and_rust_make_the_same_digest() {
        let db = Connection::open_in_memory().unwrap();
        prepare_new(&db).unwrap();
        keep(&db).unwrap();
        let insert = "INSERT INTO sent_pin (kind, manufacturer, serial, tries) \
                      VALUES ('a', '', 'c', ?)";
        for tries in [Some(3), None] {
            db.execute("DELETE FROM sent_pin", []).unwrap();
            db.execute(insert, [tries]).unwrap();
            let whole = db.query_row(&SENT_PIN.select(""), [], |row| {
                SENT_PIN.check(row)?;
                row.get::<_, RowDigest>("digest")
            });
            let mut hash = Sha256::new();
            // By hand, as the module's documentation describes it.
            for part in [
                "sent_pin",
                "kind",
                "ta",
                "manufacturer",
                "t",
                "serial",
                "tc",
            ] {
                let (kind, value) = match part {
                    "ta" | "t" | "tc" => part.split_at(1),
                    name => ("", name),
                };
                hash.update(kind);
                hash.update((value.len() as u64).to_be_bytes());
                hash.update(value);
            }
            if let Some(tries) = tries {
                hash.update(5_u64.to_be_bytes());
                hash.update("triesi");
                hash.update(8_u64.to_be_bytes());
                hash.update(i64::from(tries).to_be_bytes());
            }
            assert_eq!(whole.unwrap()[..], hash.finalize()[..]);
        }
    }
}
