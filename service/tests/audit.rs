//! The log of who used which key, and what finds that it was changed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use claviger_engine::message::RequestGenerateIdentity;
use claviger_engine::{Backend, Capabilities, EngineId, IdParams, Node, Purpose, Registry};
use claviger_memory::MemoryDriver;
use claviger_service::Caller;
use claviger_service::audit::verify::{FaultKind, Report, Verifier, verify};
use claviger_service::audit::{Audit, AuditSettings, Journal, Outcome, Sealer, Use, digest_of};
use claviger_token::{Call, PublicKey, TokenId};
use serde_json::Value;
use tempfile::TempDir;

struct Log {
    folder: TempDir,
}

impl Log {
    fn new() -> Self {
        Log {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("audit.jsonl")
    }

    fn open(&self) -> Audit {
        Audit::open(AuditSettings::of(self.path())).unwrap()
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path()).unwrap()
    }

    fn lines(&self) -> Vec<Value> {
        let text = self.text();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.collect()
    }

    fn kinds(&self) -> Vec<String> {
        let lines = self.lines().into_iter();
        lines
            .map(|line| line["kind"].as_str().unwrap().to_owned())
            .collect()
    }

    fn verify(&self, key: Option<&PublicKey>) -> Report {
        verify(&*fs::read(self.path()).unwrap(), key).unwrap()
    }

    /// The other files beside it, by name.
    fn beside(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| *path != self.path());
        paths.sort();
        paths
    }
}

fn caller() -> Caller {
    Caller {
        uid: 1001,
        gid: 100,
        socket: "api".into(),
    }
}

fn signs(audit: &Audit, what: &str) {
    let digest = digest_of(what.as_bytes());
    let used = Use {
        identity: "alice",
        operation: "sign",
        purpose: "raw",
        digest: Some(&digest),
        token: None,
        is_confirmed: false,
    };
    audit.begin(&caller(), &used).unwrap().end(Outcome::Done);
}

#[test]
fn a_use_is_two_lines_of_one_id_and_a_refusal_one_that_say_who_did_what() {
    let log = Log::new();
    let audit = log.open();
    let token = TokenId {
        kind: "pkcs11".into(),
        manufacturer: "a \"maker\"\n".into(),
        serial: "1".into(),
    };
    let digest = digest_of(b"text");
    let what = Use {
        identity: "alice\"\n{\"",
        operation: "sign",
        purpose: "sshsig:file",
        digest: Some(&digest),
        token: None,
        is_confirmed: false,
    };
    let mut entry = audit.begin(&caller(), &what).unwrap();
    // It is written before the device is asked.
    assert_eq!(log.kinds(), ["open", "begin"]);
    entry.on(&token);
    entry.end(Outcome::Failed("pin-wrong"));
    drop(audit.begin(&caller(), &what).unwrap());
    audit.refused(&caller(), &what, "not-allowed").unwrap();
    let lines = log.lines();
    assert_eq!(
        log.kinds(),
        ["open", "begin", "end", "begin", "end", "refused"]
    );
    let begin = &lines[1];
    assert_eq!(begin["caller"]["uid"], 1001);
    assert_eq!(begin["caller"]["gid"], 100);
    assert_eq!(begin["caller"]["socket"], "api");
    assert_eq!(begin["identity"], "alice\"\n{\"");
    assert_eq!(begin["operation"], "sign");
    assert_eq!(begin["purpose"], "sshsig:file");
    // sha256sum of `text`.
    assert_eq!(
        begin["digest"],
        "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1"
    );
    let time = begin["time"].as_str().unwrap();
    assert!(time.len() == 24 && time.ends_with('Z'), "{time}");
    assert_eq!(lines[2]["id"], begin["n"]);
    assert_eq!(lines[2]["outcome"], "pin-wrong");
    assert_eq!(lines[2]["token"], token.to_string());
    assert_eq!(lines[4]["outcome"], "unknown");
    assert_eq!(lines[5]["outcome"], "not-allowed");
    assert_eq!(lines[5]["caller"]["uid"], 1001);
    let report = log.verify(None);
    assert!(report.is_whole() && report.has_beginning, "{report:?}");
    assert_eq!((report.lines, report.unsealed), (6, 6));
}

#[test]
fn refusals_without_end_have_few_lines_and_are_all_counted() {
    let log = Log::new();
    let audit = log.open();
    let what = Use {
        identity: "alice",
        operation: "sign",
        ..Use::default()
    };
    let begun = Instant::now();
    for _ in 0..2_000 {
        audit.refused(&caller(), &what, "not-allowed").unwrap();
    }
    // Those of others are not counted with them.
    let other = Caller {
        uid: 1002,
        ..caller()
    };
    audit.refused(&other, &what, "not-allowed").unwrap();
    audit.close().unwrap();
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap() + 1;
    let lines = log.lines();
    let of = |uid: u64| {
        lines
            .iter()
            .filter(move |line| line["caller"]["uid"] == uid)
    };
    assert!(of(1001).count() <= 21 * seconds, "{}", of(1001).count());
    let counted: u64 = of(1001)
        .map(|line| line["count"].as_u64().unwrap_or(1))
        .sum();
    assert_eq!((counted, of(1002).count()), (2_000, 1));
    assert!(log.verify(None).is_whole());
}

#[test]
fn whatever_is_changed_in_the_file_is_found() {
    let log = Log::new();
    let audit = log.open();
    (0..4).for_each(|n| signs(&audit, &n.to_string()));
    audit.close().unwrap();
    let whole = log.text();
    let report = log.verify(None);
    assert!(report.is_whole() && report.is_closed, "{report:?}");
    let lines: Vec<&str> = whole.lines().collect();
    let with = |lines: &[&str]| {
        lines
            .iter()
            .map(|line| format!("{line}\n"))
            .collect::<String>()
    };
    let found = |text: String| verify(text.as_bytes(), None).unwrap();
    for at in 0..lines.len() {
        let (before, rest) = lines.split_at(at);
        let altered = rest[0].replacen("2", "3", 1);
        let altered = found(with(&[before, &[&altered], &rest[1..]].concat()));
        let removed = found(with(&[before, &rest[1..]].concat()));
        let twice = found(with(&[before, &[rest[0]], rest].concat()));
        let inserted = found(with(&[before, &["{}"], rest].concat()));
        assert!(!twice.is_whole() && !inserted.is_whole(), "{at}");
        match at + 1 == lines.len() {
            // Without its first line it goes on from another file.
            false if at == 0 => assert!(!altered.is_whole() && !removed.has_beginning),
            false => assert!(!altered.is_whole() && !removed.is_whole(), "{at}"),
            // The last one is known by nothing but itself; that it says the end is not there.
            true => assert!(!removed.is_closed),
        }
        if let [one, other, rest @ ..] = rest {
            let moved = found(with(&[before, &[*other, *one], rest].concat()));
            assert!(!moved.is_whole(), "{at}");
        }
    }
    // A use without its end.
    let cut = found(with(&lines[..4]));
    assert!(cut.is_whole() && !cut.is_closed);
    assert_eq!((cut.without_end, cut.without_end_count), (vec![4], 1));
    let short = found(whole[..whole.len() - 2].to_owned());
    assert_eq!(short.faults.last().unwrap().what, FaultKind::CutShort);
    let long = format!("{}\n{whole}", "x".repeat(100_000));
    let long = found(long);
    assert_eq!(long.faults[0].what, FaultKind::NotALine);
    assert_eq!(long.lines, report.lines + 1);
}

#[test]
fn a_chain_goes_on_when_the_daemon_starts_again_and_after_a_crash() {
    let log = Log::new();
    let audit = log.open();
    signs(&audit, "one");
    // Nobody else writes to it.
    assert!(Audit::open(AuditSettings::of(log.path())).is_err());
    drop(audit);
    signs(&log.open(), "two");
    let whole = log.text();
    let before = log.verify(None).lines;
    for (behind, is_cut) in [
        ("", false),
        ("{\"n\":9,\"ti", true),
        ("\0\0\0\0", true),
        ("{\"n\":9\n\0\n\0", true),
    ] {
        fs::write(log.path(), format!("{whole}{behind}")).unwrap();
        let aside = log.beside().len();
        signs(&log.open(), "three");
        let report = log.verify(None);
        assert!(report.is_whole(), "{behind:?}: {report:?}");
        let more = if is_cut { 3 } else { 2 };
        assert_eq!(report.lines, before + more, "{behind:?}");
        assert_eq!(log.beside().len(), aside + usize::from(is_cut));
        if is_cut {
            let recovered = &log.lines()[usize::try_from(before).unwrap()];
            assert_eq!(recovered["kind"], "recovered");
            assert_eq!(recovered["cut"], behind.len());
            let moved = log.beside().pop().unwrap();
            assert_eq!(fs::read_to_string(moved).unwrap(), behind);
        }
    }
    // The first line of all was cut short.
    fs::write(log.path(), "{\"n\":1,\"t").unwrap();
    signs(&log.open(), "four");
    assert_eq!(log.kinds(), ["open", "recovered", "begin", "end"]);
    assert!(log.verify(None).is_whole());
}

#[test]
fn a_log_goes_on_however_much_a_power_cut_left_behind_its_last_line() {
    let log = Log::new();
    signs(&log.open(), "one");
    let whole = log.text().into_bytes();
    let torn = [
        vec![0; 100 << 10],
        vec![0; 1 << 20],
        b"{\"n\":9,\n".repeat(20_000),
        [vec![b'x'; 70_000], b"\n".to_vec(), vec![0; 70_000]].concat(),
    ];
    for behind in &torn {
        fs::write(log.path(), [&*whole, behind].concat()).unwrap();
        signs(&log.open(), "two");
        let report = log.verify(None);
        assert!(report.is_whole(), "{report:?}");
        assert_eq!(report.lines, 3 + 1 + 2);
        let recovered = &log.lines()[3];
        assert_eq!(recovered["kind"], "recovered");
        assert_eq!(recovered["cut"], behind.len());
        let moved = log.beside().pop().unwrap();
        assert!(fs::read(moved).unwrap() == *behind);
    }
    // Of a file that was moved when it had such an end, and of a new one without its first line.
    let aside = log.folder.path().join("audit.jsonl.000000000003");
    fs::write(aside, [&*whole, &*torn[0]].concat()).unwrap();
    fs::write(log.path(), &torn[1]).unwrap();
    signs(&log.open(), "three");
    assert_eq!(log.kinds(), ["open", "recovered", "begin", "end"]);
    assert_eq!(log.lines()[0]["n"], 4);
}

#[test]
fn a_file_that_is_none_of_ours_is_left_alone() {
    let log = Log::new();
    let long = "a letter\n".repeat(20_000);
    for other in ["a letter\n", "a letter", "{\"n\":1}\n", &long] {
        fs::write(log.path(), other).unwrap();
        let Err(error) = Audit::open(AuditSettings::of(log.path())) else {
            panic!("{other:?}");
        };
        assert_eq!(error.code(), "audit-unavailable");
        assert_eq!(log.text(), other);
    }
    fs::remove_file(log.path()).unwrap();
    drop(log.open());
    let others_write = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o622);
    fs::set_permissions(log.path(), others_write).unwrap();
    assert!(Audit::open(AuditSettings::of(log.path())).is_err());
    let absent = log.folder.path().join("absent/audit.jsonl");
    assert!(Audit::open(AuditSettings::of(absent)).is_err());
}

fn read_all(paths: &[PathBuf]) -> Report {
    let mut verifier = Verifier::new(None);
    for path in paths {
        verifier.read(&*fs::read(path).unwrap()).unwrap();
    }
    verifier.report()
}

#[test]
fn files_that_were_rotated_are_one_chain() {
    let log = Log::new();
    let audit = log.open();
    signs(&audit, "one");
    audit.rotate().unwrap();
    signs(&audit, "two");
    // By another program, which moves it before it says so.
    let moved = log.folder.path().join("audit.jsonl.moved");
    fs::rename(log.path(), &moved).unwrap();
    signs(&audit, "three");
    audit.rotate().unwrap();
    signs(&audit, "four");
    drop(audit);
    let rotated = log.beside()[0].clone();
    let all = [rotated.clone(), moved.clone(), log.path()];
    let report = read_all(&all);
    assert!(report.is_whole() && report.has_beginning, "{report:?}");
    assert_eq!(report.lines, 3 + 5 + 3);
    // One that is missing is.
    assert!(!read_all(&[rotated, log.path()]).is_whole());
    let later = read_all(&[moved.clone(), log.path()]);
    assert!(later.is_whole() && !later.has_beginning);
    // A file that was moved when nobody wrote is gone on from, if its name says which it is.
    fs::rename(
        log.path(),
        log.folder.path().join("audit.jsonl.000000000099"),
    )
    .unwrap();
    signs(&log.open(), "five");
    let last = log.folder.path().join("audit.jsonl.000000000099");
    assert!(read_all(&[all[0].clone(), moved, last, log.path()]).is_whole());
}

#[test]
fn a_file_that_is_too_long_is_rotated() {
    let log = Log::new();
    let audit = Audit::open(AuditSettings {
        longest: 2_000,
        ..AuditSettings::of(log.path())
    })
    .unwrap();
    (0..20).for_each(|n| signs(&audit, &n.to_string()));
    drop(audit);
    let mut files = log.beside();
    assert!(files.len() > 3, "{files:?}");
    files.push(log.path());
    let report = read_all(&files);
    assert!(report.is_whole() && report.has_beginning, "{report:?}");
    for path in &files {
        assert!(path.metadata().unwrap().len() < 2_500);
    }
}

#[test]
fn without_a_file_the_journal_has_the_lines_and_nothing_is_begun_that_it_does_not_take() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    assert!(Journal::connect(&path).is_err());
    let listen = || {
        let journal = UnixDatagram::bind(&path).unwrap();
        let limit = Some(Duration::from_secs(20));
        journal.set_read_timeout(limit).unwrap();
        journal
    };
    let next = |journal: &UnixDatagram| {
        let mut datagram = vec![0; 64 << 10];
        let length = journal.recv(&mut datagram).unwrap();
        String::from_utf8_lossy(&datagram[..length]).into_owned()
    };
    let journal = listen();
    let connect = || Journal::connect(&path).unwrap();
    let audit = Audit::to_journal(connect(), false);
    signs(&audit, "one");
    let field = |name: &str, value: &str| {
        let length = (value.len() as u64).to_le_bytes();
        format!("{name}\n{}{value}\n", String::from_utf8_lossy(&length))
    };
    let begin = next(&journal);
    assert!(begin.starts_with("MESSAGE\n"), "{begin}");
    assert!(begin.contains("\"uid\":1001") && begin.contains("\"identity\":\"alice\""));
    for (kind, datagram) in [("begin", begin), ("end", next(&journal))] {
        assert!(
            datagram.contains(&field("CLAVIGER_KIND", kind)),
            "{datagram}"
        );
        assert!(datagram.contains(&field("CLAVIGER_ID", "1")), "{datagram}");
    }
    assert_eq!(audit.status(), ("journal", None));
    let best_effort = Audit::to_journal(connect(), true);
    let log = Log::new();
    let both = log.open().with_journal(Some(connect()));
    signs(&both, "two");
    assert!(next(&journal).contains("begin") && next(&journal).contains("end"));

    drop(journal);
    let refused = audit.begin(&caller(), &Use::default()).map(drop);
    assert_eq!(refused.unwrap_err().code(), "audit-unavailable");
    assert!(audit.status().1.is_some());
    signs(&best_effort, "three");
    // The file has them.
    signs(&both, "four");
    assert_eq!(log.kinds(), ["open", "begin", "end", "begin", "end"]);

    // It is started anew.
    fs::remove_file(&path).unwrap();
    let journal = listen();
    signs(&audit, "five");
    assert!(next(&journal).contains("begin") && next(&journal).contains("end"));
    assert_eq!(audit.status(), ("journal", None));
}

async fn sealing_node() -> (Node, PublicKey) {
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(MemoryDriver::new())
        .build();
    for (name, capabilities) in [
        ("sealer", Capabilities::Commit),
        ("reader", Capabilities::Decrypt),
    ] {
        let request = RequestGenerateIdentity {
            backend: Backend::LocalMemory,
            params: IdParams::Ed25519,
            capabilities,
        };
        let (who, call) = (EngineId::local(name), Call::unlimited());
        node.generate(&who, request, &call).await.unwrap();
    }
    let keys = node.public_keys(&EngineId::local("sealer")).unwrap();
    (node, keys.unwrap().sign.unwrap())
}

#[tokio::test]
async fn a_seal_shows_that_what_is_before_it_was_rewritten_and_says_what_it_does_not_cover() {
    let log = Log::new();
    let audit = log.open();
    let (node, key) = sealing_node().await;
    let sealer = Sealer::new(&audit, &node, "sealer", Call::unlimited).unwrap();
    for absent in ["absent", "reader"] {
        let refused = Sealer::new(&audit, &node, absent, Call::unlimited).map(drop);
        assert_eq!(refused.unwrap_err().code(), "audit-cannot-seal");
    }
    (0..3).for_each(|n| signs(&audit, &n.to_string()));
    sealer.seal().await.unwrap();
    // Nothing new is to be sealed.
    sealer.seal().await.unwrap();
    let sealed = log.verify(Some(&key));
    assert!(sealed.is_whole(), "{sealed:?}");
    assert_eq!((sealed.seals, sealed.unsealed), (1, 1));
    signs(&audit, "later");
    let report = log.verify(Some(&key));
    assert_eq!((report.seals, report.unsealed), (1, 3));
    let unchecked = log.verify(None);
    assert_eq!((unchecked.unchecked_seals, unchecked.seals), (1, 0));
    assert_eq!(unchecked.unsealed, unchecked.lines);
    drop(sealer);
    drop(audit);

    // Whoever knows the format makes all hashes anew.
    let mut prev = "0".repeat(64);
    let mut rewritten = String::new();
    for line in log.text().lines() {
        let at = line.rfind("\"prev\":\"").unwrap();
        let line = line[..at].replace("\"uid\":1001", "\"uid\":1002");
        let line = format!("{line}\"prev\":\"{prev}\"}}");
        prev = digest_of(line.as_bytes())
            .map(|byte| format!("{byte:02x}"))
            .concat();
        rewritten.push_str(&line);
        rewritten.push('\n');
    }
    let report = verify(rewritten.as_bytes(), None).unwrap();
    assert!(report.is_whole(), "{report:?}");
    let report = verify(rewritten.as_bytes(), Some(&key)).unwrap();
    assert!(matches!(report.faults[0].what, FaultKind::BadSeal { .. }));
    assert_eq!((report.seals, report.unsealed), (0, report.lines));
    // Another key's seal is none.
    let (_, other) = sealing_node().await;
    let report = log.verify(Some(&other));
    assert!(!report.is_whole());
    assert_eq!(report.unsealed, report.lines);
}

#[tokio::test]
async fn a_seal_that_failed_is_not_tried_again_with_each_line() {
    let log = Log::new();
    let audit = log.open();
    let (node, _) = sealing_node().await;
    let tried = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tried);
    let call = move || {
        count.fetch_add(1, Ordering::SeqCst);
        Call::unlimited()
    };
    let sealer = Sealer::new(&audit, &node, "sealer", call).unwrap();
    let (who, request) = (
        EngineId::program(),
        claviger_engine::message::RequestDeleteIdentity {
            external_identity: EngineId::local("sealer"),
            backend: Backend::LocalMemory,
        },
    );
    node.delete(&who, request, &Call::unlimited())
        .await
        .unwrap();
    (0..5_001).for_each(|n| signs(&audit, &n.to_string()));
    let running = tokio::spawn(async move { sealer.run().await });
    let limit = Instant::now() + Duration::from_secs(60);
    while tried.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < limit, "no seal was tried");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for n in 0..40 {
        signs(&audit, &n.to_string());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(tried.load(Ordering::SeqCst), 1);
    running.abort();
}

#[tokio::test]
async fn nobody_obtains_a_seal_as_another_signature() {
    let (node, _) = sealing_node().await;
    let engine = EngineId::local("sealer_committer_sealer");
    let hash = "0".repeat(64);
    for (data, purpose, code) in [
        (
            format!("Claviger: audit seal\n7 {hash}"),
            Purpose::Raw,
            "reserved-message",
        ),
        ("7".into(), Purpose::Seal, "not-for-purpose"),
        (format!("x {hash}"), Purpose::Seal, "not-for-purpose"),
        (format!("7 {hash}0"), Purpose::Seal, "not-for-purpose"),
    ] {
        let request = claviger_engine::message::RequestCommitment {
            data: data.clone().into_bytes(),
            purpose,
        };
        let (who, call) = (EngineId::local("sealer"), Call::unlimited());
        let signed = node.commit_for(&who, &engine, request, &call).await;
        assert_eq!(signed.unwrap_err().code(), code, "{data}");
    }
}
