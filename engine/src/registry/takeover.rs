//! What a restored registry takes over from the old one: records of rejected PINs, and the slots
//! of derived keys that were used.
//!
//! The old registry may be damaged: that may be why it is replaced. So each table is read as far as
//! possible. If rows are altered, their token gets no PIN without confirmation:
//!
//! | a row of the old registry | intact | altered |
//! | --- | --- | --- |
//! | `refused_pin` | is copied | its token counts as one whose answer never came |
//! | `sent_pin` | is copied | the same, without remaining attempts |
//! | `spent_slot`, and a derived key that the backup does not know | its slot is spent | the same |
//!
//! The backup's own records of rejected PINs stay, unless the old registry is an intact later state
//! of the same home: then they were removed there for a reason.

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params, params_from_iter};

use super::digests::{HOME, KEY, REFUSED_PIN, SENT_PIN, SPENT_SLOT, Table, is_sealed};
use super::{RegistryError, Result};

/// What names a token in a row.
const TOKEN: [&str; 3] = ["kind", "manufacturer", "serial"];

/// The id of the home that a registry is of, where that can be read.
pub(super) fn home_id(db: &Connection) -> Option<String> {
    let row = |row: &Row<'_>| {
        HOME.check(row)?;
        row.get("id")
    };
    db.query_row(&HOME.select(""), [], row)
        .optional()
        .ok()
        .flatten()
}

/// Takes over what can be read of `old`; `is_same_home`: `new` is an earlier state of it.
///
/// # Errors
/// What cannot be written to `new`.
pub(super) fn take_over(old: &Connection, new: &Connection, is_same_home: bool) -> Result<()> {
    let transaction = new.unchecked_transaction()?;
    let sent = Readable::of(old, &SENT_PIN, "");
    let refused = Readable::of(old, &REFUSED_PIN, "");
    if is_same_home && sent.is_all && refused.is_all {
        for table in [&SENT_PIN, &REFUSED_PIN] {
            transaction.execute(&format!("DELETE FROM {}", table.name), [])?;
        }
    }
    for row in &sent.rows {
        let tries = row.value("tries").filter(|_| row.is_whole);
        note_sent(&transaction, row, tries)?;
    }
    for row in &refused.rows {
        match row.is_whole {
            true => insert(&transaction, row)?,
            false => note_sent(&transaction, row, None)?,
        }
    }
    for (table, rest) in [(&SPENT_SLOT, ""), (&KEY, "WHERE derived")] {
        for row in Readable::of(old, table, rest).rows {
            note_spent(&transaction, &row)?;
        }
    }
    Ok(transaction.commit()?)
}

/// What could be read of a table.
struct Readable {
    rows: Vec<OldRow>,
    /// Whether these are all its rows, each as it was written.
    is_all: bool,
}

/// A row that could be read.
struct OldRow {
    table: &'static Table,
    values: Vec<Value>,
    is_whole: bool,
}

impl Readable {
    fn of(db: &Connection, table: &'static Table, rest: &str) -> Self {
        let mut rows = Vec::new();
        let read = Readable::read(db, table, rest, &mut rows);
        if let Err(error) = &read {
            tracing::warn!(
                table = table.name, %error,
                "the replaced registry cannot be read completely"
            );
        }
        let is_all = read.is_ok()
            && rows.iter().all(|row| row.is_whole)
            && is_sealed(db, table).unwrap_or_default();
        Readable { rows, is_all }
    }

    fn read(
        db: &Connection,
        table: &'static Table,
        rest: &str,
        found: &mut Vec<OldRow>,
    ) -> rusqlite::Result<()> {
        let mut query = db.prepare(&table.select(rest))?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let is_whole = table.check(row).is_ok();
            if !is_whole {
                tracing::warn!(
                    table = table.name,
                    "a row of the replaced registry was altered"
                );
            }
            found.push(OldRow {
                table,
                // What cannot be read is none.
                values: (0..table.columns.len())
                    .map(|column| row.get(column).unwrap_or(Value::Null))
                    .collect(),
                is_whole,
            });
        }
        Ok(())
    }
}

impl OldRow {
    fn value(&self, column: &str) -> Option<&Value> {
        let at = self.table.columns.iter().position(|name| *name == column)?;
        self.values.get(at)
    }

    /// All of these columns, where they are text.
    fn texts<const N: usize>(&self, columns: [&str; N]) -> Option<[&str; N]> {
        let mut texts = [""; N];
        for (text, column) in texts.iter_mut().zip(columns) {
            match self.value(column) {
                Some(Value::Text(value)) => *text = value,
                _ => return None,
            }
        }
        Some(texts)
    }
}

fn insert(new: &Transaction<'_>, row: &OldRow) -> Result<()> {
    let places = vec!["?"; row.values.len()].join(", ");
    let (table, columns) = (row.table.name, row.table.columns.join(", "));
    new.execute(
        &format!("INSERT OR IGNORE INTO {table} ({columns}) VALUES ({places})"),
        params_from_iter(&row.values),
    )?;
    Ok(())
}

/// Notes that the answer of the row's token never came. Where two notes differ in how many
/// tries were left, that is not known.
fn note_sent(new: &Transaction<'_>, row: &OldRow, tries: Option<&Value>) -> Result<()> {
    let Some([kind, manufacturer, serial]) = row.texts(TOKEN) else {
        return Ok(());
    };
    new.execute(
        "INSERT INTO sent_pin (kind, manufacturer, serial, tries) VALUES (?, ?, ?, ?) \
         ON CONFLICT DO UPDATE SET tries = NULL WHERE tries IS NOT excluded.tries",
        params![kind, manufacturer, serial, tries.unwrap_or(&Value::Null)],
    )?;
    Ok(())
}

/// Notes that the row's slot was given away, unless it is that of a key that `new` has.
fn note_spent(new: &Transaction<'_>, row: &OldRow) -> Result<()> {
    let [kind, manufacturer, serial] = TOKEN;
    let Some(slot) = row.texts([kind, manufacturer, serial, "slot"]) else {
        return Ok(());
    };
    new.execute(
        "INSERT OR IGNORE INTO spent_slot (kind, manufacturer, serial, slot) \
         SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS (SELECT 1 FROM key \
         WHERE kind = ?1 AND manufacturer = ?2 AND serial = ?3 AND slot = ?4)",
        slot,
    )
    .map(drop)
    .map_err(RegistryError::from)
}
