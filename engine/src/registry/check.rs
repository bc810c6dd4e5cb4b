//! Checks the content of a registry.
//!
//! | part | what must hold |
//! | --- | --- |
//! | the file | SQLite's `integrity_check` and `foreign_key_check`; the tables and indexes are those of this version |
//! | each table | it has all rows that were written, and no others |
//! | each row | it is unchanged (see [`digests`](super::digests)) and can be parsed; its public keys are valid |
//! | a key | its fingerprint is that of its public key, its engine is named after its owner; a live key belongs to one identity, which exists |
//! | an identity | it has a key for each capability; no contact has its name |
//! | a maker, a grant | the identity exists |
//! | a certificate | it is for a key that is listed |
//! | evidence | its digests match its content |
//! | the home | one row |

use std::collections::{HashMap, HashSet};

use claviger_token::KeyUse;
use rusqlite::{Connection, Row};

use super::digests::{
    CERTIFICATE, CONTACT, EVIDENCE, GRANTS, HOME, IDENTITY, INTENT, KEY, OWNER, REFUSED_PIN,
    REVOCATION, SENT_PIN, SPENT_SLOT, TABLES, TRIED, Table, is_sealed, not_sealed,
};
use super::rows::{intent, key_record};
use super::schema::prepare_new;
use super::{
    Entry, KeyRecord, Registry, RegistryError, Result, certificates, contacts, evidence, rights,
};
use crate::EngineId;
use crate::types::{IdentityInfo, engine_name};

/// More than so many faults are not told of.
const MOST: usize = 20;

impl Registry {
    /// Looks through the whole registry and says what is not as it must be, each with what to
    /// do; nothing is changed. 20,000 identities take two seconds.
    ///
    /// # Errors
    /// [`RegistryError::Busy`] and others that are no fault of what is in the registry.
    pub fn check(&self) -> Result<Vec<RegistryError>> {
        self.read(faults)
    }
}

/// The same of any connection.
///
/// # Errors
/// The first fault.
pub(super) fn check_rows(db: &Connection) -> Result<()> {
    faults(db)?.into_iter().next().map_or(Ok(()), Err)
}

fn faults(db: &Connection) -> Result<Vec<RegistryError>> {
    let mut faults = Faults::default();
    check_structure(db, &mut faults)?;
    check_shape(db, &mut faults)?;
    let keys = check_keys(db, &mut faults)?;
    check_identities(db, &keys, &mut faults)?;
    check_rights(db, &mut faults)?;
    check_evidence(db, &mut faults)?;
    check_certificates(db, &keys, &mut faults)?;
    each(db, &CONTACT, &mut faults, |row| {
        contacts::contact(row).map(drop)
    })?;
    each(db, &INTENT, &mut faults, |row| intent(row).map(drop))?;
    for table in [
        &HOME,
        &TRIED,
        &REFUSED_PIN,
        &SENT_PIN,
        &SPENT_SLOT,
        &REVOCATION,
    ] {
        each(db, table, &mut faults, |row| table.check(row))?;
    }
    for table in TABLES {
        let is_sealed = is_sealed(db, table).map_err(RegistryError::from);
        if faults.or_end(is_sealed)? == Some(false) {
            faults.add(not_sealed(table));
        }
    }
    if faults.is_empty() && count(db, HOME.name)? > 1 {
        faults.note("there is more than one home in it");
    }
    Ok(faults.0)
}

#[derive(Default)]
struct Faults(Vec<RegistryError>);

impl Faults {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn note(&mut self, reason: impl Into<String>) {
        let reason = reason.into();
        self.add(RegistryError::Damaged { reason });
    }

    fn add(&mut self, fault: RegistryError) {
        if self.0.len() < MOST {
            self.0.push(fault);
        }
    }

    /// Notes what is wrong with the registry; what is not, such as that another process holds
    /// it, ends the look.
    fn or_end<T>(&mut self, done: Result<T>) -> Result<Option<T>> {
        match done {
            Ok(value) => Ok(Some(value)),
            Err(fault @ (RegistryError::Damaged { .. } | RegistryError::Altered { .. })) => {
                self.add(fault);
                Ok(None)
            }
            // A table or a column is not there.
            Err(RegistryError::Other { reason }) => {
                self.note(reason);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// What SQLite itself finds.
fn check_structure(db: &Connection, faults: &mut Faults) -> Result<()> {
    let found = texts(db, &format!("PRAGMA integrity_check({MOST})"));
    for line in faults.or_end(found)?.unwrap_or_default() {
        if line != "ok" {
            faults.note(line);
        }
    }
    let orphans = texts(
        db,
        "SELECT 'a row of the table ' || \"table\" || ' refers to one of ' || parent || \
         ' that is not there' FROM pragma_foreign_key_check",
    );
    let orphans = faults.or_end(orphans)?.unwrap_or_default();
    orphans.into_iter().for_each(|orphan| faults.note(orphan));
    Ok(())
}

/// Compares what there is of tables, columns and indexes with what a new registry has.
fn check_shape(db: &Connection, faults: &mut Faults) -> Result<()> {
    let new = Connection::open_in_memory()?;
    prepare_new(&new)?;
    let wanted = shape(&new)?;
    let Some(found) = faults.or_end(shape(db))? else {
        return Ok(());
    };
    for missing in wanted.difference(&found) {
        faults.note(format!("it lacks the {missing}"));
    }
    for stranger in found.difference(&wanted) {
        faults.note(format!("this program did not make the {stranger}"));
    }
    Ok(())
}

fn shape(db: &Connection) -> Result<HashSet<String>> {
    let mut shape = HashSet::new();
    for query in [
        "SELECT type || ' ' || name || ' of ' || tbl_name FROM main.sqlite_schema \
         WHERE name <> 'sqlite_sequence'",
        "SELECT 'column ' || t.name || '.' || c.name || ' ' || c.type || ' ' || c.\"notnull\" \
         || ' ' || ifnull(c.dflt_value, '-') || ' ' || c.pk \
         FROM main.sqlite_schema t JOIN pragma_table_info(t.name) c WHERE t.type = 'table'",
        "SELECT 'index ' || i.name || ' on ' || t.name || '.' || c.name || ' ' || c.seqno \
         || ' ' || i.\"unique\" FROM main.sqlite_schema t JOIN pragma_index_list(t.name) i \
         JOIN pragma_index_info(i.name) c WHERE t.type = 'table'",
    ] {
        shape.extend(texts(db, query)?);
    }
    Ok(shape)
}

fn check_keys(db: &Connection, faults: &mut Faults) -> Result<HashMap<i64, KeyRecord>> {
    let mut rows: Vec<(KeyRecord, String, String)> = Vec::new();
    each(db, &KEY, faults, |row| {
        let (fingerprint, engine) = (row.get("fingerprint")?, row.get("engine")?);
        rows.push((key_record(row)?, fingerprint, engine));
        Ok(())
    })?;
    let mut keys = HashMap::new();
    let mut living = HashSet::new();
    for (key, fingerprint, engine) in rows {
        let info = &key.info;
        let of = format!("a key of `{}`", info.owner);
        if fingerprint != info.public_key.fingerprint().to_string() {
            faults.note(format!(
                "the fingerprint of {of} is not that of its public key"
            ));
        }
        if *engine != *engine_name(info.usage, &info.owner) {
            faults.note(format!("the engine name of {of} does not match it"));
        }
        if !info.deleted && !living.insert(fingerprint) {
            faults.note(format!("{of} belongs to another identity, too"));
        }
        keys.insert(key.id, key);
    }
    Ok(keys)
}

fn check_identities(
    db: &Connection,
    keys: &HashMap<i64, KeyRecord>,
    faults: &mut Faults,
) -> Result<()> {
    let mut entries = Vec::new();
    each(db, &IDENTITY, faults, |row| {
        entries.push(Entry::of(row)?);
        Ok(())
    })?;
    let mut used = HashSet::new();
    let mut names = HashSet::new();
    for entry in entries {
        let who = entry.who.clone();
        let refers_to = [entry.sign, entry.decrypt].into_iter().flatten();
        let of_uses = [(entry.sign, KeyUse::Sign), (entry.decrypt, KeyUse::Decrypt)];
        let is_mixed_up = of_uses.iter().any(|(id, usage)| {
            let key = id.and_then(|id| keys.get(&id));
            key.is_some_and(|key| key.info.usage != *usage)
        });
        used.extend(refers_to);
        if is_mixed_up {
            faults.note(format!("the keys of `{who}` are for other uses"));
        }
        let whole = super::find_key(db).and_then(|mut find| entry.with_keys(&mut find));
        let whole = whole.map_err(RegistryError::from);
        if let Some((_, info)) = faults.or_end(whole)? {
            check_identity(&who, &info, faults);
        }
        names.insert(who);
    }
    for (id, key) in keys {
        let owner = &key.info.owner;
        if !key.info.deleted && !names.contains(owner) {
            faults.note(format!("a key belongs to `{owner}`, who does not exist"));
        } else if key.info.deleted && !used.contains(id) {
            faults.note(format!("a deleted key of `{owner}` is still listed"));
        }
    }
    let shared = "SELECT contact.name FROM contact JOIN identity \
                  ON identity.name = contact.name AND identity.node = ''";
    for name in faults.or_end(texts(db, shared))?.unwrap_or_default() {
        faults.note(format!("`{name}` is both an identity and a contact"));
    }
    Ok(())
}

fn check_identity(who: &EngineId, info: &IdentityInfo, faults: &mut Faults) {
    for usage in info.capabilities.uses() {
        if info.key(usage).is_none() {
            faults.note(format!(
                "`{who}` has no key to {usage}, but should have one"
            ));
        }
    }
    if info
        .keys
        .iter()
        .any(|key| !info.capabilities.include(key.usage))
    {
        faults.note(format!("`{who}` has a key for a use that it does not have"));
    }
}

fn check_rights(db: &Connection, faults: &mut Faults) -> Result<()> {
    each(db, &OWNER, faults, |row| rights::owner(row).map(drop))?;
    each(db, &GRANTS, faults, |row| rights::grant(row).map(drop))?;
    for (what, query) in [
        (
            "somebody counts as the maker of",
            "SELECT name FROM owner WHERE NOT EXISTS (SELECT 1 FROM identity \
             WHERE identity.node = owner.node AND identity.name = owner.name)",
        ),
        (
            "something is granted about",
            "SELECT DISTINCT identity FROM grants WHERE identity <> '' AND NOT EXISTS \
             (SELECT 1 FROM identity WHERE node = '' AND name = grants.identity)",
        ),
    ] {
        for name in faults.or_end(texts(db, query))?.unwrap_or_default() {
            faults.note(format!("{what} `{name}`, who does not exist"));
        }
    }
    Ok(())
}

fn check_evidence(db: &Connection, faults: &mut Faults) -> Result<()> {
    let mut others = 0;
    each(db, &EVIDENCE, faults, |row| {
        let piece = evidence::piece(row)?;
        let keys: [[u8; 32]; 2] = [row.get("from_keys")?, row.get("to_keys")?];
        let are_its = keys == [&piece.from_identity, &piece.to_identity].map(|p| p.keys.id().0);
        if !are_its || row.get::<_, [u8; 32]>("statement")? != piece.statement_id() {
            others += 1;
        }
        Ok(())
    })?;
    if others > 0 {
        faults.note(format!("{others} pieces of evidence are indexed wrongly"));
    }
    Ok(())
}

fn check_certificates(
    db: &Connection,
    keys: &HashMap<i64, KeyRecord>,
    faults: &mut Faults,
) -> Result<()> {
    let mut strays = Vec::new();
    each(db, &CERTIFICATE, faults, |row| {
        let fingerprint: String = row.get("fingerprint")?;
        let is_its =
            |key: &&KeyRecord| key.info.public_key.fingerprint().to_string() == fingerprint;
        match keys.values().find(is_its) {
            Some(key) => certificates::chain(row, &key.info.public_key).map(drop),
            None => {
                strays.push(fingerprint);
                CERTIFICATE.check(row)
            }
        }
    })?;
    for stray in strays {
        faults.note(format!(
            "there is a certificate for the key {stray}, which nobody has"
        ));
    }
    Ok(())
}

/// Hands each row of a table on, and notes of each why it is not taken.
fn each(
    db: &Connection,
    table: &Table,
    faults: &mut Faults,
    mut take: impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
) -> Result<()> {
    let query = db.prepare(&table.select("")).map_err(RegistryError::from);
    let Some(mut query) = faults.or_end(query)? else {
        return Ok(());
    };
    let mut rows = query.query([])?;
    loop {
        // Where a page cannot be read the rest of the table cannot.
        match faults.or_end(rows.next().map_err(RegistryError::from))? {
            Some(Some(row)) => {
                let taken = take(row).map_err(RegistryError::from);
                faults.or_end(taken)?;
            }
            _ => return Ok(()),
        }
    }
}

fn texts(db: &Connection, query: &str) -> Result<Vec<String>> {
    let mut query = db.prepare(query)?;
    let texts = query.query_map([], |row| row.get(0))?;
    Ok(texts.collect::<rusqlite::Result<_>>()?)
}

fn count(db: &Connection, table: &str) -> Result<i64> {
    let query = format!("SELECT count(*) FROM {table}");
    Ok(db.query_row(&query, [], |row| row.get(0))?)
}

#[cfg(test)]
mod tests {
    use claviger_memory::MemoryDriver;
    use claviger_token::Call;

    use super::*;
    use crate::evidence::Party;
    use crate::message::RequestGenerateIdentity;
    use crate::{Backend, Capabilities, IdParams, Node};

    /// Two identities and a contact, who is a friend of the first.
    async fn filled() -> Node {
        let node = Node::builder(Registry::in_memory().unwrap())
            .driver(MemoryDriver::new())
            .build();
        for name in ["alice", "mallory"] {
            let request = RequestGenerateIdentity {
                backend: Backend::LocalMemory,
                params: IdParams::Ed25519,
                capabilities: Capabilities::CommitAndDecrypt,
            };
            let (who, call) = (EngineId::local(name), Call::unlimited());
            node.generate(&who, request, &call).await.unwrap();
        }
        let contact = Party {
            name: "friend".into(),
            keys: node
                .public_keys(&EngineId::local("alice"))
                .unwrap()
                .unwrap(),
        };
        node.registry().add_contact(&contact).unwrap();
        node
    }

    #[tokio::test]
    async fn what_contradicts_itself_is_found_also_where_its_digests_are_right() {
        let broken = [
            (
                "that of its public key",
                "UPDATE key SET fingerprint = 'SHA256:x' WHERE id = 1",
            ),
            (
                "does not match it",
                "UPDATE key SET engine = 'x' WHERE id = 1",
            ),
            (
                "belongs to another identity, too",
                "UPDATE key SET (public_key, fingerprint) = \
                 (SELECT public_key, fingerprint FROM key WHERE id = 1) WHERE id = 3",
            ),
            (
                "for other uses",
                "UPDATE identity SET sign_key = 2 WHERE name = 'alice'",
            ),
            (
                "has no key to sign",
                "UPDATE identity SET sign_key = NULL WHERE name = 'alice'",
            ),
            (
                "for a use that it does not have",
                "UPDATE identity SET capabilities = 'commit' WHERE name = 'alice'",
            ),
            (
                "who does not exist",
                "DELETE FROM identity WHERE name = 'mallory'",
            ),
            (
                "is still listed",
                "UPDATE key SET deleted = 1; DELETE FROM identity",
            ),
            (
                "an identity and a contact",
                "UPDATE contact SET name = 'alice'",
            ),
            (
                "cannot be read",
                "UPDATE key SET public_key = 'x' WHERE id = 1",
            ),
            // A point of order 1 (RFC 7748 §6.1).
            (
                "cannot be read",
                "UPDATE contact SET decrypt = '-----BEGIN PUBLIC KEY-----\n\
                 MCowBQYDK2VuAyEAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\
                 -----END PUBLIC KEY-----\n'",
            ),
            (
                "that is not there",
                "PRAGMA foreign_keys = OFF; UPDATE identity SET sign_key = 99",
            ),
            (
                "did not make the trigger",
                "CREATE TRIGGER t AFTER INSERT ON key BEGIN SELECT 1; END",
            ),
            ("lacks the index", "DROP INDEX key_by_engine"),
            (
                "the maker of `nobody`",
                "INSERT INTO owner (node, name, uid) VALUES ('', 'nobody', 1)",
            ),
            (
                "granted about `nobody`",
                "INSERT INTO grants (subject, number, socket, identity, operation, purpose) \
                 VALUES ('uid', 1, '', 'nobody', 'sign', 'raw')",
            ),
            (
                "`operation` cannot be read",
                "INSERT INTO grants (subject, number, socket, identity, operation, purpose) \
                 VALUES ('uid', 1, '', 'alice', 'sing', '')",
            ),
            (
                "more than one home",
                "INSERT INTO home (id, inode, machine) VALUES ('x', 1, ''), ('y', 2, '')",
            ),
        ];
        for (what, change) in broken {
            let node = filled().await;
            let registry = node.registry();
            assert_eq!(registry.check().unwrap().len(), 0);
            // By a connection that makes digests.
            let changed = registry.connections.write(|db| {
                let changed = db.execute_batch(change);
                changed.map_err(RegistryError::from)
            });
            changed.unwrap();
            let faults = registry.check().unwrap();
            let said: Vec<String> = faults.iter().map(ToString::to_string).collect();
            let is_found = said.iter().any(|fault| fault.contains(what));
            assert!(is_found, "{change}: {said:?}");
            assert!(check_rows(&registry.db()).is_err());
        }
    }
}
