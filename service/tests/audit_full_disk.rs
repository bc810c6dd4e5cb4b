//! The audit log on a full disk. A test program of its own: the limit that stands for it is that of
//! the process.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::Path;
use std::sync::Arc;

use claviger_service::Caller;
use claviger_service::audit::verify::verify;
use claviger_service::audit::{Audit, AuditSettings, Outcome, Use};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const SIGNS: Use<'_> = Use {
    identity: "alice",
    operation: "sign",
    purpose: "raw",
    digest: None,
    token: None,
    is_confirmed: false,
};

#[test]
fn what_cannot_be_written_is_not_begun_unless_that_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("one"), folder.path().join("other"));
    let caller = Caller {
        uid: 1001,
        gid: 100,
        socket: "api".into(),
    };
    assert!(Audit::open(AuditSettings::of("/dev/full")).is_err());
    let audit = Audit::open(AuditSettings::of(&path)).unwrap();
    let best_effort = Audit::open(AuditSettings {
        is_best_effort: true,
        ..AuditSettings::of(&other)
    })
    .unwrap();
    let signs = |audit: &Audit| {
        audit
            .begin(&caller, &SIGNS)
            .map(|entry| entry.end(Outcome::Done))
    };
    signs(&audit).unwrap();
    let lines = || verify(&*std::fs::read(&path).unwrap(), None).unwrap();
    let before = lines().lines;
    // Otherwise the first such write would end the process.
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()).unwrap();
    let unlimited = getrlimit(Resource::Fsize);
    let room_for_half_a_line = |path: &Path| {
        let current = Some(path.metadata().unwrap().len() + 100);
        let limit = Rlimit {
            current,
            ..unlimited
        };
        setrlimit(Resource::Fsize, limit).unwrap();
    };
    room_for_half_a_line(&path);
    let refused = signs(&audit);
    room_for_half_a_line(&other);
    let forgiven = signs(&best_effort);
    let status = [audit.status(), best_effort.status()];
    setrlimit(Resource::Fsize, unlimited).unwrap();
    assert_eq!(refused.unwrap_err().code(), "audit-unavailable");
    forgiven.unwrap();
    let failed = status.map(|(mode, failure)| (mode, failure.is_some()));
    assert_eq!(failed, [("required", true), ("best-effort", true)]);
    assert_eq!(Audit::off().status(), ("off", None));
    // With space there is no half line, and it goes on.
    signs(&audit).unwrap();
    assert_eq!(audit.status().1, None);
    let report = lines();
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(report.lines, before + 2);
    // What is not in the log as far as possible has no end there either.
    signs(&best_effort).unwrap();
    let report = verify(&*std::fs::read(&other).unwrap(), None).unwrap();
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(report.lines, 3);
}
