//! A PIN that a token refused is sent to it by no process again, until somebody says so.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use claviger_engine::{Backend, Capabilities, EngineError, IdParams, Node, Registry};
use claviger_memory::MemoryDriver;
use claviger_token::{
    About, Access, Call, Detail, Driver, Error, FixedPin, Listed, Listing, Pin, PinSource,
    PinVerdict, RefusedPins, SlotId, Token, TokenId, TokenInfo, TriesLeft, refused,
};
use common::generate;
use secrecy::ExposeSecret;
use tempfile::TempDir;

const PIN: &str = "246802";
const BACKEND: &str = "vault:";

/// A token that wants a PIN, and counts.
#[derive(Clone)]
struct Vault(Arc<State>);

struct State {
    inner: Arc<dyn Token>,
    info: TokenInfo,
    tries: AtomicU8,
    /// Whether it tells how many tries are left.
    tells: AtomicBool,
    /// Whether it takes the next PIN and never answers.
    falls_silent: AtomicBool,
    /// How many PINs came.
    came: AtomicUsize,
}

impl Vault {
    fn new() -> Self {
        let memory = MemoryDriver::new();
        let inner = memory.open("memory:", &Call::unlimited()).unwrap();
        let mut info = inner.info().clone();
        info.id.kind = "vault".into();
        info.backend = BACKEND.into();
        Vault(Arc::new(State {
            inner,
            info,
            tries: AtomicU8::new(3),
            tells: AtomicBool::new(true),
            falls_silent: AtomicBool::new(false),
            came: AtomicUsize::new(0),
        }))
    }

    /// Under which name its PINs are remembered: other tokens may have the same ones.
    fn holder(&self) -> TokenId {
        TokenId {
            kind: "holder".into(),
            ..self.0.info.id.clone()
        }
    }

    fn tries(&self) -> u8 {
        self.0.tries.load(SeqCst)
    }

    fn came(&self) -> usize {
        self.0.came.load(SeqCst)
    }

    /// Opens it as a process of its own would, and says what came of it.
    async fn open_with(&self, home: &Path, pin: &str) -> Result<(), Error> {
        self.open_from(home, FixedPin::new(pin)).await
    }

    async fn open_from(&self, home: &Path, pins: impl PinSource + 'static) -> Result<(), Error> {
        let node = Node::builder(Registry::open(home).unwrap())
            .driver(self.clone())
            .access(Access::with(pins))
            .build();
        let backend = Backend::from(BACKEND);
        let done = generate(&node, "a", &backend, IdParams::P256, Capabilities::Commit).await;
        match done.err {
            None | Some(EngineError::IdentityExists) => Ok(()),
            Some(EngineError::Token(error)) => Err(error),
            Some(other) => panic!("{other}"),
        }
    }
}

impl Driver for Vault {
    fn about(&self) -> About {
        About::new("vault", "a vault of this test")
    }

    fn look(&self, _: &str, detail: Detail, call: &Call) -> Result<Listing, Error> {
        let info = self.0.info.clone();
        let found = Listed::with_slots(info, detail, |_| self.0.inner.slots(call));
        Ok(Listing::new([found], []))
    }

    fn named_slot(&self, _: &str) -> Result<Option<SlotId>, Error> {
        Ok(None)
    }

    fn open(&self, _: &str, call: &Call) -> Result<Arc<dyn Token>, Error> {
        let (token, access) = (self.0.info.id.clone(), call.access());
        let pin: Pin = access.pins.pin(&token, "", call)?;
        let asked = refused::PinAttempt {
            token: &token,
            pin: &pin,
            pins: &*access.pins,
            label: "",
            call,
        };
        let turn = refused::begin(&*access.refused_pins, &self.holder(), &asked, || {
            Ok(match self.0.tells.load(SeqCst) {
                true => TriesLeft::Exactly(self.tries()),
                false => TriesLeft::Unknown,
            })
        })?;
        self.0.came.fetch_add(1, SeqCst);
        let is_right = pin.expose_secret() == PIN;
        match is_right {
            true => self.0.tries.store(3, SeqCst),
            false => drop(self.0.tries.fetch_sub(1, SeqCst)),
        }
        if self.0.falls_silent.swap(false, SeqCst) {
            return Err(Error::TokenUnavailable {
                token,
                reason: "silence".into(),
            });
        }
        if is_right {
            turn.end(&pin, PinVerdict::Accepted);
            return Ok(Arc::clone(&self.0.inner));
        }
        turn.end(&pin, PinVerdict::Refused);
        let tries = TriesLeft::Exactly(self.tries());
        Err(Error::PinWrong { token, tries })
    }
}

/// A person at a terminal, who types a PIN and answers a question.
#[derive(Clone)]
struct Person {
    types: &'static str,
    says: bool,
    /// How often the question came.
    asked: Arc<AtomicUsize>,
}

impl Person {
    fn new(types: &'static str, says: bool) -> Self {
        let asked = Arc::default();
        Person { types, says, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }
}

impl PinSource for Person {
    fn pin(&self, _: &TokenId, _: &str, _: &Call) -> Result<Pin, Error> {
        Ok(Pin::from(self.types))
    }

    fn sends_unsettled(&self, token: &TokenId, _: &str, _: &Call) -> Result<bool, Error> {
        assert_eq!(token.kind, "vault");
        self.asked.fetch_add(1, SeqCst);
        Ok(self.says)
    }
}

fn stage() -> (Vault, TempDir) {
    (Vault::new(), tempfile::tempdir().unwrap())
}

fn on_record(home: &Path) -> Vec<(u32, bool)> {
    let records = Registry::open(home).unwrap().refused_pins().all().unwrap();
    let counts = records.iter().map(|r| (r.refused, r.unsettled));
    counts.collect()
}

#[tokio::test]
async fn a_refused_pin_is_sent_by_no_process_until_somebody_says_so() {
    let (vault, home) = stage();
    let home = home.path();
    let wrong = vault.open_with(home, "135791").await;
    assert!(matches!(wrong, Err(Error::PinWrong { .. })), "{wrong:?}");
    for _ in 0..3 {
        let again = vault.open_with(home, "135791").await.unwrap_err();
        assert!(matches!(again, Error::PinRefusedBefore { .. }), "{again:?}");
    }
    assert_eq!((vault.tries(), vault.came()), (2, 1));
    let other = vault.open_with(home, "135792").await;
    assert!(matches!(other, Err(Error::PinWrong { .. })), "{other:?}");
    assert_eq!(on_record(home), [(2, false)]);

    let registry = Registry::open(home).unwrap();
    registry.refused_pins().forget(&vault.holder()).unwrap();
    drop(registry);
    assert_eq!(on_record(home), []);
    let again = vault.open_with(home, "135791").await;
    assert!(matches!(again, Err(Error::PinWrong { .. })), "{again:?}");
    assert_eq!((vault.tries(), vault.came()), (0, 3));
}

#[tokio::test]
async fn the_right_pin_leaves_nothing_on_record_and_no_pin_in_any_file() {
    let (vault, home) = stage();
    let home = home.path();
    let _ = vault.open_with(home, "135791").await;
    assert_eq!(on_record(home), [(1, false)]);
    vault.open_with(home, PIN).await.unwrap();
    assert_eq!(on_record(home), []);
    // While it is open its log is there, too.
    let _registry = Registry::open(home).unwrap();
    let mut files = 0;
    for entry in std::fs::read_dir(home).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_file() {
            continue;
        }
        files += 1;
        let content = std::fs::read(&path).unwrap();
        for pin in ["135791", PIN] {
            let found = content.windows(pin.len()).any(|w| w == pin.as_bytes());
            assert!(!found, "{pin} in {}", path.display());
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = path.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", path.display());
        }
    }
    assert!(files >= 2, "no log of the database");
}

#[tokio::test]
async fn where_no_answer_came_the_tries_decide_and_else_the_operator() {
    for (pin, tells, is_sent_again) in [
        (PIN, true, true),
        ("135791", true, false),
        (PIN, false, false),
        ("135791", false, false),
    ] {
        let (vault, home) = stage();
        let home = home.path();
        vault.0.tells.store(tells, SeqCst);
        vault.0.falls_silent.store(true, SeqCst);
        let silence = vault.open_with(home, pin).await;
        assert!(
            matches!(silence, Err(Error::TokenUnavailable { .. })),
            "{silence:?}"
        );
        assert_eq!(on_record(home), [(0, true)]);
        if is_sent_again {
            vault.open_with(home, pin).await.unwrap();
            assert_eq!(on_record(home), []);
            continue;
        }
        // What was sent is not written down, so no PIN is sent.
        for pin in ["135791", PIN] {
            let again = vault.open_with(home, pin).await;
            assert!(
                matches!(again, Err(Error::PinUnsettled { .. })),
                "{again:?}"
            );
        }
        assert_eq!(vault.came(), 1);
        let registry = Registry::open(home).unwrap();
        registry.refused_pins().forget(&vault.holder()).unwrap();
        vault.open_with(home, PIN).await.unwrap();
    }
}

#[tokio::test]
async fn where_no_answer_came_a_person_who_types_the_pin_is_asked_once_and_decides() {
    let (vault, home) = stage();
    let home = home.path();
    vault.0.tells.store(false, SeqCst);
    vault.0.falls_silent.store(true, SeqCst);
    vault.open_with(home, PIN).await.unwrap_err();
    assert_eq!((vault.came(), on_record(home)), (1, vec![(0, true)]));

    let no = Person::new(PIN, false);
    let stopped = vault.open_from(home, no.clone()).await;
    assert!(
        matches!(stopped, Err(Error::PinUnsettled { .. })),
        "{stopped:?}"
    );
    assert_eq!((no.asked(), vault.came()), (1, 1));
    // A wrong one is refused, which is known then.
    let wrong = Person::new("135791", true);
    let refused = vault.open_from(home, wrong.clone()).await;
    assert!(
        matches!(refused, Err(Error::PinWrong { .. })),
        "{refused:?}"
    );
    assert_eq!((wrong.asked(), vault.came()), (1, 2));
    assert_eq!(on_record(home), [(1, false)]);
    let again = vault.open_from(home, wrong.clone()).await;
    assert!(
        matches!(again, Err(Error::PinRefusedBefore { .. })),
        "{again:?}"
    );
    assert_eq!((wrong.asked(), vault.came()), (1, 2));

    // Also where one that was refused before is typed, whatever the person says.
    vault.0.falls_silent.store(true, SeqCst);
    vault.open_with(home, PIN).await.unwrap_err();
    let again = vault.open_from(home, wrong.clone()).await;
    assert!(
        matches!(again, Err(Error::PinRefusedBefore { .. })),
        "{again:?}"
    );
    let right = Person::new(PIN, true);
    vault.open_from(home, right.clone()).await.unwrap();
    assert_eq!((right.asked(), vault.came()), (1, 4));
    assert_eq!(on_record(home), []);
    vault.open_from(home, right.clone()).await.unwrap();
    assert_eq!(right.asked(), 1);
}

#[tokio::test]
async fn a_pin_that_differs_from_a_refused_one_by_zero_bytes_is_another_one() {
    let (vault, home) = stage();
    let home = home.path();
    vault.0.tells.store(false, SeqCst);
    for (sent, pin) in [(1, "1357"), (2, "1357\0")] {
        vault.0.tries.store(3, SeqCst);
        let wrong = vault.open_with(home, pin).await;
        assert!(matches!(wrong, Err(Error::PinWrong { .. })), "{wrong:?}");
        let again = vault.open_with(home, pin).await;
        assert!(
            matches!(again, Err(Error::PinRefusedBefore { .. })),
            "{again:?}"
        );
        assert_eq!(
            (vault.came(), on_record(home)),
            (sent, vec![(sent as u32, false)])
        );
    }
}

/// A PIN that an earlier version noted: scrypt of `135791` alone, with N = 2^10, r = 8, p = 1
/// (made with Python's `hashlib.scrypt`).
const NOTED_BEFORE: &str = "INSERT INTO refused_pin \
     (kind, manufacturer, serial, salt, log_n, r, p, hash) VALUES (?, ?, ?, \
     x'000102030405060708090a0b0c0d0e0f', 10, 8, 1, \
     x'96b1998b663dec78fe306dd4fc3a3332a4eff7f54544ee6429d76d52248fbc84')";

#[tokio::test]
async fn a_pin_that_an_earlier_version_noted_stays_refused_until_another_is_accepted() {
    let (vault, home) = stage();
    let home = home.path();
    drop(Registry::open(home).unwrap());
    let db = rusqlite::Connection::open(home.join("registry.sqlite")).unwrap();
    make_older(&db);
    let TokenId {
        kind,
        manufacturer,
        serial,
    } = &vault.holder();
    db.execute(NOTED_BEFORE, [kind, manufacturer, serial])
        .unwrap();
    drop(db);
    let refused = |opened: Result<(), Error>| {
        let is_known = matches!(opened, Err(Error::PinRefusedBefore { .. }));
        assert!(is_known, "{opened:?}");
    };
    refused(vault.open_with(home, "135791").await);
    assert_eq!(vault.came(), 0);
    // One that is noted by now beside it.
    let wrong = vault.open_with(home, "135792").await;
    assert!(matches!(wrong, Err(Error::PinWrong { .. })), "{wrong:?}");
    refused(vault.open_with(home, "135791").await);
    refused(vault.open_with(home, "135792").await);
    assert_eq!((vault.came(), on_record(home)), (1, vec![(2, false)]));
    vault.open_with(home, PIN).await.unwrap();
    assert_eq!(on_record(home), []);
}

/// Takes from a registry what version 2 of it did not have.
fn make_older(db: &rusqlite::Connection) {
    let added = "SELECT t.name, c.name FROM sqlite_schema t JOIN pragma_table_info(t.name) c \
                 WHERE t.type = 'table' AND c.name IN ('digest', 'length_in')";
    let mut added = db.prepare(added).unwrap();
    let added: Vec<(String, String)> = added
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert!(added.iter().any(|(_, column)| column == "length_in"));
    for (table, column) in added {
        let drop = format!("ALTER TABLE {table} DROP COLUMN {column}");
        db.execute_batch(&drop).unwrap();
    }
    db.execute_batch("DROP TABLE seal").unwrap();
    db.pragma_update(None, "user_version", 2).unwrap();
}

/// The file in which it is noted that a PIN is being sent to the only token.
fn pin_note(home: &std::path::Path) -> std::path::PathBuf {
    let mut notes = std::fs::read_dir(home.join("pins")).unwrap();
    let note = notes.next().expect("there is a note").unwrap().path();
    assert!(notes.next().is_none());
    note
}

#[tokio::test]
async fn a_pin_that_cannot_be_noted_is_not_sent() {
    let (vault, home) = stage();
    let home = home.path();
    vault.open_with(home, PIN).await.unwrap();
    let note = pin_note(home);
    let noted = std::fs::read(&note).unwrap();
    assert!(noted.starts_with(b"done"), "{noted:?}");
    // What is no file cannot be written to, not even by root.
    std::fs::remove_file(&note).unwrap();
    std::fs::create_dir(&note).unwrap();
    let failed = vault.open_with(home, PIN).await.unwrap_err();
    assert!(matches!(failed, Error::PinNotNoted { .. }), "{failed:?}");
    assert_eq!(vault.came(), 1);
    std::fs::remove_dir(&note).unwrap();
    vault.open_with(home, PIN).await.unwrap();
}

#[tokio::test]
async fn a_refusal_that_cannot_be_noted_stays_as_one_that_is_not_known() {
    let (vault, home) = stage();
    let home = home.path();
    drop(Registry::open(home).unwrap());
    let db = rusqlite::Connection::open(home.join("registry.sqlite")).unwrap();
    db.execute_batch(
        "CREATE TRIGGER full BEFORE INSERT ON refused_pin BEGIN SELECT RAISE(FAIL, 'full'); END",
    )
    .unwrap();
    let wrong = vault.open_with(home, "135791").await;
    assert!(matches!(wrong, Err(Error::PinWrong { .. })), "{wrong:?}");
    let again = vault.open_with(home, "135791").await;
    assert!(
        matches!(again, Err(Error::PinUnsettled { .. })),
        "{again:?}"
    );
    assert_eq!(vault.came(), 1);
}

#[test]
fn a_turn_that_another_process_has_is_not_waited_for_by_who_holds_what_they_may_need() {
    let home = tempfile::tempdir().unwrap();
    let [ours, theirs] = [(); 2].map(|()| Registry::open(home.path()).unwrap());
    let [ours, theirs] = [&ours, &theirs].map(|registry| registry.refused_pins());
    let token = |serial: &str| TokenId {
        serial: serial.into(),
        ..Vault::new().0.info.id.clone()
    };
    let turn = theirs.turn(&token("1"), &Call::unlimited()).unwrap();
    assert!(ours.turn_at_once(&token("1")).unwrap().is_none());
    assert!(ours.turn_at_once(&token("2")).unwrap().is_some());
    drop(turn);
    let turn = ours.turn_at_once(&token("1")).unwrap();
    assert!(theirs.turn_at_once(&token("1")).unwrap().is_none());
    drop(turn);
    assert!(theirs.turn_at_once(&token("1")).unwrap().is_some());
}

#[test]
fn a_turn_that_another_process_has_is_waited_for_no_longer_than_the_call_lasts() {
    let home = tempfile::tempdir().unwrap();
    let [ours, theirs] = [(); 2].map(|()| Registry::open(home.path()).unwrap());
    let [ours, theirs] = [&ours, &theirs].map(|registry| registry.refused_pins());
    let token = Vault::new().0.info.id.clone();
    let turn = theirs.turn(&token, &Call::unlimited()).unwrap();
    let begun = Instant::now();
    let late = ours.turn(&token, &Call::within(Duration::from_millis(50)));
    assert!(matches!(late.err(), Some(Error::DeadlineExceeded)));
    let given_up = Arc::new(AtomicBool::new(true));
    let call = Call::unlimited().cancelled_by(given_up);
    let cancelled = ours.turn(&token, &call);
    assert!(matches!(cancelled.err(), Some(Error::Cancelled)));
    assert!(begun.elapsed() < Duration::from_secs(20));
    drop(turn);
    let soon = Call::within(Duration::from_secs(60));
    assert!(ours.turn(&token, &soon).is_ok());
}

#[test]
fn of_many_processes_with_the_same_wrong_pin_one_sends_it() {
    let (vault, home) = stage();
    drop(Registry::open(home.path()).unwrap());
    let start = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = { runtime }.enable_time().build().unwrap();
                start.wait();
                let opened = runtime.block_on(vault.open_with(home.path(), "135791"));
                assert!(opened.is_err());
            });
        }
    });
    assert_eq!((vault.tries(), vault.came()), (2, 1));
    assert_eq!(on_record(home.path()), [(1, false)]);
}

#[test]
fn a_pin_whose_answer_is_not_known_stays_so_where_the_next_one_is_not_judged() {
    let home = tempfile::tempdir().unwrap();
    for registry in [
        Registry::open(home.path()).unwrap(),
        Registry::in_memory().unwrap(),
    ] {
        let (memory, token) = (registry.refused_pins(), Vault::new().holder());
        let [first, next] = ["135791", "135792"].map(Pin::from);
        let turn = || memory.turn(&token, &Call::unlimited()).unwrap();
        turn().begin(&first, TriesLeft::Exactly(3)).unwrap();
        let mut anyway = turn();
        anyway.begin_anyway(&next, TriesLeft::Exactly(2)).unwrap();
        anyway.end(&next, PinVerdict::NotJudged);
        let again = turn().begin(&next, TriesLeft::Exactly(2));
        assert!(
            matches!(again, Err(Error::PinUnsettled { .. })),
            "{again:?}"
        );
        // Where the token has all its tries, nothing was lost.
        let mut settled = turn();
        settled.begin(&next, TriesLeft::All).unwrap();
        settled.end(&next, PinVerdict::NotJudged);
        assert_eq!(memory.all().unwrap(), []);
    }
}

#[tokio::test]
async fn a_pin_whose_answer_is_not_known_is_remembered_without_the_folder_of_locks() {
    let (vault, home) = stage();
    let home = home.path();
    vault.0.tells.store(false, SeqCst);
    vault.0.falls_silent.store(true, SeqCst);
    vault.open_with(home, PIN).await.unwrap_err();
    vault.0.falls_silent.store(false, SeqCst);
    // As earlier versions left it.
    let note = pin_note(home);
    std::fs::rename(&note, home.join("run").join(note.file_name().unwrap())).unwrap();
    std::fs::remove_dir(note.parent().unwrap()).unwrap();
    assert_eq!(on_record(home), [(0, true)]);
    let unsettled = |opened: Result<(), Error>| {
        assert!(
            matches!(opened, Err(Error::PinUnsettled { .. })),
            "{opened:?}"
        );
    };
    unsettled(vault.open_with(home, PIN).await);
    assert!(pin_note(home).exists());
    std::fs::remove_dir_all(home.join("run")).unwrap();
    unsettled(vault.open_with(home, PIN).await);
    assert_eq!((vault.came(), on_record(home)), (1, vec![(0, true)]));
}

#[tokio::test]
async fn a_damaged_note_of_a_token_that_the_registry_does_not_know_is_listed() {
    let (vault, home) = stage();
    let home = home.path();
    vault.open_with(home, PIN).await.unwrap();
    let file = pin_note(home);
    std::fs::write(&file, b"damaged").unwrap();
    let registry = Registry::open(home).unwrap();
    // Another token's, and the registry knows nothing of it.
    let records = registry.refused_pins();
    assert_eq!(records.all().unwrap(), []);
    let notes = records.notes().unwrap();
    assert_eq!(notes.len(), 1);
    assert_eq!(
        (&notes[0].file, &notes[0].token, notes[0].is_damaged),
        (&file, &None, true)
    );
    vault.0.tells.store(false, SeqCst);
    let opened = vault.open_with(home, PIN).await;
    assert!(
        matches!(opened, Err(Error::PinUnsettled { .. })),
        "{opened:?}"
    );
    records.forget_note(&notes[0]).unwrap();
    assert_eq!(records.notes().unwrap(), []);
    vault.open_with(home, PIN).await.unwrap();
}

#[tokio::test]
async fn a_note_that_was_damaged_is_shown_goes_into_a_backup_and_can_be_forgotten() {
    let (vault, home) = stage();
    let home = home.path();
    vault.open_with(home, "135791").await.unwrap_err();
    std::fs::write(pin_note(home), b"damaged").unwrap();
    assert_eq!(on_record(home), [(1, true)]);

    let restored = tempfile::tempdir().unwrap();
    let backup = restored.path().join("backup");
    let made = Registry::open(home).unwrap().backup().unwrap();
    std::fs::write(&backup, made.file).unwrap();
    Registry::restore(&restored.path().join("home"), &backup).unwrap();
    assert_eq!(on_record(&restored.path().join("home")), [(1, true)]);

    let registry = Registry::open(home).unwrap();
    registry.refused_pins().forget(&vault.holder()).unwrap();
    drop(registry);
    assert_eq!(on_record(home), []);
    vault.open_with(home, PIN).await.unwrap();
}
