//! Registries that something else has changed: bytes on the disk, rows, whole tables.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the helpers of tests are tests"
)]

mod common;

use claviger_engine::message::RequestEncrypt;
use claviger_engine::policy::Permission;
use claviger_engine::{EngineError, EngineId, Node, Policy, Preference, Registry, RegistryError};
use claviger_token::{Call, KeyUse, Secret};
use common::filled::Home;
use common::*;
use rusqlite::types::Value;
use rusqlite::{Connection, params};

/// The tables of a file with their columns, except those that are SQLite's own.
fn tables(db: &Connection) -> Vec<(String, Vec<String>)> {
    let list = |query: &str| -> Vec<String> {
        let mut query = db.prepare(query).unwrap();
        let rows = query.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    };
    let names = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> 'sqlite_sequence'";
    let names = list(names).into_iter();
    names
        .map(|name| {
            let columns = format!("SELECT name FROM pragma_table_info('{name}') ORDER BY cid");
            let columns = list(&columns);
            (name, columns)
        })
        .collect()
}

#[tokio::test]
async fn what_was_never_damaged_has_no_fault() {
    let home = Home::new().await;
    let db = Connection::open(home.file()).unwrap();
    for (table, _) in tables(&db) {
        let query = format!("SELECT count(*) FROM {table}");
        let rows: i64 = db.query_row(&query, [], |row| row.get(0)).unwrap();
        // Nothing of the test's device is remembered as tried.
        assert!(rows > 0 || table == "tried", "no row in {table}");
    }
    assert!(home.faults().is_empty(), "{:?}", home.faults());
}

#[tokio::test]
async fn whatever_is_altered_in_a_row_is_found_by_check_and_refused_by_those_who_use_it() {
    let home = Home::new().await;
    home.sql("INSERT INTO tried (model, what, works) VALUES ('m', 'p256 (sign)', 1)");
    assert!(!home.faults().is_empty(), "a row of others is one");
    home.sql("DELETE FROM tried");
    let db = Connection::open(home.file()).unwrap();
    db.pragma_update(None, "foreign_keys", false).unwrap();
    let mut altered = 0;
    for (table, columns) in tables(&db) {
        for column in columns {
            let row = format!("SELECT rowid, {column} FROM {table} ORDER BY rowid LIMIT 1");
            let row = db.query_row(&row, [], |row| Ok((row.get(0)?, row.get(1)?)));
            let Ok::<(i64, Value), _>((id, value)) = row else {
                continue;
            };
            let other = match &value {
                Value::Null => continue,
                Value::Integer(number) => Value::Integer(number ^ 1),
                Value::Real(number) => Value::Real(-number),
                Value::Text(text) => {
                    Value::Text(String::from_utf8(flipped(text.as_bytes(), 0x01)).unwrap())
                }
                Value::Blob(bytes) => Value::Blob(flipped(bytes, 0x80)),
            };
            let update = format!("UPDATE OR REPLACE {table} SET {column} = ? WHERE rowid = ?");
            db.execute(&update, params![other, id]).unwrap();
            match home.open() {
                Ok(registry) => {
                    let faults = registry.check().unwrap();
                    assert!(!faults.is_empty(), "{table}.{column} is called sound");
                }
                // What is used at the opening is refused there.
                Err(error) => assert!(is_damage(&error), "{table}.{column}: {error}"),
            }
            let id = match column.as_str() {
                "id" => other.clone(),
                _ => Value::Integer(id),
            };
            let row = if table == "home" {
                Value::Integer(1)
            } else {
                id
            };
            db.execute(&update, params![value, row]).unwrap();
            altered += 1;
        }
    }
    assert!(altered > 60, "{altered}");
    assert!(home.faults().is_empty(), "{:?}", home.faults());
}

/// One bit in the middle is another.
fn flipped(bytes: &[u8], bit: u8) -> Vec<u8> {
    let mut bytes = match bytes {
        [] => vec![b'0'],
        bytes => bytes.to_vec(),
    };
    let middle = bytes.len() / 2;
    bytes[middle] ^= bit;
    bytes
}

fn is_damage(error: &RegistryError) -> bool {
    matches!(
        error,
        RegistryError::Damaged { .. } | RegistryError::Altered { .. }
    )
}

#[tokio::test]
async fn an_identity_that_was_altered_to_use_another_key_is_refused() {
    let home = Home::new().await;
    let of_mallory = "(SELECT sign_key FROM identity WHERE name = 'mallory')";
    home.sql(&format!(
        "UPDATE identity SET sign_key = {of_mallory} WHERE name = 'alice'"
    ));
    let node = home.node();
    let refused = node.registry().identity(&id("alice"));
    let Err(error @ RegistryError::Altered { .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(error.code(), "registry-row-altered");
    assert!(error.to_string().contains("`alice`"), "{error}");
    assert!(node.registry().identities().is_err());
    assert!(node.public_keys(&id("alice")).is_err());
    // The others are as they were.
    assert!(node.registry().identity(&id("mallory")).unwrap().is_some());
    assert!(node.registry().identity(&id("bob")).unwrap().is_some());
}

#[tokio::test]
async fn a_key_that_was_altered_signs_and_opens_nothing() {
    let home = Home::new().await;
    let whole = home.bytes();
    for change in [
        "public_key = (SELECT public_key FROM key WHERE owner_name = 'mallory' AND usage = 'sign')",
        "slot = (SELECT slot FROM key WHERE owner_name = 'mallory' AND usage = 'sign')",
        "backend = 'pkcs11:module-path=/tmp/theirs.so'",
        "owner_name = 'mallory'",
    ] {
        home.put(&whole);
        let node = home.node();
        let info = node.registry().identity(&id("alice")).unwrap().unwrap();
        let engine = info.commitment_engine.unwrap();
        drop(node);
        home.sql(&format!(
            "UPDATE key SET {change} WHERE owner_name = 'alice' AND usage = 'sign'"
        ));
        let node = home.node();
        let signed = node.commit(&id("alice"), &engine, vec![1], &call()).await;
        let Err(EngineError::Registry(error)) = signed else {
            panic!("{change}: {signed:?}");
        };
        assert!(is_damage(&error), "{change}: {error}");
        let seen = node.registry().identity(&id("alice"));
        assert!(seen.is_err(), "{change}: {seen:?}");
    }
}

/// Each identity uses its own keys only, on this machine, too.
struct OwnKeys;

impl Policy for OwnKeys {
    fn check(&self, who: &EngineId, wanted: Permission<'_>) -> Result<(), EngineError> {
        match wanted {
            Permission::Use { identity, .. } if identity != who => Err(EngineError::NotAllowed {
                sender: who.clone(),
                what: "use this key",
            }),
            _ => Ok(()),
        }
    }
}

#[tokio::test]
async fn who_may_not_use_a_key_does_not_learn_that_it_was_altered() {
    let home = Home::new().await;
    let engines = home.node().registry().identity(&id("alice")).unwrap();
    let engines = engines.unwrap();
    let (signs, opens) = (
        engines.commitment_engine.unwrap(),
        engines.decryption_engine.unwrap(),
    );
    home.sql("UPDATE key SET slot = 'another' WHERE owner_name = 'alice'");
    let node = Node::builder(Registry::open(home.path()).unwrap())
        .driver(home.device.clone())
        .policy(OwnKeys)
        .build();
    let [missing, not_there] = ["nobody_committer_nobody", "nobody_decryptor_nobody"].map(id);
    let commit = async |who: &str, engine: &EngineId| {
        let signed = node.commit(&id(who), engine, vec![1], &call()).await;
        signed.map(drop).unwrap_err()
    };
    let decrypt = async |who: &str, engine: &EngineId| {
        let opened = node.decrypt(&id(who), engine, vec![1], &call()).await;
        opened.map(drop).unwrap_err()
    };
    assert_eq!(
        commit("eve", &signs).await.code(),
        commit("eve", &missing).await.code()
    );
    assert_eq!(
        decrypt("eve", &opens).await.code(),
        decrypt("eve", &not_there).await.code()
    );
    // Whose it is learns it.
    for error in [
        commit("alice", &signs).await,
        decrypt("alice", &opens).await,
    ] {
        assert!(
            matches!(&error, EngineError::Registry(error) if is_damage(error)),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn nothing_is_encrypted_to_a_contact_that_was_altered() {
    let home = Home::new().await;
    home.sql(
        "UPDATE contact SET decrypt = (SELECT decrypt FROM contact WHERE name = 'stranger') \
         WHERE name = 'friend'",
    );
    let node = home.node();
    let request = RequestEncrypt {
        data: Secret::new(vec![1]),
        external_identity: id("friend"),
        use_reads_for: false,
        preference: Preference::default(),
    };
    let sealed = node
        .encrypt(
            &claviger_engine::EngineId::program(),
            request,
            &Call::unlimited(),
        )
        .await;
    assert!(matches!(
        sealed,
        Err(EngineError::Registry(RegistryError::Altered { .. }))
    ));
}

#[tokio::test]
async fn whole_rows_that_changed_places_are_seen() {
    let home = Home::new().await;
    home.sql(
        "CREATE TEMP TABLE a AS SELECT sign, decrypt, digest FROM contact WHERE name = 'friend';
         CREATE TEMP TABLE b AS SELECT sign, decrypt, digest FROM contact WHERE name = 'stranger';
         UPDATE contact SET (sign, decrypt, digest) = (SELECT * FROM a) WHERE name = 'stranger';
         UPDATE contact SET (sign, decrypt, digest) = (SELECT * FROM b) WHERE name = 'friend';",
    );
    let registry = home.open().unwrap();
    assert!(registry.contact("friend").is_err());
    assert_eq!(registry.check().unwrap().len(), 2);
}

#[tokio::test]
async fn rows_that_are_gone_or_are_back_are_seen_though_each_is_whole() {
    let home = Home::new().await;
    let whole = home.bytes();
    home.sql("DELETE FROM intent");
    let faults = home.faults();
    let said = faults[0].to_string();
    assert!(said.contains("rows of the table intent"), "{faults:?}");
    let kept = home.path().join("kept");
    std::fs::write(&kept, &whole).unwrap();
    home.sql(&format!(
        "ATTACH '{}' AS kept; INSERT INTO intent SELECT * FROM kept.intent",
        kept.display()
    ));
    assert!(home.faults().is_empty());
    for gone in [
        "contact WHERE name = 'friend'",
        "evidence WHERE id = 1",
        "spent_slot",
        "seal",
    ] {
        home.put(&whole);
        home.sql(&format!("DELETE FROM {gone}"));
        assert!(!home.faults().is_empty(), "{gone}");
    }
}

#[tokio::test]
async fn an_identity_does_not_go_with_an_older_state_of_its_key() {
    // A page that was not written: the key's row is a former one, digest and all.
    let home = Home::new().await;
    let former = home
        .open()
        .unwrap()
        .identity(&id("alice"))
        .unwrap()
        .unwrap();
    let db = Connection::open(home.file()).unwrap();
    let rows = "SELECT slot, digest FROM key WHERE owner_name = 'alice' AND usage = 'sign'";
    let old: (String, Vec<u8>) = db
        .query_row(rows, [], |r| Ok((r.get(0)?, r.get(1)?)))
        .unwrap();
    home.device.moves_keys_to("elsewhere");
    let node = home.node();
    let engine = former.commitment_engine.clone().unwrap();
    node.commit(&id("alice"), &engine, vec![1], &call())
        .await
        .unwrap();
    let now = node.registry().identity(&id("alice")).unwrap().unwrap();
    assert_ne!(now.key(KeyUse::Sign), former.key(KeyUse::Sign));
    drop(node);
    assert!(home.faults().is_empty());
    db.execute(
        "UPDATE key SET slot = ?, digest = ? WHERE owner_name = 'alice' AND usage = 'sign'",
        params![old.0, old.1],
    )
    .unwrap();
    let seen = home.open().unwrap().identity(&id("alice"));
    assert!(
        matches!(seen, Err(RegistryError::Altered { .. })),
        "{seen:?}"
    );
}

/// A registry of an older version with the rows of `home`, as far as it has places for them.
fn of_before(home: &Home, version: i32) {
    // Since version 4 only tables were added.
    let later = [("owner", 5), ("grants", 5), ("certificate", 6)];
    if version >= 4 {
        for (table, _) in later.iter().filter(|(_, since)| *since > version) {
            home.sql(&format!(
                "DROP TABLE {table}; DELETE FROM seal WHERE name = '{table}'"
            ));
        }
        home.sql(&format!("PRAGMA user_version = {version}"));
        return;
    }
    let schema = match version {
        1 => include_str!("data/registry-1.sql"),
        2 => include_str!("data/registry-2.sql"),
        _ => include_str!("data/registry-3.sql"),
    };
    let path = home.path().join("older.sqlite");
    let db = Connection::open(&path).unwrap();
    db.execute_batch(schema).unwrap();
    db.pragma_update(None, "application_id", 0x434c_4156)
        .unwrap();
    db.pragma_update(None, "user_version", version).unwrap();
    db.execute("ATTACH ? AS now", [home.file().to_str().unwrap()])
        .unwrap();
    for (table, columns) in tables(&db) {
        let columns = columns.join(", ");
        let copy = format!("INSERT INTO {table} ({columns}) SELECT {columns} FROM now.{table}");
        db.execute(&copy, []).unwrap();
    }
    db.close().unwrap();
    home.put(&std::fs::read(&path).unwrap());
    std::fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn registries_of_before_keep_their_contents_and_get_their_digests() {
    let home = Home::new().await;
    let whole = home.bytes();
    for version in [1, 2, 3, 4, 5] {
        home.put(&whole);
        let before = home.open().unwrap().identities().unwrap();
        of_before(&home, version);
        let node = home.node();
        let registry = node.registry();
        let mut faults = registry.check().unwrap();
        // Evidence of this version is none of theirs.
        faults.retain(|fault| !fault.to_string().contains("pieces of evidence"));
        assert!(faults.is_empty(), "{version}: {faults:?}");
        let mut now = registry.identities().unwrap();
        if version == 1 {
            // It knows nothing of attestations.
            now.iter_mut()
                .zip(&before)
                .for_each(|((_, now), (_, was))| {
                    now.keys.iter_mut().zip(&was.keys).for_each(|(now, was)| {
                        now.attestation.clone_from(&was.attestation);
                    });
                });
        }
        assert_eq!(now, before, "{version}");
        let all = registry.all_evidence().unwrap().len();
        assert_eq!(all, if version == 1 { 0 } else { 2 });
        let engine = now[0].1.commitment_engine.clone().unwrap();
        node.commit(&now[0].0, &engine, vec![1], &call())
            .await
            .unwrap();
        drop(node);
        home.sql("UPDATE identity SET backend = 'memory:' WHERE name = 'alice'");
        assert!(home.open().unwrap().identity(&id("alice")).is_err());
    }
}

fn version_of(home: &Home) -> i32 {
    let db = Connection::open(home.file()).unwrap();
    db.pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap()
}

#[tokio::test]
async fn a_registry_of_before_is_converted_by_one_who_is_alone_and_refused_by_programs_of_before() {
    let home = Home::new().await;
    of_before(&home, 2);
    let before = home.bytes();
    // A process of an earlier version has a lease, and nothing else.
    let lease = home.path().join("run/0123456789abcdef01234567");
    let other = std::fs::File::create(&lease).unwrap();
    other.lock().unwrap();
    let opened = home.open().map(drop);
    assert!(matches!(opened, Err(RegistryError::InUse)), "{opened:?}");
    assert_eq!((home.bytes(), version_of(&home)), (before, 2));
    drop(other);
    // Of several that come at once one converts it, and all open it.
    std::thread::scope(|scope| {
        let opened = [(); 4].map(|()| scope.spawn(|| home.open().map(drop)));
        for opened in opened {
            opened.join().unwrap().unwrap();
        }
    });
    // Each version takes a higher number than its own for a newer one.
    assert_eq!(version_of(&home), 6);
    let identities = home.open().unwrap().identities().unwrap();
    assert_eq!(identities.len(), 5);
    // Others may have it open when it is of this version.
    let (one, two) = (home.open().unwrap(), home.open().unwrap());
    assert_eq!(one.identities().unwrap(), two.identities().unwrap());
}

#[tokio::test]
async fn a_number_that_is_set_back_makes_no_digests_anew() {
    let home = Home::new().await;
    home.sql("UPDATE identity SET backend = 'memory:' WHERE name = 'alice'");
    home.sql("PRAGMA user_version = 3");
    let registry = home.open().unwrap();
    let seen = registry.identity(&id("alice"));
    assert!(
        matches!(seen, Err(RegistryError::Altered { .. })),
        "{seen:?}"
    );
    assert!(registry.identity(&id("mallory")).unwrap().is_some());
    drop(registry);
    assert_eq!(version_of(&home), 6);
}

#[tokio::test]
async fn what_is_damaged_already_gets_no_digests() {
    let home = Home::new().await;
    let whole = home.bytes();
    // An index of the former version does not fit its table.
    of_before(&home, 2);
    home.sql(
        "PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET sql = 'CREATE INDEX key_by_engine ON key (slot)'
         WHERE name = 'key_by_engine';",
    );
    let opened = home.open().map(drop);
    assert!(
        matches!(opened, Err(RegistryError::Damaged { .. })),
        "{opened:?}"
    );
    // A version that is set back, to have the digests made anew.
    for version in [0, 1, 2] {
        home.put(&whole);
        home.sql(&format!(
            "UPDATE identity SET backend = 'memory:'; PRAGMA user_version = {version}"
        ));
        let opened = home.open().map(drop);
        assert!(
            matches!(opened, Err(RegistryError::Damaged { .. })),
            "{opened:?}"
        );
    }
    // A column, or a table, that is gone.
    for lost in [
        "ALTER TABLE contact DROP COLUMN digest",
        "ALTER TABLE key DROP COLUMN attestation",
        "DROP TABLE spent_slot",
        "DROP TABLE grants",
        "DROP TABLE grants; PRAGMA user_version = 4",
        "DROP TABLE grants; DROP TABLE owner; DROP TABLE spent_slot; PRAGMA user_version = 4",
        "DROP TABLE certificate",
        "DROP TABLE certificate; DROP TABLE grants; PRAGMA user_version = 5",
    ] {
        home.put(&whole);
        home.sql(lost);
        let opened = home.open().map(drop);
        assert!(
            matches!(opened, Err(RegistryError::Damaged { .. })),
            "{lost}: {opened:?}"
        );
    }
}

#[tokio::test]
async fn a_small_registry_with_a_damaged_page_does_not_open() {
    let home = Home::new().await;
    let whole = home.bytes();
    assert!(whole.len() < 1 << 20);
    let mut refused = 0;
    let pages = whole.len() / 4096;
    for page in 1..pages {
        let mut damaged = whole.clone();
        // How many cells there are, and where they begin (SQLite's file format, §1.6).
        damaged[page * 4096 + 3..page * 4096 + 7].fill(0x7f);
        home.put(&damaged);
        match home.open() {
            Ok(_) => {}
            Err(RegistryError::Damaged { .. }) => refused += 1,
            Err(error) => panic!("page {page}: {error}"),
        }
    }
    assert_eq!(refused, pages - 1);
}

/// A large registry is not checked when it is opened.
#[tokio::test]
async fn nothing_is_listed_of_a_large_registry_from_which_a_row_was_lost() {
    let home = Home::new().await;
    home.sql(
        "CREATE TABLE filling (b); INSERT INTO filling VALUES (zeroblob(2000000));
         DROP TABLE filling",
    );
    let whole = home.bytes();
    assert!(whole.len() > 1 << 20);
    assert!(home.faults().is_empty(), "{:?}", home.faults());
    for (lost, of) in [
        ("contact WHERE name = 'friend'", "contact"),
        ("identity WHERE name = 'bob'", "identity"),
        ("evidence WHERE to_name = 'mallory'", "evidence"),
        ("revocation", "revocation"),
        ("intent", "intent"),
    ] {
        home.put(&whole);
        home.sql(&format!("PRAGMA foreign_keys = OFF; DELETE FROM {lost}"));
        let registry = home.open().unwrap();
        let listed = [
            ("contact", registry.contacts().map(drop)),
            ("identity", registry.identities().map(drop)),
            ("evidence", registry.all_evidence().map(drop)),
            ("revocation", registry.all_revocations().map(drop)),
            ("intent", registry.open_intents().map(drop)),
        ];
        for (table, listed) in listed {
            let is_refused = matches!(listed, Err(RegistryError::Damaged { .. }));
            assert_eq!(
                is_refused,
                table == of,
                "{table} without {lost}: {listed:?}"
            );
        }
        drop(registry);
        // Who reads for whom is not told either, where a revocation can be among what is lost.
        let node = home.node();
        let program = claviger_engine::EngineId::program();
        let asked = node.reads_for(&program, &id("mallory"), &id("alice"));
        let is_refused = matches!(asked, Err(EngineError::Registry(_)));
        let decides = ["evidence", "revocation"].contains(&of);
        assert_eq!(is_refused, decides, "without {lost}");
    }
}

#[tokio::test]
async fn an_identity_that_was_altered_to_have_died_with_its_process_is_not_forgotten() {
    let home = Home::new().await;
    home.sql("UPDATE identity SET lease = '0123456789abcdef01234567' WHERE name = 'alice'");
    let registry = home.open().unwrap();
    let seen = registry.identity(&id("alice"));
    assert!(
        matches!(seen, Err(RegistryError::Altered { .. })),
        "{seen:?}"
    );
    assert!(!registry.check().unwrap().is_empty());
    drop(registry);
    home.sql("UPDATE identity SET lease = NULL WHERE name = 'alice'");
    assert!(home.faults().is_empty(), "{:?}", home.faults());
    let registry = home.open().unwrap();
    assert!(registry.identity(&id("alice")).unwrap().is_some());
}

#[tokio::test]
async fn no_registry_is_made_where_the_log_of_a_lost_one_is_left() {
    let home = Home::new().await;
    let node = home.node();
    make(&node, "late", &home.device.backend()).await;
    let log = std::path::PathBuf::from(format!("{}-wal", home.file().display()));
    let lost = std::fs::read(&log).unwrap();
    assert!(!lost.is_empty());
    drop(node);
    for end in ["-wal", "-journal"] {
        let _ = std::fs::remove_file(home.file());
        let left = std::path::PathBuf::from(format!("{}{end}", home.file().display()));
        std::fs::write(&left, &lost).unwrap();
        let Err(error @ RegistryError::Lost { .. }) = home.open().map(drop) else {
            panic!("{end}: a registry is there");
        };
        assert_eq!(error.code(), "registry-lost");
        assert!(error.to_string().contains(end), "{error}");
        assert!(!home.file().exists());
        assert_eq!(std::fs::read(&left).unwrap(), lost);
        // What is empty is a part of nothing.
        std::fs::write(&left, "").unwrap();
        assert!(home.open().unwrap().identities().unwrap().is_empty());
    }
}

#[test]
fn a_registry_that_has_lost_its_tables_is_no_new_one() {
    let home = tempfile::tempdir().unwrap();
    drop(Registry::open(home.path()).unwrap());
    let file = home.path().join("registry.sqlite");
    let db = Connection::open(&file).unwrap();
    db.execute_batch("PRAGMA journal_mode = DELETE").unwrap();
    drop(db);
    let mut bytes = std::fs::read(&file).unwrap();
    // The first page's tree has no cells (SQLite's file format, §1.6).
    bytes[103..105].fill(0);
    std::fs::write(&file, bytes).unwrap();
    let opened = Registry::open(home.path()).map(drop);
    assert!(
        matches!(&opened, Err(error) if is_damage(error)),
        "{opened:?}"
    );
}
