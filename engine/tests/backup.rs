//! Backing a registry up, and putting a backup in its place.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use claviger_engine::message::RequestGenerateIdentity;
use claviger_engine::registry::FILE;
use claviger_engine::{Capabilities, EngineError, IdParams, Registry, RegistryError};
use claviger_token::{Error, Pin, PinVerdict, RefusedPins, TriesLeft};
use common::*;

fn names(registry: &Registry) -> Vec<String> {
    let identities = registry.identities().unwrap();
    identities.iter().map(|(id, _)| id.to_string()).collect()
}

/// Backs up into a file in `folder`.
fn backup(registry: &Registry, folder: &Path) -> PathBuf {
    let path = folder.join("backup");
    fs::write(&path, registry.backup().unwrap().file).unwrap();
    path
}

/// What is in the home folder, but for what processes leave and the files that were there.
fn content(home: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(home).unwrap().map(|entry| entry.unwrap());
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    let mut files: Vec<_> = files
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_of_one_moment_whoever_writes_meanwhile() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let writer = node(home.path(), &device);
    make(&writer, "first", &device.backend()).await;
    let backend = device.backend();
    let writing = tokio::spawn(async move {
        for number in 0..40 {
            make(&writer, &format!("i{number}"), &backend).await;
        }
    });
    let registry = Registry::open(home.path()).unwrap();
    let mut seen = 0;
    while !writing.is_finished() {
        let copy = tempfile::tempdir().unwrap();
        let home = copy.path().join("home");
        let restored = Registry::restore(&home, &backup(&registry, copy.path())).unwrap();
        assert!(restored.moved_aside.is_none());
        assert!(restored.content.identities >= seen);
        seen = restored.content.identities;
        let restored = Registry::open(&home).unwrap();
        assert_eq!(names(&restored).len(), seen);
        assert!(restored.check().unwrap().is_empty());
    }
    writing.await.unwrap();
    assert_eq!(registry.backup().unwrap().content.identities, 41);
}

#[tokio::test]
async fn a_restored_home_has_what_was_backed_up_and_settles_nothing_until_told() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let node_before = node(home.path(), &device);
    make(&node_before, "alice", &device.backend()).await;
    // A generation that is interrupted, and in the backup open.
    device.detach_after(1);
    let params = IdParams::Ed25519;
    let both = Capabilities::CommitAndDecrypt;
    generate(&node_before, "begun", &device.backend(), params, both).await;
    device.attach();
    assert_eq!(device.keys(), 3);
    let outside = tempfile::tempdir().unwrap();
    let file = backup(node_before.registry(), outside.path());
    make(&node_before, "later", &device.backend()).await;
    assert_eq!(device.keys(), 4);
    drop(node_before);

    let restored = Registry::restore(home.path(), &file).unwrap();
    assert_eq!(restored.content.identities, 1);
    assert_eq!(restored.content.open_intents, 1);
    let aside = restored.moved_aside.unwrap();
    let mode = aside.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let node = node(home.path(), &device);
    assert_eq!(names(node.registry()), ["alice"]);
    assert!(node.registry().is_copy());
    let left = node
        .resolve_intents(&claviger_token::Call::unlimited())
        .await
        .unwrap();
    assert!(matches!(
        left[0].1,
        EngineError::Registry(RegistryError::Copy)
    ));
    assert_eq!(device.keys(), 4);
    node.registry().claim_home().unwrap();
    assert!(
        node.resolve_intents(&claviger_token::Call::unlimited())
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(device.keys(), 4);

    // What was moved aside is whole, and a backup itself.
    drop(node);
    let back = Registry::restore(home.path(), &aside).unwrap();
    assert_eq!(back.content.identities, 2);
    assert_ne!(back.moved_aside.unwrap(), aside);
    assert_eq!(
        names(&Registry::open(home.path()).unwrap()),
        ["alice", "later"]
    );
}

#[tokio::test]
async fn a_registry_is_restored_where_the_old_one_is_damaged_empty_or_missing() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let outside = tempfile::tempdir().unwrap();
    let before = node(home.path(), &device);
    make(&before, "alice", &device.backend()).await;
    let file = backup(before.registry(), outside.path());
    // With a log that nobody took into the file: a part of another registry.
    let log = fs::read(home.path().join("registry.sqlite-wal")).unwrap();
    assert!(!log.is_empty());
    drop(before);
    let path = home.path().join(FILE);
    for (what, had) in [
        (
            "garbage",
            Some(b"no registry at all, and rather long".repeat(300)),
        ),
        ("empty", Some(Vec::new())),
        ("missing", None),
        (
            "page lost",
            Some({
                let mut bytes = fs::read(&file).unwrap();
                bytes[4096..8192].fill(0);
                bytes
            }),
        ),
    ] {
        let _ = fs::remove_file(&path);
        if let Some(had) = &had {
            fs::write(&path, had).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        fs::write(home.path().join("registry.sqlite-wal"), &log).unwrap();
        fs::write(home.path().join("registry.sqlite-shm"), "left over").unwrap();
        let restored = Registry::restore(home.path(), &file).unwrap();
        match (had, restored.moved_aside) {
            (Some(had), Some(aside)) => {
                assert_eq!(fs::read(&aside).unwrap(), had, "{what}");
                let beside = format!("{}-wal", aside.display());
                assert_eq!(fs::read(beside).unwrap(), log, "{what}");
            }
            (None, None) => {}
            _ => panic!("{what}"),
        }
        for left in ["registry.sqlite-wal", "registry.sqlite-shm"] {
            assert!(!home.path().join(left).exists(), "{what}: {left}");
        }
        let registry = Registry::open(home.path()).unwrap();
        assert_eq!(names(&registry), ["alice"], "{what}");
        assert!(registry.check().unwrap().is_empty(), "{what}");
    }
}

#[tokio::test]
async fn what_is_no_backup_changes_nothing() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let outside = tempfile::tempdir().unwrap();
    let before = node(home.path(), &device);
    make(&before, "alice", &device.backend()).await;
    let good = before.registry().backup().unwrap().file;
    drop(before);
    let then = content(home.path());
    let mut newer = good.clone();
    // PRAGMA user_version (SQLite's file format, §1.3).
    newer[60..64].copy_from_slice(&99_u32.to_be_bytes());
    let mut lost = good.clone();
    let middle = good.len() / 8192 * 4096;
    lost[middle..middle + 4096].fill(0);
    let other = outside.path().join("other");
    let db = rusqlite::Connection::open(&other).unwrap();
    db.execute_batch("CREATE TABLE bookmark (url TEXT)")
        .unwrap();
    drop(db);
    let mut altered = good.clone();
    let name = altered
        .windows(9)
        // In no index, where SQLite would see it.
        .position(|part| part == b"generated")
        .unwrap();
    altered[name] = b'b';
    for (what, bytes, code) in [
        ("nothing", Vec::new(), "registry-empty"),
        ("text", b"dear diary".repeat(1000), "not-a-registry"),
        (
            "another program's",
            fs::read(&other).unwrap(),
            "not-a-registry",
        ),
        ("newer", newer, "registry-newer"),
        (
            "cut off",
            good[..good.len() / 2].to_vec(),
            "registry-damaged",
        ),
        ("page lost", lost, "registry-damaged"),
        ("altered", altered, "registry-row-altered"),
    ] {
        let file = outside.path().join("file");
        fs::write(&file, bytes).unwrap();
        let refused = Registry::restore(home.path(), &file).unwrap_err();
        assert_eq!(refused.code(), code, "{what}: {refused}");
        assert_eq!(content(home.path()), then, "{what}");
    }
    let nowhere = Registry::restore(home.path(), &outside.path().join("nowhere"));
    assert!(nowhere.unwrap_err().to_string().contains("nowhere"));
    assert_eq!(content(home.path()), then);
}

#[tokio::test]
async fn a_backup_that_others_can_write_to_is_not_restored() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let outside = tempfile::tempdir().unwrap();
    let before = node(home.path(), &device);
    make(&before, "alice", &device.backend()).await;
    let file = backup(before.registry(), outside.path());
    drop(before);
    let then = content(home.path());
    for mode in [0o620, 0o602] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let refused = Registry::restore(home.path(), &file).unwrap_err();
        assert!(
            matches!(&refused, RegistryError::NotPrivate { path, .. } if *path == file),
            "{refused:?}"
        );
        assert_eq!(content(home.path()), then);
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    Registry::restore(home.path(), &file).unwrap();
}

#[tokio::test]
async fn a_registry_that_others_have_open_is_not_replaced() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let outside = tempfile::tempdir().unwrap();
    let open = node(home.path(), &device);
    make(&open, "alice", &device.backend()).await;
    let file = backup(open.registry(), outside.path());
    let then = content(home.path());
    let refused = Registry::restore(home.path(), &file).unwrap_err();
    assert!(matches!(refused, RegistryError::InUse));
    assert_eq!(content(home.path()), then);
    drop(open);
    Registry::restore(home.path(), &file).unwrap();
}

#[tokio::test]
async fn what_a_token_refused_since_the_backup_is_not_forgotten() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let outside = tempfile::tempdir().unwrap();
    let registry = Registry::open(home.path()).unwrap();
    let file = backup(&registry, outside.path());
    let pin = Pin::from("135791");
    let turn = |registry: &Registry| {
        let mut turn = registry
            .refused_pins()
            .turn(&device.id(), &claviger_token::Call::unlimited())
            .unwrap();
        turn.begin(&pin, TriesLeft::Unknown)?;
        turn.end(&pin, PinVerdict::Refused);
        Ok::<_, Error>(())
    };
    turn(&registry).unwrap();
    drop(registry);
    Registry::restore(home.path(), &file).unwrap();
    let restored = Registry::open(home.path()).unwrap();
    assert!(matches!(
        turn(&restored),
        Err(Error::PinRefusedBefore { .. })
    ));
}

#[tokio::test]
async fn derived_keys_that_were_given_away_since_the_backup_are_not_given_again() {
    let (device, home) = (Device::deriving(), tempfile::tempdir().unwrap());
    let outside = tempfile::tempdir().unwrap();
    let before = node(home.path(), &device);
    make(&before, "alice", &device.backend()).await;
    let file = backup(before.registry(), outside.path());
    make(&before, "later", &device.backend()).await;
    let later = before.registry().identity(&id("later")).unwrap().unwrap();
    drop(before);
    Registry::restore(home.path(), &file).unwrap();
    let node = node(home.path(), &device);
    // The other home may give out the same.
    let request = RequestGenerateIdentity {
        backend: device.backend(),
        params: IdParams::Ed25519,
        capabilities: Capabilities::Commit,
    };
    let refused = node.generate(&id("bob"), request, &call()).await.err();
    assert!(matches!(
        refused,
        Some(EngineError::Registry(RegistryError::Copy))
    ));
    node.registry().claim_home().unwrap();
    assert_eq!(node.registry().first_account() % 1000, 0);
    assert!(node.registry().first_account() < 2_000_000);
    drop(node);
    let node = common::node(home.path(), &device);
    make(&node, "bob", &device.backend()).await;
    let bob = node.registry().identity(&id("bob")).unwrap().unwrap();
    for key in &bob.keys {
        assert!(later.keys.iter().all(|other| other.slot != key.slot));
    }
}

#[test]
fn new_homes_begin_at_different_accounts_and_those_of_before_where_they_did() {
    let starts: std::collections::HashSet<u32> = (0..20)
        .map(|_| {
            let home = tempfile::tempdir().unwrap();
            let registry = Registry::open(home.path()).unwrap();
            let start = registry.first_account();
            assert!(start.is_multiple_of(1000) && start < 2_000_000);
            drop(registry);
            let again = Registry::open(home.path()).unwrap();
            assert_eq!((again.first_account(), again.is_copy()), (start, false));
            start
        })
        .collect();
    assert!(starts.len() > 10);

    let home = tempfile::tempdir().unwrap();
    drop(Registry::open(home.path()).unwrap());
    let db = rusqlite::Connection::open(home.path().join(FILE)).unwrap();
    db.execute_batch("DELETE FROM home").unwrap();
    drop(db);
    let registry = Registry::open(home.path()).unwrap();
    assert_eq!((registry.first_account(), registry.is_copy()), (0, false));
}

/// Refuses the PIN on a token of this serial number, or never answers.
fn send(registry: &Registry, serial: &str, pin: &str, verdict: Option<PinVerdict>) {
    let pin = Pin::from(pin);
    let token = token(serial);
    let mut turn = registry
        .refused_pins()
        .turn(&token, &claviger_token::Call::unlimited())
        .unwrap();
    turn.begin(&pin, TriesLeft::Unknown).unwrap();
    if let Some(verdict) = verdict {
        turn.end(&pin, verdict);
    }
}

/// What becomes of a PIN before it is sent.
fn sends(registry: &Registry, serial: &str, pin: &str) -> Result<(), Error> {
    let token = token(serial);
    let mut turn = registry
        .refused_pins()
        .turn(&token, &claviger_token::Call::unlimited())
        .unwrap();
    turn.begin(&Pin::from(pin), TriesLeft::Unknown)
}

fn token(serial: &str) -> claviger_token::TokenId {
    claviger_token::TokenId {
        kind: "piv".into(),
        manufacturer: "Yubico".into(),
        serial: serial.into(),
    }
}

/// What somebody does who has the file, and nothing of ours.
fn sql(home: &Path, statements: &str) {
    let db = rusqlite::Connection::open(home.join(FILE)).unwrap();
    db.execute_batch(statements).unwrap();
}

#[tokio::test]
async fn what_can_be_read_of_a_damaged_registry_is_taken_over_and_the_rest_does_not_matter() {
    let (device, home) = (Device::deriving(), tempfile::tempdir().unwrap());
    let outside = tempfile::tempdir().unwrap();
    let before = node(home.path(), &device);
    make(&before, "alice", &device.backend()).await;
    let file = backup(before.registry(), outside.path());
    let refused = Some(PinVerdict::Refused);
    send(before.registry(), "1", "135791", refused);
    drop(before);
    let path = home.path().join(FILE);
    let db = rusqlite::Connection::open(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    for table in ["key", "spent_slot", "sent_pin", "home", "refused_pin"] {
        let page = "SELECT rootpage FROM sqlite_schema WHERE type = 'table' AND name = ?";
        let page: i64 = db.query_row(page, [table], |row| row.get(0)).unwrap();
        let page = usize::try_from(page).unwrap();
        let mut damaged = whole.clone();
        damaged[(page - 1) * 4096..page * 4096].fill(0);
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join(FILE), &damaged).unwrap();
        assert!(Registry::open(other.path()).is_err(), "{table}");
        Registry::restore(other.path(), &file).unwrap_or_else(|e| panic!("{table}: {e}"));
        let restored = Registry::open(other.path()).unwrap();
        assert!(restored.check().unwrap().is_empty(), "{table}");
        assert_eq!(names(&restored), ["alice"]);
        let is_refused = matches!(
            sends(&restored, "1", "135791"),
            Err(Error::PinRefusedBefore { .. })
        );
        assert_eq!(is_refused, table != "refused_pin", "{table}");
    }
}

#[test]
fn a_token_whose_note_of_a_refused_pin_was_altered_gets_no_pin_unasked() {
    let (home, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let registry = Registry::open(home.path()).unwrap();
    let file = backup(&registry, outside.path());
    let refused = Some(PinVerdict::Refused);
    send(&registry, "1", "135791", refused);
    send(&registry, "2", "135791", refused);
    drop(registry);
    sql(
        home.path(),
        "UPDATE refused_pin SET hash = zeroblob(32) WHERE serial = '1'",
    );
    Registry::restore(home.path(), &file).unwrap();
    let restored = Registry::open(home.path()).unwrap();
    assert!(restored.check().unwrap().is_empty());
    for pin in ["135791", "246802"] {
        let sent = sends(&restored, "1", pin);
        assert!(matches!(sent, Err(Error::PinUnsettled { .. })), "{sent:?}");
    }
    let sent = sends(&restored, "2", "135791");
    assert!(
        matches!(sent, Err(Error::PinRefusedBefore { .. })),
        "{sent:?}"
    );
    sends(&restored, "2", "246802").unwrap();
}

#[test]
fn a_restore_keeps_what_either_knows_of_refused_pins_and_what_the_home_has_forgotten_since() {
    let (home, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let registry = Registry::open(home.path()).unwrap();
    let refused = Some(PinVerdict::Refused);
    send(&registry, "1", "135791", refused);
    send(&registry, "2", "135791", None);
    let file = backup(&registry, outside.path());
    for serial in ["1", "2"] {
        registry.refused_pins().forget(&token(serial)).unwrap();
    }
    drop(registry);

    // Another home knows nothing of that, and has seen other PINs refused.
    let other = tempfile::tempdir().unwrap();
    let registry = Registry::open(other.path()).unwrap();
    send(&registry, "1", "246802", refused);
    drop(registry);
    Registry::restore(other.path(), &file).unwrap();
    let restored = Registry::open(other.path()).unwrap();
    assert!(restored.check().unwrap().is_empty());
    for pin in ["135791", "246802"] {
        let sent = sends(&restored, "1", pin);
        assert!(
            matches!(sent, Err(Error::PinRefusedBefore { .. })),
            "{sent:?}"
        );
    }
    let sent = sends(&restored, "2", "357913");
    assert!(matches!(sent, Err(Error::PinUnsettled { .. })), "{sent:?}");

    // The same home, later: the right PIN was told since.
    Registry::restore(home.path(), &file).unwrap();
    let restored = Registry::open(home.path()).unwrap();
    sends(&restored, "1", "135791").unwrap();
    sends(&restored, "2", "135791").unwrap();
}
